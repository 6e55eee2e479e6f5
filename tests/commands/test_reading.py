"""The commands say how they read a file, and carry its names to what they write."""

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import zoo
from zoo.commands.console import out
from zoo.commands.main import app

NAMES = [f"person {i}" for i in range(30)]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A function that calls the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out, "width", 200)

    def call(*words):
        answer = CliRunner().invoke(app, [str(word) for word in words])
        assert answer.exit_code == 0, answer.output
        return answer.output

    return call


def test_fit_and_select_say_how_they_read_a_file_and_keep_its_names(call, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 1)) + 0.5 * rng.normal(size=(30, 3))
    lines = [
        ";".join([name, *(f"{value:.3f}".replace(".", ",") for value in row)])
        for name, row in zip(NAMES, x, strict=True)
    ]
    lines[4] = f"{NAMES[4]};?;0,5;0,25"
    (tmp_path / "table.csv").write_text("\n".join(["who;größe;b;c", *lines]), encoding="latin-1")
    told = (
        "table.csv: fields separated by semicolons; encoding Windows-1252; decimal commas; rows named by column 'who'; "
        "1 of 90 entries missing"
    )
    assert told in call("fit", "FactorAnalysis", "table.csv", "-k", 1, "--quiet", "--steps", 5, "--out", "run")
    assert told in call("select", "PPCA", "table.csv", "--values", "1", "--seeds", 1)
    run = zoo.load("run")
    assert run.training.columns == ("größe", "b", "c")
    with h5py.File("run/arviz.nc") as file:
        group = file["posterior"]
        assert [name.decode() for name in group["row"][()]] == NAMES
    rows = zoo.data.load("table.csv")
    assert zoo.evaluate(run, rows, draws=30).frame()["row"].to_list() == NAMES


def test_nothing_is_said_of_a_file_as_expected(call, tmp_path):
    (tmp_path / "plain.csv").write_text("a,b,c\n" + "".join(f"{i % 5},{i % 3},{(i * i) % 7}\n" for i in range(20)))
    assert "plain.csv:" not in call("select", "PPCA", "plain.csv", "--values", "1", "--seeds", 1)
