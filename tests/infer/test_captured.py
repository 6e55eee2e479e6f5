"""CapturedSVI against SVI: the same numbers, or a refusal."""

import math
import random
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.nn import PyroParam

import zoo
from guides import Amortized, MeanField
from zoo import PPCA, VAE
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.captured import CapturedSVI
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused

pytestmark = pytest.mark.usefixtures("own_store")


def gradients(svi, *args, seed=5):
    """The loss and the gradients of all parameters at a seed, without a step."""
    found = {}

    def note(params):
        found.update({p: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params})

    before, svi.optim = svi.optim, note
    with seeded(seed):
        loss = svi.step(*args)
    svi.optim = before
    return torch.tensor(loss, dtype=torch.float64), found


def assert_same(captured, *args):
    """A step of the graph gives the loss and the gradients of SVI."""
    known = list(captured._graphs.values())
    ours, our_gradients = gradients(captured, *args)
    assert list(captured._graphs.values()) == known, "this step was not the graph's"
    right, right_gradients = gradients(SVI(captured.model, captured.guide, Fused(), captured.objective), *args)
    close = 5e-7 if args[0].dtype == torch.float32 else 1e-12
    assert abs(ours - right) <= close * abs(right)
    assert our_gradients.keys() == right_gradients.keys()
    for p, other in right_gradients.items():
        assert (our_gradients[p] - other).norm() <= close * (1e-3 + other.norm())


def captured_svi(model, guide, *args, loss=None):
    """After the first step, which records the graph."""
    svi = CapturedSVI(model, guide, Fused(optim_args={"lr": 1e-3}), Trace_ELBO() if loss is None else loss)
    svi.step(*args)
    assert not svi.refused
    return svi


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


def pair(x, model=None, **options):
    model = PPCA(4, 2) if model is None else model
    if isinstance(model, Module):
        model.to(x)
    return model, MeanField(model, x, **{"closed_form": False, **options})


# --- the same numbers ----------------------------------------------------------------------------


PAIRS = {
    "PPCA x MeanField": lambda x: pair(x),
    "PPCA x Amortized": lambda x: amortized(PPCA(4, 2), x, hidden=()),
    "PPCA x full Amortized": lambda x: amortized(PPCA(4, 2), x, hidden=(4,), covariance="full"),
    "VAE x Amortized": lambda x: amortized(VAE(4, 2, hidden=(8,)), x, hidden=(8,)),
    "GMM x MeanField": lambda x: pair(x, zoo.GMM(4, 2), closed_form=False),  # a score function
    "a decorated pair": lambda x: (poutine.scale(pair(x)[0], 0.5), pair(x)[1]),
    "a function held at its parameters": lambda x: pair(x, held(x.new_full((4, 2), 3.0))),
}


def factors(x=None, index=None, size=None):
    weight = pyro.param("weight", torch.ones(4, 2))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(weight.new_zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ weight.T, 1.0).to_event(1), obs=x)


def held(weight):
    """As the calibration holds a model while it fits the guide anew."""
    return poutine.block(poutine.substitute(factors, data={"weight": weight}), hide_types=["param"])


def amortized(model, x, **options):
    model.to(x)
    return model, Amortized(model, x, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", PAIRS)
def test_gradients_are_those_of_svi(some, which, dtype):
    x = some.to(dtype)
    model, guide = PAIRS[which](x)
    index = torch.arange(0, 60, 2)
    svi = captured_svi(model, guide, x[index], index, 60)
    assert_same(svi, x[index], index, 60)
    assert_same(svi, x[index + 1], index + 1, 60)


@pytest.mark.parametrize(
    "loss",
    [Trace_ELBO(num_particles=3), Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1), QuadratureELBO()],
)
def test_particles_and_quadrature(some, loss):
    model, guide = pair(some)
    assert_same(captured_svi(model, guide, some, loss=loss), some)


def test_other_shapes_and_missing_rows_have_their_own_graphs(some):
    model, guide = pair(some)
    svi = captured_svi(model, guide, some[:40], torch.arange(40), 60)
    svi.step(some[40:], torch.arange(40, 60), 60)
    assert len(svi._graphs) == 2
    gaps = some[:40].clone()
    gaps[3, 1] = torch.nan
    svi.step(gaps, torch.arange(40), 60)
    assert len(svi._graphs) == 3
    assert_same(svi, some[:40], torch.arange(40), 60)
    assert_same(svi, gaps, torch.arange(40), 60)
    assert_same(svi, some[40:], torch.arange(40, 60), 60)


