"""Moments, chains, replicates and left-out rows of models whose rows share sites, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal

import zoo
from zoo.base import Module, rows
from zoo.diagnostics import importance_moments, loo, nuts, predictive_check

PRIOR, NOISE, N = 3.0, 0.5, 20  # of theta; of x given z


def nested(x=None, index=None, size=None):
    """theta ~ N(0, PRIOR^2), z_n ~ N(theta, 1), y_n ~ N(z_n, NOISE^2)."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=torch.float64), PRIOR))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(theta, 1.0))
        return pyro.sample("y", dist.Normal(z.unsqueeze(-1), NOISE).to_event(1), obs=x)


def mean_only(x=None, index=None, size=None):
    """theta ~ N(0, PRIOR^2), y_n ~ N(theta, 1)."""
    theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=torch.float64), PRIOR))
    with rows(x, index, size):
        return pyro.sample("y", dist.Normal(theta.unsqueeze(-1), 1.0).to_event(1), obs=x)


def exact(x):
    """Mean (1 + n,) and covariance of theta and z given the rows."""
    n = len(x)
    precision = torch.zeros(1 + n, 1 + n, dtype=torch.float64)
    precision[0, 0] = PRIOR**-2 + n
    precision[0, 1:] = precision[1:, 0] = -1.0
    precision[1:, 1:] = (1 + NOISE**-2) * torch.eye(n, dtype=torch.float64)
    covariance = precision.inverse()
    return covariance @ torch.cat([torch.zeros(1).double(), x[:, 0] / NOISE**2]), covariance


