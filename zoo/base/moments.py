"""Sufficient statistics of rows under a Gaussian model, from the rows or from a published covariance matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zoo.base.tables import ArrayLike, named_rows

Divisor = Literal["n-1", "n"]

SINGULAR = 1e-8  # share of a column's variance left by the others, of which the covariance holds half the digits
ROUNDED = 1e-6  # relative: by how much two halves of a printed matrix may differ, and its correlations exceed 1


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of n rows: all that a Gaussian model such as factor analysis needs of them.

    :func:`zoo.em` and :func:`zoo.diagnostics.information_criteria` take them in place of rows. They are computed from
    rows by :meth:`of`, or given as a matrix, as in an article, by :meth:`from_covariance` and :meth:`from_correlation`.

    Attributes:
        count: the number of rows n, or the sum of their weights.
        mean: the column means (d,); zeros where only a matrix was given.
        covariance: the sample covariance with divisor n (d, d).
        columns: the names of the columns; empty where they have none.
        root: a root R of the covariance (d, d), :math:`R R^T`, where rows gave it and the covariance itself is nearly
            singular: it holds twice as many digits of what varies least. None otherwise.
    """

    count: float
    mean: Tensor
    covariance: Tensor
    columns: tuple[str, ...] = ()
    root: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None = None, chunk: int = 65536) -> "Moments":
        """The moments of rows (n, d) in float64, without a float64 copy of ``x``.

        Args:
            x: the rows, complete.
            weights: how often every row counts (n,); None for once.
            chunk: the number of rows that are held in float64 at a time.
        """
        n = len(x) if weights is None else float(weights.sum())
        parts = x.split(chunk)
        shares = [None] * len(parts) if weights is None else weights.double().unsqueeze(1).split(chunk)
        pairs = list(zip(parts, shares, strict=True))
        mean = torch.stack([_heavy(part.double(), share).sum(0) for part, share in pairs]).sum(0) / n
        scatter = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        for part, share in pairs:
            centred = part.double() - mean
            scatter.addmm_(_heavy(centred, share).T, centred)
        covariance = scatter / n
        return cls(n, mean, covariance, root=_root(pairs, mean, n) if _nearly_singular(covariance) else None)

    @classmethod
    def from_covariance(
        cls,
        matrix: ArrayLike,
        n: float,
        *,
        mean: Sequence[float] | Tensor | None = None,
        columns: Sequence[str] | None = None,
        divisor: Divisor = "n-1",
    ) -> "Moments":
        """From a covariance matrix (d, d) of n rows.

        Args:
            matrix: a tensor, an array, nested lists, or a data frame, whose column names are kept.
            n: the number of rows behind it.
            mean: the column means (d,); None for zeros, which change neither loadings nor noise.
            columns: the names of the columns.
            divisor: of the sums of squares: ``"n-1"`` as in R, pandas and NumPy, or ``"n"``.

        Raises:
            TypeError: the matrix holds something other than numbers.
            ValueError: it is not square and finite, is not symmetric (the message names row and column), has a negative
                variance or is not positive semi-definite; n is not above 1; or means or names do not fit.

        >>> heights_and_weights = Moments.from_covariance([[4.0, 1.0], [1.0, 9.0]], n=50, columns=["height", "weight"])
        >>> heights_and_weights
        Moments of 50 rows x 2 columns
        """
        count = _check_count(n)
        if divisor not in get_args(Divisor):
            raise ValueError(f"divisor must be 'n-1' or 'n', got {divisor!r}")
        found, names = _check_matrix(matrix, columns)
        if divisor == "n-1":
            found = found * ((count - 1) / count)
        centre = torch.zeros(len(found), dtype=torch.float64)
        if mean is not None:
            centre = torch.as_tensor(mean, dtype=torch.float64)
            if centre.shape != (len(found),) or not centre.isfinite().all():
                raise ValueError(f"mean must be {len(found)} finite numbers, one per column, got {mean!r}")
        return cls(count, centre, found, names)

    @classmethod
    def from_correlation(cls, matrix: ArrayLike, n: float, *, columns: Sequence[str] | None = None) -> "Moments":
        """From a correlation matrix (d, d) of n rows: the moments of the standardised columns.

        Args:
            matrix: as of :meth:`from_covariance`, with ones on the diagonal.
            n: the number of rows behind it.
            columns: the names of the columns.

        Raises:
            TypeError: the matrix holds something other than numbers.
            ValueError: an entry of the diagonal is not 1, or as for :meth:`from_covariance`.
        """
        found, names = _check_matrix(matrix, columns)
        wrong = ((found.diagonal() - 1).abs() > ROUNDED).nonzero().flatten()
        if len(wrong):
            j = int(wrong[0])
            raise ValueError(
                f"the diagonal of the correlation matrix holds {found[j, j].item():g} for {_named(names, j)}, not 1: "
                "use Moments.from_covariance for a covariance matrix"
            )
        return cls(_check_count(n), torch.zeros(len(found), dtype=torch.float64), found, names)

    def to(self, other: Tensor) -> "Moments":
        """The moments in the dtype and on the device of ``other``."""
        root = None if self.root is None else self.root.to(other)
        return Moments(self.count, self.mean.to(other), self.covariance.to(other), self.columns, root)

    def square_root(self) -> Tensor:
        """A root R of the covariance (d, d), :math:`R R^T`: :attr:`root`, or from the covariance."""
        if self.root is not None:
            return self.root
        found, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return found
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp_min(0).sqrt()

    def __repr__(self) -> str:
        return f"Moments of {self.count:g} rows x {len(self.mean)} columns"


