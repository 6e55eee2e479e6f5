"""Expectation-maximisation in closed form, for any :class:`~zoo.base.Conjugate` model."""

import copy
import time
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars
import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import ArrayLike, check_rows, check_whole, incomplete
from zoo.base.entries import naming
from zoo.base.moments import Moments
from zoo.base.pairs import own_posterior
from zoo.base.protocols import (
    AcceptsMoments,
    Checked,
    Collapsing,
    Conjugate,
    HasWidth,
    Maximized,
    Placed,
    Summarized,
    linear_form,
)
from zoo.base.random import seeded
from zoo.base.tables import column_names
from zoo.base.threads import on_suited_threads
from zoo.base.weights import by_weights, weighted_rows
from zoo.infer.acceleration import FAILURES, Ascent
from zoo.infer.collapse import HeywoodCase, collapse_of, heywood_case
from zoo.infer.convergence import MAXIMISED
from zoo.infer.run import Fit, Training

STILL = 1e-9  # the relative move of a step of EM below which the parameters are a fixed point
WINDOW = 5  # steps whose gains together must be small to end an accelerated climb
SHARE = 0.1  # of the tolerance, as extrapolated gains come in fits and starts
ROUNDING = 1e-14  # of the log-likelihood
RESOLVED = 1e-5  # the share of noise in a column's variance below which the log-likelihood loses digits
FLOORED = 1e-8  # of the log-likelihood: its rounding where a covariance is at its floor


@dataclass(frozen=True, eq=False)
class MaximumLikelihood(Fit):
    """The result of :func:`zoo.em`: the model with its own posterior (:class:`guides.Exact`), a pair like any other.

    ``len(result)`` is the number of steps and ``result[-1]`` the log-likelihood after the last one. The losses of the
    training are minus the log-likelihood per row. Saved and loaded again, it is a :class:`zoo.Fit` with these.

    Attributes:
        log_likelihood: in nats over all rows, after every step (steps,), in float64 on the CPU.
        evaluations: the number of steps of EM that were computed, rejected extrapolations included.
    """

    log_likelihood: Tensor = field(default_factory=lambda: torch.zeros(0))
    evaluations: int = 0

    def __len__(self) -> int:
        return len(self.log_likelihood)

    def __getitem__(self, index: Any) -> Tensor:
        return self.log_likelihood[index]

    def summary(self) -> dict[str, float]:
        """The last log-likelihood in nats over all rows, the steps, the evaluations, and whether it converged."""
        return {
            "log_likelihood": float(self.log_likelihood[-1]),
            "steps": float(self.steps),
            "evaluations": float(self.evaluations),
            "converged": float(self.converged),
        }

    def frame(self) -> polars.DataFrame:
        """A row per step, counted from 1."""
        return polars.DataFrame({"step": range(1, self.steps + 1), "log_likelihood": self.log_likelihood.numpy()})

    def __repr__(self) -> str:
        ended = "converged" if self.converged else "not converged"
        reached = f"{float(self.log_likelihood[-1]):.6f} nats over all rows"
        return (
            f"MaximumLikelihood of {name_of(self.model)}: {reached} after {self.steps} steps "
            f"({self.evaluations} evaluations), {ended}: {self.stopped}"
        )


