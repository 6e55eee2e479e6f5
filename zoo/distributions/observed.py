"""Distributions of rows whose density is that of the observed entries."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.missing import log_density, marginal_root
from zoo.base.checks import incomplete


class Observed(dist.TorchDistribution):
    """A distribution of rows whose density is that of the observed entries only; draws are complete rows.

    Args:
        base: a ``MultivariateNormal``, a ``LowRankMultivariateNormal``, or a distribution of independent entries with 0
            in its support, made an event by ``to_event(1)``.
        observed: whether an entry is observed (..., d).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as in torch)

    def __init__(self, base: Any, observed: Tensor) -> None:
        batch = torch.broadcast_shapes(base.batch_shape, observed.shape[:-1])
        self.base_dist = base if base.batch_shape == batch else base.expand(batch)
        self.observed = observed
        super().__init__(batch, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:
        return self.base_dist.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Observed":
        return Observed(self.base_dist.expand(torch.Size(batch_shape)), self.observed)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of the observed entries (...), whatever the values of the others; 0 if none is observed."""
        value = torch.where(self.observed, value, 0.0)  # before any arithmetic, as NaN would spread to the gradients
        if isinstance(self.base_dist, dist.MultivariateNormal):
            root = self.base_dist._unbroadcasted_scale_tril
            offset = torch.where(self.observed, value - self.base_dist.mean, 0.0)
            return log_density(offset, self.observed, marginal_root(root @ root.mT, self.observed))
        if isinstance(self.base_dist, dist.LowRankMultivariateNormal):
            base = self.base_dist
            factor = torch.where(self.observed.unsqueeze(-1), base._unbroadcasted_cov_factor, 0.0)  # (..., d, r)
            variance = torch.where(self.observed, base._unbroadcasted_cov_diag, 1.0)
            offset = torch.where(self.observed, value - base.loc, 0.0)
            # Missing entries have become independent standard normal entries at 0: subtract their log density.
            whole = dist.LowRankMultivariateNormal(torch.zeros_like(offset), factor, variance, validate_args=False)
            return whole.log_prob(offset) + (~self.observed).to(offset).sum(-1) * (0.5 * math.log(2 * math.pi))
        return torch.where(self.observed, self.base_dist.base_dist.log_prob(value), 0.0).sum(-1)


def seen(density: Any, x: Tensor | None) -> Any:
    """``density`` of the observed entries of ``x``; unchanged if x is None or complete."""
    return density if x is None or not incomplete(x) else Observed(density, ~x.isnan())
