"""Columns in units of their standard deviation, as networks read them."""

import torch
from torch import Tensor, nn

from zoo.algebra.missing import column_moments
from zoo.base.checks import incomplete


class Standardize(nn.Module):
    """Columns to mean 0 and variance 1 by the statistics of the data it was placed on (the identity before).

    Missing entries (NaN) enter as their column's mean.

    Args:
        width: number of columns d.
        whiten: turn the columns so that they are uncorrelated too, by the symmetric root of their correlations. A
            direction below a ten-thousandth of the largest variance may be mere rounding: it is not raised to 1.
        pixels: leave columns that all lie in [0, 1] as they are. In units of its own a pixel that is hardly ever lit
            would drown the others when it is; and centred it is never quite 0, so that an optimizer with a rate for
            every weight (Adam) moves its weights at full pace all the time, for nothing.
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
    def place(self, x: Tensor) -> None:
        """Take mean and deviation from what is observed of ``x`` (n, d); a constant column keeps the usual unit."""
        variance, mean = column_moments(x)
        usual = variance.mean() if variance.any() else variance.new_ones(())
        self.fill.copy_(mean)
        if self.pixels and not ((x < 0) | (x > 1)).any():
            mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        self.shift.copy_(mean)
        self.unit.copy_(torch.where(variance > 1e-12 * usual, variance, usual).sqrt())
        if self.turn is not None:
            self.turn.copy_(torch.eye(len(self.turn)))
            parts = (self(rows) for rows in x.split(100_000))
            values, vectors = torch.linalg.eigh(sum(part.mT @ part for part in parts) / len(x))
            values = values.clamp_min(1e-4 * values[-1]) if values[-1] > 0 else torch.ones_like(values)
            self.turn.copy_(vectors * values.rsqrt() @ vectors.mT)
