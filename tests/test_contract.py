"""What every model and every guide promises, checked on all that the packages export.

A new model or guide is picked up by itself: from the registry, with two latent dimensions or components where its
constructor asks for a number, and once for every value of an argument annotated with ``Literal`` or ``bool``.
"""

import copy
import json
import pickle
import re
import typing

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

import zoo
from guides import CannotServe
from zoo.base.latent_sites import latents
from zoo.base.protocols import Conjugate
from zoo.base.random import seeded
from zoo.commands.registry import build, guide_classes, models, options

SIZES = {"latent_dim": 2, "components": 2}
DATA_DIM = 4


def variants(classes):
    """(class, settings) for every class as it comes, and for every other value of its Literal arguments."""
    for cls in classes.values():
        base = {name: value for name, value in SIZES.items() if name in options(cls)}
        yield cls, base
        for name, hint in typing.get_type_hints(cls.__init__).items():
            known = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (True, False)
            if known != (True, False) or hint is bool or bool in typing.get_args(hint):
                default = options(cls)[name].default
                yield from ((cls, {**base, name: value}) for value in known if value is not default)


def label(variant):
    cls, given = variant
    more = {name: value for name, value in given.items() if name not in SIZES}
    return "-".join([cls.__name__, *(v if isinstance(v, str) else f"{name}={v}" for name, v in more.items())])


MODELS = list(variants(models()))
GUIDES = list(variants(guide_classes()))
every_model = pytest.mark.parametrize("kind", MODELS, ids=label)


def usual(variant):
    """Whether the settings are those that the class comes with."""
    return set(variant[1]) <= set(SIZES)


def cells(chosen):
    """Mark a test to run on all pairs of model and guide that fit the description."""
    pairs = [(m, g) for m in MODELS for g in GUIDES if chosen(m, g)]
    return pytest.mark.parametrize(("kind", "family"), pairs, ids=[f"{label(m)}:{label(g)}" for m, g in pairs])


every_cell = cells(lambda m, g: usual(m) or usual(g))  # every variant of one with every class of the other
plain_cells = cells(lambda m, g: usual(m) and usual(g))


def make(kind, dtype=torch.float64):
    cls, given = kind
    return build(cls, given, DATA_DIM).to(dtype)


def serve(family, model, x):
    """The guide, or a skip where it refuses the model (what the refusal says is tested elsewhere)."""
    cls, given = family
    try:
        return build(cls, given, model, x)
    except CannotServe as refusal:
        pytest.skip(str(refusal))


