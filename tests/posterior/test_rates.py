"""What z says of x: rate, distortion, mutual information and collapsed units, against closed forms."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import as_it_is
from pyro.infer.autoguide import AutoNormal
from torch.distributions import kl_divergence

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.posterior.rates import _gaussian_log_prob, bits_per_dimension, rate_distortion


def frozen(data_dim=5, latent_dim=3, noise=1.0):
    model = zoo.PPCA(data_dim, latent_dim).double()
    model.scale = torch.tensor(noise, dtype=torch.float64)
    return model.requires_grad_(False)


def linear(model, x):
    return Amortized(model, x, hidden=())


FAMILIES = {"MeanField": MeanField, "FullRank": FullRank, "linear": linear, "Exact": lambda model, x: Exact(model)}


def test_exact_posterior_of_rows_from_the_model():
    """Rate and information are those of the joint Gaussian, log|I + W'W / s2| / 2, and q(z) is the prior."""
    model = frozen(4, 2, noise=1.5)
    x = model(size=3000)
    run = as_it_is(model, Exact(model), x)
    found = rate_distortion(run, x, draws=2)
    precision = torch.eye(2) + model.weight.T @ model.weight / model.scale**2
    truth = 0.5 * precision.logdet().item()
    with torch.no_grad():
        posterior, prior = model.posterior(x), dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        kl = kl_divergence(posterior, prior)
        z = posterior.sample((200,))
        log_ratio = posterior.log_prob(z) - prior.log_prob(z)  # its mean over x and z is the information
    assert found.rate == pytest.approx(kl.mean().item(), abs=1e-8)
    assert abs(found.rate - truth) < 5 * kl.std().item() / 3000**0.5
    # n rows in place of the population: their spread, and e^I / n of a row that meets itself
    error = 5 * log_ratio.flatten().std().item() / 3000**0.5
    assert abs(found.mutual_information - truth) < error + math.exp(2 * truth) / 3000
    assert abs(found.marginal_kl) < error
    assert found.collapsed == []
    assert found.verdict == "all 2 units are active"


