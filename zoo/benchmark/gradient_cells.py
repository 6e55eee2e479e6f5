"""What the benchmark of gradients measures of a pair: noise at three points of a trajectory, and training."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from zoo.base.module import Module
from zoo.base.protocols import Placed
from zoo.base.random import seeded
from zoo.benchmark.estimators import ESTIMATORS, REPARAMETRISED, SCORE, Estimator, Traced, serving
from zoo.benchmark.suite import Cell, Data, GuideMaker, ModelMaker, Point
from zoo.infer.fitting import fit
from zoo.infer.gradient_noise import GradientNoise, Noise, gradient_noise
from zoo.infer.guard import Diverged
from zoo.infer.optim.fused import Fused
from zoo.infer.pairing import move
from zoo.infer.running import Copy, copied, put_back

ROUNDING = 1e-9  # of a gradient, relative to one noisy draw
EVALUATION = 20  # draws of a bound that has no closed form
TRAINING = ""  # in place of a point of a trajectory
FEWEST = 20  # gradients without noise
LOOKS = 12  # evaluations of the bound in training
DRAWN = Estimator(
    f"{EVALUATION} draws",
    lambda: Trace_ELBO(EVALUATION, vectorize_particles=True),
    lambda pair: True,
    "the bound where it has no closed form",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted to the rows of a case, and how.

    Attributes:
        model: the model by the number of columns.
        steps: of Adam from the start, at whose half the second point lies; in training, the steps of every estimator.
        rate: the learning rate of Adam.
        draws: of every gradient.
        batch: rows per step of Adam; None for all.
        rows: the first rows, of whose bound the gradient is measured; None for all.
        finish: arguments of the fit that goes on to the optimum.
    """

    model: ModelMaker
    steps: int
    rate: float
    draws: int = 20
    batch: int | None = None
    rows: int | None = None
    finish: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings as plain values."""
        held = {own.name: getattr(self, own.name) for own in fields(self) if own.name != "model"}
        return {**held, "finish": dict(self.finish), "optimizer": "Adam"}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trained pair, and its parameters at three points: name, step, copy."""

    model: Module
    guide: Module
    states: list[tuple[str, int, Copy]]


@dataclass(frozen=True)
class Estimated:
    """Trains a pair from a random start: by a reference loss, or by every estimator that serves it.

    Attributes:
        model: builds the model; None for that of the case.
        guide: builds the guide.
    """

    guide: GuideMaker
    model: ModelMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> Any:
        problem: Problem = data.extra["problem"]
        torch.manual_seed(cell.seed)
        model = (self.model or problem.model)(data.train.shape[1]).to(data.train.dtype)
        if isinstance(model, Placed):
            model.initialize(data.train)
        guide = self.guide(model, data.train)
        move((model, guide), cell.device)
        for part in (model, guide):
            if isinstance(part, Module):
                part.keep()
        x = data.train.to(cell.device)
        if data.extra.get("training"):
            return list(_curves(model, guide, x, problem, cell.seed))
        return _trajectory(model, guide, x, problem, cell.seed)


def _trajectory(model: Module, guide: Module, x: Tensor, problem: Problem, seed: int) -> Trajectory:
    """The start, the parameters half-way, and those at the optimum."""
    states = [("start", 0, copied(model, guide))]
    half = problem.steps // 2

    def note(step: int, loss: float) -> None:
        if step + 1 == half:
            states.append(("half-way", half, copied(model, guide)))

    adam = Fused(torch.optim.Adam, {"lr": problem.rate})
    settings: dict[str, Any] = {"seed": seed, "progress": False, "batch_size": problem.batch}
    fit(model, guide, x, steps=problem.steps, optim=adam, callbacks=[note], **settings)
    run = fit(model, guide, x, **settings, **problem.finish)
    return Trajectory(model, guide, [*states, ("optimum", problem.steps + run.steps, copied(model, guide))])


def _arguments(x: Tensor, problem: Problem) -> tuple[Any, ...]:
    """All rows, or the first as a minibatch."""
    if problem.rows is None or problem.rows >= len(x):
        return (x,)
    return x[: problem.rows], torch.arange(problem.rows, device=x.device), len(x)


def noises(found: Trajectory, data: Data, cell: Cell) -> Iterator[Point]:
    """The noise of every estimator at every point of a trajectory."""
    problem: Problem = data.extra["problem"]
    x = data.train.to(cell.device)
    args = _arguments(x, problem)
    for number, (at, step, state) in enumerate(found.states):
        put_back(state)
        seed = cell.seed * len(found.states) + number
        with pyro.get_param_store().scope():
            pair = Traced.of(found.model, found.guide, args)
            measured = {e: _measured(e, pair, problem.draws, len(x), seed) for e in serving(pair)}
        for estimator in measured:
            yield {"at": at, "estimator": estimator.name, "steps": step, **_compared(estimator, measured)}


