"""zoo.infer.storage.checkpoint: what is written comes back to the last bit, and all else is refused with a way out."""

import hashlib
import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from safetensors.torch import load_file, save_file
from torch import nn

from guides import Amortized, Exact, FullRank, MeanField
from zoo import GMM, PPCA, VAE, FactorAnalysis, Fit, fit
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.loading import load
from zoo.infer.storage import checkpoint
from zoo.infer.storage.checkpoint import FORMAT, PARAMETERS, SETTINGS, new_folder, save, write

MODELS = {
    "ppca": lambda: PPCA(4, 2),
    "factor-analysis": lambda: FactorAnalysis(4, 2, floor=0.01),
    "gmm": lambda: GMM(4, 3, covariance="tied"),
    "vae": lambda: VAE(4, 2, hidden=(8,)),
}
GUIDES = {
    "mean-field": MeanField,
    "full-rank": FullRank,
    "amortized": lambda model, x: Amortized(model, x, hidden=(8,)),
    "exact": lambda model, x: Exact(model),
}
PAIRS = [(m, g) for m in MODELS for g in GUIDES if (m, g) not in {("gmm", "full-rank"), ("vae", "exact")}]


@pytest.fixture(autouse=True)
def no_trace():
    """Pyro's store stays empty, and nothing here moves the caller's random streams."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert not dict(pyro.get_param_store())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(20, 2, generator=generator) @ torch.randn(2, 4, generator=generator) + 0.3 * torch.randn(
        20, 4, generator=generator
    )


def trained(model, guide, x, **options) -> Fit:
    for module in (model, guide):
        if isinstance(module, nn.Module):
            module.zero_grad()  # what an earlier fit has left; gradients are no part of a run
    return fit(model, guide, x, **{"steps": 3, "progress": False} | options)


@pytest.fixture(scope="module")
def run(x):
    with seeded(1):
        model = PPCA(4, 2)
        return trained(model, MeanField(model, x), x, validation=x.flip(0), seed=3)


@pytest.fixture
def saved(run, tmp_path):
    return save(run, tmp_path / "run")


def same(a, b) -> None:
    """Two state dicts, tensor by tensor, to the bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def edit(folder: Path, change) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    settings = change(settings) or settings
    settings["checksum"] = checkpoint._checksum(settings)  # a forger's work; accidents are tested below
    (folder / SETTINGS).write_text(json.dumps(settings))


def forge(folder: Path, change) -> None:
    """Change the tensors and sign them anew."""
    tensors = load_file(folder / PARAMETERS)
    change(tensors)
    save_file(tensors, folder / PARAMETERS)
    sign(folder)


def sign(folder: Path) -> None:
    content = (folder / PARAMETERS).read_bytes()
    edit(folder, lambda s: s.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))


class Toy(Module):
    """A user's model, of a class that load may not import."""

    def __init__(self, data_dim: int, level: float = 1.0) -> None:
        super().__init__()
        self.data_dim, self.level = data_dim, level
        self.mean = PyroParam(torch.zeros(data_dim))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.mean.new_zeros(1), self.level).to_event(1))
            return pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)


def by_hand(x=None, index=None, size=None):
    """A guide that keeps its parameters in Pyro's store alone."""
    loc = pyro.param("loc", lambda: torch.zeros(20, 2))
    scale = pyro.param("scale", lambda: torch.ones(20, 2), constraint=constraints.positive)
    with rows(x, index, size):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


# There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_every_pair_comes_back_to_the_bit_and_goes_on(model, guide, dtype, x, tmp_path):
    with seeded(1):
        built = MODELS[model]().to(dtype)
        run = trained(built, GUIDES[guide](built, x.to(dtype)), x)
    assert save(run, tmp_path / "run") == tmp_path / "run"
    back = load(tmp_path / "run")

    assert type(back.model) is type(run.model)
    assert type(back.guide) is type(run.guide)
    assert back.model.settings == run.model.settings
    assert back.guide.settings == run.guide.settings
    same(back.model.state_dict(), run.model.state_dict())
    same(back.guide.state_dict(), run.guide.state_dict())
    assert torch.equal(back.losses, run.losses)
    assert (back.settings, back.converged, back.validation) == (run.settings, run.converged, None)
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    if hasattr(run.model, "log_marginal"):
        assert torch.equal(back.model.log_marginal(x), run.model.log_marginal(x))
    if guide == "exact":
        assert back.guide.model is back.model

    assert not back.model.fresh
    assert not getattr(back.guide, "fresh", False)
    again, further = trained(run.model, run.guide, x), trained(back.model, back.guide, x)
    assert torch.equal(again.losses, further.losses)
    same(again.model.state_dict(), further.model.state_dict())