@pytest.mark.parametrize("family", FAMILIES)
def test_against_brute_force(family, untouched):
    """Every number from its definition, row by row with the guide's own densities and the same mixture of all rows."""
    model = frozen()
    x = model(size=40)
    guide = FAMILIES[family](model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    run = as_it_is(model, guide, x)
    with untouched():
        found = rate_distortion(run, x, draws=400)
    with torch.no_grad():
        q = guide.posterior(x)
        mean, variance = q.mean, q.variance
        unit = 0.5 * (variance + mean.square() - 1 - variance.log())
        torch.testing.assert_close(found.unit_kl, unit.mean(0), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.variance, mean.var(0, correction=0), rtol=1e-8, atol=1e-8)
        elbo = model.elbo(x, q)
        z = q.sample((400,))  # (400, n, k)
        log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        own = q.log_prob(z)
        mixed = torch.stack([q.log_prob(one.unsqueeze(1)).logsumexp(-1) - math.log(40) for one in z])
    assert found.rate_se == 0
    assert abs(-found.rate - found.distortion - elbo.mean().item()) < 5 * found.distortion_se
    assert abs((own - log_p).mean().item() - found.rate) < 5 * (own - log_p).std().item() / 16_000**0.5
    error = (own - mixed).std(0).square().sum().sqrt().item() / 40 / 400**0.5
    assert found.mutual_information_se == pytest.approx(error, rel=0.2)
    assert abs((own - mixed).mean().item() - found.mutual_information) < 5 * math.sqrt(2) * error
    assert found.marginal_kl + found.mutual_information == pytest.approx(found.rate, abs=1e-12)
    assert 0 <= found.mutual_information <= math.log(40) + 5 * error
    if family in ("MeanField", "linear"):
        assert found.unit_kl.sum().item() == pytest.approx(found.rate, abs=1e-8)
    else:
        assert found.unit_kl.sum().item() < found.rate


def test_a_guide_that_is_the_prior_has_collapsed():
    model = frozen(5, 3)
    x = model(size=50)
    guide = linear(model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()  # mean 0, scale softplus(ONE) = 1
    found = rate_distortion(as_it_is(model, guide, x), x)
    assert found.rate == pytest.approx(0, abs=1e-10)
    assert found.mutual_information == pytest.approx(0, abs=1e-10)
    assert found.marginal_kl == pytest.approx(0, abs=1e-10)
    assert found.collapsed == [0, 1, 2]
    assert not found.active.any()
    assert found.verdict.startswith("all 3 units have collapsed: the mean of q(z | x) does not depend on x")
    assert "they still cost" not in found.verdict


def test_a_vae_with_a_dead_decoder_collapses(some):
    """Trained, not set: where the decoder ignores z, the optimum of the guide is the prior."""
    model = zoo.VAE(4, 2, hidden=()).double()
    model.initialize(some)
    with torch.no_grad():
        model.mean[-1].weight.zero_()
        model.scale[-1].weight.zero_()
    model.requires_grad_(False)
    run = zoo.fit(model, linear(model, some), some, progress=False)
    found = rate_distortion(run, some)
    assert found.rate < 1e-3
    assert found.verdict.startswith("all 2 units have collapsed")


def test_some_units_collapse_and_one_costs_without_saying_anything():
    model = frozen(5, 4)
    x = model(size=50)
    guide = linear(model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.zero_()
        guide.encoder[-1].weight[2, 0] = 1.0  # unit 2 follows the first column
        guide.encoder[-1].bias[1] = 2.0  # unit 1 is somewhere else, for all rows alike
    found = rate_distortion(as_it_is(model, guide, x), x)
    assert found.collapsed == [0, 1, 3]
    assert found.variance[2].item() == pytest.approx(1.0)
    assert found.unit_kl[1].item() == pytest.approx(2.0)
    assert found.verdict.startswith("3 of 4 units have collapsed (number 0, 1, 3, from 0); they still cost 2 nats")
    assert found.marginal_kl == pytest.approx(2.0, abs=0.3)
    assert rate_distortion(as_it_is(model, guide, x), x, threshold=1.5).collapsed == [0, 1, 2, 3]


def test_rows_far_apart_carry_log_n():
    """Where no two posteriors overlap, z tells the row: the information is log n."""
    model = frozen(3, 2)
    x = 100 * torch.randn(30, 3).double()
    guide = MeanField(model, x)
    guide.loc, guide.scale = x[:, :2], torch.full((30, 2), 1e-3, dtype=torch.float64)
    found = rate_distortion(as_it_is(model, guide, x), x)
    assert found.mutual_information == pytest.approx(math.log(30), abs=1e-9)


@pytest.mark.parametrize("width", [1.0, 1e-4])
def test_densities_of_every_draw_under_every_gaussian(width):
    """Wide and narrow ones: where expanding the square would cost digits it is not expanded."""
    loc, scale = 50 + torch.randn(7, 4).double(), width * (0.1 + torch.rand(7, 4).double())
    z = loc[torch.arange(20) % 7] + width * torch.randn(20, 4).double()
    expected = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(1)).sum(-1)
    for root in (scale, torch.diag_embed(scale)):
        torch.testing.assert_close(_gaussian_log_prob(z, loc, root), expected, rtol=1e-8, atol=1e-8)
    root = torch.diag_embed(scale) + width * torch.randn(7, 4, 4).double().tril(-1)
    expected = torch.distributions.MultivariateNormal(loc, scale_tril=root).log_prob(z.unsqueeze(1))
    torch.testing.assert_close(_gaussian_log_prob(z, loc, root), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks(family, monkeypatch):
    """Cut to pieces the numbers are the same: in closed form to rounding, by draws within five standard errors."""
    model = frozen()
    x = model(size=30)
    run = as_it_is(model, FAMILIES[family](model, x), x)
    whole = rate_distortion(run, x, draws=100)
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 7 * 100 * 5)
    cut = rate_distortion(run, x, draws=100)
    assert cut.rate == pytest.approx(whole.rate, abs=1e-10)
    torch.testing.assert_close(cut.unit_kl, whole.unit_kl, rtol=0, atol=1e-10)
    for name in ("distortion", "mutual_information"):
        error = math.hypot(getattr(cut, f"{name}_se"), getattr(whole, f"{name}_se"))
        assert abs(getattr(cut, name) - getattr(whole, name)) < 5 * error + 1e-9


class Heavy(Module):
    """Factors with Laplace tails."""

    def __init__(self):
        super().__init__()
        self.data_dim = 4
        self.weight = torch.nn.Parameter(torch.randn(4, 2, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        weight = self.weight
        with rows(x, index, size):
            z = pyro.sample("z", dist.Laplace(weight.new_zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 1.0).to_event(1), obs=x)


def test_a_prior_that_is_no_gaussian(some):
    """By draws: the KL of a Gaussian from a Laplace prior has the closed form E|z| + log 2 - entropy."""
    model = Heavy()
    guide = linear(model, some)
    run = as_it_is(model, guide, some)
    found = rate_distortion(run, some, draws=500)
    with torch.no_grad():
        q = guide.posterior(some).base_dist
        m, s = q.loc, q.scale
        absolute = s * (2 / math.pi) ** 0.5 * (-(m**2) / (2 * s**2)).exp() + m * torch.erf(m / s / 2**0.5)
        unit = absolute + math.log(2) - q.entropy()
    assert found.rate_se > 0
    assert abs(found.rate - unit.sum(1).mean().item()) < 5 * found.rate_se
    assert ((found.unit_kl - unit.mean(0)).abs() < 5 * found.rate_se).all()
    assert found.unit_kl.sum().item() == pytest.approx(found.rate, abs=1e-9)
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=1e-12)


class Bent(Module):
    """A guide that is no Gaussian and ignores the rows."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        base = dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)
        bend = dist.transforms.AffineCoupling(1, lambda z: (0.3 * z.square(), 0.0 * z))
        with rows(x, index, size):
            pyro.sample("z", dist.TransformedDistribution(base, [bend]))


def test_a_guide_that_is_no_gaussian():
    """The means are those of draws; their noise is taken off the variance, so that all units have collapsed."""
    model = frozen(4, 2)
    x = model(size=100)
    found = rate_distortion(as_it_is(model, Bent(), x), x, draws=200)
    assert found.unit_kl is None
    assert found.verdict.startswith("all 2 units have collapsed")
    assert found.mutual_information == pytest.approx(0, abs=1e-9)
    truth = 0.5 * 0.3**2 * 3  # E (0.3 z^2)^2 / 2: the mean square of the bend
    assert abs(found.rate - truth) < 5 * found.rate_se


def test_an_autoguide_and_a_deep_model(some):
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    run = zoo.fit(model, AutoNormal(model), some, steps=30, progress=False)
    found = rate_distortion(run, some, draws=50)
    with torch.no_grad():
        q = dist.Normal(run.guide.locs.z, run.guide.scales.z).to_event(1)
        prior = dist.Normal(torch.zeros(60, 2).double(), 1.0).to_event(1)
        assert found.rate == pytest.approx(kl_divergence(q, prior).mean().item(), abs=1e-8)
    evaluation = zoo.evaluate(run, some, draws=500)
    summary = evaluation.summary()
    error = math.hypot(found.distortion_se, summary["elbo_se"])
    assert abs(-found.rate - found.distortion - summary["elbo"]) < 5 * error


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda x: x, {"draws": 1}, "draws must be a whole number of at least 2"),
        (lambda x: x, {"threshold": -1}, "threshold must be a variance of at least 0"),
        (lambda x: x, {"threshold": math.nan}, "threshold must be a variance of at least 0"),
        (lambda x: x[:1], {}, "x has 1 row: at least 2 are needed"),
        (lambda x: x[:, :3], {}, "x has 3 columns"),
    ],
)
def test_refusals(change, settings, message, untouched):
    model = frozen()
    x = model(size=20)
    run = as_it_is(model, linear(model, x), x)
    with untouched(), pytest.raises(ValueError, match=re.escape(message)):
        rate_distortion(run, change(x), **settings)


def test_refuses_discrete_sites_and_point_masses(some):
    mixture = zoo.GMM(4, 2).double()
    with pytest.raises(
        ValueError, match="rate_distortion needs a latent site with a real vector per row, and 'component'"
    ):
        rate_distortion(as_it_is(mixture, MeanField(mixture, some), some), some)
    model = zoo.PPCA(4, 2).double()
    for name in ("AutoDelta", "AutoDiagonalNormal"):
        run = zoo.fit(model, getattr(pyro.infer.autoguide, name)(model), some, steps=2, progress=False)
        with pytest.raises(ValueError, match="has no density for 'z'"):
            rate_distortion(run, some)


def test_summary_and_repr():
    model = frozen()
    x = model(size=20)
    found = rate_distortion(as_it_is(model, linear(model, x), x), x)
    summary = found.summary()
    assert summary["rate"] == pytest.approx(summary["mutual_information"] + summary["marginal_kl"])
    assert (summary["active"], summary["units"]) == (found.active.sum(), 3)
    assert repr(found).startswith("Rate and distortion of 20 rows, nats per row: rate ")
    assert "at most log n = 3.00" in repr(found)
    assert repr(found).endswith(found.verdict)


def test_bits_per_dimension():
    """A uniform density on [0, 1] says nothing of the levels: log2 of their number; the others by hand."""
    assert bits_per_dimension(0.0, 10, dequantised="uniform").mean == 8
    assert bits_per_dimension(-10 * math.log(256), 10, dequantised="discrete").mean == pytest.approx(8)
    rows_ = bits_per_dimension(torch.tensor([0.0, 20 * math.log(2)]), 10, levels=16, dequantised="uniform")
    assert rows_.values.tolist() == pytest.approx([4, 2])
    assert rows_.mean == pytest.approx(3)
    assert "16 levels dequantised by uniform noise" in repr(rows_)
    assert "not comparable" in bits_per_dimension(0.0, 10, dequantised="none").text
    assert "without dequantisation" in bits_per_dimension(0.0, 10, dequantised="discrete").text


def test_bits_of_dequantised_data_bound_those_of_the_levels():
    """Levels with known probabilities, and the best piecewise constant density: the bound is tight there."""
    chance = torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    entropy = -(chance * chance.log2()).sum().item()
    density = (chance * (4 * chance).log()).sum()  # E log p(x) of the density 4 P(k) on [k / 4, (k + 1) / 4)
    assert bits_per_dimension(density, 1, levels=4, dequantised="uniform").mean == pytest.approx(entropy)
    assert bits_per_dimension((chance * chance.log()).sum(), 1, dequantised="discrete").mean == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dim": 0, "dequantised": "uniform"}, "data_dim must be a whole number"),
        ({"data_dim": 4, "levels": 1, "dequantised": "uniform"}, "levels must be a whole number of at least 2"),
        ({"data_dim": 4, "dequantised": "noise"}, "dequantised must be one of uniform, discrete, none; got 'noise'"),
    ],
)
def test_refusals_of_bits(arguments, message):
    with pytest.raises(ValueError, match=message):
        bits_per_dimension(0.0, **arguments)
