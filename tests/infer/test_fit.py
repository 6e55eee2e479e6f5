"""zoo.fit: reproducible, without side effects, at the optimum by default, and open to Pyro's own parts."""

import copy
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fit
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.checks import incomplete
from zoo.base.plates import rows
from zoo.infer.optim.lbfgs import LBFGS


def ppca(dtype=torch.float64):
    return zoo.PPCA(4, 2).to(dtype)


def bits(run):
    """Losses and all parameters of a run."""
    modules = (run.model, run.guide)
    return [run.losses, *(p.detach() for m in modules for p in m.parameters())]


def equal(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def adam():
    return pyro.optim.Adam({"lr": 0.01})


# Reproducible to the bit.

PATHS = {
    "L-BFGS": lambda x: (ppca(), MeanField, {"steps": 20, "start": "random"}),
    "L-BFGS-exact": lambda x: (ppca(), Exact, {"steps": 20, "start": "random"}),
    "Adam": lambda x: (zoo.VAE(4, 2, hidden=(8,)).double(), MeanField, {"steps": 20}),
    "minibatch": lambda x: (ppca(), Amortized, {"steps": 20, "batch_size": 16, "start": "random"}),
    "minibatch-deep": lambda x: (
        zoo.VAE(4, 2, hidden=(8,)).double(),
        Amortized,
        {"steps": 20, "batch_size": 16},
    ),
    "mixture": lambda x: (zoo.GMM(4, 3).double(), Amortized, {"steps": 20}),
    "Pyro's Adam": lambda x: (ppca(), FullRank, {"steps": 20, "optim": adam(), "start": "random"}),
}


def start(path, x, seed):
    model, family, settings = PATHS[path](x)
    guide = family(model) if family is Exact else family(model, x)
    return fit(model, guide, x, seed=seed, **settings)


@pytest.mark.parametrize("path", PATHS)
def test_same_seed_same_bits(path, some):
    """Built twice without seeding in between, so that the constructors draw different values."""
    first, second = start(path, some, 3), start(path, some, 3)
    assert equal(bits(first), bits(second))
    assert not equal(bits(first), bits(start(path, some, 4)))


# No side effects.


def breaks(step, loss):
    if step == 2:
        raise KeyError("callback")


class Broken(Trace_ELBO):
    """Draws, then fails."""

    def loss_and_grads(self, model, guide, *args, **kwargs):
        super().loss_and_grads(model, guide, *args, **kwargs)
        raise ZeroDivisionError


class NotANumber(Trace_ELBO):
    """Turns NaN in the third step."""

    calls = 0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.calls += 1
        return math.nan if self.calls == 3 else super().loss_and_grads(model, guide, *args, **kwargs)


@pytest.mark.parametrize(
    "settings",
    [
        lambda x: {},
        lambda x: {"batch_size": 16},
        lambda x: {"optim": adam()},
        lambda x: {"validation": x[:20], "callbacks": [lambda step, loss: None]},
    ],
    ids=["L-BFGS", "minibatch", "Adam", "validation"],
)
def test_leaves_no_trace(settings, some, untouched):
    model = ppca()
    guide = Amortized(model, some)
    settings = settings(some)
    with untouched():
        run = fit(model, guide, some, steps=5, **settings)
        run.sample(some, 3)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"loss": Broken(), "optim": adam()}, ZeroDivisionError),
        ({"callbacks": [breaks]}, KeyError),
        ({"loss": NotANumber(), "optim": adam()}, FloatingPointError),
        ({"steps": 0}, ValueError),
        ({"batch_size": 61}, ValueError),
    ],
    ids=["loss", "callback", "NaN", "steps", "batch_size"],
)
def test_leaves_no_trace_when_it_raises(settings, error, some, untouched):
    model = ppca()
    guide = MeanField(model, some)
    with untouched(), pytest.raises(error):
        fit(model, guide, some, **{"steps": 5, **settings})


@pytest.mark.parametrize("enabled", [True, False])
def test_the_users_store_and_switches_survive(enabled, some, untouched):
    with pyro.get_param_store().scope(), pyro.validation_enabled(enabled):
        pyro.param("mine", torch.tensor([1.0, 2.0]))
        pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
        model = ppca()
        with untouched():
            run = fit(model, MeanField(model, some), some, steps=5)
        assert set(pyro.get_param_store()) == {"mine", "scale"}
        assert len(run.store["params"]) == 5
        assert not set(run.store["params"]) & {"mine", "scale"}
        assert pyro.infer.util.is_validation_enabled() == enabled


# Where a fit starts.


