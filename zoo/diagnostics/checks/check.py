"""The interface of a check, with its input and its result."""

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
    """The result of one check.

    Attributes:
        check: the name of the check, such as ``"convergence"`` or ``"gap"``.
        level: ``"good"``, ``"careful"``, ``"bad"``, or ``"unknown"`` if the check was not possible.
        value: the measured value; NaN if there is none.
        threshold: the threshold of ``"bad"``; NaN if nothing was measured.
        reason: the result in words, with numbers and units.
        advice: what to do; empty if the level is good.
        below: whether values below the threshold are bad, rather than those above.
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
    """A figure of a check.

    Attributes:
        title: its heading.
        caption: a sentence or two on its content; also the alternative text for screen readers.
        drawn: the axes or the figure.
    """

    title: str
    caption: str
    drawn: "Axes | Figure"


@dataclass(frozen=True, eq=False)
class Case:
    """The input of a check: a trained pair and its rows, with the measurements that several checks share.

    Attributes:
        run: the trained pair.
        x: the rows (n, d).
        draws: draws from the guide per row.
        simulations: the number of simulations for the calibration; None takes the default of the check.
        seed: of the draws.
    """

    run: Fit
    x: Tensor
    draws: int
    simulations: int | None
    seed: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """ELBO, log marginal likelihood, gap and k-hat, computed once.

        Raises:
            ValueError: the guide has no density.
        """
        return evaluate(self.run, self.x, draws=self.draws, seed=self.seed)


class Check(Protocol):
    """Base class of all checks.

    ``measure`` computes a measurement, ``judge`` grades it, ``draw`` and ``tables`` present it. If ``measure`` raises a
    ``ValueError`` or ``NotImplementedError``, the finding is ``"unknown"`` with the error message as its reason.

    Attributes:
        name: the name of the check in findings and texts.
    """

    name: ClassVar[str]

    def applies(self, case: Case) -> bool:
        """Whether the check makes sense for this pair; if not, there is no finding."""
        return True

    def measure(self, case: Case) -> Any:
        """Computes the measurement.

        Raises:
            ValueError: it cannot be computed; the message gives the reason.
        """
        ...

    def judge(self, measured: Any) -> Finding:
        """Grades the measurement by the thresholds of the check, with reason and advice."""
        ...

    def draw(self, measured: Any, plots: ModuleType) -> Iterator[Picture]:
        """Figures for the report; none by default.

        Args:
            measured: the result of :meth:`measure`.
            plots: the package :mod:`zoo.plots`, an argument so that a diagnosis alone does not import matplotlib.
        """
        yield from ()

    def tables(self, measured: Any) -> Iterator[tuple[str, pl.DataFrame]]:
        """Titles and tables for the report; none by default."""
        yield from ()


def grade(value: float, limits: Limits, *, below: bool = False) -> Level:
    """The level of a value by the thresholds (careful, bad); ``below`` if small values are the bad ones."""
    careful, bad = limits
    if math.isnan(value):
        return "unknown"
    if (value < bad) if below else (value > bad):
        return "bad"
    return "careful" if ((value < careful) if below else (value > careful)) else "good"


def clean(value: float, size: float = 1.0) -> float:
    """The value, with rounding errors set to 0."""
    return value if abs(value) > ROUNDING * size else 0.0
