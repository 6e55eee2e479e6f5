"""The Student's t likelihood."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.likelihoods.shared import deviation, tiny
from zoo.networks.standardize import Standardize


class StudentT(nn.Module):
    r"""Independent columns with heavy tails: :math:`x = \mu + \sigma t_\nu`.

    :math:`\mu = a + b f` and :math:`\sigma^2 = b^2 (\epsilon + \mathrm{softplus}(g)^2)`, as for the Gaussian. The
    degrees of freedom :math:`\nu` are learned for every column and restricted to values above 2, where the variance
    :math:`\sigma^2 \nu / (\nu - 2)` exists.

    References:
        Lange, Little and Taylor (1989), Robust Statistical Modeling Using the t Distribution, JASA 84.
    """

    locations: int
    noise: int

    LEAST = 2.01  # degrees of freedom
    START = 10.0

    def __init__(self, data_dim: int, floor: float) -> None:
        super().__init__()
        self.floor = float(floor)
        self.locations = self.noise = data_dim
        self.columns = Standardize(data_dim)
        self.freedom = nn.Parameter(torch.empty(data_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.freedom.fill_(math.log(math.expm1(self.START - self.LEAST)))

    @property
    def degrees(self) -> Tensor:
        """The degrees of freedom of every column (d,)."""
        return self.LEAST + softplus(self.freedom)

    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        self.columns.place(x, weights)

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Every finite number is in the support."""

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        mean, scale = shift + unit * location, unit * deviation(noise, self.floor)
        return dist.StudentT(self.degrees, mean, scale).to_event(1)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of columns whose squared scale is :func:`tiny`: (...)."""
        return tiny(softplus(noise).square(), self.floor)

    def extra_repr(self) -> str:
        return f"{self.locations}, floor={self.floor:g}"
