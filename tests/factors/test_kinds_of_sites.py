"""Generation, reconstruction, imputation and decoding of models with shared sites, covariates and sites of any name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroParam

import guides
import zoo
from zoo.base import Module, rows
from zoo.base.covariates import row_buffers
from zoo.distributions.observed import seen
from zoo.factors import decode, encode

N, D, K = 30, 4, 2
OTHER_ROWS = r"has 'batch', 'group' for 30 rows, and 5 are needed: pass run.given\(batch=..., group=...\)"
ALGEBRA = {"rtol": 1e-9, "atol": 1e-9}


def one_mean(x=None, index=None, size=None):
    """A mean that all rows share; the rows are the site ``y``."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 10.0))
    with rows(x, index, size):
        return pyro.sample("y", dist.Normal(mean.unsqueeze(-1).expand(*mean.shape, D), 1.0).to_event(1), obs=x)


class Bayesian(Module):
    """Factor analysis with a prior on the weights, in a plate of the features or as a matrix."""

    missing = True

    def __init__(self, plate=True):
        super().__init__()
        self.plate = plate
        self.scale = PyroParam(torch.tensor(0.5, dtype=torch.float64))
        self.data_dim = D

    def forward(self, x=None, index=None, size=None):
        zero = self.scale.new_zeros(())
        if self.plate:
            with pyro.plate("features", D):
                weight = pyro.sample("weight", dist.Normal(zero.expand(K), 1.0).to_event(1))
        else:
            weight = pyro.sample("weight", dist.Normal(zero.expand(D, K), 1.0).to_event(2))
            weight = weight.squeeze(-3) if weight.ndim > 3 else weight  # (draws, 1, d, k)
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zero.expand(K), 1.0).to_event(1))
            noise = dist.Normal(z @ weight.mT, self.scale).to_event(1)
            return pyro.sample("x", seen(noise, x), obs=x)


class Covariate(Module):
    """Factors and two covariates per row, one of them a code; and a buffer that is no covariate."""

    def __init__(self, batch, group):
        super().__init__()
        self.data_dim = D
        self.slope = PyroParam(torch.arange(D, dtype=torch.float64))
        self.levels = PyroParam(torch.tensor([0.0, 10.0, 20.0], dtype=torch.float64))
        self.register_buffer("batch", batch)
        self.register_buffer("group", group)
        self.register_buffer("width", torch.ones(K, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        batch, group = (value if index is None else value[index] for value in (self.batch, self.group))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.slope.new_zeros(K), self.width).to_event(1))
            loc = z.sum(-1, keepdim=True) + batch.unsqueeze(-1) * self.slope + self.levels[group].unsqueeze(-1)
            return pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)


def supervised(x=None, index=None, size=None):
    """Two data sites: three columns and a label."""
    zero = torch.zeros((), dtype=torch.float64)
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(zero.expand(K), 1.0).to_event(1))
        columns = None if x is None else x[..., :3]
        label = None if x is None else x[..., 3]
        a = pyro.sample(
            "a", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=columns
        )
        b = pyro.sample("b", dist.Bernoulli(logits=z[..., 0]), obs=label)
    return a, b


class Missing(Module):
    """The same, as a module that says that rows may have missing entries."""

    missing = True

    def forward(self, x=None, index=None, size=None):
        return supervised(x, index, size)


class Independent(Module):
    """q(z) = N(1, 0.1), for any model with factors."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(torch.ones(K, dtype=torch.float64), 0.1).to_event(1))


@pytest.fixture
def x():
    return torch.randn(N, D, dtype=torch.float64)


def covariates(n=N):
    return torch.linspace(0, 1, n, dtype=torch.float64), torch.arange(n) % 3


def paired(model, guide, x=None):
    """A pair with Pyro's parameters of this guide, which are then taken out of the store."""
    if x is not None:
        guide(x)
    run = zoo.Fit(model, guide)
    pyro.clear_param_store()
    return run


def by_rows(model, x):
    """AutoNormal, which takes minibatches of rows; its means are moved away from their start."""
    guide = AutoNormal(
        model,
        create_plates=lambda x, index=None, size=None: pyro.plate("rows", size or len(x), subsample=index, dim=-1),
    )
    guide(x)
    with torch.no_grad():
        for name, value in guide.named_parameters():
            if name.startswith("locs"):
                value.copy_(torch.randn(value.shape, dtype=torch.float64))
    return guide


