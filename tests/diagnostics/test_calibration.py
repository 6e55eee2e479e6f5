"""Simulation-based calibration: its level where q is right, its power where q is wrong in a known way."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch.distributions import AffineTransform

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.plates import rows
from zoo.diagnostics import sbc
from zoo.diagnostics.guide.uniform import corrected, ecdf_band, score_test, smooth_test, symmetry_test
from zoo.posterior.inference_gaps import gaps


@pytest.fixture(scope="module")
def mixture(iris):
    model = zoo.GMM(4, 3, "diag").double()
    torch.manual_seed(1)
    model.initialize(iris)
    zoo.em(model, iris, steps=30)  # any parameters will do
    return model.requires_grad_(False)


def off(model, times=1.0, shift=0.0, by_ranks=False):
    """A guide with ``times`` the posterior's deviations, its means off by ``shift`` deviations."""

    def guide(x, index=None, size=None):
        p = model.posterior(x)
        q = dist.MultivariateNormal(p.mean + shift * p.stddev, scale_tril=times * p.scale_tril)
        if by_ranks:
            q = dist.TransformedDistribution(q, [AffineTransform(0.0, 1.0, event_dim=1)])  # a Gaussian in disguise
        with rows(x, index, size):
            pyro.sample("z", q)

    return guide


def powered(model, power, more=0.0):
    """Responsibilities with their log odds times ``power``, above 1 too sure, and ``more`` for the last component."""

    def guide(x, index=None, size=None):
        logits = power * model.posterior(x).logits
        logits[:, -1] += more
        with rows(x, index, size):
            pyro.sample("component", dist.Categorical(logits=logits))

    return guide


def test_the_exact_posterior_is_calibrated(model, iris, untouched):
    """The level holds: over 30 repetitions the p-values are those of a uniform law (100 are slow, below)."""
    run = zoo.Fit(model, Exact(model))
    with untouched():
        found = [sbc(run, seed=seed) for seed in range(30)]
    p = torch.tensor([one.p_value for one in found])
    assert (p > 0.01).sum() >= 29
    every = torch.stack([torch.cat([one.p_values, one.symmetry]) for one in found])
    likelihood = torch.tensor([one.likelihood_p_value for one in found])
    assert ((every.mean(0) - 0.5).abs() < 5 / 360**0.5).all()  # the variance of a uniform law is 1/12
    assert abs(likelihood.mean() - 0.5) < 5 / 360**0.5
    covered = torch.stack([one.coverage for one in found]).mean(0)  # of 15,000 truths
    for level, share in zip(found[0].levels, covered, strict=True):
        assert ((share - level).abs() < 5 * (level * (1 - level) / 15_000) ** 0.5).all()
    first = found[0]
    assert first.units == ("z[0]", "z[1]")
    assert first.exact
    assert not first.refitted
    assert first.verdicts == ("calibrated, as far as 500 simulations show",) * 2
    assert "500 simulations, Exact: calibrated" in repr(first)
    assert first.summary()["simulations"] == 500
    assert torch.equal(sbc(run, seed=0).pit, first.pit)


@pytest.mark.parametrize("by_ranks", [False, True], ids=["closed form", "ranks"])
def test_a_guide_too_narrow(by_ranks, model, iris):
    found = sbc(zoo.Fit(model, off(model, 0.8, by_ranks=by_ranks)))
    assert found.exact != by_ranks
    assert found.p_value < 0.001
    assert (found.p_values < 0.001).all()
    assert (found.symmetry > 0.001).all()  # without bias
    assert all("too narrow" in words and "biased" not in words for words in found.verdicts)
    error = 1.25 / 1000**0.5 if not by_ranks else 0.1  # ranks cut the tails
    assert ((found.spread - 1.25).abs() < 5 * error).all()
    half = torch.special.ndtri(torch.tensor([0.75, 0.90, 0.95, 0.975], dtype=torch.float64))
    expected = (2 * torch.special.ndtr(0.8 * half) - 1).unsqueeze(1)
    assert ((found.coverage - expected).abs() < 5 * found.coverage_se).all()


