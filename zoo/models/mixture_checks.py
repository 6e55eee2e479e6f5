"""What a Gaussian mixture cannot be fitted to, and components that have collapsed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.algebra.mixture_covariances import SINGULAR, bounded
from zoo.base.entries import column_at, numbers_of

LISTED = 8  # rows or columns in a message
SAMPLE = 10_000  # rows of a first look


def listed(numbers: Sequence[int]) -> str:
    """Numbers in words, the first few of them."""
    return ", ".join(map(str, numbers[:LISTED])) + (", ..." if len(numbers) > LISTED else "")


def refuse_few_places(x: Tensor, components: int) -> None:
    """Refuse fewer distinct rows than components.

    Raises:
        ValueError: the message says how many there are, and names rows that are equal.
    """
    size = 4 * components
    while True:
        part = x[:size].nan_to_num(torch.inf)
        distinct, which, counts = torch.unique(part, dim=0, return_inverse=True, return_counts=True)
        if len(distinct) >= components:
            return
        if size >= len(x):
            break
        size *= 4
    same = (which == counts.argmax()).nonzero().flatten().tolist()
    raise ValueError(
        f"x has {len(distinct)} distinct rows, fewer than components={components} (rows {listed(same)} are equal): use "
        f"at most {len(distinct)} components"
    )


def refuse_dependent_columns(x: Tensor, model: str) -> None:
    """Refuse columns that are linear combinations of others, under which a covariance matrix is singular.

    Only rows without missing entries are used: if the columns are dependent in these, so are they in all.

    Raises:
        ValueError: the message names the column and those that it depends on; or there are too few rows.
    """
    n, d = x.shape
    if n <= d:
        raise ValueError(
            f"x has {n} rows: {model} needs more than its {d} columns, or its covariances are singular. Use more rows, "
            "covariance='diag' or 'spherical', or zoo.FactorAnalysis"
        )
    whole = x[~x.isnan().any(1)]
    if len(whole) <= d:
        return
    if len(whole) > SAMPLE and _dependent(whole[:SAMPLE]) is None:
        return  # where a sample has no dependent column, neither have all rows
    if (found := _dependent(whole)) is None:
        return
    column, on = found
    raise ValueError(
        f"{column_at(column)} of x is a linear combination of column{'s' * (len(on) > 1)} {numbers_of(on)}: the "
        f"covariances of {model} are singular and the likelihood is unbounded. Omit it, or use covariance='diag' or "
        "'spherical'"
    )


def _dependent(x: Tensor) -> tuple[int, list[int]] | None:
    """The first column of complete rows that is a linear combination of columns before it, and these; None if none."""
    rounding = 10 * torch.finfo(x.dtype).eps * x.abs().amax(0).double()
    centred = x.double() - x.double().mean(0)
    length = centred.square().mean(0).sqrt()
    if not (length > rounding).all():
        return None  # a constant column, which is another matter
    triangle = torch.linalg.qr(centred / length, mode="r").R / len(x) ** 0.5
    small = triangle.diagonal().abs() <= (rounding / length).amax().clamp_min(1e-12)
    if not small.any():
        return None
    j = int(small.nonzero()[0])
    slope = torch.linalg.solve_triangular(triangle[:j, :j], triangle[:j, j : j + 1], upper=True).flatten()
    return j, (slope.abs() > 1e-6).nonzero().flatten().tolist()


def refuse_singular(root: Tensor, spread: Tensor, *, tied: bool) -> None:
    """Refuse covariances that have shrunk to nothing without a floor.

    Args:
        root: their Cholesky factors (c, d, d), or standard deviations (c, d).
        spread: the variances of the columns under the mixture (d,), or (1,) for spherical covariances.
        tied: whether all components share one.

    Raises:
        FloatingPointError: names the component.
    """
    pivots = (root.diagonal(dim1=-2, dim2=-1) if root.ndim == 3 else root).square()
    if (pivots > SINGULAR * spread).all():
        return
    bad = ~(pivots > SINGULAR * spread).all(-1)
    where = "the common covariance" if tied else f"component {bad.nonzero()[0].item()}"
    raise FloatingPointError(
        f"{where} has collapsed, its covariance is singular and the likelihood unbounded: use another seed, fewer "
        "components, a simpler covariance ('tied', 'diag', 'spherical'), or a floor"
    )


def collapsed(covariance: Tensor, least: Tensor) -> int | None:
    """The first component whose covariance meets the floor; None if none does.

    Args:
        covariance: as of :func:`zoo.algebra.mixture_covariances.scatter`.
        least: the smallest variances that are no collapse (d,), or (1,) for spherical covariances.
    """
    met = bounded(covariance, 1.000001 * least)[1]
    return met[0] if met else None


def describe(j: int, lost: tuple[list[int], int], rows: list[int] | None, floor: float, width: int) -> str:
    """A collapse in words.

    Args:
        j: the component.
        lost: see :func:`zoo.algebra.mixture_covariances.vanished`.
        rows: the component's, or None where one covariance serves all components.
        floor: of the variances, relative to the columns'.
        width: the number of columns d.
    """
    columns, directions = lost
    many = len(columns) > 1
    along = "all columns" if many and len(columns) == width else f"column{'s' * many} {numbers_of(columns)}"
    along = f"a combination of {along}" if directions < len(columns) else along
    if rows is None:
        who = "the common covariance has collapsed: its"
    else:
        what = f"row{'s' * (len(rows) != 1)} {listed(rows)}" if rows else "no rows"
        who = f"component {j} has collapsed onto {len(rows)} of the rows ({what}): its"
    level = f"at its floor, {floor:g} of the columns'" if floor else "zero to rounding"
    return (
        f"{who} variance along {along} is {level}, and without a floor the likelihood is unbounded. Use fewer "
        "components, another start or seed, a simpler covariance ('tied', 'diag', 'spherical'), or omit equal rows"
    )
