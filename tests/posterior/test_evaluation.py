"""zoo.evaluate: the identity log p(x) = ELBO + KL(q || p(z | x)), by closed forms and by draws."""

import math
import re
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import as_it_is, fit
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import kl_divergence
from user_models import Levels, LevelsGiven, levels_evidence, one_mean

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.plates import rows
from zoo.posterior.evaluation import evaluate, log_weights

MODELS = {
    "PPCA": lambda: zoo.PPCA(4, 2),
    "FactorAnalysis": lambda: zoo.FactorAnalysis(4, 2),
    "GMM": lambda: zoo.GMM(4, 2),
}
FAMILIES = {
    "MeanField": MeanField,
    "FullRank": FullRank,
    "Amortized": Amortized,
    "Amortized-full": lambda model, x: Amortized(model, x, hidden=(), covariance="full"),
    "Exact": lambda model, x: Exact(model),
}
CELLS = [(m, g) for m in MODELS for g in FAMILIES if m != "GMM" or g in ("MeanField", "Amortized", "Exact")]


def pair(name, family, x):
    """A conjugate model on the data and a guide some way off its posterior."""
    model = MODELS[name]().double()
    model.initialize(x)
    guide = FAMILIES[family](model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, guide


def as_full(q):
    """A factorised Gaussian as a multivariate one, for torch's KL divergence."""
    if isinstance(q, torch.distributions.Independent):
        return dist.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    return q


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_the_identity_in_closed_form(name, family, some, untouched):
    model, guide = pair(name, family, some)
    run = as_it_is(model, guide, some)
    with untouched():
        found = evaluate(run, some, draws=100)
    assert found.estimator == "exact"
    assert found.draws == 100
    assert (found.elbo_se == 0).all()
    assert (found.log_marginal_se == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(found.log_marginal, model.log_marginal(some), rtol=0, atol=1e-10)
        kl = kl_divergence(as_full(guide.posterior(some)), model.posterior(some))
    torch.testing.assert_close(found.gap, kl, rtol=1e-8, atol=1e-8)
    assert found.gap.shape == found.khat.shape == (len(some),)
    if family == "Exact":
        assert found.gap.abs().max() < 1e-8


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_draws_agree_with_the_closed_form(name, family, some):
    """The mean of the log weights is the bound, that of the weights the marginal: within five standard errors."""
    model, guide = pair(name, family, some)
    run = as_it_is(model, guide, some)
    with torch.no_grad():
        weights = log_weights(run, some, 1000)
        elbo = model.elbo(some, guide.posterior(some))
        assert weights.shape == (1000, len(some))
        assert ((weights.mean(0) - elbo).abs() <= 5 * weights.std(0) / 1000**0.5 + 1e-8).all()
        if name == "GMM" or family == "Exact":  # weights with a finite variance
            ratio = (weights - model.log_marginal(some)).exp()
            assert ((ratio.mean(0) - 1).abs() <= 5 * ratio.std(0) / 1000**0.5 + 1e-8).all()


@pytest.mark.parametrize("family", ["MeanField", "Amortized", "Exact"])
@pytest.mark.parametrize("budget", [1, 7 * 4 * 400], ids=["row by row", "7 rows"])
def test_chunks_of_rows(family, budget, some, monkeypatch):
    """Every chunk sees the parameters of its own rows, without the minibatch's factor n / b."""
    model, guide = pair("PPCA", family, some)
    run = as_it_is(model, guide, some)
    with torch.no_grad():
        monkeypatch.setattr("zoo.base.memory.NUMBERS", budget)
        weights = log_weights(run, some, 400)
        elbo = model.elbo(some, guide.posterior(some))
    assert weights.shape == (400, len(some))
    assert ((weights.mean(0) - elbo).abs() <= 5 * weights.std(0) / 400**0.5 + 1e-8).all()


def test_autoguide_by_draws(some):
    """No closed form is known for a guide of Pyro's: draws, which agree with the closed form of its Gaussian."""
    x = some[:20].float()
    model = zoo.PPCA(4, 2)
    guide = AutoNormal(model)
    run = fit(model, guide, x, steps=150)
    found = evaluate(run, x, draws=2000)
    with torch.no_grad():
        q = dist.Normal(guide.locs.z, guide.scales.z).to_event(1)
        elbo = model.elbo(x, q)
    assert (found.elbo_se > 0).all()
    assert found.estimator == "exact"
    assert ((found.elbo - elbo).abs() <= 5 * found.elbo_se).all()
    torch.testing.assert_close(found.gap_se, found.elbo_se)


def test_a_plain_function_by_draws(some):
    def guide(x, index=None, size=None):
        loc = pyro.param("loc", x.new_zeros(len(x), 2))
        with rows(x, index, size) as chosen:
            pyro.sample("z", dist.Normal(loc[chosen], 0.5).to_event(1))

    model = zoo.PPCA(4, 2).double()
    run = fit(model, guide, some, steps=50, optim=pyro.optim.Adam({"lr": 0.05}))
    found = evaluate(run, some, draws=1000)
    with run.scope(), torch.no_grad():
        elbo = model.elbo(some, dist.Normal(pyro.param("loc"), 0.5).to_event(1))
    assert ((found.elbo - elbo).abs() <= 5 * found.elbo_se).all()


@pytest.mark.filterwarnings("ignore::zoo.infer.guard.UnboundedLikelihood")  # one factor explains one column whole
@pytest.mark.parametrize("family", [MeanField, FullRank, Amortized])
def test_deep_model_by_importance_sampling(family, some):
    """IWAE-K above the bound, and at log p(x), here by quadrature over the one factor."""
    model = zoo.VAE(4, 1, hidden=(8,)).double()
    run = fit(model, family(model, some), some, steps=400)
    found = evaluate(run, some, draws=2000)
    assert found.estimator == "IWAE-2000"
    assert (found.gap > 0).all()
    assert (found.elbo_se > 0).all()
    assert (found.log_marginal_se > 0).all()
    with torch.no_grad():
        z = torch.linspace(-9, 9, 6001, dtype=torch.float64).reshape(-1, 1, 1)
        joint = model.decode(z).log_prob(some) - 0.5 * z.squeeze(-1).square() - 0.5 * math.log(2 * math.pi)
        exact = joint.logsumexp(0) + math.log(18 / 6000)
    sure = found.khat < 0.5  # where the weights have a finite variance
    assert sure.double().mean() > 0.5
    assert ((found.log_marginal - exact).abs() <= 5 * found.log_marginal_se + 1e-6)[sure].all()
    assert (found.elbo <= exact + 5 * found.elbo_se).all()


def test_the_gap_of_a_rotated_model(iris):
    """A mean-field guide is exact on canonical loadings; rotated, it misses by (sum log P_jj - log |P|) / 2 a row."""
    values, vectors = torch.linalg.eigh(torch.cov(iris.T, correction=0))
    noise = values[:2].mean()
    canonical = vectors[:, 2:] * (values[2:] - noise).sqrt()  # Tipping and Bishop's maximum likelihood
    model = zoo.PPCA(4, 2).double()
    model.mean, model.scale = iris.mean(0), noise.sqrt()
    model.requires_grad_(False)
    totals = []
    for angle in (0.0, math.pi / 8, math.pi / 4):
        c, t = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, -t], [t, c]], dtype=torch.float64)
        model.weight.copy_(canonical @ rotation)
        precision = torch.eye(2) + model.weight.T @ model.weight / model.scale**2
        expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
        run = fit(model, MeanField(model, iris), iris)
        found = evaluate(run, iris, draws=50)
        torch.testing.assert_close(found.gap, torch.full((150,), expected, dtype=torch.float64), rtol=0, atol=1e-6)
        totals.append(found.gap.sum().item())
    assert totals == pytest.approx([0.0, 80.75681, 118.73656], abs=1e-4)  # from the eigenvalues, by hand


