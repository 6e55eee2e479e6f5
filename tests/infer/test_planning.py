"""The plan of a fit: what it decides, that it touches nothing, and how often a fit runs the pair before it begins."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer import IWAE, LBFGS, AnnealedELBO, Fused, LineSearchSVI, ProjectedELBO, QuadratureELBO
from zoo.infer.pairing import check_pair


def vae(x):
    model = zoo.VAE(4, 2, hidden=(8,)).double()
    return model, Amortized(model, x, hidden=(8,))


def test_a_conjugate_pair(some, untouched):
    model = zoo.PPCA(4, 2).double()
    guide = MeanField(model, some)
    before = [p.detach().clone() for m in (model, guide) for p in m.parameters()]
    with untouched():
        plan = zoo.plan(model, guide, some)
    assert isinstance(plan.loss, ProjectedELBO)
    assert isinstance(plan.loss.pair, QuadratureELBO)
    assert isinstance(plan.optim, LBFGS)
    assert (plan.start, plan.estimate) == (("model", "guide"), True)
    assert (plan.e_step, plan.em_steps, plan.schedule, plan.steps) == (0, 0, "", 20_000)
    assert plan.summary()["step"] == "the model's parameters; the guide follows in closed form"
    assert all(
        torch.equal(p, q) for p, q in zip((p for m in (model, guide) for p in m.parameters()), before, strict=True)
    )
    assert model.fresh


def test_a_pair_whose_best_q_has_no_closed_form(some):
    model = zoo.PPCA(4, 2).double()
    plan = zoo.plan(model, Amortized(model, some, covariance="low_rank"), some)
    assert (type(plan.loss), plan.e_step, plan.em_steps, plan.estimate) == (QuadratureELBO, 25, 0, True)
    assert plan.summary()["step"] == "the parameters of model and guide together"
    given = zoo.plan(model, MeanField(model, some), some, loss=Trace_ELBO())
    assert type(given.loss) is Trace_ELBO


def test_a_random_start_begins_with_em(some):
    model = zoo.PPCA(4, 2).double()
    plan = zoo.plan(model, Exact(model), some, start="random")
    assert (type(plan.loss), plan.e_step, plan.em_steps, plan.estimate) == (ProjectedELBO, 0, 10, False)
    with pytest.raises(ValueError, match="start must be one of data, random; got 'spectral'"):
        zoo.plan(model, Exact(model), some, start="spectral")
    zoo.fit(model, Exact(model), some, steps=3, progress=False)
    again = zoo.plan(model, Exact(model), some)
    assert (again.start, again.em_steps) == ((), 0)
    assert again.summary()["start"] == "the current parameters"


@pytest.mark.parametrize(
    ("options", "schedule", "why"),
    [
        ({}, "settling", "Trace_ELBO draws at every step"),
        ({"batch_size": 20}, "settling", "minibatches are noisy"),
        ({"steps": 50}, "cosine", "Trace_ELBO draws at every step"),
        ({"transform": torch.clone}, "settling", "transform may be random"),
    ],
)
def test_a_deep_pair(options, schedule, why, some):
    plan = zoo.plan(*vae(some), some, **options)
    assert isinstance(plan.optim, Fused)
    assert plan.schedule == schedule
    (row,) = [row for row in plan.answers if row.question == "optimizer"]
    assert row.answer == "Fused Adam, learning rate 0.01"
    assert why in row.why


def test_a_plan_prints_every_decision(some):
    plan = zoo.plan(*vae(some), some, batch_size=20, validation=some[:9], patience=3)
    lines = str(plan).splitlines()
    assert len(lines) == len(plan.answers) == len(plan.summary()) == plan.frame().height
    assert "20 rows, 3 steps per epoch" in plan.summary()["batches"]
    assert "3 evaluations, 100 steps apart" in plan.summary()["end"]
    assert plan.frame().columns == ["question", "answer", "why"]


def test_a_plan_takes_every_option_of_a_fit_and_keeps_to_it(some):
    model, guide = vae(some)
    options = {"steps": 7, "batch_size": 20, "progress": False, "callbacks": (), "store": None, "autocast": None}
    plan = zoo.plan(model, guide, some, **options)
    run = zoo.fit(model, guide, some, **options)
    assert len(run.losses) == plan.steps == 7
    assert run.settings["loss"] == type(plan.loss).__name__
    assert run.settings["optimizer"] == type(plan.optim).__name__
    with pytest.raises(TypeError, match="unexpected keyword"):
        zoo.plan(model, guide, some, step=7)


def test_dropout_is_no_case_for_a_line_search(some):
    model = zoo.PPCA(4, 2).double()
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    guide = Amortized(model, some, network=network)
    plan = zoo.plan(model, guide, some)
    assert isinstance(plan.optim, Fused)
    assert "Dropout draws at every step" in str(plan)


class Counted:
    """Counts the calls of a callable on all rows."""

    def __init__(self, function, n, monkeypatch):
        self.calls = 0
        forward = type(function).forward

        def counting(module, x=None, index=None, size=None):
            self.calls += module is function and x is not None and len(x) == n
            return forward(module, x, index, size)

        monkeypatch.setattr(type(function), "forward", counting)


@pytest.mark.parametrize("family", [Exact, MeanField, FullRank, Amortized])
def test_few_passes_before_the_first_step(family, some, monkeypatch):
    """One to check the pair, and one of the model to compare its closed forms with its density."""
    model = zoo.FactorAnalysis(4, 1).double()
    guide = family(model) if family is Exact else family(model, some)
    counted = [Counted(function, len(some), monkeypatch) for function in (model, guide)]
    seen = []
    search = LineSearchSVI._search

    def noting(*arguments):
        seen.append([one.calls for one in counted])
        return search(*arguments)

    monkeypatch.setattr(LineSearchSVI, "_search", noting)
    zoo.fit(model, guide, some, steps=1, progress=False)
    assert seen[0] == [2, 1]


def test_the_pair_is_checked_once(some, monkeypatch):
    calls = []

    def counting(*arguments):
        calls.append(1)
        return check_pair(*arguments)

    monkeypatch.setattr("zoo.infer.fitting.check_pair", counting)
    with pyro.get_param_store().scope():
        zoo.fit(*vae(some), some, steps=2, progress=False)
    assert len(calls) == 1


class Features(Module):
    """A quadratic model with its data in a plate of the features, to the left of the rows."""

    quadratic = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 2))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = (z.unsqueeze(-3) if z.ndim == 2 else z) * self.weight
            with pyro.plate("features", 4, dim=-2):
                return pyro.sample("x", dist.Normal(mean.sum(-1), 1.0), obs=None if x is None else x.mT)


class Level(Module):
    """A quadratic model with a mean that all rows share."""

    quadratic = True

    def forward(self, x=None, index=None, size=None):
        level = pyro.sample("level", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(level, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("family", [Features, Level])
def test_a_quadratic_model_with_further_plates_or_shared_sites_takes_draws(family):
    x = torch.randn(20, 4)
    model = family()
    guide = MeanField(model, x)
    found = zoo.plan(model, guide, x)
    assert type(found.loss) is Trace_ELBO
    assert found.loss.max_plate_nesting == found.layout.nesting
    assert torch.isfinite(zoo.fit(model, guide, x, steps=5, progress=False).losses).all()


@pytest.mark.parametrize("particles", [1, 3])
def test_an_annealed_bound_follows_the_plates_of_the_model(particles):
    x = torch.randn(20, 4)
    model = Weights()
    loss = AnnealedELBO(num_particles=particles)
    run = zoo.fit(model, MeanField(model, x), x, loss=loss, steps=5, progress=False)
    assert torch.isfinite(run.losses).all()


class Weights(Module):
    """A site of its own in a plate of the features at dim -2."""

    def forward(self, x=None, index=None, size=None):
        with pyro.plate("features", 4, dim=-2):
            weight = pyro.sample("weight", dist.Normal(0.0, 1.0))  # (..., 4, 1)
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(weight.mT, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("guide", [MeanField, FullRank])
def test_iwae_refuses_a_shared_site_by_name(guide):
    x = torch.randn(20, 4)
    for model, site in ((Level(), "level"), (Weights(), "weight")):
        with pytest.raises(ValueError, match=f"site '{site}' is shared by all rows, and IWAE needs a weight"):
            zoo.plan(model, guide(model, x), x, loss=IWAE(4))
        named = pytest.raises(ValueError, match=f"site '{site}' is shared by all rows, and IWAE needs a weight")
        with pyro.get_param_store().scope(), named:
            IWAE(4).loss(model, guide(model, x), x)


@pytest.mark.parametrize("ends", ["all steps", "a graph", "an error", "a line search", "a compiled trace"])
def test_full_noise_is_held_at_first_and_released_in_any_case(ends, some):
    """The rows of the last layer that give the correlations stay where they start, for a quarter of the steps."""
    model = zoo.VAE(4, 2, hidden=(8,), covariance="full").double()
    options = {
        "a line search": {"optim": LBFGS()},
        "a compiled trace": {"loss": pyro.infer.JitTrace_ELBO()},
    }.get(ends, {})
    guide = Amortized(model, some, hidden=(8,))
    held = zoo.plan(model, guide, some, steps=8, **options).held_steps
    assert held == (0 if options else 2)
    if options:
        return
    seen = []

    def watch(step, loss):
        seen.append((model.likelihood.held, model.scale[-1].weight[4:].detach().clone()))
        if ends == "an error":
            raise RuntimeError("interrupted")

    def fit():
        zoo.fit(model, guide, some, steps=8, capture=ends == "a graph", progress=False, callbacks=[watch])

    if ends == "an error":
        with pytest.raises(RuntimeError, match="interrupted"):
            fit()
    else:
        fit()
        assert [held for held, _ in seen] == [True] + 7 * [False]
        assert torch.equal(seen[0][1], seen[1][1])
        assert not torch.equal(seen[1][1], seen[2][1])
    assert not model.likelihood.held
    assert zoo.plan(model, guide, some, steps=8).held_steps == 0  # it has been fitted


def test_the_floor_of_a_mixture_is_printed(iris):
    for floor, text in (
        (1e-6, "1e-06 of the columns' variances, in any direction"),
        (0.0, "none under the covariances"),
    ):
        model = zoo.GMM(4, 2, floor=floor).double()
        assert zoo.plan(model, Exact(model), iris).summary()["floor"] == text
    model = zoo.PPCA(4, 2).double()
    assert "floor" not in zoo.plan(model, Exact(model), iris).summary()
