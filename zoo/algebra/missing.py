"""Rows with entries missing at random (NaN): data structures and algebra for the models that accept them.

Rubin (1976), Inference and missing data, Biometrika 63; Little and Rubin (2019), Statistical Analysis with Missing
Data.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars
import torch
from torch import Tensor

from zoo.base.checks import incomplete
from zoo.base.entries import column_at
from zoo.base.tables import ArrayLike, column_names, index_column, named_rows, row_names

FEW = 8  # rows that share a pattern, on average, from which products pattern by pattern are faster


@dataclass(frozen=True, eq=False)
class Imputation:
    """The missing entries of rows, given the observed ones.

    Attributes:
        mean: the rows (n, d), with :math:`E[x_m | x_o]` for missing entries and observed entries unchanged.
        variance: the conditional variance of every entry (n, d), 0 for observed ones.
        columns: the names of the d columns; empty if unknown.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    mean: Tensor
    variance: Tensor
    columns: tuple[str, ...] = ()
    index: np.ndarray | None = None

    def named(self, x: ArrayLike, columns: tuple[str, ...] = ()) -> "Imputation":
        """The same with observed entries as they were given, and the names of the columns and rows.

        Args:
            x: the rows that were imputed, where they may have more precision than the model; their names, if any.
            columns: the names of the columns, if ``x`` has none.
        """
        found = replace(self, columns=column_names(x) or columns, index=row_names(x))
        given = named_rows(x).values.to(self.mean.device)
        if not given.is_floating_point() or torch.finfo(given.dtype).eps >= torch.finfo(self.mean.dtype).eps:
            return found
        return replace(found, mean=torch.where(given.isnan(), self.mean.to(given.dtype), given))

    @property
    def missing(self) -> Tensor:
        """Whether an entry was missing (n, d): its variance is positive."""
        return self.variance > 0

    def summary(self) -> dict[str, float]:
        """The numbers of rows and of missing entries, and the root of the mean conditional variance of these."""
        count = int(self.missing.sum())
        sd = float(self.variance.double().sum() / count) ** 0.5 if count else 0.0
        return {"rows": float(len(self.mean)), "missing": float(count), "sd": sd}

    def frame(self) -> polars.DataFrame:
        """One line per missing entry: its row and column, by name or counted from 0, its mean and its sd."""
        row, column = self.missing.cpu().nonzero(as_tuple=True)
        mean, variance = (value.detach().cpu().double()[row, column] for value in (self.mean, self.variance))
        return polars.DataFrame(
            {
                "row": row.numpy() if self.index is None else self.index[row.numpy()],
                "column": np.array(self.columns)[column.numpy()] if self.columns else column.numpy(),
                "mean": mean.numpy(),
                "sd": variance.sqrt().numpy(),
            }
        )

    def filled(self) -> polars.DataFrame:
        """The names of the rows, if known, and all columns, with missing entries filled in by their means."""
        names = self.columns or tuple(f"x{j}" for j in range(self.mean.shape[1]))
        values = self.mean.detach().cpu().double().numpy()
        return polars.DataFrame(index_column(self.index) | dict(zip(names, values.T, strict=True)))

    def __repr__(self) -> str:
        found = self.summary()
        n, d = self.mean.shape
        return f"Imputation of {found['missing']:.0f} entries of {n} rows x {d} columns: root mean sd {found['sd']:.4g}"


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of an :class:`Incomplete`, sorted by missingness pattern.

    Attributes:
        rows: the numbers of the rows (b,).
        filled: the data (b, d), 0 where missing.
        observed: whether an entry is observed (b, d).
        patterns: the distinct rows of ``observed`` (p, d).
        which: the index of every row's pattern (b,).
        weights: of the rows (b,); None for ones.
    """

    rows: Tensor
    filled: Tensor
    observed: Tensor
    patterns: Tensor
    which: Tensor
    weights: Tensor | None = None

    def weighted(self, values: Tensor) -> Tensor:
        """Values of the rows (b, ...) times the rows' weights."""
        if self.weights is None:
            return values
        return values * self.weights.to(values).reshape(-1, *[1] * (values.ndim - 1))

    def counts(self) -> Tensor:
        """The total weight of the rows of every pattern (p,)."""
        return torch.bincount(self.which, self.weights, minlength=len(self.patterns))

    def segments(self) -> list[int] | None:
        """The number of rows of every pattern, in order; None where too few rows share one."""
        if FEW * len(self.patterns) > len(self.rows):
            return None
        return torch.bincount(self.which, minlength=len(self.patterns)).tolist()


