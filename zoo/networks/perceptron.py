"""Multilayer perceptrons, their activations and their initialisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.base.checks import check_whole

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
    for width in check_widths(hidden, normalize):
        wide = width * (1 + gated)
        layers += hidden_layer(nn.Linear(inputs, wide), wide, activation, normalize, gated)
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


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


def hidden_layer(
    linear: nn.Module, width: int, activation: Activation, normalize: bool, gated: bool, *, flat: bool = True
) -> list[nn.Module]:
    """A hidden layer: a map to ``width`` numbers (or channels of an image), the norm, the activation or the gate."""
    norm: list[nn.Module] = []
    if normalize:
        norm = [nn.LayerNorm(width) if flat else nn.GroupNorm(1, width)]
    return [linear, *norm, nn.GLU(-1 if flat else 1) if gated else activation_class(activation)()]


def check_widths(hidden: Sequence[int], normalize: bool) -> list[int]:
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
