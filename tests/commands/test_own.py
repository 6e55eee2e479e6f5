"""A user's model and guide in a file, through every command that takes a name."""

import json
import shlex
import sys

import polars as pl
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from typer.testing import CliRunner

import zoo
from zoo.base.origin import origin_of
from zoo.commands.console import err, out, spoken
from zoo.commands.main import app
from zoo.diagnostics.model.selection import select_size
from zoo.infer.storage.rebuild import MustBeGiven
from zoo.registry.finding import find_guide, find_model

FILE = '''
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints

import zoo
from zoo.base import Module, rows


class Sparse(Module):
    """Factors under a Laplace prior."""

    def __init__(self, data_dim, latent_dim, spread=1.0):
        super().__init__()
        self.data_dim, self.latent_dim, self.spread = data_dim, latent_dim, spread
        self.weight = PyroParam(torch.randn(data_dim, latent_dim))
        self.scale = PyroParam(torch.ones(()), constraints.positive)

    def forward(self, x=None, index=None, size=None):
        weight, scale = self.weight, self.scale
        with rows(x, index, size):
            z = pyro.sample("z", dist.Laplace(weight.new_zeros(self.latent_dim), self.spread).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.mT, scale).to_event(1), obs=x)


class Tails(Module):
    """Student's t for every row, amortised by one linear layer, so that it serves new rows."""

    def __init__(self, model, x, df=5.0):
        super().__init__()
        self.df = df
        self.layer = torch.nn.Linear(x.shape[1], 2 * model.latent_dim)

    def forward(self, x=None, index=None, size=None):
        loc, spread = self.layer(x.nan_to_num()).chunk(2, -1)
        with rows(x, index, size):
            return pyro.sample("z", dist.StudentT(self.df, loc, spread.exp()).to_event(1))


def shared_mean(x=None, index=None, size=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3, dtype=torch.float64), 10.0).to_event(1))
    with rows(x, index, size):
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def narrow(data_dim):
    return zoo.PPCA(data_dim - 1, 1)
'''
QUIET = ("--quiet", "--arviz", "none", "--steps", 30)


@pytest.fixture(scope="module")
def call():
    runner = CliRunner()

    def invoke(*given, status=0):
        before = out.width, err.width
        out.width = err.width = 300
        try:
            result = runner.invoke(app, [str(word) for word in given], env={"COLUMNS": "300"})
        finally:
            out.width, err.width = before
        assert result.exit_code == status, result.output
        return " ".join(result.output.split())

    return invoke