def test_buffers_are_read_and_numbers_watched(some):
    model, guide = pair(some, Plain(lambda self, z: 1.0 + self.seen))
    svi = captured_svi(model, guide, some)
    graph = next(iter(svi._graphs.values()))
    model.seen.add_(1.0)  # a buffer is read anew at every step
    assert_same(svi, some)
    for change in (
        lambda: setattr(model, "beta", 0.5),
        lambda: setattr(model, "seen", torch.ones(()).double()),
        lambda: setattr(model, "twist", lambda self, z: 3.0),
    ):
        change()
        svi.step(some)
        now = next(iter(svi._graphs.values()))
        assert now is not graph, "recorded anew"
        assert_same(svi, some)
        graph = now


def test_closures_of_functions_are_watched(some):
    weight = 1.0

    def model(x=None, index=None, size=None):
        loc = pyro.param("loc", torch.zeros(4).double())
        with rows(x, index, size):
            pyro.sample("x", dist.Normal(loc * weight, 1.0).to_event(1), obs=x)

    svi = captured_svi(model, lambda x=None, index=None, size=None: None, some)
    weight = 2.0
    ordinary = SVI(model, svi.guide, Fused(), Trace_ELBO())
    assert svi.step(some) == pytest.approx(ordinary.evaluate_loss(some), rel=0.05)
    assert_same(svi, some)


def test_frozen_parameters_stay(some):
    model, guide = pair(some, Plain())
    dict(model.named_parameters())["weight_unconstrained"].requires_grad_(False)
    before, loc = model.weight.clone(), guide.loc.clone()
    svi = captured_svi(model, guide, some)
    for _ in range(3):
        svi.step(some)
    assert torch.equal(model.weight, before)
    assert not torch.equal(guide.loc, loc)


