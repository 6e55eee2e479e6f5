"""A sweep of the Bayesian mixture beside an iteration of scikit-learn's, one thread each, interleaved."""

import statistics
import time

import numpy as np
import pytest
import torch
from sklearn.mixture import BayesianGaussianMixture
from threadpoolctl import threadpool_limits

import zoo

pytestmark = pytest.mark.benchmarks


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_sweep_takes_half_of_an_iteration(covariance):
    n, d, k = 100_000, 20, 20
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = noise + centres[torch.randint(k, (n,), generator=generator)]
    model = zoo.BayesianGMM(d, k, covariance).double()
    model.initialize(x)
    ascent = model.coordinate_ascent(x, generator)
    table = x.numpy()
    other = BayesianGaussianMixture(n_components=k, covariance_type=covariance, init_params="random_from_data")
    with threadpool_limits(1):
        other._check_parameters(table)
        other._initialize_parameters(table, np.random.RandomState(0))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ascent.sweep()
            ascent.bound()
            middle = time.perf_counter()
            log_p, logs = other._e_step(table)
            other._m_step(table, logs)
            other._compute_lower_bound(logs, log_p)
            times.append((middle - start, time.perf_counter() - middle))
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{covariance}: cavi {mine:.3f} s a sweep, scikit-learn {theirs:.3f} s")
    assert mine < theirs / 2