def first_loss(model, x):
    """The loss before any step."""
    return fit(model, Exact(model), x, steps=1, optim=pyro.optim.Adam({"lr": 0.0})).losses[0]


def by_assignment(model, value):
    model.mean = value


def by_data(model, value):
    model.mean.data = value


def by_copy(model, value):
    with torch.no_grad():
        model.mean.copy_(value)


def by_state_dict(model, value):
    (key,) = [key for key in model.state_dict() if key.startswith("mean")]
    model.load_state_dict({**model.state_dict(), key: value})


def test_a_fresh_model_starts_on_the_data(some):
    model = ppca()
    drawn = model.weight.detach().clone()
    assert model.fresh
    first_loss(model, some)
    torch.testing.assert_close(model.mean.detach(), some.mean(0))
    assert not torch.equal(model.weight, drawn)
    assert not model.fresh


@pytest.mark.parametrize("touch", [by_assignment, by_data, by_copy, by_state_dict])
def test_a_touched_model_goes_on(touch, some):
    model = ppca()
    weight = model.weight.detach().clone()
    touch(model, torch.full((4,), 2.5, dtype=torch.float64))
    expected = -model.log_marginal(some).mean()
    assert not model.fresh
    torch.testing.assert_close(first_loss(model, some), expected.detach())
    assert torch.equal(model.weight, weight)
    assert torch.equal(model.mean, torch.full((4,), 2.5, dtype=torch.float64))


def test_a_fitted_pair_goes_on(some):
    model = ppca()
    guide = MeanField(model, some)
    first = fit(model, guide, some, steps=30)
    second = fit(model, guide, some, steps=2)
    assert second.losses[0] <= first.losses[-1] + 1e-12


# Pyro's own guides and losses.


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_autoguides(family, some, untouched):
    model = ppca(torch.float32)
    few = some[:12].float()
    guide = family(model)
    with untouched():
        run = fit(model, guide, few, steps=200)
        z = run.sample(few, 9)["z"]
    assert z.shape == (9, 12, 2)
    assert z.isfinite().all()
    assert run.losses[-20:].mean() < run.losses[:5].mean() - 0.2


def by_hand(x, index=None, size=None):
    loc = pyro.param("loc", x.new_full((60, 2), 0.5))
    scale = pyro.param("spread", x.new_full((60, 2), 0.3), constraint=constraints.positive)
    with rows(x, index, size) as chosen:
        pyro.sample("z", dist.Normal(loc[chosen], scale[chosen]).to_event(1))


@pytest.mark.parametrize("batch_size", [None, 20])
def test_a_plain_function_as_guide(batch_size, some, untouched):
    model = ppca()
    with untouched():
        run = fit(model, by_hand, some, steps=60, optim=adam(), batch_size=batch_size)
        z = run.sample(some, 4000)["z"]
    with run.scope():
        loc, scale = pyro.param("loc").detach(), pyro.param("spread").detach()
    assert (loc - 0.5).abs().max() > 0.1
    assert ((z.mean(0) - loc).abs() <= 5 * scale / 4000**0.5).all()
    torch.testing.assert_close(z.std(0), scale, rtol=5 / 8000**0.5, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=5),
        Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.0, num_particles=3),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses(loss, some):
    model = ppca()
    run = fit(model, MeanField(model, some), some, loss=loss, steps=150, optim=adam(), start="random")
    assert run.settings["loss"] == type(loss).__name__
    assert run.losses[-20:].mean() < run.losses[:5].mean() - 0.1


def nothing(x, index=None, size=None):
    """A guide that leaves the assignments to enumeration."""


def test_enumeration_sums_what_the_guide_omits(faithful):
    """The bound is then the likelihood itself, and the fit reaches EM's optimum."""
    model = zoo.GMM(2, 2).double()
    run = fit(model, nothing, faithful, loss=TraceEnum_ELBO(max_plate_nesting=1), optim=LBFGS())
    reference = zoo.GMM(2, 2).double()
    best = zoo.em(reference, faithful)[-1]
    assert best.item() == pytest.approx(-1130.26396, abs=1e-4)
    assert model.log_marginal(faithful).sum().item() == pytest.approx(best.item(), abs=1e-4)
    assert run.losses[-1].item() == pytest.approx(-best.item() / 272, abs=1e-6)
    assert run.sample(faithful, 3)["component"].shape == (3, 272)  # drawn from the model, given the rows


def test_enumeration_with_mean_field(faithful):
    model = zoo.GMM(2, 2, start="random").double()
    guide = MeanField(model, faithful)
    run = fit(model, guide, faithful, loss=TraceEnum_ELBO(max_plate_nesting=1), steps=100, optim=adam())
    assert run.losses.diff().max() < 1e-3  # no noise: the descent is smooth
    assert run.losses[-1] < run.losses[0] - 0.1


