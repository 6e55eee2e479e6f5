"""A logistic distribution, rounded to the 256 levels of a pixel."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

LEVELS = 256  # of a pixel


class _Levels(constraints.Constraint):
    """The numbers 0, 1/255, ..., 1, up to a thousandth of their spacing."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        level = (LEVELS - 1) * value
        near = level.round()
        return ((level - near).abs() < 1e-3) & (near >= 0) & (near < LEVELS)


levels = _Levels()


class DiscretizedLogistic(dist.TorchDistribution):
    r"""A logistic distribution, rounded to the levels k / 255, with the tails added to the first and the last level.

    .. math:: P(k) = \sigma(\beta_k) - \sigma(\alpha_k), \quad
              \alpha_k, \beta_k = \frac{(k \mp \tfrac12) / 255 - \mu}{s}, \quad
              \alpha_0 = -\infty,\; \beta_{255} = \infty

    Args:
        loc: location :math:`\mu` (...).
        scale: scale s > 0 (...).

    References:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, ICLR, arXiv 1701.05517.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 (as in torch)
    support = levels

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            value = self.loc + self.scale * (u.log() - (-u).log1p())
            return ((LEVELS - 1) * value).round().clamp(0, LEVELS - 1) / (LEVELS - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""log P by :math:`P = \sigma(\beta)\, \sigma(-\alpha)\, (1 - e^{\alpha - \beta})`, without cancellation."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (LEVELS - 1)
        offset = value - self.loc
        above = logsigmoid((offset + half) / self.scale)  # log P(level <= k)
        below = logsigmoid((half - offset) / self.scale)  # log P(level >= k)
        inside = (-torch.expm1(-2 * half / self.scale)).log()
        first, last = value < half, value > 1 - half
        return torch.where(last, 0.0, above) + torch.where(first, 0.0, below) + torch.where(first | last, 0.0, inside)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square of the level, by summing the probabilities that it exceeds each threshold."""
        first, second = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        for k in range(1, LEVELS):  # one by one: all at once takes 255 times the memory
            beyond = torch.sigmoid((self.loc - (k - 0.5) / (LEVELS - 1)) / self.scale)
            first = first + beyond
            second = second + (2 * k - 1) * beyond
        return first, second

    @property
    def mean(self) -> Tensor:
        return self._moments()[0] / (LEVELS - 1)

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return (second - first.square()).clamp_min(0.0) / (LEVELS - 1) ** 2
