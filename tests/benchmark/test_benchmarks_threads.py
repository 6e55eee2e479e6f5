"""The gain of a step from threads, around the size from which a second one is used; figures with ``-s -n 0``."""

import time

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import guides
import zoo
from zoo.base.threads import PER_THREAD, enough, exactly, work_of

pytestmark = pytest.mark.benchmarks


def test_threads_of_a_step():
    cores = torch.get_num_threads()
    loss = Trace_ELBO()
    for rows in (2**6, 2**8, 2**10, 2**12, 2**14):
        model, x = zoo.VAE(64, 4), torch.randn(rows, 64)
        guide = guides.Amortized(model, x)
        work = work_of(x.shape, model, guide)
        took = {}
        for count in sorted({1, 2, 4, 8, min(enough(work), cores)} & set(range(1, cores + 1))):
            with exactly(count), pyro.get_param_store().scope():
                loss.loss_and_grads(model, guide, x)
                start = time.perf_counter()
                for _ in range(20):
                    loss.loss_and_grads(model, guide, x)
                took[count] = (time.perf_counter() - start) / 20
        chosen = min(enough(work), cores)
        each = ", ".join(f"{count}: {1e3 * value:.2f} ms" for count, value in took.items())
        print(f"{work:.1e} multiply-adds, {chosen} threads chosen at {PER_THREAD:.0e} each; {each}")
        assert took[chosen] < 1.5 * min(took.values())
