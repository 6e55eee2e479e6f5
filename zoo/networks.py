"""The few neural blocks that encoders and decoders share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.base import check_whole, incomplete
from zoo.missing import column_moments


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """A multilayer perceptron; with ``hidden=()`` a single linear layer.

    Args:
        inputs: width of the input.
        hidden: widths of the hidden layers, each followed by the activation.
        outputs: width of the output, which is left linear.
        activation: class of the activation.

    Raises:
        ValueError: a width is no whole number of at least 1.
    """
    widths = [check_whole(width, "hidden") for width in hidden]
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Standardize(nn.Module):
    """Columns to mean 0 and variance 1 by the statistics of the data it was placed on (the identity before).

    Missing entries (NaN) become 0, the mean.
    """

    shift: Tensor
    unit: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if incomplete(x):
            x = torch.where(x.isnan(), self.shift, x)
        return (x - self.shift) / self.unit

    @torch.no_grad()
    def place(self, x: Tensor) -> None:
        """Take mean and deviation from what is observed of ``x`` (n, d); a constant column keeps the usual unit."""
        variance, mean = column_moments(x)
        usual = variance.mean() if variance.any() else variance.new_ones(())
        self.shift.copy_(mean)
        self.unit.copy_(torch.where(variance > 1e-12 * usual, variance, usual).sqrt())


def reset(network: nn.Module) -> None:
    """Draw the parameters of a network anew, layer by layer, from the running random stream."""
    for layer in network.modules():
        draw = getattr(layer, "reset_parameters", None)
        if callable(draw):
            draw()
