"""Approximation and amortization gaps, against the algebra of linear-Gaussian models."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import as_it_is
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.posterior.annealing import AIS
from zoo.posterior.inference_gaps import gaps
from zoo.posterior.local_families import NoLocalFamily


def frozen(cls, noise=0.7):
    """A linear-Gaussian model with correlated factors a posteriori, held fast, and rows it has drawn."""
    model = cls(6, 3).double()
    model.scale = noise * model.scale.detach()
    model.requires_grad_(False)
    return model, model(size=25)


def precision(model):
    """P of the posterior (k, k)."""
    return torch.eye(model.latent_dim) + (model.weight.T / model.noise) @ model.weight


def diagonal_gap(model):
    p = precision(model)
    return 0.5 * (p.diagonal().log().sum() - p.logdet()).item()


def encoder(model, x, spread):
    """The linear encoder with the exact means; ``spread`` of its diagonal scales over the best, 1 / sqrt(P_jj)."""
    guide = Amortized(model, x, hidden=())
    p = precision(model)
    slope = torch.linalg.solve(p, model.weight.T / model.noise)  # (k, d)
    unit, shift = guide.columns.unit, guide.columns.shift
    with torch.no_grad():
        guide.encoder[-1].weight.copy_(torch.linalg.solve(guide.columns.turn, slope * unit, left=False))
        guide.encoder[-1].bias.copy_(slope @ (shift - model.mean))
        scale = spread * p.diagonal().rsqrt()
        guide.spread.copy_(scale.expm1().log() - math.log(math.e - 1))
    return guide


class Plain(Module):
    """A linear-Gaussian model that keeps its closed forms to itself: as deep as any to what evaluates it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.data_dim = inner, inner.data_dim

    def forward(self, x=None, index=None, size=None):
        return self.inner(x, index, size)


