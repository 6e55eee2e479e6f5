"""Fused against Pyro's optimizers and plain torch; L-BFGS as a step of SVI; the schedules."""

import copy
import math
from itertools import pairwise

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import zoo
from guides import Exact, MeanField
from zoo import PPCA
from zoo.base.schedules import cosine
from zoo.infer.line_search import LineSearchSVI
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.settling import Settling

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def pair(some):
    model = PPCA(4, 2).double()
    model.initialize(some)
    return model, MeanField(model, some)


def run(pair, optim, x, steps):
    """Steps of Pyro's SVI, each with draws of its own seed."""
    svi = SVI(*pair, optim, Trace_ELBO())
    losses = []
    for step in steps:
        pyro.set_rng_seed(step)
        losses.append(svi.step(x))
    return losses


def flat(pair):
    return torch.cat([p.detach().flatten() for module in pair for p in module.parameters()])


def leaf(*values):
    return torch.tensor(values).double().requires_grad_()


def push(optim, gradients):
    """One step for some tensors by given gradients."""
    for parameter, gradient in gradients.items():
        parameter.grad = torch.as_tensor(gradient).double()
    optim(set(gradients))


# --- Fused ---------------------------------------------------------------------------------------


def test_one_adam_for_all_goes_where_pyros_many_go(pair, some):
    other, start = copy.deepcopy(pair), flat(pair)
    ours = run(pair, Fused(torch.optim.Adam, {"lr": 0.02}), some, range(25))
    theirs = run(other, Adam({"lr": 0.02}), some, range(25))
    assert ours == pytest.approx(theirs, rel=1e-10)
    torch.testing.assert_close(flat(pair), flat(other), rtol=1e-10, atol=1e-10)
    assert ((flat(pair) - start).abs() > 1e-6).all()  # every parameter has moved


def test_the_schedule_scales_the_rate():
    optim = Fused(torch.optim.SGD, {"lr": 2.0}, schedule=[1.0, 0.5, 0.0].__getitem__)
    p, path = leaf(0.0), []
    for _ in range(3):
        push(optim, {p: [1.0]})
        path.append(p.item())
    assert path == [-2.0, -3.0, -3.0]


def test_the_norm_of_the_whole_gradient_is_clipped():
    p, q = leaf(0.0, 0.0), leaf(0.0)
    optim = Fused(torch.optim.SGD, {"lr": 1.0}, clip_norm=1.0)
    push(optim, {p: [2.0, 3.0], q: [6.0]})  # of norm 7
    torch.testing.assert_close(
        torch.cat([p, q]).detach(), -torch.tensor([2.0, 3.0, 6.0]).double() / 7, rtol=1e-5, atol=0
    )
    p, q = leaf(0.0, 0.0), leaf(0.0)
    optim = Fused(torch.optim.SGD, {"lr": 1.0}, clip_norm=8.0)
    push(optim, {p: [2.0, 3.0], q: [6.0]})
    assert torch.cat([p, q]).tolist() == [-2.0, -3.0, -6.0]
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        Fused(clip_norm=0.0)


def test_parameters_may_join_later():
    p, q, twin_p, twin_q = leaf(0.0), leaf(0.0), leaf(0.0), leaf(0.0)
    optim, apart = Fused(torch.optim.Adam, {"lr": 0.1}), {}
    for step in range(6):
        gradients = {p: [math.cos(step)]} if step < 3 else {p: [math.cos(step)], q: [step - 4.5]}
        push(optim, gradients)
        for mine, twin in ((p, twin_p), (q, twin_q)):
            if mine in gradients:
                apart.setdefault(twin, torch.optim.Adam([twin], lr=0.1))
                twin.grad = torch.tensor(gradients[mine]).double()
                apart[twin].step()
    torch.testing.assert_close(torch.cat([p, q]), torch.cat([twin_p, twin_q]), rtol=1e-12, atol=1e-12)
    assert q.item() != 0


def test_a_state_resumes_as_if_nothing_had_happened(pair, some):
    def fresh():
        return Fused(torch.optim.Adam, {"lr": 0.1}, schedule=cosine(10), clip_norm=50.0)

    optim = fresh()
    run(pair, optim, some, range(5))
    state, halfway = copy.deepcopy(optim.get_state()), copy.deepcopy(pair)
    run(pair, optim, some, range(5, 10))
    resumed, restarted = copy.deepcopy(halfway), copy.deepcopy(halfway)
    optim = fresh()
    optim.set_state(state)
    run(resumed, optim, some, range(5, 10))
    assert torch.equal(flat(resumed), flat(pair))
    assert optim.steps == 10
    run(restarted, fresh(), some, range(5, 10))
    assert not torch.allclose(flat(restarted), flat(pair))  # the state matters


# --- schedules -----------------------------------------------------------------------------------


def test_cosine():
    schedule = cosine(100, start=10)
    assert [schedule(step) for step in (0, 5, 10)] == [1.0, 1.0, 1.0]
    assert schedule(60) == pytest.approx(0.5)
    assert schedule(35) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule(110) == schedule(500) == 0.0


def play(settling, losses):
    """The factors on the rate, until the schedule has settled."""
    factors = []
    for step in range(len(losses)):
        factors.append(settling(step))
        if settling.settled(step, lambda seen=losses[: step + 1]: seen):
            break
    return factors


