"""Variational Bayes by coordinate ascent, for models whose factors of q have closed forms."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guides.mean_field import MeanField
from zoo.base.callables import name_of, unwrapped
from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import Checked, ConditionallyConjugate, CoordinateAscent, Placed, Rotating
from zoo.base.random import seeded
from zoo.infer.run import Fit, Training

PLAIN = 20  # sweeps before the first rotation: rotating at once ends in lesser optima
ROUNDING = 1e-10  # of the bound, below which a fall is rounding


@dataclass(frozen=True)
class Ascent:
    """One start of coordinate ascent.

    Attributes:
        seed: of the start.
        bound: the evidence lower bound reached, in nats over all rows; None where it failed.
        sweeps: their number.
        converged: whether the bound had ceased to rise.
        error: why it failed, or None.
    """

    seed: int
    bound: float | None
    sweeps: int
    converged: bool
    error: str | None = None


@dataclass(frozen=True, eq=False)
class VariationalBayes(Fit):
    """What :func:`cavi` returns: the model with a mean-field guide at the best bound, a pair like any other.

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

    def __repr__(self) -> str:
        ended = "converged" if self.converged else "not converged"
        return (
            f"VariationalBayes of {name_of(self.model)}: bound {float(self.bound[-1]):.6f} nats over all rows after "
            f"{len(self)} sweeps, {ended}; best of {len(self.attempts)} starts"
        )


def cavi(
    model: Any, x: Any, *, sweeps: int = 5000, tol: float = 1e-9, restarts: int = 10, seed: int = 0
) -> VariationalBayes:
    r"""Raise the evidence lower bound over q(Z) q(theta) by coordinate ascent, from several starts; keep the best.

    Each factor is set to its optimum given the others,
    :math:`\log q_j = E_{-j}[\log p(x, Z, \theta)] + \mathrm{const}`, in turn; the bound never falls. For linear models,
    after twenty plain sweeps factors and loadings are rotated together after every sweep (Luttinen and Ilin 2010).
    Computed in float64.

    Args:
        model: a :class:`~zoo.base.protocols.ConditionallyConjugate` model: BayesianPCA, BayesianFactorAnalysis,
            BayesianGMM, or one of your own. A model that places its priors on the data does so first.
        x: the data (n, d).
        sweeps: the most sweeps of each start.
        tol: stop when the limit of the bound, extrapolated by Aitken's rule, is nearer than ``tol`` nats per row.
        restarts: the number of starts.
        seed: of the first start; the others follow.

    Returns:
        the best of them, with a :class:`guides.MeanField` of the factors' own families: it can be evaluated, sampled,
        saved, and trained further by :func:`zoo.fit`.

    Raises:
        TypeError: the model is not conditionally conjugate.
        ValueError: data unfit for the model, or a number out of range.
        FloatingPointError: the bound fell, which coordinate ascent never does, or every start failed.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, ch. 10; Blei, Kucukelbir and McAuliffe (2017),
        Variational inference: a review for statisticians, JASA 112.
    """
    inner = unwrapped(model)
    if not isinstance(inner, ConditionallyConjugate):
        raise TypeError(
            f"{name_of(model)} is not conditionally conjugate (it lacks families, coordinate_ascent or bound): raise "
            "its bound by zoo.fit(model, guides.MeanField(model, x), x)"
        )
    check_whole(sweeps, "sweeps")
    check_whole(restarts, "restarts")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol!r}: nats per row")
    x = check_rows(x, model, least=2)
    if isinstance(inner, Checked):
        inner.check(x)
    started = time.perf_counter()
    with torch.no_grad():
        if isinstance(inner, Placed):
            with seeded(seed):
                inner.initialize(x)
        best: tuple[Tensor, bool, CoordinateAscent] | None = None
        attempts = []
        for number in range(seed, seed + restarts):
            try:
                ascent = inner.coordinate_ascent(x, torch.Generator().manual_seed(number))
                bound, converged = _climb(ascent, sweeps, tol * len(x))
            except torch.linalg.LinAlgError as error:
                attempts.append(Ascent(number, None, 0, False, str(error)))
                continue
            attempts.append(Ascent(number, float(bound[-1]), len(bound), converged))
            if best is None or bound[-1] > best[0][-1]:
                best = bound, converged, ascent
        if best is None:
            listed = "; ".join(f"seed {one.seed}: {one.error}" for one in attempts)
            raise FloatingPointError(f"all {restarts} starts failed: {listed}")
        bound, converged, ascent = best
        factors = dict(ascent.factors(x))
        guide = MeanField(model, x, family="conjugate")
        guide.place(factors)
    record = Training(
        losses=-bound / len(x),
        converged=converged,
        loss="evidence lower bound",
        optimizer="coordinate ascent",
        rows=len(x),
        seed=seed,
        dtype=str(x.dtype).removeprefix("torch."),
        device=str(x.device),
        seconds=time.perf_counter() - started,
        stopped="the bound has settled" if converged else f"all {sweeps} sweeps are used up",
    )
    return VariationalBayes(model, guide, record, bound=bound, attempts=tuple(attempts), factors=factors)


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