def placed(kind, family, x):
    """Model and guide of a cell at parameters of no particular place, different for every row."""
    model = make(kind, x.dtype)
    guide = serve(family, model, x)
    for module in (model, guide):
        if hasattr(module, "initialize"):
            module.initialize(x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, guide


def local_shape(latent, *batch):
    return (*batch, *latent.shape)


def train(model, guide, x, steps=3):
    """Vanilla SVI, as in Pyro's tutorials."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    return [svi.step(x) for _ in range(steps)]


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def own_store(leave_no_trace):
    """A parameter store for the test: a model or guide that is merely called registers its parameters."""
    with pyro.get_param_store().scope():
        yield


# Models.


@every_model
def test_generates_rows(kind):
    model = make(kind)
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed), torch.no_grad():
            draws.append(model(size=7))
    assert draws[0].shape == (7, DATA_DIM)
    assert draws[0].dtype == torch.float64
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_model
def test_generates_what_it_scores(kind):
    """Observing x gives back x, and its density is that of the story at these latent values."""
    model = make(kind)
    trace = poutine.trace(model).get_trace(size=5)
    x = trace.nodes["x"]["value"].detach()
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    assert again.nodes["x"]["is_observed"]
    torch.testing.assert_close(again.nodes["_RETURN"]["value"], x)
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum())


@every_model
def test_names_of_the_sites(kind):
    trace = poutine.trace(make(kind)).get_trace(size=3)
    assert set(trace.stochastic_nodes) - {"rows"} <= {"z", "component", "x"}
    assert "x" in trace.nodes


@every_model
@pytest.mark.parametrize("batch", [None, 12])
def test_plate_rows(kind, batch, some):
    model, n = make(kind), len(some)
    index = None if batch is None else torch.randperm(n)[:batch]
    arguments = (some,) if batch is None else (some[index], index, n)
    trace = poutine.trace(model).get_trace(*arguments)
    for name in ("x", *(latent.name for latent in latents(model, some) if latent.local)):
        site = trace.nodes[name]
        (frame,) = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        assert (frame.name, frame.dim) == ("rows", -1)
        assert frame.size == (batch or n)
        assert float(site["scale"]) == pytest.approx(n / (batch or n))
        assert site["fn"].batch_shape == (batch or n,)


@every_model
def test_refuses_neither_rows_nor_size(kind):
    with pytest.raises(ValueError, match="pass size"):
        make(kind)()


@every_model
def test_refuses_index_without_size(kind, some):
    with pytest.raises(ValueError, match="index is given without size"):
        make(kind)(some[:3], torch.arange(3))


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_decide_the_dtype(kind, dtype):
    model = make(kind, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    trace = poutine.trace(model).get_trace(size=3)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name != "rows":
            assert site["fn"].log_prob(site["value"]).dtype == dtype


@every_model
def test_says_what_it_is(kind):
    model = make(kind)
    given = json.loads(json.dumps(model.settings))
    assert given == model.settings
    assert given["data_dim"] == DATA_DIM
    assert kind[1].items() <= given.items()
    assert type(model)(**given).settings == given
    assert type(model).__name__ in repr(model)


@every_model
def test_conjugate_shapes(kind, some):
    model = make(kind)
    if not isinstance(model, Conjugate):
        pytest.skip("no closed forms")
    (latent,) = latents(model, some)
    posterior = model.posterior(some)
    assert posterior.batch_shape == (len(some),)
    assert posterior.event_shape == latent.shape
    assert model.log_marginal(some).shape == (len(some),)


@every_model
def test_conjugate_identity(kind, some):
    """log p(x, z) - log p(z | x) is log p(x), whatever z."""
    model = make(kind)
    if not isinstance(model, Conjugate):
        pytest.skip("no closed forms")
    (latent,) = latents(model, some)
    for _ in range(3):
        trace = poutine.trace(model).get_trace(size=len(some))
        z = trace.nodes[latent.name]["value"]
        scored = poutine.trace(poutine.condition(model, {latent.name: z})).get_trace(some)
        scored.compute_log_prob()
        joint = scored.nodes["x"]["log_prob"] + scored.nodes[latent.name]["log_prob"]
        torch.testing.assert_close(
            joint - model.posterior(some).log_prob(z), model.log_marginal(some), rtol=0, atol=1e-8
        )


# Parameters and where they live.


def all_modules(some):
    for kind in MODELS:
        yield label(kind), make(kind)
    for family in GUIDES:
        for kind in MODELS:
            model = make(kind)
            try:
                yield label(family), build(family[0], family[1], model, some)
                break
            except CannotServe:
                continue


def test_copies_take_a_name_of_their_own(some):
    for name, module in all_modules(some):
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        roots = {m._pyro_name for m in (module, *copies)}
        assert len(roots) == 3, name
        for twin in copies:
            assert type(twin).__name__ in twin._pyro_name
            assert same(values(twin), values(module)), name
            assert twin.settings == module.settings


@every_model
def test_copies_train_apart(kind, some):
    """A model and its copy in one parameter store: training one leaves the other where it is."""
    model, guide = placed(kind, (guide_classes()["Amortized"], {}), some)
    twins = copy.deepcopy((model, guide))
    start = [values(model), values(guide)]
    train(*twins, some)
    moved = [values(twin) for twin in twins]
    assert not any(map(same, moved, start))
    assert all(map(same, [values(model), values(guide)], start))
    train(model, guide, some, steps=1)
    assert all(map(same, [values(twin) for twin in twins], moved))
    assert not any(map(same, [values(model), values(guide)], start))
    assert len(pyro.get_param_store()) == 2 * sum(len(list(m.parameters())) for m in (model, guide))


@every_model
def test_instances_share_no_values(kind, some):
    """The second instance in a store neither takes nor moves the values of the first."""
    first, second = make(kind), make(kind)
    for model in (first, second):
        if hasattr(model, "initialize"):
            model.initialize(some)
    start = values(second)
    train(first, build(guide_classes()["Amortized"], {}, first, some), some)
    kept = values(first)
    poutine.trace(second).get_trace(some)  # registers its parameters, before any step of its own
    assert same(values(second), start)
    train(second, build(guide_classes()["Amortized"], {}, second, some), some)
    assert same(values(first), kept)
    assert not same(values(second), start)


@every_model
@pytest.mark.parametrize("how", ["zoo.fit", "vanilla SVI"])
def test_frozen_parameters_stay(kind, how, some):
    model, guide = placed(kind, (guide_classes()["Amortized"], {}), some)
    for module in (model, guide):
        for p in list(module.parameters())[::2]:
            p.requires_grad_(False)
    start = values(model), values(guide)
    frozen = [{name for name, p in m.named_parameters() if not p.requires_grad} for m in (model, guide)]
    if how == "zoo.fit":
        zoo.fit(model, guide, some, steps=3, progress=False)
    else:
        train(model, guide, some)
    for module, before, still in zip((model, guide), start, frozen, strict=True):
        assert {name for name, p in module.named_parameters() if not p.requires_grad} == still
        moved = {name for name, p in values(module).items() if not torch.equal(p, before[name])}
        assert moved == set(before) - still


# Guides.


@every_cell
def test_serves_or_says_who_does(kind, family, some):
    """A refusal names the site, the reason and what to use instead; that does serve the model."""
    model, (cls, given) = make(kind), family
    known = {latent.name: latent for latent in latents(model, some)}
    try:
        guide = build(cls, given, model, some)
    except CannotServe as refusal:
        message = str(refusal)
        assert refusal.site in known
        assert f"{cls.__name__} cannot serve {type(model).__name__}: its latent site '{refusal.site}'" in message
        why, _, instead = message.partition(". ")
        assert len(why.split(f"'{refusal.site}'")[1].split()) >= 2
        others = [
            other for name, other in guide_classes().items() if re.search(rf"\b{name}\b", instead) and other != cls
        ]
        assert others
        for other in others:
            build(other, {}, model, some)
        return
    trace = poutine.trace(guide).get_trace(some)
    assert set(trace.stochastic_nodes) - {"rows"} == set(known)
    for name, latent in known.items():
        value = trace.nodes[name]["value"]
        assert value.shape == local_shape(latent, len(some)) if latent.local else latent.shape
        assert latent.support.check(value).all()


@every_cell
def test_runs_in_vanilla_svi(kind, family, some):
    model = make(kind)
    guide = serve(family, model, some)
    start = values(model)
    losses = train(model, guide, some)
    assert torch.tensor(losses).isfinite().all()
    assert not same(values(model), start)


@every_cell
def test_vectorised_particles(kind, family, some):
    """Particles lie to the left of the rows and are draws of their own: the mean over them is the bound's mean."""
    model, guide = placed(kind, family, some)
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(guide).get_trace(some)
    for latent in latents(model, some):
        value = trace.nodes[latent.name]["value"]
        assert value.shape == local_shape(latent, 5, len(some))
        if latent.cardinality is None:
            assert not torch.equal(value[0], value[1])
    with torch.no_grad():
        loss = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
        together = loss.loss(model, guide, some)
        trace.compute_log_prob()
        one = poutine.trace(poutine.replay(_particles(model, 5), trace=trace)).get_trace(some)
        apart = []
        for p in range(5):
            z = {latent.name: trace.nodes[latent.name]["value"][p] for latent in latents(model, some)}
            apart.append(poutine.trace(poutine.condition(model, z)).get_trace(some).log_prob_sum())
    assert torch.tensor(together).isfinite()
    torch.testing.assert_close(one.log_prob_sum(), torch.stack(apart).sum())


def _particles(function, count):
    def spread(x):
        with pyro.plate("particles", count, dim=-2):
            return function(x)

    return spread


@every_cell
def test_enumerated_bound(kind, family, some):
    """TraceEnum_ELBO sums a discrete site out: what comes is the bound in closed form."""
    if latents(make(kind))[0].cardinality is None:
        pytest.skip("nothing to enumerate")
    model, guide = placed(kind, family, some)
    with torch.no_grad():
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(guide, "parallel"), some)
        assert -loss == pytest.approx(model.elbo(some, guide.posterior(some)).sum().item(), rel=1e-10)