def test_settling_holds_while_the_bound_rises_and_halves_the_rate_when_it_does_not():
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0)).tolist()
    plateau = 600
    losses = [0.1 * max(plateau - step, 0) + noise[step] for step in range(4000)]
    settling = Settling(4000, window=100)
    factors = play(settling, losses)
    first = next(step for step, factor in enumerate(factors) if factor < 1) - 1
    assert settling.annealed == first
    assert (
        plateau < first <= plateau + 301
    )  # two windows without a gain are needed to see it, and the first may straddle
    assert factors[first + settling.length] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(factors))
    assert len(factors) == first + 6 * settling.length
    assert factors[-1] == pytest.approx(1 / 64, rel=0.01)


def test_settling_goes_on_while_lower_rates_raise_the_bound():
    """Where the cost of a rate is ten times as high, three more halvings are needed until no gain is seen."""
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(0.01).tolist()
    counts = []
    for cost in (1.0, 10.0):
        settling = Settling(20_000, window=100)
        losses = []
        while not (losses and settling.settled(len(losses) - 1, lambda seen=losses: seen)):
            losses.append(cost * settling(len(losses)) + noise[len(losses)])
        counts.append((len(losses) - settling.start) / settling.length)
    assert counts[0] >= 6
    assert counts[1] >= counts[0] + 2


def test_settling_lowers_the_rate_before_the_budget_ends_and_does_not_call_it_settled():
    losses = [-float(step) for step in range(2000)]  # never settles
    settling = Settling(2000, window=100)
    factors = play(settling, losses)
    assert len(factors) == 2000
    assert factors[400] == 1.0
    assert factors[-1] < 0.02
    assert settling.forced
    assert settling.annealed is None


def test_settling_with_a_fixed_budget_is_one_cosine():
    factors = play(Settling(100, patient=False), [0.0] * 100)
    assert factors == [cosine(100)(step) for step in range(100)]


# --- L-BFGS --------------------------------------------------------------------------------------


class Noted(Trace_ELBO):
    """Keeps the state of the random stream and the loss at every evaluation."""

    def __init__(self):
        super().__init__()
        self.streams, self.values = [], []

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.streams.append(torch.get_rng_state())
        self.values.append(super().loss_and_grads(model, guide, *args, **kwargs))
        return self.values[-1]


def test_a_line_search_in_a_loop_of_ones_own_reaches_ems_optimum(iris):
    reference = zoo.em(PPCA(4, 2).double(), iris)[-1].item()
    model = PPCA(4, 2).double()
    model.initialize(iris)
    svi = LineSearchSVI(model, Exact(model), LBFGS(), Noted())
    losses = [svi.step(iris) for _ in range(60)]
    assert -losses[-1] / 150 == pytest.approx(reference / 150, abs=1e-6)
    assert (torch.tensor(losses).diff() <= 1e-9).all()  # every line search ends lower
    assert losses[0] - losses[-1] > 10


def test_a_line_search_evaluates_about_once_per_iteration(iris):
    model = PPCA(4, 2).double()
    model.initialize(iris)
    noted = Noted()
    svi = LineSearchSVI(model, Exact(model), LBFGS(), noted)
    for _ in range(25):
        svi.step(iris)
    assert svi.evaluations == len(noted.values)
    assert 25 < len(noted.values) <= 40  # most first trials of the line search are accepted, and none is made twice


def test_a_line_search_sees_the_same_draws_at_every_evaluation(pair, some, untouched):
    model, guide = pair
    noted = Noted()
    svi = LineSearchSVI(model, guide, LBFGS(), noted)
    before = torch.get_rng_state()
    losses = [svi.step(some) for _ in range(10)]
    assert len(noted.streams) > 10
    assert all(torch.equal(state, noted.streams[0]) for state in noted.streams)
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.tensor(losses).diff() < 0).all()  # with fresh draws the noise of a step would exceed its gain
    assert svi.evaluate_loss(some) == svi.evaluate_loss(some)


def test_a_plain_svi_cannot_search_a_line(pair, some):
    svi = SVI(*pair, LBFGS(), Trace_ELBO())
    with pytest.raises(RuntimeError, match=r"use zoo\.infer\.LineSearchSVI"):
        svi.step(some)


def test_a_line_search_notices_other_data(iris):
    model = PPCA(4, 2).double()
    model.initialize(iris)
    svi = LineSearchSVI(model, Exact(model), LBFGS(), Trace_ELBO())
    for rows in (iris[:50], iris[50:], iris[50:].clone(), iris[:50]):
        expected = -model.log_marginal(rows).sum().item()
        assert svi.step(rows) == pytest.approx(expected, rel=1e-8)


def test_a_line_search_notices_parameters_that_others_move(iris):
    model = PPCA(4, 2).double()
    model.initialize(iris)
    svi = LineSearchSVI(model, Exact(model), LBFGS(), Trace_ELBO())
    for _ in range(3):
        svi.step(iris)
        with torch.no_grad():
            model.weight.mul_(1.1)
        expected = -model.log_marginal(iris).sum().item()
        assert svi.step(iris) == pytest.approx(expected, rel=1e-8)


def test_late_parameters_join(pair, some):
    model, guide = pair
    svi = LineSearchSVI(model, guide, LBFGS(), QuadratureELBO(), late=model.parameters(), since=5)
    start = [p.detach().clone() for p in model.parameters()]
    losses = [svi.step(some) for _ in range(5)]
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), start, strict=True))
    assert losses[-1] < losses[0] - 0.1  # the E-step
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))  # nothing has piled up
    more = [svi.step(some) for _ in range(20)]
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), start, strict=True))
    assert more[-1] < losses[-1] - 0.1
    assert (torch.tensor(losses + more).diff() <= 1e-9).all()
