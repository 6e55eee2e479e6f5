"""Rows with missing entries (NaN), missing at random: what the models that accept them share.

Rubin (1976), Inference and missing data, Biometrika 63; Little and Rubin (2019), Statistical Analysis with Missing
Data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.base import incomplete


@dataclass(frozen=True, eq=False)
class Imputation:
    """The missing entries of rows, given the observed ones.

    Attributes:
        mean: the rows (n, d) with :math:`E[x_m | x_o]` in the missing entries, the others as observed.
        variance: the conditional variance of every entry (n, d), 0 where it was observed.
    """

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of an :class:`Incomplete`, sorted by their pattern of missingness.

    Attributes:
        rows: their numbers (b,).
        filled: the data (b, d), 0 where missing.
        observed: which entries are there (b, d).
        patterns: the distinct rows of ``observed`` (p, d).
        which: the pattern of every row (b,).
    """

    rows: Tensor
    filled: Tensor
    observed: Tensor
    patterns: Tensor
    which: Tensor


@dataclass(frozen=True, eq=False)
class Incomplete:
    """Data with missing entries, prepared for EM.

    Attributes:
        filled: the data (n, d), 0 where missing.
        observed: which entries are there (n, d).
    """

    filled: Tensor
    observed: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Incomplete":
        """From rows (n, d) with NaN."""
        observed = ~x.isnan()
        return cls(torch.where(observed, x, 0.0), observed)

    def __len__(self) -> int:
        return len(self.filled)

    def sorted(self) -> "Sorted":
        """The same rows, sorted by pattern."""
        patterns, which = torch.unique(self.observed, dim=0, return_inverse=True)
        return Sorted(self, patterns, which, which.argsort(stable=True))


@dataclass(frozen=True, eq=False)
class Sorted:
    """Incomplete data, sorted by pattern: ``patterns`` (p, d), ``which`` (n,) of them, ``order`` of the rows (n,)."""

    data: Incomplete
    patterns: Tensor
    which: Tensor
    order: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def parts(self, size: int) -> Iterator[Part]:
        """Chunks of at most ``size`` rows, each with the patterns that occur in it."""
        for chosen in self.order.split(max(1, size)):
            here, which = self.which[chosen].unique_consecutive(return_inverse=True)
            filled, observed = self.data.filled[chosen], self.data.observed[chosen]
            yield Part(chosen, filled, observed, self.patterns[here], which)


class Observed(dist.TorchDistribution):
    """A distribution of rows whose density is that of the observed entries alone; draws are whole rows.

    Args:
        base: a ``MultivariateNormal``, a ``LowRankMultivariateNormal``, or a distribution of independent entries with 0
            in its support, made an event by ``to_event(1)``.
        observed: which entries count (..., d).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own form)

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
        """The log density of the observed entries, whatever stands in the others; 0 where nothing is observed."""
        value = torch.where(self.observed, value, 0.0)  # before any arithmetic: NaN would enter the gradients
        if isinstance(self.base_dist, dist.MultivariateNormal):
            root = self.base_dist._unbroadcasted_scale_tril
            offset = torch.where(self.observed, value - self.base_dist.mean, 0.0)
            return log_density(offset, self.observed, marginal_root(root @ root.mT, self.observed))
        if isinstance(self.base_dist, dist.LowRankMultivariateNormal):
            base = self.base_dist
            factor = torch.where(self.observed.unsqueeze(-1), base._unbroadcasted_cov_factor, 0.0)  # (..., d, r)
            variance = torch.where(self.observed, base._unbroadcasted_cov_diag, 1.0)
            offset = torch.where(self.observed, value - base.loc, 0.0)
            # What is missing has become a standard normal entry of its own, at 0: take its density off again.
            whole = dist.LowRankMultivariateNormal(torch.zeros_like(offset), factor, variance, validate_args=False)
            return whole.log_prob(offset) + (~self.observed).to(offset).sum(-1) * (0.5 * math.log(2 * math.pi))
        return torch.where(self.observed, self.base_dist.base_dist.log_prob(value), 0.0).sum(-1)


def seen(density: Any, x: Tensor | None) -> Any:
    """``density``, restricted to the entries of the rows ``x`` that are there (itself where all are, or x is None)."""
    return density if x is None or not incomplete(x) else Observed(density, ~x.isnan())


def marginal_root(covariance: Tensor, observed: Tensor) -> Tensor:
    """The Cholesky factor of the observed block of a covariance (..., d, d), and the identity in the missing one."""
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.cholesky(torch.where(both, covariance, identity))


def log_density(offset: Tensor, observed: Tensor, root: Tensor) -> Tensor:
    """log N of the observed entries (...): ``offset`` x - mu (..., d) is 0 elsewhere, ``root`` by `marginal_root`."""
    white = torch.linalg.solve_triangular(root, offset.unsqueeze(-1), upper=False).squeeze(-1)
    logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # the identity adds nothing
    return -0.5 * (observed.to(offset).sum(-1) * math.log(2 * math.pi) + white.square().sum(-1)) - logdet


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of every column (d,), by the entries that are there (0 where nothing is)."""
    if not incomplete(x):
        variance, mean = torch.var_mean(x, 0, correction=0)
        return variance, mean
    observed = ~x.isnan()
    count = observed.sum(0).clamp_min(1)
    mean = torch.where(observed, x, 0.0).sum(0) / count
    return torch.where(observed, x - mean, 0.0).square().sum(0) / count, mean


def refuse_unobserved_columns(x: Tensor, model: str) -> None:
    """Raise where a column shows too little to say anything about it.

    Raises:
        ValueError: names a column, counted from 0, with fewer than two observed values.
    """
    if not incomplete(x):
        return
    count = (~x.isnan()).sum(0)
    scarce = (count < 2).nonzero().flatten().tolist()
    if scarce:
        held = "nothing but NaN" if count[scarce[0]] == 0 else "one observed value only"
        more = f" (and so {len(scarce) - 1} more)" if len(scarce) > 1 else ""
        raise ValueError(
            f"column {scarce[0]} of x holds {held}{more}: {model} needs at least two observed values in every column, "
            "leave it out"
        )
