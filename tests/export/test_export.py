import json
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import guides
import zoo
from zoo.compat import container
from zoo.data import Dataset
from zoo.export import elpd, to_arviz, variables
from zoo.infer.fitting import Fit
from zoo.posterior import evaluation
from zoo.posterior.engine import reader, reading
from zoo.posterior.psis import psis_khat, psis_weights


def groups(idata) -> set[str]:
    return {name.strip("/") for name in (idata.groups() if callable(idata.groups) else idata.groups)} - {""}


def read(path):
    return container.load().from_netcdf(str(path))


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(30, 2, generator=generator)
    x = factors @ torch.randn(2, 4, generator=generator) + 0.3 * torch.randn(30, 4, generator=generator)
    labels = (factors[:, 0] > 0).long()
    return Dataset(x, labels, ("low", "high"), ("a", "b", "c", "d"), "toy", "simulated", "CC0")


@pytest.fixture(scope="module")
def run(data):
    model = zoo.FactorAnalysis(4, 2)
    return zoo.fit(model, guides.FullRank(model, data.x), data.x, steps=30, progress=False)


@pytest.fixture(scope="module")
def mixture(data):
    model = zoo.GMM(4, 2, "tied")
    return zoo.fit(model, guides.MeanField(model, data.x), data.x, steps=30, progress=False)


def trained(model, guide, x, steps=5) -> Fit:
    """A pair trained in an SVI of the user's own."""
    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    for _ in range(steps):
        svi.step(x)
    run = Fit(model, guide)
    pyro.clear_param_store()
    return run


def plain(x=None, index=None, size=None):
    """Bayesian regression-like model without a class: a shared mean, local factors, a parameter."""
    n = size if size is not None else len(x)
    scale = pyro.param("noise_scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("rows", n, subsample=index, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = torch.cat([z, z], -1)
        return pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)


def hierarchical(x=None, index=None, size=None):
    n = size if size is not None else len(x)
    centre = pyro.sample("centre", dist.Normal(torch.zeros(4), 3.0).to_event(1))
    with pyro.plate("rows", n, subsample=index, dim=-1):
        return pyro.sample("x", dist.Normal(centre, 1.0).to_event(1), obs=x)


