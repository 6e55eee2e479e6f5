"""The Bernoulli likelihood."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.algebra.missing import column_moments
from zoo.likelihoods.shared import half_a_row, refuse


class Bernoulli(nn.Module):
    """Independent columns of 0 and 1 with log odds :math:`a + f`, where a are the log odds of the column means.

    For columns that are all 0 or all 1, half a row is counted as the other value. Grey values in between have no
    probability under this likelihood and are refused; the cross entropy often computed for them is not a probability
    (Loaiza-Ganem and Cunningham 2019, The continuous Bernoulli).
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
        edge = half_a_row(x, weights)
        self.shift.copy_(torch.logit(mean.clamp(edge, 1 - edge)))

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        refuse(
            x,
            (x == 0) | (x == 1),
            columns,
            "likelihood 'bernoulli' is for 0 and 1 only: binarise grey values, once (x > 0.5) or dynamically, drawing "
            "torch.bernoulli(x) anew for every pass over the data, or use 'logistic_256' for pixels k/255",
        )

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.shift + location).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)
