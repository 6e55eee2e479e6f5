"""Natural gradients on bounds in closed form: coordinate ascent step by step, and stochastic variational inference."""


import pyro
import pytest
import torch
from pyro.infer import SVI

import guides
import zoo
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.optim.natural import NaturalGradient
from zoo.models.linear_ascent import (
    GaussianFactor,
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


@pytest.mark.parametrize("name", ["pca", "factors", "mixture"])
def test_all_rows_at_once_end_at_the_bound_of_coordinate_ascent(name, iris, faithful):
    x = faithful if name == "mixture" else iris
    model = mixture() if name == "mixture" else linear(name, 1)
    model, guide, ascent = started(model, x, sweeps=1)
    optim = NaturalGradient(guide)
    rounds = 400
    run = zoo.fit(
        model, guide, x, loss=ClosedFormELBO(), optim=optim, steps=rounds * len(optim.parts), progress=False
    )
    for _ in range(4000):
        ascent.sweep()
    bound = ascent.bound()
    assert abs(-run.losses[-1] * len(x) - bound) <= 1e-8 * bound.abs()
    assert (run.losses.diff() <= 1e-12 * run.losses.abs().max()).all()  # the bound never falls


@pytest.mark.parametrize("name", ["pca", "factors", "mixture"])
def test_minibatches_end_near_the_bound_of_coordinate_ascent(name, iris, faithful):
    x = faithful if name == "mixture" else iris
    model = mixture() if name == "mixture" else linear(name, 1)
    model, guide, ascent = started(model, x, sweeps=1)
    size = len(x) // 10
    steps = 50 * -(-len(x) // size)
    run = zoo.fit(
        model, guide, x, loss=ClosedFormELBO(), optim=NaturalGradient(guide), batch_size=size, steps=steps, progress=False
    )
    for _ in range(4000):
        ascent.sweep()
    with run.scope():
        bound = -ClosedFormELBO().loss(model, guide, x)
    print(name, float(ascent.bound()), bound, (float(ascent.bound()) - bound) / len(x))
    assert (ascent.bound() - bound) / len(x) < 1e-3
