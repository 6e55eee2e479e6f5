"""Exports of models with every kind of latent site: shared, in plates, several, summed out, beside covariates."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import rows_plate
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from user_models import (
    BatchDecoder,
    BayesianFactors,
    MixtureOfFactorAnalysers,
    SparseFactors,
    one_mean,
)

import zoo
from guides import MeanField
from zoo.base import Module, rows
from zoo.compat import container
from zoo.export import to_arviz, write_arviz
from zoo.posterior.engine import reader, reading

N = 14


@pytest.fixture
def x():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def groups(idata) -> set[str]:
    return {name.strip("/") for name in (idata.groups() if callable(idata.groups) else idata.groups)} - {""}


def pair(model, guide, x) -> zoo.Fit:
    """A guide as it is built; Pyro's autoguides build themselves in their first call."""
    with torch.no_grad():
        guide(x)
    run = zoo.Fit(model, guide)
    pyro.clear_param_store()
    return run


def exact(family, x) -> zoo.Fit:
    """The one mean under its posterior N(m, v)."""
    run = pair(one_mean, family(one_mean), x)
    variance = 1 / (1 / 100 + x.numel())
    mean, scale = variance * x.sum(), torch.tensor(variance).double().sqrt()
    if family is AutoNormal:
        run.guide.locs.mean, run.guide.scales.mean = mean, scale
    else:
        run.guide.loc = torch.nn.Parameter(mean.reshape(1))
        run.guide.scale = scale.reshape(1)
    pyro.clear_param_store()
    return zoo.Fit(one_mean, run.guide)


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_bounds_of_a_known_evidence(family, x):
    run = exact(family, x)
    idata = to_arviz(run, x, draws=400)
    # sums of 56 numbers under one mean of prior variance 100
    total = N * 4
    covariance = torch.eye(total).double() + 100.0
    evidence = float(dist.MultivariateNormal(torch.zeros(total).double(), covariance).log_prob(x.flatten()))
    attrs = idata.attrs
    assert attrs["log_marginal"] == pytest.approx(evidence, abs=1e-8)
    assert attrs["elbo"] == pytest.approx(evidence, abs=1e-8)
    assert attrs["khat"] < 0.5
    assert idata["sample_stats"].attrs["elbo"] == attrs["elbo"]
    wide = exact(family, x * 1.1)  # the guide of other rows
    idata, found = to_arviz(wide, x, draws=400), zoo.evaluate(wide, x, draws=400)
    attrs = idata.attrs
    assert attrs["elbo"] == pytest.approx(found.total, abs=5 * math.hypot(attrs["elbo_se"], found.shared.total_se))
    assert attrs["elbo"] == pytest.approx(float(idata["sample_stats"]["log_weight"].mean()))
    assert attrs["log_marginal"] == pytest.approx(evidence, abs=5 * attrs["log_marginal_se"])


def test_sites_in_plates(x, tmp_path):
    model = BayesianFactors(latent_dim=2)
    run = pair(model, AutoNormal(model, create_plates=rows_plate, init_scale=0.7), x)
    idata = to_arviz(run, x, draws=30)
    posterior = idata["posterior"]
    assert posterior["weight"].dims == ("chain", "draw", "features", "weight_dim_0")
    assert posterior["weight"].shape == (1, 30, 4, 2)
    assert posterior["precision"].dims == ("chain", "draw")
    assert posterior["z"].dims == ("chain", "draw", "row", "factor")
    weight, precision, z = (torch.as_tensor(posterior[k].values[0]) for k in ("weight", "precision", "z"))
    noise = dist.Normal(z @ weight.mT, precision.rsqrt()[:, None, None])
    standard = dist.Normal(torch.zeros(()).double(), 1.0)
    lp = noise.log_prob(x).sum((-1, -2)) + sum(standard.log_prob(v).flatten(1).sum(1) for v in (weight, z))
    lp += dist.Gamma(torch.tensor(2.0).double(), 1.0).log_prob(precision)
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], lp, rtol=0, atol=1e-8)
    covariance = weight @ weight.mT + torch.diag_embed(precision.reciprocal()[:, None].expand(-1, 4))
    given = dist.MultivariateNormal(torch.zeros(4).double(), covariance.unsqueeze(1)).log_prob(x)
    # a guide that is not fitted: with 100 inner draws the estimate is low in expectation, by half its variance
    assert abs(float((torch.as_tensor(idata["log_likelihood"]["x"].values[0]) - given).mean())) < 0.5
    path = write_arviz(run, x, tmp_path / "run.nc", draws=30, rows_at_once=5, compact=False)
    back = container.load().from_netcdf(str(path))
    own = {k: torch.as_tensor(back["posterior"][k].values[0]) for k in ("weight", "precision", "z")}
    with reading(run, 0):
        densities = reader(run, x).score((x,), own)
    np.testing.assert_allclose(back["sample_stats"]["lp"].values[0], densities.total, rtol=0, atol=1e-8)
    assert back.attrs["elbo"] == pytest.approx(float(back["sample_stats"]["log_weight"].mean()))


