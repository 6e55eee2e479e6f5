"""Natural gradients on bounds in closed form: coordinate ascent step by step, and stochastic variational inference."""

from dataclasses import fields, replace

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam

import guides
import zoo
from guides.families import GaussianPart
from zoo.algebra.exponential_families import GaussianFactor
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.optim.natural import LocalFirstSVI, NaturalGradient, decaying, paced
from zoo.models.linear_ascent import (
    Inner,
    LinearMap,
    Rows,
    best_mean,
    best_precision,
    best_relevance,
    best_weight,
    best_z,
    inner_of,
    linear_factors,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def started(model, x, sweeps=3):
    """The model placed on x, its coordinate ascent some sweeps from a random start, and a guide at the same factors."""
    model.initialize(x)
    ascent = model.coordinate_ascent(x, torch.Generator().manual_seed(1))
    for _ in range(sweeps):
        ascent.sweep()
    guide = guides.MeanField(model, x, family="conjugate").double()
    guide.place(ascent.factors(x))
    return model, guide, ascent


def linear(name, k=2, **options):
    return {"pca": zoo.BayesianPCA, "factors": zoo.BayesianFactorAnalysis}[name](4, k, **options).double()


def mixture(covariance="full", **options):
    return zoo.BayesianGMM(2, 3, covariance, means="independent", **options).double()


def natural(factor):
    return [value.detach() for value in factor.natural]


def step_of(guide, site, model, x):
    """The factor of a site after a natural-gradient step of length one, all others held."""
    with pyro.get_param_store().scope():
        ClosedFormELBO().loss_and_grads(model, guide, x)
    latent = next(own for own in guide.conjugate.latents if own.name == site)
    part = guide.conjugate.part(latent)
    part.natural_step(1.0)
    guide.zero_grad()
    return part.factor()


def optima(model, guide, x):
    """What coordinate ascent sets each factor to, given the others as they are."""
    q, rows, priors = linear_factors(guide.factors()), Rows.of(x), model._priors()
    inner = inner_of(rows, q)
    z = best_z(rows, q)
    return {
        "z": z.factor(x) if isinstance(z, LinearMap) else z,
        "weight": best_weight(inner, q, priors),
        "mean": best_mean(rows, inner, q, priors),
        "relevance": best_relevance(q, priors),
        "precision": best_precision(rows, inner, q, priors),
    }


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["pca", "factors"])
@pytest.mark.parametrize("site", ["z", "weight", "mean", "relevance", "precision"])
def test_a_step_of_length_one_is_the_update_of_coordinate_ascent(name, site, missing, some):
    x = some.clone()
    if missing:
        x[::7, 1] = torch.nan
        x[3, 2:] = torch.nan
    model, guide, _ = started(linear(name), x)
    with torch.no_grad():
        expected = optima(model, guide, x)[site]
    found = step_of(guide, site, model, x)
    if isinstance(expected, GaussianFactor):
        torch.testing.assert_close(found.mean, expected.mean, **EXACT)
        torch.testing.assert_close(found.covariance, expected.covariance.expand_as(found.covariance), **EXACT)
    else:
        for a, b in zip(natural(found), natural(expected), strict=True):
            torch.testing.assert_close(a.reshape(b.shape), b, **EXACT)


@pytest.mark.parametrize("proportions", ["dirichlet", "sticks"])
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_a_round_of_steps_is_a_sweep_over_a_mixture(covariance, proportions, faithful):
    model, guide, ascent = started(mixture(covariance, proportions=proportions), faithful, sweeps=1)
    optim = NaturalGradient(guide)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, optim, ClosedFormELBO())
        for _ in range(3 * len(optim.parts) + 1):  # and the components once more, as ``ascent.factors`` has them
            svi.step(faithful)
    for _ in range(3):
        ascent.sweep()
    found, expected = guide.factors(), ascent.factors(faithful)
    torch.testing.assert_close(found["component"].mean, expected["component"].mean, **EXACT)
    for name in found.keys() - {"component"}:
        for a, b in zip(found[name].natural, expected[name].natural, strict=True):
            torch.testing.assert_close(a.detach(), b.expand_as(a), **EXACT)


def case(name, iris, faithful, sweeps=1000):
    """A model, its data, a guide at one sweep from a random start, and the bound of coordinate ascent from there."""
    if name == "mixture":
        model, x = mixture(), faithful
    elif name == "pca":
        model, x = linear("pca", 1), iris
    elif name == "Heywood":  # a noise variance near 0, where coordinate ascent takes 131 sweeps to 1e-3 nats per row
        model, x = linear("factors", 1), iris
    else:
        x = zoo.data.load("holzinger").x.double()
        model = zoo.BayesianFactorAnalysis(9, 1).double()
    model, guide, ascent = started(model, x, sweeps=1)
    for _ in range(sweeps):
        ascent.sweep()
    return model, guide, x, float(ascent.bound())


