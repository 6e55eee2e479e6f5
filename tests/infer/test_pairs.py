"""Pairs of every kind in zoo.fit: handlers, functions, shared sites, plates, covariates, layers with two modes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fit
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroParam
from torch import nn
from torch.distributions import constraints

import zoo
from guides import Amortized, MeanField
from zoo.base import Module, rows
from zoo.infer.guard import Diverged

K = 2


def adam(lr=0.03):
    return pyro.optim.Adam({"lr": lr})


def nothing(x=None, index=None, size=None):
    """A guide that leaves the assignments to enumeration."""


# Handlers.


@pytest.mark.parametrize("wrap", [config_enumerate, lambda m: config_enumerate(poutine.scale(m, 1.0))])
def test_a_model_behind_a_handler_is_placed_and_trained(wrap, faithful):
    model = zoo.GMM(2, components=2).double()
    run = fit(wrap(model), nothing, faithful, loss=TraceEnum_ELBO(max_plate_nesting=1), optim=adam(), steps=600)
    assert not model.fresh
    assert run.losses[-1].item() == pytest.approx(4.1554, abs=1e-3)


def test_a_model_behind_a_handler_is_checked(faithful):
    model = config_enumerate(zoo.GMM(2, components=2).double())
    with pytest.raises(ValueError, match="x has 1 columns, the model GMM was built for data_dim=2"):
        fit(model, nothing, faithful[:, :1], loss=TraceEnum_ELBO(max_plate_nesting=1))


@pytest.mark.filterwarnings("ignore:Encountered")
def test_a_model_behind_a_handler_is_kept(some):
    model = zoo.PPCA(4, 2).double()
    seen = {}

    def spoil(step, _):
        seen[step] = model.weight.detach().clone()
        if step == 4:
            with torch.no_grad():
                model.weight.fill_(torch.nan)

    with pytest.raises(Diverged, match="at step 5"):
        fit(poutine.scale(model, 0.5), MeanField(model, some), some, every=2, optim=adam(), callbacks=[spoil])
    assert torch.equal(model.weight, seen[3])


def test_a_handler_that_changes_the_density_has_no_closed_forms(some):
    model = zoo.PPCA(4, 2).double()
    plan = zoo.plan(poutine.scale(model, 0.5), MeanField(model, some), some)
    assert type(plan.loss) is Trace_ELBO


# Functions.


def by_hand(x=None, index=None, size=None):
    loc = pyro.param("loc", torch.zeros(60, K, dtype=torch.float64))
    scale = pyro.param("spread", torch.full((60, K), 0.5, dtype=torch.float64), constraint=constraints.positive)
    with rows(x, index, size) as chosen:
        pyro.sample("z", dist.Normal(loc[chosen], scale[chosen]).to_event(1))


def test_a_function_is_trained_on_with_its_store(some, untouched):
    model = zoo.PPCA(4, K).double()
    with untouched():
        first = fit(model, by_hand, some, optim=adam(), steps=200)
        again = fit(model, by_hand, some, optim=adam(0.0), steps=50, store=first.store)
        anew = fit(model, by_hand, some, optim=adam(0.0), steps=50)
    assert again.losses.mean().item() == pytest.approx(first.losses[-50:].mean().item(), abs=0.1)
    assert anew.losses.mean() > again.losses.mean() + 0.5
    with again.scope():
        assert pyro.param("loc").abs().max() > 0.1


def float32(x=None, index=None, size=None):
    loc = pyro.param("loc", torch.zeros(60, K))
    with rows(x, index, size) as chosen:
        pyro.sample("z", dist.Normal(loc[chosen], 1.0).to_event(1))


def float32_draws(x=None, index=None, size=None):
    with rows(x, index, size):
        pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (float32, r"parameter 'loc' of guide float32 is torch.float32 on cpu, the model torch.float64"),
        (float32_draws, r"site 'z' of guide float32_draws is torch.float32 on cpu, the model torch.float64"),
    ],
)
def test_two_dtypes_are_named(guide, message, some):
    with pytest.raises(ValueError, match=message):
        fit(zoo.PPCA(4, K).double(), guide, some, steps=3)


# Sites that rows share, plates, covariates.


def factors(x=None, index=None, size=None):
    """Bayesian factor analysis with weights in a plate of the features."""
    with pyro.plate("features", 4):
        weight = pyro.sample("W", dist.Normal(torch.zeros(K), 1.0).to_event(1))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z @ weight.mT, 0.3).to_event(1), obs=x)


def row_plate(x=None, index=None, size=None):
    return pyro.plate("rows", size or len(x), subsample=index, dim=-1)


@pytest.fixture
def centred(iris):
    return (iris - iris.mean(0)).float()


def test_a_plate_of_features(centred):
    run = fit(factors, AutoNormal(factors), centred, steps=1500)
    assert run.losses[-50:].mean() == pytest.approx(3.1, abs=0.15)
    plan = zoo.plan(factors, AutoNormal(factors), centred)
    assert plan.summary()["schedule"].startswith("halved")


def test_minibatches_with_shared_sites_are_unbiased(centred):
    guide = AutoNormal(factors, create_plates=row_plate)
    run = fit(factors, guide, centred, steps=300, batch_size=30)
    still = {"optim": adam(0.0), "store": run.store}
    small = fit(factors, guide, centred, steps=400, batch_size=30, **still).losses
    whole = fit(factors, guide, centred, steps=400, **still).losses
    error = (small.var() / 400 + whole.var() / 400).sqrt()
    assert abs(small.mean() - whole.mean()) <= 4 * error


def test_autoguides_that_do_not_know_the_batches_are_refused(centred):
    for guide in (AutoNormal(factors), AutoDiagonalNormal(factors)):
        with pytest.raises(ValueError, match=f"^{type(guide).__name__} .*(create_plates|batch_size=None)"):
            fit(factors, guide, centred, batch_size=30, steps=3)


def one_mean(x=None, index=None, size=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(4), 10.0).to_event(1))
    with rows(x, index, size):
        return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=x)


def test_a_joint_guide_of_shared_sites_alone_serves_minibatches(centred):
    guide = AutoMultivariateNormal(one_mean)
    fit(one_mean, guide, centred + 2.0, batch_size=50, steps=1500)
    loc, deviation = guide.loc.detach(), guide.scale.detach()
    assert (loc - 2.0).abs().max() < 0.05
    torch.testing.assert_close(deviation, torch.full((4,), 150**-0.5), rtol=0.2, atol=0)  # n, not the batch, counts


class Forgetful(Module):
    """Counts a minibatch as the whole."""

    def __init__(self):
        super().__init__()
        self.weight = PyroParam(torch.randn(4, K))

    def forward(self, x=None, index=None, size=None):
        weight = self.weight
        with pyro.plate("rows", len(x) if x is not None else size, dim=-1):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)


def forgetful_guide(x=None, index=None, size=None):
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))


def test_a_plate_that_drops_the_scale_of_minibatches_is_refused(centred):
    model = Forgetful()
    with pytest.raises(ValueError, match=r"site '[xz]' of the model is in no plate over all 150 rows"):
        fit(model, forgetful_guide, centred, batch_size=30, steps=3)
    with pytest.raises(ValueError, match=r"site 'z' of the guide forgetful_guide is in no plate over all 150"):
        fit(zoo.PPCA(4, K), forgetful_guide, centred, batch_size=30, steps=3)
    assert len(fit(model, forgetful_guide, centred, steps=3).losses) == 3


class Covariate(Module):
    """Factors beside the slopes of a covariate that the model holds for all rows."""

    quadratic = True  # the bound has no noise: what is left is that of the minibatches

    def __init__(self, batch):
        super().__init__()
        self.W, self.b = PyroParam(torch.randn(6, K)), PyroParam(torch.zeros(1, 6))
        self.register_buffer("c", batch)

    def forward(self, x=None, index=None, size=None):
        weight, slope, c = self.W, self.b, self.c if index is None else self.c[index]
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T + c @ slope, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 60])
def test_covariates(batch_size):
    """The noise has mean 0 within both batches, so that slopes of exactly 3 maximise the likelihood.

    With 300 free draws, the maximum itself lies up to 0.5 from 3: three standard errors, each
    (2 (|w|^2 + 0.25) / 300)^(1/2).
    """
    n, steps = 300, 1500
    batch = torch.randint(0, 2, (n, 1)).float()
    noise = torch.randn(n, K) @ torch.randn(K, 6) + 0.5 * torch.randn(n, 6)
    for own in (batch[:, 0] == 0, batch[:, 0] == 1):
        noise[own] -= noise[own].mean(0)
    x = 3 * batch + noise
    model = Covariate(batch)
    optim = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})  # ends at a hundredth of the rate
    fit(model, MeanField(model, x), x, batch_size=batch_size, steps=steps, optim=optim)
    assert (model.b.detach() - 3.0).abs().max() < 0.1


# Training and evaluation mode.


class Rows(nn.Module):
    """Layers over rows with any leading dimensions."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def normalised(x):
    network = Rows(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2 * K)).double()
    model = zoo.VAE(4, K, hidden=(8,)).double()
    return model, Amortized(model, x, network=network), network