@pytest.mark.parametrize("family", [AutoNormal, AutoMultivariateNormal])
def test_generate_draws_shared_sites_from_the_guide(x, family, untouched):
    run = paired(one_mean, family(one_mean, init_scale=0.01), x)
    loc = run.guide.median(x)["mean"].detach()
    with untouched():
        found = zoo.generate(run, 500)
    assert abs(found.shared["mean"] - loc) < 5 * 0.01
    assert set(found.data) == {"y"}
    assert found.x.shape == (500, D)
    torch.testing.assert_close(found.mean, found.shared["mean"].expand(500, D), **ALGEBRA)
    means = torch.stack([zoo.generate(run, 1, prior=True, seed=s).shared["mean"] for s in range(40)])
    assert 5 < means.std() < 15  # of the prior: 10


def test_generate_reads_guides_that_hold_rows(x):
    model = Bayesian(plate=False)
    run = zoo.Fit(model, guides.MeanField(model, x))
    found = zoo.generate(run, 7)
    torch.testing.assert_close(found.mean, found.latents["z"] @ found.shared["weight"].mT, **ALGEBRA)
    joint = AutoMultivariateNormal(model)
    found = zoo.generate(paired(model, joint, x), 7)  # its rows are 30
    assert (found.latents["z"].shape, found.shared["weight"].shape) == ((7, K), (D, K))


def test_a_guide_that_depends_on_the_rows_asks_for_them(x):
    def guide(x=None, index=None, size=None):
        pyro.sample("mean", dist.Normal(x.mean(), 0.01))

    run = zoo.Fit(one_mean, guide)
    with pytest.raises(ValueError, match=r"draws 'mean' depending on the rows: pass x, the rows"):
        zoo.generate(run, 5)
    assert abs(zoo.generate(run, 5, x=x + 3).shared["mean"] - (x + 3).mean()) < 0.05
    assert zoo.generate(run, 5, prior=True).x.shape == (5, D)


def test_a_model_whose_data_cannot_be_found_is_named():
    def silent(x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="the model silent returns none of its sites"):
        zoo.generate(zoo.Fit(silent, None), 3)


def test_reconstruct_averages_over_shared_sites(x):
    model = Bayesian()
    run = paired(model, by_rows(model, x))
    draws = 4000
    found = zoo.reconstruct(run, x, draws=draws)
    values = run.sample(x, draws, seed=1)
    mean, spread = values["z"].mean(0) @ values["weight"].mean(0).mT, found.variance.sqrt()
    assert ((found.mean - mean).abs() < 5 * 1.5 * spread / draws**0.5).all()
    between = (values["z"] @ values["weight"].mT).var(0) + 0.25
    assert ((found.variance - between).abs() < 6 * 2**0.5 * between * (2 / draws) ** 0.5).all()


def test_reconstruct_in_chunks_holds_the_shared_draws(x, monkeypatch):
    model = Bayesian()
    run = paired(model, by_rows(model, x))
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 7 * 50 * D)
    seen_values = []
    simulate = zoo.posterior.engine.Reader.simulate

    def watched(self, arguments, draws, held=None):
        seen_values.append(held["weight"])
        return simulate(self, arguments, draws, held)

    monkeypatch.setattr(zoo.posterior.engine.Reader, "simulate", watched)
    zoo.reconstruct(run, x, draws=50)
    assert len(seen_values) == 5
    assert all(torch.equal(value, seen_values[0]) for value in seen_values)


def test_impute_averages_over_shared_sites(x):
    gone = x.clone()
    gone[3, 1] = gone[8, 0] = torch.nan
    model = Bayesian()
    run = paired(model, by_rows(model, x))
    found, whole = zoo.impute(run, gone, draws=3000), zoo.reconstruct(run, gone, draws=3000)
    where = gone.isnan()
    assert ((found.mean - whole.mean)[where].abs() < 5 * (2 * whole.variance[where] / 3000).sqrt()).all()
    with pytest.raises(ValueError, match=r"'weight' is shared by all rows.*impute\(weighted=True\)"):
        zoo.impute(run, gone, weighted=True)


