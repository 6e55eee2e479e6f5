"""The Bayesian models with their latent variables integrated out at draws of their parameters."""

import math
import sys

import pyro
import pytest
import torch
from pyro import poutine

import zoo
from guides import MeanField
from zoo.algebra import linear_gaussian

ALGEBRA = 1e-9
LINEAR = {
    "PCA": lambda: zoo.BayesianPCA(4, 2),
    "PCA without mean": lambda: zoo.BayesianPCA(4, 2, mean=False),
    "FA": lambda: zoo.BayesianFactorAnalysis(4, 2),
}
MIXTURES = {
    f"{covariance} {means} {proportions}": (covariance, means, proportions)
    for covariance in ("full", "tied", "diag", "spherical")
    for means, proportions in (("independent", "dirichlet"), ("coupled", "sticks"))
}


def mixture(name, d=4, k=3):
    covariance, means, proportions = MIXTURES[name]
    return zoo.BayesianGMM(d, k, covariance, means=means, proportions=proportions)


def drawn(model, draws=3):
    """Draws of the shared sites, from the prior with its broad Gammas replaced by tame ones."""
    found = []
    for _ in range(draws):
        nodes = poutine.trace(model).get_trace(size=1).nodes
        found.append({name: nodes[name]["value"] for name in model.families if name not in ("z", "component")})
    values = {name: torch.stack([own[name] for own in found]) for name in found[0]}
    if "relevance" in values:
        values["weight"] = torch.randn_like(values["weight"])
        values["precision"] = 0.5 + torch.rand_like(values["precision"])
    return values


def density(model, values, x):
    """log p(x, local sites | theta) of every row (n,), with the shared sites held and summed terms left out."""
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x)
    trace.compute_log_prob()
    local = [name for name in ("z", "component", "x") if name in trace.nodes]
    return sum(trace.nodes[name]["log_prob"] for name in local)


@pytest.fixture
def gappy(some):
    return torch.where(torch.rand(some.shape) < 0.3, math.nan, some)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_factors_integrate_out(name, missing, some, gappy, monkeypatch):
    model, x = LINEAR[name]().double(), gappy if missing else some
    values = drawn(model)
    found = model.log_marginal_given(x, values)
    assert found.shape == (3, 60)
    for i in range(3):
        own = {key: value[i] for key, value in values.items()}
        mean = own.get("mean", torch.zeros(4).double())
        posterior = linear_gaussian.posterior(x, own["weight"], mean, (1 / own["precision"]).expand(4))
        z = posterior.sample()
        joint = density(model, {**own, "z": z}, x)
        torch.testing.assert_close(found[i], joint - posterior.log_prob(z), rtol=ALGEBRA, atol=ALGEBRA)
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 100)  # chunks of rows and draws
    torch.testing.assert_close(model.log_marginal_given(x, values), found, rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_components_sum_out(name, missing, some, gappy):
    model, x = mixture(name).double(), gappy if missing else some
    model.initialize(some)
    values = drawn(model)
    found = model.log_marginal_given(x, values)
    for i in range(3):
        own = {key: value[i] for key, value in values.items()}
        each = [density(model, {**own, "component": torch.full((60,), j)}, x) for j in range(3)]
        tol = 1e-6 if missing else 1e-8  # the marginal is that of an inverse, of badly conditioned draws
        torch.testing.assert_close(found[i], torch.stack(each).logsumexp(0), rtol=tol, atol=tol)


def test_a_row_without_entries_has_density_one(some):
    model = mixture("full coupled sticks").double()
    run = zoo.cavi(model, some, restarts=1)
    new = torch.full((2, 4), math.nan, dtype=torch.float64)
    assert zoo.diagnostics.predictive_density(run, new).log_density.tolist() == pytest.approx([0.0, 0.0])
    torch.testing.assert_close(model.log_marginal_given(new, run.sample(some, draws=3)), torch.zeros(3, 2).double())


@pytest.mark.parametrize("name", ["full independent dirichlet", "diag coupled sticks"])
def test_mixtures_with_missing_entries_are_judged(name, gappy):
    run = zoo.cavi(mixture(name).double(), gappy, restarts=2)
    found = zoo.evaluate(run, gappy, draws=200).shared
    assert found.log_marginal > float(run[-1])  # whose bound has a factor for the missing entries as well
    left_out = zoo.loo(run, gappy, draws=200)
    assert left_out.pointwise.isfinite().all()
    assert left_out.elpd < left_out.log_p.sum()


@pytest.mark.parametrize("name", ["PCA", "full independent dirichlet"])
def test_evaluate_takes_the_rows_exactly(name, some, monkeypatch):
    model = LINEAR[name]() if name in LINEAR else mixture(name)
    model = model.double()
    run = zoo.cavi(model, some, restarts=2)
    exact = zoo.evaluate(run, some, draws=200)
    monkeypatch.setattr(sys.modules["zoo.posterior.evaluation"], "ConjugateGivenShared", type(None))
    estimated = zoo.evaluate(run, some, draws=200, inner=200)
    error = estimated.shared.log_marginal_se + exact.shared.log_marginal_se
    assert abs(exact.shared.log_marginal - estimated.shared.log_marginal) < 5 * error
    assert exact.shared.log_marginal > float(run[-1])  # the bound


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", [name for name in MIXTURES if "coupled" in name])
def test_the_predictive_is_a_mixture_of_students_t(name, missing, some):
    model = mixture(name).double()
    run = zoo.cavi(model, some, restarts=2)
    new = some[:20] + 0.3 * torch.randn(20, 4).double()
    if missing:
        new[::2, 1:3] = math.nan
        new[3] = math.nan
    closed = zoo.diagnostics.predictive_density(run, new)
    assert closed.draws == 0
    assert not closed.se.any()
    with pyro.get_param_store().scope():
        gaussian = run.guide.factors()
    torch.testing.assert_close(closed.log_density, model.log_predictive(new, gaussian))
    model.log_predictive = lambda *_: None  # so that draws are taken
    estimated = zoo.diagnostics.predictive_density(run, new, draws=20_000)
    assert estimated.draws == 20_000
    # Twenty comparisons, with heavy tails in the draws: five standard errors.
    assert ((estimated.log_density - closed.log_density).abs() < 5 * estimated.se + 1e-3).all()


def test_a_univariate_mixture_normalises():
    x = torch.cat([torch.randn(30, 1), 4 + torch.randn(20, 1)]).double()
    angle = (torch.arange(20_000).double() + 0.5) * math.pi / 20_000 - math.pi / 2
    grid = angle.tan().unsqueeze(1)  # the tails of an empty component are Cauchy's
    for covariance in ("full", "tied", "diag", "spherical"):
        model = zoo.BayesianGMM(1, 3, covariance, means="coupled").double()
        run = zoo.cavi(model, x, restarts=2)
        found = zoo.diagnostics.predictive_density(run, grid).log_density.exp() @ (1 + grid.square())
        assert float(found) * math.pi / 20_000 == pytest.approx(1.0, abs=1e-6)


def test_a_guide_with_other_factors_gives_draws(some):
    model = mixture("diag coupled sticks").double()
    guide = MeanField(model, some, family="gaussian")
    found = zoo.diagnostics.predictive_density(zoo.Fit(model, guide), some[:10], draws=50)
    assert found.draws == 50
    assert found.log_density.isfinite().all()
