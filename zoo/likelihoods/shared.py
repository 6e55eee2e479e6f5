"""The interface of likelihoods, and functions that several use: scales above a floor, and checks of the support."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from zoo.base.protocols import Hook


@runtime_checkable
class Likelihood(Hook, Protocol):
    """A likelihood p(x | z) of d columns; see :mod:`zoo.likelihoods`."""

    locations: int  # location parameters
    noise: int  # noise parameters

    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Sets means and units from the data (n, d), with weights (n,) of the rows."""
        ...

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Raises a ValueError where ``x`` (n, d) has a value outside the support."""
        ...

    def __call__(self, location: Tensor, noise: Tensor | None) -> Any:
        """The distribution with event (d,)."""
        ...


@runtime_checkable
class FlooredLikelihood(Hook, Protocol):
    """A likelihood with a floor on its variances."""

    floor: float

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of variances at the floor (...) for noise parameters (..., noise)."""
        ...


def deviation(raw: Tensor, floor: float) -> Tensor:
    r""":math:`\sqrt{\epsilon + \mathrm{softplus}(g)^2}`, a standard deviation in units of the column."""
    return (floor + softplus(raw).square()).sqrt()


def tiny(above: Tensor, floor: float) -> Tensor:
    """The share of variances below twice the floor or below 1e-3 (...), given their excess over the floor.

    Variances are in units of the data's variances. Below 1e-3, all but a thousandth of a column is explained, which is
    rare in data but common on the way to a singularity, however low the floor.

    Args:
        above: the variances minus the floor (..., m).
        floor: the floor.
    """
    return (above < max(floor, 1e-3 - floor)).to(above).mean(-1)


def half_a_row(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half an observation, as a fraction of the number of observed entries in every column (d,)."""
    if weights is not None:
        count = weights.to(x) @ (~x.isnan()).to(x)
        return 0.5 / torch.where(count > 0, count, 1.0)
    return 0.5 / (~x.isnan()).sum(0).clamp_min(1).to(x)


def refuse(x: Tensor, fine: Tensor, columns: Tensor | None, way_out: str) -> None:
    """Refuses rows with an entry that is neither valid nor NaN.

    Args:
        x: the rows (n, d).
        fine: whether an entry is valid (n, d).
        columns: the numbers of the columns; None counts from 0.
        way_out: the reason and the remedy, for the message.

    Raises:
        ValueError: an entry is invalid; the message names its value, row and column.
    """
    wrong = (~fine & ~x.isnan()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        number = column if columns is None else int(columns[column])
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"x holds {x[row, column].item():g} in row {row}, column {number}{more}, but {way_out}")