@pytest.mark.parametrize("by_ranks", [False, True], ids=["closed form", "ranks"])
def test_a_guide_with_a_bias(by_ranks, model, iris):
    found = sbc(zoo.Fit(model, off(model, shift=0.5, by_ranks=by_ranks)))
    assert found.p_value < 0.001
    assert (found.symmetry < 0.001).all()
    assert all("below q's mean" in words and "too" not in words for words in found.verdicts)
    assert ((found.bias + 0.5).abs() < 5 / 500**0.5).all()
    assert "z[0] biased" in found.verdict


@pytest.mark.slow
@pytest.mark.parametrize("by_ranks", [False, True], ids=["closed form", "ranks"])
def test_power_and_level_over_many_repetitions(by_ranks, model, iris):
    for options, least in (({}, 97), ({"times": 0.8}, 100), ({"shift": 0.5}, 100), ({"times": 1.25}, 100)):
        run = zoo.Fit(model, off(model, **options, by_ranks=by_ranks))
        p = torch.tensor([sbc(run, seed=1000 + seed).p_value for seed in range(100)])
        assert ((p < 0.001) if options else (p > 0.01)).sum() >= least


@pytest.mark.slow
def test_the_level_of_responsibilities_over_many_repetitions(mixture, iris):
    run = zoo.Fit(mixture, Exact(mixture))
    p = torch.stack([sbc(run, seed=1000 + seed).p_values for seed in range(100)])
    assert (3 * p.min(1).values > 0.01).sum() >= 97
    assert (p[:, 0].mean() - 0.5).abs() < 5 / 1200**0.5


def test_a_guide_too_wide(model, iris):
    found = sbc(zoo.Fit(model, off(model, 1.25)))
    assert found.p_value < 0.001
    assert all("too wide" in words for words in found.verdicts)


