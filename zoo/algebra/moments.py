"""Sufficient statistics of rows under a Gaussian model."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of rows under a Gaussian model: all that EM needs of the data.

    Attributes:
        count: the number of rows n, or the sum of their weights.
        mean: the column means (d,).
        covariance: the sample covariance with divisor n (d, d).
    """

    count: float
    mean: Tensor
    covariance: Tensor

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
        return cls(n, mean, scatter / n)

    def to(self, other: Tensor) -> "Moments":
        """The moments in the dtype and on the device of ``other``."""
        return Moments(self.count, self.mean.to(other), self.covariance.to(other))


def _heavy(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Rows (b, d) times their weights (b, 1)."""
    return rows if weights is None else rows * weights
