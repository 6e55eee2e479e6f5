"""Interleaved measurements, and the bars that they are held to."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Unavailable(Exception):  # noqa: N818 - not an error: the row is left out
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Samples:
    """What the repeats of a measurement gave, in the unit of its task.

    Attributes:
        ours: one value per repeat.
        yardstick: one value per repeat, interleaved with ``ours``; a single one where it takes minutes; or none.
        error: the distance of our result from the right one, where the task has a tolerance for it.
        note: remarks for the table.
    """

    ours: Sequence[float]
    yardstick: Sequence[float] = ()
    error: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A row of the benchmark. Its bar is ``times`` x the yardstick + ``plus``; without both there is none.

    Attributes:
        name: in the table; its first word names the group.
        measure: takes the number of repeats.
        unit: of the values, such as ``"s"``.
        yardstick: what ours is compared with; empty if with nothing.
        times: the factor of the yardstick in the bar.
        plus: the summand of the bar, in the unit.
        tolerance: the largest error at which the bar counts as held; None if the result is not examined.
    """

    name: str
    measure: Callable[[int], Samples]
    unit: str = "s"
    yardstick: str = ""
    times: float = 0.0
    plus: float = 0.0
    tolerance: float | None = None

    @property
    def bar(self) -> str:
        """The bar in words."""
        parts = [f"{self.times:g} x"] if self.times else []
        parts += [f"{self.plus:.3g} {self.unit}"] if self.plus else []
        return " + ".join(parts) or "-"

    def row(self, repeats: int) -> dict[str, Any]:
        """Measure, and compare with the bar.

        Returns:
            medians, smallest and largest values; the median ratio (NaN without a yardstick); ``held``, which is
            ``"yes"``, ``"no"`` or, without a bar, ``"-"``.

        Raises:
            Unavailable: the row cannot be measured here.
        """
        found = self.measure(repeats)
        ratio = _ratio(found)
        return {
            "row": self.name,
            "unit": self.unit,
            **_spread("ours", found.ours),
            "compared_with": self.yardstick,
            **_spread("yardstick", found.yardstick),
            "ratio": ratio,
            "bar": self.bar,
            "held": self.held(found, ratio),
            "error": found.error,
            "tolerance": math.nan if self.tolerance is None else self.tolerance,
            "note": found.note,
            "repeats": len(found.ours),
        }

    def held(self, found: Samples, ratio: float) -> str:
        """Whether the measured values are within the bar, and the error within its tolerance."""
        if not self.times and not self.plus:
            return "-"
        if self.plus:
            other = statistics.median(found.yardstick) if found.yardstick else 0.0
            within = statistics.median(found.ours) <= self.times * other + self.plus
        else:
            within = ratio <= self.times
        right = self.tolerance is None or found.error <= self.tolerance  # a NaN is not
        return "yes" if within and right else "no"


def processor_seconds() -> float:
    """Seconds of the processor so far, of this process and of its finished children.

    Other programs on the machine hardly change differences of these.
    """
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def clock(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of the processor per call."""
    start = processor_seconds()
    for _ in range(times):
        call()
    return (processor_seconds() - start) / times


def interleaved(
    ours: Callable[[int], object],
    theirs: Callable[[int], object] | None,
    repeats: int,
    *,
    times: int = 1,
    warm_up: int = 1,
    scale: float = 1.0,
) -> tuple[list[float], list[float]]:
    """Seconds of two functions that take turns, after turns to warm up.

    Args:
        ours: takes the number of the turn.
        theirs: takes the number of the turn; None if there is no yardstick.
        repeats: the number of turns.
        times: calls per turn.
        warm_up: turns before, which do not count.
        scale: of the results, such as 1e3 for milliseconds.
    """
    mine, other = [], []
    for turn in range(-warm_up, repeats):
        seed = max(turn, 0)
        mine.append(scale * clock(lambda: ours(seed), times))  # noqa: B023
        if theirs is not None:
            other.append(scale * clock(lambda: theirs(seed), times))  # noqa: B023
    return mine[warm_up:], other[warm_up:]


def _ratio(found: Samples) -> float:
    """The median of the ratios of interleaved values; of medians, if their numbers differ."""
    if not found.yardstick:
        return math.nan
    if len(found.ours) == len(found.yardstick):
        return statistics.median(a / b for a, b in zip(found.ours, found.yardstick, strict=True))
    return statistics.median(found.ours) / statistics.median(found.yardstick)


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest value as columns."""
    if not values:
        return dict.fromkeys((name, f"{name}_min", f"{name}_max"), math.nan)
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
