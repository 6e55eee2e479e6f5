"""The one engine of draws and densities, against densities written out by hand, for every kind of latent site."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroParam

import zoo
from guides import Amortized, Exact, MeanField
from zoo.base import Module, rows
from zoo.base.latent_sites import Plate, layout
from zoo.posterior.engine import reader, reading

N, D, K = 12, 4, 2
ALGEBRA = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def x():
    return torch.randn(N, D, dtype=torch.float64)


def one_mean(x=None, index=None, size=None):
    """A mean that all rows share."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
    with rows(x, index, size):
        return pyro.sample("y", dist.Normal(mean.unsqueeze(-1).expand(*mean.shape, D), 1.0).to_event(1), obs=x)


def factors(x=None, index=None, size=None):
    """Bayesian factor analysis: weights in a plate of the features, a shared precision, factors per row."""
    zero = torch.zeros((), dtype=torch.float64)
    with pyro.plate("features", D):
        weight = pyro.sample("weight", dist.Normal(zero.expand(K), 1.0).to_event(1))
    precision = pyro.sample("precision", dist.Gamma(zero + 2.0, 1.0))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(zero.expand(K), 1.0).to_event(1))
        scale = precision.rsqrt().unsqueeze(-1)
        return pyro.sample("x", dist.Normal(z @ weight.mT, scale).to_event(1), obs=x)


