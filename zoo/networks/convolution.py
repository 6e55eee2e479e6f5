"""Convolutional encoders and decoders for images."""

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.base.checks import check_whole
from zoo.networks.perceptron import Activation, check_widths, hidden_layer


def image_encoder(
    image: Sequence[int],
    hidden: Sequence[int],
    outputs: int,
    activation: Activation = "silu",
    normalize: bool = False,
    gated: bool = False,
) -> "Flattened":
    """Convolutions of stride 2 and a linear layer: from rows (..., channels * height * width) to (..., outputs).

    Args:
        image: channels, height and width; a row contains the channels one after the other, in row-major order.
        hidden: channels of the hidden layers; each halves height and width (rounding up).
        outputs: width of the linear output.
        activation, normalize, gated: see :func:`zoo.networks.perceptron.mlp`; the norm is over channels and pixels of
        an
            image.

    Raises:
        ValueError: as for ``mlp``, or ``image`` is not three whole numbers of at least 1.
    """
    channels, height, width = check_image(image)
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, height, width))]
    for after in check_widths(hidden, normalize):
        wide = after * (1 + gated)
        half = nn.Conv2d(channels, wide, 3, stride=2, padding=1)
        layers += hidden_layer(half, wide, activation, normalize, gated, flat=False)
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
    """A linear layer and transposed convolutions of stride 2, the reverse of :func:`image_encoder`.

    It maps (..., inputs) to rows (..., channels * height * width), with a linear output layer.

    Args:
        inputs: width of the input.
        hidden: channels of the hidden layers, from the smallest image to the largest; each layer after the first
            doubles height and width, and so does the output.
        image: channels, height and width of the output.
        activation, normalize, gated: see :func:`image_encoder`.

    Raises:
        ValueError: as for :func:`image_encoder`.
    """
    channels, height, width = check_image(image)
    widths = check_widths(hidden, normalize)
    if not widths:
        return Flattened(nn.Linear(inputs, channels * height * width))
    sizes = [(height, width)]
    for _ in widths:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    wide = widths[0] * (1 + gated)
    first = nn.Sequential(nn.Linear(inputs, wide * height * width), nn.Unflatten(1, (wide, height, width)))
    layers = hidden_layer(first, wide, activation, normalize, gated, flat=False)
    for before, after, size in zip(widths, [*widths[1:], 0], reversed(sizes[:-1]), strict=True):
        wide = after * (1 + gated) or channels
        even = (1 - size[0] % 2, 1 - size[1] % 2)  # a side of s becomes 2 s - 1, or one more
        double = nn.ConvTranspose2d(before, wide, 3, stride=2, padding=1, output_padding=even)
        layers += hidden_layer(double, wide, activation, normalize, gated, flat=False) if after else [double]
    return Flattened(*layers, nn.Flatten())


class Flattened(nn.Sequential):
    """Layers that need exactly one batch dimension, applied to inputs (..., i) with any number of them, even none."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.reshape(x.shape[:-1].numel(), x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])


def check_image(image: Sequence[int], data_dim: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width as whole numbers.

    Raises:
        ValueError: ``image`` is not three whole numbers of at least 1, or their product is not ``data_dim``.
    """
    if not isinstance(image, Sequence) or len(image) != 3:
        raise ValueError(f"image must be (channels, height, width), got {image!r}")
    channels, height, width = (check_whole(side, "image") for side in image)
    if data_dim is not None and channels * height * width != data_dim:
        raise ValueError(
            f"image={(channels, height, width)} has {channels * height * width} entries, but a row has {data_dim}: "
            "pass (channels, height, width) whose product is the number of columns"
        )
    return channels, height, width
