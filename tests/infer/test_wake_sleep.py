"""WakeSleep on models whose posterior and maximum are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal

import zoo
from guides import Amortized, Exact, MeanField
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer import Fused, WakeSleep

pytestmark = pytest.mark.usefixtures("own_store")


def gradients(loss, model, guide, *args, seed=0):
    """The value, and the gradients of model and guide, each flat."""
    model.zero_grad()
    guide.zero_grad()
    with seeded(seed):
        value = loss.loss_and_grads(model, guide, *args)
    return value, *(torch.cat([p.grad.flatten() for p in own.parameters()]) for own in (model, guide))


@pytest.fixture
def fitted(some):
    """PPCA at its maximum, turned so that its posterior is correlated."""
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, some)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    with torch.no_grad():
        model.weight.copy_(model.weight @ turn)
    return model


def sleeping(model, guide, x, draws=60):
    """The mean gradient of the guide, which depends on the number of rows only, and its standard error."""
    found = torch.stack([gradients(WakeSleep(), model, guide, x.repeat(20, 1), seed=i)[2] for i in range(draws)])
    return found.mean(0), found.std(0) / draws**0.5


def test_wake_phase_is_the_bound_as_a_function_of_the_model(some, fitted):
    guide = Amortized(fitted, some, (8,)).double()
    index = torch.arange(0, 60, 2)
    for args in ((some,), (some[index], index, 60)):
        value, own, _ = gradients(WakeSleep(2), fitted, guide, *args)
        expected, theirs, _ = gradients(Trace_ELBO(2), fitted, guide, *args, seed=0)
        with seeded(0):
            alone = WakeSleep(2).loss(fitted, guide, *args)
        one, model_only, _ = gradients(WakeSleep(), fitted, guide, *args)
        plain, trace_only, _ = gradients(Trace_ELBO(), fitted, guide, *args)
        assert one == pytest.approx(plain, rel=1e-12)
        assert torch.allclose(model_only, trace_only, rtol=1e-10)
        assert value == pytest.approx(expected, rel=0.1)  # other draws, as dreams come between them
        assert (own - theirs).norm() < theirs.norm()
        assert alone == pytest.approx(value, rel=0.1)


def test_sleep_phase_ends_at_the_posterior_or_its_moments(some, fitted):
    """A full covariance represents the posterior; a diagonal one ends at its marginal variances, not at 1 / P_jj."""
    full = Amortized(fitted, some, (), covariance="full").double()
    full.initialize(some)
    mean, error = sleeping(fitted, full, some)
    assert (mean.abs() <= 5 * error + 1e-8).all()

    diagonal = Amortized(fitted, some, ()).double()
    diagonal.initialize(some)  # the best q of KL(q || p)
    mean, error = sleeping(fitted, diagonal, some)
    assert (mean.abs() > 5 * error).any()
    marginal = fitted.posterior(some).covariance_matrix[0].diagonal()
    before = diagonal.posterior(some).base_dist.scale[0].square()
    assert (marginal > 1.05 * before).all()
    run = zoo.fit(
        frozen(fitted),
        diagonal,
        some.repeat(20, 1),
        loss=WakeSleep(),
        optim=Fused(torch.optim.Adam, {"lr": 0.02}, schedule=zoo.infer.cosine(300)),
        steps=300,
        progress=False,
    )
    after = run.guide.posterior(some).base_dist
    assert torch.allclose(after.scale[0].square(), marginal, rtol=0.05)
    assert torch.allclose(after.loc, fitted.posterior(some).mean, atol=0.1)


def frozen(model):
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def test_finds_the_maximum_of_the_likelihood(some):
    """From a random start, with a guide that can be exact."""
    torch.manual_seed(0)
    reference, model = zoo.PPCA(4, 1).double(), zoo.PPCA(4, 1).double()
    zoo.em(reference, some)
    guide = Amortized(model, some, (), covariance="full").double()
    zoo.fit(
        model,
        guide,
        some,
        loss=WakeSleep(),
        optim=Fused(torch.optim.Adam, {"lr": 0.05}, schedule=zoo.infer.cosine(800)),
        start="random",
        steps=800,
        progress=False,
    )
    best, found = (m.log_marginal(some).mean().item() for m in (reference, model))
    assert best - 0.02 < found < best + 1e-9


def test_minibatches_and_discrete_latents(faithful):
    """The sleep gradient of a minibatch has the mean of all rows': zero where q is the posterior."""
    model = zoo.GMM(2, 2, covariance="tied").double()
    zoo.em(model, faithful)
    guide = Amortized(model, faithful, ()).double()
    guide.initialize(faithful)
    index = torch.arange(0, 272, 2)
    for args in ((faithful,), (faithful[index], index, 272)):
        found = torch.stack([gradients(WakeSleep(), model, guide, *args, seed=i)[2] for i in range(100)])
        assert (found.mean(0).abs() <= 5 * found.std(0) / 10 + 1e-8).all()
    with torch.no_grad():
        guide.encoder[-1].bias[0].add_(5.0)
    whole, half = (
        torch.stack([gradients(WakeSleep(), model, guide, *args, seed=i)[2] for i in range(100)]).mean(0)
        for args in ((faithful,), (faithful[index], index, 272))
    )
    assert (whole - half).norm() < 0.2 * whole.norm()


class TwoSites(zoo.base.module.Module):
    """A model with two data sites."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=None if x is None else x[:, :1])
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_refusals(some):
    model = zoo.PPCA(4, 2).double()
    bayes = zoo.BayesianPCA(4, 2).double()
    with pytest.raises(ValueError, match=r"has parameters for the rows of x.*Amortized"):
        WakeSleep().loss_and_grads(model, MeanField(model, some), some)
    with pytest.raises(ValueError, match="through '_AutoDiagonalNormal_latent'"):
        WakeSleep().loss_and_grads(model, AutoDiagonalNormal(model), some)
    with pytest.raises(ValueError, match="Exact depends on the model's parameter .*weight"):
        WakeSleep().loss_and_grads(model, Exact(model), some)
    with pytest.raises(ValueError, match="shared by all rows"):
        WakeSleep().loss_and_grads(bayes, Amortized(bayes, some), some)
    with pytest.raises(ValueError, match="the model has 2: y, x"):
        WakeSleep().loss_and_grads(two := TwoSites(), Amortized(two, some[:, :1]), some[:, :1])
    with pytest.raises(ValueError, match="num_particles"):
        WakeSleep(0)