@pytest.mark.parametrize("name", MODELS)
def test_khat_of_the_exact_posterior_is_at_its_floor(name, some):
    model, guide = pair(name, "Exact", some)
    found = evaluate(as_it_is(model, guide, some), some)
    assert (found.khat == -math.inf).all()


def test_khat_of_a_guide_that_is_too_narrow(some):
    """A Gaussian with a tenth of the posterior's width: the weights have no mean, k = 1 - 0.01."""
    model = zoo.PPCA(4, 1).double()
    model.initialize(some)
    guide = FullRank(model, some)
    posterior = model.posterior(some)
    guide.loc, guide.scale_tril = posterior.mean.detach(), 0.1 * posterior.scale_tril.detach()
    found = evaluate(as_it_is(model, guide, some), some, draws=2000)
    assert found.khat.median() > 0.7
    assert found.summary()["khat_above_0.7"] == pytest.approx((found.khat > 0.7).double().mean().item())


def test_same_seed_same_numbers(some):
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    run = fit(model, Amortized(model, some), some, steps=5)
    one, same, other = (evaluate(run, some, draws=30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.elbo, same.elbo)
    assert torch.equal(one.log_marginal, same.log_marginal)
    assert not torch.equal(one.elbo, other.elbo)


def test_new_rows_of_an_amortized_guide(iris):
    model = zoo.PPCA(4, 2).double()
    run = fit(model, Amortized(model, iris[::2], hidden=()), iris[::2], steps=50)
    found = evaluate(run, iris[1::2], draws=30)
    assert found.elbo.shape == (75,)
    assert (found.gap > -1e-9).all()


def test_evaluation_only_reads(some):
    model, guide = pair("PPCA", "MeanField", some)
    run = as_it_is(model, guide, some)
    before = [p.detach().clone() for m in (model, guide) for p in m.parameters()]
    evaluate(run, some, draws=30)
    after = [p.detach() for m in (model, guide) for p in m.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda x: x, {"draws": 29}, "draws must be at least 30"),
        (lambda x: x, {"draws": 0}, "draws must be a whole number"),
        (lambda x: x[:, :3], {}, "x has 3 columns, the model PPCA was built for data_dim=4"),
        (lambda x: x[:59], {}, "MeanField holds 60 rows, got 59"),
        (lambda x: x[:0], {}, "x is empty"),
        (lambda x: x / 0, {}, "in row 0, column 0"),
    ],
)
def test_refusals(change, settings, message, some, untouched):
    model, guide = pair("PPCA", "MeanField", some)
    run = as_it_is(model, guide, some)
    with untouched(), pytest.raises(ValueError, match=re.escape(message)) as caught:
        evaluate(run, change(some), **settings)
    assert "Trace Shapes" not in str(caught.value)  # as Pyro's traces append to an error