@pytest.fixture(scope="module")
def x():
    return 1.0 + torch.randn(N, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def wide(x, theta_times=1.3, z_times=1.2):
    """A guide with the posterior of theta and of z given theta, both too wide."""
    mean, covariance = exact(x)

    def guide(x=None, index=None, size=None):
        theta = pyro.sample("theta", dist.Normal(mean[0], theta_times * covariance[0, 0].sqrt()))
        with rows(x, index, size):
            share = 1 / (1 + NOISE**-2)
            loc = share * (theta + x[:, 0] / NOISE**2)
            pyro.sample("z", dist.Normal(loc, z_times * share**0.5))

    return guide


def joint(x):
    """Pyro's joint autoguide at the exact posterior."""
    guide = AutoMultivariateNormal(nested)
    guide(x)
    mean, covariance = exact(x)
    root = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        guide.loc.copy_(mean)
    guide.scale = root.diagonal()
    guide.scale_tril = root / root.diagonal().unsqueeze(-1)
    pyro.clear_param_store()
    return guide


def test_moments_of_shared_and_local_sites(x, untouched):
    run = zoo.Fit(nested, wide(x))
    with untouched():
        found = importance_moments(run, x, draws=2000, inner=50)
    mean, covariance = exact(x)
    shared = found.shared
    assert shared.units == ("theta[0]",)
    assert shared.khat < 0.7
    assert not shared.refused
    assert found.refused == []
    assert found.units == ("z[0]",)
    assert abs(shared.mean[0] - mean[0]) < 5 * shared.mean_se[0]
    assert shared.guide_covariance[0, 0] > 1.4 * covariance[0, 0]
    assert float(shared.covariance[0, 0] / covariance[0, 0]) == pytest.approx(1.0, abs=5 * (2 / shared.ess) ** 0.5)
    variance = covariance.diagonal()[1:]
    error = found.mean_se[:, 0] + 5 * (variance / (2000 * 50)).sqrt()
    assert ((found.mean[:, 0] - mean[1:]).abs() < 5 * error).all()
    ratio = found.covariance[:, 0, 0] / variance
    assert ((ratio - 1).abs() < 0.1).all()
    assert (found.guide_covariance[:, 0, 0] > 1.3 * variance).all()
    assert found.frame().height == N
    assert shared.frame()["unit"].to_list() == ["theta[0]"]
    assert found.summary()["khat_shared"] == shared.khat


def test_moments_of_a_joint_guide(x):
    found = importance_moments(zoo.Fit(nested, joint(x)), x, draws=500)
    mean, covariance = exact(x)
    assert found.shared.khat < 0.5  # exact: weights equal up to rounding
    error = (covariance.diagonal() / 500).sqrt()
    assert abs(found.shared.mean[0] - mean[0]) < 5 * error[0]
    assert ((found.mean[:, 0] - mean[1:]).abs() < 5 * error[1:]).all()


def test_moments_without_local_sites_are_refused_where_the_guide_is_narrow():
    x = 1.0 + torch.randn(N, 1, dtype=torch.float64)
    variance = 1 / (PRIOR**-2 + N)

    def guide(x=None, index=None, size=None):
        pyro.sample("theta", dist.Normal(variance * x.sum(), 0.3 * variance**0.5))

    found = importance_moments(zoo.Fit(mean_only, guide), x, draws=2000)
    assert found.mean.shape == (N, 0)
    assert found.refused == []
    assert found.shared.refused
    assert found.shared.mean.isnan().all()
    with pytest.raises(ValueError, match=r"weights of theta\[0\] have k-hat .* above 0.70"):
        found.shared.moments()


def test_chains_of_shared_sites_are_compared(x):
    """A scalar site that rows share, by itself: neither guide nor chains have a covariance of rows."""
    guide = AutoNormal(mean_only)
    guide(x)
    pyro.clear_param_store()
    run = zoo.Fit(mean_only, guide)
    chains = nuts(run, x, chains=2, draws=100, warmup=60)
    variance = 1 / (PRIOR**-2 + N)
    assert abs(chains.mean["theta"] - variance * x.sum()) < 5 * chains.mean_se["theta"]
    compared = chains.compare(run)
    loc, scale = guide.locs.theta.detach(), guide.scales.theta.detach()
    assert compared.mean["theta"].shape == ()
    expected = (loc - variance * x.sum()) / variance**0.5
    assert abs(compared.mean["theta"] - expected) < 5 * compared.mean_se["theta"] + 0.3 * abs(expected)
    assert abs(compared.deviation["theta"] - (scale / variance**0.5 - 1)) < 5 * compared.deviation_se["theta"] + 0.3
    assert compared.frame()["site"].to_list() == ["theta"]
    assert chains.frame().columns[:2] == ["site", "place"]


def test_chains_of_plates_and_of_sites_that_are_summed_out():
    rate = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def model(x=None, index=None, size=None):
        with pyro.plate("features", 2, dim=-2):
            weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
        with rows(x, index, size):
            c = pyro.sample("c", dist.Categorical(rate))
            loc = weight.sum(-1).sum(-2, keepdim=True) + 4.0 * c
            return pyro.sample("x", dist.Normal(loc.unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = torch.tensor([[0.2], [4.1], [3.9]], dtype=torch.float64)
    found = nuts(zoo.Fit(model, lambda x=None, index=None, size=None: None), x, chains=2, draws=20, warmup=20)
    assert found.samples["weight"].shape == (2, 20, 2, 3)
    assert found.discrete["c"].shape == (2, 20, 3)
    total = found.samples["weight"].sum((-1, -2)).unsqueeze(-1)  # (2, 20, 1)
    odds = (
        dist.Normal(total + 4.0, 1.0).log_prob(x[:, 0])
        - dist.Normal(total, 1.0).log_prob(x[:, 0])
        + math.log(0.7 / 0.3)
    )
    share = odds.sigmoid()
    error = (share * (1 - share)).sum().sqrt() + 1e-6
    assert abs(found.discrete["c"].double().sum() - share.sum()) < 5 * error


@pytest.mark.parametrize("given", ["prior", "rows"])
def test_replicates_of_a_joint_guide_and_a_data_site_of_another_name(x, given):
    found = predictive_check(zoo.Fit(nested, joint(x)), x, draws=200, given=given)
    means = found.replicates[:, found.statistics.index("mean")]
    mean, covariance = exact(x)
    average = torch.full((N,), 1 / N, dtype=torch.float64)
    if given == "rows":
        centre, variance = mean[1:].mean(), average @ covariance[1:, 1:] @ average + NOISE**2 / N
    else:
        centre, variance = mean[0], covariance[0, 0] + (1 + NOISE**2) / N
    assert abs(means.mean() - centre) < 5 * (variance / 200).sqrt()
    assert abs(means.std() / variance.sqrt() - 1) < 5 / (2 * 200) ** 0.5
    assert found.frame().height == len(found.observed)
    assert found.summary()["outside"] == len(found.outside)


def left_out(x):
    """log p(y_i | y_-i) in closed form (n,)."""
    noise, found = 1 + NOISE**2, []
    for i in range(len(x)):
        rest = torch.cat([x[:i], x[i + 1 :]])
        variance = 1 / (PRIOR**-2 + len(rest) / noise)
        spread = (variance + noise) ** 0.5
        found.append(torch.distributions.Normal(variance * rest.sum() / noise, spread).log_prob(x[i, 0]))
    return torch.stack(found)


def test_left_out_rows_of_a_joint_guide_with_local_sites(x):
    """Their own sites are integrated out by a Gaussian with the moments of the guide's draws."""
    found = loo(zoo.Fit(nested, joint(x)), x, draws=1000, inner=200)
    far, variance = (x - exact(x)[0][0]).abs().max(), exact(x)[1][0, 0]
    tolerance = 5 * float(far / (1 + NOISE**2) * (variance / 1000).sqrt()) + 5 / 1000 + 0.02
    assert (found.pointwise - left_out(x)).abs().max() < tolerance
    assert found.high == []
    assert found.frame().height == N
    assert found.summary()["elpd"] == found.elpd


class Conditional(Module):
    """The same model with its rows' exact density given theta."""

    def forward(self, x=None, index=None, size=None):
        return nested(x, index, size)

    def log_marginal_given(self, x, values):
        return dist.Normal(values["theta"].unsqueeze(-1), (1 + NOISE**2) ** 0.5).log_prob(x[:, 0])


def test_an_exact_density_given_the_shared_sites_is_used(x):
    run, plain = zoo.Fit(Conditional(), wide(x, 1.0, 1.5)), zoo.Fit(nested, wide(x, 1.0, 1.5))
    found, noisy = loo(run, x, draws=400, inner=5), loo(plain, x, draws=400, inner=5)
    known = left_out(x)
    assert (found.pointwise - known).abs().max() < (noisy.pointwise - known).abs().max()
    assert (found.pointwise - known).abs().max() < 0.1
    weighted = importance_moments(run, x, draws=400, inner=50)
    assert weighted.shared.ess > 390  # theta is exact, so are its weights


@pytest.mark.parametrize("family", [AutoDelta, AutoLaplaceApproximation])
def test_point_estimates_have_no_density(x, family):
    guide = family(mean_only)
    guide(x)
    pyro.clear_param_store()
    run = zoo.Fit(mean_only, guide)
    for ask in (importance_moments, loo, zoo.evaluate):
        with pytest.raises(ValueError, match="has a point mass on 'theta'"):
            ask(run, x)
    found = zoo.diagnose(run, x)
    assert found.level == "bad"
    assert not found.trusted
    assert "a point estimate, not a posterior" in found["posterior"].reason
    assert predictive_check(run, x, draws=20).replicates.isfinite().all()  # replicates need no density
