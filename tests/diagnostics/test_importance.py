"""Importance-corrected moments and the distance from the exact posterior, where the truth is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch.distributions import kl_divergence

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField
from zoo.base.plates import rows
from zoo.diagnostics import importance_moments, posterior_error


def off(model, x, times=1.0, shift=0.0):
    """A full-rank guide with ``times`` the posterior's deviations, its means off by ``shift`` deviations."""
    guide, posterior = FullRank(model, x), model.posterior(x)
    guide.loc, guide.scale_tril = posterior.mean + shift * posterior.stddev, times * posterior.scale_tril
    return zoo.Fit(model, guide)


def test_the_exact_guide_is_at_the_floor(model, iris, untouched):
    run = zoo.Fit(model, Exact(model))
    with untouched():
        found = importance_moments(run, iris)
    assert (found.khat == -math.inf).all()
    torch.testing.assert_close(found.ess, torch.full((150,), 1000.0, dtype=torch.float64))
    assert found.refused == []
    posterior = model.posterior(iris)
    torch.testing.assert_close(found.guide_mean, posterior.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.guide_covariance, posterior.covariance_matrix, rtol=1e-8, atol=1e-8)
    assert ((found.mean - posterior.mean).abs() < 5 * found.mean_se).all()  # plain means of draws
    torch.testing.assert_close(found.mean_se, posterior.stddev / 1000**0.5, rtol=5 / 2000**0.5, atol=0)
    mean, covariance = found.at(3)
    assert torch.equal(mean, found.mean[3])
    assert torch.equal(covariance, found.covariance[3])
    assert found.units == ("z[0]", "z[1]")
    assert found.limit == pytest.approx(2 / 3)
    assert "0 rows refused" in repr(found)


def test_a_guide_far_too_narrow_is_refused(model, some):
    """A third of the posterior's deviation: a tail of shape 1 - 1/9, which 40,000 draws show to within 0.08 or so."""
    x = some[::3]
    found = importance_moments(off(model, x, 1 / 3), x, draws=40_000)
    assert (found.khat > 0.7).double().mean() >= 0.95
    assert found.limit == 0.7
    row = found.refused[0]
    assert found.mean[found.refused].isnan().all()
    assert found.covariance[found.refused].isnan().all()
    assert found.mean_se[found.refused].isnan().all()
    with pytest.raises(ValueError, match=rf"row {row} has k-hat .* above 0.70.*zoo.nuts"):
        found.at(row)
    with pytest.raises(IndexError, match="row 20 is not among the 20 rows"):
        found.at(20)


def test_a_guide_slightly_too_narrow_passes(model, iris):
    found = importance_moments(off(model, iris, 0.95), iris, draws=2000)
    assert (found.khat < 0.5).all()  # the tail's shape is 1 - 0.95 ** 2
    assert found.refused == []


def test_khat_is_of_a_row_and_does_not_grow_with_the_rows(model):
    torch.manual_seed(2)
    x = model(size=1000)
    few, many = (importance_moments(off(model, x[:n], 0.95), x[:n], draws=500).khat for n in (10, 1000))
    pooled = many.std()  # of an estimate from 500 draws
    assert abs(few.mean() - many.mean()) < 5 * pooled * (1 / 10 + 1 / 1000) ** 0.5
    assert many.quantile(0.99) < 0.7


def test_corrected_moments_are_nearer_to_the_posterior(model, iris):
    found = importance_moments(off(model, iris, 1.2, 0.3), iris, draws=4000)
    posterior = model.posterior(iris)
    assert found.refused == []
    torch.testing.assert_close(found.guide_mean, posterior.mean + 0.3 * posterior.stddev, rtol=1e-8, atol=1e-8)
    error = (found.mean - posterior.mean).abs() / posterior.stddev
    assert error.max() < 0.3  # the guide's own, on every row and unit
    assert error.mean() < 0.3 / 10
    assert ((found.mean - posterior.mean).abs() < 5 * found.mean_se).all()
    wrong = (found.guide_covariance - posterior.covariance_matrix).abs().mean()
    assert (found.covariance - posterior.covariance_matrix).abs().mean() < wrong / 5


def test_the_narrower_limit_of_few_draws(model, some):
    found = importance_moments(off(model, some), some, draws=100)
    assert found.limit == pytest.approx(0.5)


def test_responsibilities_are_corrected(some):
    """A discrete site counts as its indicators: weights of flat draws give the exact responsibilities."""
    model = zoo.GMM(4, 3).double()
    torch.manual_seed(3)
    model.initialize(some)
    zoo.em(model, some, steps=20)
    guide = MeanField(model, some, closed_form=False)
    share = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    guide.component_logits = share.log().expand(60, 3).clone()
    found = importance_moments(zoo.Fit(model, guide), some, draws=4000)
    torch.testing.assert_close(found.guide_mean, share.expand(60, 3))
    probs = model.posterior(some).probs.detach()
    assert ((found.mean - probs).abs() <= 5 * found.mean_se + 1e-8).all()
    assert found.mean_se.max() < 0.05
    torch.testing.assert_close(found.covariance.diagonal(dim1=-2, dim2=-1), found.mean * (1 - found.mean))