def test_validation_and_settings_come_back(run, saved):
    back = load(str(saved))
    assert torch.equal(back.validation, run.validation)
    assert back.settings["seed"] == 3
    settings = json.loads((saved / SETTINGS).read_text())
    assert settings["format"] == FORMAT
    assert settings["seed"] == 3
    assert settings["versions"].keys() == {"latent-zoo", "torch", "pyro-ppl", "numpy", "python"}
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["model"]["settings"] == {"data_dim": 4, "latent_dim": 2}
    assert settings["guide"]["settings"]["x"] == {"tensor": [20, 4]}
    assert settings["sha256"] == hashlib.sha256((saved / PARAMETERS).read_bytes()).hexdigest()


def test_fit_saves_itself_and_a_loaded_run_saves_the_same_tensors(run, tmp_path):
    run.save(tmp_path / "one")
    load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one" / PARAMETERS).read_bytes() == (tmp_path / "two" / PARAMETERS).read_bytes()
    one, two = (json.loads((tmp_path / name / SETTINGS).read_text()) for name in ("one", "two"))
    assert one == two


def test_nothing_is_unpickled(saved, monkeypatch):
    def never(*_, **__):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, never)
    load(saved)


def test_data_are_not_kept(x, run, saved):
    content = (saved / PARAMETERS).read_bytes()
    assert x[3].numpy().tobytes() not in content
    assert not {"x"} & load_file(saved / PARAMETERS).keys()


@pytest.mark.parametrize("form", ["numpy", "list", "dataset"])
def test_a_guide_built_on_other_forms_of_data(form, x, tmp_path):
    from zoo.data import Dataset

    dataset = Dataset(x, None, (), tuple("abcd"), "toy", "", "")
    data = {"numpy": x.numpy(), "list": x.tolist(), "dataset": dataset}[form]
    with seeded(1):
        model = PPCA(np.int64(4), 2)
        run = trained(model, MeanField(model, data), x)
    save(run, tmp_path / "run")
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["guide"]["settings"]["x"] == {"tensor": [20, 4]}
    same(load(tmp_path / "run").sample(x, draws=2), run.sample(x, draws=2))


def test_frozen_parameters_stay_frozen(x, tmp_path):
    with seeded(1):
        model = FactorAnalysis(4, 2)
        model.get_parameter("mean_unconstrained").requires_grad_(False)
        run = trained(model, MeanField(model, x), x)
    back = load(save(run, tmp_path / "run"))
    frozen = [name for name, p in back.model.named_parameters() if not p.requires_grad]
    assert frozen == ["mean_unconstrained"]


def test_mixed_dtypes_come_back(x, tmp_path):
    with seeded(1):
        model = VAE(4, 2, hidden=(8,)).double()
        guide = Amortized(model, x, hidden=())
    model.register_buffer("count", torch.tensor(3))
    run = Fit(model, guide.float())
    save(run, tmp_path / "run")
    with pytest.raises(ValueError, match="has count, which the model has not"):
        load(tmp_path / "run")
    with seeded(1):
        model = VAE(4, 2, hidden=(8,))
    model.register_buffer("count", torch.tensor(0))
    back = load(tmp_path / "run", model=model)
    assert back.model.count == 3
    assert {p.dtype for p in back.model.parameters()} == {torch.float64}
    assert {p.dtype for p in back.guide.parameters()} == {torch.float32}