def test_optimizer_of_pyro(some):
    model = ppca()
    optim = adam()
    run = fit(model, Exact(model), some, optim=optim, steps=30, start="random")
    assert len(optim.optim_objs) == 3  # weight, mean, scale
    assert len(run.losses) == 30
    assert run.losses[-1] < run.losses[0]


# Refusals.


def spoil(value, row=7, column=2):
    def change(x):
        x = x.clone()
        x[row, column] = value
        return x

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (spoil(-math.inf), ValueError, "-inf in row 7, column 2"),
        (spoil(math.inf, 0, 3), ValueError, "inf in row 0, column 3"),
        (lambda x: x[:0], ValueError, "x is empty"),
        (lambda x: x[:1], ValueError, "x has 1 row: at least 2"),
        (lambda x: x[:, 0], ValueError, "shape (60,)"),
        (lambda x: x.to(torch.complex64), TypeError, "complex"),
        (lambda x: [["a", "b", "c", "d"]] * 3, TypeError, "other than numbers"),
        (lambda x: x[:, :3], ValueError, "x has 3 columns, the model PPCA was built for data_dim=4"),
    ],
)
def test_refuses_data(change, error, message, some, untouched):
    model = ppca()
    drawn = model.weight.detach().clone()
    with untouched(), pytest.raises(error, match=re.escape(message)):
        fit(model, Exact(model), change(some))
    assert torch.equal(model.weight, drawn)


@pytest.mark.parametrize("validation", [spoil(math.inf), lambda x: x[:, :3], lambda x: x[:0]])
def test_refuses_validation_data(validation, some):
    model = ppca()
    with pytest.raises(ValueError, match="^validation "):
        fit(model, Exact(model), some, validation=validation(some))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 61}, "batch_size=61 exceeds the 60 rows"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": -3}, "batch_size must be a whole number of at least 1, got -3"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
    ],
)
def test_refuses_settings(settings, message, some):
    model = ppca()
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(model, Amortized(model, some), some, **settings)


def test_refuses_a_guide_without_the_site(some):
    with pytest.raises(ValueError, match="the guide has no site 'z'"):
        fit(ppca(), nothing, some)


def test_refuses_a_guide_without_a_discrete_site_unless_it_is_summed(some):
    with pytest.raises(ValueError, match="the guide has no site 'component'.*TraceEnum_ELBO"):
        fit(zoo.GMM(4, 2).double(), nothing, some)


def test_refuses_guides_of_one_batch(some):
    model = ppca(torch.float32)
    with pytest.raises(
        ValueError, match="AutoDiagonalNormal has parameters for the rows of one batch.*batch_size=None"
    ):
        fit(model, AutoDiagonalNormal(model), some.float(), batch_size=16)


def test_refuses_renyi_on_minibatches(some):
    model = ppca()
    with pytest.raises(ValueError, match="RenyiELBO.*batch_size=None"):
        fit(model, Amortized(model, some), some, batch_size=16, loss=RenyiELBO(num_particles=2))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_refuses_a_compiled_loss_twice(some):
    loss = JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    model = ppca()
    fit(model, Amortized(model, some), some, steps=2, loss=loss, optim=adam())
    other = ppca()
    with pytest.raises(ValueError, match="JitTrace_ELBO is already compiled for another model"):
        fit(other, Amortized(other, some), some, steps=2, loss=loss, optim=adam())


def test_refuses_two_dtypes(some):
    model = ppca(torch.float32)
    guide = MeanField(model, some).double()
    with pytest.raises(ValueError, match="the model is torch.float32 .* the guide torch.float64"):
        fit(model, guide, some)


def test_refuses_what_is_no_callable(some):
    with pytest.raises(ValueError, match="guide is not a Pyro callable, got str"):
        fit(ppca(), "mean field", some)


def test_names_the_step_of_a_loss_that_is_no_number(some):
    model = ppca()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        fit(model, MeanField(model, some), some, steps=5, loss=NotANumber(), optim=adam())


# What comes back.


def test_a_callback_stops(some):
    seen = []

    def stop(step, loss):
        seen.append((step, loss))
        return step == 3

    model = ppca()
    run = fit(model, Amortized(model, some), some, steps=50, optim=adam(), callbacks=[stop])
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [loss for _, loss in seen] == run.losses.tolist()
    assert not run.converged


