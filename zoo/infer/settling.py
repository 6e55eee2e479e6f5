"""A learning-rate schedule that falls once the loss has settled."""

from collections.abc import Callable
from typing import Any

from zoo.base.schedules import cosine
from zoo.infer.convergence import WINDOW, trend

HALVINGS = 6  # at least: the loss due to the noise of the steps is proportional to the rate, and falls to 1/64


class Settling:
    """A schedule for :class:`Fused` with a constant rate until the bound has settled, which is then halved repeatedly.

    At a constant rate the bound settles below its optimum, by an amount that the noise of the steps causes and that is
    about proportional to the rate. Once the bound has settled (:func:`zoo.infer.convergence.trend`), the rate is
    therefore halved every window, smoothly, at least :data:`HALVINGS` times and until the loss curve shows no further
    gain; what remains is then about as much as the last halving gained. Near the end of the budget the rate falls in
    any case.

    With a fixed budget (``patient=False``) the rate falls along half a cosine over all steps.

    Args:
        steps: the most steps.
        patient: keep the rate constant until the bound has settled.
        window: the least steps per window; an eighth of the steps taken, if that is more.
        since: the step before which the bound is not taken to have settled.

    Attributes:
        start: the step at which the rate began to fall, or None before that.
        forced: whether it fell because the budget was nearly used up, and not because the bound had settled.

    References:
        Welandawe, Andersen, Vehtari and Huggins (2022), Robust, Automated, and Accurate Black-box Variational
        Inference, arXiv 2203.15945, for rates that fall at convergence until the gain is small.
    """

    def __init__(self, steps: int, *, patient: bool = True, window: int = WINDOW, since: int = 0) -> None:
        self.steps = steps
        self.patient = patient
        self.window = window
        self.since = since
        self.start: int | None = None if patient else 0
        self.forced = False
        self.length = window  # steps per halving

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at a step."""
        if not self.patient:
            return cosine(self.steps)(step)
        return 1.0 if self.start is None else 0.5 ** ((step - self.start) / self.length)

    def get_state(self) -> dict[str, Any]:
        """When the rate began to fall and how fast it does."""
        return {"start": self.start, "forced": self.forced, "length": self.length}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that :meth:`get_state` gave."""
        self.start, self.forced, self.length = state["start"], state["forced"], state["length"]

    @property
    def annealed(self) -> int | None:
        """The step at which the bound had settled and the rate began to fall, or None."""
        return self.start if self.patient and not self.forced else None

    def settled(self, step: int, losses: Callable[[], list[float]]) -> bool:
        """Whether lower rates no longer raise the bound.

        Args:
            step: the number of the last step.
            losses: returns those of all steps so far; called once per window.
        """
        if not self.patient:
            return False
        done = step + 1
        if self.start is not None:
            fallen = done - self.start
            finished = fallen >= HALVINGS * self.length and fallen % self.length == 0
            return finished and not self.forced and trend(losses()).settled
        size = max(self.window, done // 8)
        soon = done < self.since + 2 * self.window
        last_call = self.steps - done <= HALVINGS * size
        if done % self.window or (soon and not last_call):
            return False
        settled = not soon and trend(losses(), size).settled
        if settled or last_call:
            self.start, self.forced = done, not settled
            self.length = min(size, max(1, (self.steps - done) // HALVINGS))
        return False
