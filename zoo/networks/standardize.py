"""Standardisation of columns, for the inputs of networks."""

import torch
from torch import Tensor, nn

from zoo.algebra.missing import column_moments
from zoo.base.checks import incomplete


class Standardize(nn.Module):
    """Columns scaled to mean 0 and variance 1 by the statistics of the data passed to :meth:`place`.

    Before :meth:`place`, columns are unchanged.

    Missing entries (NaN) are replaced by their column's mean.

    Args:
        width: number of columns d.
        whiten: whether to decorrelate the columns too, by the symmetric root of their correlation matrix. Directions
            with less than 1e-4 of the largest variance may be due to rounding and are not scaled up to 1.
        pixels: whether to leave the columns unchanged if all lie in [0, 1]. Scaled to unit variance, a pixel that is
            rarely nonzero would dominate the others when it is; centred, it would never be exactly 0, so that an
            optimizer with a step size per weight (Adam) would keep moving its weights without benefit.
    """

    fill: Tensor
    shift: Tensor
    unit: Tensor
    turn: Tensor | None

    def __init__(self, width: int, whiten: bool = False, pixels: bool = False) -> None:
        super().__init__()
        self.pixels = pixels
        self.register_buffer("turn", torch.eye(width) if whiten else None)
        self.register_buffer("fill", torch.zeros(width))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("unit", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if incomplete(x):
            x = torch.where(x.isnan(), self.fill, x)
        x = (x - self.shift) / self.unit
        return x if self.turn is None else x @ self.turn

    @torch.no_grad()
    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Sets mean and unit from the observed entries of ``x`` (n, d); constant columns get the mean unit.

        Every row counts as often as its weight (n,).
        """
        variance, mean = column_moments(x, weights)
        usual = variance.mean() if variance.any() else variance.new_ones(())
        self.fill.copy_(mean)
        if self.pixels and not ((x < 0) | (x > 1)).any():
            mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        self.shift.copy_(mean)
        self.unit.copy_(torch.where(variance > 1e-12 * usual, variance, usual).sqrt())
        if self.turn is not None:
            self.turn.copy_(torch.eye(len(self.turn)))
            heavy = x.new_ones(len(x)) if weights is None else weights.to(x)
            parts = zip(map(self, x.split(100_000)), heavy.split(100_000), strict=True)
            values, vectors = torch.linalg.eigh(sum((part.mT * own) @ part for part, own in parts) / heavy.sum())
            values = values.clamp_min(1e-4 * values[-1]) if values[-1] > 0 else torch.ones_like(values)
            self.turn.copy_(vectors * values.rsqrt() @ vectors.mT)
