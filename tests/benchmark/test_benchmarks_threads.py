"""The gain from threads, around the work from which a second one is used; figures with ``-s -n 0``.

Run it on a machine with nothing else to do: where a core is taken, two threads wait for it at every operation.
"""

import os
import time

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import guides
import zoo
from zoo.algebra.linear_gaussian import Moments
from zoo.base.threads import enough, exactly, work_of
from zoo.benchmark.speed.mixtures import clusters

pytestmark = pytest.mark.benchmarks


def step(rows):
    """A step of SVI for a VAE."""
    model, x = zoo.VAE(64, 4), torch.randn(rows, 64)
    guide, loss = guides.Amortized(model, x), Trace_ELBO()
    return lambda: loss.loss_and_grads(model, guide, x), work_of(x.shape, model, guide)


def em_step(rows, covariance):
    """A step of EM for a mixture."""
    x = clusters(rows, 20, 10)
    model = zoo.GMM(20, 10, covariance).double()
    model.initialize(x)
    return lambda: model.em_step(x), work_of(x.shape, model)


def moments(rows):
    """What a step of EM for factor analysis reads of its rows, once."""
    x = torch.randn(rows, 100, dtype=torch.float64)
    return lambda: Moments.of(x), work_of(x.shape, zoo.FactorAnalysis(100, 10))


CASES = {
    **{f"step of a VAE, {rows:,} rows": (step, rows) for rows in (2**6, 2**8, 2**10, 2**12, 2**14)},
    **{
        f"step of EM, {rows:,} rows, {covariance}": (em_step, rows, covariance)
        for rows in (2**9, 2**13, 2**17)
        for covariance in ("full", "tied", "diag")
    },
    **{f"moments of {rows:,} rows": (moments, rows) for rows in (2**11, 2**17)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_chosen_number_is_near_the_best(name):
    build, *arguments = CASES[name]
    call, work = build(*arguments)
    cores = os.cpu_count() or 1
    chosen = min(enough(work), cores)
    took = dict.fromkeys(sorted({1, 2, 4, 8, chosen} & set(range(1, cores + 1))), float("inf"))
    with pyro.get_param_store().scope():
        for _ in range(10):
            for count in took:
                with exactly(count):
                    took[count] = min(took[count], timed(call))
    each = ", ".join(f"{count}: {1e3 * value:.2f} ms" for count, value in took.items())
    print(f"\n{name}: {work:.1e} multiply-adds, {chosen} threads chosen; {each}")
    assert took[chosen] < 1.5 * min(took.values())


def timed(call):
    """Seconds of a call, after one to warm up."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
