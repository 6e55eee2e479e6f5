"""Single steps of mixtures, by EM and by coordinate ascent, beside scikit-learn's iterations."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from torch import Tensor

from zoo import data
from zoo.benchmark.speed.measuring import Samples, Task, interleaved
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.gmm import GMM

STEPS = (  # rows, columns, components, covariance, bar
    (272, 2, 3, "full", 1.2),
    (272, 2, 3, "tied", 1.2),
    (2_000, 10, 5, "full", 0.7),
    (20_000, 20, 10, "full", 0.7),
    (20_000, 20, 10, "diag", 0.7),
    (200_000, 20, 10, "diag", 0.7),
    (100_000, 20, 20, "full", 0.7),
    (100_000, 20, 20, "tied", 0.7),
)
SWEEPS = ((100_000, 20, 20, "full", 0.5), (100_000, 20, 20, "diag", 0.5))


def tasks() -> Iterator[Task]:
    """Steps of EM, then sweeps of coordinate ascent."""
    for name, measure, rows in (("em_step GMM", _step, STEPS), ("sweep BayesianGMM", _sweep, SWEEPS)):
        for n, d, k, covariance, bar in rows:
            measured = functools.partial(measure, n, d, k, covariance)
            title = f"{name} {n:,} x {d}, K={k} {covariance}"
            yield Task(title, measured, "ms", "an iteration of scikit-learn", times=bar)


def clusters(n: int, d: int, k: int) -> Tensor:
    """Rows (n, d) of k spherical clusters, from a fixed seed; 272 x 2 are Old Faithful's."""
    if n == 272:
        return data.load("faithful", dtype=torch.float64).x
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return noise + centres[torch.randint(k, (n,), generator=generator)]


def _step(n: int, d: int, k: int, covariance: Any, repeats: int) -> Samples:
    """Milliseconds of ``em_step`` and of scikit-learn's E-step, M-step and bound."""
    x = clusters(n, d, k)
    model = GMM(d, k, covariance).double()
    model.initialize(x)
    iteration = _Iteration(GaussianMixture(k, covariance_type=covariance, init_params="random_from_data"), x)
    times = max(1, 100_000 // (n * k))
    return Samples(*interleaved(lambda _: model.em_step(x), iteration, repeats, times=times, scale=1e3))


def _sweep(n: int, d: int, k: int, covariance: Any, repeats: int) -> Samples:
    """Milliseconds of a sweep with its bound, and of scikit-learn's."""
    x = clusters(n, d, k)
    model = BayesianGMM(d, k, covariance).double()
    model.initialize(x)
    ascent = model.coordinate_ascent(x, torch.Generator().manual_seed(0))
    estimator = BayesianGaussianMixture(n_components=k, covariance_type=covariance, init_params="random_from_data")

    def sweep(_: int) -> None:
        ascent.sweep()
        ascent.bound()

    return Samples(*interleaved(sweep, _Iteration(estimator, x), repeats, scale=1e3))


class _Iteration:
    """One iteration of a mixture of scikit-learn, which has no public name; the argument is not used."""

    def __init__(self, estimator: Any, x: Tensor) -> None:
        self.estimator, self.table = estimator, x.numpy()
        estimator._check_parameters(self.table)
        estimator._initialize_parameters(self.table, np.random.RandomState(0))

    def __call__(self, turn: int) -> None:
        log_p, logs = self.estimator._e_step(self.table)
        self.estimator._m_step(self.table, logs)
        self.estimator._compute_lower_bound(logs, log_p)