def test_a_joint_guide_of_shared_and_local_sites(x, tmp_path):
    model = BayesianFactors()
    run = pair(model, AutoMultivariateNormal(model), x)
    idata = to_arviz(run, x, draws=30)
    assert "log_likelihood" not in groups(idata)
    assert "draws all rows jointly" in idata["posterior"].attrs["log_likelihood"]
    assert {"elbo", "log_marginal", "khat"} <= set(idata.attrs)
    assert "khat" not in idata["sample_stats"].coords
    path = write_arviz(run, x, tmp_path / "run.nc", draws=30, rows_at_once=5, compact=False)
    back = container.load().from_netcdf(str(path))
    np.testing.assert_array_equal(back["posterior"]["weight"].values, idata["posterior"]["weight"].values)


class WithClosedForm(BayesianFactors):
    """The rows' factors integrated out in closed form."""

    def log_marginal_given(self, x, values):
        weight, precision = values["weight"], values["precision"]
        covariance = weight @ weight.mT + torch.diag_embed(precision.reciprocal()[:, None].expand(-1, 4))
        return dist.MultivariateNormal(torch.zeros(4).double(), covariance.unsqueeze(1)).log_prob(x)


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_a_closed_form_given_the_shared_sites(family, x):
    model = WithClosedForm()
    run = pair(model, family(model), x)
    idata = to_arviz(run, x, draws=30)
    values = {k: torch.as_tensor(idata["posterior"][k].values[0]) for k in ("weight", "precision")}
    density = idata["log_likelihood"]["x"]
    np.testing.assert_allclose(density.values[0], model.log_marginal_given(x, values), rtol=0, atol=1e-8)
    assert "closed form" in density.attrs["kind"]
    stats = idata["sample_stats"]
    if family is AutoMultivariateNormal:  # weights of shared sites and rows together
        assert "log_weight_shared" not in stats
        weights = torch.as_tensor(stats["log_weight"].values[0])
    else:
        ratio = stats["lp"].values[0] - stats["log_q"].values[0]
        weights = torch.as_tensor(stats["log_weight_shared"].values[0])
        assert weights.std() < ratio.std()
    assert idata.attrs["log_marginal"] == pytest.approx(float(weights.logsumexp(0)) - math.log(30))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_arviz_loo_is_ours(x):
    run = exact(AutoNormal, x)
    idata = to_arviz(run, x, draws=1000)
    theirs = container.load().loo(idata)
    elpd = float(theirs["elpd_loo" if container.major() < 1 else "elpd"])
    # by hand: without row i the mean is N(m, v) with 13 rows of 4 numbers
    left_out = 0.0
    for i in range(N):
        rest = torch.cat([x[:i], x[i + 1 :]])
        v = 1 / (1 / 100 + rest.numel())
        covariance = torch.eye(4).double() + v
        left_out += float(dist.MultivariateNormal(v * rest.sum().expand(4), covariance).log_prob(x[i]))
    assert elpd == pytest.approx(left_out, abs=0.1)
    ours = zoo.loo(run, x, draws=1000)
    assert elpd == pytest.approx(ours.elpd, abs=0.1)


