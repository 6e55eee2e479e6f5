"""Rows with missing entries (NaN), missing at random: what the models that accept them share.

Rubin (1976), Inference and missing data, Biometrika 63; Little and Rubin (2019), Statistical Analysis with Missing
Data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import polars
import torch
from torch import Tensor

from zoo.base.checks import incomplete


@dataclass(frozen=True, eq=False)
class Imputation:
    """The missing entries of rows, given the observed ones.

    Attributes:
        mean: the rows (n, d) with :math:`E[x_m | x_o]` in the missing entries, the others as observed.
        variance: the conditional variance of every entry (n, d), 0 where it was observed.
    """

    mean: Tensor
    variance: Tensor

    @property
    def missing(self) -> Tensor:
        """Which entries were missing (n, d): those with a variance."""
        return self.variance > 0

    def summary(self) -> dict[str, float]:
        """The numbers of rows and of missing entries, and the root mean conditional variance of these."""
        count = int(self.missing.sum())
        sd = float(self.variance.double().sum() / count) ** 0.5 if count else 0.0
        return {"rows": float(len(self.mean)), "missing": float(count), "sd": sd}

    def frame(self) -> polars.DataFrame:
        """A row per missing entry: its row and column, counted from 0, mean and standard deviation."""
        row, column = self.missing.cpu().nonzero(as_tuple=True)
        mean, variance = (value.detach().cpu().double()[row, column] for value in (self.mean, self.variance))
        return polars.DataFrame(
            {"row": row.numpy(), "column": column.numpy(), "mean": mean.numpy(), "sd": variance.sqrt().numpy()}
        )

    def __repr__(self) -> str:
        found = self.summary()
        n, d = self.mean.shape
        return f"Imputation of {found['missing']:.0f} entries of {n} rows x {d} columns: root mean sd {found['sd']:.4g}"


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
