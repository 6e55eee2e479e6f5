"""Models and guides are built again from what is on record, or passed in; no other code runs."""

import json
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from stored import Toy, by_hand, edit, forge, other, same, trained
from torch import nn

import zoo
from guides import MeanField
from zoo import GMM, PPCA
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.loading import load
from zoo.infer.storage.checkpoint import save
from zoo.infer.storage.files import SETTINGS


def test_a_users_model_is_passed_in(x, tmp_path):
    with seeded(1):
        model = Toy(4).double()
        run = trained(model, MeanField(model, x), x)
    folder = save(run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"settings\.json names the model .*:Toy, and load imports only from zoo and"):
        load(folder)
    back = load(folder, model=Toy(4))
    assert back.model.mean.dtype == torch.float64
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    with pytest.raises(ValueError, match=r"built with level=1\.0, got one with level=2\.0"):
        load(folder, model=Toy(4, level=2.0))
    with seeded(0):
        other = PPCA(4, 2)
    with pytest.raises(ValueError, match=r"holds the model Toy, got PPCA: pass load\(path, model=\.\.\.\) a Toy"):
        load(folder, model=other)


@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal])
def test_autoguides_are_passed_in(auto, x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        run = trained(model, auto(model), x)
    folder = save(run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"names the guide pyro\..*: pass the class, or build it yourself"):
        load(folder)
    with seeded(2):
        model = PPCA(4, 2)
    back = load(folder, model=model, guide=auto(model))
    assert back.model is model
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    again, further = trained(run.model, run.guide, x), trained(back.model, back.guide, x)
    assert torch.equal(again.losses, further.losses)


class Nameless(PyroModule):
    """A model of plain Pyro, which does not say how many columns it has."""

    def __init__(self) -> None:
        super().__init__("nameless")
        self.mean = PyroParam(torch.zeros(4))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)


def test_an_autoguide_sees_data_of_the_recorded_shape(x, tmp_path):
    model = Nameless()
    run = trained(model, AutoNormal(model), x)
    folder = save(run, tmp_path / "run")
    model = Nameless()
    back = load(folder, model=model, guide=AutoNormal(model))
    same(back.guide.state_dict(), run.guide.state_dict())


def test_an_autoguide_that_cannot_be_set_up(x, tmp_path):
    model = Nameless()
    run = trained(model, AutoNormal(model), x)
    folder = save(run, tmp_path / "run")
    edit(folder, lambda s: s["guide"].pop("seen") and None)
    model = Nameless()
    with pytest.raises(ValueError, match=r"so run it on the data once: guide\(x\)"):
        load(folder, model=model, guide=AutoNormal(model))
    guide = AutoNormal(model)
    with pyro.get_param_store().scope(), seeded(0):
        guide(x)
    back = load(folder, model=model, guide=guide)
    same(back.guide.state_dict(), run.guide.state_dict())


def test_parameters_of_the_store_alone(x, tmp_path):
    with seeded(1):
        run = trained(PPCA(4, 2), by_hand, x)
    folder = save(run, tmp_path / "run")
    settings = json.loads((folder / SETTINGS).read_text())
    assert settings["store"] == {"loc": ["real"], "scale": ["greater_than", 0.0]}
    with pytest.raises(ValueError, match=r"names the guide .*:by_hand"):
        load(folder)
    back = load(folder, guide=by_hand)
    assert back.store["params"].keys() == {"loc", "scale"}
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    with back.scope():
        assert torch.equal(pyro.param("scale"), run.store["params"]["scale"].exp())
    with pytest.raises(ValueError, match="holds the guide by_hand, got other"):
        load(folder, guide=other)


def test_a_function_for_a_model(x, tmp_path):
    def story(x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Normal(pyro.param("w", torch.ones(4)) * z.sum(-1, True), 1.0).to_event(1), obs=x
            )

    run = trained(story, MeanField(story, x), x)
    back = load(save(run, tmp_path / "run"), model=story)
    assert back.store["params"].keys() == {"w"}
    same(back.sample(x, draws=3), run.sample(x, draws=3))