def test_a_guide_that_ignores_its_rows(model, iris):
    """Ranks among draws from the prior are uniform; only the likelihood detects this guide."""

    def guide(x, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    found = sbc(zoo.Fit(model, guide))
    assert (found.p_values > 0.001).all()
    assert found.likelihood_p_value < 1e-6
    assert found.p_value < 1e-6
    assert "do not explain x" in found.verdict


@pytest.mark.parametrize("family", [MeanField, FullRank])
def test_a_guide_of_its_own_rows_is_fitted_anew(family, model, iris, untouched):
    """VSBC on a rotated model: the best factorised q is too narrow by a known ratio, the full one exact."""
    turned = zoo.FactorAnalysis(4, 2).double()
    c = 0.5**0.5
    turned.weight = model.weight @ torch.tensor([[c, -c], [c, c]], dtype=torch.float64)
    turned.mean, turned.scale = model.mean, model.scale
    turned.least.copy_(model.least)
    turned.requires_grad_(False)
    run = zoo.Fit(turned, family(turned, iris))
    before = {name: p.clone() for name, p in (*turned.named_parameters(), *run.guide.named_parameters())}
    with untouched():
        found = sbc(run, simulations=300)
    after = dict((*turned.named_parameters(), *run.guide.named_parameters()))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert found.refitted
    assert f"a newly fitted {family.__name__}" in repr(found)
    if family is FullRank:
        assert found.p_value > 0.01
        return
    posterior = turned.posterior(iris[:1])
    ratio = (posterior.variance * posterior.precision_matrix.diagonal(dim1=-2, dim2=-1)).sqrt()[0]
    assert ((found.spread - ratio).abs() < 5 * ratio / 600**0.5).all()
    assert found.p_value < 0.001
    assert (found.symmetry > 0.001).all()


def test_responsibilities(mixture, iris):
    exact = [sbc(zoo.Fit(mixture, Exact(mixture)), seed=seed) for seed in range(4)]
    assert all(one.p_value > 0.01 for one in exact)
    assert all(one.p_values[1] == 1 for one in exact)  # the irises of one species stand apart: nothing is uncertain
    found = sbc(zoo.Fit(mixture, powered(mixture, 4.0)), simulations=1000)
    assert found.units == ("component = 0", "component = 1", "component = 2")
    assert found.p_value < 0.001
    assert "overconfident" in found.verdict
    assert found.coverage is None
    assert "coverage_0.9" not in found.summary()
    assert "underconfident" in sbc(zoo.Fit(mixture, powered(mixture, 0.3)), simulations=1000).verdict
    favoured = sbc(zoo.Fit(mixture, powered(mixture, 1.0, 3.0)))
    assert "component = 2 predicted too often" in favoured.verdict
    assert favoured.p_value < 0.001


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_mixture_with_a_guide_of_its_own_rows(closed_form, mixture, iris):
    found = sbc(zoo.Fit(mixture, MeanField(mixture, iris, closed_form=closed_form)), simulations=300)
    assert found.refitted
    assert found.p_value > 0.01


def test_several_sites_and_supports():
    """Ranks do not care for the support; a guide that draws from the prior has uniform ones."""

    class Pair(PyroModule):
        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                b = pyro.sample("b", dist.Exponential(torch.ones(())))
                mean = torch.cat([a, b.unsqueeze(-1)], -1)
                return pyro.sample("x", dist.Normal(mean, 10.0).to_event(1), obs=x)

    def guide(x, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("b", dist.Exponential(torch.ones(())))

    model = Pair()
    found = sbc(zoo.Fit(model, guide))
    assert found.units == ("a[0]", "a[1]", "b[0]")
    assert not found.exact
    assert (found.p_values > 0.001).all()


def test_refusals(model, iris, untouched):
    exact = zoo.Fit(model, Exact(model))
    with untouched():
        for given, message in [
            ({"simulations": 19}, "simulations must be a whole number of at least 20"),
            ({"draws": 0}, "draws must be a whole number of at least 1"),
            ({"seed": -1}, "seed must be"),
        ]:
            with pytest.raises(ValueError, match=message):
                sbc(exact, **given)
    free = zoo.PPCA(4, 2).double()
    auto = zoo.fit(free, AutoNormal(free), iris, steps=2, progress=False)
    with pytest.raises(ValueError, match="AutoNormal has parameters for the rows .* use Amortized"):
        sbc(auto)

    def own(x, index=None, size=None):
        loc = pyro.param("loc", torch.randn(len(x), 2).double())
        with rows(x, index, size) as chosen:
            pyro.sample("z", dist.Normal(loc[chosen], 1.0).to_event(1))

    run = zoo.Fit(free, own)
    for simulations in (150, 1000):  # as many rows as it was fitted to, and more
        with pytest.raises(ValueError, match="own has parameters for the rows"):
            sbc(run, simulations=simulations)
    broken = zoo.PPCA(4, 2).double()
    broken.initialize(iris)
    bad = zoo.Fit(broken, Exact(broken))
    with torch.no_grad():
        broken.mean.fill_(math.inf)
    with pytest.raises(ValueError, match="the simulated data set holds"):
        sbc(bad)


def level(x=None, index=None, size=None):
    """theta ~ N(0, 9) shared, x_n | theta ~ N(theta, 1): a posterior in closed form."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=torch.float64), 3.0))
    with rows(x, index, size):
        return pyro.sample("y", dist.Normal(theta.unsqueeze(-1), 1.0).to_event(1), obs=x)


def of_level(times):
    """Its posterior with ``times`` the deviation: a guide without parameters."""

    def guide(x=None, index=None, size=None):
        variance = 1 / (1 / 9 + len(x))
        pyro.sample("theta", dist.Normal(variance * x.sum(), times * variance**0.5))

    return guide


def test_shared_sites_by_whole_data_sets(untouched):
    run = zoo.Fit(level, of_level(1.0))
    with untouched():
        right, wrong = (sbc(zoo.Fit(level, of_level(t)), simulations=100, rows=15) for t in (1.0, 0.4))
    assert right.units == ("theta[0]",)
    assert right.refitted
    assert right.pit.shape == (100, 1)
    assert right.p_value > 0.01
    assert wrong.p_value < 0.001
    assert "theta[0] too narrow" in wrong.verdict
    assert wrong.frame()["unit"].to_list() == ["theta[0]"]
    with pytest.raises(ValueError, match="it has shared sites, and the run does not record the number of rows"):
        sbc(run)


def test_a_fresh_autoguide_for_every_data_set(untouched):
    x = 1.0 + torch.randn(15, 1, dtype=torch.float64)
    run = zoo.fit(level, AutoNormal(level), x, steps=50, progress=False)
    with untouched():
        found = sbc(run, simulations=20, steps=100)
    assert found.simulations == 20  # of the recorded number of rows
    assert found.pit.isfinite().all()
    assert "a newly fitted AutoNormal" in repr(found)


def one_factor(x=None, index=None, size=None):
    """A function of the user's with a parameter in the store, one factor and a data site of another name."""
    weight = pyro.param("weight", torch.ones(3, 1, dtype=torch.float64))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        return pyro.sample("obs", dist.Normal(z @ weight.T, 1.0).to_event(1), obs=x)


def test_a_function_model_is_held_at_its_fitted_parameters():
    """With weights of 3, not the 1 that they start from: a fresh mean field is exact for the single factor."""
    x = torch.randn(30, 3, dtype=torch.float64)
    weight = torch.full((3, 1), 3.0, dtype=torch.float64)
    store = {"params": {"weight": weight}, "constraints": {"weight": torch.distributions.constraints.real}}
    run = zoo.Fit(one_factor, MeanField(one_factor, x), store=store)
    found = sbc(run, simulations=200, steps=1500)
    assert found.refitted
    assert found.p_value > 0.01
    assert torch.equal(run.store["params"]["weight"], weight)


def test_covariates_are_simulated_by_whole_data_sets():
    covariate = torch.arange(30, dtype=torch.float64).unsqueeze(1)

    def model(x=None, index=None, size=None):
        shift = covariate if index is None else covariate[index]
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    def guide(x=None, index=None, size=None):
        shift = covariate if index is None else covariate[index]
        with rows(x, index, size):
            pyro.sample("z", dist.Normal((x - shift) / 2, 0.5**0.5).to_event(1))

    run = zoo.Fit(model, guide)
    found = sbc(run, simulations=300, rows=30, build=lambda model, x: guide)
    assert found.simulations == 300
    assert found.p_value > 0.01
    with pytest.raises(ValueError, match="it has covariates for its rows.*pass rows="):
        sbc(run)


def test_a_guide_with_rows_of_its_own_is_explained(iris):
    """A refusal rather than Pyro's shape dump, whether the guide fails or returns q of all its rows."""
    model = zoo.PPCA(4, 2).double()

    def fails(x=None, index=None, size=None):
        loc = pyro.param("loc", torch.zeros(150, 2, dtype=torch.float64))
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def answers(x=None, index=None, size=None):
        loc = pyro.param("loc", torch.zeros(150, 2, dtype=torch.float64))
        with rows(x, index, 150):
            pyro.sample("z", dist.Normal(loc if index is None else loc[index], 1.0).to_event(1))

    for guide in (fails, answers):
        run = zoo.Fit(model, guide)
        with pytest.raises(ValueError, match=f"guide {guide.__name__} has parameters for the rows .* pass build="):
            sbc(run)
        for ask in (gaps, zoo.evaluate, zoo.importance_moments):
            with pytest.raises(
                ValueError, match=r"fails on 50 rows .*select those of the rows numbered by index"
            ) as caught:
                ask(run, iris[:50])
            assert "Trace Shapes" not in str(caught.value)


def test_mixed_sites_are_refused():
    class Mixed(PyroModule):
        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2))
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                mean = (z + c).unsqueeze(-1)
                return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="'c' is discrete beside other sites"):
        sbc(zoo.Fit(Mixed(), lambda x=None, index=None, size=None: None))