def _measured(estimator: Estimator, pair: Traced, draws: int, n: int, seed: int) -> GradientNoise:
    steady = estimator.exact or estimator.target is None
    return gradient_noise(
        pair.model,
        estimator.guide(pair.guide),
        estimator.objective(pair.depth),
        *pair.args,
        draws=min(draws, FEWEST) if steady else draws,
        warm_up=estimator.warm_up,
        seed=seed * len(ESTIMATORS) + ESTIMATORS.index(estimator),  # independent of all others
        scale=1 / n,
    )


def _compared(estimator: Estimator, measured: Mapping[Estimator, GradientNoise]) -> Point:
    """The noise of an estimator, relative to the reparametrised one, and how far its mean is from that of the others.

    Without reparametrised draws, as of a discrete site, it is relative to the score function.
    """
    own = measured[estimator]
    by_name = {other.name: noise for other, noise in measured.items()}
    unit = by_name.get(REPARAMETRISED) or by_name.get(SCORE)
    truth = _truth(estimator, measured)
    point: dict[str, float] = {"milliseconds": 1e3 * own.seconds}
    for part in ("guide", "model"):
        noise: Noise = getattr(own, part)
        point |= {f"{part}_variance": noise.variance, f"{part}_se": noise.error}
        if unit is not None:
            point[f"{part}_factor"] = _ratio(noise, getattr(unit, part), _typical(measured, part))
        if truth is not None:
            rounding = ROUNDING * _typical(measured, part)
            point[f"{part}_deviation"] = noise.distance(getattr(truth, part), rounding)
    return point


def _typical(measured: Mapping[Estimator, GradientNoise], part: str) -> float:
    """The standard deviation of the noisiest estimator, beside which rounding is nothing."""
    found = [getattr(noise, part).variance for noise in measured.values()]
    return math.sqrt(max((v for v in found if not math.isnan(v)), default=0.0))


def _ratio(one: Noise, other: Noise, typical: float) -> float:
    """The ratio of two variances; NaN where the other is rounding."""
    if not other.variance > (ROUNDING * typical) ** 2:
        return math.nan
    return one.variance / other.variance


def _truth(estimator: Estimator, measured: Mapping[Estimator, GradientNoise]) -> GradientNoise | None:
    """The gradient of the estimator's target: exact, or the mean of another estimator with the least noise."""
    others = [other for other in measured if other is not estimator and other.target == estimator.target]
    exact = [other for other in others if other.exact]

    def spread(other: Estimator) -> float:
        noise = measured[other]
        parts = [part.variance for part in (noise.guide, noise.model) if not math.isnan(part.variance)]
        return sum(parts)

    best = exact[0] if exact else min(others, key=spread, default=None)
    return None if best is None else measured[best]


def _curves(model: Module, guide: Module, x: Tensor, problem: Problem, seed: int) -> Iterator[Point]:
    """The bound along training by every estimator, from the same start."""
    start = copied(model, guide)
    args = _arguments(x, problem)
    with pyro.get_param_store().scope():
        pair = Traced.of(model, guide, args)
        able = serving(pair)
    judge = next((e for e in able if e.exact and e.target == "ELBO"), DRAWN)
    for estimator in able:
        if estimator.target == "ELBO":
            put_back(start)
            yield from _curve(estimator, pair, x, problem, seed, judge)


def _curve(
    estimator: Estimator, pair: Traced, x: Tensor, problem: Problem, seed: int, judge: Estimator
) -> Iterator[Point]:
    """The bound of the first rows, in nats per row, at some steps of training by an estimator."""
    looks = {0, *np.geomspace(1, problem.steps, LOOKS).round().astype(int).tolist()}
    points: list[dict[str, Any]] = []
    objective, judged = judge.objective(pair.depth), judge.guide(pair.guide)
    began, spent = time.perf_counter(), 0.0

    def look(step: int) -> None:
        nonlocal spent
        if step not in looks:
            return
        arrived = time.perf_counter()
        with torch.no_grad(), seeded(seed), pyro.validation_enabled(False):
            bound = -float(objective.loss(pair.model, judged, *pair.args)) / len(x)
        points.append({"steps": step, "bound": bound, "trained_seconds": arrived - began - spent})
        spent += time.perf_counter() - arrived

    with pyro.get_param_store().scope():
        look(0)
    try:
        fit(
            pair.model,
            estimator.guide(pair.guide),
            x,
            steps=problem.steps,
            batch_size=problem.batch,
            loss=estimator.objective(pair.depth),
            optim=Fused(torch.optim.Adam, {"lr": problem.rate}),
            seed=seed,
            capture=False,
            progress=False,
            callbacks=[lambda step, loss: look(step + 1)],
        )
    except Diverged:
        points.append({"steps": problem.steps, "bound": math.nan, "trained_seconds": math.nan})
    for point in points:
        yield {"at": TRAINING, "estimator": estimator.name, **point}
