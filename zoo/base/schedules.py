"""Learning-rate schedules."""

import math
from collections.abc import Callable


def cosine(steps: int, *, start: int = 0) -> Callable[[int], float]:
    """A schedule for :class:`Fused`: 1 until step ``start``, then to 0 along half a cosine in ``steps`` steps.

    >>> schedule = cosine(100, start=10)
    >>> [round(schedule(step), 2) for step in (0, 10, 60, 110, 200)]
    [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def schedule(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(max((step - start) / steps, 0.0), 1.0)))

    return schedule
