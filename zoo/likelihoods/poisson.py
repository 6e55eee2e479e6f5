"""The Poisson likelihood."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.algebra.missing import column_moments
from zoo.likelihoods.shared import half_a_row, refuse


class Poisson(nn.Module):
    """Independent columns of counts with log rates :math:`a + f`, a the logarithm of the column means.

    For columns of zeros, the sum is taken as half a count.
    """

    shift: Tensor
    locations: int
    noise: int = 0

    def __init__(self, data_dim: int, floor: float | None = None) -> None:
        super().__init__()
        self.locations = data_dim
        self.register_buffer("shift", torch.zeros(data_dim))

    @torch.no_grad()
    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        _, mean = column_moments(x, weights)
        self.shift.copy_(torch.maximum(mean, half_a_row(x, weights)).log())

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        refuse(
            x,
            (x >= 0) & (x == x.floor()),
            columns,
            "likelihood 'poisson' is for counts 0, 1, 2, ...: undo any scaling or centring, or use 'gaussian' or "
            "'student_t' for real numbers",
        )

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Poisson((self.shift + location).exp()).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)
