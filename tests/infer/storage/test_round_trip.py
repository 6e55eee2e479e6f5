"""What is written comes back to the last bit."""

import hashlib
import json
import pickle
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from safetensors.torch import load_file
from stored import GUIDES, MODELS, PAIRS, by_hand, same, trained
from torch import nn

from guides import Amortized, Exact, MeanField
from zoo import PPCA, VAE, FactorAnalysis, Fit
from zoo.base.random import seeded
from zoo.infer.loading import load
from zoo.infer.storage.checkpoint import save
from zoo.infer.storage.files import FORMAT, PARAMETERS, SETTINGS


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


def test_a_pair_without_a_training(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        guide = MeanField(model, x)
    with pyro.get_param_store().scope(), seeded(0):  # an SVI of one's own
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(3):
            svi.step(x)
        run = Fit(model, guide)
    back = load(save(run, tmp_path / "run"))
    assert back.training is None
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["training"] is None
    same(back.model.state_dict(), model.state_dict())
    same(back.sample(x, draws=3), run.sample(x, draws=3))
    assert load(save(back, tmp_path / "again")).training is None


def test_a_pair_of_functions_without_a_training(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
    with pyro.get_param_store().scope(), seeded(0):
        svi = SVI(model, by_hand, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        svi.step(x)
        run = Fit(model, by_hand)
    back = load(save(run, tmp_path / "run"), guide=by_hand)
    assert back.store["params"].keys() == {"loc", "scale"}
    same(back.sample(x, draws=3), run.sample(x, draws=3))


def test_validation_and_settings_come_back(run, saved):
    back = load(str(saved))
    assert torch.equal(back.validation, run.validation)
    assert back.settings["seed"] == 3
    settings = json.loads((saved / SETTINGS).read_text())
    assert settings["format"] == FORMAT
    assert settings["training"]["seed"] == 3
    assert settings["training"]["losses"] == {"tensor": [3]}
    assert settings["versions"].keys() == {"latent-zoo", "torch", "pyro-ppl", "numpy", "python"}
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["model"]["settings"] == {"data_dim": 4, "latent_dim": 2, "noise": None}
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
    with pytest.raises(ValueError, match="has count, which the model does not have"):
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
    odd = {"seconds": float("inf"), "at_floor": np.float32(0.5), "rows": (1, 2), "loss": object()}
    training = replace(run.training, **odd)
    back = load(save(replace(run, training=training), tmp_path / "run")).training
    assert (back.seconds, back.at_floor, back.rows) == (float("inf"), 0.5, [1, 2])
    assert back.loss == {"object": "builtins:object"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_of_a_gpu_load_on_the_cpu(x, tmp_path):
    with seeded(1):
        model = PPCA(4, 2)
        run = trained(model, MeanField(model, x), x, device="cuda")
    back = load(save(run, tmp_path / "run"))
    assert {p.device.type for m in (back.model, back.guide) for p in m.parameters()} == {"cpu"}
    same(back.model.state_dict(), {k: v.cpu() for k, v in run.model.state_dict().items()})


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
        ValueError, match=r"parameter 'p' has the constraint .* cannot be saved: use one of real, simplex"
    ):
        save(replace(run, store=store), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_state_that_is_no_tensor_is_refused(run, tmp_path):
    class Odd(nn.Module):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(
        ValueError, match="the model Odd has '_extra_state', a dict, in its state: only tensors can be saved"
    ):
        save(replace(run, model=Odd()), tmp_path / "run")
