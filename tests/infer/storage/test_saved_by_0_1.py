"""Runs saved by latent-zoo 0.1.0 (format 1) load, and give what they gave then.

Beside every folder stand the bound of every row by ``evaluate(run, x, draws=30)`` and the first numbers of
``sample(x, 3)``, both with seed 0, as 0.1.0 computed them. The parameters are the file's to the bit, and so are the
guide's draws. A bound in closed form agrees to rounding. One that is a mean over draws from the guide agrees within
its Monte Carlo error, since today's engine takes the draws in another order.
"""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from safetensors.torch import load_file
from stored import edit

import zoo
from zoo.base.random import seeded
from zoo.infer.storage.files import PARAMETERS, SETTINGS

HERE = Path(__file__).parents[1] / "saved_by_0_1"
RUNS = sorted(path.name for path in HERE.iterdir() if path.is_dir())
CLOSED = {"fa_exact", "fa_full_rank", "gmm_amortized", "ppca_mean_field"}  # the bound needs no draws
DRAWS = 30  # 0.1.0 took 25


def brought_back(name: str) -> zoo.Fit:
    if name != "ppca_auto_normal":
        return zoo.load(HERE / name)
    with seeded(1):
        model = zoo.PPCA(4, 2)
    return zoo.load(HERE / name, model=model, guide=AutoNormal(model))


@pytest.fixture(scope="module")
def x(iris) -> torch.Tensor:
    return iris[::5]


@pytest.mark.parametrize("name", RUNS)
def test_parameters_and_training_are_those_of_the_file(name):
    run, tensors = brought_back(name), load_file(HERE / name / PARAMETERS)
    settings = json.loads((HERE / name / SETTINGS).read_text())
    assert settings["format"] == 1
    for role, module in (("model", run.model), ("guide", run.guide)):
        held = {f"{role}.{key}": value for key, value in module.state_dict().items()}
        assert held.keys() == {key for key in tensors if key.startswith(f"{role}.")}
        for key, value in held.items():
            assert value.dtype == tensors[key].dtype
            assert torch.equal(value, tensors[key]), key
    assert torch.equal(run.losses, tensors["losses"])
    assert run.converged == settings["converged"]
    assert run.settings == settings["fit"]


@pytest.mark.parametrize("name", RUNS)
def test_bound_and_draws_are_those_of_then(name, x):
    run = brought_back(name)
    then = json.loads((HERE / f"{name}.json").read_text())
    found = zoo.evaluate(run, x, draws=DRAWS)
    before = torch.tensor(then["elbo"], dtype=torch.float64)
    if name in CLOSED:
        torch.testing.assert_close(found.elbo, before, rtol=0, atol=1e-10)
    else:  # both are means over their own draws
        many = zoo.evaluate(run, x, draws=4000).elbo
        spread = (before - many).std() / len(x) ** 0.5
        assert abs((before - many).mean()) < 5 * spread
        assert abs((found.elbo - many).mean()) < 5 * spread
    for site, numbers in then["sample"].items():
        drawn = run.sample(x, 3, seed=0)[site].flatten()[: len(numbers)]
        torch.testing.assert_close(drawn, torch.tensor(numbers, dtype=drawn.dtype), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_saved_in_the_format_of_today(name, tmp_path):
    run = brought_back(name)
    run.save(tmp_path / "run")
    one, two = load_file(HERE / name / PARAMETERS), load_file(tmp_path / "run" / PARAMETERS)
    assert all(torch.equal(two.get(key, two.get(f"training.{key}")), value) for key, value in one.items())
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["format"] == 2


def test_what_0_1_saved_of_a_wrapped_model_is_refused(tmp_path, x):
    """0.1.0 did not look behind Pyro's handlers: such a run has lost the names of its parameters."""
    folder = copytree(HERE / "gmm_amortized", tmp_path / "run")
    edit(folder, lambda s: s["model"].update({"class": "functools:partial", "settings": None}))
    with pytest.raises(ValueError, match=r"0\.1\.0 saved the model inside Pyro's handlers.*: fit it again with this"):
        zoo.load(folder)