@pytest.mark.parametrize(("name", "rounds"), [("pca", 240), ("factors", 50), ("mixture", 60)])
def test_all_rows_at_once_end_at_the_bound_of_coordinate_ascent(name, rounds, iris, faithful):
    model, guide, x, bound = case(name, iris, faithful, sweeps=300)
    optim = NaturalGradient(guide)
    steps = rounds * len(optim.parts)
    run = zoo.fit(model, guide, x, loss=ClosedFormELBO(), optim=optim, steps=steps, progress=False)
    assert -float(run.losses[-1]) * len(x) == pytest.approx(bound, rel=1e-8)
    assert (run.losses.diff() <= 1e-12 * run.losses.abs().max()).all()  # the bound never falls


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pca", "factors", "Heywood", "mixture"])
def test_minibatches_end_near_the_bound_of_coordinate_ascent(name, iris, faithful):
    model, guide, x, bound = case(name, iris, faithful)
    size = len(x) // 10
    steps = 50 * -(-len(x) // size)
    optim = NaturalGradient(guide)
    run = zoo.fit(model, guide, x, optim=optim, batch_size=size, steps=steps, progress=False)
    assert run.settings["loss"] == "ClosedFormELBO"
    with run.scope():
        reached = -ClosedFormELBO().loss(model, guide, x)
    print(f"{name}: {(bound - reached) / len(x):.2g} nats per row below")
    assert (bound - reached) / len(x) < 1e-3


@pytest.mark.slow
def test_draws_and_adam_end_at_the_bound_of_coordinate_ascent(some):
    model, guide, ascent = started(linear("pca", 1), some, sweeps=1)
    for _ in range(1000):
        ascent.sweep()
    # What the draws of a step leave short falls with their number; a rate that falls to 0 takes the rest away.
    loss = Trace_ELBO(num_particles=10, vectorize_particles=True)
    run = zoo.fit(model, guide, some, loss=loss, steps=2000, progress=False)
    found = zoo.evaluate(run, some, draws=2000).shared
    with run.scope():
        exact = -ClosedFormELBO().loss(model, guide, some)
    bound = float(ascent.bound())
    print(f"bound {bound:.4f}, reached {exact:.4f}, by draws {found.total:.4f} +- {found.total_se:.4f}")
    assert abs(found.total - bound) < 5 * found.total_se
    assert exact <= bound + 1e-8


def test_only_the_rows_at_hand_move_and_by_their_own_optimum(some):
    model, guide, _ = started(linear("factors"), some)
    index = torch.tensor([40, 3, 17])
    before = guide.factors()["z"].mean.detach().clone()
    with torch.no_grad():
        expected = optima(model, guide, some)["z"].mean
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, NaturalGradient(guide, 0.1), ClosedFormELBO())
        svi.step(some[index], index, len(some))
    after = guide.factors()["z"].mean.detach()
    torch.testing.assert_close(after[index], expected[index], rtol=1e-8, atol=1e-8)
    rest = torch.ones(len(some), dtype=torch.bool)
    rest[index] = False
    assert torch.equal(after[rest], before[rest])


def test_shared_factors_follow_rows_at_their_optimum(some):
    """The local step comes first: shared factors move towards their optimum given the best factors of the rows."""
    model, guide, _ = started(linear("factors"), some)
    index, before = torch.arange(0, 60, 2), guide.factors()
    with torch.no_grad():
        start = [value.clone() for value in natural(before["weight"])]
        part = guide.conjugate.part(guide.conjugate.latents[-1])
        part.loc = torch.zeros_like(part.loc)  # far from its optimum
        rows, q = Rows.of(some[index]), linear_factors(before)
        inner = inner_of(rows, replace(q, z=best_z(rows, q)))
        twice = Inner(*(2 * getattr(inner, own.name) for own in fields(Inner)))  # half of the rows
        target = best_weight(twice, q, model._priors())
    with pyro.get_param_store().scope():
        svi = LocalFirstSVI(model, guide, NaturalGradient(guide, 0.25), ClosedFormELBO())
        svi.step(some[index], index, len(some))
    moved = natural(guide.factors()["weight"])
    for old, new, best in zip(start, moved, natural(target), strict=True):
        torch.testing.assert_close(new, old + 0.25 * (best - old), rtol=1e-8, atol=1e-8)


