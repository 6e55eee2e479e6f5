"""The posterior as a guide: the bound is the log marginal, and so is its gradient, whatever is drawn."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

from guides import Exact
from zoo import GMM, PPCA, FactorAnalysis
from zoo.algebra.mixture_covariances import KINDS

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64: the draws cancel up to rounding
COVARIANCES = KINDS
MODELS = {
    "PPCA": lambda: PPCA(4, 2),
    "FactorAnalysis": lambda: FactorAnalysis(4, 2),
    **{f"GMM-{c}": lambda c=c: GMM(4, 3, c, start="random") for c in COVARIANCES},
}


def placed(build, x):
    """A model near the data, at random parameters."""
    model = build().double()
    model.initialize(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODELS)
def model(request, some):
    return placed(MODELS[request.param], some)


def assert_exact(loss, model, guide, x, scale=1.0, arguments=()):
    """Loss and gradients of a step are those of the log marginal."""
    total = -scale * model.log_marginal(x).sum()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(total, parameters)
    model.zero_grad(set_to_none=True)
    value = loss.loss_and_grads(model, guide, x, *arguments)
    assert value == pytest.approx(total.item(), rel=ALGEBRA)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, gradient, rtol=ALGEBRA, atol=ALGEBRA * len(x))


@pytest.mark.parametrize("seed", range(5))
def test_every_draw_gives_the_marginal(model, some, seed):
    pyro.set_rng_seed(seed)
    assert_exact(Trace_ELBO(), model, Exact(model), some)


def test_the_draws_do_differ(model, some):
    guide, draws = Exact(model), []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        trace = pyro.poutine.trace(guide).get_trace(some)
        draws.append(trace.nodes[guide.site.name]["value"])
    assert not torch.equal(*draws)


def test_vectorised_particles(model, some):
    loss = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    assert_exact(loss, model, Exact(model), some)


def test_minibatches(model, some):
    guide = Exact(model)
    for index in torch.randperm(60).split(20):
        assert_exact(Trace_ELBO(), model, guide, some[index], scale=3.0, arguments=(index, 60))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_summed_over_the_components(covariance, some):
    model = placed(MODELS[f"GMM-{covariance}"], some)
    guide = config_enumerate(Exact(model), "parallel")
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    assert_exact(loss, model, guide, some)
    index = torch.arange(0, 60, 2)
    assert_exact(loss, model, guide, some[index], scale=2.0, arguments=(index, 60))


def test_the_guide_owns_no_parameters_and_gives_the_models_posterior(model, some):
    guide = Exact(model)
    assert not list(guide.parameters())
    mine, theirs = guide.posterior(some), model.posterior(some)
    assert type(mine) is type(theirs)
    value = theirs.sample()
    assert torch.equal(mine.log_prob(value), theirs.log_prob(value))


def test_it_wants_the_rows(model):
    with pytest.raises(ValueError, match="pass x"):
        Exact(model)(size=5)
