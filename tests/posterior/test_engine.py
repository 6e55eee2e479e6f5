"""The one engine of draws and densities, against densities written out by hand, for every kind of latent site."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import as_it_is, jitter, rows_plate
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from user_models import (
    Awkward,
    BatchDecoder,
    BayesianFactors,
    MixtureOfFactorAnalysers,
    SparseFactors,
    one_mean,
)

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


def normal(value, loc, scale):
    return dist.Normal(torch.as_tensor(loc, dtype=torch.float64), scale).log_prob(value)


def test_layout_of_plates(x):
    found = layout(BayesianFactors(latent_dim=K), x)
    weight, precision, z = found.latents
    assert weight.plates == (Plate("features", D, -1),)
    assert weight.shape == (D, K)
    assert not weight.local
    assert precision.shape == ()
    assert z.local
    assert (found.data, found.plate, found.nesting) == (("x",), "rows", 1)
    assert layout(SparseFactors(), x).data == ("y",)
    assert layout(SparseFactors()).data == ("y",)  # the site whose value the model returns


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal, AutoDiagonalNormal])
def test_one_shared_mean(x, family):
    x = x[:, :1]
    guide = family(one_mean)
    pair = as_it_is(one_mean, guide, x)
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
    model = BayesianFactors(latent_dim=K)
    guide = AutoNormal(model, create_plates=rows_plate)
    pair = as_it_is(model, guide, x)
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
    pair = as_it_is(model, guide, x)
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
    pair = as_it_is(model, guide, x)
    with reading(pair, 0):
        drawn = reader(pair, x).draw((x,), 3)
        real = torch.cat([drawn.values["weight"].flatten(1), drawn.values["z"].flatten(1)], 1)
        log_q = guide.get_posterior().log_prob(real)
    assert drawn.joint == "_AutoMultivariateNormal_latent"
    torch.testing.assert_close(drawn.log_q.total, log_q, **ALGEBRA)


def by_components(model, x, z):
    """log p(x, z | component) + log p(component), (2, draws, n)."""
    weight, mean, scale, share = (
        value.detach() for value in (model.weight, model.mean, model.scale, model.proportions)
    )
    prior = normal(z, 0.0, 1.0).sum(-1)
    terms = [normal(x, z @ weight[c].mT + mean[c], scale).sum(-1) + prior + share[c].log() for c in range(2)]
    return torch.stack(terms)


def test_several_sites_per_row(x):
    model = MixtureOfFactorAnalysers(latent_dim=K)
    guide = MeanField(model, x)
    pair = zoo.Fit(model, guide)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 6)
        log_p = source.score((x,), drawn.values)
    c = drawn.values["component"]
    assert c.shape == (6, N)
    expected = by_components(model, x, drawn.values["z"]).gather(0, c.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(log_p.by_row, expected, **ALGEBRA)


@pytest.mark.parametrize("wrap", [config_enumerate, lambda model: model])
def test_a_discrete_site_left_out_is_summed_out(x, wrap):
    model = MixtureOfFactorAnalysers(latent_dim=K)

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
    torch.testing.assert_close(log_p.by_row, terms.logsumexp(0), **ALGEBRA)
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
    x = x[:, :1]
    guide = family(one_mean)
    pair = as_it_is(one_mean, guide, x)
    with reading(pair, 0), pytest.raises(ValueError, match="point mass on 'mean'"):
        reader(pair, x).draw((x,), draws)


def test_covariates_go_by_row_number(x):
    model = BatchDecoder(torch.arange(N).double().unsqueeze(-1), latent_dim=K)
    jitter(model)
    guide = MeanField(model, x)
    pair = zoo.Fit(model, guide)
    index = torch.tensor([7, 2])
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x[index], index, N), 3)
        log_p = source.score((x[index], index, N), drawn.values)
        loc = model.decoder(drawn.values["z"]) + model.batch[index] @ model.slope
        by_hand = normal(x[index], loc, model.scale).sum(-1)
    torch.testing.assert_close(log_p.rows["x"], by_hand, **ALGEBRA)


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
    pair = as_it_is(model, guide, x)
    with reading(pair, 0):
        source = reader(pair, x)
        drawn = source.draw((x,), 5)
        log_p = source.score((x,), drawn.values)
    z = drawn.values["z"]
    assert z.shape == (5, N, 3, K)
    torch.testing.assert_close(log_p.rows["z"], normal(z, 0.0, 1.0).sum((-1, -2)), **ALGEBRA)
    torch.testing.assert_close(log_p.rows["x"], normal(x, z.sum((-1, -2)).unsqueeze(-1), 1.0).sum(-1), **ALGEBRA)
    assert math.isfinite(float(drawn.log_q.total.sum()))