def test_decode_averages_over_shared_sites(x):
    model = Bayesian()
    run = paired(model, by_rows(model, x))
    z = torch.randn(3, 5, K, dtype=torch.float64)
    density = decode(run, z, draws=4000)
    weight = run.sample(x, 4000)["weight"]  # (s, d, k)
    means = z @ weight.mT.unsqueeze(1)  # (s, 3, 5, d)
    error = 2**0.5 * means.std(0) / 4000**0.5 + 1e-9
    assert density.batch_shape == (3, 5)
    assert ((density.mean - means.mean(0)).abs() < 5 * error).all()
    expected = 0.25 + means.var(0)
    assert ((density.variance - expected).abs() < 6 * 2**0.5 * expected * (2 / 4000) ** 0.5).all()
    value = means.mean(0) + 0.1
    by_hand = dist.Normal(means, 0.5).to_event(1).log_prob(value).exp()
    error = 2**0.5 * by_hand.std(0) / 4000**0.5
    assert ((density.log_prob(value).exp() - by_hand.mean(0)).abs() < 5 * error).all()
    assert density.sample((2,)).shape == (2, 3, 5, D)
    assert zoo.traverse(run, 0, x=x, rows=[1, 4]).mean.shape == (2, 7, D)
    assert encode(run, x).shape == (N, K)


def test_a_point_mass_reconstructs(x):
    model = Bayesian()
    run = paired(model, AutoDelta(model), x)
    found = zoo.reconstruct(run, x, draws=2)
    torch.testing.assert_close(found.variance, torch.full_like(x, 0.25), **ALGEBRA)


@pytest.fixture
def conditional(x):
    model = Covariate(*covariates())
    return zoo.Fit(model, Independent())


def expected_mean(z, batch, group):
    level = torch.tensor([0.0, 10.0, 20.0], dtype=torch.float64)[group].unsqueeze(-1)
    return z.sum(-1, keepdim=True) + batch.unsqueeze(-1) * torch.arange(D, dtype=torch.float64) + level


def test_covariates_are_found_by_behaviour(conditional, x):
    assert row_buffers(conditional.model) == {"batch": N, "group": N}
    assert row_buffers(conditional.model, x) == {"batch": N, "group": N}
    assert row_buffers(zoo.FactorAnalysis(4, 2)) == {}


def test_generate_with_covariates(conditional):
    batch, group = torch.tensor([0.5, -1.0]).double(), torch.tensor([2, 1])
    found = zoo.generate(conditional.given(batch=batch, group=group), 2)
    torch.testing.assert_close(found.mean, expected_mean(found.latents["z"], batch, group), **ALGEBRA)
    own = zoo.generate(conditional, N)
    torch.testing.assert_close(own.mean, expected_mean(own.latents["z"], *covariates()), **ALGEBRA)


@pytest.mark.parametrize("numbers", [2**22, 5 * 100 * D])
def test_reconstruct_with_covariates(conditional, numbers, monkeypatch):
    monkeypatch.setattr("zoo.base.memory.NUMBERS", numbers)
    batch, group = torch.randn(12).double(), torch.arange(12) % 2
    given = conditional.given(batch=batch, group=group)
    found = zoo.reconstruct(given, torch.zeros(12, D).double(), draws=100)
    ones = torch.ones(12, K, dtype=torch.float64)
    assert ((found.mean - expected_mean(ones, batch, group)).abs() < 5 * 0.1 * (K / 100) ** 0.5).all()


def test_decode_with_covariates(conditional, x):
    z = torch.zeros(N, K, dtype=torch.float64)
    torch.testing.assert_close(decode(conditional, z).mean, expected_mean(z, *covariates()), **ALGEBRA)
    some = [4, 11]
    path = zoo.traverse(conditional, 0, values=[0.0, 1.0], x=x, rows=some)
    batch, group = covariates()
    for s in range(2):
        torch.testing.assert_close(path.mean[:, s], expected_mean(path.z[:, s], batch[some], group[some]), **ALGEBRA)
    one = conditional.given(batch=[0.5], group=[2])
    found = zoo.traverse(one, 1, values=[3.0])
    at = expected_mean(found.z[0], torch.tensor([0.5]).double(), torch.tensor([2]))
    torch.testing.assert_close(found.mean[0], at, **ALGEBRA)