def test_a_guide_without_closed_form(some):
    """A flow's own moments come from its draws."""
    model = zoo.PPCA(4, 2).double()
    model.initialize(some)
    run = zoo.Fit(model, Flow(model, some))
    found = importance_moments(run, some, draws=1000)
    z = run.sample(some, 1000, seed=1)["z"]
    error = (2 / 1000) ** 0.5 * z.std(0)  # of a difference of two means
    assert ((found.guide_mean - z.mean(0)).abs() < 5 * error).all()


def test_chunks_of_rows_give_rows_of_their_own(model, iris, monkeypatch):
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 7 * 400 * 6)
    posterior = model.posterior(iris)
    found = importance_moments(off(model, iris, 1.2), iris, draws=400)
    torch.testing.assert_close(found.guide_mean, posterior.mean)
    assert ((found.mean - posterior.mean).abs() < 5 * found.mean_se).all()


def test_importance_refuses(model, some):
    run = off(model, some)
    for draws in (0, 24, -1, 2.5):
        with pytest.raises(ValueError, match="draws must be"):
            importance_moments(run, some, draws=draws)
    with pytest.raises(ValueError, match="FullRank holds 60 rows, got 59"):
        importance_moments(run, some[:59])
    free = zoo.PPCA(4, 2).double()
    with pytest.raises(ValueError, match="point mass on 'z'"):
        importance_moments(zoo.Fit(free, AutoDelta(free)), some)


def test_weights_that_are_no_numbers_name_their_row(some):
    def guide(x, index=None, size=None):
        scale = torch.ones(len(x), 2).double()
        scale[7] = math.nan
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(0.0, scale).to_event(1))

    model = zoo.PPCA(4, 2).double()
    run = zoo.Fit(model, guide)
    with pytest.raises(ValueError, match="log weights of row 7 are NaN"):
        importance_moments(run, some)


@pytest.mark.parametrize("family", [MeanField, FullRank, Amortized])
def test_posterior_error_by_brute_force(family, some, untouched):
    model = zoo.FactorAnalysis(4, 2).double()
    model.initialize(some)
    guide = family(model, some)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    run = zoo.Fit(model, guide)
    with untouched():
        found = posterior_error(run, some)
    with torch.no_grad():
        q, p = guide.posterior(some), model.posterior(some)
        covariance = torch.diag_embed(q.variance) if family is not FullRank else q.covariance_matrix
        kl = kl_divergence(dist.MultivariateNormal(q.mean, covariance), p)
    torch.testing.assert_close(found.kl, kl, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.kl, zoo.evaluate(run, some).gap, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.shift, (q.mean - p.mean) / p.variance.sqrt(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.mean, found.shift.abs().max(1).values)
    torch.testing.assert_close(found.deviation, (q.variance / p.variance).sqrt(), rtol=1e-8, atol=1e-8)
    for row in (0, 17):
        ours, theirs = (c[row, 0, 1] / (c[row, 0, 0] * c[row, 1, 1]).sqrt() for c in (covariance, p.covariance_matrix))
        torch.testing.assert_close(found.correlation[row, 1, 0], ours - theirs, rtol=1e-8, atol=1e-8)
    assert found.correlation.diagonal(dim1=-2, dim2=-1).abs().max() < 1e-8


def test_posterior_error_of_what_is_known(model, some):
    found = posterior_error(off(model, some, 0.8, 0.3), some)
    torch.testing.assert_close(found.shift, torch.full((60, 2), 0.3, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.deviation, torch.full((60, 2), 0.8, dtype=torch.float64), rtol=0, atol=1e-8)
    assert found.correlation.abs().max() < 1e-8
    assert found.summary()["shift"] == pytest.approx(0.3)
    assert "off by 0.3 posterior standard deviations" in repr(found)
    exact = posterior_error(zoo.Fit(model, Exact(model)), some)
    assert exact.kl.abs().max() < 1e-8


def test_posterior_error_with_missing_entries(some):
    x = some.clone()
    x[::3, 1] = math.nan
    model = zoo.PPCA(4, 2).double()
    model.initialize(x)
    found = posterior_error(zoo.Fit(model, Exact(model)), x)
    assert found.kl.abs().max() < 1e-8


def test_posterior_error_refuses(some):
    deep = zoo.VAE(4, 2, hidden=(8,)).double()
    with pytest.raises(ValueError, match="VAE has no closed-form posterior: zoo.importance_moments"):
        posterior_error(zoo.Fit(deep, Amortized(deep, some)), some)
    mixture = zoo.GMM(4, 2).double()
    mixture.initialize(some)
    with pytest.raises(ValueError, match="posterior_error needs .* 'component' is discrete"):
        posterior_error(zoo.Fit(mixture, Exact(mixture)), some)
    linear = zoo.PPCA(4, 2).double()
    with pytest.raises(ValueError, match="guide Flow is a .* zoo.evaluate gives the KL"):
        posterior_error(zoo.Fit(linear, Flow(linear, some)), some)