@on_suited_threads
def em(
    model: PyroCallable,
    x: ArrayLike | Moments,
    *,
    weights: ArrayLike | None = None,
    steps: int = 100_000,
    tol: float = 1e-9,
    accelerate: bool = True,
    seed: int = 0,
) -> MaximumLikelihood:
    """Maximise the likelihood of a conjugate model by EM, in place, until convergence.

    The computation is done in float64 on a copy; its result is written to the model in the model's own dtype at the
    end, so that after an error the model is unchanged. A model whose parameters are unchanged since it was built starts
    at random on the data (``model.initialize``); one that has been fitted or modified continues from its current
    parameters. If the model has ``summarize`` and no entry is missing, the cost of a step does not depend on the number
    of rows.

    By default the climb is accelerated: complete rows of a model with ``maximize`` (PPCA, FactorAnalysis) start from
    its maximum, and steps of EM are extrapolated in the coordinates of the model's unconstrained parameters, by
    :class:`~zoo.infer.acceleration.Ascent`. The likelihood never falls either way. ``accelerate=False`` is plain EM, of
    which every step can be watched; where the likelihood has several maxima, the two may end in different ones.

    Args:
        model: a :class:`~zoo.base.Conjugate` module: PPCA, FactorAnalysis, GMM or one of your own, whose ``em_step``
            depends on its parameters and the data alone.
        x: the data (n, d); NaN marks an entry missing at random, for a model with ``missing = True``. For PPCA and
            FactorAnalysis also a mean and a covariance with the number of rows, :class:`zoo.data.Moments`.
        weights: how often every row counts (n,), at least 0: whole numbers are the same as repeating rows, 0 the same
            as leaving a row out. None for once. PPCA, FactorAnalysis and GMM accept them; so does a model of your own
            that declares ``weighted = True`` (:class:`~zoo.base.protocols.AcceptsWeights`).
        steps: the most steps.
        tol: stop when the log-likelihood is within ``tol`` nats per row of its limit: as extrapolated by Aitken's rule,
            or, accelerated, when five steps together gain less than a tenth of it and their gains do not grow.
        accelerate: whether to extrapolate.
        seed: of the random start.

    Returns:
        the model with its own posterior as the guide, to be evaluated, saved and reported like any run; with the total
        log-likelihood after every step, the number of evaluations, and why it stopped.

    Warns:
        UnboundedLikelihood: a component of a mixture has collapsed and is held by its floor; the message names it, its
            rows and columns. The result is not converged, as its likelihood depends on the floor.
        HeywoodCase: uniquenesses of factor analysis are at their floor; the message names the columns.

    Raises:
        TypeError: the model has no closed forms, or accepts no weights.
        ValueError: the data do not suit the model, see :func:`zoo.base.check_rows` and ``model.check``; or the weights
            are no numbers of at least 0, one per row.
        FloatingPointError: the likelihood fell, which EM never does, or a component collapsed. Where it fell because
            float64 cannot resolve the noise of a linear model, the climb ends there instead, not converged.

    References:
        Dempster, Laird and Rubin (1977), JRSS B 39; for the stopping rule Boehning et al. (1994), Annals of the
        Institute of Statistical Mathematics 46.
    """
    started = time.perf_counter()
    columns = x.columns if isinstance(x, Moments) else column_names(x)
    with naming(columns):
        task = _prepared(model, x, weights, steps, tol, seed)
    if accelerate:
        maximize = isinstance(task.work, Maximized) and task.complete
        found = _accelerated(task.work, task.data, steps, tol * task.size, maximize=maximize)
    else:
        found = _plain(task.work, task.data, steps, tol * task.size)
    stopped = "the log-likelihood has settled" if found.converged else found.limit or f"all {steps} steps are used up"
    if not isinstance(x, Moments) and collapse_of(task.work, task.given) is not None:
        numbered = check_rows(x, model, exact=True)  # with those of weight 0
        with naming(columns):
            stopped = collapse_of(task.work, numbered, warn=True) or stopped
        found = found._replace(converged=False)
    if (heywood := heywood_case(task.work, columns)) is not None:
        warnings.warn(heywood, HeywoodCase, stacklevel=3)
    model.load_state_dict(task.work.state_dict())  # type: ignore[attr-defined]  # in place, in the model's own dtype
    place = task.given.mean if isinstance(task.given, Moments) else task.given
    record = Training(
        losses=-found.log_likelihood / task.size,
        converged=found.converged,
        loss="log marginal likelihood",
        optimizer=MAXIMISED,
        rows=task.rows,
        seed=seed,
        dtype=str(place.dtype).removeprefix("torch."),
        device=str(place.device),
        seconds=time.perf_counter() - started,
        stopped=stopped,
        columns=columns,
    )
    return MaximumLikelihood(
        model, _guide(model), record, log_likelihood=found.log_likelihood, evaluations=found.evaluations
    )


class _Climb(NamedTuple):
    """The log-likelihood after every step (steps,), the number of evaluations, whether it has settled, or its limit."""

    log_likelihood: Tensor
    evaluations: int
    converged: bool
    limit: str = ""


