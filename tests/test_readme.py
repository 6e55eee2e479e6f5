"""The code of the README and of the pages beside the notebooks runs."""

import re
import shlex
from pathlib import Path

import pyro
import pytest
import torch
from typer.testing import CliRunner

import guides
import zoo
from zoo.commands.main import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "notebooks").glob("*.md"))]


def block(name: str) -> str:
    """The code under the comment ``<!-- name -->`` of the README or of a page."""
    found = [
        code
        for page in PAGES
        for code in re.findall(rf"<!-- {name} -->\s*```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(found) == 1, f"{len(found)} blocks are called {name!r}"
    return found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', text):
        place = "".join(target)
        assert place.startswith("https://") or (page.parent / place).exists(), place


def test_two_commands_set_up_everything():
    for name in ("main", "tests"):
        (line,) = block(name).strip().splitlines()
        first, install, last = line.split(" && ")
        assert first == "python -m venv .venv"
        assert install.startswith(".venv/bin/pip install")
        assert last.startswith(".venv/bin/")


def test_main_command_ends_with_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = shlex.split(block("main").split(" && ")[-1])
    assert command[0] == ".venv/bin/zoo"
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    for quantity in ("ELBO", "log marginal", "gap", "closed-form optimum"):
        assert quantity in result.output
    run = zoo.load(tmp_path / "runs" / "holzinger")
    x = zoo.data.load("holzinger", dtype=torch.float64).x
    reference = zoo.FactorAnalysis(9, 3).double()
    assert zoo.em(reference, x)[-1] - run.model.log_marginal(x).sum() < 1e-3


def test_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("example"), "README.md", "exec"), {})
    assert "gap" in capsys.readouterr().out
    assert (tmp_path / "runs" / "iris" / "settings.json").exists()


def test_a_benchmark_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("suite"), "benchmarks.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "| zoo | **-1" in shown
    assert "| scikit-learn | **-1" in shown  # the same maximum of the likelihood
    assert {"cite.bib", "page.md", "table.tex"} <= {file.name for file in (tmp_path / "runs" / "wine").iterdir()}


def test_pair_trained_elsewhere_is_judged(capsys):
    with pyro.get_param_store().scope():
        exec(compile(block("pair"), "README.md", "exec"), {})
    assert "gap" in capsys.readouterr().out


def test_pipeline_finds_its_size(capsys):
    exec(compile(block("sklearn"), "README.md", "exec"), {})
    assert "'factoranalysis__n_components': 3" in capsys.readouterr().out


@pytest.fixture(scope="module")
def own_model():
    """The names that a reader has after the block on a model, with every second iris."""
    names: dict = {"zoo": zoo, "guides": guides, "x": zoo.data.load("iris").x[::2]}
    exec(compile(block("model"), "README.md", "exec"), names)
    return names


def test_added_model_is_served_by_the_guides(own_model):
    model, x = own_model["SparseFactors"](4, 2), own_model["x"]
    run = zoo.fit(model, guides.Amortized(model, x), x, steps=200, progress=False)
    assert run.losses[-20:].mean() < run.losses[:20].mean()
    with pytest.raises(guides.CannotServe, match="'z'"):
        guides.Exact(model)


@pytest.mark.parametrize("name", ["seed", "shared", "several", "covariate", "missing"])
def test_models_of_your_own_run(name, own_model, monkeypatch):
    names = dict(own_model)
    fit = zoo.fit
    monkeypatch.setattr(zoo, "fit", lambda *given, **options: fit(*given, **{"steps": 300, **options}, progress=False))
    exec(compile(block(name), "README.md", "exec"), names)
    x, sampled = names["x"], names["run"].sample(names["x"], 5)
    assert {len(value) for value in sampled.values()} == {5}
    assert zoo.evaluate(names["run"], x, draws=50).elbo.isfinite().all()
