"""Likelihoods without a maximum: components that have collapsed, variances at their floor."""

import warnings

from torch import Tensor

from zoo.base.callables import PyroCallable, undecorated
from zoo.base.protocols import Collapsing


class UnboundedLikelihood(UserWarning):
    """Variances are at their floor, without which the likelihood would be unbounded."""


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