def encoding(network):
    """A guide that is a plain function around a network."""

    def encode(x=None, index=None, size=None):
        loc = pyro.module("encoder", network)(x)
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return encode


def test_a_network_that_a_function_refers_to_comes_back(x, tmp_path):
    with seeded(1):
        guide = encoding(nn.Linear(4, 2))
        run = trained(PPCA(4, 2), guide, x)
    folder = save(run, tmp_path / "run")
    with seeded(2):
        fresh, wider = nn.Linear(4, 2), nn.Linear(4, 3)
    back = load(folder, guide=encoding(fresh))
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    with pytest.raises(ValueError, match=r"network\.weight of shape \(2, 4\), the guide \(3, 4\)"):
        load(folder, guide=encoding(wider))


def test_a_module_that_a_function_calls_comes_back(x, tmp_path):
    def around(inner):
        def story(x=None, index=None, size=None):
            return inner(x, index, size)

        return story

    with seeded(1):
        inner = PPCA(4, 2)
        story = around(inner)
        run = trained(story, MeanField(story, x), x)
    with seeded(2):
        other = PPCA(4, 2)
    back = load(save(run, tmp_path / "run"), model=around(other))
    assert not back.store["params"]
    same(other.state_dict(), inner.state_dict())


def test_a_network_of_nobody_is_refused(x, tmp_path):
    with seeded(1):
        networks = [nn.Linear(4, 2)]  # within a list, nobody finds it

        def guide(x=None, index=None, size=None):
            loc = pyro.module("encoder", networks[0])(x)
            with rows(x, index, size):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        run = trained(PPCA(4, 2), guide, x)
    with pytest.raises(ValueError, match="network 'encoder' is part of neither model nor guide"):
        save(run, tmp_path / "run")


def empty(x=None, index=None, size=None):
    """A guide of nothing: the model's discrete site is summed out."""


def test_the_callable_behind_handlers_is_saved_and_restored(x, tmp_path):
    enumerated = TraceEnum_ELBO(max_plate_nesting=1)
    with seeded(1):
        model = GMM(4, 2).double()
        run = trained(config_enumerate(model), empty, x.double(), loss=enumerated, optim=pyro.optim.Adam({"lr": 0.1}))
    folder = save(run, tmp_path / "run")
    settings = json.loads((folder / SETTINGS).read_text())
    assert settings["model"]["class"] == "zoo.models.gmm:GMM"
    assert settings["model"]["handlers"] == ["InferConfigMessenger"]
    assert not settings["store"]
    with seeded(2):
        bare = GMM(4, 2).double()
    back = load(folder, model=config_enumerate(bare), guide=empty)
    same(bare.state_dict(), model.state_dict())

    def loss(run):
        with run.scope():
            return enumerated.loss(run.model, run.guide, x.double())

    assert loss(back) == loss(run)
    with pytest.raises(ValueError, match=r"the model GMM was saved inside Pyro's handlers \(InferConfigMessenger\)"):
        load(folder, guide=empty)


