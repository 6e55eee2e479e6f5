"""The deep model: its decoder, its floor, its variants, and the cases where it is a linear one."""

import json
import math

import pytest
import torch
from helpers import close
from pyro import poutine
from torch import nn

import zoo
from guides import Amortized
from zoo import PPCA, VAE, FactorAnalysis
from zoo.base.random import seeded
from zoo.networks.convolution import Flattened
from zoo.networks.perceptron import Constant

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64 and a handful of operations


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


def joint(model, z, x):
    """log p(x, z) of every row."""
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]


@pytest.mark.parametrize("covariance", ["scalar", "diag"])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_linear_decoder_with_constant_noise_is_a_linear_model(covariance, gaps, iris):
    x = torch.where(torch.rand(150, 4) < 0.2, math.nan, iris) if gaps else iris
    model = VAE(4, 2, hidden=(), covariance=covariance, noise="constant").double()
    linear = (PPCA if covariance == "scalar" else FactorAnalysis)(4, 2).double()
    model.initialize(x)
    with torch.no_grad():
        unit = model.columns.unit
        linear.weight = unit.unsqueeze(1) * model.mean[-1].weight
        linear.mean = model.columns.shift + unit * model.mean[-1].bias
        deviation = model.decode(torch.zeros(2).double()).stddev
        linear.scale = deviation[0] if covariance == "scalar" else deviation
        for z in (torch.zeros(150, 2).double(), torch.randn(150, 2).double()):
            close(joint(model, z, x), joint(linear, z, x))
            close(joint(model, z, x) - linear.posterior(x).log_prob(z), linear.log_marginal(x))
        if covariance == "scalar":
            assert (deviation == deviation[0]).all()  # in the data's own units, whatever the columns' are
            assert model.scale.value.shape == (1,)
        draws = model(size=20_000)
    error = 5 * ((linear.weight.square().sum(1) + deviation.square()) / 20_000).sqrt()
    assert ((draws.mean(0) - linear.mean).abs() < error).all()


@pytest.mark.filterwarnings("ignore::zoo.infer.guard.UnboundedLikelihood")  # the Heywood case below
@pytest.mark.parametrize("covariance", ["scalar", "diag"])
def test_the_linear_one_reaches_the_linear_models_optimum(covariance, iris):
    """An encoder with a full covariance holds the exact posterior, so that nothing but the last steps is lost."""
    reference = PPCA(4, 1) if covariance == "scalar" else FactorAnalysis(4, 1, floor=1e-3)  # which binds: Heywood
    model = VAE(4, 1, hidden=(), covariance=covariance, noise="constant").double()
    guide = Amortized(model, iris, hidden=(), covariance="full")
    run = zoo.fit(model, guide, iris, progress=False, steps=800)
    best = zoo.em(reference.double(), iris)[-1] / 150
    bound = zoo.evaluate(run, iris, draws=100).summary()
    assert abs(bound["elbo"] - best) < 1e-5 + 5 * bound["elbo_se"]  # nats per row


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


# Variants.


def kinds(iris):
    """Irises as 0 and 1, as counts, as pixels, and as one column of each."""
    low, high = iris.amin(0), iris.amax(0)
    pixels = ((iris - low) / (high - low) * 255).round() / 255
    data = {
        "gaussian": iris,
        "student_t": iris,
        "bernoulli": (iris > iris.mean(0)).double(),
        "poisson": (2 * iris).round(),
        "logistic_256": pixels,
    }
    mixed = torch.stack([data[kind][:, j] for j, kind in enumerate(MIXED)], 1)
    return {**data, "mixed": mixed}


