"""A network with a linear path beside it."""

import torch
from torch import Tensor, nn


class LinearPath(nn.Module):
    r"""The sum of a network and a linear map of the same inputs: :math:`f(x) + V x + c`.

    The linear path carries the linear part of the map, and the network what is left: its last layer starts at zero.

    Args:
        network: from (..., inputs) to (..., outputs), with a linear last layer.
        inputs: width of the input.
        outputs: width of the output.
    """

    def __init__(self, network: nn.Sequential, inputs: int, outputs: int) -> None:
        super().__init__()
        self.network = network
        self.path = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.path(x)

    @torch.no_grad()
    def straighten(self) -> None:
        """Leave the linear path alone: the network's last layer becomes zero."""
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.zero_()
