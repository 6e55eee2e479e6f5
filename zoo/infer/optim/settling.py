"""A learning rate that falls once the loss has settled."""

import torch

from zoo.base.schedules import cosine


class Settling:
    """A schedule for :class:`Fused` that holds the rate until the bound has settled, then anneals it to zero.

    The mean losses of two neighbouring windows are compared; where the later one is no better by more than the noise
    of both (two standard errors), the bound has settled at this rate, and the rate falls along half a cosine. With a
    fixed budget (``patient=False``) the cosine spans all of it.

    Args:
        steps: the most steps.
        patient: hold the rate until the bound has settled.
        window: steps per window.
    """

    def __init__(self, steps: int, *, patient: bool = True, window: int = 250) -> None:
        self.steps = steps
        self.window = window
        self.start = None if patient else 0
        self.length = steps
        self.losses: list[float] = []

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at a step."""
        if self.start is None:
            return 1.0
        return cosine(self.length, start=self.start)(step)

    def settled(self, step: int, loss: float) -> bool:
        """Take in the loss of a step; true once the rate has reached zero."""
        if self.start is not None:
            return self.start > 0 and step + 1 >= self.start + self.length
        self.losses.append(loss)
        if (step + 1) % self.window or step + 1 < 2 * self.window:
            return False
        late, early = (
            torch.tensor(self.losses[a:b]) for a, b in ((-self.window, None), (-2 * self.window, -self.window))
        )
        noise = ((late.var() + early.var()) / self.window).sqrt()
        remaining = self.steps - step - 1
        length = min(max(2 * self.window, (step + 1) // 2), remaining)
        if early.mean() - late.mean() <= 2 * noise or remaining <= max(2 * self.window, (step + 1) // 2):
            self.start, self.length = step + 1, max(length, 1)
        return False
