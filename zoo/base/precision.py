"""Whether a floating-point type holds the variation of columns that lie far from 0."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.base.entries import column_at

LOST = 2**-7  # of a standard deviation: the largest half unit in the last place
BLOCK = 2**22  # numbers at a time: 32 MiB of float64
FEW = 10  # rows from which their standard deviation says something of the data that a model was made for


class Spread:
    """Mean, standard deviation and range of columns, over their finite entries, gathered block by block."""

    def __init__(self) -> None:
        self.count = self.mean = self.squares = torch.zeros((), dtype=torch.float64)
        self.low = self.high = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> "Spread":
        """Further rows (n, d); by the update of Chan, Golub and LeVeque (1983), The American Statistician 37."""
        seen = rows.isfinite()
        whole = bool(seen.all())
        count = seen.sum(0)
        mean = (rows if whole else rows.where(seen, 0.0)).sum(0) / count.clamp(min=1)
        apart = rows - mean
        squares = (apart if whole else apart.where(seen, 0.0)).square().sum(0)
        low, high = ((rows if whole else rows.where(seen, mean)).amin(0), (rows.where(seen, mean)).amax(0))
        total, before = (self.count + count).clamp(min=1), self.count > 0
        self.squares = self.squares + squares + (mean - self.mean).square() * self.count * count / total
        self.mean = self.mean + (mean - self.mean) * count / total
        self.low, self.high = (low.minimum(self.low), high.maximum(self.high)) if before.any() else (low, high)
        self.count = self.count + count
        return self

    def refuse_lost(
        self, dtype: torch.dtype, name: str, columns: Sequence[str], way_out: str, *, first: int = 0
    ) -> None:
        """Refuse columns, counted from ``first``, whose variation ``dtype`` cannot hold: :func:`check_precision`."""
        deviation = (self.squares / self.count.clamp(min=1)).sqrt()
        lost = (self.mean.abs() * (torch.finfo(dtype).eps / 2) > LOST * deviation) & (self.low < self.high)
        if lost.any():
            j = int(lost.nonzero()[0])
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} varies by {float(deviation[j]):.3g} around {float(self.mean[j]):.6g} in "
                f"{column_at(first + j, columns)}, which is beyond the precision of {kind}: {way_out}"
            )


def check_precision(
    rows: Tensor,
    dtype: torch.dtype,
    name: str,
    columns: Sequence[str] = (),
    way_out: str = "make the model float64 by .double(), or subtract the mean from the column",
) -> None:
    r"""Refuse rows whose variation ``dtype`` cannot hold, because it is small beside their offset.

    A number near the mean :math:`\mu` is rounded by up to :math:`\epsilon |\mu| / 2`. This must be at most
    :math:`2^{-7}` standard deviations :math:`\sigma`, by which a location parameter that is rounded costs
    :math:`2^{-14} / 2`, or 3e-5, nats per row and column. In float32 (:math:`\epsilon = 2^{-23}`) that is
    :math:`\sigma / |\mu| \ge 2^{-17}`, or 7.6e-6. Constant columns are left to other checks.

    Args:
        rows: (n, d); NaN is ignored.
        dtype: that they shall have; nothing is lost if it has no less precision.
        name: the argument's name, for the message.
        columns: the names of the columns.
        way_out: what to do about it, for the message.

    Raises:
        ValueError: names the first such column, its mean and its standard deviation, and the ways out.
    """
    if torch.finfo(rows.dtype).eps < torch.finfo(dtype).eps:
        spread = Spread()
        for part in rows.split(max(1, BLOCK // rows.shape[1])):
            spread.add(part)
        spread.refuse_lost(dtype, name, columns, way_out)
