"""Whether a floating-point type holds the variation of columns that lie far from 0."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.base.entries import column_at

LOST = 2**-7  # of a standard deviation: the largest half unit in the last place
FEW = 10  # rows from which their standard deviation says something of the data that a model was made for


def check_precision(rows: Tensor, dtype: torch.dtype, name: str, columns: Sequence[str] = ()) -> None:
    r"""Refuse rows whose variation ``dtype`` cannot hold, because it is small beside their offset.

    A number near the mean :math:`\mu` is rounded by up to :math:`\epsilon |\mu| / 2`. This must be at most
    :math:`2^{-7}` standard deviations :math:`\sigma`, by which a location parameter that is rounded costs
    :math:`2^{-14} / 2`, or 3e-5, nats per row and column. In float32 (:math:`\epsilon = 2^{-23}`) that is
    :math:`\sigma / |\mu| \ge 2^{-17}`, or 7.6e-6. Constant columns are left to other checks.

    Args:
        rows: (n, d), of a type with more precision; NaN is ignored.
        dtype: of the model.
        name: the argument's name, for the message.
        columns: the names of the columns.

    Raises:
        ValueError: names the first such column, its mean and its standard deviation, and the ways out.
    """
    if torch.finfo(rows.dtype).eps >= torch.finfo(dtype).eps:
        return
    mean, deviation = _moments(rows)
    apart = mean.abs() * (torch.finfo(dtype).eps / 2) > LOST * deviation
    for j in apart.nonzero().flatten().tolist():
        column = rows[:, j]
        seen = column[column.isfinite()]
        if len(seen) and bool((seen != seen[0]).any()):
            raise ValueError(
                f"{name} varies by {float(deviation[j]):.3g} around {float(mean[j]):.6g} in {column_at(j, columns)}, "
                f"which is beyond the precision of the model's {str(dtype).removeprefix('torch.')}: make the model "
                f"float64 by .double(), or subtract the mean from the column"
            )


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column (d,), over its finite entries."""
    if bool(rows.sum().isfinite()):
        variance, mean = torch.var_mean(rows, 0, correction=0)
        return mean, variance.sqrt()
    means, deviations = [], []
    for column in rows.T:
        seen = column[column.isfinite()]
        means.append(seen.mean() if len(seen) else column.new_zeros(()))
        deviations.append(seen.std(correction=0) if len(seen) else column.new_zeros(()))
    return torch.stack(means), torch.stack(deviations)
