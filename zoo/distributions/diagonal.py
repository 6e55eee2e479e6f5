"""Normal rows with common standard deviations, whose density is cheap to differentiate."""

import math
from typing import Any

import pyro.distributions as dist
from torch import Tensor


class DiagonalNormal(dist.Independent):
    r"""Rows :math:`N(\mu_n, \mathrm{diag}(\sigma^2))` with the same :math:`\sigma` for all rows.

    It equals ``Normal(loc, scale).to_event(1)``, whose density computes a logarithm and a square of the scale for every
    entry of every row; here they are computed once per column, which about halves the time of an SVI step.

    Args:
        loc: the means (..., d).
        scale: the standard deviations, () or (d,).
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(dist.Normal(loc, scale), 1)
        self.shared = scale.expand(loc.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        """The same distribution for a larger batch."""
        return DiagonalNormal(self.base_dist.loc.expand(*batch_shape, -1), self.shared)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of every row (...)."""
        if self._validate_args:
            self._validate_sample(value)
        offset = value - self.base_dist.loc
        constant = self.shared.log().sum() + 0.5 * len(self.shared) * math.log(2 * math.pi)
        return -0.5 * (offset.square() @ self.shared.pow(-2)) - constant