MIXED = ["student_t", "bernoulli", "poisson", "logistic_256"]
VARIANTS = {
    **{
        f"{covariance}-{noise}": {"covariance": covariance, "noise": noise, "rank": 2}
        for covariance in ("scalar", "diag", "low_rank", "full")
        for noise in ("network", "constant")
    },
    **{
        f"{kind}-{noise}": {"likelihood": kind if kind != "mixed" else MIXED, "noise": noise}
        for kind in ("student_t", "bernoulli", "poisson", "logistic_256", "mixed")
        for noise in ("network", "constant")
    },
    "image": {"image": (1, 2, 2), "hidden": (4, 4)},
    "image-low_rank": {"image": (1, 2, 2), "hidden": (4,), "covariance": "low_rank"},
    "image-full": {"image": (2, 2, 1), "hidden": (4,), "covariance": "full", "gated": True},
    "gated": {"gated": True},
    "normalize": {"normalize": True, "activation": nn.Tanh},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def make(name, iris):
    """Model and data of a variant."""
    options = {"hidden": (8,), **VARIANTS[name]}
    kind = options.get("likelihood", "gaussian")
    return VAE(4, 2, **options).double(), kinds(iris)["mixed" if kind == MIXED else kind]


def network_options(name):
    """What Amortized takes of a variant's options, too."""
    options = VARIANTS[name]
    given = {key: options[key] for key in ("image", "gated", "normalize", "activation") if key in options}
    return {"hidden": options.get("hidden", (8,)), **given}


def second(name):
    """Whether a variant only joins what the others show one by one; its training is left to the slow tests."""
    return name.endswith("-constant") != (name == "scalar-constant") or name.startswith("image-") or "scalar-n" in name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if second(name) else ()) for name in VARIANTS]
)
def test_every_variant_trains(name, iris):
    model, x = make(name, iris)
    guide = Amortized(model, x, **network_options(name))
    run = zoo.fit(model, guide, x, steps=200, progress=False)
    first, last = run.losses[:10], run.losses[-50:]
    assert last.mean() + 5 * last.std() / math.sqrt(50) < first.mean()


@every_variant
def test_every_variant_comes_back_from_disk(name, iris, tmp_path, untouched):
    model, x = make(name, iris)
    guide = Amortized(model, x, **network_options(name))
    run = zoo.fit(model, guide, x, steps=2, progress=False)
    with untouched():
        back = zoo.load(run.save(tmp_path / "run"))
    assert back.model.settings == json.loads(json.dumps(model.settings))
    assert torch.equal(run.sample(x, 3)["z"], back.sample(x, 3)["z"])
    z = torch.randn(5, 2).double()
    own, theirs = model.decode(z), back.model.decode(z)
    close(own.log_prob(x[:5]), theirs.log_prob(x[:5]), 0.0)
    close(own.mean, theirs.mean, 0.0)


@every_variant
def test_every_variant_decodes_under_leading_dimensions(name, iris):
    model, x = make(name, iris)
    model.initialize(x)
    z = torch.randn(3, 7, 2).double()
    q = model.decode(z)
    assert (q.batch_shape, q.event_shape) == ((3, 7), (4,))
    assert q.mean.shape == (3, 7, 4)
    close(q.log_prob(x[:7])[1, 2], model.decode(z[1, 2]).log_prob(x[2]))
    assert model.decode(z[0, 0]).sample().shape == (4,)
    with seeded(1), torch.no_grad():
        draws = model(size=50)
    model.check(draws)
    trace = poutine.trace(poutine.condition(model, {"z": z[0]})).get_trace(draws[:7])
    trace.compute_log_prob()
    close(trace.nodes["x"]["log_prob"], model.decode(z[0]).log_prob(draws[:7]))


def test_outputs_are_counted():
    for options, outputs in (
        ({}, 8),
        ({"noise": "constant"}, 4),
        ({"covariance": "scalar"}, 5),
        ({"covariance": "low_rank", "rank": 2}, 16),
        ({"covariance": "full"}, 14),
        ({"likelihood": "bernoulli"}, 4),
        ({"likelihood": MIXED}, 6),
        ({"likelihood": MIXED, "noise": "constant"}, 4),
    ):
        assert VAE(4, 2, **options).outputs == outputs
    assert VAE(4, 2, likelihood="poisson").scale is None
    assert isinstance(VAE(4, 2, noise="constant").scale, Constant)


