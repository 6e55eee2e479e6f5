"""SemiAmortized: refined q is never worse, ends at the best diagonal q, and the network learns to propose."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import Independent, Normal

import zoo
from guides import Amortized, CannotServe, SemiAmortized
from guides.semi_amortized import _design
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO


@pytest.fixture
def frozen(some):
    """Factor analysis near its optimum with a correlated posterior, its parameters frozen."""
    model = zoo.FactorAnalysis(4, 2).double()
    zoo.em(model, some, steps=200)
    c, s = math.cos(0.4), math.sin(0.4)
    with torch.no_grad():
        model.weight.copy_(model.weight @ torch.tensor([[c, -s], [s, c]]).to(some))
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def diagonal(loc, scale):
    return Independent(Normal(loc, scale), 1)


def best(model, x):
    """Mean and scales of the best diagonal q, in closed form."""
    q = model.posterior(x)
    return q.mean, q.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()


def moved(guide, by=0.2):
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(by * torch.randn_like(p))
    return guide


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 20])
def test_points_have_mean_zero_and_covariance_one(k):
    points = _design(k).double()
    assert points.shape == (2 ** math.ceil(math.log2(k + 1)), k)
    assert points.sum(0).abs().max() == 0
    assert torch.equal(points.T @ points, len(points) * torch.eye(k).double())


def test_one_full_step_solves_an_uncorrelated_posterior(some):
    model = zoo.PPCA(4, 1).double()
    model.initialize(some)
    guide = moved(SemiAmortized(model, some, steps=1, rate=1.0))
    q = guide.posterior(some)
    mean, scale = best(model, some)
    # from scales less than MOST = 10 times (in variance) from the answer, as these are, the step is Newton's
    near = ((guide.propose(some)[1] / scale).square().log().abs() < math.log(10)).squeeze(-1)
    assert near.any()
    torch.testing.assert_close(q.mean[near], mean[near], rtol=0, atol=1e-8)
    torch.testing.assert_close(q.base_dist.scale[near], scale[near], rtol=0, atol=1e-8)


def test_many_steps_end_at_the_best_diagonal_q(frozen, some):
    guide = moved(SemiAmortized(frozen, some, steps=300))
    q = guide.posterior(some)
    mean, scale = best(frozen, some)
    # what a bound known to 1e-16 times some hundred nats can tell: its error is the square of these
    torch.testing.assert_close(q.base_dist.scale, scale, rtol=0, atol=1e-6)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_no_step_lowers_the_bound_of_a_row(rate, frozen, some):
    """Even full steps, which overshoot along the correlation: row by row, in closed form."""
    guide = moved(SemiAmortized(frozen, some, rate=rate))
    loc, scale = guide.propose(some)
    bound = frozen.elbo(some, diagonal(loc, scale))
    for _ in range(4):
        guide.steps += 1
        risen = frozen.elbo(some, guide.posterior(some))
        assert (risen >= bound - 1e-9 * bound.abs()).all()
        bound = risen
    assert (bound > frozen.elbo(some, diagonal(loc, scale)) + 1.0).all()


def test_rows_do_not_see_each_other(frozen, some):
    guide = moved(SemiAmortized(frozen, some))
    whole, part = guide.posterior(some), guide.posterior(some[[7, 3]])
    torch.testing.assert_close(part.mean, whole.mean[[7, 3]])
    trace = poutine.trace(guide).get_trace(some[[7, 3]], torch.tensor([7, 3]), 60)
    torch.testing.assert_close(trace.nodes["z"]["fn"].base_dist.scale, part.base_dist.scale)
    assert float(trace.nodes["proposal"]["scale"]) == 30.0
    pyro.clear_param_store()


@pytest.mark.parametrize("batched", [False, True])
def test_the_network_ascends_the_bound_of_its_proposal(batched, frozen, some):
    """The gradient is that of the closed-form bound of the proposal, without noise, whatever the loss."""
    guide = moved(SemiAmortized(frozen, some, (8,)))
    index = torch.arange(0, 60, 3)
    arguments = (some[index], index, 60) if batched else (some,)
    loc, scale = guide.propose(arguments[0])
    bound = 60 / len(loc) * frozen.elbo(arguments[0], diagonal(loc, scale)).sum()
    names, params = zip(*guide.named_parameters(), strict=True)
    truth = torch.autograd.grad(-bound, params)
    losses = Trace_ELBO(3, vectorize_particles=True), Trace_ELBO(2), AnnealedELBO(0.2), IWAE(3)
    for loss in (*losses, IWAE(3, estimator="doubly"), QuadratureELBO()):
        guide.zero_grad()
        with pyro.get_param_store().scope():
            loss.loss_and_grads(frozen, guide, *arguments)
        for name, p, expected in zip(names, params, truth, strict=True):
            torch.testing.assert_close(p.grad, expected, rtol=1e-8, atol=1e-8, msg=f"{type(loss).__name__}: {name}")


def test_without_steps_it_is_the_network(some):
    model = zoo.PPCA(4, 2).double()
    guide = SemiAmortized(model, some, steps=0)
    assert torch.equal(guide.posterior(some).mean, guide.proposal.posterior(some).mean)
    with pyro.get_param_store().scope():
        trace = poutine.trace(guide).get_trace(some)
    assert "proposal" not in trace.nodes
    assert trace.nodes["z"]["fn"].base_dist.loc.requires_grad


def test_refining_is_seen_by_no_one(some, untouched):
    """No gradient in the model, nothing in the store, no draw, no site but z and the factor; also without gradients."""
    model = zoo.VAE(4, 2).double()
    guide = SemiAmortized(model, some)
    with untouched():
        q = guide.posterior(some)
        with torch.no_grad():
            assert torch.equal(guide.posterior(some).mean, q.mean)
        assert torch.equal(guide.refine(*guide.propose(some), some)[0], q.mean)
    assert not q.mean.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with pyro.get_param_store().scope(), pyro.plate("particles", 3, dim=-2):
        trace = poutine.trace(guide).get_trace(some)
        names = list(pyro.get_param_store())
    assert set(trace.stochastic_nodes) - {"rows", "particles"} == {"z"}
    assert set(trace.observation_nodes) == {"proposal"}
    assert names
    assert all(name.startswith(guide._pyro_name) for name in names)


def test_follows_the_model(some):
    """The steps see the model's parameters of the moment."""
    model = zoo.PPCA(4, 2).double()
    guide = SemiAmortized(model, some)
    before = guide.posterior(some).mean
    with torch.no_grad():
        model.mean.add_(1.0)
    assert (guide.posterior(some).mean - before).abs().max() > 0.01


