"""The tables of ``zoo fit``, and ``zoo transform``, ``zoo impute`` and ``zoo generate``, from a run to new rows."""

import json
import shlex
import sys

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import zoo
from zoo.alignment import rotate
from zoo.alignment.canonical import to_canonical
from zoo.commands.console import err, out, spoken, words
from zoo.commands.main import app
from zoo.factors import scores

NAMES = ("a,b", "c", "d")


@pytest.fixture(scope="module")
def call():
    runner = CliRunner()

    def invoke(*given):
        before = out.width, err.width
        out.width = err.width = 200
        try:
            return runner.invoke(app, [str(word) for word in given], env={"COLUMNS": "200"})
        finally:
            out.width, err.width = before

    return invoke


def done(result):
    assert result.exit_code == 0, result.output
    return result.output


def refused(result, *parts):
    assert result.exit_code == 2, result.output
    for part in parts:
        assert part in result.output, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory, call):
    """A table with names of rows, a name with a comma, missing entries and labels; runs of two guides and a mixture."""
    folder = tmp_path_factory.mktemp("outputs")
    generator = np.random.default_rng(0)
    z = generator.normal(size=(40, 1))
    x = np.round(z @ np.ones((1, 3)) + 0.4 * generator.normal(size=(40, 3)), 3)
    frame = pl.DataFrame({"id": [f"r{i}" for i in range(40)]} | dict(zip(NAMES, x.T, strict=True)))
    frame = frame.with_columns(pl.when(pl.int_range(40) % 7 == 3).then(None).otherwise(pl.col("c")).alias("c"))
    frame = frame.with_columns(pl.Series("kind", ["u", "v"] * 20), pl.Series("note", ["x", "y"] * 20))
    frame.write_csv(folder / "table.csv")
    rows = (folder / "table.csv", "--labels", "kind", "--exclude", "note", "-k", 1, "--quiet", "--arviz", "none")
    done(call("fit", "FactorAnalysis", *rows, "--rotation", "varimax", "--out", folder / "exact"))
    done(call("fit", "PPCA", *rows, "--guide", "FullRank", "--out", folder / "held", "--tables", "parquet"))
    mixture = ("--components", 2, "--quiet", "--arviz", "none", "--out", folder / "mixture")
    done(call("fit", "GMM", "faithful", *mixture))
    return folder


def test_a_fit_writes_loadings_variance_and_scores(place):
    run, loadings = zoo.load(place / "exact"), pl.read_csv(place / "exact" / "loadings.csv")
    assert loadings.columns == ["column", "factor 0", "communality", "uniqueness", "complexity"]
    assert tuple(loadings["column"]) == NAMES
    weight, noise = to_canonical(run.model, "varimax").weight.detach().double(), run.model.noise.detach().double()
    total = noise + weight.square().sum(1)
    assert loadings["uniqueness"].to_numpy() == pytest.approx((noise / total).numpy(), abs=1e-12)
    assert loadings["factor 0"].to_numpy() == pytest.approx((weight[:, 0] / total.sqrt()).numpy(), abs=1e-10)
    variance = pl.read_csv(place / "exact" / "variance.csv")
    assert variance["cumulative"][-1] == pytest.approx(loadings["communality"].mean(), abs=1e-12)
    scores = pl.read_csv(place / "exact" / "scores.csv")
    assert scores.columns == ["row", "factor 0", "factor 0 sd", "label"]
    assert scores["row"].to_list()[:2] == ["r0", "r1"]
    assert scores["label"].to_list()[:2] == ["u", "v"]
    table = zoo.data.load(place / "table.csv", columns=NAMES, dtype=torch.float64)
    q = to_canonical(run.model, "varimax").posterior(table.x)
    assert scores["factor 0"].to_numpy() == pytest.approx(q.mean[:, 0].detach().numpy(), abs=1e-8)
    assert scores["factor 0 sd"].to_numpy() == pytest.approx(q.stddev[:, 0].detach().numpy(), abs=1e-8)
    assert json.loads((place / "exact" / "results.json").read_text())["rotation"] == "varimax"


