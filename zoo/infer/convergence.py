"""Has training settled? The rule of both :func:`zoo.fit`, to stop, and :func:`zoo.diagnose`, to check it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.infer.run import Training

WINDOW = 250  # steps, at least, whose mean loss is compared with that of the same number before them
LEAST = 100  # steps for a trend in a noisy loss curve
RESOLUTION = 1e-3  # nats per row: smaller gains per window are ignored
LEARNED = (
    "QuadratureELBO",
    "ClosedFormELBO",
    "WeightedClosedForm",
    "FixedDraws",
)  # losses without noise, of guides that are learned
SWEPT = "coordinate ascent"  # the optimizer in the records of zoo.cavi
MAXIMISED = "EM"  # in those of zoo.em
ERRORS = 2.0  # standard errors: smaller gains are noise


@dataclass(frozen=True)
class Convergence:
    """Whether training has settled.

    Attributes:
        converged: whether the bound had settled when training ended.
        left: the gain of the bound over the last window of the loss curve, beyond its noise, in nats per row; NaN
            where the curve is too short.
        reason: the result in words, with the numbers.
    """

    converged: bool
    left: float
    reason: str


@dataclass(frozen=True)
class Trend:
    """The gain of a loss curve over its last window of steps, compared with the window before it.

    Attributes:
        gain: the mean loss of the earlier window minus that of the later one, in nats per row.
        error: the standard error of the gain.
        window: the number of steps in either window.
    """

    gain: float
    error: float
    window: int

    @property
    def settled(self) -> bool:
        """Whether the gain is below the resolution, or within its noise."""
        return self.gain <= max(RESOLUTION, ERRORS * self.error)

    @property
    def left(self) -> float:
        """The gain beyond its noise, at least 0."""
        return max(0.0, self.gain - ERRORS * self.error)


def trend(losses: Tensor | Sequence[float], window: int | None = None) -> Trend:
    """The trend at the end of a noisy loss curve.

    Args:
        losses: negative ELBO per row at every step (steps,).
        window: steps per window. None uses an eighth of the curve, or at least :data:`WINDOW` if the curve has four of
            them, so that a longer fit resolves a slower gain.

    Raises:
        ValueError: the curve has fewer than two windows.
    """
    curve = torch.as_tensor(losses, dtype=torch.float64)
    size = max(len(curve) // 8, min(WINDOW, len(curve) // 4)) if window is None else window
    if size < 2 or len(curve) < 2 * size:
        raise ValueError(f"{len(curve)} steps are fewer than two windows of {max(size, 2)}")
    early, late = curve[-2 * size : -size], curve[-size:]
    error = float(((early.var() + late.var()) / size).sqrt())
    return Trend(float(early.mean() - late.mean()), error, size)


def descent(losses: Tensor | Sequence[float], *, learned: bool, dtype: str = "float64") -> tuple[float, float, int]:
    """The gain of a line search over its last iterations, and the largest gain regarded as none.

    With a learned guide the search ends in a long flat valley along which the model hardly changes, so the resolution
    is coarser. It may also stay near a saddle point before loadings and guide rotate together, so the window is longer,
    and the resolution is in nats whatever the size of the bound.

    Args:
        losses: negative ELBO per row at every iteration (steps,), without noise.
        learned: whether the guide is learned, rather than being the posterior itself.
        dtype: of the rows.

    Returns:
        the gain over the window, its resolution, both in nats per row, and the number of iterations in the window.
    """
    window, resolution = (50, 1e-7) if learned else (20, 1e-9)
    if dtype != "float64":
        resolution = 1e-6
    last = float(losses[-1])
    size = 1.0 if learned and dtype == "float64" else max(1.0, abs(last))
    before = float(losses[max(0, len(losses) - 1 - window)])
    return before - last, resolution * size, window


def descended(losses: Sequence[float], *, learned: bool, dtype: str = "float64") -> bool:
    """Whether a line search has stopped descending; see :func:`descent`."""
    gain, resolution, window = descent(losses, learned=learned, dtype=dtype)
    return len(losses) > window and gain <= resolution


def assess(training: Training) -> Convergence:
    """Whether training has converged, from its record.

    A line search (``optimizer="LBFGS"``) has converged if its last iterations gain nothing within the precision of the
    bound; coordinate ascent and EM if the limit, extrapolated after every sweep or step, is near. A noisy curve has
    converged if the mean loss of its last window is not lower than that of the window before it by more than two
    standard errors. If :func:`zoo.fit` lowered the learning rate, the bound must have settled before the rate began to
    fall, as a rate that goes to zero flattens any curve. If training was stopped by held-out rows, their bound must
    have failed to improve ``patience`` times.

    Args:
        training: the record; :func:`zoo.fit` stores the result in :attr:`zoo.infer.Training.converged`.
    """
    if (looks := _stalled(training)) is not None:
        return Convergence(True, 0.0, f"the held-out bound did not improve in the last {looks} evaluations")
    losses = training.losses
    if training.optimizer == "LBFGS" and len(losses) > 0:
        return _searched(training)
    if training.optimizer in (SWEPT, MAXIMISED) and len(losses) > 0:
        gain = float(losses[-2] - losses[-1]) if len(losses) > 1 else float("nan")
        what, measure = ("sweeps", "bound") if training.optimizer == SWEPT else ("steps", "log-likelihood")
        reason = f"the last of {len(losses):,} {what} raised the {measure} by {max(0.0, gain):.2g} nats per row"
        return Convergence(training.converged, max(0.0, gain), reason)
    if len(losses) < LEAST:
        return Convergence(False, float("nan"), f"{len(losses)} steps are too few for a trend")
    found = trend(losses)
    gained = f"in its last {found.window} of {len(losses):,} steps the bound gained "
    gained += f"{found.left:.2g} nats per row beyond its noise" if found.left else "nothing beyond its noise"
    if training.schedule == "cosine":
        why = "the learning rate fell to zero over a fixed number of steps, which flattens any curve"
        return Convergence(False, found.left, f"{gained}, but {why}")
    if training.schedule == "settling" and training.annealed is None:
        return Convergence(
            False, found.left, f"{gained}, but it had not settled before the learning rate fell or training ended"
        )
    return Convergence(found.settled, found.left, gained)


def _searched(training: Training) -> Convergence:
    """The result for a line search."""
    losses, learned = training.losses.tolist(), training.loss in LEARNED
    gain, _, window = descent(losses, learned=learned, dtype=training.dtype or "float64")
    last = min(window, len(losses) - 1)
    if last == 0:
        return Convergence(False, float("nan"), "1 iteration of the line search is too few for a trend")
    text = (
        f"in the last {last} of {len(losses):,} iterations of the line search the bound gained {gain:.2g} nats per row"
    )
    return Convergence(descended(losses, learned=learned, dtype=training.dtype or "float64"), max(0.0, gain), text)


def _stalled(training: Training) -> int | None:
    """The number of held-out evaluations since the best one if it is at least ``patience``, else None."""
    if training.patience is None or training.validation is None or training.best_step is None:
        return None
    looks = int((training.validation[:, 0] > training.best_step).sum())
    return looks if looks >= training.patience else None
