"""Time and memory at a million rows, against scikit-learn as it comes, measured: ``pytest -m benchmarks``.

Times are of one run each, which takes minutes. Memory is what a process of its own grows by at its peak.
"""

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from sklearn.mixture import GaussianMixture
from torch import Tensor

import zoo
from guides import Exact
from zoo.benchmark.speed.likelihood import million_rows

pytestmark = pytest.mark.benchmarks

MEGABYTE = 2**20


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def blobs(n: int, d: int = 20, k: int = 20) -> tuple[Tensor, Tensor]:
    """n rows to fit and 50,000 held out, from k diagonal Gaussians that overlap."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.8 * torch.randn(k, d, generator=generator)
    scale = 0.5 + torch.rand(k, d, generator=generator)

    def draw(n: int) -> Tensor:
        which = torch.randint(k, (n,), generator=generator)
        return mean[which] + scale[which] * torch.randn(n, d, generator=generator)

    return draw(n), draw(50_000)


def million_mixture(n: int = 1_000_000, k: int = 20) -> dict[str, float]:
    """Minibatch SVI and scikit-learn's EM from the same k-means++ start, diagonal components.

    The time of SVI is that until the held-out log-likelihood is scikit-learn's final one less 0.01 per row, without the
    looks at it.
    """
    x, test = blobs(n)
    d = x.shape[1]
    centres, _ = kmeans_plusplus(x[:10_000].numpy(), k, random_state=0)
    variance = x.var(0)
    estimator = GaussianMixture(
        k,
        covariance_type="diag",
        means_init=centres,
        weights_init=np.full(k, 1 / k),
        precisions_init=(1 / variance).expand(k, d).numpy(),
        max_iter=1000,
    )
    model = zoo.GMM(d, k, "diag")
    model.mean, model.scale = torch.tensor(centres), variance.sqrt().expand(k, d).clone()
    looks, seen = 0.0, []  # what was seen: step, seconds, held-out log-likelihood
    before = resident()  # ours comes first: memory that scikit-learn has let go of would hide what ours takes
    start = time.perf_counter()

    def watch(step: int, _: float) -> bool:
        nonlocal looks
        if (step + 1) % 100:
            return False
        now = time.perf_counter()
        with torch.no_grad():
            score = float(torch.cat([model.log_marginal(part) for part in test.split(5000)]).mean())
        seen.append((step + 1, now - start - looks, score))
        looks += time.perf_counter() - now
        return False

    zoo.fit(model, Exact(model), x, steps=1500, batch_size=1000, progress=False, callbacks=[watch])
    whole = time.perf_counter() - start - looks
    extra = peak() - before
    theirs = seconds(lambda: estimator.fit(x.numpy()))
    best = float(estimator.score(test.numpy()))
    steps, ours = next(((step, at) for step, at, score in seen if score >= best - 0.01), (-1, float("inf")))
    return {
        "zoo": ours,
        "steps": steps,
        "scikit": theirs,
        "iterations": estimator.n_iter_,
        "ratio": ours / theirs,
        "whole fit": whole,
        "held-out, zoo less scikit": seen[-1][2] - best,
        "extra MB": extra,
    }


def million_factors(n: int = 1_000_000, d: int = 100, k: int = 10) -> dict[str, float]:
    """``zoo.em`` for factor analysis beside scikit-learn's ``FactorAnalysis`` as it comes."""
    x = million_rows(n, d, k)
    before = resident()
    model = zoo.FactorAnalysis(d, k)
    ours = seconds(lambda: zoo.em(model, x))
    extra = peak() - before
    estimator = ScikitFactorAnalysis(k)
    theirs = seconds(lambda: estimator.fit(x.numpy()))
    some = x[:100_000]
    with torch.no_grad():
        ahead = float(model.log_marginal(some).double().mean()) - float(estimator.score(some.numpy()))
    return {"zoo": ours, "scikit": theirs, "times faster": theirs / ours, "zoo less scikit": ahead, "extra MB": extra}


def resident() -> float:
    """The resident memory of this process in megabytes; its :func:`peak` counts from here (Linux, see proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The largest resident memory of this process since :func:`resident`, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024 / MEGABYTE


def alone(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures of a measurement in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


def line(name: str, figures: dict[str, float]) -> str:
    return f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


def test_a_million_rows_of_a_mixture_in_half_the_time(capsys):
    found = alone(million_mixture)
    with capsys.disabled():
        print("\n" + line("mixture, 1,000,000 x 20, 20 diagonal components", found))
    assert found["ratio"] <= 0.5
    assert found["extra MB"] <= 500


def test_a_million_rows_of_factor_analysis_ten_times_faster(capsys):
    found = alone(million_factors)
    with capsys.disabled():
        print("\n" + line("factor analysis, 1,000,000 x 100, 10 factors", found))
    assert found["times faster"] >= 10
    assert found["extra MB"] <= 500


if __name__ == "__main__":
    for measure in (million_mixture, million_factors):
        print(line(measure.__name__, alone(measure)), flush=True)
