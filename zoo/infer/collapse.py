"""Likelihoods without a maximum: components that have collapsed, variances at their floor."""

import warnings
from collections.abc import Sequence

from torch import Tensor

from zoo.base.callables import PyroCallable, undecorated
from zoo.base.entries import column_at
from zoo.base.protocols import BoundedNoise, Collapsing

FLOORED = 1e-4  # of the variance: a uniqueness that is no further above its floor is at it
SHOWN = 10  # columns that a message names, at most


class UnboundedLikelihood(UserWarning):
    """Variances are at their floor, without which the likelihood would be unbounded."""


class HeywoodCase(UserWarning):
    """The factors explain all of a column: its uniqueness is at its floor."""


def floored_columns(model: PyroCallable) -> list[int]:
    """The columns of factor analysis whose uniqueness is at its floor (Heywood cases); none for other models."""
    inner = undecorated(model)
    if not isinstance(inner, BoundedNoise):
        return []
    noise, weight = inner.noise.detach(), inner.weight.detach()
    variance = noise + weight.square().sum(1)
    found: list[int] = (noise - inner.least <= FLOORED * variance).nonzero().flatten().tolist()
    return found


def heywood_case(model: PyroCallable, columns: Sequence[str] = ()) -> str | None:
    """Which uniquenesses are at their floor, in words; None where none is.

    Args:
        model: a model, possibly factor analysis.
        columns: the names of its columns, if known.
    """
    found = floored_columns(model)
    if not found:
        return None
    names = ", ".join(column_at(j, columns) for j in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    return (
        f"Heywood case: the uniqueness of {names} is at its floor, as the factors explain all of it. Take fewer "
        "factors, or leave columns out"
    )


def collapse_of(model: PyroCallable, x: Tensor, *, warn: bool = False) -> str | None:
    """Why the likelihood of a model has no maximum near its parameters, in words; None where it has, or none can tell.

    Args:
        model: a model, possibly :class:`~zoo.base.protocols.Collapsing`.
        x: the rows (n, d).
        warn: whether to warn too.

    Warns:
        UnboundedLikelihood: it has none, and ``warn`` is set.
    """
    inner = undecorated(model)
    reason = inner.collapse(x) if isinstance(inner, Collapsing) else None
    if reason is not None and warn:
        warnings.warn(reason, UnboundedLikelihood, stacklevel=4)
    return reason