class Awkward(Module):
    """The same weights as a matrix, used in a way that does not broadcast over draws."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        weight = pyro.sample("weight", dist.Normal(zero.expand(D, K), 1.0).to_event(2))
        assert weight.ndim == 2
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zero.expand(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 0.3).to_event(1), obs=x)


class Mixed(Module):
    """Two factor analysers, mixed: factors and a component per row."""

    def __init__(self):
        super().__init__()
        self.weight = PyroParam(torch.randn(2, D, K, dtype=torch.float64))
        self.mean = PyroParam(torch.randn(2, D, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        weight, mean = self.weight, self.mean
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            c = pyro.sample("component", dist.Categorical(weight.new_tensor([0.3, 0.7])))
            loc = (weight[c] @ z.unsqueeze(-1)).squeeze(-1) + mean[c]
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


class Covariate(Module):
    """Rows with a covariate of their own, held by the model."""

    def __init__(self):
        super().__init__()
        self.slope = PyroParam(torch.randn(1, D, dtype=torch.float64))
        self.register_buffer("batch", torch.arange(N, dtype=torch.float64).unsqueeze(-1))

    def forward(self, x=None, index=None, size=None):
        slope, batch = self.slope, self.batch if index is None else self.batch[index]
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(slope.new_zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + batch @ slope, 0.5).to_event(1), obs=x)


def normal(value, loc, scale):
    return dist.Normal(torch.as_tensor(loc, dtype=torch.float64), scale).log_prob(value)


def test_layout_of_plates(x):
    found = layout(factors, x)
    weight, precision, z = found.latents
    assert weight.plates == (Plate("features", D, -1),)
    assert weight.shape == (D, K)
    assert not weight.local
    assert precision.shape == ()
    assert z.local
    assert (found.data, found.plate, found.nesting) == (("x",), "rows", 1)
    assert layout(one_mean, x).data == ("y",)
    assert layout(one_mean).data == ("y",)  # the site whose value the model returns


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal, AutoDiagonalNormal])
def test_one_shared_mean(x, family):
    guide = family(one_mean)
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(one_mean, guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 7)
        log_p = source.score((x,), drawn.values)
    mean = drawn.values["mean"]
    assert mean.shape == (7,)
    by_hand = normal(x, mean[:, None, None], 1.0).sum(-1)
    torch.testing.assert_close(log_p.by_row, by_hand, **ALGEBRA)
    torch.testing.assert_close(log_p.shared["mean"], normal(mean, 0.0, 10.0), **ALGEBRA)
    loc, scale = guide._loc_scale() if family is not AutoNormal else (guide.locs.mean, guide.scales.mean)
    torch.testing.assert_close(drawn.log_q.of_shared, normal(mean, loc.squeeze(), scale.squeeze()), **ALGEBRA)


@pytest.mark.parametrize("part", [slice(None), slice(3, 7), slice(4, 8)])
def test_weights_in_a_plate(x, part):
    guide = AutoNormal(
        factors,
        create_plates=lambda x, index=None, size=None: pyro.plate("rows", size or len(x), subsample=index, dim=-1),
    )
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(factors, guide)
    index = torch.arange(N)[part]
    arguments = (x,) if len(index) == N else (x[index], index, N)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw(arguments, 5)
        log_p = source.score(arguments, drawn.values)
    weight, precision, z = (drawn.values[name] for name in ("weight", "precision", "z"))
    assert (weight.shape, precision.shape, z.shape) == ((5, D, K), (5,), (5, len(index), K))
    by_hand = normal(x[index], z @ weight.mT, precision.rsqrt()[:, None, None]).sum(-1)
    torch.testing.assert_close(log_p.rows["x"], by_hand, **ALGEBRA)
    torch.testing.assert_close(log_p.rows["z"], normal(z, 0.0, 1.0).sum(-1), **ALGEBRA)
    torch.testing.assert_close(log_p.shared["weight"], normal(weight, 0.0, 1.0).sum((-1, -2)), **ALGEBRA)
    log_q = normal(z, guide.locs.z[index], guide.scales.z[index]).sum(-1)
    torch.testing.assert_close(drawn.log_q.by_row, log_q, **ALGEBRA)
    on_line = normal(precision.log(), guide.locs.precision, guide.scales.precision) - precision.log()
    in_plate = normal(weight, guide.locs.weight, guide.scales.weight).sum((-1, -2))
    torch.testing.assert_close(drawn.log_q.of_shared, on_line + in_plate, **ALGEBRA)
    assert drawn.joint is None


def test_draws_one_by_one_where_a_model_does_not_broadcast(x):
    model = Awkward()
    guide = AutoNormal(model)
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(model, guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 3)
        log_p = source.score((x,), drawn.values)
        assert source._broadcast == {"guide": True, "model": False}
    by_hand = normal(x, drawn.values["z"] @ drawn.values["weight"].mT, 0.3).sum(-1)
    torch.testing.assert_close(log_p.rows["x"], by_hand, **ALGEBRA)


def test_a_joint_guide_is_named(x):
    model = Awkward()
    guide = AutoMultivariateNormal(model)
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(model, guide)
    with reading(pair, 0):
        drawn = reader(pair, x).draw((x,), 3)
        real = torch.cat([drawn.values["weight"].flatten(1), drawn.values["z"].flatten(1)], 1)
        log_q = guide.get_posterior().log_prob(real)
    assert drawn.joint == "_AutoMultivariateNormal_latent"
    torch.testing.assert_close(drawn.log_q.total, log_q, **ALGEBRA)


def by_components(model, x, z):
    """log p(x, z | component) + log p(component), (2, draws, n)."""
    weight, mean = model.weight.detach(), model.mean.detach()
    prior = normal(z, 0.0, 1.0).sum(-1)
    log_pi = torch.tensor([0.3, 0.7]).log()
    return torch.stack([normal(x, z @ weight[c].mT + mean[c], 0.5).sum(-1) + prior + log_pi[c] for c in range(2)])


def test_several_sites_per_row(x):
    model = Mixed()
    guide = MeanField(model, x)
    pair = zoo.Fit(model, guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 6)
        log_p = source.score((x,), drawn.values)
    c = drawn.values["component"]
    assert c.shape == (6, N)
    expected = by_components(model, x, drawn.values["z"]).gather(0, c.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(log_p.by_row, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrap", [config_enumerate, lambda model: model])
def test_a_discrete_site_left_out_is_summed_out(x, wrap):
    model = Mixed()

    def guide(x=None, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(torch.zeros(K, dtype=torch.float64), 1.0).to_event(1))

    pair = zoo.Fit(wrap(model), guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 200)
        log_p = source.score((x,), drawn.values)
        complete = source.complete((x,), drawn.values)
    terms = by_components(model, x, drawn.values["z"])
    torch.testing.assert_close(log_p.by_row, terms.logsumexp(0), rtol=1e-6, atol=1e-6)
    share = terms.softmax(0)[1]
    drawn_share = complete["component"].double()
    error = (share * (1 - share)).mean().sqrt() / share.numel() ** 0.5
    assert abs(float((drawn_share - share).mean())) < 5 * float(error)


def test_everything_summed_out(faithful):
    model = zoo.GMM(2, 2).double()
    model.initialize(faithful)

    def nothing(x=None, index=None, size=None):
        pass

    pair = zoo.Fit(config_enumerate(model), nothing)
    with reading(pair, 0):
        source = reader(pair, faithful)
        log_p = source.score((faithful,), source.draw((faithful,), 1).values)
        torch.testing.assert_close(log_p.by_row[0], model.log_marginal(faithful), **ALGEBRA)


def test_a_continuous_site_left_out_is_named(x):
    def guide(x=None, index=None, size=None):
        pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))

    class Model(Module):
        def forward(self, x=None, index=None, size=None):
            mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            with rows(x, index, size):
                z = pyro.sample("z", dist.Normal(mean, 1.0))
                return pyro.sample("x", dist.Normal(z.unsqueeze(-1) + z.new_zeros(D), 1.0).to_event(1), obs=x)

    pair = zoo.Fit(Model(), guide)
    with reading(pair, 0):
        source = reader(pair, x)
        values = source.draw((x,), 3).values
        with pytest.raises(ValueError, match="the guide guide has no site 'z'"):
            source.score((x,), values)


@pytest.mark.parametrize("family", [AutoDelta, AutoLaplaceApproximation])
@pytest.mark.parametrize("draws", [1, 4])
def test_a_point_mass_has_no_density(x, family, draws):
    guide = family(one_mean)
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(one_mean, guide)
    with reading(pair, 0), pytest.raises(ValueError, match="point mass on 'mean'"):
        reader(pair, x).draw((x,), draws)


def test_covariates_go_by_row_number(x):
    model = Covariate()
    guide = MeanField(model, x)
    pair = zoo.Fit(model, guide)
    index = torch.tensor([7, 2])
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x[index], index, N), 3)
        log_p = source.score((x[index], index, N), drawn.values)
        loc = drawn.values["z"].sum(-1, keepdim=True) + model.batch[index] @ model.slope
    torch.testing.assert_close(log_p.rows["x"], normal(x[index], loc, 0.5).sum(-1), **ALGEBRA)


@pytest.mark.parametrize("family", [MeanField, Amortized, lambda model, x: Exact(model)])
def test_unscaled_whatever_the_batch(iris, family):
    model = zoo.PPCA(4, 2).double()
    guide = family(model, iris)
    pair = zoo.Fit(model, guide)
    index = torch.tensor([3, 77, 149])
    with reading(pair, 0):
        source = reader(pair, iris)
        drawn = source.draw((iris[index], index, 150), 4)
        log_p = source.score((iris[index], index, 150), drawn.values)
        z = drawn.values["z"]
        by_hand = normal(iris[index], z @ model.weight.mT + model.mean, model.scale).sum(-1)
    torch.testing.assert_close(log_p.rows["x"], by_hand, **ALGEBRA)
    torch.testing.assert_close(log_p.rows["z"], normal(z, 0.0, 1.0).sum(-1), **ALGEBRA)


def test_a_plate_inside_the_rows(x):
    """Sites in two plates: their own dimension comes after that of the rows."""

    def model(x=None, index=None, size=None):
        with rows(x, index, size):
            with pyro.plate("views", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(K, dtype=torch.float64), 1.0).to_event(1))
            loc = z.sum(-3).sum(-1, keepdim=True)
            return pyro.sample("x", dist.Normal(loc.expand(*loc.shape[:-1], D), 1.0).to_event(1), obs=x)

    guide = AutoNormal(model)
    guide(x)
    pyro.clear_param_store()
    pair = zoo.Fit(model, guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 5)
        log_p = source.score((x,), drawn.values)
    z = drawn.values["z"]
    assert z.shape == (5, N, 3, K)
    torch.testing.assert_close(log_p.rows["z"], normal(z, 0.0, 1.0).sum((-1, -2)), **ALGEBRA)
    torch.testing.assert_close(log_p.rows["x"], normal(x, z.sum((-1, -2)).unsqueeze(-1), 1.0).sum(-1), **ALGEBRA)
    assert math.isfinite(float(drawn.log_q.total.sum()))
