"""The few neural blocks that encoders and decoders share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base import check_whole, incomplete, seeded
from zoo.missing import column_moments

Activation = str | type[nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: Activation = "silu",
    normalize: bool = False,
    gated: bool = False,
) -> nn.Sequential:
    r"""A multilayer perceptron; with ``hidden=()`` a single linear layer.

    Args:
        inputs: width of the input.
        hidden: widths of the hidden layers, each followed by the activation.
        outputs: width of the output, which is left linear.
        activation: its name (``"silu"``, ``"relu"``, ``"tanh"``, ``"elu"``, ``"gelu"``, ``"softplus"``) or its class.
        normalize: put a layer norm before every activation (Ba, Kiros and Hinton 2016). Not a batch norm: statistics of
            the batch would mix particles with rows, make a row's answer hang on its neighbours, and have nothing to say
            of a single row.
        gated: hidden layers :math:`a \odot \mathrm{sigmoid}(g)` of two linear maps a and g, in place of the activation
            (Dauphin et al. 2017; Tomczak and Welling 2018).

    Raises:
        ValueError: a width is no whole number of at least 1 (of at least 2 under ``normalize``), or there is no such
            activation.
    """
    layers: list[nn.Module] = []
    for width in _widths(hidden, normalize):
        wide = width * (1 + gated)
        layers += _hidden(nn.Linear(inputs, wide), wide, activation, normalize, gated)
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def image_encoder(
    image: Sequence[int],
    hidden: Sequence[int],
    outputs: int,
    activation: Activation = "silu",
    normalize: bool = False,
    gated: bool = False,
) -> "Flattened":
    """Convolutions of stride 2, then a linear layer: from rows (..., channels * height * width) to (..., outputs).

    Args:
        image: channels, height and width; a row holds the channels one after the other, each row by row.
        hidden: channels of the hidden layers; each halves height and width (rounding up).
        outputs: width of the output, which is left linear.
        activation, normalize, gated: as of :func:`mlp`; the norm is over channels and pixels of one image.

    Raises:
        ValueError: as :func:`mlp`, or ``image`` is not three whole numbers of at least 1.
    """
    channels, height, width = check_image(image)
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, height, width))]
    for after in _widths(hidden, normalize):
        wide = after * (1 + gated)
        half = nn.Conv2d(channels, wide, 3, stride=2, padding=1)
        layers += _hidden(half, wide, activation, normalize, gated, flat=False)
        channels, height, width = after, (height + 1) // 2, (width + 1) // 2
    return Flattened(*layers, nn.Flatten(), nn.Linear(channels * height * width, outputs))


def image_decoder(
    inputs: int,
    hidden: Sequence[int],
    image: Sequence[int],
    activation: Activation = "silu",
    normalize: bool = False,
    gated: bool = False,
) -> "Flattened":
    """The mirror image of :func:`image_encoder`: a linear layer, then transposed convolutions of stride 2.

    From (..., inputs) to rows (..., channels * height * width), left linear.

    Args:
        inputs: width of the input.
        hidden: channels of the hidden layers, from the smallest image to the largest; each layer after the first
            doubles height and width, and so does the output.
        image: channels, height and width of the output.
        activation, normalize, gated: as of :func:`image_encoder`.

    Raises:
        ValueError: as :func:`image_encoder`.
    """
    channels, height, width = check_image(image)
    widths = _widths(hidden, normalize)
    if not widths:
        return Flattened(nn.Linear(inputs, channels * height * width))
    sizes = [(height, width)]
    for _ in widths:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    wide = widths[0] * (1 + gated)
    first = nn.Sequential(nn.Linear(inputs, wide * height * width), nn.Unflatten(1, (wide, height, width)))
    layers = _hidden(first, wide, activation, normalize, gated, flat=False)
    for before, after, size in zip(widths, [*widths[1:], 0], reversed(sizes[:-1]), strict=True):
        wide = after * (1 + gated) or channels
        even = (1 - size[0] % 2, 1 - size[1] % 2)  # a side of s becomes 2 s - 1, or one more
        double = nn.ConvTranspose2d(before, wide, 3, stride=2, padding=1, output_padding=even)
        layers += _hidden(double, wide, activation, normalize, gated, flat=False) if after else [double]
    return Flattened(*layers, nn.Flatten())


class Flattened(nn.Sequential):
    """Layers that know one batch dimension, for inputs (..., i) with any number of them, none included."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.reshape(x.shape[:-1].numel(), x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])


