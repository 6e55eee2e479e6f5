"""Estimators of the gradient against their variances in closed form, and against each other."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import jitter
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import kl_divergence

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.distributions.divergences import kl_to_independent
from zoo.distributions.unreparametrised import Unreparametrised, without_path
from zoo.infer.gradient_noise import gradient_noise
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.leave_one_out import LeaveOneOutELBO
from zoo.infer.losses.path import PathELBO
from zoo.infer.losses.quadrature import QuadratureELBO

pytestmark = pytest.mark.usefixtures("own_store")
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(12)  # exact for polynomials up to degree 23
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@pytest.fixture
def line(some):
    """Factor analysis with one factor, and a factorised guide at no special place."""
    model = zoo.FactorAnalysis(4, 1).double()
    model.initialize(some)
    guide = MeanField(model, some)
    guide.initialize(some)
    jitter(guide, by=0.3)
    return model, guide


def variances(model, guide, x):
    r"""The trace of the covariance of every estimator, by integrals over the noise of each row's only draw.

    With the posterior N(a, 1/P) and q = N(m, s^2), z = m + s e: log p(x, z) has the slope P (a - z) in z, and log q the
    slope -e / s; the derivatives of log q in m and log s at fixed z are e / s and e^2 - 1.
    """
    posterior = model.posterior(x)
    a, p = (t.detach().squeeze().numpy()[:, None] for t in (posterior.mean, posterior.precision_matrix))
    m, s = (t.detach().numpy() for t in (guide.loc, guide.scale))  # (n, 1)
    log_p = model.log_marginal(x).detach().numpy()[:, None]
    e = NODES[None]
    z = m + s * e
    path = np.stack([np.ones_like(z), s * e])  # of z in m and log s
    score = np.stack([e / s, e**2 - 1 + 0 * z])  # of log q
    slope = p * (a - z)
    ratio = log_p + 0.5 * np.log(p) - 0.5 * p * (z - a) ** 2 + np.log(s) + 0.5 * e**2  # log p(x, z) - log q(z)
    kl = np.stack([m + 0 * z, s**2 - 1 + 0 * z])  # of the KL
    draws = {
        "path": (slope + e / s) * path,
        "reparametrised": (slope + e / s) * path - score,
        "analytic": (slope + z) * path - kl,
        "score": ratio * score,
    }
    found = {name: (g**2 @ WEIGHTS - (g @ WEIGHTS) ** 2).sum() for name, g in draws.items()}
    two = (ratio[..., :, None] - ratio[..., None, :]) * (score[..., :, None] - score[..., None, :]) / 2
    mean, square = (np.einsum("...ij,i,j->...", two**power, WEIGHTS, WEIGHTS) for power in (1, 2))
    return found | {"two": (square - mean**2).sum()}


@pytest.mark.parametrize(
    ("name", "loss", "draws"),
    [
        ("reparametrised", Trace_ELBO(), 1),
        ("reparametrised", Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1), 10),
        ("analytic", TraceMeanField_ELBO(), 1),
        ("analytic", AnnealedELBO(), 1),
        ("path", PathELBO(), 1),
        ("path", PathELBO(10, vectorize_particles=True, max_plate_nesting=1), 10),
        ("score", Trace_ELBO(), 1),
        ("two", LeaveOneOutELBO(2, max_plate_nesting=1), 1),
    ],
)
def test_variances_are_those_in_closed_form(name, loss, draws, line, some):
    model, guide = line
    truth = variances(model, guide, some)[name] / draws
    wrapped = without_path(guide) if name in ("score", "two") else guide
    found = gradient_noise(model, wrapped, loss, some, draws=60)
    assert abs(found.guide.variance - truth) < 5 * found.guide.error
    assert found.guide.error < 0.2 * truth  # the test can tell
    exact = gradient_noise(model, guide, QuadratureELBO(), some, draws=20)
    for part in ("guide", "model"):
        assert getattr(found, part).distance(getattr(exact, part)) < 5
    assert exact.guide.variance == exact.model.variance == 0


@pytest.mark.parametrize("family", ["diag", "full", "flow"])
def test_path_derivative_is_the_doubly_reparametrised_gradient_of_one_draw(family, some):
    model = zoo.PPCA(4, 2).double()
    model.initialize(some)
    guide = Flow(model, some) if family == "flow" else Amortized(model, some, (8,), covariance=family)
    jitter(guide, by=0.1)
    index = torch.arange(0, 60, 3)
    for args in ((some,), (some[index], index, 60)):
        found = []
        for loss in (PathELBO(), IWAE(1, estimator="doubly")):
            for module in (model, guide):
                module.zero_grad()
            with seeded(3):
                value = loss.loss_and_grads(model, guide, *args)
            parameters = [p for module in (model, guide) for p in module.parameters()]
            found.append((value, [p.grad.clone() for p in parameters]))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)


def test_path_derivative_reports_the_plain_bound(line, some):
    model, guide = line
    with seeded(0):
        expected = Trace_ELBO().loss(model, guide, some)
    for evaluate in (PathELBO().loss, PathELBO().loss_and_grads, PathELBO().differentiable_loss):
        with seeded(0):
            found = torch.as_tensor(evaluate(model, guide, some), dtype=torch.float64).item()
        assert found == pytest.approx(expected, rel=1e-12)


def test_path_derivative_and_baselines_vanish_at_the_posterior(some):
    model = zoo.FactorAnalysis(4, 2).double()
    model.initialize(some)
    guide = FullRank(model, some)
    guide.initialize(some)
    for loss, used in ((PathELBO(), guide), (LeaveOneOutELBO(5, max_plate_nesting=1), without_path(guide))):
        found = gradient_noise(model, used, loss, some, draws=20)
        assert found.guide.variance < 1e-20
        assert found.model.variance > 1
    assert gradient_noise(model, guide, Trace_ELBO(), some, draws=20).guide.variance > 1


def test_under_exact_the_noise_cancels_unless_the_score_is_dropped(some):
    model = zoo.FactorAnalysis(4, 2).double()
    model.initialize(some)
    guide = Exact(model)
    whole, path = (gradient_noise(model, guide, loss, some, draws=20) for loss in (Trace_ELBO(), PathELBO()))
    assert whole.model.variance < 1e-20 < 1 < path.model.variance
    assert path.model.distance(whole.model) < 5
    assert math.isnan(whole.guide.variance)  # no parameters of its own
    assert math.isnan(whole.guide.distance(path.guide))


def scattered(x=None, index=None, size=None):
    """A positive scale and a mean that all rows share, and a shift of every row."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(4), 3.0).to_event(1))
    with rows(x, index, size):
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean + shift, scale).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal, MeanField])
def test_path_derivative_of_shared_sites_and_of_autoguides(kind, some):
    """Sites that are drawn through auxiliary ones, that depend on each other, and of which some belong to all rows."""
    x = some[:10]
    guide = MeanField(scattered, x) if kind is MeanField else kind(scattered)
    guide(x)
    plain, path = (
        gradient_noise(scattered, guide, loss, x, draws=50, seed=seed)
        for seed, loss in enumerate((Trace_ELBO(), PathELBO()))
    )
    assert path.guide.distance(plain.guide) < 5
    assert path.guide.mean.norm() > 10 * math.sqrt(path.guide.variance / 50)  # the test can tell