def test_a_run_of_untouched_modules_is_not_fresh(x, tmp_path):
    """The constructor may draw the saved values again; they are still those of the run."""
    with seeded(0):
        model = PPCA(4, 2)
    run = Fit(model, Exact(model))
    assert run.model.fresh
    assert not load(save(run, tmp_path / "run")).model.fresh


def test_numbers_that_json_lacks(run, tmp_path):
    settings = run.settings | {
        "tol": float("inf"),
        "rate": np.float32(0.5),
        "widths": (1, 2),
        "loss": object(),
    }
    back = load(save(replace(run, settings=settings), tmp_path / "run")).settings
    assert (back["tol"], back["rate"], back["widths"]) == (float("inf"), 0.5, [1, 2])
    assert back["loss"] == {"object": "builtins:object"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_of_a_gpu_load_on_the_cpu(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        run = trained(model, MeanField(model, x), x, device="cuda")
    back = load(save(run, tmp_path / "run"))
    assert {p.device.type for m in (back.model, back.guide) for p in m.parameters()} == {"cpu"}
    same(back.model.state_dict(), {k: v.cpu() for k, v in run.model.state_dict().items()})


# Models and guides of one's own


def test_a_users_model_is_passed_in(x, tmp_path):
    with seeded(1):
        model = Toy(4).double()
        run = trained(model, MeanField(model, x), x)
    folder = save(run, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"settings\.json names the model .*:Toy, and load imports nothing but zoo and"
    ):
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
    with pytest.raises(ValueError, match=r"names the guide pyro\..*: build it yourself"):
        load(folder)
    with seeded(2):
        model = PPCA(4, 2)
    back = load(folder, model=model, guide=auto(model))
    assert back.model is model
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    again, further = trained(run.model, run.guide, x), trained(back.model, back.guide, x)
    assert torch.equal(again.losses, further.losses)


def test_an_autoguide_that_cannot_be_set_up(x, tmp_path):
    class Nameless(PyroModule):
        def __init__(self) -> None:
            super().__init__("nameless")
            self.mean = PyroParam(torch.zeros(4))

        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)

    model = Nameless()
    run = trained(model, AutoNormal(model), x)
    folder = save(run, tmp_path / "run")
    model = Nameless()
    with pytest.raises(ValueError, match=r"so run it on them once: guide\(x\)"):
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


def other(x=None, index=None, size=None):
    """Not the guide that was saved."""


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


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (constraints.real, torch.zeros(2)),
        (constraints.real_vector, torch.zeros(2)),
        (constraints.positive, torch.ones(2)),
        (constraints.greater_than(0.25), torch.ones(2)),
        (constraints.greater_than_eq(0.25), torch.ones(2)),
        (constraints.less_than(2.0), torch.ones(2)),
        (constraints.unit_interval, torch.full((2,), 0.5)),
        (constraints.interval(-1.0, 3.0), torch.ones(2)),
        (constraints.simplex, torch.full((3,), 1 / 3)),
        (constraints.lower_cholesky, torch.eye(2)),
        (constraints.corr_cholesky, torch.eye(2)),
        (constraints.positive_definite, torch.eye(2)),
        (constraints.softplus_positive, torch.ones(2)),
        (constraints.softplus_lower_cholesky, torch.eye(2)),
        (constraints.ordered_vector, torch.arange(2.0)),
        (constraints.independent(constraints.positive, 1), torch.ones(2)),
    ],
    ids=str,
)
def test_every_named_constraint(constraint, value, run, tmp_path):
    with pyro.get_param_store().scope() as store:
        expected = pyro.param("p", value, constraint=constraint).detach()
    back = load(save(replace(run, store=store), tmp_path / "run"))
    with back.scope():
        assert torch.equal(pyro.param("p").detach(), expected)
        assert type(pyro.get_param_store()._constraints["p"]) is type(store["constraints"]["p"])