def test_a_fit_trains_in_training_mode_and_looks_in_evaluation_mode(some):
    model, guide, network = normalised(some)
    network.net[1].eval()
    modes = []
    network.net[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    held_out = some[:9] + 50.0  # would show in the running mean
    fit(model, guide, some[9:], validation=held_out, every=1, steps=20)
    assert modes.count(True) == 20
    assert modes.count(False) >= 20
    assert network.net[1].running_mean.abs().max() < 3
    assert not network.net[1].training
    assert network.training


def test_modes_are_as_before_when_a_fit_raises(some):
    model, guide, network = normalised(some)
    network.eval()

    def fail(step, _):
        assert network.training
        raise KeyError

    with pytest.raises(KeyError):
        fit(model, guide, some, steps=3, callbacks=[fail])
    assert not network.training


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (
            59,
            r"batch_size=59 leaves one row for the last batch \(60 = 1 x 59 \+ 1\).*BatchNorm1d.*: pass batch_size=60",
        ),
        (1, r"batch_size=1 shows one row per step.*pass batch_size=2"),
    ],
)
def test_batch_norm_refuses_batches_of_one_row(batch_size, message, some):
    model, guide, network = normalised(some)
    with pytest.raises(ValueError, match=message):
        fit(model, guide, some, batch_size=batch_size, steps=3)
    assert torch.equal(network.net[1].running_mean, torch.zeros(16, dtype=torch.float64))
    assert len(fit(model, guide, some, batch_size=58, steps=3).losses) == 3


# Watchers of one's own.


def test_a_watcher_sees_the_fit(some):
    class Slow:
        def see(self, running):
            return f"slow at step {running.step}" if running.step == 7 else None

    model = zoo.VAE(4, K, hidden=(8,)).double()
    run = fit(model, Amortized(model, some), some, callbacks=[Slow(), lambda step, loss: False])
    assert len(run.losses) == 8
    assert run.training.stopped == "slow at step 7"
    stopped = fit(model, Amortized(model, some), some, callbacks=[lambda step, loss: step == 2])
    assert stopped.training.stopped == "a callback ended training"