def test_path_derivative_refuses_sites_without_a_path(faithful):
    model = zoo.GMM(2, 2).double()
    guide = MeanField(model, faithful, closed_form=False)
    with pytest.raises(ValueError, match=r"'component' \(Categorical\) are not reparametrised: use TraceEnum_ELBO"):
        PathELBO().loss_and_grads(model, guide, faithful)


def test_leave_one_out_of_a_discrete_site(faithful):
    """Unbiased, beside the sum over all values; quieter than ten draws without a baseline."""
    model = zoo.GMM(2, 2).double()
    model.initialize(faithful)
    guide = MeanField(model, faithful, closed_form=False)
    jitter(guide)
    exact = gradient_noise(model, guide, QuadratureELBO(), faithful, draws=20)
    found = gradient_noise(model, guide, LeaveOneOutELBO(10, max_plate_nesting=1), faithful, draws=30)
    plain = Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    assert found.guide.distance(exact.guide) < 5
    assert found.guide.variance < 0.5 * gradient_noise(model, guide, plain, faithful, draws=30).guide.variance
    with pytest.raises(ValueError, match="num_particles must be a whole number of at least 2"):
        LeaveOneOutELBO(1)


def test_without_path_keeps_draws_and_densities(some):
    model = zoo.PPCA(4, 2).double()
    guide = Flow(model, some)
    traces = []
    for used in (guide, without_path(guide)):
        with seeded(1):
            traces.append(poutine.trace(used).get_trace(some))
    torch.testing.assert_close(traces[0].nodes["z"]["value"], traces[1].nodes["z"]["value"])
    torch.testing.assert_close(traces[0].log_prob_sum(), traces[1].log_prob_sum())
    assert traces[0].nodes["z"]["value"].requires_grad
    assert not traces[1].nodes["z"]["value"].requires_grad


