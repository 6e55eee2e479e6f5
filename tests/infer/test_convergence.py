"""The one rule on whether training has settled, on curves of known shape and on fits."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroParam
from torch.distributions import constraints

import zoo
from guides import Exact, MeanField
from zoo.base import Module, rows
from zoo.infer import Training, assess
from zoo.infer.convergence import descended, trend


def record(losses, **given):
    return Training(losses=torch.as_tensor(losses, dtype=torch.float64), converged=False, **given)


def noise(steps, scale=0.1):
    return scale * torch.randn(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_flat_curve_has_converged_and_a_falling_one_has_not():
    assert assess(record(noise(2000))).converged
    falling = assess(record(noise(2000) - 1e-3 * torch.arange(2000)))
    assert not falling.converged
    assert falling.left == pytest.approx(0.25, abs=0.05)  # the gain of a window of 250 steps
    assert "nats per row" in falling.reason


def test_windows_grow_with_the_curve():
    found = trend(noise(16_000))
    assert found.window == 2000
    assert found.error == pytest.approx(0.1 * math.sqrt(2 / 2000), rel=0.1)
    assert trend(noise(1000)).window == 250


def test_few_steps_tell_nothing():
    found = assess(record(noise(99)))
    assert not found.converged
    assert math.isnan(found.left)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_line_search_has_converged_where_it_gains_nothing(dtype):
    losses = [1 + math.exp(-0.5 * step) for step in range(120)]
    assert assess(record(losses, optimizer="LBFGS", dtype=dtype)).converged
    short = assess(record(losses[:15], optimizer="LBFGS", dtype=dtype))
    assert not short.converged
    assert short.left == pytest.approx(losses[0] - losses[14])
    assert descended(losses, learned=False, dtype=dtype)


def test_a_rate_that_falls_in_any_case_proves_nothing():
    flat = noise(2000)
    assert not assess(record(flat, schedule="cosine")).converged
    assert not assess(record(flat, schedule="settling")).converged  # it fell because the budget came to its end
    assert assess(record(flat, schedule="settling", annealed=500)).converged


def test_held_out_rows_end_training():
    curve = torch.tensor([[0, 3.0], [100, 2.0], [200, 2.5], [300, 2.4]])
    ended = record(noise(300) - torch.arange(300), validation=curve, best_step=100)
    assert not assess(ended).converged
    stalled = assess(record(noise(300), validation=curve, best_step=100, patience=2))
    assert stalled.converged
    assert "2 evaluations" in stalled.reason


class SparseFactors(Module):
    """Factors with a Laplace prior: no closed form, and noise in every step."""

    def __init__(self, d, k):
        super().__init__()
        self.latent_dim = k
        self.weight = PyroParam(torch.randn(d, k))
        self.mean = PyroParam(torch.zeros(d))
        self.scale = PyroParam(torch.ones(()), constraints.positive)

    def forward(self, x=None, index=None, size=None):
        weight, mean, scale = self.weight, self.mean, self.scale
        with rows(x, index, size):
            z = pyro.sample("z", dist.Laplace(mean.new_zeros(self.latent_dim), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T + mean, scale).to_event(1), obs=x)


def sparse(steps):
    torch.manual_seed(1)
    x = zoo.data.load("iris").x
    x = (x - x.mean(0)) / x.std(0)
    model = SparseFactors(4, 2)
    run = zoo.fit(model, MeanField(model, x), x, steps=steps, progress=False)
    return run, float(zoo.evaluate(run, x, draws=500).elbo.mean())


def test_a_fit_by_noisy_steps_ends_at_the_maximum_that_em_finds(iris):
    """With one factor a diagonal q is exact, so that the maximum of the bound is that of the likelihood."""
    x = ((iris - iris.mean(0)) / iris.std(0))[::5]
    reference = zoo.em(zoo.PPCA(4, 1).double(), x)[-1].item() / len(x)
    torch.manual_seed(2)
    model = zoo.PPCA(4, 1).double()
    run = zoo.fit(model, MeanField(model, x), x, loss=Trace_ELBO(), seed=2, progress=False)
    assert run.converged
    assert assess(run.training).converged
    assert run.training.stopped == "the bound has settled"
    left = reference - zoo.evaluate(run, x).elbo.mean().item()  # both in closed form
    assert -1e-9 < left < 0.003  # stopping at the first plateau, at a constant rate, leaves 0.004 to 0.007


@pytest.mark.slow
def test_a_default_fit_ends_at_its_optimum():
    run, bound = sparse(None)
    assert run.converged
    assert run.training.stopped == "the bound has settled"
    assert run.training.annealed is not None
    longer, best = sparse(5000)
    assert bound == pytest.approx(best, abs=0.003)
    assert len(run.losses) < len(longer.losses)


@pytest.mark.parametrize("steps", [60, 1500])
def test_the_record_and_the_rule_agree(steps):
    run, _ = sparse(steps)
    assert not run.converged
    assert assess(run.training).converged == run.converged
    assert run.training.stopped == f"all {steps:,} steps were taken"


def test_a_line_search_cut_short_says_so(iris):
    model = zoo.FactorAnalysis(4, 1).double()
    short = zoo.fit(model, Exact(model), iris, steps=5, progress=False)
    assert not short.converged
    assert assess(short.training).left > 0
    whole = zoo.fit(model, Exact(model), iris, progress=False)
    assert whole.converged
    assert assess(whole.training).left < 1e-8
    assert whole.training.stopped == "the bound has settled"