def test_a_mixture_writes_components_and_labels(place):
    model = zoo.load(place / "mixture").model
    components = pl.read_csv(place / "mixture" / "components.csv")
    largest = int(model.weight.argmax())
    head = components.filter(pl.col("component") == 0)
    assert head["column"].to_list() == ["eruptions", "waiting"]
    assert head["mean"].to_numpy() == pytest.approx(model.mean[largest].detach().numpy())
    assert head["proportion"][0] == pytest.approx(float(model.weight.detach().max()))
    block = head.select("covariance with eruptions", "covariance with waiting").to_numpy()
    assert block[0, 1] == pytest.approx(block[1, 0])
    assert np.linalg.eigvalsh(block).min() > 0
    scores = pl.read_csv(place / "mixture" / "scores.csv")
    shares = scores.select("component 0", "component 1").to_numpy()
    assert shares.sum(1) == pytest.approx(np.ones(272))
    assert (scores["label"].to_numpy() == shares.argmax(1)).all()
    assert scores["uncertainty"].to_numpy() == pytest.approx(1 - shares.max(1), abs=1e-12)


def test_transform_uses_the_rotation_of_the_fit_and_matches_columns_by_name(place, call, tmp_path):
    done(call("transform", place / "exact", "--out", tmp_path / "own.csv"))
    assert (tmp_path / "own.csv").read_text() == (place / "exact" / "scores.csv").read_text()
    frame = pl.read_csv(place / "table.csv")
    frame.select("d", "id", "note", "c", "a,b", "kind").write_parquet(tmp_path / "shuffled.parquet")
    said = done(call("transform", place / "exact", tmp_path / "shuffled.parquet", "--out", tmp_path / "new.csv"))
    assert "ignoring 'id', 'note'" in said
    new, own = pl.read_csv(tmp_path / "new.csv"), pl.read_csv(tmp_path / "own.csv")
    assert new["factor 0"].to_numpy() == pytest.approx(own["factor 0"].to_numpy(), abs=1e-12)
    frame.drop("c", "a,b").write_csv(tmp_path / "less.csv")
    less = call("transform", place / "exact", tmp_path / "less.csv", "--out", tmp_path / "none.csv")
    refused(less, "lacks columns of the fit: 'a,b', 'c'")
    assert not (tmp_path / "none.csv").exists()


def test_a_guide_that_holds_rows_is_fitted_to_new_ones(place, call, tmp_path):
    pl.read_csv(place / "table.csv").head(9).write_csv(tmp_path / "few.csv")
    said = done(call("transform", place / "held", tmp_path / "few.csv", "--out", tmp_path / "few.parquet"))
    assert "fitting q to 9 rows, with the model held" in said
    whole = pl.read_parquet(place / "held" / "scores.parquet").head(9)
    few = pl.read_parquet(tmp_path / "few.parquet")
    assert few.columns == whole.columns
    assert few["factor 0"].to_numpy() == pytest.approx(whole["factor 0"].to_numpy(), abs=1e-6)


def test_impute_leaves_all_else_as_it_was(place, call, tmp_path):
    done(call("impute", place / "exact", "--out", tmp_path / "filled.csv", "--deviations"))
    given, filled = pl.read_csv(place / "table.csv"), pl.read_csv(tmp_path / "filled.csv")
    assert filled.columns == [*given.columns, "c sd"]
    assert filled.drop("c", "c sd").equals(given.drop("c"))
    missing = given["c"].is_null()
    assert filled.filter(~missing)["c"].equals(given.filter(~missing)["c"])  # to the last bit
    table = zoo.data.load(place / "table.csv", columns=NAMES, dtype=torch.float64)
    found = zoo.impute(zoo.load(place / "exact"), table)
    assert filled["c"].to_numpy() == pytest.approx(found.mean[:, 1].numpy(), abs=1e-12)
    assert filled["c sd"].to_numpy() == pytest.approx(found.variance[:, 1].sqrt().numpy(), abs=1e-12)


def test_generate_names_the_columns(place, call, tmp_path):
    done(call("generate", place / "exact", "-n", 7, "--seed", 3, "--out", tmp_path / "new.parquet"))
    new = pl.read_parquet(tmp_path / "new.parquet")
    assert new.shape == (7, 3)
    assert tuple(new.columns) == NAMES
    assert new.to_numpy() == pytest.approx(zoo.generate(zoo.load(place / "exact"), 7, seed=3).x.numpy())


def test_tables_are_replaced_by_force_alone(place, call, tmp_path):
    taken = tmp_path / "new.csv"
    taken.write_text("mine")
    words_ = ("generate", place / "exact", "-n", 2, "--out", taken)
    refused(call(*words_), "exists", "--force")
    assert taken.read_text() == "mine"
    done(call(*words_, "--force"))
    assert pl.read_csv(taken).height == 2
    refused(call("generate", place / "exact", "--out", tmp_path / "new.txt"), "--out", ".csv or .parquet")