class Shared(zoo.base.Module):
    """A shared site and local ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = pyro.nn.PyroParam(torch.ones(()), dist.constraints.positive)

    def forward(self, x=None, index=None, size=None):
        centre = pyro.sample("centre", dist.Normal(self.scale.new_zeros(4), 3.0).to_event(1))
        with zoo.base.rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.scale.new_zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(centre + z, self.scale).to_event(1), obs=x)


def test_groups_dims_and_coords(run, data):
    idata = to_arviz(run, data, draws=7)
    assert groups(idata) == {
        "posterior",
        "posterior_predictive",
        "observed_data",
        "prior",
        "prior_predictive",
        "sample_stats",
        "constant_data",
    }
    assert idata["posterior"]["z"].dims == ("chain", "draw", "row", "factor")
    assert idata["posterior"]["z"].shape == (1, 7, 30, 2)
    assert idata["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "column")
    assert list(idata["observed_data"]["column"].values) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(idata["observed_data"]["x"].values, data.x.numpy())
    constant = idata["constant_data"]
    assert constant["weight"].dims == ("column", "factor")
    assert constant["mean"].dims == constant["scale"].dims == constant["noise"].dims == ("column",)
    np.testing.assert_array_equal(constant["weight"].values, run.model.weight.detach().numpy())
    assert list(constant["label"].values[:5]) == [data.label_names[i] for i in data.labels[:5].tolist()]


def test_draws_are_those_of_the_guide(run, data):
    z = to_arviz(run, data, draws=4000)["posterior"]["z"].values[0]
    q = run.guide.posterior(data.x)
    error = np.abs(z.mean(0) - q.mean.detach().numpy()) / q.stddev.detach().numpy()
    assert error.max() < 5 / np.sqrt(4000)  # five standard errors


def test_predictions_follow_the_draws(run, data):
    idata = to_arviz(run, data, draws=2000)
    weight, centre = run.model.weight.detach().numpy(), run.model.mean.detach().numpy()
    mean = idata["posterior"]["z"].values[0] @ weight.T + centre
    residual = (idata["posterior_predictive"]["x"].values[0] - mean) / run.model.noise.detach().sqrt().numpy()
    assert abs(residual.mean()) < 5 / np.sqrt(residual.size)
    assert abs(residual.var() - 1) < 5 * np.sqrt(2 / residual.size)


def test_log_marginal_of_point_estimates(run, data):
    idata = to_arviz(run, data, draws=3)
    log_marginal = idata["constant_data"]["log_marginal"]
    assert log_marginal.dims == ("row",)
    np.testing.assert_array_equal(log_marginal.values, run.model.log_marginal(data.x).detach().numpy())
    assert log_marginal.attrs["kind"] == "log p(x_i) in closed form, nats"
    assert "log_likelihood" not in groups(idata)
    assert "held-out" in idata["posterior"].attrs["log_likelihood"]
    assert "log_marginal_se" not in idata["constant_data"]


def linear_joint(model, x, z):
    """log p(x, z) of a linear-Gaussian model, by hand."""
    prior = dist.Normal(torch.zeros(()).to(z), 1.0).log_prob(z).sum(-1)
    mean = z @ model.weight.detach().to(z).T + model.mean.detach().to(z)
    return prior + dist.Normal(mean, model.noise.detach().to(z).sqrt()).log_prob(x.to(z)).sum(-1)


def test_sample_stats_are_the_densities_of_the_draws(run, data):
    idata = to_arviz(run, data, draws=40)
    stats = idata["sample_stats"]
    assert stats["lp"].dims == stats["log_q"].dims == stats["log_weight"].dims == ("chain", "draw", "row")
    assert stats["khat"].dims == ("row",)
    z = torch.tensor(idata["posterior"]["z"].values[0], dtype=torch.float64)
    np.testing.assert_allclose(stats["lp"].values[0], linear_joint(run.model, data.x, z), rtol=0, atol=1e-4)
    log_q = run.guide.posterior(data.x).log_prob(z.float()).detach()
    np.testing.assert_allclose(stats["log_q"].values[0], log_q, rtol=0, atol=1e-4)  # float32
    difference = stats["lp"].values - stats["log_q"].values
    np.testing.assert_array_equal(stats["log_weight"].values, difference)
    np.testing.assert_array_equal(stats["khat"].values, psis_khat(torch.tensor(difference[0])).numpy())


@pytest.mark.parametrize("name", ["PPCA", "FactorAnalysis", "GMM"])
def test_weights_of_the_exact_guide_are_the_marginal(name, iris):
    x = iris[::5].clone()
    model = getattr(zoo, name)(4, 2).double()
    zoo.em(model, x, steps=5, accelerate=False)
    x[0, 1] = x[3, :3] = torch.nan
    stats = to_arviz(Fit(model, guides.Exact(model)), x, draws=30)["sample_stats"]
    expected = model.log_marginal(x).detach().numpy()
    assert np.abs(stats["log_weight"].values[0] - expected).max() < 1e-8
    assert (stats["khat"].values == -np.inf).all()


def test_prior(run, data):
    draws = 2000
    idata = to_arviz(run, data, draws=draws)
    assert idata["prior"]["z"].dims == idata["posterior"]["z"].dims
    assert idata["prior_predictive"]["x"].dims == idata["posterior_predictive"]["x"].dims
    z, x = idata["prior"]["z"].values[0], idata["prior_predictive"]["x"].values[0]
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    model = run.model
    residual = x - z @ model.weight.detach().numpy().T - model.mean.detach().numpy()
    scaled = residual / model.noise.detach().sqrt().numpy()
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
    assert abs(scaled.var() - 1) < 5 * np.sqrt(2 / scaled.size)


def test_prior_of_a_mixture(mixture, data):
    labels = to_arviz(mixture, data.x, draws=500)["prior"]["component"].values
    weight = mixture.model.weight.detach()[1].item()
    assert labels.dtype == np.int64
    assert abs(labels.mean() - weight) < 5 * np.sqrt(weight * (1 - weight) / labels.size)


def test_few_draws_have_no_khat(run, data):
    stats = to_arviz(run, data, draws=24)["sample_stats"]
    assert "khat" not in stats.coords
    assert "needs 30 draws" in stats.attrs["note"]


def test_masked_rows_have_no_density_of_their_own(data):
    class Masked(zoo.base.Module):
        def forward(self, x=None, index=None, size=None):
            with zoo.base.rows(x, index, size) as numbers:
                z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
                with pyro.poutine.mask(mask=numbers > 9):
                    return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    model = Masked()
    run = Fit(model, guides.MeanField(model, data.x))
    idata = to_arviz(run, data.x, draws=5)
    z = torch.tensor(idata["posterior"]["z"].values[0])
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    data_part = dist.Normal(z, 1.0).log_prob(data.x).sum(-1)
    expected = prior + torch.where(torch.arange(30) > 9, data_part, torch.zeros(()))
    np.testing.assert_allclose(idata["sample_stats"]["lp"].values[0], expected, rtol=1e-5)


def test_mixture(mixture, data):
    idata = to_arviz(mixture, data.x, draws=6)
    component = idata["posterior"]["component"]
    assert component.dims == ("chain", "draw", "row")
    assert component.dtype == np.int64
    assert set(np.unique(component.values)) <= {0, 1}
    assert idata["constant_data"]["weight"].dims == ("component",)
    assert idata["constant_data"]["mean"].dims == ("component", "column")
    assert idata["constant_data"]["scale"].dims == ("column", "column_other")
    assert list(idata["observed_data"]["column"].values) == ["x0", "x1", "x2", "x3"]
    assert "label" not in idata["constant_data"]


@pytest.mark.parametrize(
    ("covariance", "dims"),
    [
        ("full", ("component", "column", "column_other")),
        ("tied", ("column", "column_other")),
        ("diag", ("component", "column")),
        ("spherical", ("component",)),
    ],
)
def test_mixture_dims_with_as_many_components_as_columns(covariance, dims, data):
    model = zoo.GMM(4, 4, covariance)
    run = Fit(model, guides.MeanField(model, data.x))
    with reading(run, 0):
        found = variables.parameters(model, reader(run, data.x))
    assert found["scale"].dims == dims
    assert found["weight"].dims == ("component",)


def test_discrete_site_summed_out_of_the_guide_comes_from_the_model(data):
    model = zoo.GMM(4, 2, start="random")

    def nothing(x=None, index=None, size=None):
        pass

    run = zoo.fit(model, nothing, data.x, loss=TraceEnum_ELBO(max_plate_nesting=1), steps=20, progress=False)
    share = to_arviz(run, data.x, draws=1000)["posterior"]["component"].values[0].mean(0)
    expected = run.model.posterior(data.x).probs[:, 1].detach().numpy()
    assert ((expected > 0.05) & (expected < 0.95)).any()  # else one draw for all would do
    assert np.abs(share - expected).max() < 5 * 0.5 / np.sqrt(1000)


def test_deep_model_gets_an_importance_weighted_estimate(data):
    model = zoo.VAE(4, 2, hidden=(8,))
    guide = guides.Amortized(model, data.x, hidden=(8,))
    run = zoo.fit(model, guide, data.x, steps=100, progress=False)
    idata = to_arviz(run, data, draws=50)
    density = idata["constant_data"]["log_marginal"]
    assert density.attrs["draws"] == 50
    assert "50 draws" in density.attrs["kind"]
    assert set(idata["constant_data"].data_vars) == {"label", "log_marginal", "log_marginal_se"}  # no network weights
    found = zoo.evaluate(run, data.x, draws=500)
    error = idata["constant_data"]["log_marginal_se"].values
    assert (
        np.abs(density.values - found.log_marginal.numpy()) < 6 * np.hypot(error, found.log_marginal_se.numpy())
    ).all()


def brute_force(x: Tensor) -> Tensor:
    """log N(x | 0, W W' + I / 4) of the plain model at its start."""
    weight = torch.cat([torch.eye(2), torch.eye(2)])
    return dist.MultivariateNormal(torch.zeros(4), weight @ weight.T + 0.25 * torch.eye(4)).log_prob(x)


def test_plain_function_with_autoguide(data):
    def frozen(x=None, index=None, size=None):
        with pyro.poutine.block(hide_types=["param"]):
            return plain(x, index, size)

    run = zoo.fit(plain, AutoNormal(plain), data.x, steps=5, progress=False)
    idata = to_arviz(run, data.x, draws=20, columns=list("pqrs"))
    assert idata.attrs["model"] == "plain"
    assert idata.attrs["guide"] == "AutoNormal"
    assert idata["posterior"]["z"].shape == (1, 20, 30, 2)
    assert idata["constant_data"]["noise_scale"].shape == ()
    run = zoo.fit(frozen, AutoNormal(frozen), data.x, steps=200, progress=False)
    estimate = to_arviz(run, data.x, draws=40)["constant_data"]["log_marginal"].values
    # the posterior is factorised, so the fitted guide is nearly exact and its weights nearly constant
    assert np.abs(estimate - brute_force(data.x).numpy()).max() < 0.1


@pytest.mark.parametrize("auto", [AutoDelta, AutoLaplaceApproximation])
def test_point_masses_have_no_densities(auto, data):
    run = trained(plain, auto(plain), data.x)
    idata = to_arviz(run, data.x, draws=5)
    assert {"log_likelihood", "sample_stats"}.isdisjoint(groups(idata))
    assert "log_marginal" not in idata["constant_data"]
    assert "elbo" not in idata.attrs
    for group in ("log_likelihood", "sample_stats"):
        assert "point mass on 'z'" in idata["posterior"].attrs[group]
    run = trained(hierarchical, auto(hierarchical), data.x)  # no draws of parameters, whatever their number
    assert "log_likelihood" not in groups(to_arviz(run, data.x, draws=5))


def test_a_guide_that_draws_all_rows_together(data):
    run = trained(plain, AutoMultivariateNormal(plain), data.x)
    idata = to_arviz(run, data.x, draws=30)
    stats = idata["sample_stats"]
    assert stats["lp"].dims == stats["log_q"].dims == ("chain", "draw")
    assert idata.attrs["elbo"] == pytest.approx(float(stats["log_weight"].mean()))
    z = torch.tensor(idata["posterior"]["z"].values[0])
    scale = float(idata["constant_data"]["noise_scale"])
    mean = torch.cat([z, z], -1)
    lp = dist.Normal(mean, scale).log_prob(data.x).sum((-1, -2)) + dist.Normal(0.0, 1.0).log_prob(z).sum((-1, -2))
    np.testing.assert_allclose(stats["lp"].values[0], lp, rtol=1e-5)
    with run.scope():
        log_q = run.guide.get_posterior().log_prob(z.flatten(1)).detach()
    np.testing.assert_allclose(stats["log_q"].values[0], log_q, rtol=1e-4)
    assert "log_likelihood" not in groups(idata)
    assert "log_marginal" not in idata["constant_data"]
    model = zoo.PPCA(4, 2)
    idata = to_arviz(trained(model, AutoMultivariateNormal(model), data.x), data.x, draws=5)
    assert idata.attrs["log_marginal"] == pytest.approx(model.log_marginal(data.x).double().sum().item())
    assert idata.attrs["log_marginal_se"] == 0
    np.testing.assert_array_equal(idata["constant_data"]["log_marginal"], model.log_marginal(data.x).detach())
    assert idata["constant_data"]["scale"].dims == ()
    assert "needs 30 draws" in idata["sample_stats"].attrs["note"]


def test_shared_sites(data):
    run = zoo.fit(hierarchical, AutoNormal(hierarchical), data.x, steps=10, progress=False)
    idata = to_arviz(run, data.x, draws=6)
    centre = idata["posterior"]["centre"]
    assert centre.dims == ("chain", "draw", "centre_dim_0")
    expected = dist.Normal(torch.tensor(centre.values[0])[:, None], 1.0).to_event(1).log_prob(data.x)
    np.testing.assert_allclose(idata["log_likelihood"]["x"].values[0], expected, rtol=1e-5)
    assert "note" not in idata["log_likelihood"]["x"].attrs  # here LOO has its meaning
    stats = idata["sample_stats"]
    prior = dist.Normal(0.0, 3.0).log_prob(torch.tensor(centre.values[0])).sum(-1)
    np.testing.assert_allclose(stats["lp"].values[0], expected.sum(-1) + prior, rtol=1e-5)
    assert stats["log_q"].dims == ("chain", "draw")
    assert set(stats.data_vars) == {"lp", "log_q", "log_weight"}
    assert idata["prior"]["centre"].shape == (1, 6, 4)
    spread = idata["prior_predictive"]["x"].values[0] - idata["prior"]["centre"].values[0][:, None]
    assert abs(spread.var() - 1) < 5 * np.sqrt(2 / spread.size)


def test_shared_and_local_sites(data):
    model = Shared()
    run = zoo.fit(model, guides.MeanField(model, data.x), data.x, steps=30, progress=False)
    idata = to_arviz(run, data.x, draws=4)
    assert idata["posterior"]["centre"].shape == (1, 4, 4)
    density = idata["log_likelihood"]["x"]
    covariance = torch.ones(4, 4) + model.scale.detach().square() * torch.eye(4)
    centre = torch.tensor(idata["posterior"]["centre"].values[0])[:, None]  # (draws, 1, d)
    expected = dist.MultivariateNormal(centre, covariance).log_prob(data.x).numpy()
    assert np.abs(density.values[0] - expected).mean() < 0.1
    assert density.attrs["draws"] == evaluation.INNER
    stats = to_arviz(run, data.x, draws=30)["sample_stats"]
    assert stats["log_weight_shared"].dims == ("chain", "draw")
    assert stats["khat"].dims == ("row",)


def test_round_trip(run, mixture, data, tmp_path):
    for number, fitted in enumerate((run, mixture)):
        idata = to_arviz(fitted, data, draws=4, rows=[f"r{i}" for i in range(30)])
        path = tmp_path / f"{number}.nc"
        idata.to_netcdf(str(path))
        back = read(path)
        assert groups(back) == groups(idata)
        for group in groups(idata):
            mine, theirs = idata[group], back[group]
            assert dict(mine.sizes) == dict(theirs.sizes)
            for name in [*mine.data_vars, *mine.coords]:
                np.testing.assert_array_equal(mine[name].values, theirs[name].values)
                assert mine[name].dims == theirs[name].dims
            assert mine.attrs == theirs.attrs


def test_summary_runs(run, data):
    az = container.load()
    idata = to_arviz(run, data, draws=50)
    assert len(az.summary(idata, var_names=["z"], kind="stats")) == 60


def test_attributes(run, data):
    attrs = to_arviz(run, data, draws=3, seed=5).attrs
    assert attrs["creation_library"] == "latent-zoo"
    assert attrs["model"] == "FactorAnalysis"
    assert attrs["guide"] == "FullRank"
    assert attrs["seed"] == 5
    assert attrs["inference_library_version"] == pyro.__version__
    assert json.loads(attrs["settings"])["fit"]["steps"] == len(run.losses)


def test_leaves_no_trace_and_repeats(run, data):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = to_arviz(run, data, draws=5), to_arviz(run, data, draws=5)
    other = to_arviz(run, data, draws=5, seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not list(pyro.get_param_store().keys())
    for group, name in (("posterior", "z"), ("posterior_predictive", "x")):
        np.testing.assert_array_equal(first[group][name].values, second[group][name].values)
        assert (first[group][name].values != other[group][name].values).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["a"]}, "columns has shape"),
        ({"rows": ["a"]}, "rows has shape"),
        ({"labels": [0, 1]}, "labels has shape"),
        ({"draws": 0}, "draws must be"),
        ({"draws": 10_000_000}, "GiB: reduce draws"),
    ],
)
def test_refusals(arguments, message, run, data):
    with pytest.raises(ValueError, match=message):
        to_arviz(run, data, **arguments)


