"""Weights of rows: how often every row counts."""

from typing import Any

import torch
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import ArrayLike
from zoo.base.protocols import AcceptsWeights


def check_weights(weights: ArrayLike, rows: Tensor) -> Tensor:
    """The weights as a float64 tensor (n,) on the device of the rows (n, d).

    Raises:
        TypeError: they are not real numbers.
        ValueError: their shape is not (n,), one is negative, infinite or NaN, or all are zero; the message names the
            row, counted from 0.
    """
    try:
        found = torch.as_tensor(weights, dtype=torch.float64, device=rows.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"weights holds something other than numbers ({error}): pass one per row, (n,)") from None
    if found.shape != (len(rows),):
        raise ValueError(f"weights has shape {tuple(found.shape)}: pass one number per row of x, ({len(rows)},)")
    wrong = (~(found.isfinite() & (found >= 0))).nonzero().flatten()
    if len(wrong):
        more = f" (and {len(wrong) - 1} more rows are wrong)" if len(wrong) > 1 else ""
        raise ValueError(
            f"weights holds {found[wrong[0]].item():g} in row {wrong[0].item()}{more}: a weight says how often a row "
            "counts, a finite number of at least 0"
        )
    if not found.any():
        raise ValueError("all weights are 0: at least one row must count")
    return found


def weighted_rows(x: Tensor, weights: ArrayLike | None, least: int = 1) -> tuple[Tensor, Tensor | None]:
    """The rows (n, d) that count, and their weights (n,); rows of weight 0 are left out.

    Args:
        x: the rows, checked.
        weights: one per row; None for ones, which are returned as None.
        least: the smallest number of rows that count.

    Raises:
        TypeError: see :func:`check_weights`.
        ValueError: see there; or fewer rows than ``least`` have a positive weight.
    """
    if weights is None:
        return x, None
    found = check_weights(weights, x)
    counts = found > 0
    if (some := int(counts.sum())) < least:
        raise ValueError(
            f"{some} row{'s' * (some != 1)} of x ha{'ve' if some != 1 else 's'} a positive weight: "
            f"at least {least} are needed"
        )
    return (x, found) if some == len(x) else (x[counts], found[counts])


def by_weights(model: PyroCallable, weights: Tensor | None) -> dict[str, Any]:
    """The keyword for the methods of a model that accept weights; nothing where the rows have none.

    Raises:
        TypeError: the rows have weights and the model does not accept them.
    """
    if weights is None:
        return {}
    inner = unwrapped(model)
    if not (isinstance(inner, AcceptsWeights) and inner.weighted):
        raise TypeError(
            f"{name_of(model)} accepts no weights of rows: declare weighted = True where its closed forms take them "
            "(see zoo.base.protocols.AcceptsWeights), or repeat the rows, x.repeat_interleave(counts, dim=0)"
        )
    return {"weights": weights}