def _guide(model: PyroCallable) -> PyroCallable:
    """The model's posterior as a guide; where it cannot be one, a guide that raises the reason when it is called."""
    try:
        return own_posterior(model)
    except Exception as error:  # a user's own model may raise anything; EM itself needs no guide
        reason = error

    def refuse(x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> None:
        raise reason

    return refuse


class _Task(NamedTuple):
    """What EM works on.

    Attributes:
        work: a copy of the model in float64, at its start.
        data: the input of its ``em_step``.
        complete: whether no entry is missing.
        rows: the number of rows.
        size: the sum of their weights.
        given: the rows that count, or the moments.
    """

    work: Any
    data: Any
    complete: bool
    rows: int
    size: float
    given: Any


def _prepared(
    model: PyroCallable, x: ArrayLike | Moments, weights: ArrayLike | None, steps: int, tol: float, seed: int
) -> _Task:
    """The model at its start and the data, after all checks."""
    if not (isinstance(model, Conjugate) and isinstance(model, nn.Module)):
        raise TypeError(
            f"{name_of(model)} has no closed-form EM (it lacks posterior, log_marginal or em_step): use zoo.fit"
        )
    check_whole(steps, "steps")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol!r}: nats per row")
    given: Any  # rows, or moments where the model takes them
    given, weighing = _checked(model, x, weights)
    if isinstance(model, Checked):
        model.check(given)
    work = copy.deepcopy(model).double()
    if isinstance(work, Placed) and isinstance(model, Placed) and model.fresh:
        with seeded(seed):
            work.initialize(given, **weighing)
    data = work.summarize(given, **weighing) if isinstance(work, Summarized) else given
    if isinstance(given, Moments):
        return _Task(work, data, True, int(given.count), given.count, given)
    size = float(weighing["weights"].sum()) if weighing else len(given)
    return _Task(work, data, not incomplete(given), len(given), size, given)


def _checked(
    model: nn.Module, x: ArrayLike | Moments, weights: ArrayLike | None
) -> tuple[Tensor | Moments, dict[str, Any]]:
    """The rows that count, in float64, and their weights as a keyword; or the moments.

    Raises:
        TypeError: the model does not accept weights, or moments.
        ValueError: the rows or weights are wrong, or the moments have another number of columns than the model.
    """
    if isinstance(x, Moments):
        return _checked_moments(model, x, weights), {}
    rows, found = weighted_rows(check_rows(x, model, least=2, exact=True), weights, least=2)
    weighing = by_weights(model, found)
    if weighing and not isinstance(model, Summarized):
        raise TypeError(f"{name_of(model)} has no method summarize, which takes the weights: repeat the rows")
    return rows, weighing


def _checked_moments(model: nn.Module, x: Moments, weights: ArrayLike | None) -> Moments:
    """Moments in float64 on the model's device."""
    if not (isinstance(model, AcceptsMoments) and model.from_moments):
        raise TypeError(f"{name_of(model)} needs the rows: a mean and a covariance suffice for PPCA and FactorAnalysis")
    if weights is not None:
        raise ValueError("weights are of rows, and x is their moments: weight the rows by Moments.of(x, weights)")
    if isinstance(model, HasWidth) and len(x.mean) != model.data_dim:
        raise ValueError(
            f"x has {len(x.mean)} columns, the model {name_of(model)} was built for data_dim={model.data_dim}"
        )
    return x.to(next(model.parameters()).detach().double())


def _plain(work: Any, data: Any, steps: int, tol: float) -> _Climb:
    """EM step by step, until Aitken's rule ends it."""
    parameters = list(work.parameters())
    here, climb, converged = _joined(parameters), [float(work.em_step(data))], False
    for number in range(steps):
        last, here = here, _joined(parameters)
        stays = number == steps - 1 or converged  # the log-likelihood after the last step
        climb.append(float((copy.deepcopy(work) if stays else work).em_step(data)))
        if limit := _fallen(climb, work):
            _place(parameters, last)
            return _Climb(_reached(climb[:-1]), len(climb), False, limit)
        if stays:
            break
        converged = _settled(climb, tol)
    return _Climb(_reached(climb), len(climb), converged)