def test_without_path_leaves_points_and_discrete_draws(some):
    fixed = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def guide():
        pyro.sample("point", dist.Delta(torch.tensor(1.0)))
        pyro.sample("coin", dist.Bernoulli(0.5))
        pyro.sample("z", fixed)

    nodes = poutine.trace(without_path(guide)).get_trace().nodes
    assert isinstance(nodes["point"]["fn"], dist.Delta)
    assert isinstance(nodes["coin"]["fn"], dist.Bernoulli)
    assert isinstance(nodes["z"]["fn"], Unreparametrised)
    assert fixed.has_rsample  # the caller's own distribution is as it was


def test_kl_to_independent_entries():
    q = dist.MultivariateNormal(torch.randn(5, 3).double(), scale_tril=torch.eye(3).double() + torch.ones(3, 3).tril())
    loc, scale = torch.randn(3).double(), torch.rand(3).double() + 0.5
    expected = kl_divergence(q, dist.MultivariateNormal(loc, scale_tril=scale.diag()))
    torch.testing.assert_close(kl_divergence(q, dist.Normal(loc, scale).to_event(1)), expected)
    with pytest.raises(NotImplementedError, match="to Laplace entries"):
        kl_to_independent(q, dist.Laplace(loc, scale).to_event(1))


def test_noise_leaves_the_pair_as_it_was(line, some, untouched):
    model, guide = line
    before = [p.detach().clone() for module in line for p in module.parameters()]
    guide(some), model(some)  # registers the parameters
    with untouched():
        found = gradient_noise(model, guide, Trace_ELBO(), some, draws=20, scale=1 / 60)
    after = [p for module in line for p in module.parameters()]
    assert all(map(torch.equal, before, after))
    assert all(p.grad is None for p in after)
    assert found.guide.draws == 20
    assert found.guide.mean.shape == (120,)
    assert found.seconds > 0
    whole = gradient_noise(model, guide, Trace_ELBO(), some, draws=20)
    assert found.guide.variance == pytest.approx(whole.guide.variance / 3600)


def test_noise_refuses(line, some):
    model, guide = line
    for draws in (10, 25):
        with pytest.raises(ValueError, match="draws must be a"):
            gradient_noise(model, guide, Trace_ELBO(), some, draws=draws)
    with pytest.raises(FloatingPointError, match="the gradient of draw 0 is not finite"):
        gradient_noise(model, guide, Trace_ELBO(), some, draws=20, scale=math.inf)