def test_early_in_training_it_is_ahead_of_the_network(frozen, some):
    """Gap to the best diagonal q on a frozen model, from the same start, after the same steps."""
    top = frozen.elbo(some, diagonal(*best(frozen, some))).mean()
    gaps = {}
    for cls, options in ((Amortized, {"skip": False}), (SemiAmortized, {})):
        with seeded(0), pyro.get_param_store().scope():
            guide = cls(frozen, some, **options)
            svi = SVI(frozen, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            for step in range(101):
                if step in (0, 20, 100):
                    with torch.no_grad():
                        gaps[cls.__name__, step] = float(top - frozen.elbo(some, guide.posterior(some)).mean())
                svi.step(some)
    for step in (0, 20, 100):
        assert (
            -1e-9 < gaps["SemiAmortized", step] < 0.4 * gaps["Amortized", step]
        )  # measured: 0.03, 0.29 and 0.003 of it


def test_trains_evaluates_and_comes_back(some, tmp_path, untouched):
    x = some.clone()
    x[::5, 2] = math.nan
    model = zoo.FactorAnalysis(4, 2).double()
    guide = SemiAmortized(model, x, (8,), 2)
    assert guide.settings["masked"] is True
    assert json.loads(json.dumps(guide.settings))["steps"] == 2
    with untouched():
        run = zoo.fit(model, guide, x, steps=60, start="random", progress=False)
        assert (run.settings["loss"], run.settings["optimizer"]) == ("Trace_ELBO", "Fused")
        zoo.fit(model, guide, x, steps=5, batch_size=16, validation=x[:10], progress=False)
        result = zoo.evaluate(run, x, draws=50)
        assert result.elbo_se.max() == 0  # in closed form
        assert result.gap.min() > -1e-8
        idata = zoo.to_arviz(run, x, draws=5)
        run.save(tmp_path / "run")
        again = zoo.load(tmp_path / "run")
    assert run.losses[-5:].mean() < run.losses[:5].mean() - 1.0
    assert idata.posterior["z"].shape == (1, 5, 60, 2)
    assert again.guide.model is again.model
    assert torch.equal(run.sample(x, 3)["z"], again.sample(x, 3)["z"])


class Rates(nn.Module):
    """A real and a positive site per row, and a share: counts of nothing, rates of everything."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        with rows(x, index, size):
            a = pyro.sample("a", dist.Normal(zero, 1.0))
            b = pyro.sample("b", dist.Gamma(zero + 2.0, zero + 1.0))
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3).to(zero) * 2))
            mean = torch.stack([a, b.log(), share[..., 0]], -1)
            return pyro.sample("x", dist.Normal(mean, 0.3).to_event(1), obs=x)


def test_several_sites_of_several_supports(untouched):
    """Refined by the bound on the scale of real numbers, volumes included: nearer to log p than the network alone."""
    with seeded(5), torch.no_grad():
        x = Rates()(size=30)
    bounds = {}
    for steps in (0, 5):
        with seeded(1):
            guide = SemiAmortized(Rates(), x, (8,), steps)
        with untouched():
            run = zoo.fit(Rates(), guide, x, steps=30, progress=False)
            result = zoo.evaluate(run, x, draws=400)
        bounds[steps] = result.summary()
        draws = run.sample(x, 4)
        assert (draws["b"] > 0).all()
        assert draws["share"].shape == (4, 30, 3)
    assert bounds[5]["elbo"] > bounds[0]["elbo"] + 0.1
    assert bounds[5]["gap"] < 0.2
    with pytest.raises(ValueError, match="has 3 local latent sites"):
        guide.posterior(x)


def test_refusals(some, faithful):
    mixture = zoo.GMM(2, 2).double()
    with pytest.raises(CannotServe, match="SemiAmortized cannot serve GMM.*'component' is discrete.*Use Amortized"):
        SemiAmortized(mixture, faithful)

    def shared(x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x, index, size):
            pyro.sample("x", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=x)

    with pytest.raises(
        CannotServe,
        match="SemiAmortized cannot serve .*'m' is shared by all.*Use MeanField",
    ):
        SemiAmortized(shared, some)
    model = zoo.PPCA(4, 2).double()
    for wrong, message in (
        ({"steps": -1}, "steps must be a whole number of at least 0"),
        ({"rate": 0.0}, r"rate must be in \(0, 1\], got 0.0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]"),
        ({"hidden": (0,)}, "hidden must be"),
        ({"activation": "sine"}, "activation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            SemiAmortized(model, some, **wrong)
    with pytest.raises(ValueError, match="pass x"):
        SemiAmortized(model, some)()
