"""Acceleration of maps that climb a likelihood, such as a step of EM, with a guard: it never descends."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

MEMORY = 6  # differences kept
DAMPING = (1e-14, 1e2)  # the least and the most
PAUSE = 16  # the most steps without extrapolation from the history

Evaluate = Callable[[Tensor], tuple[float, Tensor]]
FAILURES = (FloatingPointError, torch.linalg.LinAlgError)


class Anderson:
    r"""Anderson's extrapolation of a map F from its past values, with adaptive damping.

    With residuals :math:`f = F(\theta) - \theta` and the differences of past points and residuals as the columns of
    :math:`\Delta\theta, \Delta f`, of length one in :math:`\Delta f`, the next point is

    .. math:: F(\theta) - (\Delta\theta + \Delta f) \gamma, \quad
              \gamma = (\Delta f^T \Delta f + \lambda I)^{-1} \Delta f^T f

    The damping :math:`\lambda` grows where a proposal is rejected and shrinks where one is accepted.

    Args:
        memory: the number of differences kept.

    References:
        Anderson (1965), Iterative procedures for nonlinear integral equations, JACM 12; Henderson and Varadhan (2019),
        Damped Anderson acceleration with restarts and monotonicity control for accelerating EM, Journal of
        Computational and Graphical Statistics 28.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.moves: deque[Tensor] = deque(maxlen=memory)
        self.changes: deque[Tensor] = deque(maxlen=memory)
        self.last: tuple[Tensor, Tensor] | None = None
        self.damping = DAMPING[0]

    def see(self, point: Tensor, image: Tensor) -> None:
        """Record a point (p,) and its image F(point)."""
        residual = image - point
        if self.last is not None:
            self.moves.append(point - self.last[0])
            self.changes.append(residual - self.last[1])
        self.last = point, residual

    def propose(self) -> Tensor | None:
        """The next point (p,); None without a history, or where the extrapolation is not finite."""
        if self.last is None or not self.changes:
            return None
        point, residual = self.last
        changes = torch.stack(tuple(self.changes), 1)  # (p, m)
        size = changes.norm(dim=0).clamp_min(torch.finfo(changes.dtype).tiny)
        unit = changes / size
        gram = unit.T @ unit
        gram.diagonal().add_(self.damping)
        weight, failed = torch.linalg.solve_ex(gram, unit.T @ residual)
        found = point + residual - (torch.stack(tuple(self.moves), 1) / size + unit) @ weight
        return found if not failed and found.isfinite().all() else None

    def judge(self, *, accepted: bool) -> None:
        """Adapt to the fate of the last proposal; a rejection clears the history, which has misled."""
        least, most = DAMPING
        if accepted:
            self.damping = max(self.damping / 10, least)
        else:
            self.damping = min(self.damping * 100, most)
            self.moves.clear()
            self.changes.clear()


class Ascent:
    r"""The iterates of a map F that never descends, accelerated.

    Every step tries Anderson's extrapolation; for some steps after a failure, :math:`F + s (F - \theta)` with a length
    s that doubles while it succeeds, which escapes from saddle points, where Anderson's leads to them (Salakhutdinov
    and Roweis 2003, Adaptive overrelaxed bound optimization methods, ICML). An extrapolation below the current
    likelihood is rejected, and the next point is F, which is at least as high: the sequence never descends.

    Args:
        evaluate: the log-likelihood of a point (p,) and F(point), in one call. A FloatingPointError at an extrapolated
            point is a rejection.
        start: the first point.

    Attributes:
        point: the current point (p,).
        value: its log-likelihood.
        image: F(point).
        evaluations: the number of calls so far.
    """

    def __init__(self, evaluate: Evaluate, start: Tensor) -> None:
        self._evaluate, self._anderson = evaluate, Anderson()
        self._wait, self._pause, self._length = 0, 1, 1.0
        self.evaluations = 1
        self._move(start, *evaluate(start))

    def _move(self, point: Tensor, value: float, image: Tensor) -> None:
        self.point, self.value, self.image = point, value, image
        self._anderson.see(point, image)

    def step(self) -> float:
        """Move to the next point; returns its log-likelihood."""
        far = self._wait <= 0
        proposal = self._anderson.propose() if far else self._longer()
        self._wait -= 1
        if proposal is not None:
            found = self._try(proposal)
            self._learn(far, found is not None)
            if found is not None:
                self._move(proposal, *found)
                return self.value
        self.evaluations += 1
        self._move(self.image, *self._evaluate(self.image))
        return self.value

    def _longer(self) -> Tensor | None:
        """The image, and as far again times the current length; None where that has failed."""
        if self._length < 1:
            self._length = 1.0
            return None
        found = self.image + self._length * (self.image - self.point)
        return found if found.isfinite().all() else None

    def _try(self, proposal: Tensor) -> tuple[float, Tensor] | None:
        """The value and image of a proposal; None where it is below the current value, or cannot be evaluated."""
        self.evaluations += 1
        try:
            found = self._evaluate(proposal)
        except FAILURES:
            return None
        return found if found[0] >= self.value else None

    def _learn(self, far: bool, accepted: bool) -> None:
        """Adapt both kinds of extrapolation."""
        if not far:
            self._length *= 2 if accepted else 1 / 8
            return
        self._anderson.judge(accepted=accepted)
        if accepted:
            self._pause = 1
        else:
            self._wait, self._pause = self._pause, min(2 * self._pause, PAUSE)
