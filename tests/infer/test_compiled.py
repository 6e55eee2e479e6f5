"""CompiledELBO against Trace_ELBO: the same numbers, or a refusal."""

import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroParam

import zoo
from guides import Amortized, MeanField
from zoo import PPCA, VAE
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer.losses.compiled import CompiledELBO
from zoo.infer.optim.fused import Fused

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def uncompiled(monkeypatch):
    """Graphs run as they were captured, without the compiler, which takes seconds for each."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)


def gradients(loss, model, guide, *args, seed=5):
    """The loss, and the gradients of all parameters, with draws of a seed."""
    params = [p for module in (model, guide) for p in module.parameters()]
    for p in params:
        p.grad = None
    pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(model, guide, *args)
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
    for p in params:
        p.grad = None
    return torch.tensor(value, dtype=torch.float64), found


def assert_same(compiled, model, guide, *args):
    """A step of the graph gives the loss and the gradients of Trace_ELBO."""
    known = graphs(compiled)
    close = 1e-5 if args[0].dtype == torch.float32 else 1e-9
    ours, our_gradients = gradients(compiled, model, guide, *args)
    assert graphs(compiled) == known, "this step was not the graph's"
    right, right_gradients = gradients(Trace_ELBO(), model, guide, *args)
    assert abs(ours - right) <= close * abs(right)
    for one, other in zip(our_gradients, right_gradients, strict=True):
        assert (one - other).abs().max() <= close * (1 + other.abs().max())


def graphs(compiled):
    """How many graphs there are."""
    return sum(len(found) for pair in compiled._captures.values() for found in pair.graphs.values())


class Plain(Module):
    """A small model with what a graph may find hard put into ``noise``."""

    def __init__(self, twist=lambda self, z: 1.0):
        super().__init__()
        self.weight = PyroParam(torch.randn(4, 2))
        self.twist = twist
        self.beta = 1.0
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(self.weight), 1.0).to_event(1))
            noise = self.beta * self.twist(self, z)
            return pyro.sample("x", dist.Normal(z @ self.weight.T, noise).to_event(1), obs=x)


def pair(x, model=None):
    model = PPCA(4, 2) if model is None else model
    model.to(x)
    return model, MeanField(model, x, closed_form=False)


# --- the same numbers ----------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("which", "dtype"),
    [
        ("PPCA x MeanField", torch.float64),
        pytest.param("PPCA x MeanField", torch.float32, marks=SLOW),
        pytest.param("PPCA x Amortized", torch.float64, marks=SLOW),
        ("PPCA x Amortized", torch.float32),
        pytest.param("VAE x Amortized", torch.float64, marks=SLOW),
        pytest.param("VAE x Amortized", torch.float32, marks=SLOW),
    ],
)
def test_gradients_are_those_of_trace_elbo(some, which, dtype):
    x = some.to(dtype)
    model = (VAE(4, 2, hidden=(8,)) if "VAE" in which else PPCA(4, 2)).to(dtype)
    guide = MeanField(model, x, closed_form=False) if "MeanField" in which else Amortized(model, x, hidden=())
    compiled = CompiledELBO()
    index = torch.arange(0, 60, 2)
    compiled.loss_and_grads(model, guide, x[index], index, 60)
    assert_same(compiled, model, guide, x[index], index, 60)
    assert_same(compiled, model, guide, x[index + 1], index + 1, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_particles_and_covariances(some, kind):
    model = PPCA(4, 2).double()
    guide = Amortized(model, some, hidden=(4,), covariance=kind)
    for options in ({}, {"vectorize_particles": True, "max_plate_nesting": 1}):  # a guess would take draws
        compiled = CompiledELBO(num_particles=2, **options)
        compiled.loss_and_grads(model, guide, some)
        ours = gradients(compiled, model, guide, some)
        right = gradients(Trace_ELBO(num_particles=2, **options), model, guide, some)
        assert abs(ours[0] - right[0]) < 1e-9 * abs(right[0])
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(ours[1], right[1], strict=True))


@pytest.mark.slow
def test_a_discrete_guide_keeps_its_score_function(faithful):
    model = zoo.GMM(2, 2).double()
    guide = MeanField(model, faithful, closed_form=False)
    compiled = CompiledELBO()
    compiled.loss_and_grads(model, guide, faithful)
    assert_same(compiled, model, guide, faithful)


def test_a_changed_last_batch_a_second_model_and_missing_rows(some, uncompiled):
    model, guide = pair(some)
    compiled = CompiledELBO()
    for number, index in enumerate((torch.arange(40), torch.arange(40, 60))):
        compiled.loss_and_grads(model, guide, some[index], index, 60)
        assert graphs(compiled) == number + 1
    other, its_guide = pair(some)
    compiled.loss_and_grads(other, its_guide, some[:40], torch.arange(40), 60)
    assert graphs(compiled) == 3
    for m, g in ((model, guide), (other, its_guide)):
        assert_same(compiled, m, g, some[:40], torch.arange(40), 60)
    assert_same(compiled, model, guide, some[40:], torch.arange(40, 60), 60)
    gaps = some[:40].clone()
    gaps[3, 1] = torch.nan  # a branch on the data: another graph for the other outcome
    compiled.loss_and_grads(model, guide, gaps, torch.arange(40), 60)
    assert graphs(compiled) == 4
    assert_same(compiled, model, guide, gaps, torch.arange(40), 60)
    assert_same(compiled, model, guide, some[:40], torch.arange(40), 60)
    del other, its_guide, m, g
    assert graphs(compiled) == 3, "graphs go with their model"


def test_frozen_parameters_buffers_and_attributes(some, uncompiled):
    model, guide = pair(some, Plain(lambda self, z: 1.0 + self.seen))
    compiled = CompiledELBO()
    compiled.loss_and_grads(model, guide, some)
    model.seen.add_(1.0)  # a buffer is read anew at every step
    assert_same(compiled, model, guide, some)
    model.beta = 0.5  # a number is part of the graph
    compiled.loss_and_grads(model, guide, some)
    assert graphs(compiled) == 2
    assert_same(compiled, model, guide, some)
    dict(model.named_parameters())["weight_unconstrained"].requires_grad_(False)
    svi = SVI(model, guide, Fused(optim_args={"lr": 0.1}), compiled)
    pyro.clear_param_store()
    before, loc = model.weight.clone(), guide.loc.clone()
    for _ in range(3):
        svi.step(some)
    assert graphs(compiled) == 3
    assert torch.equal(model.weight, before)
    assert not torch.equal(guide.loc, loc)
    assert_same(compiled, model, guide, some)


# --- in SVI and in fit ---------------------------------------------------------------------------


def test_fit_takes_the_steps_of_trace_elbo(some):
    runs = []
    for loss in (Trace_ELBO(), CompiledELBO(), CompiledELBO()):
        torch.manual_seed(1)
        model, guide = pair(some)
        runs.append(zoo.fit(model, guide, some, steps=40, loss=loss, seed=3, progress=False, optim=Fused()))
    eager, compiled, again = (run.losses for run in runs)
    torch.testing.assert_close(compiled, eager, rtol=1e-8, atol=1e-8)
    assert torch.equal(compiled, again)
    assert runs[1].settings["loss"] == "CompiledELBO"
    assert compiled[-5:].mean() < compiled[:5].mean()


def test_every_step_draws_anew_and_parameters_reach_svi(some, uncompiled):
    model, guide = pair(some)
    compiled = CompiledELBO()
    with poutine.trace(param_only=True) as seen:
        compiled.loss_and_grads(model, guide, some)
    with poutine.trace(param_only=True) as later:
        losses = {compiled.loss_and_grads(model, guide, some) for _ in range(5)}
    assert len(losses) == 5
    assert set(seen.trace.nodes) == set(later.trace.nodes)
    for name, site in seen.trace.nodes.items():
        assert site["value"].unconstrained() is later.trace.nodes[name]["value"].unconstrained()
        assert torch.equal(site["value"], later.trace.nodes[name]["value"])


# --- refusals ------------------------------------------------------------------------------------


def counts(self, z):
    self.calls += 1
    return 1.0


def counts_in_a_buffer(self, z):
    self.seen.add_(1.0)
    return 1.0


TWISTS = {
    "branches on a draw": (lambda self, z: 1.0 if torch.rand(()) > 0.5 else 2.0, "branches on a draw"),
    "branches on a parameter": (lambda self, z: 1.0 if self.weight[0, 0] > 0 else 2.0, "branches on a parameter"),
    "takes a number": (lambda self, z: 1.0 + z.detach().abs().mean().item(), "converts a tensor to a number"),
    "draws in Python": (lambda self, z: 1.0 + random.random(), "randomness outside torch"),
    "reads through numpy": (lambda self, z: 1.0 + abs(float(z.detach().numpy().mean())), "through numpy"),
    "counts": (counts, "changes its own"),
    "counts in a buffer": (counts_in_a_buffer, "changes its own"),
}


@pytest.mark.parametrize("name", TWISTS)
def test_refuses_what_a_graph_cannot_hold(some, uncompiled, name):
    twist, why = TWISTS[name]
    model, guide = pair(some, Plain(twist))
    with pytest.raises(NotImplementedError, match=rf"cannot capture Plain with MeanField: .*{why}.*use Trace_ELBO"):
        CompiledELBO().loss_and_grads(model, guide, some)


def test_refuses_a_closed_form_guide_handlers_and_strange_arguments(some, uncompiled):
    model = PPCA(4, 2).double()
    guide = MeanField(model, some, closed_form=True)
    with pytest.raises(NotImplementedError, match="changes its own parameters"):
        CompiledELBO().loss_and_grads(model, guide, some)
    model, guide = pair(some)
    with poutine.scale(scale=0.5), pytest.raises(NotImplementedError, match="inside Pyro's handler ScaleMessenger"):
        CompiledELBO().loss_and_grads(model, guide, some)
    with pytest.raises(NotImplementedError, match="argument 0 is a list"):
        CompiledELBO().loss_and_grads(model, guide, [some])


def test_a_missing_compiler_is_named(some, monkeypatch):
    def fail(*_, **__):
        raise OSError("g++ not found")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    model, guide = pair(some)
    with pytest.raises(RuntimeError, match=r"g\+\+ not found.*use Trace_ELBO"):
        CompiledELBO().loss_and_grads(model, guide, some)


def test_state_in_deep_places_is_found_in_time(some, uncompiled):
    table = {"beta": 1.0}
    model, guide = pair(some, Plain(lambda self, z: table["beta"]))
    compiled = CompiledELBO()
    compiled.loss_and_grads(model, guide, some)
    table["beta"] = 2.0
    for _ in range(9):
        compiled.loss_and_grads(model, guide, some)
    with pytest.raises(NotImplementedError, match="state that changes"):
        compiled.loss_and_grads(model, guide, some)