@pytest.mark.parametrize("wrap", [config_enumerate, lambda model: model])
def test_several_sites_one_of_them_summed_out(x, wrap):
    model = MixtureOfFactorAnalysers()

    def guide(x=None, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))

    run = zoo.Fit(wrap(model), guide)
    idata = to_arviz(run, x, draws=600)
    assert idata.attrs["model"] == "MixtureOfFactorAnalysers"
    assert idata["posterior"]["component"].dims == ("chain", "draw", "row")
    assert idata["posterior"]["component"].dtype == np.int64
    assert "weight" in idata["constant_data"]
    assert "log_likelihood" not in groups(idata)
    exact = []
    for weight, mean in zip(model.weight.detach(), model.mean.detach(), strict=True):
        exact.append(dist.MultivariateNormal(mean, weight @ weight.T + torch.eye(4).double()).log_prob(x))
    exact = (torch.stack(exact) + math.log(0.5)).logsumexp(0).numpy()
    found = idata["constant_data"]
    assert (np.abs(found["log_marginal"].values - exact) < 6 * found["log_marginal_se"].values + 0.01).all()
    both = to_arviz(zoo.Fit(model, MeanField(model, x)), x, draws=30)
    assert {"z", "component"} == set(both["posterior"].data_vars)


def test_covariates_of_the_rows(x, tmp_path):
    batch = torch.arange(N, dtype=torch.float64).unsqueeze(-1)
    model = BatchDecoder(batch)
    model.slope = torch.ones(1, 4).double()
    run = zoo.Fit(model, MeanField(model, x))
    path = write_arviz(run, x, tmp_path / "run.nc", draws=200, rows_at_once=4, compact=False)
    idata = container.load().from_netcdf(str(path))
    for group in ("posterior_predictive", "prior_predictive"):
        mean = idata[group]["x"].values[0].mean((0, -1))
        assert np.abs(np.diff(mean) - 1).max() < 0.6
    slope = idata["constant_data"]["slope"]
    assert slope.shape == (1, 4)


def test_data_of_another_name(x):
    model = SparseFactors()
    idata = to_arviz(zoo.Fit(model, MeanField(model, x)), x, draws=30)
    np.testing.assert_array_equal(idata["observed_data"]["y"].values, x.numpy())
    assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "row", "column")

    def shared(x=None, index=None, size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(4, dtype=torch.float64), 10.0).to_event(1))
        with rows(x, index, size):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=x)

    idata = to_arviz(pair(shared, AutoNormal(shared), x), x, draws=30)
    assert set(idata["log_likelihood"].data_vars) == {"y"}


def test_data_in_a_plate_of_the_columns(x):
    class Columns(Module):
        def forward(self, x=None, index=None, size=None):
            zero = torch.zeros((), dtype=torch.float64)
            with pyro.plate("features", 4, dim=-2):
                mean = pyro.sample("mean", dist.Normal(zero, 1.0))  # (d, 1)
                with rows(x, index, size):
                    return pyro.sample("x", dist.Normal(mean, 1.0), obs=None if x is None else x.mT)

    model = Columns()
    idata = to_arviz(pair(model, AutoNormal(model), x), x, draws=30)
    np.testing.assert_array_equal(idata["observed_data"]["x"].values, x.numpy())
    assert idata["posterior"]["mean"].dims == ("chain", "draw", "features")
    assert idata["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "column")
    mean = torch.as_tensor(idata["posterior"]["mean"].values[0])
    expected = dist.Normal(mean[:, None], 1.0).log_prob(x).sum(-1)
    np.testing.assert_allclose(idata["log_likelihood"]["x"].values[0], expected, rtol=0, atol=1e-8)


def test_names_that_clash(x):
    def model(plate, site):
        def story(x=None, index=None, size=None):
            with pyro.plate(plate, 4):
                weight = pyro.sample(site, dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with rows(x, index, size):
                return pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)

        return story

    for plate, site, message in (
        ("draw", "weight", "plate 'draw' has the name of a dimension"),
        ("features", "factor", "latent site 'factor' has the name of a dimension"),
    ):
        own = model(plate, site)
        run = pair(own, AutoNormal(own), x)
        with pytest.raises(ValueError, match=message):
            to_arviz(run, x, draws=2)


def test_a_single_draw(x):
    model = SparseFactors()
    idata = to_arviz(zoo.Fit(model, MeanField(model, x)), x, draws=1)
    assert np.isnan(idata["constant_data"]["log_marginal_se"].values).all()
    assert np.isfinite(idata["constant_data"]["log_marginal"].values).all()
    idata = to_arviz(exact(AutoNormal, x), x, draws=1)
    assert idata["log_likelihood"]["x"].shape == (1, 1, N)
    assert math.isnan(idata.attrs["elbo_se"])