@every_cell
def test_minibatch(kind, family, some):
    """A minibatch sees its own rows, scaled by n / b; row by row the guide is the one of the full batch."""
    model, guide = placed(kind, family, some)
    n, index = len(some), torch.tensor([41, 3, 17, 20, 59, 0])
    trace = poutine.trace(guide).get_trace(some[index], index, n)
    for latent in latents(model, some):
        site = trace.nodes[latent.name]
        assert float(site["scale"]) == pytest.approx(n / 6)
        assert site["value"].shape == local_shape(latent, 6)
        whole = poutine.trace(poutine.condition(guide, {latent.name: torch.zeros(n, *latent.shape).to(site["value"])}))
        part = poutine.trace(poutine.condition(guide, {latent.name: torch.zeros(6, *latent.shape).to(site["value"])}))
        whole, part = whole.get_trace(some), part.get_trace(some[index], index, n)
        whole.compute_log_prob()
        part.compute_log_prob()
        torch.testing.assert_close(
            part.nodes[latent.name]["unscaled_log_prob"], whole.nodes[latent.name]["unscaled_log_prob"][index]
        )
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert torch.tensor(svi.step(some[index], index, n)).isfinite()


@every_cell
def test_posterior_of_the_guide(kind, family, some):
    """guide.posterior is the distribution that the guide samples from."""
    model, guide = placed(kind, family, some)
    (latent,) = latents(model, some)
    trace = poutine.trace(guide).get_trace(some)
    trace.compute_log_prob()
    q = guide.posterior(some)
    assert q.batch_shape == (len(some),)
    assert q.event_shape == latent.shape
    site = trace.nodes[latent.name]
    torch.testing.assert_close(q.log_prob(site["value"]), site["log_prob"])