def test_deep_model(some):
    """An unfitted guide fails where a fitted one passes."""
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    model.initialize(some)
    found = sbc(zoo.Fit(model, Amortized(model, some, hidden=())))
    assert found.p_value < 0.001


# --- the tests behind it -------------------------------------------------------------------------


def test_the_components_are_orthonormal():
    """Their Gram matrix by Gauss-Legendre quadrature, exact for polynomials of this degree."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    u = torch.tensor((nodes + 1) / 2)
    values = torch.stack([smooth_test(one.reshape(1, 1))[0][:, 0] for one in u])  # (10, 4)
    gram = values.T @ torch.diag(torch.tensor(weights / 2)) @ values
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-8)
    assert (torch.tensor(weights / 2) @ values).abs().max() < 1e-8  # and to the constant


def test_p_values_against_scipy():
    u = torch.rand(300, 3, dtype=torch.float64) ** torch.tensor([1.0, 1.1, 0.9])
    b, p = smooth_test(u)
    np.testing.assert_allclose(p, scipy.stats.chi2.sf(b.square().sum(0), 4), rtol=1e-8)
    expected = [scipy.stats.wilcoxon(column - 0.5, method="asymptotic").pvalue for column in u.T.numpy()]
    np.testing.assert_allclose(symmetry_test(u), expected, rtol=1e-8)


def test_probabilities_where_hardly_anything_is_uncertain():
    """One event of probability 1e-4 among sure ones is rare, and the test knows how rare: no normal law does."""
    share = torch.full((200, 1), 1e-4, dtype=torch.float64)
    none, one = torch.zeros(200, 1), torch.zeros(200, 1)
    one[0] = 1.0
    assert score_test(none, share)[1].item() == pytest.approx(1.0)
    expected = 1 - (1 - 1e-4) ** 200  # the probability of at least one
    error = (expected / 9999) ** 0.5
    assert abs(score_test(one, share)[2].item() - expected) < 5 * error
    sure = torch.zeros(200, 1)
    assert score_test(one, sure)[1].item() == pytest.approx(1e-4)  # what q calls impossible has happened
    assert score_test(none, sure)[1].item() == pytest.approx(1.0)


def test_the_level_of_the_score_test():
    generator = torch.Generator().manual_seed(5)
    share = torch.rand(100, 50, dtype=torch.float64, generator=generator) ** 3
    hit = torch.rand(100, 50, dtype=torch.float64, generator=generator) < share
    _, p, first = score_test(hit, share)
    for values in (p, first):
        assert abs(values.mean() - 0.5) < 5 / (12 * 50) ** 0.5
    _, wrong, _ = score_test(hit[:, :5], share[:, :5] ** 0.25)
    assert wrong.max() < 0.001


def test_the_band_holds_whole_curves():
    generator = np.random.default_rng(1)
    for count in (50, 500):
        at, low, high = ecdf_band(count)
        u = np.sort(generator.uniform(size=(2000, count)))
        curves = np.stack([np.searchsorted(row, at, side="right") / count for row in u]) - at
        inside = ((curves >= low - 1e-12) & (curves <= high + 1e-12)).all(1).mean()
        assert inside > 0.95 - 5 * (0.95 * 0.05 * 2 / 2000) ** 0.5  # two simulations of 2000 curves
        assert inside < 0.99  # and is not wider than it need be: few counts leave steps


def test_correction_for_several_tests():
    assert corrected(torch.tensor([0.02, 0.5, math.nan])) == pytest.approx(0.04)
    assert corrected(torch.tensor([0.9, 0.8])) == 1.0
    assert math.isnan(corrected(torch.tensor([math.nan])))
