"""How noisy are the gradients of a loss, at the parameters that a pair has?"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.base.checks import check_whole
from zoo.base.random import seeded

CHUNK = 10  # draws whose variance is computed together


@dataclass(frozen=True, eq=False)
class Noise:
    """A gradient over all parameters of the model, or of the guide, in their unconstrained coordinates.

    Attributes:
        mean: over the draws (p,), float64.
        variance: the trace of the covariance of one draw; NaN where there are no parameters.
        error: the standard error of ``variance``.
        draws: their number.
    """

    mean: Tensor
    variance: float
    error: float
    draws: int

    def distance(self, other: "Noise", rounding: float = 0.0) -> float:
        r"""How far two means lie apart, in standard errors of their difference.

        .. math:: \frac{\| \bar g - \bar g' \|}{\sqrt{V / S + V' / S' + \rho^2}}

        Its square is 1 in the mean where both estimate the same gradient, and there has at most the spread of a
        squared standard normal variable. NaN where there are no parameters.

        Args:
            other: another estimator at the same parameters.
            rounding: the error :math:`\rho` of computing a gradient.
        """
        if math.isnan(self.variance) or math.isnan(other.variance):
            return math.nan
        spread = self.variance / self.draws + other.variance / other.draws + rounding**2
        apart = float((self.mean - other.mean).norm())
        return apart / math.sqrt(spread) if spread else math.inf if apart else 0.0


@dataclass(frozen=True, eq=False)
class GradientNoise:
    """The result of :func:`gradient_noise`.

    Attributes:
        guide: of the guide's parameters, without those that are the model's as well.
        model: of the model's parameters.
        seconds: wall-clock time of a gradient.
    """

    guide: Noise
    model: Noise
    seconds: float


def gradient_noise(
    model: PyroCallable,
    guide: PyroCallable,
    loss: ELBO,
    *args: Any,
    draws: int = 100,
    warm_up: int = 0,
    seed: int = 0,
    scale: float = 1.0,
) -> GradientNoise:
    r"""The mean and the variance of a loss's gradient over repeated draws at fixed parameters.

    The variance is the trace of the covariance matrix, :math:`\sum_j \mathrm{Var}\, g_j`. It is estimated in
    independent chunks of ten draws, whose spread gives its standard error. The parameters are those in Pyro's current
    store, as for any loss, and do not change; their gradients are cleared.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        loss: a ``pyro.infer.ELBO``.
        args: of model and guide: the rows, or a minibatch ``(rows, index, size)``.
        draws: evaluations of the gradient, a multiple of ten and at least 20.
        warm_up: evaluations before them, for losses that average over earlier ones.
        seed: of the draws.
        scale: a factor on the gradient, such as 1 / n for nats per row.

    Raises:
        ValueError: ``draws`` is not a multiple of ten, or below 20.
        FloatingPointError: a gradient is not finite.

    Example:
        >>> import guides, pyro, zoo
        >>> from pyro.infer import Trace_ELBO
        >>> x = zoo.data.load("iris").x.double()
        >>> model = zoo.PPCA(4, 2).double()
        >>> with pyro.get_param_store().scope():
        ...     found = gradient_noise(model, guides.MeanField(model, x), Trace_ELBO(), x, draws=20)
        >>> found.guide.variance > 10 * found.guide.error > 0
        True
    """
    if check_whole(draws, "draws", 2 * CHUNK) % CHUNK:
        raise ValueError(f"draws must be a multiple of {CHUNK}, got {draws}")
    parts = _parameters(model, guide, args, seed)
    sums = [_Sum(sum(p.numel() for p in part)) for part in parts]
    with seeded(seed), pyro.validation_enabled(False):
        for _ in range(warm_up):
            _clear(parts)
            loss.loss_and_grads(model, guide, *args)
        started = time.perf_counter()
        for _ in range(draws):
            _clear(parts)
            loss.loss_and_grads(model, guide, *args)
            for total, part in zip(sums, parts, strict=True):
                total.add(part, scale)
        seconds = (time.perf_counter() - started) / draws
    _clear(parts)
    return GradientNoise(sums[1].noise(), sums[0].noise(), seconds)


def _parameters(model: PyroCallable, guide: PyroCallable, args: Any, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """The unconstrained parameters of the model, and those of the guide alone, in the order of their names."""
    with seeded(seed), torch.no_grad(), pyro.validation_enabled(False):
        drawn = poutine.trace(guide).get_trace(*args)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)
    own = {name: site["value"].unconstrained() for name, site in scored.nodes.items() if site["type"] == "param"}
    rest = {name: site["value"].unconstrained() for name, site in drawn.nodes.items() if site["type"] == "param"}
    own, rest = ({name: p for name, p in part.items() if p.requires_grad} for part in (own, rest))
    return [own[name] for name in sorted(own)], [rest[name] for name in sorted(rest.keys() - own.keys())]


def _clear(parts: Iterable[list[Tensor]]) -> None:
    for part in parts:
        for parameter in part:
            parameter.grad = None


class _Sum:
    """The sum of gradients over all parameters of a part, and their variance chunk by chunk."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, dtype=torch.float64)
        self.draws, self.touched = 0, False
        self.chunk: list[Tensor] = []
        self.variances: list[float] = []

    def add(self, part: list[Tensor], scale: float) -> None:
        """Add the gradient that the parameters hold."""
        if not part:
            return
        self.touched |= any(p.grad is not None for p in part)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten() for p in part])
        gradient = scale * flat.cpu().double()
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError(f"the gradient of draw {self.draws} is not finite")
        self.total += gradient
        self.draws += 1
        self.chunk.append(gradient)
        if len(self.chunk) == CHUNK:
            self.variances.append(float(torch.stack(self.chunk).var(0).sum()))
            self.chunk.clear()

    def noise(self) -> Noise:
        """The moments of all gradients."""
        if not self.touched:
            return Noise(self.total, math.nan, math.nan, self.draws)
        found = torch.tensor(self.variances, dtype=torch.float64)
        error = float(found.std()) / math.sqrt(len(found))
        return Noise(self.total / self.draws, float(found.mean()), error, self.draws)