@pytest.mark.parametrize(
    "constraint", [constraints.stack([constraints.real]), constraints.greater_than(torch.zeros(2))]
)
def test_a_constraint_without_a_name_is_refused(constraint, run, tmp_path):
    store = {"params": {"p": torch.ones(2)}, "constraints": {"p": constraint}}
    with pytest.raises(
        ValueError, match=r"parameter 'p' has the constraint .* cannot be saved: take one of real, simplex"
    ):
        save(replace(run, store=store), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_network_of_nobody_is_refused(x, tmp_path):
    with seeded(1):
        network = nn.Linear(4, 2)

        def guide(x=None, index=None, size=None):
            loc = pyro.module("encoder", network)(x)
            with rows(x, index, size):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        run = trained(PPCA(4, 2), guide, x)
    with pytest.raises(ValueError, match="network 'encoder' is part of neither model nor guide"):
        save(run, tmp_path / "run")


def test_state_that_is_no_tensor_is_refused(run, tmp_path):
    class Odd(nn.Module):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="the model Odd keeps '_extra_state', a dict: only tensors can be saved"):
        save(replace(run, model=Odd()), tmp_path / "run")


# Folders


def test_a_taken_folder_is_refused(run, saved, tmp_path):
    before = (saved / SETTINGS).read_bytes()
    with pytest.raises(FileExistsError, match=r"run already holds a run: choose another folder, or remove this one"):
        save(run, saved)
    with pytest.raises(FileExistsError, match="already holds a run"):
        write(run, saved)
    assert (saved / SETTINGS).read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="notes holds other files: choose a folder that is new or empty"):
        save(run, notes)
    assert [p.name for p in notes.iterdir()] == ["mine.txt"]
    with pytest.raises(FileExistsError, match=r"mine\.txt is a file"):
        save(run, notes / "mine.txt")
    with pytest.raises(NotADirectoryError, match="a file stands where a folder above it should"):
        save(run, notes / "mine.txt" / "deep" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "run"]


def test_an_empty_folder_and_missing_parents_are_fine(run, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    save(run, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert save(run, "deep/down/run") == Path("deep/down/run")
    for folder in (tmp_path / "empty", tmp_path / "deep" / "down" / "run"):
        assert sorted(p.name for p in folder.iterdir()) == [PARAMETERS, SETTINGS]
        load(folder)
    umask = os.umask(0)
    os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "empty").iterdir()} == {0o666 & ~umask}
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~umask


def test_new_folder_is_all_or_nothing(run, tmp_path):
    out = tmp_path / "deep" / "run"
    with pytest.raises(KeyboardInterrupt), new_folder(out) as folder:  # noqa: PT012
        write(run, folder)
        assert not out.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with new_folder(out) as folder:
        write(run, folder)
        (folder / "picture.png").write_bytes(b"png")
    assert sorted(p.name for p in out.iterdir()) == [PARAMETERS, "picture.png", SETTINGS]
    assert [p.name for p in out.parent.iterdir()] == ["run"]
    load(out)


def test_somebody_else_was_faster(run, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FileExistsError, match="already holds a run"), new_folder(out) as folder:  # noqa: PT012
        write(run, folder)
        save(run, out)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    load(out)


def test_write_needs_its_folder(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*: make it first, or use"):
        write(run, tmp_path / "none")


# What load refuses


def test_missing_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none: give the folder that a run was saved to"):
        load(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"settings\.json is a file: give the folder"):
        load(saved / SETTINGS)
    for name in (PARAMETERS, SETTINGS):
        partial = tmp_path / f"without {name}"
        shutil.copytree(saved, partial)
        (partial / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name} is missing: .* holds no complete run"):
            load(partial)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, ', b"\xff\xfe\x00"])
def test_settings_that_are_no_json(content, saved):
    (saved / SETTINGS).write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json is no valid JSON .*: restore it, or save the run again"):
        load(saved)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"format": "1"}', '{"format": true}'])
def test_settings_of_something_else(content, saved):
    (saved / SETTINGS).write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json names no format"):
        load(saved)


@pytest.mark.parametrize("key", ["model", "guide", "fit", "converged", "store", "bytes", "sha256"])
@pytest.mark.parametrize(
    "damage", [lambda s, key: s.pop(key), lambda s, key: s.update({key: None})], ids=["gone", "null"]
)
def test_settings_without_a_section(key, damage, saved):
    edit(saved, lambda s: damage(s, key) and None)
    with pytest.raises(ValueError, match=rf"settings\.json lacks {key}, or has it damaged"):
        load(saved)


