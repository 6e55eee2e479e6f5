"""What every model promises, checked on all that the package exports and on models of users' own."""

import copy
import json
import pickle

import pyro
import pytest
import torch
from contract import (
    CELLS,
    DATA_DIM,
    REGISTERED,
    SITES,
    conjugate,
    kinds,
    learns,
    placed,
    same,
    train,
    values,
)
from pyro import poutine

import zoo
from zoo.base.random import seeded

NAMES = {"z", "component", "x", "weight", "mean", "scale", "precision", "relevance", "proportions", "sticks"}

pytestmark = pytest.mark.usefixtures("own_store")
every_model = kinds()
every_registered = kinds(REGISTERED)
every_learner = kinds(where=learns)


def amortized(kind):
    """The cell of a model with Amortized as it comes."""
    return next(f for k, f in CELLS if k is kind and f.cls.__name__ == "Amortized" and f.usual)


@every_model
def test_generates_rows(kind):
    model = kind.build()
    draws = []
    for seed in (1, 1, 2):
        with seeded(seed), torch.no_grad():
            draws.append(model(size=kind.size))
    assert draws[0].shape == (kind.size, kind.columns)
    assert draws[0].dtype == torch.float64
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_model
def test_generates_what_it_scores(kind):
    """Observing x gives back x, and its density is that of the story at these latent values."""
    model, (name,) = kind.build(), SITES[kind.name].data
    trace = poutine.trace(model).get_trace(size=kind.size)
    x = trace.nodes[name]["value"].detach()
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    assert again.nodes[name]["is_observed"]
    torch.testing.assert_close(again.nodes["_RETURN"]["value"], x)
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum())


@every_registered
def test_names_of_the_sites(kind):
    found = SITES[kind.name]
    assert {latent.name for latent in found.latents} <= NAMES
    assert found.data == ("x",)


@every_model
@pytest.mark.parametrize("batch", [None, 12])
def test_plate_rows(kind, batch):
    model, x = kind.build(), kind.rows()
    n = len(x)
    index = None if batch is None else torch.randperm(n)[:batch]
    arguments = (x,) if batch is None else (x[index], index, n)
    trace = poutine.trace(model).get_trace(*arguments)
    found = SITES[kind.name]
    for name in (*found.data, *(latent.name for latent in found.local)):
        site = trace.nodes[name]
        (frame,) = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        assert (frame.name, frame.dim) == ("rows", -1)
        assert frame.size == (batch or n)
        assert float(site["scale"]) == pytest.approx(n / (batch or n))
        assert site["fn"].batch_shape == (batch or n,)
    for latent in found.shared:
        assert float(trace.nodes[latent.name]["scale"]) == 1


@every_model
def test_refuses_neither_rows_nor_size(kind):
    with pytest.raises(ValueError, match="pass size"):
        kind.build()()


@every_model
def test_refuses_index_without_size(kind):
    with pytest.raises(ValueError, match="index is given without size"):
        kind.build()(kind.rows()[:3], torch.arange(3))


@every_registered
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_decide_the_dtype(kind, dtype):
    model = kind.build(dtype)
    assert {p.dtype for p in model.parameters()} == ({dtype} if learns(kind) else set())
    trace = poutine.trace(model).get_trace(size=3)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and name != "rows":
            assert site["fn"].log_prob(site["value"]).dtype == dtype


@every_registered
def test_says_what_it_is(kind):
    model = kind.build()
    given = json.loads(json.dumps(model.settings))
    assert given == model.settings
    assert given["data_dim"] == DATA_DIM
    assert dict(kind.settings).items() <= given.items()
    assert type(model)(**given).settings == given
    assert type(model).__name__ in repr(model)


@kinds(where=conjugate)
def test_conjugate_shapes(kind):
    model, x, (latent,) = kind.build(), kind.rows(), SITES[kind.name].latents
    posterior = model.posterior(x)
    assert posterior.batch_shape == (len(x),)
    assert posterior.event_shape == latent.shape
    assert model.log_marginal(x).shape == (len(x),)


@kinds(where=conjugate)
def test_conjugate_identity(kind):
    """log p(x, z) - log p(z | x) is log p(x), whatever z."""
    model, x, (latent,) = kind.build(), kind.rows(), SITES[kind.name].latents
    for _ in range(3):
        z = poutine.trace(model).get_trace(size=len(x)).nodes[latent.name]["value"]
        scored = poutine.trace(poutine.condition(model, {latent.name: z})).get_trace(x)
        scored.compute_log_prob()
        joint = scored.nodes["x"]["log_prob"] + scored.nodes[latent.name]["log_prob"]
        torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_marginal(x), rtol=0, atol=1e-8)


# Parameters and where they live.


def modules():
    """Every model and every guide once, by name."""
    for kind in REGISTERED:
        yield kind.name, kind.build()
    seen = set()
    for kind, family in CELLS:
        if family not in seen:
            seen.add(family)
            yield family.name, family.build(kind.build(), kind.rows())


def test_copies_take_a_name_of_their_own():
    for name, module in modules():
        copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
        roots = {m._pyro_name for m in (module, *copies)}
        assert len(roots) == 3, name
        for twin in copies:
            assert type(twin).__name__ in twin._pyro_name
            assert same(values(twin), values(module)), name
            assert twin.settings == module.settings


@every_learner
def test_copies_train_apart(kind):
    """A model and its copy in one parameter store: training one leaves the other where it is."""
    x = kind.rows()
    model, guide = placed(kind, amortized(kind), x)
    twins = copy.deepcopy((model, guide))
    start = [values(model), values(guide)]
    train(*twins, x)
    moved = [values(twin) for twin in twins]
    assert not any(map(same, moved, start))
    assert all(map(same, [values(model), values(guide)], start))
    train(model, guide, x, steps=1)
    assert all(map(same, [values(twin) for twin in twins], moved))
    assert not any(map(same, [values(model), values(guide)], start))
    assert len(pyro.get_param_store()) == 2 * sum(len(list(m.parameters())) for m in (model, guide))


@every_learner
def test_instances_share_no_values(kind):
    """The second instance in a store neither takes nor moves the values of the first."""
    x, family = kind.rows(), amortized(kind)
    first, second = kind.build(), kind.build()
    for model in (first, second):
        if hasattr(model, "initialize"):
            model.initialize(x)
    start = values(second)
    train(first, family.build(first, x), x)
    kept = values(first)
    poutine.trace(second).get_trace(x)  # registers its parameters, before any step of its own
    assert same(values(second), start)
    train(second, family.build(second, x), x)
    assert same(values(first), kept)
    assert not same(values(second), start)


@every_learner
@pytest.mark.parametrize("how", ["zoo.fit", "vanilla SVI"])
def test_frozen_parameters_stay(kind, how):
    x = kind.rows()
    model, guide = placed(kind, amortized(kind), x)
    for module in (model, guide):
        for p in list(module.parameters())[::2]:
            p.requires_grad_(False)
    start = values(model), values(guide)
    frozen = [{name for name, p in m.named_parameters() if not p.requires_grad} for m in (model, guide)]
    if how == "zoo.fit":
        zoo.fit(model, guide, x, steps=3, progress=False)
    else:
        train(model, guide, x)
    for module, before, fixed in zip((model, guide), start, frozen, strict=True):
        assert {name for name, p in module.named_parameters() if not p.requires_grad} == fixed
        moved = {name for name, p in values(module).items() if not torch.equal(p, before[name])}
        assert moved == set(before) - fixed