def test_images_convolve_where_the_numbers_are_images():
    both = VAE(4, 2, image=(1, 2, 2), covariance="low_rank")
    assert isinstance(both.mean, Flattened)
    assert isinstance(both.scale, Flattened)
    for covariance in ("scalar", "full"):
        model = VAE(4, 2, image=(1, 2, 2), covariance=covariance)
        assert isinstance(model.mean, Flattened)
        assert not isinstance(model.scale, Flattened)
    with pytest.raises(ValueError, match=r"image=\(1, 3, 2\) has 6 entries, but a row has 4"):
        VAE(4, 2, image=(1, 3, 2))


@pytest.mark.parametrize("image", [(1, 8, 8), (1, 28, 28)])
def test_images_train(image):
    d = image[1] * image[2]
    left = torch.arange(d) % image[2] < image[2] // 2
    x = (torch.rand(64, d) < torch.where(left == (torch.arange(64) % 2 == 0).unsqueeze(1), 0.9, 0.1)).float()
    model = VAE(d, 2, hidden=(4, 8), likelihood="bernoulli", image=image)
    guide = Amortized(model, x, hidden=(8, 4), image=image)
    run = zoo.fit(model, guide, x, steps=120, batch_size=32, seed=1, progress=False)
    assert run.losses[-5:].mean() < 0.8 * run.losses[:5].mean()  # the half that is lit is one factor
    assert zoo.evaluate(run, x[:5], draws=30).elbo.isfinite().all()