@every_cell
def test_another_number_of_rows(kind, family, some):
    """A guide with parameters for every row says whose rows it holds; any other takes what it gets."""
    model, guide = placed(kind, family, some)
    if any(p.shape[:1] == (len(some),) for p in guide.parameters()):
        with pytest.raises(ValueError, match="holds 60 rows, got 7.*use Amortized"):
            guide(some[:7])
        with pytest.raises(ValueError, match="holds 60 rows, got 7"):
            guide.posterior(some[:7])
    else:
        trace = poutine.trace(guide).get_trace(some[:7])
        (latent,) = latents(model, some)
        assert trace.nodes[latent.name]["value"].shape == local_shape(latent, 7)


@plain_cells
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 40), (torch.float64, 150)], ids=str)
def test_trains_from_a_random_start(kind, family, dtype, steps, some, untouched):
    x = some.to(dtype)
    model = make(kind, dtype)
    guide = serve(family, model, x)

    def bound():
        loss = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
        with seeded(1), torch.no_grad(), pyro.get_param_store().scope():
            return -loss.loss(model, guide, x) / len(x)

    with untouched():
        zoo.fit(model, guide, x, steps=1, optim=pyro.optim.Adam({"lr": 0.0}), progress=False)  # the start, nothing else
        before = bound()
        run = zoo.fit(model, guide, x, steps=steps, progress=False)
        after = bound()
    assert after > before + 0.5  # nats per row; the poorest of the cells gains 0.86
    assert {p.dtype for m in (model, guide) for p in m.parameters()} == {dtype}
    assert run.settings["dtype"] == str(dtype).removeprefix("torch.")
    assert all(p.isfinite().all() for m in (model, guide) for p in m.parameters())
    with untouched():
        sampled = run.sample(x, 11)
    for latent in latents(model, x):
        assert sampled[latent.name].shape == local_shape(latent, 11, len(x))
        assert sampled[latent.name].dtype == (torch.int64 if latent.cardinality else dtype)


# Guides look at the model: one with every sort of site at once.


class Everything(nn.Module):
    """Sites of several shapes and supports, local and shared."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(DATA_DIM, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        zero = self.mean.new_zeros(())
        rate = pyro.sample("rate", dist.Gamma(zero + 2.0, zero + 2.0))
        with zoo.base.rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zero.expand(2, 3), 1.0).to_event(2))
            share = pyro.sample("share", dist.Dirichlet(self.mean.new_ones(3)))
            mean = self.mean + (z @ share.unsqueeze(-1)).sum((-2, -1)).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(mean, rate.unsqueeze(-1).unsqueeze(-1)).to_event(1), obs=x)


@pytest.mark.parametrize("family", GUIDES, ids=label)
def test_sites_of_every_sort(family, some):
    model = Everything()
    guide = serve(family, model, some)
    found = latents(model, some)
    assert [(s.name, tuple(s.shape), s.local, s.width) for s in found] == [
        ("rate", (), False, 1),
        ("z", (2, 3), True, 6),
        ("share", (3,), True, 2),
    ]
    trace = poutine.trace(guide).get_trace(some)
    for latent in found:
        value = trace.nodes[latent.name]["value"]
        assert value.shape == (local_shape(latent, len(some)) if latent.local else latent.shape)
        assert latent.support.check(value).all()
    run = zoo.fit(model, guide, some, steps=5, progress=False)
    sampled = run.sample(some, 7)
    assert {name: tuple(value.shape) for name, value in sampled.items()} == {
        "rate": (7,),
        "z": (7, 60, 2, 3),
        "share": (7, 60, 3),
    }