def test_losses_of_a_fixed_budget(some):
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    run = fit(model, Amortized(model, some), some, steps=37, batch_size=16)
    assert run.losses.shape == (37,)
    assert run.losses.dtype == torch.float64
    assert run.losses.isfinite().all()
    assert not run.converged
    assert run.validation is None
    given = {"steps": 37, "batch_size": 16, "seed": 0, "rows": 60, "dtype": "float64", "device": "cpu"}
    assert given.items() <= run.settings.items()


def test_validation_curve(some):
    model = ppca()
    held_out = some[1::3]
    run = fit(model, Exact(model), some[::3], steps=201, optim=adam(), start="random", validation=held_out)
    assert run.validation.shape == (3, 2)
    assert run.validation[:, 0].tolist() == [0, 100, 200]
    assert run.validation[-1, 1].item() == pytest.approx(-model.log_marginal(held_out).mean().item(), abs=1e-9)
    assert run.validation[-1, 1] < run.validation[0, 1]


def test_validation_does_not_change_the_fit(some):
    one, other = zoo.VAE(4, 2, hidden=(8,)).double(), zoo.VAE(4, 2, hidden=(8,)).double()
    plain = fit(one, Amortized(one, some), some, steps=10, batch_size=16)
    watched = fit(other, Amortized(other, some), some, steps=10, batch_size=16, validation=some[:9])
    assert equal(bits(plain), bits(watched))


class Told(Trace_ELBO):
    """Whether rows have missing entries, and what a step would be told of any others without a look at them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def loss_and_grads(self, model, guide, x, *args, **kwargs):
        whole = x.new_zeros(1)
        self.found.append([bool(x.isnan().any()), incomplete(whole), incomplete(whole / whole)])
        return super().loss_and_grads(model, guide, x, *args, **kwargs)


@pytest.mark.parametrize("batch_size", [16, None])
def test_no_step_looks_for_missing_entries(batch_size, some):
    some = some.clone()
    some[[3, 7], 1] = math.nan
    model, told = ppca(), Told()
    fit(model, Amortized(model, some), some, steps=12, batch_size=batch_size, loss=told, optim=adam())
    assert all(len(set(answers)) == 1 for answers in told.found)
    assert {answers[0] for answers in told.found} == ({True} if batch_size is None else {True, False})


def test_a_run_is_frozen(some):
    model = ppca()
    run = fit(model, Exact(model), some, steps=2)
    with pytest.raises(AttributeError):
        run.losses = None


def test_a_run_is_printed_in_one_line(some):
    model = ppca()
    run = fit(model, Exact(model), some, steps=2)
    text = rf"Fit of PPCA with Exact: {len(run.losses)} steps, loss \d+\.\d+ nats per row, (not )?converged"
    assert re.fullmatch(text, repr(run))
    assert repr(zoo.Fit(model, run.guide)) == "Fit of PPCA with Exact, without a record of its training"
    assert re.fullmatch(r"Training of \d+ steps, loss \d+\.\d+ nats per row, (not )?converged", repr(run.training))


def test_posterior_is_reproducible(some):
    model = ppca()
    run = fit(model, MeanField(model, some), some, steps=5)
    one, same, other = (run.sample(some, 4, seed=seed)["z"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="draws must be a whole number"):
        run.sample(some, 0)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_goes_to_standard_error(shown, some, capfd):
    model = ppca()
    zoo.fit(model, Exact(model), some, steps=5, progress=shown)
    out, err = capfd.readouterr()
    assert out == ""
    assert bool(err) == shown


# The default fit against EM.


@pytest.mark.parametrize("family", [Exact, MeanField, FullRank])
@pytest.mark.parametrize(("cls", "latent_dim"), [(zoo.PPCA, 2), (zoo.FactorAnalysis, 1)])
def test_default_fit_reaches_the_optimum(cls, latent_dim, family, iris):
    reference = cls(4, latent_dim).double()
    best = zoo.em(reference, iris)[-1] / len(iris)
    model = cls(4, latent_dim).double()
    run = fit(model, family(model) if family is Exact else family(model, iris), iris)
    assert run.converged
    assert model.log_marginal(iris).mean().item() == pytest.approx(best.item(), abs=1e-5)
    assert -run.losses[-1].item() == pytest.approx(best.item(), abs=1e-5)


def test_copies_of_a_pair_fit_alike(some):
    """What comes out does not depend on the root names, which every copy has anew."""
    model = ppca()
    guide = FullRank(model, some)
    twins = copy.deepcopy((model, guide))
    assert equal(bits(fit(model, guide, some, steps=15)), bits(fit(*twins, some, steps=15)))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "a"])
def test_refuses_a_seed_that_is_none(some, seed):
    model = zoo.PPCA(4, 2)
    with pytest.raises(ValueError, match="seed must be"):
        zoo.fit(model, Exact(model), some, seed=seed, progress=False)
