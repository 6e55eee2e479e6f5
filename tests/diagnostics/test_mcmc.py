"""NUTS at the fitted parameters, against posteriors that are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

import zoo
from guides import Amortized, Exact, Flow, FullRank
from zoo.base.plates import rows
from zoo.diagnostics import nuts
from zoo.diagnostics.guide.mixing import chain_diagnostics


@pytest.fixture(scope="module")
def model():
    """Factors whose posterior has a correlation of -0.36 and deviations of 0.6 and 0.5: short trajectories."""
    model = zoo.FactorAnalysis(4, 2).double()
    model.weight = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.0, 1.0], [1.0, -0.2]], dtype=torch.float64)
    model.mean, model.scale = torch.arange(4).double(), torch.ones(4, dtype=torch.float64)
    return model


@pytest.fixture(scope="module")
def few(model):
    torch.manual_seed(1)
    return model(size=3).detach()


@pytest.fixture(scope="module")
def sampled(model, few):
    return nuts(zoo.Fit(model, Exact(model)), few, chains=2, draws=100, warmup=60, seed=1)


def within(difference, error):
    return all((difference[name].abs() < 5 * error[name]).all() for name in difference)


def test_the_exact_posterior(sampled, model, few):
    assert sampled.samples["z"].shape == (2, 100, 3, 2)
    assert sampled.rhat["z"].shape == sampled.ess_tail["z"].shape == (3, 2)
    assert sampled.acceptance.shape == (2,)
    posterior = model.posterior(few)
    assert ((sampled.mean["z"] - posterior.mean).abs() < 5 * sampled.mean_se["z"]).all()
    assert ((sampled.deviation["z"] - posterior.stddev).abs() < 5 * sampled.deviation_se["z"]).all()
    assert sampled.rhat["z"].max() < 1.1  # the chains agree, as far as so few draws show
    compared = sampled.compare(zoo.Fit(model, Exact(model)))
    assert compared.closed
    assert within(compared.mean, compared.mean_se)
    assert within(compared.deviation, compared.deviation_se)
    assert compared.summary()["worst_mean"] == pytest.approx(compared.mean["z"].abs().max().item())
    assert "z (3, 2) by NUTS, 2 chains of 100 draws" in repr(sampled)
    assert "means off by" in repr(compared)


def test_a_guide_that_is_off_by_a_known_amount(sampled, model, few):
    guide, posterior = FullRank(model, few), model.posterior(few)
    with torch.no_grad():
        guide.loc, guide.scale_tril = posterior.mean + 0.7 * posterior.stddev, 0.5 * posterior.scale_tril
    compared = sampled.compare(zoo.Fit(model, guide))
    assert within({"z": compared.mean["z"] - 0.7}, {"z": compared.mean_se["z"] + 0.7 * sampled_error(sampled)})
    assert within({"z": compared.deviation["z"] + 0.5}, compared.deviation_se)


def sampled_error(sampled):
    """The relative error of the unit."""
    return sampled.deviation_se["z"] / sampled.deviation["z"]


def test_a_guide_without_closed_form(sampled, model, few):
    flow = zoo.Fit(model, Flow(model, few))
    compared = sampled.compare(flow, draws=2000)
    assert not compared.closed
    z = flow.sample(few, 2000, seed=3)["z"]
    unit = sampled.deviation["z"]
    error = (2 / 2000) ** 0.5 * z.std(0) / unit
    assert (((z.mean(0) - sampled.mean["z"]) / unit - compared.mean["z"]).abs() < 5 * error).all()


def test_the_same_seed_gives_the_same_draws_and_no_trace(model, few, untouched):
    run = zoo.Fit(model, Exact(model))
    with untouched():
        one, two = (nuts(run, few[:1], chains=2, draws=20, warmup=20, seed=5) for _ in range(2))
    assert torch.equal(one.samples["z"], two.samples["z"])
    assert not torch.equal(one.samples["z"][0], one.samples["z"][1])
    assert not one.converged  # 40 draws are too few to say so


class Mixed(PyroModule):
    """A mean that all rows share, a shift of every row's own, and a component that is summed out."""

    def forward(self, x=None, index=None, size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with rows(x, index, size):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            loc = (mean + z + 2.0 * c).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


def test_discrete_sites_are_summed_out_and_shared_ones_sampled():
    def guide(x, index=None, size=None):
        pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))

    x = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    run = zoo.Fit(Mixed(), guide)
    found = nuts(run, x, chains=2, draws=40, warmup=40)
    assert set(found.samples) == {"mean", "z"}
    assert found.samples["mean"].shape == (2, 40)
    grid = torch.linspace(-5, 5, 401, dtype=torch.float64)  # z is integrated in closed form: x | mean, c
    component = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    loc = grid.reshape(-1, 1, 1) + 2.0 * torch.arange(2)
    row = (dist.Normal(loc, 1.25**0.5).log_prob(x) + component).logsumexp(-1)  # (grid, rows)
    weight = (row.sum(1) - 0.5 * grid.square()).softmax(0)
    exact = (weight * grid).sum()
    assert (found.mean["mean"] - exact).abs() < 5 * found.mean_se["mean"]
    compared = found.compare(run, draws=500)
    assert compared.mean["z"].shape == (2,)
    assert compared.mean["mean"].shape == ()