class Shared(PyroModule):
    """A model whose factor all rows share."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        level = pyro.sample("level", dist.Normal(self.scale.new_zeros(4), 1.0).to_event(1))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.scale.new_zeros(4), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(level + z, self.scale.exp()).to_event(1), obs=x)


def test_summary_and_repr(some):
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    run = fit(model, Amortized(model, some), some, steps=5)
    found = evaluate(run, some, draws=30)
    summary = found.summary()
    assert summary["elbo"] == pytest.approx(found.elbo.mean().item())
    assert summary["log_marginal"] - summary["elbo"] == pytest.approx(summary["gap"])
    assert summary["elbo_se"] == pytest.approx(found.elbo_se.square().sum().sqrt().item() / 60)
    assert summary["gap_se"] == pytest.approx(math.hypot(summary["elbo_se"], summary["log_marginal_se"]))
    assert 0 <= summary["khat_above_0.7"] <= 1
    text = repr(found)
    assert text.startswith("Evaluation of 60 rows")
    assert "IWAE-30" in text
    assert f"ELBO {summary['elbo']:.4f}" in text
    assert f"gap {summary['gap']:.4f}" in text


@pytest.mark.parametrize("name", ["AutoDiagonalNormal", "AutoMultivariateNormal"])
def test_a_guide_of_all_rows_together(iris, name):
    """The total is there; the rows' weights are not."""
    x = iris[:20]
    model = zoo.PPCA(4, 2).double()
    guide = getattr(pyro.infer.autoguide, name)(model)
    run = zoo.fit(model, guide, x, steps=300, progress=False)
    found = zoo.evaluate(run, x, draws=2000)
    with torch.no_grad():
        exact = float(model.log_marginal(x).sum())
    assert found.khat.isnan().all()
    assert found.total <= exact + 5 * found.shared.total_se
    assert found.total > exact - 40
    with pytest.raises(ValueError, match="is not a sum over rows"):
        found.gap  # noqa: B018