def test_an_oblique_rotation_is_carried_through(call, tmp_path):
    fit = ("fit", "FactorAnalysis", "holzinger", "-k", 3, "--quiet", "--arviz", "posterior,sample_stats,constant_data")
    said = done(call(*fit, "--rotation", "oblimin", "--out", tmp_path / "run"))
    assert "Factor correlations" in said
    run, x = zoo.load(tmp_path / "run"), zoo.data.load("holzinger", dtype=torch.float64)
    found = rotate(run, "oblimin")
    loadings = pl.read_csv(tmp_path / "run" / "loadings.csv")
    factors = ["factor 0", "factor 1", "factor 2"]
    assert loadings.select(factors).to_numpy() == pytest.approx(found.pattern.numpy(), abs=1e-8)
    correlations = pl.read_csv(tmp_path / "run" / "correlations.csv").select(factors).to_numpy()
    assert correlations == pytest.approx(found.correlations.numpy(), abs=1e-8)
    table = pl.read_csv(tmp_path / "run" / "scores.csv")
    expected = scores(run, x, rotation=found)
    assert table.select(factors).to_numpy() == pytest.approx(expected.values.numpy(), abs=1e-8)
    with h5py.File(tmp_path / "run" / "arviz.nc") as file:
        z, weight = file["posterior/z"][0], file["constant_data/weight"][:]  # (s, n, k), (d, k)
        drawn = file["sample_stats/log_weight"][:]
    covariance = (weight @ found.correlations.numpy() @ weight.T) + np.diag(run.model.noise.detach().numpy())
    assert covariance == pytest.approx(zoo.alignment.covariance(run).numpy(), abs=1e-10)
    assert z.mean(0) == pytest.approx(expected.values.numpy(), abs=0.35)  # 5 standard errors of 50 draws
    assert drawn.std(1).max() < 1e-6  # q is the posterior, so that every draw has the weight log p(x)
    done(call("transform", tmp_path / "run", "--out", tmp_path / "own.csv"))
    assert (tmp_path / "own.csv").read_text() == (tmp_path / "run" / "scores.csv").read_text()


def test_a_rotation_needs_a_linear_model(call, tmp_path):
    given = ("fit", "GMM", "faithful", "--components", 2, "--quiet", "--steps", 2, "--rotation", "varimax")
    refused(call(*given), "--rotation is for linear models")


def test_messages_name_options(call):
    refused(call("fit", "PPCA", "iris", "-k", 7), "--latent-dim must be below")
    refused(call("fit", "PPCA", "iris", "-k", 2, "--steps", 0), "--steps must be")
    refused(call("fit", "PPCA", "iris", "-k", 2, "--hidden", "x"), "--hidden must be whole numbers")
    options = ["--latent-dim", "-k", "--draws", "--dtype", "--columns", "--batch-size"]
    assert spoken("x: pass dtype=torch.float64", options) == "x: pass --dtype float64"
    plain = "column 'batch_size' is empty: x has 3 columns and the draws must differ"
    assert spoken(plain, options) == plain


def test_lists_of_names():
    assert words(None) is None
    assert words("") == []
    assert words(['"a,b", c', "d"]) == ["a,b", "c", "d"]


def test_the_commands_of_a_report_work_as_printed(place, call, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    given = ["fit", "PPCA", "table.csv", "--columns", '"a,b",c', "--columns", "d", "-k", "1", "--quiet"]
    given += ["--arviz", "none", "--tables", "none", "--out", "my run"]
    monkeypatch.setattr(sys, "argv", ["zoo", *given])
    done(call(*given))
    monkeypatch.chdir(tmp_path)
    from zoo.commands.judge_job import _again
    from zoo.commands.saved import Own, Saved

    lines = [shlex.split(line) for line in _again(Saved.read(place / "my run", Own()), None)]
    assert [line[:2] for line in lines] == [["zoo", "fit"], ["zoo", "diagnose"]]
    done(call(*lines[0][1:]))
    again = zoo.load(place / "my run-again")
    assert torch.equal(again.model.weight, zoo.load(place / "my run").model.weight)
    assert lines[1] == ["zoo", "diagnose", str(place / "my run-again")]