def test_settings_with_damaged_records(saved):
    edit(saved, lambda s: s["model"].update({"class": 3}))
    with pytest.raises(ValueError, match=r"lacks model\.class"):
        load(saved)
    edit(saved, lambda s: s["model"].update({"class": "zoo.models.ppca:PPCA", "settings": None}))
    with pytest.raises(ValueError, match=r"settings\.json lacks the arguments of the model zoo\.models\.ppca:PPCA"):
        load(saved)
    edit(saved, lambda s: s["model"].update({"settings": {"data_dim": 4, "latent": 2}}))
    with pytest.raises(ValueError, match=r"cannot be built from its settings \(TypeError: .*: restore the file"):
        load(saved)


def test_a_newer_format(saved):
    edit(saved, lambda s: {"format": FORMAT + 1})
    with pytest.raises(ValueError, match=rf"settings\.json has format {FORMAT + 1}, .* up to format {FORMAT}: update"):
        load(saved)


def test_altered_and_truncated_parameters(saved):
    content = (saved / PARAMETERS).read_bytes()
    (saved / PARAMETERS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"parameters\.safetensors was altered"):
        load(saved)
    (saved / PARAMETERS).write_bytes(content + b" ")
    with pytest.raises(ValueError, match=r"parameters\.safetensors was altered"):
        load(saved)
    (saved / PARAMETERS).write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"parameters\.safetensors is truncated, 100 of {len(content)} bytes"):
        load(saved)
    sign(saved)
    with pytest.raises(ValueError, match=r"parameters\.safetensors is no safetensors file"):
        load(saved)


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
    case(lambda t: t.update({"guide.new": torch.ones(1)}), "has new, which the guide has not")
    case(lambda t: t.update({"model.mean_unconstrained": torch.ones(7)}), r"of shape \(7,\), the model \(4,\)")
    case(lambda t: t.pop("losses"), "do not belong together")
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
        ("os:system", "imports nothing but zoo and guides"),
        ("zoology.models:PPCA", "imports nothing but zoo and guides"),
        ("zoo.__main__:PPCA", "imports nothing but zoo and guides"),
        ("zoo/../os:PPCA", "imports nothing but zoo and guides"),
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
    with pytest.raises(ValueError, match="imports nothing but"):
        load(saved)


@pytest.mark.parametrize("note", [{"tensor": [3]}, {"module": "torch.nn:Linear"}, {"object": "torch:dtype"}])
def test_arguments_that_are_not_kept(note, run, saved):
    edit(saved, lambda s: s["model"]["settings"].update({"prior": note}))
    with pytest.raises(ValueError, match=r"does not hold the argument prior of the model .* yourself and pass it"):
        load(saved)
    edit(saved, lambda s: s["model"]["settings"].pop("prior") and None)
    edit(saved, lambda s: s["guide"]["settings"].update({"model": {"module": "zoo.models.vae:VAE"}}))
    with pytest.raises(ValueError, match=r"does not hold the argument model of the guide .*VAE"):
        load(saved)


@pytest.mark.parametrize("record", [["what"], "real", ["greater_than"], [], None])
def test_an_unknown_constraint(record, run, tmp_path):
    with pyro.get_param_store().scope() as store:
        pyro.param("p", torch.ones(2))
    folder = save(replace(run, store=store), tmp_path / "run")
    edit(folder, lambda s: s["store"].update({"p": record}))
    with pytest.raises(ValueError, match=r"settings\.json: parameter 'p' has the unknown constraint"):
        load(folder)


def test_altered_settings(tmp_path):
    with seeded(0):
        model, x = VAE(4, 2), torch.randn(20, 4)
        guide = Amortized(model, x)
    save(fit(model, guide, x, steps=2, progress=False), tmp_path / "run")
    file = tmp_path / "run" / SETTINGS
    text = file.read_text()
    assert '"floor": 0.001' in text
    file.write_text(text.replace('"floor": 0.001', '"floor": 0.5'))
    with pytest.raises(ValueError, match="was altered"):
        load(tmp_path / "run")