@pytest.mark.parametrize("name", ["AutoDelta", "AutoLaplaceApproximation"])
def test_refuses_a_point_mass(iris, name):
    model = zoo.PPCA(4, 2).double()
    guide = getattr(pyro.infer.autoguide, name)(model)
    run = zoo.fit(model, guide, iris[:20], steps=5, progress=False)
    with pytest.raises(ValueError, match=f"{name} has a point mass on 'z'"):
        zoo.evaluate(run, iris[:20])


# --- sites that all rows share -----------------------------------------------------------------


def evidence(x):
    """log p(X) of the normal-normal model: one Gaussian over all rows."""
    n = len(x)
    covariance = torch.eye(n, dtype=x.dtype) + 100.0
    return float(dist.MultivariateNormal(x.new_zeros(n), covariance).log_prob(x[:, 0]))


@pytest.mark.parametrize("family", [MeanField, "AutoNormal", "AutoMultivariateNormal"])
def test_evidence_of_one_shared_mean(family):
    x = 2 + torch.randn(60, 1, dtype=torch.float64)
    guide = getattr(pyro.infer.autoguide, family)(one_mean) if isinstance(family, str) else family(one_mean, x)
    run = fit(one_mean, guide, x)
    found = evaluate(run, x, draws=4000)
    truth = evidence(x)
    assert abs(found.shared.log_marginal - truth) <= 3 * found.shared.log_marginal_se
    assert abs(found.total - truth) <= 3 * found.shared.total_se + 1e-3  # what training leaves
    assert found.shared.khat < 0.5
    assert found.shared.sites == ("mean",)
    assert float(found.rows.sum()) + found.shared.bound == pytest.approx(found.total, rel=1e-10)
    assert "over all rows: bound" in repr(found)
    assert found.frame().height == 60


@pytest.mark.parametrize("budget", [2**24, 40 * 1000], ids=["at once", "in chunks"])
@pytest.mark.parametrize("kind", [Levels, LevelsGiven])
def test_evidence_of_shared_and_local_sites(kind, budget, monkeypatch):
    monkeypatch.setattr("zoo.base.memory.NUMBERS", budget)
    x = 1 + torch.randn(40, 1, dtype=torch.float64)
    model = kind()
    run = fit(model, MeanField(model, x), x, steps=1500)
    found = evaluate(run, x, draws=1000)
    truth = levels_evidence(x)
    assert abs(found.shared.log_marginal - truth) <= 4 * found.shared.log_marginal_se + 0.02
    assert found.total < truth
    assert found.shared.khat < 0.7
    assert (found.khat < 0.7).double().mean() > 0.9


class OneByOne(Levels):
    """The same, refusing to see two draws of the level at once."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        level = pyro.sample("level", dist.Normal(zero, 2.0))
        assert level.ndim == 0
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(level, 0.7))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.5).to_event(1), obs=x)


def test_a_model_that_does_not_broadcast_takes_fewer_runs(monkeypatch):
    """The estimate stays right: the mean over few draws of theta, each with few of the rows' own sites."""
    x = 1 + torch.randn(20, 1, dtype=torch.float64)
    model = Levels()
    run = fit(model, MeanField(model, x), x, steps=1500)
    pair = zoo.Fit(OneByOne(), run.guide, store=run.store)
    monkeypatch.setattr(sys.modules["zoo.posterior.evaluation"], "SINGLE_RUNS", 50 * 25)
    found = evaluate(pair, x, draws=100)
    assert found.estimator == "IS-41"
    truth = levels_evidence(x)
    assert abs(found.shared.log_marginal - truth) <= 4 * found.shared.log_marginal_se + 0.02
    assert abs(found.total - evaluate(run, x, draws=1000).total) <= 5 * found.shared.total_se
    assert evaluate(pair, x, draws=30, inner=30).estimator == "IS-30"  # asked for, and so taken
