"""Linear response: exact for Gaussian posteriors, nearer to NUTS than mean-field elsewhere."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value

import guides
import zoo
from zoo.diagnostics import linear_response
from zoo.infer.losses.fixed_draws import FixedDraws

F64 = torch.float64
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [-0.4, 0.7, 1.2]], dtype=F64)


def correlated(x=None, index=None, size=None):
    """The posterior of theta is N(., (ROOT ROOT')^-1 + n I)^-1)."""
    zero = torch.zeros(3, dtype=F64)
    theta = pyro.sample("theta", dist.MultivariateNormal(zero, scale_tril=ROOT))  # (3,)
    with zoo.base.rows(x, index, size):
        pyro.sample("x", dist.Normal(theta, 1.0).to_event(1), obs=x)


def regression(x=None, index=None, size=None):
    """x holds the response first, then two predictors; noise of variance 1/4."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2, dtype=F64), 2.0).to_event(1))  # (2,)
    offset = pyro.sample("offset", dist.Normal(torch.zeros((), dtype=F64), 3.0))
    with zoo.base.rows(x, index, size):
        mean = (x[:, 1:] * weight).sum(-1) + offset
        pyro.sample("x", dist.Normal(mean, 0.5), obs=x[:, 0])


@pytest.fixture(scope="module")
def few():
    return torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(3))


def fitted(model, x, loss, **options):
    guide = guides.MeanField(model, x, **options)
    return zoo.fit(model, guide, x, loss=loss, progress=False)


@pytest.mark.parametrize("dense", [2000, 0])
def test_exact_on_a_correlated_gaussian(dense, few):
    loss = FixedDraws(30)
    found = linear_response(fitted(correlated, few, loss), few, loss=loss, dense=dense)
    expected = torch.linalg.inv(torch.cholesky_inverse(ROOT) + len(few) * torch.eye(3, dtype=F64))
    torch.testing.assert_close(found.covariance, expected, rtol=1e-6, atol=1e-6)
    assert (found.own_deviation < found.deviation + 0.01).all()
    assert found.units == ("theta[0]", "theta[1]", "theta[2]")


@pytest.mark.parametrize("dense", [2000, 0])
def test_exact_on_bayesian_linear_regression(dense, few):
    loss = FixedDraws(20, seed=5)
    x = few.repeat(3, 1) + torch.randn(12, 3, dtype=F64)
    x[:, 2] = x[:, 1] + 0.3 * x[:, 2]  # correlated predictors
    found = linear_response(fitted(regression, x, loss), x, loss=loss, dense=dense)
    design = torch.cat([x[:, 1:], torch.ones(12, 1, dtype=F64)], 1)
    prior = torch.tensor([0.25, 0.25, 1 / 9], dtype=F64)
    expected = torch.linalg.inv(torch.diag(prior) + 4 * design.mT @ design)
    torch.testing.assert_close(found.covariance, expected, rtol=1e-6, atol=1e-6)
    sums = linear_response(
        fitted(regression, x, loss), x, lambda v: v["weight"].sum(-1) + v["offset"], loss=loss, dense=dense
    )
    torch.testing.assert_close(sums.covariance, expected.sum().reshape(1, 1), rtol=1e-6, atol=1e-6)
    assert sums.units == ("quantity",)


def implied(values):
    """W W' + Psi of Bayesian factor analysis (draws, d, d)."""
    weight = values["weight"]
    return weight @ weight.mT + torch.diag_embed(1 / values["precision"])


def test_dense_and_conjugate_gradients_agree(some):
    run = zoo.cavi(zoo.BayesianFactorAnalysis(4, 1).double(), some, restarts=2)
    dense = linear_response(run, some, implied, draws=200)
    products = linear_response(run, some, implied, draws=200, dense=0)
    torch.testing.assert_close(dense.covariance, products.covariance, rtol=1e-6, atol=1e-10)
    table = dense.frame()
    assert table.columns == ["unit", "mean", "deviation", "own_deviation", "ratio"]
    assert table["unit"][1] == "[0, 1]"
    assert "times the guide's own" in str(dense)
    assert dense.summary()["left"] < 1e-3


def test_refusals(some, few, untouched):
    model = zoo.BayesianPCA(4, 1).double()
    guide = guides.MeanField(model, some)
    early = zoo.fit(model, guide, some, steps=3, progress=False)
    joint = zoo.Fit(correlated, guides.FullRank(correlated, few))
    with untouched():
        with pytest.raises(ValueError, match="MeanField is not at the maximum of ClosedFormELBO"):
            linear_response(early, some)
        with pytest.raises(ValueError, match="Trace_ELBO draws at random.*FixedDraws"):
            linear_response(early, some, loss=pyro.infer.Trace_ELBO())
        with pytest.raises(ValueError, match="couples the 3 latent numbers"):
            linear_response(joint, few, loss=FixedDraws(3))
    plain = zoo.PPCA(4, 1).double()
    loss = FixedDraws(5)
    run = fitted(plain, some, loss)
    with pytest.raises(ValueError, match="no shared site: pass quantity"):
        linear_response(run, some, loss=loss)


def test_bad_quantities_are_named(few):
    loss = FixedDraws(10)
    run = fitted(correlated, few, loss)
    with pytest.raises(ValueError, match="must return a tensor .draws, ....* got .3,"):
        linear_response(run, few, lambda v: v["theta"].mean(0), loss=loss)
    with pytest.raises(ValueError, match="differentiable operations"):
        linear_response(run, few, lambda v: v["theta"].detach(), loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_nearer_to_nuts_than_mean_field_on_holzinger_swineford(k):
    x = zoo.data.load("holzinger").x.double()
    x = (x - x.mean(0)) / x.std(0)
    model = zoo.BayesianFactorAnalysis(9, k).double()
    run = zoo.cavi(model, x, tol=1e-12)
    found = linear_response(run, x, implied, draws=4000)
    truth = implied_by_nuts(model, x, run)
    below = torch.tril_indices(9, 9)
    nuts, own, corrected = (v.reshape(9, 9)[*below] for v in (truth, found.own_deviation, found.deviation))
    print(f"k={k}: own / NUTS {(own / nuts).sort().values}, corrected / NUTS {(corrected / nuts).sort().values}")
    nearer = (corrected / nuts).log().abs() < (own / nuts).log().abs()
    assert nearer.double().mean() >= 0.9


def implied_by_nuts(model, x, run):
    """Standard deviations of W W' + Psi under the posterior, z integrated out."""

    def marginal(x, index=None, size=None):
        one = torch.ones((), dtype=F64)
        relevance = pyro.sample("relevance", dist.Gamma(1e-3 * one, 1e-3 * one).expand([model.latent_dim]).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(1e-3 * one, 1e-3 * one).expand([9]).to_event(1))
        weight = pyro.sample("weight", dist.Normal(0 * one, relevance.rsqrt().expand(9, -1)).to_event(2))
        mean = pyro.sample("mean", dist.Normal(model.location, model.spread.sqrt()).to_event(1))
        with zoo.base.rows(x, index, size):
            q = dist.LowRankMultivariateNormal(mean, weight.clamp(-1e3, 1e3), 1 / precision.clamp(1e-6, 1e6))
            pyro.sample("x", q, obs=x)

    with torch.no_grad():
        start = {name: factor.mean for name, factor in run.factors.items() if name != "z"}
        start["mean"] = start["mean"].squeeze(-1)
    pyro.set_rng_seed(0)
    kernel = NUTS(marginal, init_strategy=init_to_value(values=start))
    chain = MCMC(kernel, num_samples=400, warmup_steps=250, disable_progbar=True)
    chain.run(x)
    return implied(chain.get_samples()).std(0)