def test_options_are_checked():
    for options, message in (
        ({"noise": "learned"}, "noise must be one of network, constant; got 'learned'"),
        ({"activation": "swish"}, "activation must be one of silu,"),
        ({"activation": "swish", "gated": True}, "activation must be one of silu,"),
        ({"likelihood": "normal"}, "likelihood must be one of gaussian,"),
        ({"likelihood": "poisson", "covariance": "full"}, "covariance='full' is for likelihood='gaussian' only"),
        ({"covariance": "dense"}, "covariance must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            VAE(4, 2, **options)


def test_the_floor_shows():
    model = VAE(4, 2, floor=0.02)
    assert "floor=0.02" in repr(model)
    assert model.settings["floor"] == model.floor == 0.02
    assert not hasattr(VAE(4, 2, likelihood="bernoulli"), "floor")


def test_unfit_data_are_refused_before_the_fit(iris, untouched):
    x = kinds(iris)["bernoulli"]
    model = VAE(4, 2, hidden=(8,), likelihood="bernoulli").double()
    guide = Amortized(model, x)
    x = x.clone()
    x[3, 2] = 0.25
    with untouched(), pytest.raises(ValueError, match=r"x holds 0\.25 in row 3, column 2, but likelihood 'bernoulli'"):
        zoo.fit(model, guide, x, steps=1, progress=False)
    x[:, 2] = math.nan
    with pytest.raises(ValueError, match="column 2 of x has only NaN: a VAE needs"):
        zoo.fit(model, guide, x, steps=1, progress=False)


def test_the_start_is_drawn_anew_constants_and_all(iris):
    x = kinds(iris)["mixed"]
    model = VAE(4, 2, hidden=(8,), likelihood=MIXED, noise="constant").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    model.initialize(x)
    assert model.scale.value.abs().max() < 1.0
    close(model.likelihood.parts[0].degrees.detach(), torch.tensor([10.0]).double())


# Missing entries.


@every_variant
def test_only_what_is_observed_counts(name, iris):
    model, x = make(name, iris)
    gaps = x.clone()
    gaps[torch.rand(150, 4) < 0.3] = math.nan
    gaps[0] = math.nan
    model.initialize(gaps)
    z = torch.randn(150, 2).double()
    scored = joint(model, z, gaps)
    close(scored[0], torch.distributions.Normal(0, 1).log_prob(z[0]).sum())
    gradients = torch.autograd.grad(scored.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    whole = joint(model, z, gaps.nan_to_num(0.0))
    complete = ~gaps.isnan().any(1)
    close(scored[complete], whole[complete])
    filled = gaps.clone()
    filled[gaps.isnan()] = x[gaps.isnan()]
    other = poutine.trace(poutine.condition(model, {"z": z})).get_trace(gaps).nodes["x"]["fn"]
    close(other.log_prob(filled), other.log_prob(gaps))  # whatever stands in the gaps
    guide = Amortized(model, gaps, hidden=(8,))
    assert guide.masked
    run = zoo.fit(model, guide, gaps, steps=5, progress=False)
    assert run.losses.isfinite().all()


def test_a_complete_row_costs_nothing_extra(model, iris):
    q = poutine.trace(model).get_trace(iris).nodes["x"]["fn"]
    assert isinstance(q, torch.distributions.Independent)


def test_everything_takes_missing_entries(iris):
    gaps = iris.clone()
    gaps[torch.rand(150, 4) < 0.2] = math.nan
    model = VAE(4, 1, hidden=(8,), covariance="low_rank").double()
    run = zoo.fit(model, Amortized(model, gaps, hidden=(8,)), gaps, steps=100, batch_size=50, progress=False)
    assert zoo.evaluate(run, gaps, draws=30).elbo.isfinite().all()
    idata = zoo.to_arviz(run, gaps, draws=10)
    assert not idata["posterior_predictive"]["x"].isnull().any()
    assert not idata["constant_data"]["log_marginal"].isnull().any()


# A decoder of the user's.


class Decoder(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, outputs))

    def forward(self, z):
        return self.layers(z)


@pytest.mark.parametrize("name", ["diag-network", "full-constant", "bernoulli-network", "mixed-network"])
def test_a_decoder_of_ones_own(name, iris, tmp_path):
    options = VARIANTS[name]
    x = make(name, iris)[1]
    own = Decoder(VAE(4, 2, **options).outputs)
    model = VAE(4, 2, **options, decoder=own).double()
    assert not hasattr(model, "mean")
    before = [p.clone() for p in own.parameters()]
    model.initialize(x)
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))  # a trained one stays
    z = torch.randn(5, 2).double()
    location, numbers = own(z)[:, :4], own(z)[:, 4:]
    expected = model.likelihood(location, numbers if model.outputs > 4 or model.scale is None else model.scale(z))
    close(model.decode(z).log_prob(x[:5]), expected.log_prob(x[:5]))
    guide = Amortized(model, x, hidden=(8,))
    run = zoo.fit(model, guide, x, steps=100, progress=False)
    assert run.losses[-20:].mean() < run.losses[:10].mean()
    assert not any(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    run.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"argument decoder of the model .*Decoder.*load\(path, model=\.\.\.\)"):
        zoo.load(tmp_path / "run")
    again = VAE(4, 2, **options, decoder=Decoder(model.outputs))
    back = zoo.load(tmp_path / "run", model=again)
    close(back.model.decode(z).log_prob(x[:5]), model.decode(z).log_prob(x[:5]), 0.0)


def test_a_decoder_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"decoder returns width 7 .*, 8\), 4 locations, then 4 noise parameters"):
        VAE(4, 2, decoder=Decoder(7))
    with pytest.raises(ValueError, match=r"decoder returns width 8 .*\(\.\.\., 4\), 4 locations$"):
        VAE(4, 2, decoder=Decoder(8), noise="constant")


def test_an_activation_of_ones_own_is_asked_for(iris, tmp_path):
    model = VAE(4, 2, hidden=(8,), activation=nn.Mish).double()
    run = zoo.fit(model, Amortized(model, iris), iris, steps=2, progress=False)
    run.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"argument activation of the model .*load\(path, model=\.\.\.\)"):
        zoo.load(tmp_path / "run")
    back = zoo.load(tmp_path / "run", model=VAE(4, 2, hidden=(8,), activation=nn.Mish))
    close(back.model.decode(torch.zeros(2).double()).mean, model.decode(torch.zeros(2).double()).mean, 0.0)
