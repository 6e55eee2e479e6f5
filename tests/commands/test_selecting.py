"""``zoo select``: the table, the files, and what is refused."""

import polars as pl
import pytest
from typer.testing import CliRunner

import zoo
from zoo.commands.main import app
from zoo.commands.select_job import _numbers

runner = CliRunner()
QUICK = ["--seeds", "1", "--folds", "2"]


def select(*words):
    return runner.invoke(app, ["select", *words], env={"COLUMNS": "100"})


def test_a_scan_by_em(tmp_path):
    answer = select("GMM", "faithful", "-k", "1-3", *QUICK, "--out", str(tmp_path / "selected"))
    assert answer.exit_code == 0, answer.output
    table = pl.read_csv(tmp_path / "selected" / "selection.csv")
    assert table["value"].to_list() == [1, 2, 3]
    assert table["df"].to_list() == [5, 11, 17]  # as mclust counts them
    two = table.row(1, named=True)
    assert two["log_likelihood"] == pytest.approx(-1130.26396, abs=1e-3)
    assert "2322.19*" in answer.stdout  # the least BIC, mclust's choice
    assert "best by BIC: 2" in answer.stdout
    assert (tmp_path / "selected" / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_without_folds_there_are_criteria_alone():
    answer = select("PPCA", "iris", "-k", "1,3,4", "--seeds", "1", "--folds", "0")
    assert answer.exit_code == 0, answer.output
    assert "829.98*" in answer.stdout
    assert "best by BIC: 3, AIC: 3" in answer.stdout
    assert "held-out log p(x)" not in answer.stdout
    assert "latent_dim 4: latent_dim must be below data_dim=4" in answer.stdout


def test_a_scan_with_a_guide():
    answer = select("FactorAnalysis", "holzinger", "-k", "1", "--guide", "Exact", *QUICK)
    assert answer.exit_code == 0, answer.output
    assert "-3851.224" in answer.stdout
    assert "best by BIC: 1" in answer.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["GMM", "faithful", "-k", "two"], "--values must be numbers such as 1-6 or 1,2,5, got 'two'"),
        (["GMM", "faithful", "-k", "3-1"], "values is empty"),
        (["GMM", "faithful", "-k", "1,1"], "values holds 1 twice"),
        (["VAE", "iris", "-k", "1"], "VAE has no closed-form EM: choose a guide, as --guide Amortized"),
        (["GNM", "faithful"], "unknown model 'GNM': did you mean 'GMM'?"),
        (["GMM", "faithful", "--folds", "1"], "folds"),
        (["PPCA", "iris", "-k", "1", "--covariance", "full"], "PPCA has no setting 'covariance'"),
        (["PPCA", "iris", "-k", "1", "--guide", "MeanField", *QUICK], "MeanField has parameters only for the rows"),
    ],
)
def test_refusals(words, message):
    answer = select(*words)
    assert answer.exit_code == 2
    assert message in answer.output


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("mine")
    answer = select("PPCA", "iris", "-k", "1", "--out", str(tmp_path / "taken"))
    assert answer.exit_code == 2
    assert (tmp_path / "taken").read_text() == "mine"


def test_numbers():
    assert _numbers("1-3,5, 8") == [1, 2, 3, 5, 8]


def test_the_table_is_that_of_the_library():
    x = zoo.data.load("iris")
    answer = select("PPCA", "iris", "-k", "2", *QUICK)
    found = zoo.select_size(lambda k, rows: zoo.PPCA(4, k).double(), x.x.double(), [2], seeds=1, folds=2)
    assert f"{found[2].held_out:.4f}*" in answer.stdout