def test_handlers_that_change_the_density_must_be_there_again(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        run = trained(poutine.scale(model, 0.5), MeanField(model, x), x)
    folder = save(run, tmp_path / "run")
    with seeded(2):
        bare = PPCA(4, 2)
    for wrong, named in ((bare, "none"), (poutine.mask(bare, True), "MaskMessenger")):
        with pytest.raises(ValueError, match=f"handlers ScaleMessenger, got one inside {named}"):
            load(folder, model=wrong)
    back = load(folder, model=config_enumerate(poutine.scale(bare, 0.5)))
    same(bare.state_dict(), model.state_dict())
    assert torch.equal(zoo.evaluate(back, x).elbo, zoo.evaluate(run, x).elbo)


def test_a_wrapped_guide(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        run = trained(model, poutine.scale(MeanField(model, x), 1.0), x)
    with seeded(2):
        model = PPCA(4, 2)
        guide = poutine.scale(MeanField(model, x), 1.0)
    back = load(save(run, tmp_path / "run"), model=model, guide=guide)
    assert back.guide is guide
    same(back.sample(x, draws=3), run.sample(x, draws=3))


def test_a_class_is_built_with_its_recorded_arguments(run, saved, x):
    same(load(saved, model=PPCA).sample(x, draws=3), run.sample(x, draws=3))
    with pytest.raises(ValueError, match=r"holds the model PPCA, got the class Toy: pass load\(path, model=...\)"):
        load(saved, model=Toy)


def test_a_class_in_handlers_is_no_model(saved):
    message = r"model is the class PPCA: pass an instance, as in load\(path, model=PPCA\(...\)\)"
    with pytest.raises(TypeError, match=message):
        load(saved, model=config_enumerate(PPCA))
    with pytest.raises(TypeError, match="guide is not a Pyro callable, got int"):
        load(saved, guide=3)


def test_tensors_that_do_not_fit(run, saved, tmp_path):
    def case(change, message):
        folder = tmp_path / "case"
        shutil.copytree(saved, folder)
        forge(folder, change)
        with pytest.raises(ValueError, match=message):
            load(folder)
        shutil.rmtree(folder)

    case(
        lambda t: t.pop("model.mean_unconstrained"),
        r"parameters\.safetensors lacks mean_unconstrained .*: pass load",
    )
    case(lambda t: t.update({"guide.new": torch.ones(1)}), "has new, which the guide does not have")
    case(lambda t: t.update({"model.mean_unconstrained": torch.ones(7)}), r"of shape \(7,\), the model \(4,\)")
    case(lambda t: t.pop("training.losses"), "do not belong together")
    case(lambda t: t.update({"stray": torch.ones(1)}), "do not belong together")
    case(lambda t: t.update({"store.p": torch.ones(1)}), "do not belong together")


def test_what_was_passed_in_is_left_alone_by_an_error(saved, x):
    with seeded(9):
        model, other = PPCA(4, 2), PPCA(4, 2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"has loc_unconstrained of shape \(20, 2\), the guide \(5, 2\)"):
        load(saved, model=model, guide=MeanField(other, x[:5]))
    same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os:system", "imports only from zoo and guides"),
        ("zoology.models:PPCA", "imports only from zoo and guides"),
        ("zoo.__main__:PPCA", "imports only from zoo and guides"),
        ("zoo/../os:PPCA", "imports only from zoo and guides"),
        ("zoo.models.none:PPCA", "does not have: install the version"),
        ("zoo.models.ppca:None", "does not have"),
        ("zoo.models.ppca:torch", "does not have"),
        ("zoo.models.ppca:Tensor", "does not have"),
        ("zoo.models:PPCA", "does not have"),
        ("zoo.infer.storage.checkpoint:save", "does not have"),
    ],
)
def test_only_our_own_classes_are_imported(path, message, saved):
    edit(saved, lambda s: s["model"].update({"class": path}))
    with pytest.raises(ValueError, match=rf"settings\.json names the model {path}.*{message}"):
        load(saved)


def test_a_stranger_is_never_imported(saved, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(saved, lambda s: s["guide"].update({"class": "stranger:Guide"}))
    with pytest.raises(ValueError, match="imports only from"):
        load(saved)


@pytest.mark.parametrize("note", [{"tensor": [3]}, {"module": "torch.nn:Linear"}, {"object": "torch:dtype"}])
def test_arguments_that_are_not_kept(note, run, saved):
    edit(saved, lambda s: s["model"]["settings"].update({"prior": note}))
    with pytest.raises(ValueError, match=r"does not contain the argument prior of the model .* yourself and pass it"):
        load(saved)
    edit(saved, lambda s: s["model"]["settings"].pop("prior") and None)
    edit(saved, lambda s: s["guide"]["settings"].update({"model": {"module": "zoo.models.vae:VAE"}}))
    with pytest.raises(ValueError, match=r"does not contain the argument model of the guide .*VAE"):
        load(saved)
