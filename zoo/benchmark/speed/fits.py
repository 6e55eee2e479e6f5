"""Default fits of conjugate models, whole calls, beside scikit-learn's estimators."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.benchmark.problems import BOTH, CONJUGATE, GUIDES, STARTS, Problem
from zoo.benchmark.speed.measuring import Samples, Task, interleaved
from zoo.infer.asked import Start
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit

TOLERANCE = 2e-6  # nats per row from EM's optimum, for likelihoods with a single maximum
LONG = 5.0  # seconds of BEFORE from which on fits from random starts have a bar
SHARE = 0.2  # that bar, as a share of BEFORE
DISCRETE = {"FullRank"}  # guides without a mixture
# Seconds from random starts, median of five seeds, before the fits moved the models' parameters alone (version 0.1.0,
# one thread of a busy machine): in the order of GUIDES; of mixtures ten starts.
BEFORE: dict[str, tuple[float, ...]] = {
    "iris PPCA 1": (3.80, 5.55, 3.47, 9.24, 30.12),
    "iris PPCA 2": (1.89, 4.26, 3.76, 4.74, 25.10),
    "iris PPCA 3": (0.97, 3.50, 2.33, 2.51, 38.33),
    "holzinger PPCA 1": (1.32, 2.88, 1.97, 3.14, 9.72),
    "holzinger PPCA 2": (1.69, 2.03, 2.45, 2.81, 13.12),
    "holzinger FactorAnalysis 1": (1.17, 2.52, 2.98, 3.52, 11.29),
    "holzinger FactorAnalysis 2": (1.39, 2.64, 5.73, 2.84, 18.02),
    "simulated PPCA 5": (2.14, 3.90, 15.09, 14.90, 155.55),
    "simulated FactorAnalysis 5": (1.64, 6.35, 11.72, 18.40, 113.63),
    "faithful GMM 2 full": (11.88, math.nan, 24.27, 29.25, 71.51),
    "faithful GMM 3 tied": (22.08, math.nan, 35.73, 42.28, 112.61),
    "iris GMM 2 full": (23.70, math.nan, 42.38, 42.19, 44.48),
    "digits PPCA 10": (1.87, 28.09, 148.00, 165.37, 339.85),
    "digits FactorAnalysis 10": (2.04, 57.95, 122.30, 129.68, 355.77),
}


def tasks() -> Iterator[Task]:
    """Every case with every guide that serves it, from both starts."""
    for start in reversed(BOTH):
        for case in CONJUGATE:
            for guide in GUIDES:
                if not (case.mixture and guide in DISCRETE):
                    yield _task(case, guide, start)


def _task(case: Problem, guide: str, start: Start) -> Task:
    """A fit: from its default start a multiple of scikit-learn's time, from a random one a share of its own before."""
    times, plus = 5.0, 5.0 if guide == "Amortized 64-64" else 0.5
    if start == "random":
        before = BEFORE[case.name][list(GUIDES).index(guide)]
        share = SHARE / STARTS if case.mixture else SHARE
        times, plus = 0.0, share * before if before > LONG else 0.0
    return Task(
        f"fit {case.name} {guide}" + ", random start" * (start == "random"),
        functools.partial(_measure, case, guide, start),
        yardstick="scikit-learn",
        times=times,
        plus=plus,
        tolerance=None if case.mixture else TOLERANCE,
    )


def _measure(case: Problem, guide: str, start: Start, repeats: int) -> Samples:
    """Seconds to build and fit a pair, one start each, and the largest distance to EM's optimum."""
    x = case.rows()  # (n, d)
    table, reached = x.numpy(), []

    def ours(seed: int) -> None:
        torch.manual_seed(seed)
        model = case.build(x.shape[1]).double()
        run = fit(model, GUIDES[guide](model, x), x, start=start, seed=seed, progress=False)
        reached.append(_log_likelihood(run.model, x))

    def theirs(seed: int) -> None:
        assert case.scikit is not None
        estimator = case.scikit(seed)
        if case.mixture:
            estimator.set_params(n_init=1)
        estimator.fit(table)

    mine, other = interleaved(ours, theirs, repeats, warm_up=1 if start == "data" else 0)
    error = math.nan if case.mixture else _optimum(case.name) - min(reached[-repeats:])
    return Samples(mine, other, error)


def _log_likelihood(model: Any, x: Tensor) -> float:
    """Nats per row of a conjugate model."""
    with torch.no_grad():
        return float(model.log_marginal(x).mean())


@functools.cache
def _optimum(name: str) -> float:
    """EM's optimum in nats per row."""
    case = next(case for case in CONJUGATE if case.name == name)
    x = case.rows()
    reference = case.build(x.shape[1]).double()
    em(reference, x, tol=1e-12)
    return _log_likelihood(reference, x)
