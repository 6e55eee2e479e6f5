"""The deep Gaussian model: its decoder, its floor, and the case where it is a linear one."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from zoo import VAE, FactorAnalysis

ALGEBRA = 1e-8  # float64 and a handful of operations


@pytest.fixture(autouse=True)
def store():
    """A parameter store for every test."""
    with pyro.get_param_store().scope():
        yield


def close(a, b, tolerance=ALGEBRA):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def model(iris):
    """A small VAE on irises."""
    model = VAE(4, 2, hidden=(8,)).double()
    model.initialize(iris)
    return model


def test_shapes(model, iris):
    assert model(iris).shape == (150, 4)
    assert model(size=7).shape == (7, 4)
    q = model.decode(torch.randn(3, 7, 2).double())
    assert (q.batch_shape, q.event_shape) == ((3, 7), (4,))
    trace = poutine.trace(model).get_trace(iris)
    assert trace.nodes["z"]["value"].shape == (150, 2)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (150,)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_decode_is_the_formula_of_the_docstring(hidden, iris):
    model = VAE(4, 2, hidden=hidden, floor=0.02).double()
    model.initialize(iris)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in model.mean) == len(hidden) + 1
    z, a, b = torch.randn(6, 2).double(), iris.mean(0), iris.std(0, correction=0)
    density = model.decode(z)
    close(density.mean, a + b * model.mean(z))
    close(density.variance, b**2 * (0.02 + (1 + model.scale(z).exp()).log() ** 2))


def test_a_linear_decoder_with_constant_variance_is_factor_analysis(iris):
    model, linear = VAE(4, 2, hidden=()).double(), FactorAnalysis(4, 2).double()
    model.initialize(iris)
    with torch.no_grad():
        model.scale[-1].weight.zero_()
        unit = model.columns.unit
        linear.weight = unit.unsqueeze(1) * model.mean[-1].weight
        linear.mean = model.columns.shift + unit * model.mean[-1].bias
        linear.scale = model.decode(torch.zeros(2).double()).stddev
        z = torch.randn(150, 2).double()
        trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(iris)
        trace.compute_log_prob()
        joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
        close(joint - linear.posterior(iris).log_prob(z), linear.log_marginal(iris))
        x = model(size=20_000)
    error = 5 * ((linear.weight.square().sum(1) + linear.noise) / 20_000).sqrt()
    assert ((x.mean(0) - linear.mean).abs() < error).all()


@pytest.mark.parametrize("floor", [1e-3, 0.1])
def test_no_scale_falls_below_the_floor(floor, iris):
    model = VAE(4, 2, hidden=(8,), floor=floor).double()
    model.initialize(iris)
    least = math.sqrt(floor) * iris.std(0, correction=0)
    z = 10 * torch.randn(100, 2).double()
    assert (model.decode(z).stddev > least).all()
    with torch.no_grad():
        model.scale[-1].bias.fill_(-1e3)  # as far as training can push it
    close(model.decode(z).stddev, least.expand(100, 4))


@pytest.mark.parametrize("floor", [0, 0.0, -1e-3, math.nan])
def test_the_floor_is_positive(floor):
    with pytest.raises(ValueError, match="floor must be a positive fraction"):
        VAE(4, 2, floor=floor)


@pytest.mark.parametrize("wrong", [0, True, 2.0, "2"])
def test_dimensions_are_whole_numbers(wrong):
    for name, build in (
        ("data_dim", lambda: VAE(wrong, 2)),
        ("latent_dim", lambda: VAE(4, wrong)),
        ("hidden", lambda: VAE(4, 2, hidden=(8, wrong))),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
            build()


def test_initialize_places_the_columns(iris):
    x = iris.clone()
    x[:, 1] = 7.0
    model = VAE(4, 2).double()
    model.initialize(x)
    close(model.columns.shift, x.mean(0))
    varying = [0, 2, 3]
    close(model.columns.unit[varying], x[:, varying].std(0, correction=0))
    assert model.columns.unit[1] > 0.1  # a constant column keeps a unit of the usual size
    model.initialize(torch.full((10, 4), 7.0))
    close(model.columns.unit, torch.ones(4).double())
    assert torch.isfinite(model(size=5)).all()


def test_initialize_draws_new_weights_from_the_running_stream(iris):
    a, b, c = (VAE(4, 2, hidden=(8,)).double() for _ in range(3))
    assert not torch.equal(a.mean[0].weight, b.mean[0].weight)
    for model, seed in ((a, 0), (b, 0), (c, 1)):
        torch.manual_seed(seed)
        model.initialize(iris)
    for name, parameter in a.named_parameters():
        assert torch.equal(parameter, b.get_parameter(name)), name
        assert not torch.equal(parameter, c.get_parameter(name)), name


def test_rows_to_generate_are_counted(model):
    with pytest.raises(ValueError, match="pass size, the number of rows"):
        model()