def test_the_schedule_is_laid_out_for_the_steps_to_come(some):
    _, guide, _ = started(linear("factors"), some)
    rates = paced(1000, 0.01)
    assert rates(0) == decaying()(0)
    assert rates(499) == pytest.approx(0.05)
    assert [rates(step) for step in (500, 750, 1000, 2000)] == pytest.approx([0.05, 0.01, 0.002, 0.002])
    assert all(0 < paced(steps, share)(step) <= 1 for steps in (1, 3) for share in (1e-6, 1.0) for step in range(steps))
    optim = NaturalGradient(guide)
    optim.steps = 7
    optim.pace(40)
    again = NaturalGradient(guide)
    again.set_state(optim.get_state())
    assert again.get_state() == optim.get_state()
    assert (again.get_state()["begun"], again.get_state()["planned"]) == (7, 40)


def test_rows_of_a_mixture_move_alone(faithful):
    model, guide, ascent = started(mixture(), faithful)
    index = torch.tensor([40, 3, 17])
    with torch.no_grad():
        part = guide.conjugate.part(guide.conjugate.latents[-1])
        part.logits.mul_(0.5)
        before = part.logits.clone()
    with pyro.get_param_store().scope():
        SVI(model, guide, NaturalGradient(guide), ClosedFormELBO()).step(faithful[index], index, len(faithful))
    expected = ascent.factors(faithful)["component"].mean
    torch.testing.assert_close(guide.factors()["component"].mean[index], expected[index], **EXACT)
    assert (part.logits != before).any(1).nonzero().flatten().tolist() == [3, 17, 40]


def test_a_component_that_a_row_has_lost_can_be_chosen_again(faithful):
    model, guide, ascent = started(mixture(), faithful)
    with torch.no_grad():
        guide.conjugate.part(guide.conjugate.latents[-1]).logits.mul_(-1e5)  # certain, wrongly: probabilities of 0
    expected = ascent.factors(faithful)["component"].mean
    step_of(guide, "component", model, faithful)
    found = step_of(guide, "component", model, faithful)
    torch.testing.assert_close(found.mean.detach(), expected, **EXACT)


def test_a_step_that_leaves_the_domain_is_halved():
    part = GaussianPart((2,), 2, torch.zeros(1, dtype=torch.float64))
    (-3.0 * part.factor().covariance[0].trace() + part.loc.sum()).backward()
    part.natural_step(1.0)  # the precision 1 - 6 rate is positive for the first member from rate 1/8 on
    covariance = part.factor().covariance.detach()
    torch.testing.assert_close(covariance[0], 4 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(covariance[1], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(part.loc[1], -torch.ones(2, dtype=torch.float64))
    part.loc.grad.fill_(0.0)
    part.get_parameter("scale_tril_unconstrained").grad.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="gradient holds NaN"):
        part.natural_step(1.0)


def test_other_parameters_take_another_optimizer(some):
    model, guide, _ = started(linear("pca"), some)
    extra = PyroParam(torch.ones(2, dtype=torch.float64))

    class Wider(PyroModule):
        def __init__(self):
            super().__init__("wider")
            self.inner, self.slope = guide, extra

        def forward(self, x=None, index=None, size=None):
            self.inner(x, index, size)
            pyro.factor("penalty", -(self.slope - 3).square().sum(), has_rsample=True)

    wider = Wider()
    optim = NaturalGradient(wider, decaying())
    with pyro.get_param_store().scope():
        svi = SVI(model, wider, optim, Trace_ELBO())
        svi.step(some)
    assert (wider.slope != 1).all()
    state = optim.get_state()
    assert state["steps"] == 1
    again = NaturalGradient(wider)
    again.set_state(state)
    assert again.steps == 1


def test_guides_without_factors_are_refused_by_name(some, faithful):
    plain = zoo.PPCA(4, 1).double()
    with pytest.raises(ValueError, match="no exponential-family factor in MeanField.*family='conjugate'"):
        NaturalGradient(guides.MeanField(plain, some))
    coupled = zoo.BayesianGMM(2, 2, means="coupled").double()
    with pytest.raises(ValueError, match="factor '.*mean' of MeanField.*means='independent'"):
        NaturalGradient(guides.MeanField(coupled, faithful))
    guide = started(linear("pca"), some)[1]
    with pytest.raises(ValueError, match="rate must be in"):
        NaturalGradient(guide, 1.5)
    with pytest.raises(ValueError, match="forgetting must be in"):
        decaying(forgetting=0.5)
    with pytest.raises(ValueError, match="delay must be at least 1"):
        decaying(delay=0.5)
