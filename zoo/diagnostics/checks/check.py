"""What a check is, what it is given, and what it answers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import polars as pl
from torch import Tensor

from zoo.infer.run import Fit
from zoo.posterior.evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Level = Literal["good", "careful", "bad", "unknown"]
Limits = tuple[float, float]
ROUNDING = 1e-9  # smaller values are reported as 0


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        check: the name of the check, such as ``"convergence"`` or ``"gap"``.
        level: ``"good"``, ``"careful"``, ``"bad"``, or ``"unknown"`` where the check could not be made.
        value: the measured value; NaN where there is none.
        threshold: where ``"bad"`` begins; NaN where nothing was measured.
        reason: the answer in words, with the numbers and their unit.
        advice: what to do about it; empty where all is well.
        below: whether values below the threshold are the bad ones, not those above.
    """

    check: str
    level: Level
    value: float
    threshold: float
    reason: str
    advice: str = ""
    below: bool = False

    def __str__(self) -> str:
        return f"{self.level:8s} {self.check}: {self.reason}" + (f". {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Picture:
    """A figure that a check draws.

    Attributes:
        title: its heading.
        caption: what it shows, in a sentence or two; also read aloud in place of the figure.
        drawn: the axes or the figure.
    """

    title: str
    caption: str
    drawn: "Axes | Figure"


@dataclass(frozen=True, eq=False)
class Case:
    """The pair to be checked, its rows, and what several checks measure in common.

    Attributes:
        run: the trained pair.
        x: the rows (n, d).
        draws: draws of the guide per row.
        simulations: of the calibration; None leaves their number to the check.
        seed: of the draws.
    """

    run: Fit
    x: Tensor
    draws: int
    simulations: int | None
    seed: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """Bound, log marginal likelihood, gap and k-hat, taken once.

        Raises:
            ValueError: the guide has no density.
        """
        return evaluate(self.run, self.x, draws=self.draws, seed=self.seed)


class Check(Protocol):
    """One question about a trained pair; every check inherits from it.

    ``measure`` computes, ``judge`` compares with thresholds and explains, ``draw`` and ``tables`` show. What cannot be
    measured raises a ``ValueError`` (or ``NotImplementedError``), whose message becomes the reason of an ``"unknown"``
    finding.

    Attributes:
        name: of the check, in findings and texts.
    """

    name: ClassVar[str]

    def applies(self, case: Case) -> bool:
        """Whether the question makes sense for this pair; where it does not, there is no finding."""
        return True

    def measure(self, case: Case) -> Any:
        """Computes what is to be judged.

        Raises:
            ValueError: it cannot be computed; the message says why.
        """
        ...

    def judge(self, measured: Any) -> Finding:
        """The level by the check's thresholds, with reason and advice."""
        ...

    def draw(self, measured: Any, plots: ModuleType) -> Iterator[Picture]:
        """Figures for the report; none unless a check has some.

        Args:
            measured: what :meth:`measure` returned.
            plots: the package :mod:`zoo.plots`, handed in so that a diagnosis without figures loads no matplotlib.
        """
        yield from ()

    def tables(self, measured: Any) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables for the report; none unless a check has some."""
        yield from ()


def grade(value: float, limits: Limits, *, below: bool = False) -> Level:
    """The level of a value given the thresholds (careful, bad); ``below`` where small values are the bad ones."""
    careful, bad = limits
    if math.isnan(value):
        return "unknown"
    if (value < bad) if below else (value > bad):
        return "bad"
    return "careful" if ((value < careful) if below else (value > careful)) else "good"


def clean(value: float, size: float = 1.0) -> float:
    """A value without its rounding errors."""
    return value if abs(value) > ROUNDING * size else 0.0
