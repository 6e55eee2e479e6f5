"""zoo fit --resume: the same command goes on with a fit that was interrupted."""

import os
import signal

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from zoo.commands import fit_run
from zoo.commands.main import app
from zoo.infer.fitting import fit

COMMAND = ["fit", "VAE", "iris", "-k", "1", "--model-hidden", "4", "--hidden", "4", "--noise", "constant"]
COMMAND += ["--steps", "20", "--patience", "0", "--batch-size", "40", "--arviz", "none", "--tables", "none", "--quiet"]


def run(*options):
    return CliRunner().invoke(app, [*COMMAND, *map(str, options)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """What a command that got SIGINT after eight steps has left and said."""

    def stopped(*parts, **options):
        stop = [lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 7 else None]
        return fit(*parts, callbacks=stop, **options)

    with monkeypatch.context() as patched:
        patched.setattr(fit_run, "fit", stopped)
        return tmp_path, run("--out", tmp_path / "run")


def test_an_interrupted_command_says_how_to_go_on_and_does(interrupted):
    place, result = interrupted
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "SIGINT: after 8 steps the fit is saved in" in result.stderr
    assert "--resume" in result.stderr
    assert names(place) == ["run.checkpoint"]
    refused = run("--out", place / "run")
    assert refused.exit_code == 2
    assert "--resume goes on with it" in refused.stderr
    assert run("--out", place / "run", "--resume").exit_code == 0
    assert run("--out", place / "whole", "--resume").exit_code == 0  # there is nothing yet
    assert names(place) == ["run", "whole"]
    one, other = (load_file(place / name / "parameters.safetensors") for name in names(place))
    assert all(one[name].equal(other[name]) for name in one.keys() | other.keys())
    again = run("--out", place / "run", "--resume")
    assert again.exit_code == 0
    assert "there is nothing to resume" in again.stdout


def test_another_command_is_refused(interrupted):
    place, _ = interrupted
    result = run("--out", place / "run", "--resume", "--seed", 1)
    assert result.exit_code == 2
    assert "holds a fit with" in result.stderr
    assert names(place) == ["run.checkpoint"]


def test_resume_needs_a_folder():
    result = run("--resume")
    assert result.exit_code == 2
    assert "--resume needs the folder of the fit that was interrupted: give it by --out" in result.stderr
