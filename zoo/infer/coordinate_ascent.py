"""Variational Bayes by coordinate ascent, for models whose factors of q have closed forms."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars
import torch
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.entries import naming
from zoo.base.protocols import Checked, ConditionallyConjugate, CoordinateAscent, Placed, Rotating
from zoo.base.random import seeded
from zoo.base.tables import column_names
from zoo.base.threads import on_suited_threads
from zoo.base.weights import by_weights, weighted_rows
from zoo.infer.convergence import SWEPT
from zoo.infer.run import Fit, Training

PLAIN = 20  # sweeps before the first rotation: rotating at once ends in lesser optima
ROUNDING = 1e-10  # of the bound, below which a fall is rounding

Holder = Callable[[PyroCallable, Tensor], Any]


@dataclass(frozen=True)
class Ascent:
    """One start of coordinate ascent.

    Attributes:
        seed: of the start.
        bound: the evidence lower bound reached, in nats over all rows; None where it failed.
        sweeps: their number.
        converged: whether the bound had stopped rising.
        seconds: wall-clock time.
        error: why it failed, or None.
    """

    seed: int
    bound: float | None = None
    sweeps: int | None = None
    converged: bool = False
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, eq=False)
class VariationalBayes(Fit):
    """The result of :func:`zoo.cavi`: the model with a mean-field guide at the best bound, a pair like any other.

    ``len(result)`` is the number of sweeps and ``result[-1]`` the bound after the last one.

    Attributes:
        bound: the evidence lower bound in nats over all rows, after every sweep of the best start (sweeps,).
        attempts: every start.
        factors: the factors of q by site.
    """

    bound: Tensor = field(default_factory=lambda: torch.zeros(0))
    attempts: tuple[Ascent, ...] = ()
    factors: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.bound)

    def __getitem__(self, index: Any) -> Tensor:
        return self.bound[index]

    def near(self, within: float = 0.01) -> tuple[int, ...]:
        """The seeds whose bound is within ``within`` nats of the best. One out of many is a reason to try more."""
        top = float(self.bound[-1])
        return tuple(one.seed for one in self.attempts if one.bound is not None and one.bound >= top - within)

    def summary(self) -> dict[str, float]:
        """The bound in nats over all rows, the sweeps of the best start, whether it converged, and the starts."""
        return {
            "bound": float(self.bound[-1]),
            "sweeps": float(len(self)),
            "converged": float(self.converged),
            "starts": float(len(self.attempts)),
            "near": float(len(self.near())),
            "failed": float(sum(one.error is not None for one in self.attempts)),
        }

    def frame(self) -> polars.DataFrame:
        """A row per start, in the order of the seeds, failures included."""
        kinds = {
            "seed": polars.Int64,
            "bound": polars.Float64,
            "sweeps": polars.Int64,
            "converged": polars.Boolean,
            "seconds": polars.Float64,
            "error": polars.String,
        }
        return polars.DataFrame([vars(one) for one in self.attempts], schema=kinds)

    def __repr__(self) -> str:
        found = self.summary()
        ended = "converged" if self.converged else "not converged"
        failed = f", {found['failed']:.0f} failed" if found["failed"] else ""
        return (
            f"VariationalBayes of {name_of(self.model)}: bound {found['bound']:.6f} nats over all rows after "
            f"{len(self)} sweeps, {ended}; {found['near']:.0f} of {len(self.attempts)} starts within 0.01 nats of "
            f"it{failed}"
        )


@on_suited_threads
def ascend(
    model: PyroCallable,
    x: ArrayLike,
    hold: Holder,
    *,
    weights: ArrayLike | None,
    sweeps: int,
    tol: float,
    restarts: int,
    seed: int,
) -> VariationalBayes:
    """Coordinate ascent from several starts, with the best factors in a guide; see :func:`zoo.cavi`.

    Args:
        model: a :class:`~zoo.base.protocols.ConditionallyConjugate` model.
        x: the data (n, d).
        hold: a function of model and rows that returns a guide for the factors, with a method ``place``.
        weights: how often every row counts (n,); None for once.
        sweeps: the maximum number of sweeps of each start.
        tol: nats per row.
        restarts: the number of starts.
        seed: of the first start.

    Raises:
        TypeError: the model is not conditionally conjugate, or accepts no weights.
        ValueError: data unfit for the model, or a number or weight out of range.
        FloatingPointError: every start failed.
    """
    inner = _conditionally_conjugate(model)
    check_whole(sweeps, "sweeps")
    check_whole(restarts, "restarts")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol!r}: nats per row")
    columns, x = column_names(x), check_rows(x, model, least=2, exact=True)
    some, found = weighted_rows(x, weights, least=2)
    weighing = by_weights(model, found)
    size = len(some) if found is None else float(found.sum())
    if isinstance(inner, Checked):
        with naming(columns):
            inner.check(some)
    started = time.perf_counter()
    with torch.no_grad():
        if isinstance(inner, Placed) and inner.fresh:
            with seeded(seed):
                inner.initialize(some, **weighing)
        seeds = range(seed, seed + restarts)
        attempts, (bound, converged, ascent) = _starts(inner, some, weighing, seeds, sweeps, tol * size)
        factors = dict(ascent.factors(x))  # those of weight 0 too
        guide = hold(model, x)
        guide.place(factors)
    record = Training(
        losses=-bound / size,
        converged=converged,
        loss="evidence lower bound",
        optimizer=SWEPT,
        rows=len(x),
        seed=seed,
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        seconds=time.perf_counter() - started,
        stopped="the bound has settled" if converged else f"all {sweeps} sweeps are used up",
        columns=columns,
    )
    return VariationalBayes(model, guide, record, bound=bound, attempts=attempts, factors=factors)


def _conditionally_conjugate(model: PyroCallable) -> ConditionallyConjugate:
    """The model behind handlers that change no density.

    Raises:
        TypeError: it is not conditionally conjugate, or a class.
    """
    if isinstance(model, type):
        raise TypeError(f"zoo.cavi needs a model, got the class {model.__name__}: pass {model.__name__}(...)")
    inner = undecorated(model)
    if not isinstance(inner, ConditionallyConjugate) and isinstance(unwrapped(model), ConditionallyConjugate):
        raise TypeError(
            f"{name_of(model)} stands behind a handler that changes its density, so that its closed forms no longer "
            "hold: pass the model itself, or raise its bound by zoo.fit with guides.MeanField(..., family='gaussian')"
        )
    if not isinstance(inner, ConditionallyConjugate):
        raise TypeError(
            f"{name_of(model)} is not conditionally conjugate (it lacks families, coordinate_ascent or bound): raise "
            "its bound by zoo.fit(model, guides.MeanField(model, x), x)"
        )
    return inner


Climb = tuple[Tensor, bool, CoordinateAscent]


def _starts(
    model: ConditionallyConjugate, x: Tensor, weighing: dict[str, Any], seeds: range, sweeps: int, tol: float
) -> tuple[tuple[Ascent, ...], Climb]:
    """Every start, and the best: its bounds, whether they settled, and its factors.

    Raises:
        FloatingPointError: all failed.
    """
    best: Climb | None = None
    attempts = []
    for seed in seeds:
        started = time.perf_counter()
        try:
            ascent = model.coordinate_ascent(x, torch.Generator().manual_seed(seed), **weighing)
            bound, converged = _climb(ascent, sweeps, tol)
        except (FloatingPointError, torch.linalg.LinAlgError) as error:
            attempts.append(Ascent(seed, seconds=time.perf_counter() - started, error=str(error)))
            continue
        attempts.append(Ascent(seed, float(bound[-1]), len(bound), converged, time.perf_counter() - started))
        if best is None or bound[-1] > best[0][-1]:
            best = bound, converged, ascent
    if best is None:
        listed = "\n".join(f"  seed {one.seed}: {one.error}" for one in attempts)
        raise FloatingPointError(f"all {len(attempts)} starts failed:\n{listed}")
    return tuple(attempts), best


def _climb(ascent: CoordinateAscent, sweeps: int, tol: float) -> tuple[Tensor, bool]:
    """The bound after every sweep, and whether it has settled.

    Raises:
        FloatingPointError: the bound fell by more than rounding.
    """
    bounds: list[float] = []
    for number in range(sweeps):
        ascent.sweep()
        if number >= PLAIN and isinstance(ascent, Rotating):
            ascent.rotate()
        bounds.append(float(ascent.bound()))
        if not math.isfinite(bounds[-1]):
            raise FloatingPointError(
                f"the bound is {bounds[-1]} after sweep {number}: look for columns of a huge scale"
            )
        if len(bounds) > 1 and not bounds[-1] >= bounds[-2] - ROUNDING * max(1.0, abs(bounds[-2])):
            raise FloatingPointError(
                f"the bound fell from {bounds[-2]:.12g} to {bounds[-1]:.12g} in sweep {number}: an update is no "
                "optimum, or its numbers have lost their precision"
            )
        late = number > PLAIN + 2 or not isinstance(ascent, Rotating)
        if late and len(bounds) > 2 and _settled(bounds, tol):
            return torch.tensor(bounds, dtype=torch.float64), True
    return torch.tensor(bounds, dtype=torch.float64), False


def _settled(bounds: list[float], tol: float) -> bool:
    """Aitken: with gains shrinking by the factor a, what is left is the last gain times a / (1 - a)."""
    first, second = bounds[-2] - bounds[-3], bounds[-1] - bounds[-2]
    if second <= 1e-14 * abs(bounds[-1]):
        return True
    return 0 < second < first and second * second / (first - second) < tol