def _accelerated(work: Any, data: Any, steps: int, tol: float, *, maximize: bool) -> _Climb:
    """EM by extrapolation, from the model's own maximum where it has one."""
    parameters = list(work.parameters())

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        with torch.no_grad():
            _place(parameters, point)
            value = float(work.em_step(data))
            return value, _joined(parameters)

    start = _joined(parameters)
    ascent = Ascent(evaluate, start)
    climb, spent = [ascent.value], 0
    if maximize and (top := _maximum(work, data, start, parameters)) is not None:
        spent, ascent = 1, Ascent(evaluate, top)
        climb.append(ascent.value)
        if limit := _fallen(climb, work):
            _place(parameters, start)
            return _Climb(_reached(climb[:-1]), spent + ascent.evaluations, False, limit)
    converged = maximize and _still(ascent)
    while len(climb) <= steps and not converged:
        here = ascent.point
        climb.append(ascent.step())
        if limit := _fallen(climb, work):
            _place(parameters, here)
            return _Climb(_reached(climb[:-1]), spent + ascent.evaluations, False, limit)
        converged = _small(climb, tol)
    _place(parameters, ascent.point)
    return _Climb(_reached(climb), spent + ascent.evaluations, converged)


def _reached(climb: list[float]) -> Tensor:
    """The log-likelihood after every step (steps,); that of the start where no step was taken."""
    return torch.tensor(climb[1:] or climb, dtype=torch.float64)


def _maximum(work: Any, data: Any, start: Tensor, parameters: list[nn.Parameter]) -> Tensor | None:
    """The parameters (p,) that the model's ``maximize`` finds from the start; None where it fails."""
    _place(parameters, start)
    try:
        work.maximize(data)
    except FAILURES:
        return None
    return _joined(parameters)


def _joined(parameters: list[nn.Parameter]) -> Tensor:
    """All parameters as one vector (p,), a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def _place(parameters: list[nn.Parameter], point: Tensor) -> None:
    """Set all parameters from one vector (p,), not in place: a step may have made one of the data a parameter."""
    for parameter, part in zip(parameters, point.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view_as(parameter).clone()


def _fallen(climb: list[float], work: Any) -> str:
    """Why the likelihood can rise no further, where its last step fell for want of digits; empty where it did not fall.

    Raises:
        FloatingPointError: it fell for no such reason.
    """
    before, after = climb[-2], climb[-1]
    floored = isinstance(work, Collapsing) and work.met_floor
    if after >= before - (FLOORED if floored else 1e-11) * max(1.0, abs(before)):
        return ""
    if (form := linear_form(work)) is not None:
        weight, _, noise = form
        share = float((noise / (weight.square().sum(1) + noise)).detach().min())
        if share < RESOLVED:
            return (
                f"float64 resolves the likelihood no further: noise is {share:.1g} of a column's variance. Columns of "
                "very different scales share it (standardise them, or use FactorAnalysis), or the factors explain the "
                "column entirely (use fewer)"
            )
    raise FloatingPointError(
        f"EM's likelihood fell from {before:.12g} to {after:.12g} at step {len(climb) - 1}: the model's em_step is not "
        "a maximisation, or it has lost numerical precision"
    )


def _settled(climb: list[float], tol: float) -> bool:
    """Aitken's rule: with increments shrinking by a factor a, the remaining gain is the last one times a / (1 - a)."""
    if len(climb) < 3:
        return False
    first, second = climb[-2] - climb[-3], climb[-1] - climb[-2]
    if second <= ROUNDING * abs(climb[-1]):
        return True
    return 0 < second < first and second * second / (first - second) < tol


def _small(climb: list[float], tol: float) -> bool:
    """Whether the last gains of an accelerated climb are small, and do not grow, as they do on leaving a saddle."""
    if len(climb) <= WINDOW:
        return False
    gains = [after - before for before, after in zip(climb[-WINDOW - 1 : -1], climb[-WINDOW:], strict=True)]
    rounding = ROUNDING * abs(climb[-1])
    return sum(gains) <= max(SHARE * tol, rounding) and (gains[-1] <= gains[0] or gains[-1] <= rounding)


def _still(ascent: Ascent) -> bool:
    """Whether a step of EM leaves the parameters where they are."""
    return bool((ascent.image - ascent.point).norm() <= STILL * ascent.point.norm())
