"""``zoo.em`` to the maximum: its evaluations and its time, where EM creeps and where rows are many."""

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from zoo import data
from zoo.benchmark.problems import digits
from zoo.benchmark.speed.measuring import Samples, Task, Unavailable, clock, interleaved
from zoo.infer.collapse import HeywoodCase
from zoo.infer.expectation_maximisation import em
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA

FREY = "ZOO_FREY_FACES"  # the environment variable with the path of frey_faces.npz
FREY_OPTIMUM = 861.569  # nats per row, PPCA with 20 factors
FAITHFUL_OPTIMUM = -1126.3159278234  # nats, three components with tied covariance
HEYWOOD_OPTIMUM = -227.11888  # nats, of the first case
HEYWOOD_CASES = 6
STOPPED = 10  # iterations of scikit-learn on a million rows, each some seconds, of the hundred or so that it wants


def tasks() -> Iterator[Task]:
    """Evaluations of the EM map, then times."""
    yield Task("em faithful GMM 3 tied", _faithful, "evaluations", plus=300, tolerance=1e-9)
    yield Task("em Frey faces PPCA 20", _frey, plus=0.5, tolerance=1e-3)
    for seed in range(HEYWOOD_CASES):
        measure = functools.partial(_heywood, seed)
        yield Task(f"em Heywood case {seed}, 30 x 6, FA 2", measure, plus=0.1, tolerance=None if seed else 1e-4)
    yield Task("em breast_cancer, half missing, FA 10", _half_missing, plus=10.0, tolerance=1e-9)
    yield Task("em digits FA 10", _digits, yardstick="scikit-learn", times=0.5)
    yield Task("em 1,000,000 x 100 FA 10", _million, yardstick=f"{STOPPED} iterations of scikit-learn", times=0.05)


def million_rows(n: int = 1_000_000, d: int = 100, k: int = 10) -> Tensor:
    """Rows (n, d) in float32 from k factors, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d, k, generator=generator)
    x = torch.empty(n, d)
    for part in x.split(100_000):
        part.copy_(torch.randn(len(part), k, generator=generator) @ weight.T)
        part.add_(torch.randn(len(part), d, generator=generator), alpha=0.7)
    return x


def _faithful(repeats: int) -> Samples:
    x = data.load("faithful", dtype=torch.float64).x
    counts, ends = [], []
    for seed in range(repeats):
        torch.manual_seed(seed)
        found = em(GMM(2, 3, "tied").double(), x)
        counts.append(float(found.evaluations))
        ends.append(float(found[-1]))
    return Samples(counts, error=abs(max(ends) - FAITHFUL_OPTIMUM) / len(x))


def _frey(repeats: int) -> Samples:
    path = os.environ.get(FREY)
    if not path:
        raise Unavailable(f"set {FREY} to the path of frey_faces.npz")
    with np.load(Path(path)) as held:
        x = torch.from_numpy(held["images"].reshape(1965, -1)).double() / 255
    ends: list[float] = []
    seconds, _ = interleaved(lambda _: ends.append(float(em(PPCA(560, 20).double(), x)[-1])), None, repeats)
    return Samples(seconds, error=abs(min(ends) / len(x) - FREY_OPTIMUM))


def _expecting_heywood(row: Callable[..., Samples]) -> Callable[..., Samples]:
    """A row on a table that is known for its Heywood cases, without the warnings of them."""

    @functools.wraps(row)
    def quiet(*given: int) -> Samples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeywoodCase)
            return row(*given)

    return quiet


@_expecting_heywood
def _heywood(seed: int, repeats: int) -> Samples:
    """Factor analysis of rows that are too few, so that noise variances go to zero."""
    loadings = np.array([[0.9, 0], [0.8, 0], [0.3, 0.3], [0, 0.9], [0, 0.4], [0.2, 0.2]])
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(30, 2)) @ loadings.T
    x = factors + rng.normal(size=(30, 6)) * np.sqrt(1 - (loadings**2).sum(1))
    ends: list[float] = []
    seconds, _ = interleaved(lambda _: ends.append(float(em(FactorAnalysis(6, 2).double(), x)[-1])), None, repeats)
    return Samples(seconds, error=math.nan if seed else abs(min(ends) - HEYWOOD_OPTIMUM))


@_expecting_heywood
def _half_missing(repeats: int) -> Samples:
    table = load_breast_cancer().data
    x = torch.from_numpy((table - table.mean(0)) / table.std(0)).flatten()
    x[torch.from_numpy(np.random.RandomState(1234).choice(len(x), len(x) // 2, replace=False))] = torch.nan
    x = x.reshape(table.shape)
    seconds, counts, errors = [], [], []
    for seed in range(repeats):
        torch.manual_seed(seed)
        model = FactorAnalysis(x.shape[1], 10).double()
        found = []
        seconds.append(clock(lambda: found.append(em(model, x))))  # noqa: B023
        counts.append(found[0].evaluations)
        further = float(em(model, x, tol=1e-13)[-1] - found[0][-1]) / len(x) if seed == 0 else 0.0
        errors.append(further if found[0].converged else math.inf)
    return Samples(seconds, error=max(errors), note=f"{min(counts)} to {max(counts)} evaluations")


def _digits(repeats: int) -> Samples:
    x = digits()
    table, other = x.numpy(), ScikitFactorAnalysis(10, svd_method="lapack", tol=1e-8, max_iter=100_000)
    ours = functools.partial(_factors, x)
    return Samples(*interleaved(lambda _: ours(), lambda _: other.fit(table), repeats))


def _million(repeats: int) -> Samples:
    """Ours to the optimum; scikit-learn is stopped early, once, so that the ratio is larger than that of whole fits."""
    x = million_rows()
    other = ScikitFactorAnalysis(10, svd_method="lapack", tol=1e-8, max_iter=STOPPED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = clock(lambda: other.fit(x.numpy()))
    seconds, _ = interleaved(lambda _: _factors(x), None, repeats)
    whole = "converged" if other.n_iter_ < STOPPED else "stopped before it has converged"
    return Samples(seconds, [theirs], note=f"scikit-learn {whole}, one run")


def _factors(x: Tensor) -> None:
    em(FactorAnalysis(x.shape[1], 10).to(x), x)