# --- in fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_size": 25}, {"autocast": torch.bfloat16}])
@pytest.mark.parametrize("optim", [None, lambda: Fused(clip_norm=1.0), lambda: pyro.optim.ClippedAdam({"lr": 0.01})])
def test_fit_takes_the_steps_of_svi(some, optim, options):
    runs = []
    for capture in (False, True):
        torch.manual_seed(1)
        model, guide = pair(some)
        own = {**options, "optim": optim and optim(), "capture": capture, "loss": Trace_ELBO()}
        runs.append(zoo.fit(model, guide, some, steps=40, seed=3, progress=False, **own))
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=1e-9, atol=1e-9)
    for one, other in zip(runs[0].guide.parameters(), runs[1].guide.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
        assert not one.is_inference()


@pytest.mark.parametrize("free_bits", [0.0, 0.1])
def test_an_annealed_weight_is_that_of_the_step(some, free_bits):
    runs = []
    for capture in (False, True):
        torch.manual_seed(1)
        model, guide = pair(some)
        loss = zoo.infer.AnnealedELBO(zoo.infer.linear_warmup(20), free_bits)
        own = {"capture": capture, "loss": loss, "batch_size": 20}
        runs.append(zoo.fit(model, guide, some, steps=40, progress=False, **own))
        assert loss.step == 40
    torch.testing.assert_close(runs[1].losses, runs[0].losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["plain", "doubly", "wake-sleep"])
def test_losses_with_draws_of_their_own(some, estimator):
    loss = zoo.infer.WakeSleep(2) if estimator == "wake-sleep" else zoo.infer.IWAE(5, estimator=estimator)
    model, guide = amortized(VAE(4, 2, hidden=(8,)), some, hidden=(8,))
    index = torch.arange(0, 60, 2)
    for args in ((some,), (some[index], index, 60)):
        assert_same(captured_svi(model, guide, *args, loss=loss), *args)


def test_every_step_draws_anew(some):
    model, guide = pair(some)
    svi = captured_svi(model, guide, some)
    assert len({svi.step(some) for _ in range(5)}) == 5


def test_the_plan_says_how_steps_are_taken(some):
    model, guide = pair(some)

    def answer(**options):
        answers = zoo.plan(model, guide, some, **{"loss": Trace_ELBO(), **options}).answers
        return next((row.answer, row.why) for row in answers if row.question == "graph")

    assert answer(steps=1000) == ("recorded at the first step, run by the later ones", "it pays from 100 steps on")
    assert answer(steps=1000, batch_size=20)[1] == "it pays from 100 steps on"
    assert answer(steps=1000, batch_size=25)[1] == "it pays from 200 steps on"
    assert answer(steps=99) == ("none", "a graph pays from 100 steps on")
    assert answer(steps=100, capture=True)[1] == "capture is True"
    assert answer(steps=1000, capture=False) == ("none", "capture is False")
    assert "LBFGS" in zoo.plan(model, guide, some).summary()["optimizer"]
    assert zoo.plan(model, guide, some, capture=True).summary()["graph"] == "none"
    assert "RenyiELBO is not among" in answer(loss=RenyiELBO(num_particles=5), capture=True)[1]


def test_a_loss_that_is_not_finite_is_found_at_its_step(some):
    model, guide = pair(some)

    def spoil(step, loss):
        if step == 20:
            with torch.no_grad():
                guide.loc.fill_(math.nan)

    with pytest.raises(zoo.infer.Diverged) as error:
        zoo.fit(model, guide, some, steps=50, loss=Trace_ELBO(), capture=True, progress=False, callbacks=[spoil])
    assert error.value.step == 21
    assert len(error.value.run.losses) == 21
    assert torch.isfinite(guide.loc).all()


# --- refusals ------------------------------------------------------------------------------------


def counts(self, z):
    self.calls += 1
    return 1.0


def counts_in_a_buffer(self, z):
    self.seen.add_(1.0)
    return 1.0


TWISTS = {
    "branches on a draw": (lambda self, z: 1.0 if torch.rand(()) > 0.5 else 2.0, "takes a number out"),
    "branches on a parameter": (lambda self, z: 1.0 if self.weight[0, 0] > 0 else 2.0, "takes a number out"),
    "takes a number": (lambda self, z: 1.0 + z.detach().abs().mean().item(), "takes a number out"),
    "draws in Python": (lambda self, z: 1.0 + random.random(), "randomness outside torch"),
    "reads through numpy": (lambda self, z: 1.0 + abs(float(z.detach().numpy().mean())), "through numpy"),
    "counts": (counts, "changes its own"),
    "counts in a buffer": (counts_in_a_buffer, "writes to a tensor"),
}


@pytest.mark.parametrize("name", TWISTS)
def test_what_a_graph_cannot_hold_is_trained_by_svi(some, name):
    twist, why = TWISTS[name]
    model, guide = pair(some, Plain(twist))
    svi = CapturedSVI(model, guide, Fused(optim_args={"lr": 0.01}), Trace_ELBO())
    with pytest.warns(UserWarning, match=rf"steps of Plain with MeanField run without a graph: .*{why}"):
        svi.step(some)
    for _ in range(3):
        svi.step(some)  # without a further warning
    assert not svi._graphs


def test_a_closed_form_guide_and_outer_handlers_are_left_to_svi(some):
    model = PPCA(4, 2).double()
    guide = MeanField(model, some, closed_form=True)
    svi = CapturedSVI(model, guide, Fused(), Trace_ELBO())
    with pytest.warns(UserWarning, match="writes to a tensor|takes a number out"):
        svi.step(some)
    svi = captured_svi(*pair(some), some)
    with seeded(1):
        whole = svi.step(some)
    with seeded(1), poutine.scale(scale=0.5):
        assert svi.step(some) == pytest.approx(0.5 * whole, rel=0.01)


def test_attributes_that_change_at_every_step_end_the_recording(some):
    model, guide = pair(some, Plain())
    svi = captured_svi(model, guide, some)
    for step in range(15):
        model.beta = 2.0 + step
        svi.step(some)
    model.beta = 1.0
    with pytest.warns(UserWarning, match="changed 16 times"):
        svi.step(some)
    assert svi.refused


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own["deep"][0].update(scale=2.0),
        lambda own: own["deep"].append(1.0),
        lambda own: own.update(more=torch.ones(())),
        lambda own: setattr(own["object"], "scale", 2.0),
        lambda own: setattr(own["object"], "scale", torch.ones(())),
    ],
)
def test_state_deep_inside_a_model_is_watched(some, change):
    model = Plain(lambda self, z: self.own["deep"][0]["scale"] + self.own["object"].scale)
    model.own = {"deep": [{"scale": 1.0}], "object": types.SimpleNamespace(scale=0.5)}
    guide = pair(some, model)[1]
    svi = captured_svi(model, guide, some)
    assert_same(svi, some)
    graph = next(iter(svi._graphs.values()))
    change(model.own)
    svi.step(some)
    assert next(iter(svi._graphs.values())) is not graph, "recorded anew"
    assert_same(svi, some)


def test_state_that_cannot_be_watched_is_refused(some):
    model = Plain(lambda self, z: 1.0 + float(self.own["scale"][0]))
    model.own = {"scale": np.ones(1)}
    guide = pair(some, model)[1]
    svi = CapturedSVI(model, guide, Fused(), Trace_ELBO())
    with pytest.warns(UserWarning, match="holds a value of type ndarray"):
        svi.step(some)


def test_a_pair_that_fails_at_other_parameters_is_refused(some):
    def model(x=None, index=None, size=None):
        loc = pyro.param("loc", torch.zeros(4).double())
        root = torch.linalg.cholesky((1 - 5e4 * (loc - loc.mean()).square()).diag())  # as near as an optimizer's step
        with rows(x, index, size):
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=root), obs=x)

    svi = CapturedSVI(model, lambda x=None, index=None, size=None: None, Fused(), Trace_ELBO())
    with pytest.warns(UserWarning, match="it fails at other parameters"):
        svi.step(some)
    assert pyro.param("loc").abs().max() < 0.011, "only the optimizer's step is left"
    svi.step(some)