@dataclass(frozen=True, eq=False)
class Incomplete:
    """Data with missing entries, prepared for EM.

    Attributes:
        filled: the data (n, d), 0 where missing.
        observed: whether an entry is observed (n, d).
        weights: of the rows (n,); None for ones.
    """

    filled: Tensor
    observed: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None = None) -> "Incomplete":
        """From rows (n, d) with NaN."""
        observed = ~x.isnan()
        return cls(torch.where(observed, x, 0.0), observed, weights)

    def __len__(self) -> int:
        return len(self.filled)

    @functools.cached_property
    def grouped(self) -> "Sorted":
        """The same as :meth:`sorted`, computed once."""
        return self.sorted()

    def sorted(self) -> "Sorted":
        """The rows sorted by missingness pattern."""
        patterns, which = torch.unique(self.observed, dim=0, return_inverse=True)
        return Sorted(self, patterns, which, which.argsort(stable=True))


@dataclass(frozen=True, eq=False)
class Sorted:
    """Incomplete data sorted by pattern: ``patterns`` (p, d), each row's index ``which`` (n,), and ``order`` (n,)."""

    data: Incomplete
    patterns: Tensor
    which: Tensor
    order: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def parts(self, size: int) -> Iterator[Part]:
        """Chunks of at most ``size`` rows, each with the patterns in it."""
        for chosen in self.order.split(max(1, size)):
            here, which = self.which[chosen].unique_consecutive(return_inverse=True)
            filled, observed = self.data.filled[chosen], self.data.observed[chosen]
            weights = None if self.data.weights is None else self.data.weights[chosen]
            yield Part(chosen, filled, observed, self.patterns[here], which, weights)


def marginal_root(covariance: Tensor, observed: Tensor) -> Tensor:
    """The Cholesky factor of a covariance (..., d, d) in the observed block, and the identity in the missing block."""
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.cholesky(torch.where(both, covariance, identity))


def log_density(offset: Tensor, observed: Tensor, root: Tensor) -> Tensor:
    """log N of the observed entries (...), for x - mu (..., d), 0 where missing, and the root of `marginal_root`."""
    white = torch.linalg.solve_triangular(root, offset.unsqueeze(-1), upper=False).squeeze(-1)
    logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # the identity contributes 0
    return -0.5 * (observed.to(offset).sum(-1) * math.log(2 * math.pi) + white.square().sum(-1)) - logdet


def column_moments(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Variance and mean of the observed entries of every column (d,), weighted by row; 0 for a column without any."""
    if weights is not None:
        observed = ~x.isnan()
        share = observed * weights.to(x).unsqueeze(1)  # (n, d)
        total = share.sum(0)
        share = share / torch.where(total > 0, total, 1.0)
        mean = (share * torch.where(observed, x, 0.0)).sum(0)
        return (share * torch.where(observed, x - mean, 0.0).square()).sum(0), mean
    if not incomplete(x):
        variance, mean = torch.var_mean(x, 0, correction=0)
        return variance, mean
    observed = ~x.isnan()
    count = observed.sum(0).clamp_min(1)
    mean = torch.where(observed, x, 0.0).sum(0) / count
    return torch.where(observed, x - mean, 0.0).square().sum(0) / count, mean


def refuse_unobserved_columns(x: Tensor, model: str) -> None:
    """Refuses columns with fewer than two observed values.

    Raises:
        ValueError: a column has too few observed values; the message names it, counted from 0.
    """
    if not incomplete(x):
        return
    count = (~x.isnan()).sum(0)
    scarce = (count < 2).nonzero().flatten().tolist()
    if scarce:
        held = "only NaN" if count[scarce[0]] == 0 else "only one observed value"
        more = f" (and likewise {len(scarce) - 1} more)" if len(scarce) > 1 else ""
        raise ValueError(
            f"{column_at(scarce[0])} of x has {held}{more}: {model} needs at least two observed values in every "
            "column, so omit it"
        )
