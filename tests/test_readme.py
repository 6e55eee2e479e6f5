"""The README's code runs, and its table says what the guides say."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import guides
import zoo
from zoo.commands import registry
from zoo.commands.main import app

README = Path(__file__).parents[1] / "README.md"


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\s*```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README.md has no block {name!r}"
    return found.group(1)


def test_main_command_ends_with_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = shlex.split(block("main"))
    assert command[0] == "zoo"
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


def test_added_model_is_served_by_the_guides():
    names: dict = {}
    exec(compile(block("model"), "README.md", "exec"), names)
    model = names["SparseFactors"](4, 2)
    x = zoo.data.load("iris").x[:40]
    run = zoo.fit(model, guides.Amortized(model, x), x, steps=200, progress=False)
    assert run.losses[-20:].mean() < run.losses[:20].mean()
    with pytest.raises(guides.CannotServe, match="'z'"):
        guides.Exact(model)


def test_table_of_models_and_guides():
    text = README.read_text(encoding="utf-8").split("<!-- table -->")[1].lstrip().split("\n\n")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    assert header == list(dict.fromkeys(header))
    assert set(header) == set(registry.guide_classes())
    table = {}
    for line in lines[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[name.strip("`")] = dict(zip(header, cells, strict=True))
    assert set(table) == set(registry.models())
    x = torch.randn(6, 3)
    for name, cells in table.items():
        cls = registry.models()[name]
        sizes = {key: 2 for key in ("latent_dim", "components") if key in registry.options(cls)}
        for guide, cell in cells.items():
            model = registry.build(cls, sizes, 3)
            try:
                registry.build(registry.guide_classes()[guide], {}, model, x)
            except guides.CannotServe as refusal:
                assert cell.startswith(f"no: `{refusal.site}`"), (name, guide)
            else:
                assert cell == "yes", (name, guide)