@pytest.mark.parametrize("cls", [zoo.PPCA, zoo.FactorAnalysis])
@pytest.mark.parametrize("far", [0.0, 0.3, 3.0])
def test_closed_form_of_a_diagonal_family(cls, far, untouched):
    """The approximation gap is (sum log P_jj - log |P|) / 2 wherever the guide stands; the rest is amortization."""
    model, x = frozen(cls)
    guide = MeanField(model, x)
    with torch.no_grad():
        guide.initialize(x)
        for parameter in guide.parameters():
            parameter.add_(far * torch.randn_like(parameter))
    run = as_it_is(model, guide, x)
    with untouched():
        found = gaps(run, x)
    expected = diagonal_gap(model)
    assert expected > 0.1
    torch.testing.assert_close(found.approximation, torch.full_like(x[:, 0], expected), rtol=0, atol=1e-7)
    with torch.no_grad():
        total = model.log_marginal(x) - model.elbo(x, guide.posterior(x))
    torch.testing.assert_close(found.total, total, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.amortization, total - expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.amortization + found.approximation, found.total, rtol=0, atol=1e-9)
    assert (found.family, found.estimator, found.closed) == ("diag", "exact", True)
    assert (found.approximation_se == 0).all()
    if far == 0:
        assert found.amortization.abs().max() < 1e-8


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_the_linear_encoder(spread):
    """Best mean and best diagonal: no amortization gap; scales too wide by f: f^2 / 2 - 1/2 - log f each."""
    model, x = frozen(zoo.FactorAnalysis)
    found = gaps(as_it_is(model, encoder(model, x, spread), x), x)
    lost = 3 * (0.5 * spread**2 - 0.5 - math.log(spread))
    torch.testing.assert_close(found.amortization, torch.full_like(x[:, 0], lost), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.approximation, torch.full_like(x[:, 0], diagonal_gap(model)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
def test_a_full_family_holds_the_posterior(covariance):
    """A guide of low rank counts as full: what its rank cannot say is then amortization."""
    model, x = frozen(zoo.PPCA)
    guide = Amortized(model, x, hidden=(4,), covariance=covariance)
    found = gaps(as_it_is(model, guide, x), x)
    assert found.family == "full"
    assert found.approximation.abs().max() < 1e-7
    with torch.no_grad():
        total = model.log_marginal(x) - model.elbo(x, guide.posterior(x))
    torch.testing.assert_close(found.amortization, total, rtol=0, atol=1e-7)
    assert found.amortization.min() > 0.1


def test_the_exact_guide_has_no_gap():
    model, x = frozen(zoo.PPCA)
    found = gaps(as_it_is(model, Exact(model), x), x)
    assert found.approximation.abs().max() < 1e-9
    assert found.amortization.abs().max() < 1e-9


def test_single_precision():
    model, x = frozen(zoo.PPCA)
    model, x = model.float(), x.float()
    found = gaps(as_it_is(model, MeanField(model, x), x), x)
    assert found.approximation.dtype == torch.float32
    error = 1e3 * torch.finfo(torch.float32).eps * found.log_marginal.abs().max().item()
    assert (found.approximation - diagonal_gap(model)).abs().max() < error


def test_by_draws_as_in_closed_form():
    """The stochastic road, on a model that hides its closed forms, ends where the algebra does."""
    model, x = frozen(zoo.PPCA)
    plain = Plain(model)
    guide = encoder(model, x, 1.5)
    run = as_it_is(plain, guide, x)
    found = gaps(run, x, steps=300, draws=2000)
    expected, lost = diagonal_gap(model), 3 * (0.5 * 1.5**2 - 0.5 - math.log(1.5))
    assert (found.family, found.estimator, found.closed) == ("diag", "IWAE-2000", False)
    with torch.no_grad():
        best = model.log_marginal(x) - expected
        elbo = model.elbo(x, guide.posterior(x))
    short = 0.01  # of the best, where Adam stops; below, the errors of 25 rows
    assert ((found.best - best).abs() < 5 * found.best_se + short).all()
    assert ((found.elbo - elbo).abs() < 5 * found.elbo_se).all()
    assert ((found.amortization - lost).abs() < 5 * found.amortization_se + short).all()
    assert (found.amortization_se < 1.5 * found.elbo_se).all()
    assert (found.log_marginal >= found.best).all()
    assert ((found.approximation - expected).abs() < 5 * found.approximation_se + 2 * short).all()
    summary = found.summary()
    assert abs(summary["amortization"] - lost) < 5 * summary["amortization_se"] + short
    assert abs(summary["approximation"] - expected) < 5 * summary["approximation_se"] + 2 * short


def test_by_draws_with_a_full_family():
    """The posterior is in the family: no approximation gap, and at q* no noise either."""
    model, x = frozen(zoo.PPCA)
    guide = Amortized(model, x, hidden=(), covariance="full")
    found = gaps(as_it_is(Plain(model), guide, x), x, steps=600, draws=200)
    with torch.no_grad():
        total = model.log_marginal(x) - model.elbo(x, guide.posterior(x))
    assert found.family == "full"
    assert found.approximation.max() < 1e-4  # in every row: none keeps the guide's q by chance
    assert ((found.amortization - total).abs() < 5 * found.amortization_se + 1e-4).all()


@pytest.mark.parametrize("transform", ["iaf", "spline"])
def test_flows_of_every_row_start_at_the_guide(transform):
    torch.manual_seed(1)
    model, x = frozen(zoo.PPCA)
    guide = Flow(model, x, (16,), transform, length=2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        family = guide.local(x)
        z, log_q = family.draw(family.start, torch.randn(5, len(x), 3, dtype=x.dtype))
        torch.testing.assert_close(log_q, guide.posterior(x).log_prob(z))
        free = family.free()
        free[-1][0] += 1.0  # the last network's bias in the first row
        moved, _ = family.draw(family.moved(free), torch.zeros(1, len(x), 3, dtype=x.dtype))
        still, _ = family.draw(family.start, torch.zeros(1, len(x), 3, dtype=x.dtype))
    assert (moved[:, 0] != still[:, 0]).any()
    assert (moved[:, 1:] == still[:, 1:]).all()


def test_the_best_flow_of_a_row_gains():
    torch.manual_seed(1)
    model, x = frozen(zoo.PPCA)
    found = gaps(as_it_is(model, Flow(model, x[:3], (8,), length=1), x[:3]), x[:3], steps=20, draws=100)
    assert (found.family, found.estimator, found.closed) == ("flow", "exact", False)
    assert found.amortization.min() > 5


@pytest.mark.slow
def test_the_best_flow_of_every_row():
    """Its family is nearly that of all Gaussians: far less is lost than by the best factorised one."""
    torch.manual_seed(1)
    model, x = frozen(zoo.PPCA)
    guide = Flow(model, x[:6], (16,))
    found = gaps(as_it_is(model, guide, x[:6]), x[:6], steps=250, draws=300)
    assert (found.family, found.estimator, found.closed) == ("flow", "exact", False)
    assert found.approximation.mean() < 0.3 * diagonal_gap(model)
    assert found.amortization.min() > 0
    assert (found.approximation > -5 * found.approximation_se).all()


class Heavy(Module):
    """A guide with Student's t: the same one for every row."""

    def __init__(self, df, scale):
        super().__init__()
        self.df, self.scale = df, scale

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("z", dist.StudentT(self.df, x.new_zeros(len(x), 3), self.scale).to_event(1))


def test_the_best_of_a_users_family():
    """Student's t comes close to the best factorised Gaussian by many degrees of freedom, and not beyond it."""
    model, x = frozen(zoo.PPCA)
    found = gaps(as_it_is(model, Heavy(10.0, 1.0), x), x, steps=300, draws=2000)
    assert (found.family, found.closed) == ("StudentT", False)
    summary = found.summary()
    least = diagonal_gap(model)
    assert least - 5 * summary["approximation_se"] < summary["approximation"] < least + 0.05
    assert summary["amortization"] > 1


class HeavyEncoder(Module):
    """Student's t with degrees of freedom that are given, and a location and scale that are learned."""

    def __init__(self, model, x, df):
        super().__init__()
        self.df, self.network = df, torch.nn.Linear(x.shape[1], 6).to(x.dtype)
        for part in self.network.parameters():
            torch.nn.init.zeros_(part)

    def forward(self, x=None, index=None, size=None):
        loc, scale = self.network(x).chunk(2, -1)
        with rows(x, index, size):
            pyro.sample("z", dist.StudentT(self.df, loc, scale.exp()).to_event(1))


@pytest.mark.parametrize("df", [3.0, 8.0])
def test_given_degrees_of_freedom_are_the_familys(df):
    """Its gap is that of the best factorised Gaussian and, for every factor, KL(t of variance 1 || N(0, 1))."""
    model, x = frozen(zoo.PPCA)
    x = x[:8]
    found = gaps(as_it_is(model, HeavyEncoder(model, x, df), x), x, steps=300, draws=2000)
    tail = 0.5 * math.log(2 * math.pi * math.e) - float(scipy.stats.t(df).entropy()) - 0.5 * math.log((df - 2) / df)
    assert tail > 0.01
    summary = found.summary()
    least = diagonal_gap(model) + 3 * tail
    assert least - 5 * summary["approximation_se"] < summary["approximation"] < least + 0.05


def test_a_search_that_fails_keeps_the_guide(monkeypatch):
    """Steps far beyond the optimum: the guide's q is kept where the other one is worse."""
    monkeypatch.setattr("zoo.posterior.inference_gaps.RATE", 50.0)
    model, x = frozen(zoo.PPCA)
    found = gaps(as_it_is(Plain(model), encoder(model, x, 1.0), x), x, steps=2, draws=200)
    assert (found.amortization == 0).all()


def test_standard_errors_are_those_of_repetition():
    """Thirty seeds: the gaps spread as told, over the same draws, hence less than their parts do."""
    model, x = frozen(zoo.PPCA)
    x = x[:8]
    run = as_it_is(Plain(model), encoder(model, x, 1.5), x)
    found = [gaps(run, x, steps=1, draws=400, seed=seed) for seed in range(30)]
    for name in ("best", "elbo", "approximation", "log_marginal"):
        spread = torch.stack([getattr(one, name) for one in found]).var(0).mean().sqrt()
        told = torch.stack([getattr(one, f"{name}_se") for one in found]).square().mean().sqrt()
        assert abs((spread / told).log()) < 5 / (2 * 29 * 8) ** 0.5, name


def test_a_deep_model_whose_decoder_has_a_bend(some):
    """More of log p(x) by AIS from q*; a fit that was cut short shows as amortization."""
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    run = zoo.fit(model, Amortized(model, some, hidden=()), some, steps=150, progress=False)
    before = [p.detach().clone() for p in (*model.parameters(), *run.guide.parameters())]
    found = gaps(run, some, steps=200, draws=500)
    assert all(map(torch.equal, before, (*model.parameters(), *run.guide.parameters())))
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    summary = found.summary()
    assert summary["amortization"] > 5 * summary["amortization_se"]
    assert (found.approximation >= -1e-9).all()
    annealed = gaps(run, some, steps=200, draws=500, ais=AIS(60, chains=16, leapfrog=4))
    assert annealed.estimator == "AIS"
    error = math.hypot(annealed.summary()["log_marginal_se"], summary["log_marginal_se"])
    assert abs(annealed.log_marginal.mean().item() - summary["log_marginal"]) < 5 * error + 0.1


def test_an_autoguide(some):
    model = zoo.PPCA(4, 2).double()
    x = some[:20]
    run = zoo.fit(model, AutoNormal(model), x, steps=50, progress=False)
    found = gaps(run, x)
    assert found.family == "diag"
    torch.testing.assert_close(found.approximation, torch.full_like(x[:, 0], diagonal_gap(model)), rtol=0, atol=1e-7)


def test_cut_into_chunks(monkeypatch):
    model, x = frozen(zoo.PPCA)
    run = as_it_is(model, MeanField(model, x), x)
    whole = gaps(run, x)
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 4 * 7 * 1000)
    cut = gaps(run, x)
    torch.testing.assert_close(cut.approximation, whole.approximation, rtol=0, atol=1e-7)
    torch.testing.assert_close(cut.elbo, whole.elbo, rtol=0, atol=1e-9)


class Bent(Module):
    """A guide that is no Gaussian."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        base = dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1)
        bend = dist.transforms.AffineTransform(self.shift, 2.0)
        with rows(x, index, size):
            pyro.sample("z", dist.TransformedDistribution(base, [bend]))


def test_refuses_other_families(some):
    model, x = frozen(zoo.PPCA)
    with pytest.raises(NoLocalFamily, match="of the guide Bent is a TransformedDistribution: use MeanField"):
        gaps(as_it_is(model, Bent(), x), x)
    mixture = zoo.GMM(4, 2).double()
    with pytest.raises(
        ValueError, match="gaps needs a latent site with a real vector per row, and 'component' is disc"
    ):
        gaps(as_it_is(mixture, MeanField(mixture, some), some), some)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda x: x, {"steps": 0}, "steps must be a whole number of at least 1"),
        (lambda x: x, {"particles": 0}, "particles must be a whole number of at least 1"),
        (lambda x: x, {"draws": 29}, "draws must be at least 30"),
        (lambda x: x[:20], {}, "FullRank holds 25 rows, got 20"),
        (lambda x: x[:, :3], {}, "x has 3 columns"),
    ],
)
def test_refusals(change, settings, message, untouched):
    model, x = frozen(zoo.PPCA)
    run = as_it_is(model, FullRank(model, x), x)
    with untouched(), pytest.raises(ValueError, match=re.escape(message)):
        gaps(run, change(x), **settings)


def test_summary_and_repr():
    model, x = frozen(zoo.PPCA)
    found = gaps(as_it_is(model, MeanField(model, x), x), x)
    summary = found.summary()
    assert summary["log_marginal"] == pytest.approx(
        summary["elbo"] + summary["amortization"] + summary["approximation"]
    )
    assert summary["best_se"] == 0
    assert repr(found).startswith("Gaps of 25 rows, nats per row: log marginal ")
    assert f"gap of the diag family {summary['approximation']:.4f}" in repr(found)
    plain = gaps(as_it_is(Plain(model), MeanField(model, x), x), x, steps=1, draws=30)
    assert "(IWAE-30)" in repr(plain)
    assert "diag family at least" in repr(plain)


def by_index(x=None, index=None, size=None):
    """A guide of a user's own, with parameters for each of 30 rows."""
    loc = pyro.param("loc", torch.zeros(30, 3, dtype=torch.float64))
    with rows(x, index, 30):
        pyro.sample("z", dist.Normal(loc if index is None else loc[index], 1.0).to_event(1))


def without_index(x=None, index=None, size=None):
    """The same without a look at the row numbers."""
    loc = pyro.param("loc", torch.zeros(30, 3, dtype=torch.float64))
    with rows(x, index, size):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_a_guide_of_the_users_own_serves_its_rows(monkeypatch):
    model, _ = frozen(zoo.PPCA)
    x = model(size=30)
    run = as_it_is(model, by_index, x)
    whole = gaps(run, x)
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 4 * 7 * 1000)  # seven rows at a time
    torch.testing.assert_close(gaps(run, x).elbo, whole.elbo, rtol=0, atol=1e-9)


@pytest.mark.parametrize("call", [gaps, zoo.posterior.rate_distortion, zoo.evaluate, zoo.reconstruct])
@pytest.mark.parametrize("guide", [by_index, without_index])
def test_other_rows_are_a_named_error(call, guide):
    model, _ = frozen(zoo.PPCA)
    x = model(size=30)
    run = as_it_is(model, guide, x)
    with pytest.raises(
        ValueError, match=rf"the guide {guide.__name__} fails on 20 rows .* select those of the rows numbered by index"
    ):
        call(run, x[:20])


@pytest.mark.parametrize("call", [gaps, zoo.posterior.rate_distortion])
def test_shared_sites_are_refused_by_name(call):
    def model(x=None, index=None, size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(mean.unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = torch.randn(20, 1, dtype=torch.float64)
    guide = AutoNormal(model)
    guide(x)
    run = zoo.Fit(model, guide)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"'mean' is shared by all rows.*is not a sum over rows.*zoo.evaluate"):
        call(run, x)


def test_a_model_behind_config_enumerate_keeps_its_closed_form():
    model, x = frozen(zoo.PPCA)
    run = as_it_is(model, MeanField(model, x), x)
    wrapped = gaps(zoo.Fit(config_enumerate(model), run.guide), x)
    assert wrapped.closed
    torch.testing.assert_close(wrapped.approximation, gaps(run, x).approximation)
    assert wrapped.frame().height == len(x)