@pytest.mark.parametrize(
    "call",
    [
        lambda run, x: zoo.generate(run, 5),
        lambda run, x: zoo.reconstruct(run, x),
        lambda run, x: zoo.evaluate(run, x),
        lambda run, x: zoo.impute(run, torch.where(x > -9, torch.nan, x)),
        lambda run, x: encode(run, x),
        lambda run, x: decode(run, torch.zeros(5, K)),
        lambda run, x: zoo.log_evidence_bounds(run, x, draws=(30,)),
        lambda run, x: run.sample(x),
    ],
)
def test_other_rows_than_covariates_name_the_buffer(conditional, call, untouched):
    conditional.model.missing = True
    with untouched(), pytest.raises(ValueError, match=OTHER_ROWS):
        call(conditional, torch.zeros(5, D).double())


def test_given_shares_parameters_and_leaves_the_pair_alone(x):
    model = Covariate(*covariates())
    guide = guides.SemiAmortized(model, x)
    run = zoo.Fit(config_enumerate(model), guide)
    batch, group = covariates(N)
    given = run.given(batch=batch + 1, group=group.roll(1))
    inner = zoo.base.callables.unwrapped(given.model)
    assert inner is not model
    assert inner.slope is model.slope
    assert torch.equal(model.batch, batch)
    assert given.guide.model is inner
    assert run.guide.model is model
    assert given.guide is not guide
    assert {name for name, _ in inner.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert inner._pyro_name == model._pyro_name
    auto = AutoNormal(model)
    again = zoo.Fit(model, auto).given(batch=batch, group=group).guide
    assert zoo.base.callables.unwrapped(again.model) is not model
    assert zoo.base.callables.unwrapped(auto.model) is model
    assert zoo.Fit(model, Independent()).given(batch=batch, group=group).guide is not None


def test_given_changes_the_bound_as_the_model_would(x):
    """A pair with given covariates is the pair whose model was built with them."""
    batch, group = torch.randn(N).double(), torch.arange(N) % 2
    run = zoo.Fit(Covariate(*covariates()), Independent()).given(batch=batch, group=group)
    built = zoo.Fit(Covariate(batch, group), Independent())
    assert torch.equal(zoo.evaluate(run, x, draws=50).elbo, zoo.evaluate(built, x, draws=50).elbo)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({"colour": [1.0]}, "has no buffer 'colour'; its buffers are 'batch', 'group', 'width'"),
        ({"batch": torch.zeros(3, 2)}, r"batch has shape \(3, 2\): pass one entry for every row, \(n\)"),
        ({"batch": torch.zeros(3), "group": torch.zeros(4)}, "'batch' 3, 'group' 4; pass them all together"),
        ({"batch": torch.zeros(3)}, r"'batch' 3, 'group' 30 \(current\)"),
    ],
)
def test_given_refuses(conditional, buffers, message):
    with pytest.raises(ValueError, match=message):
        conditional.given(**buffers)


def test_given_refuses_functions(conditional, x):
    with pytest.raises(TypeError, match="the model one_mean is a function"):
        zoo.Fit(one_mean, None).given(batch=[1.0])
    model = conditional.model

    def guide(x=None, index=None, size=None):
        return model.slope

    with pytest.raises(ValueError, match="the guide guide is a function that refers to the model"):
        zoo.Fit(model, guide).given(batch=[1.0], group=[0])


def test_several_data_sites(x):
    x[:, 3] = (x[:, 3] > 0).double()
    run = zoo.Fit(supervised, Independent())
    found = zoo.generate(run, 6)
    assert {name: tuple(value.shape) for name, value in found.data.items()} == {"a": (6, 3), "b": (6, 1)}
    with pytest.raises(ValueError, match="the model has the data sites 'a', 'b': use data"):
        _ = found.x
    again = zoo.reconstruct(run, x)
    assert {name: tuple(value.shape) for name, value in again.means.items()} == {"a": (N, 3), "b": (N, 1)}
    with pytest.raises(ValueError, match="impute needs a model with one data site, Missing has 'a', 'b'"):
        zoo.impute(zoo.Fit(Missing(), Independent()), torch.where(x > 1, torch.nan, x))


def test_results_have_tables(x):
    model = Bayesian()
    run = paired(model, by_rows(model, x))
    for found in (
        zoo.generate(run, 5),
        zoo.reconstruct(run, x),
        zoo.traverse(run, 0),
        zoo.factors.interpolate(run, 0, 1, x=x),
        zoo.factors.intervene(run, x, {0: 1.0}),
        zoo.impute(run, torch.where(x > 1, torch.nan, x), draws=5),
    ):
        assert found.frame().height > 0
        assert all(isinstance(value, float) for value in found.summary().values())
        assert len(str(found)) < 200