def test_refusals(model, iris, some):
    run = zoo.Fit(model, Exact(model))
    for given, message in [
        ({"chains": 1}, "chains must be a whole number of at least 2"),
        ({"draws": 0}, "draws must be a whole number of at least 20"),
        ({"warmup": 0}, "warmup must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            nuts(run, some, **given)
    with pytest.raises(ValueError, match="1050 rows have 2100 latent dimensions .* at most 1000 of the rows"):
        nuts(run, iris.repeat(7, 1))
    mixture = zoo.GMM(4, 2).double()
    with pytest.raises(ValueError, match="GMM has no continuous latent site"):
        nuts(zoo.Fit(mixture, Exact(mixture)), some)


def test_comparison_refuses_another_model(sampled, few):
    other = zoo.FactorAnalysis(4, 1).double()
    with pytest.raises(ValueError, match=r"site 'z' has shape \(3, 1\), the chains have \(3, 2\)"):
        sampled.compare(zoo.Fit(other, Amortized(other, few)))
    mixture = zoo.GMM(4, 2).double()
    with pytest.raises(ValueError, match="has no site 'z'"):
        sampled.compare(zoo.Fit(mixture, Exact(mixture)))


def test_mixing_of_chains_that_agree_and_of_those_that_do_not():
    z = torch.randn(4, 500, 2, 3)
    found = chain_diagnostics(z)
    assert set(found) == {"rhat", "ess_bulk", "ess_tail", "mean_se", "deviation_se"}
    assert all(value.shape == (2, 3) for value in found.values())
    assert found["rhat"].max() < 1.01
    assert (found["ess_bulk"] > 1000).all()
    torch.testing.assert_close(found["mean_se"], torch.full((2, 3), 2000**-0.5, dtype=torch.float64), rtol=0.2, atol=0)
    apart = chain_diagnostics(z + torch.arange(4).reshape(4, 1, 1, 1))
    assert apart["rhat"].min() > 1.1
    assert chain_diagnostics(z[..., 0, 0])["rhat"].shape == ()
    with pytest.raises(ValueError, match="pass at least two chains of four draws"):
        chain_diagnostics(z[:1])


@pytest.mark.slow
def test_four_chains_on_the_irises(iris):
    model = zoo.FactorAnalysis(4, 2).double()
    torch.manual_seed(1)
    model.initialize(iris)
    zoo.em(model, iris)
    run = zoo.Fit(model, Exact(model))
    found = nuts(run, iris)
    assert found.divergences == 0
    assert found.rhat["z"].max() < 1.05
    compared = found.compare(run)
    assert within(compared.mean, compared.mean_se)
    assert within(compared.deviation, compared.deviation_se)
    for difference, error in ((compared.mean, compared.mean_se), (compared.deviation, compared.deviation_se)):
        size = (difference["z"] / error["z"]).square().mean()  # 1 where the standard errors are right
        assert 0.5 < size < 2.0