class Constant(nn.Module):
    """A network that ignores its input: the same learned numbers (outputs,) for every one."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.value.normal_(0.0, 0.1)  # not 0, a point at which a factor's gradient vanishes

    def forward(self, _: Tensor) -> Tensor:
        return self.value

    def extra_repr(self) -> str:
        return f"outputs={len(self.value)}"


def _hidden(
    linear: nn.Module, width: int, activation: Activation, normalize: bool, gated: bool, *, flat: bool = True
) -> list[nn.Module]:
    """A hidden layer: a map to ``width`` numbers (or channels of an image), the norm, the activation or the gate."""
    norm: list[nn.Module] = []
    if normalize:
        norm = [nn.LayerNorm(width) if flat else nn.GroupNorm(1, width)]
    return [linear, *norm, nn.GLU(-1 if flat else 1) if gated else activation_class(activation)()]


def _widths(hidden: Sequence[int], normalize: bool) -> list[int]:
    widths = [check_whole(width, "hidden") for width in hidden]
    if normalize and 1 in widths:
        raise ValueError("hidden has a layer of width 1, which normalize=True makes constant: take 2 or more")
    return widths


def activation_class(activation: Activation) -> type[nn.Module]:
    """The class of an activation, by its name or itself.

    Raises:
        ValueError: it is neither one of the names nor a class of modules.
    """
    found = ACTIVATIONS.get(activation) if isinstance(activation, str) else activation
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a class of modules; got {activation!r}"
        )
    return found


def activation_name(activation: Activation) -> Activation:
    """What a saved run records: the name where the class has one, so that it can be built again."""
    return next((name for name, known in ACTIVATIONS.items() if known is activation), activation)


def check_image(image: Sequence[int], data_dim: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: ``image`` is not three whole numbers of at least 1, or has not ``data_dim`` entries.
    """
    if not isinstance(image, Sequence) or len(image) != 3:
        raise ValueError(f"image must be (channels, height, width), got {image!r}")
    channels, height, width = (check_whole(side, "image") for side in image)
    if data_dim is not None and channels * height * width != data_dim:
        raise ValueError(
            f"image={(channels, height, width)} has {channels * height * width} entries, a row has {data_dim}: pass "
            "(channels, height, width) whose product is the number of columns"
        )
    return channels, height, width


def check_network(network: Any, name: str, inputs: int, outputs: int, parts: str) -> nn.Module:
    """A user's module, tried on zeros (2, 3, inputs); its flags, buffers and random stream are left alone.

    Args:
        network: what was passed.
        name: the argument's name.
        inputs: the width it will be given.
        outputs: the width it must give.
        parts: what the outputs are, in words.

    Raises:
        ValueError: it is no module, it fails on leading dimensions, or it gives another shape; says what is expected.
    """
    expected = f"{name} must map (..., {inputs}) to (..., {outputs}), {parts}"
    if not isinstance(network, nn.Module):
        kind = "the class" if isinstance(network, type) else "a"
        raise ValueError(
            f"{name} is {kind} {getattr(network, '__name__', type(network).__name__)}, no module: {expected}"
        )
    parameter = next(network.parameters(), None)
    zeros = torch.zeros(2, 3, inputs) if parameter is None else parameter.new_zeros(2, 3, inputs)
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), seeded(0):
            out = network.eval()(zeros)
    except Exception as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} fails on zeros of shape (2, 3, {inputs}), {why}: {expected}") from error
    finally:
        for module, flag in training.items():
            module.training = flag
    if not isinstance(out, Tensor):
        raise ValueError(f"{name} gives a {type(out).__name__}, no tensor: {expected}")
    if out.shape != (2, 3, outputs):
        width = f"width {out.shape[-1]}" if out.shape[:-1] == (2, 3) else f"shape {tuple(out.shape)}"
        raise ValueError(f"{name} gives {width} for zeros of shape (2, 3, {inputs}): {expected}")
    return network


class Standardize(nn.Module):
    """Columns to mean 0 and variance 1 by the statistics of the data it was placed on (the identity before).

    Missing entries (NaN) enter as their column's mean.

    Args:
        width: number of columns d.
        whiten: turn the columns so that they are uncorrelated too, by the symmetric root of their correlations. A
            direction below a ten-thousandth of the largest variance may be mere rounding: it is not raised to 1.
        pixels: leave columns that all lie in [0, 1] as they are. In units of its own a pixel that is hardly ever lit
            would drown the others when it is; and centred it is never quite 0, so that an optimizer with a rate for
            every weight (Adam) moves its weights at full pace all the time, for nothing.
    """

    fill: Tensor
    shift: Tensor
    unit: Tensor
    turn: Tensor | None

    def __init__(self, width: int, whiten: bool = False, pixels: bool = False) -> None:
        super().__init__()
        self.pixels = pixels
        self.register_buffer("turn", torch.eye(width) if whiten else None)
        self.register_buffer("fill", torch.zeros(width))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if incomplete(x):
            x = torch.where(x.isnan(), self.fill, x)
        x = (x - self.shift) / self.unit
        return x if self.turn is None else x @ self.turn

    @torch.no_grad()
    def place(self, x: Tensor) -> None:
        """Take mean and deviation from what is observed of ``x`` (n, d); a constant column keeps the usual unit."""
        variance, mean = column_moments(x)
        usual = variance.mean() if variance.any() else variance.new_ones(())
        self.fill.copy_(mean)
        if self.pixels and not ((x < 0) | (x > 1)).any():
            mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        self.shift.copy_(mean)
        self.unit.copy_(torch.where(variance > 1e-12 * usual, variance, usual).sqrt())
        if self.turn is not None:
            self.turn.copy_(torch.eye(len(self.turn)))
            parts = (self(rows) for rows in x.split(100_000))
            values, vectors = torch.linalg.eigh(sum(part.mT @ part for part in parts) / len(x))
            values = values.clamp_min(1e-4 * values[-1]) if values[-1] > 0 else torch.ones_like(values)
            self.turn.copy_(vectors * values.rsqrt() @ vectors.mT)


def reset(network: nn.Module, keep: nn.Module | None = None) -> None:
    """Draw the parameters of a network anew, layer by layer, from the running random stream.

    Args:
        network: its layers with a method ``reset_parameters`` are drawn.
        keep: a part of it that stays as it is.
    """
    kept = set() if keep is None else set(keep.modules())
    for layer in network.modules():
        draw = getattr(layer, "reset_parameters", None)
        if callable(draw) and layer not in kept:
            draw()