@pytest.fixture(scope="module")
def place(tmp_path_factory, call):
    """A folder with the file, a table with a missing entry, and a run of both classes, made from within the folder."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(FILE, encoding="utf-8")
    z = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    x = (z @ torch.ones(1, 3) + 0.5 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1))).numpy()
    pl.DataFrame(dict(zip("abc", x.T, strict=True))).write_csv(folder / "table.csv")
    given = ["fit", "mine.py:Sparse", "table.csv", "-k", "1", "--set", "spread=0.5", "--guide=mine.py:Tails"]
    given += ["--guide-set", "df=4", *map(str, QUIET), "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["zoo", *given])
        assert "Sparse with Tails on table" in call(*given)
    return folder


@pytest.fixture
def own(place):
    return "--model", f"{place}/mine.py:Sparse", "--guide", f"{place}/mine.py:Tails"


def test_a_run_says_which_classes_it_needs_and_imports_none(place, own, call, monkeypatch):
    monkeypatch.delitem(sys.modules, find_model(own[1]).__module__)
    text = call("diagnose", place / "run", status=2)
    assert "from outside of Latent Zoo, which is imported only if you name it" in text
    assert text.endswith(f"add {shlex.join(own)}")
    with pytest.raises(MustBeGiven, match=r"pass the class, or .* load\(path, model=..., guide=...\)"):
        zoo.load(place / "run")
    assert "add --guide" in call("diagnose", place / "run", "--model", "PPCA", status=2)
    assert not any(getattr(module, "__file__", None) == f"{place}/mine.py" for module in list(sys.modules.values()))


def test_the_settings_of_both_are_kept(place, own, call):
    settings = json.loads((place / "run" / "settings.json").read_text())
    assert settings["model"]["settings"] == {"data_dim": 3, "latent_dim": 1, "spread": 0.5}
    assert settings["guide"]["settings"]["df"] == 4
    assert settings["model"]["origin"]["name"] == own[1]


def test_every_command_takes_the_run(place, own, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "gap: the ELBO is at least" in call("diagnose", place / "run", *own, "--simulations", 30, "--draws", 50)
    call("transform", place / "run", *own, "--out", "scores.csv")
    assert pl.read_csv("scores.csv").columns == ["row", "factor 0", "factor 0 sd"]
    pl.DataFrame({"a": [0.5, None], "b": [0.4, 1.0], "c": [0.3, 1.2]}).write_csv("holes.csv")
    assert "x holds nan in row 1, column 0 ('a')" in call("impute", place / "run", "holes.csv", *own, status=2)
    call("generate", place / "run", *own, "-n", 5, "--out", "new.csv")
    assert pl.read_csv("new.csv").shape == (5, 3)


def test_the_report_has_commands_that_work_from_any_folder(place, own, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("report", place / "run", *own, "--out", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    first, second = (line for line in page.splitlines() if "zoo fit" in line or "zoo diagnose" in line)
    fit, judge = (shlex.split(line.split("<pre>")[-1].split("</pre>")[0]) for line in (first, second))
    assert judge == ["zoo", "diagnose", str(place / "run-again"), *own]
    assert fit[2:4] == [own[1], str(place / "table.csv")]
    assert f"--guide={own[3]}" in fit
    call(*fit[1:])
    again = zoo.load(place / "run-again", model=find_model(own[1]), guide=find_guide(own[3]))
    assert origin_of(again.model).name == own[1]


def test_sizes_are_compared(place, call, monkeypatch):
    monkeypatch.chdir(place)
    rows = ("table.csv", "-k", "1-2", "--seeds", 1, "--folds", 2, "--guide", "mine.py:Tails", "--guide-set", "df=4")
    monkeypatch.setattr("zoo.commands.select_job.select_size", _briefly)
    assert "* best by held-out log p(x)" in call("select", "mine.py:Sparse", *rows, "--set", "spread=0.5")
    assert "unknown model 'nosuch'" in call("select", "nosuch", "iris", status=2)
    text = call("select", "mine.py:Sparse", *rows[:2], "1", status=2)
    assert "Sparse has no closed-form EM: choose a guide, as --guide Amortized" in text
    assert "narrow has neither 'latent_dim' nor 'components'" in call("select", "mine.py:narrow", "iris", status=2)


def _briefly(*given, **options):
    return select_size(*given, **options, steps=20, draws=30)


def test_a_function_that_is_a_model_and_an_autoguide_by_name(place, call, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    guide = ("--guide", "pyro.infer.autoguide:AutoNormal")
    text = call("fit", "mine.py:shared_mean", "table.csv", *guide, *QUIET, "--out", tmp_path / "run")
    assert "no scores and no latent.png: a table of scores needs factors" in text
    assert not (tmp_path / "run" / "scores.csv").exists()
    own = ("--model", "mine.py:shared_mean", *guide)
    assert "convergence" in call("diagnose", tmp_path / "run", *own)
    call("generate", tmp_path / "run", *own, "-n", 5, "--out", tmp_path / "new.csv")
    assert pl.read_csv(tmp_path / "new.csv").columns == ["a", "b", "c"]


def test_an_autoguide_of_a_run_saved_in_python(call, tmp_path):
    x = zoo.data.load("iris", dtype=torch.float64).x
    model = zoo.PPCA(4, 1).double()
    zoo.fit(model, AutoNormal(model), x, steps=3, progress=False).save(tmp_path / "run")
    (tmp_path / "built.py").write_text(
        "from pyro.infer.autoguide import AutoNormal\n\ndef build(model):\n    return AutoNormal(model)\n"
    )
    for guide in ("pyro.infer.autoguide:AutoNormal", f"{tmp_path}/built.py:build"):
        assert "collapse" in call("diagnose", tmp_path / "run", "iris", "--guide", guide, "--draws", 50)
    wrong = call("diagnose", tmp_path / "run", "iris", "--guide", "pyro.infer.autoguide:AutoDelta", status=2)
    assert "got the class AutoDelta: pass --guide FILE.py:NAME, the class AutoNormal" in wrong


def test_moments_with_a_class_of_ones_own(place, call, tmp_path):
    (tmp_path / "own.py").write_text("import zoo\n\nclass Mine(zoo.PPCA): ...\n")
    (tmp_path / "r.csv").write_text("a,b,c\n1,.5,.4\n.5,1,.3\n.4,.3,1\n")
    moments = ("--moments", tmp_path / "r.csv", "--n", 100)
    assert "Mine of r.csv" in call("fit", f"{tmp_path}/own.py:Mine", *moments, "-k", 1, "--out", tmp_path / "run")
    run = zoo.load(tmp_path / "run", model=find_model(f"{tmp_path}/own.py:Mine"))
    assert type(run.model).__name__ == "Mine"
    for name in ("Sparse", "shared_mean"):
        settings = ("-k", 1) if name == "Sparse" else ()
        text = call("fit", f"{place}/mine.py:{name}", *moments, *settings, status=2)
        assert f"{name} needs the rows: --moments suffices for PPCA and FactorAnalysis" in text


def test_refusals(place, call, monkeypatch):
    monkeypatch.chdir(place)
    assert "unknown model 'nosuch'" in (text := call("fit", "nosuch", "iris", status=2))
    assert "FILE.py:NAME" in text
    assert "mine.py has no 'Spars': it defines Sparse, Tails" in call("fit", "mine.py:Spars", "iris", status=2)
    assert "gone.py does not exist" in call("fit", "gone.py:Mine", "iris", status=2)
    assert "Sparse requires 'latent_dim': pass --latent-dim" in call("fit", "mine.py:Sparse", "iris", status=2)
    both = call("fit", "PPCA", "iris", "-k", 1, "--set", "latent_dim=2", status=2)
    assert "--set gives 'latent_dim', which an option of its own gives as well" in both
    other = call("diagnose", place / "run", "--model", "PPCA", "--guide", "mine.py:Tails", status=2)
    assert "holds the model Sparse, got the class PPCA: pass --model FILE.py:NAME, the class Sparse" in other


def test_messages_on_loading_speak_of_options():
    text = "restore the file, install that version, or pass load(path, guide=...)"
    assert spoken(text, ["--model", "--guide"]) == text.replace("load(path, guide=...)", "--guide FILE.py:NAME")
