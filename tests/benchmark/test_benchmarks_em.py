"""EM beside scikit-learn, one thread each, interleaved in one process: ``pytest -m benchmarks``.

Ratios are medians of five; every row is printed with its bar.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import zoo
from zoo.benchmark.conjugate import digits

pytestmark = pytest.mark.benchmarks

FREY = "ZOO_FREY_FACES"  # the environment variable with the path of frey_faces.npz


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def clock(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of this process per call, so that other programs count less."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def ratio(ours: Callable[[], object], theirs: Callable[[], object], times: int = 1, repeats: int = 5) -> list[float]:
    """The medians of interleaved runs after one to warm up, and of their ratios."""
    pairs = [(clock(ours, times), clock(theirs, times)) for _ in range(repeats + 1)][1:]
    mine, other = zip(*pairs, strict=True)
    return [statistics.median(column) for column in (mine, other, [a / b for a, b in pairs])]


def show(capsys, row: str, found: float, bar: float, note: str = "") -> None:
    with capsys.disabled():
        print(f"\n| {row} | {found:.3g} | at most {bar:g} | {note} |", end="")


def clusters(n: int, d: int, k: int) -> torch.Tensor:
    """Rows of k spherical clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return noise + centres[torch.randint(k, (n,), generator=generator)]


STEPS = [
    (272, 2, 3, "full", 1.2),
    (272, 2, 3, "tied", 1.2),
    (2_000, 10, 5, "full", 0.7),
    (20_000, 20, 10, "full", 0.7),
    (20_000, 20, 10, "diag", 0.7),
    (200_000, 20, 10, "diag", 0.7),
    (100_000, 20, 20, "full", 0.7),
    (100_000, 20, 20, "tied", 0.7),
]


@pytest.mark.parametrize(("n", "d", "k", "covariance", "bar"), STEPS)
def test_a_step_of_a_mixture(n, d, k, covariance, bar, capsys):
    x = zoo.data.load("faithful", dtype=torch.float64).x if n == 272 else clusters(n, d, k)
    model = zoo.GMM(d, k, covariance).double()
    torch.manual_seed(0)
    model.initialize(x)
    table = x.numpy()
    other = GaussianMixture(k, covariance_type=covariance, init_params="random_from_data", random_state=0)
    other._check_parameters(table)
    other._initialize_parameters(table, np.random.RandomState(0))

    def iteration():
        log_p, logs = other._e_step(table)
        other._m_step(table, logs)
        other._compute_lower_bound(logs, log_p)

    ours, theirs, found = ratio(lambda: model.em_step(x), iteration, times=max(1, 100_000 // (n * k)))
    show(capsys, f"GMM step {n} x {d}, K={k}, {covariance}", found, bar, f"{ours * 1e3:.3g} / {theirs * 1e3:.3g} ms")
    assert found <= bar


def test_old_faithful_takes_few_evaluations(capsys):
    x = zoo.data.load("faithful", dtype=torch.float64).x
    model = zoo.GMM(2, 3, "tied").double()
    found = zoo.em(model, x)
    show(capsys, "EM maps, Old Faithful, 3 tied", found.evaluations, 300)
    assert found[-1].item() == pytest.approx(-1126.3159278234, abs=272e-9)
    assert found.evaluations <= 300


def test_frey_faces(capsys):
    path = os.environ.get(FREY)
    if not path:
        pytest.skip(f"set {FREY} to the path of frey_faces.npz")
    with np.load(Path(path)) as held:
        x = torch.from_numpy(held["images"].reshape(1965, -1)).double() / 255
    ends = []
    took = statistics.median(
        clock(lambda: ends.append(zoo.em(zoo.PPCA(560, 20).double(), x)[-1].item() / 1965)) for _ in range(5)
    )
    show(capsys, "PPCA, Frey faces, q=20, seconds", took, 0.5)
    assert ends[0] == pytest.approx(861.569, abs=1e-3)
    assert took <= 0.5


def test_heywood_cases(capsys):
    loadings = np.array([[0.9, 0], [0.8, 0], [0.3, 0.3], [0, 0.9], [0, 0.4], [0.2, 0.2]])
    for seed in range(6):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(30, 2)) @ loadings.T
        x = noise + rng.normal(size=(30, 6)) * np.sqrt(1 - (loadings**2).sum(1))
        models = [zoo.FactorAnalysis(6, 2).double() for _ in range(5)]
        ends: list[float] = []
        took = statistics.median(clock(lambda m=m: ends.append(zoo.em(m, x)[-1].item())) for m in models)  # noqa: B023
        show(capsys, f"FA, Heywood case {seed}, seconds", took, 0.1)
        assert took <= 0.1
        if seed == 0:
            assert ends[0] == pytest.approx(-227.11888, abs=1e-4)


def test_half_of_the_entries_missing(capsys):
    x = load_breast_cancer().data
    x = torch.from_numpy((x - x.mean(0)) / x.std(0)).flatten()
    x[torch.from_numpy(np.random.RandomState(1234).choice(len(x), len(x) // 2, replace=False))] = torch.nan
    x = x.reshape(569, 30)
    model = zoo.FactorAnalysis(30, 10).double()
    found = []
    took = clock(lambda: found.append(zoo.em(model, x)))
    show(capsys, "FA 10, breast cancer, half missing, seconds", took, 10, f"{found[0].evaluations} evaluations")
    assert found[0].converged
    assert zoo.em(model, x, tol=1e-13)[-1] - found[0][-1] < 569e-9
    assert took <= 10


def test_factor_analysis_of_digits(capsys):
    x = digits()
    other = ScikitFactorAnalysis(10, svd_method="lapack", tol=1e-8, max_iter=100_000)
    ours, theirs, found = ratio(lambda: zoo.em(zoo.FactorAnalysis(61, 10).double(), x), lambda: other.fit(x.numpy()))
    show(capsys, "FA 10, digits", found, 0.5, f"{ours:.3g} / {theirs:.3g} s")
    assert found <= 0.5


def test_factor_analysis_of_a_million_rows(capsys):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(100, 10, generator=generator)
    x = torch.empty(1_000_000, 100)
    for part in x.split(100_000):
        part.copy_(torch.randn(len(part), 10, generator=generator) @ weight.T)
        part.add_(torch.randn(len(part), 100, generator=generator), alpha=0.7)
    ours = statistics.median(clock(lambda: zoo.em(zoo.FactorAnalysis(100, 10), x)) for _ in range(5))
    other = ScikitFactorAnalysis(10, svd_method="lapack", tol=1e-8, max_iter=100_000)
    theirs = clock(lambda: other.fit(x.numpy()))  # minutes, once
    show(capsys, "FA 10, 1,000,000 x 100", ours / theirs, 0.05, f"{ours:.3g} / {theirs:.3g} s")
    assert ours <= 0.05 * theirs