def refuse_moments(x: Any, name: str) -> None:
    """Refuse moments where rows are needed.

    Raises:
        TypeError: ``x`` is a :class:`Moments`.
    """
    if isinstance(x, Moments):
        raise TypeError(
            f"{name} is a mean and a covariance ({x}): this needs the rows themselves, as do all scores, posteriors, "
            "bounds and draws. Moments suffice for zoo.em and information criteria of PPCA and FactorAnalysis"
        )


def _check_count(n: float) -> float:
    """The number of rows behind a matrix.

    Raises:
        ValueError: it is not a finite number above 1.
    """
    if isinstance(n, bool) or not isinstance(n, int | float) or not 1 < n < math.inf:
        raise ValueError(f"n must be the number of rows behind the matrix, a number above 1, got {n!r}")
    return n


def _check_matrix(matrix: ArrayLike, columns: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """A symmetric positive semi-definite matrix in float64, and its column names."""
    table = named_rows(matrix, "matrix")
    found = table.values.detach().to("cpu", torch.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not len(found):
        raise ValueError(f"matrix has shape {tuple(found.shape)}: pass a square matrix (d, d)")
    names = tuple(table.columns) if columns is None else tuple(str(name) for name in columns)
    if names and (len(names) != len(found) or len(set(names)) != len(names)):
        raise ValueError(f"columns must be {len(found)} different names, one per column of the matrix, got {names}")
    infinite = (~found.isfinite()).nonzero()
    if len(infinite):
        i, j = infinite[0].tolist()
        raise ValueError(f"matrix holds {found[i, j].item()} in {_place(names, i, j)}")
    _refuse_indefinite(found, names)
    return (found + found.T) / 2, names


def _refuse_indefinite(matrix: Tensor, names: tuple[str, ...]) -> None:
    """Refuse a matrix (d, d) that is not symmetric or has a negative eigenvalue, but for rounding.

    Raises:
        ValueError: names the row and the column, or the eigenvalue.
    """
    variance = matrix.diagonal()
    if (variance < 0).any():
        j = int((variance < 0).nonzero()[0])
        raise ValueError(f"the variance of {_named(names, j)} is {variance[j].item():g}: it must not be negative")
    unit = variance.sqrt()
    limit = ROUNDED * torch.outer(unit, unit)
    uneven = ((matrix - matrix.T).abs() > limit).nonzero()
    if len(uneven):
        i, j = uneven[0].tolist()
        raise ValueError(
            f"matrix is not symmetric: {matrix[i, j].item():g} in {_place(names, i, j)}, {matrix[j, i].item():g} in "
            f"{_place(names, j, i)}"
        )
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    least = torch.linalg.eigvalsh((matrix + matrix.T) / 2 / torch.outer(unit, unit))[0].item()
    if least < -ROUNDED * len(matrix):
        raise ValueError(
            f"matrix is no covariance matrix: its correlations have the eigenvalue {least:.4g}. Correlations "
            "computed pair by pair from incomplete rows, or typed with few digits, can do that: give the rows, with "
            "NaN where an entry is missing, or more digits"
        )


def _named(names: tuple[str, ...], j: int) -> str:
    return f"column {names[j]!r}" if names else f"column {j}"


def _place(names: tuple[str, ...], i: int, j: int) -> str:
    return f"row {names[i]!r}, column {names[j]!r}" if names else f"row {i}, column {j}"


def _nearly_singular(covariance: Tensor) -> bool:
    """Whether some columns nearly determine another one, so that the covariance has lost digits of what is left."""
    variance = covariance.diagonal()
    varies = variance > 0
    unit = variance[varies].sqrt()
    found, failed = torch.linalg.cholesky_ex(covariance[varies][:, varies] / torch.outer(unit, unit))
    return bool(failed) or bool((found.diagonal().square() < SINGULAR).any())


def _root(pairs: Sequence[tuple[Tensor, Tensor | None]], mean: Tensor, n: float) -> Tensor:
    """The root (d, d) of the covariance of weighted rows, by a QR decomposition of the centred rows, part by part."""
    triangle = mean.new_zeros(0, len(mean))
    for part, share in pairs:
        centred = part.double() - mean
        heavy = centred if share is None else centred * share.sqrt()
        triangle = torch.linalg.qr(torch.cat([triangle, heavy]), mode="r").R
    padded = torch.nn.functional.pad(triangle, (0, 0, 0, len(mean) - len(triangle)))  # fewer rows than columns
    return (padded / n**0.5).T


def _heavy(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Rows (b, d) times their weights (b, 1)."""
    return rows if weights is None else rows * weights