def test_other_rows_than_the_guides(run, data):
    with pytest.raises(ValueError, match="FullRank holds 30 rows, got 10"):
        to_arviz(run, data.x[:10])


def test_a_site_named_like_a_dimension(data):
    def model(x=None, index=None, size=None):
        with zoo.base.rows(x, index, size):
            row = pyro.sample("row", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(row[..., None].expand(*row.shape, 4), 1.0).to_event(1), obs=x)

    run = zoo.fit(model, AutoNormal(model), data.x, steps=2, progress=False)
    with pytest.raises(ValueError, match="'row' has the name of a dimension"):
        to_arviz(run, data.x)


def test_weights_that_are_no_numbers(data):
    def guide(x=None, index=None, size=None):
        with pyro.plate("rows", len(x), dim=-1):
            loc = torch.zeros(len(x), 2).index_fill(0, torch.tensor([17, 20]), torch.nan)
            pyro.sample("z", dist.Normal(loc, 1.0, validate_args=False).to_event(1))

    with pytest.raises(ValueError, match=r"of row 17 is NaN \(and of 1 more of the 30 rows"):
        to_arviz(Fit(plain, guide), data.x, draws=30)


def test_a_data_site_outside_the_rows(data):
    def model(x=None, index=None, size=None):
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(centre, 1.0).expand([1, 4]).to_event(2), obs=None if x is None else x[:1])

    with pytest.raises(ValueError, match="'x' does not have a value for every row"):
        to_arviz(Fit(model, AutoNormal(model)), data.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_khat_of_a_known_tail(dtype):
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(20_000, 20, generator=generator, dtype=torch.float64)
    log_weights = (-0.8 * uniform.log()).to(dtype)  # weights u^-0.8: a Pareto tail of shape 0.8
    khat = psis_khat(log_weights)
    assert khat.shape == (20,)
    assert khat.dtype == dtype
    assert abs(khat.mean().item() - 0.8) < 0.1
    torch.testing.assert_close(psis_khat(log_weights + 700.0), khat, rtol=0, atol=1e-2)
    thin = psis_khat((0.8 * uniform.log()).to(dtype))  # the sign swapped: weights bounded by 1
    assert thin.max() < -0.3


def test_khat_of_equal_weights_is_the_floor():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounding = 1e-5 * torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
        assert (psis_khat(rounding - 120.0) == -torch.inf).all()
        two_values = (torch.arange(100) % 4 == 0).float().unsqueeze(-1)
        assert (psis_khat(two_values) == -torch.inf).all()


def test_khat_counts_weights_of_zero():
    generator = torch.Generator().manual_seed(2)
    log_weights = -0.5 * torch.rand(5000, 1, generator=generator).log()
    log_weights[:1000] = -torch.inf
    assert abs(psis_khat(log_weights).item() - 0.5) < 0.25


def test_smoothed_weights_are_nearer_the_truth():
    """Weights u^-0.6 (finite mean 1 / 0.4, infinite variance): the smoothed sum has less spread than the raw one."""
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(1000, 400, generator=generator, dtype=torch.float64)
    log_weights = -0.6 * uniform.log()
    before = log_weights.clone()
    smoothed, khat = psis_weights(log_weights)
    assert torch.equal(log_weights, before)
    assert smoothed.shape == (1000, 400)
    assert torch.equal(khat, psis_khat(log_weights))
    torch.testing.assert_close(smoothed.exp().sum(0), torch.ones(400, dtype=torch.float64), rtol=0, atol=1e-12)
    # the self-normalised mean of u under weights u^-0.6: E u^0.4 / E u^-0.6 = (1 / 1.4) / (1 / 0.4)
    truth = 0.4 / 1.4
    error = [((w.softmax(0) * uniform).sum(0) - truth).square().mean() for w in (log_weights, smoothed)]
    assert error[1] < 0.95 * error[0]


def test_smoothing_keeps_the_body_and_the_order():
    generator = torch.Generator().manual_seed(4)
    log_weights = -0.6 * torch.rand(500, 5, generator=generator, dtype=torch.float64).log()
    smoothed, _ = psis_weights(log_weights)
    shift = smoothed - log_weights
    body = log_weights.argsort(0)[: 500 - 68]  # the tail is 3 sqrt(500) = 67.1 weights, rounded up
    kept = shift.gather(0, body)
    assert (kept - kept[0]).abs().max() < 1e-12
    assert (smoothed.gather(0, log_weights.argsort(0)).diff(dim=0) >= 0).all()  # equal where truncated at the top


def test_weights_without_a_tail_stay_as_they_are():
    log_weights = (torch.arange(100) % 4 == 0).double().unsqueeze(-1)
    smoothed, khat = psis_weights(log_weights)
    torch.testing.assert_close(smoothed, log_weights.log_softmax(0), rtol=0, atol=1e-12)
    assert khat == -torch.inf
    log_weights = -0.5 * torch.rand(500, 1, generator=torch.Generator().manual_seed(5)).log()
    log_weights[::7] = -torch.inf
    smoothed, _ = psis_weights(log_weights)
    assert smoothed.dtype == torch.float32
    assert (smoothed[::7] == -torch.inf).all()
    assert not smoothed.isnan().any()


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(24, 2), "24 draws"),
        (torch.zeros(100), "pass \\(draws, n\\)"),
        (torch.zeros(100, 3).index_fill(1, torch.tensor([1]), torch.nan), "row 1 .*contain NaN"),
        (torch.zeros(100, 3).index_fill(1, torch.tensor([2]), -torch.inf), "row 2 .*contain NaN"),
    ],
)
def test_khat_refuses(log_weights, message):
    with pytest.raises(ValueError, match=message):
        psis_khat(log_weights)


def test_elpd_of_held_out_rows():
    values = torch.randn(50, dtype=torch.float64)
    result = elpd(values)
    assert result["se"] == pytest.approx(values.numpy().std() * 50**0.5, abs=1e-12)
    with pytest.raises(ValueError, match="row 3 is -inf \\(and 1 more"):
        elpd(values.index_fill(0, torch.tensor([3, 7]), -torch.inf))
    for wrong in (values[:1], values[None]):
        with pytest.raises(ValueError, match="one number per row, for at least two rows"):
            elpd(wrong)
