"""``zoo fit --moments``: a covariance matrix in a file in place of rows."""

import json

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import zoo
from zoo.commands.console import err, out
from zoo.commands.main import app


@pytest.fixture
def zoo_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for console in (out, err):
        monkeypatch.setattr(console, "width", 200)
    x = zoo.data.load("holzinger", dtype=torch.float64)
    frame = pl.DataFrame(torch.cov(x.x.T).numpy(), schema=list(x.columns))
    frame.write_csv(tmp_path / "R.csv")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_fit_a_matrix(zoo_command, tmp_path):
    done = zoo_command("fit", "FactorAnalysis", "--moments", "R.csv", "--n", 301, "-k", 3, "--out", "run")
    assert done.exit_code == 0, done.output
    assert "converged" in done.output
    assert "x9" in done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = zoo.em(zoo.FactorAnalysis(9, 3).double(), zoo.data.load("holzinger", dtype=torch.float64).x)
    assert results["log_likelihood"] == pytest.approx(float(rows[-1]), abs=1e-6)
    table = pl.read_csv(tmp_path / "run" / "loadings.csv")
    factors = ["factor 0", "factor 1", "factor 2"]
    assert table.columns == ["column", *factors, "communality", "uniqueness", "complexity"]
    assert results["chi_square"] == pytest.approx(22.8967, abs=1e-3)
    assert "RMSEA 0.0549 (90% interval 0.0174 to 0.0888)" in done.output
    assert "SS loadings" in done.output
    assert table["column"].to_list() == [f"x{j}" for j in range(1, 10)]
    assert isinstance(zoo.load(tmp_path / "run").model, zoo.FactorAnalysis)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FactorAnalysis", "--moments", "R.csv", "-k", 2], "--moments needs --n"),
        (["FactorAnalysis", "iris", "--moments", "R.csv", "--n", 301, "-k", 2], "DATA needs rows"),
        (["FactorAnalysis", "--moments", "R.csv", "--n", 301, "-k", 2, "--guide", "Exact"], "--guide needs rows"),
        (["GMM", "--moments", "R.csv", "--n", 301, "--components", 2], "GMM needs the rows"),
        (["FactorAnalysis", "-k", 2], "DATA is missing"),
        (["FactorAnalysis", "iris", "--n", 150, "-k", 2], "--n is the number of rows behind --moments"),
    ],
)
def test_what_does_not_fit_a_matrix_is_refused(words, message, zoo_command):
    done = zoo_command("fit", *words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert message in done.output
