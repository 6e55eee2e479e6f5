"""The command ``zoo``: what it prints and writes, and what it refuses."""

import json
import re

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import zoo
from zoo.base import threads
from zoo.benchmark.suites.conjugate import reference
from zoo.commands.console import err, out
from zoo.commands.main import app
from zoo.registry import finding


@pytest.fixture
def zoo_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for console in (out, err):  # a worker of the tests has a terminal of its own width
        monkeypatch.setattr(console, "width", 200)
    runner = CliRunner()

    def call(*words):
        return runner.invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})

    return call


@pytest.fixture
def table(tmp_path):
    """A file with three columns of numbers and one of text."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(60, 1))
    x = z @ np.ones((1, 3)) + 0.3 * generator.normal(size=(60, 3))
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "kind": ["u", "v", "w"] * 20})
    frame.write_csv(tmp_path / "table.csv")
    return frame


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output, result.output


def test_list_names_everything(zoo_command):
    result = zoo_command("list")
    assert result.exit_code == 0
    for name in [*finding.models(), *finding.guide_classes(), *zoo.data.names()]:
        assert name in result.output
    assert "(site precision)" in " ".join(result.output.replace("│", " ").split())


def test_fit_writes_a_whole_run(zoo_command, tmp_path):
    result = zoo_command("fit", "ppca", "iris", "--guide", "exact", "-k", 2, "--out", "run", "--seed", 3, "--quiet")
    assert result.exit_code == 0, result.output
    assert "-404.96" in result.output  # Tipping and Bishop's maximum, found by SVI and by EM
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "parameters.safetensors",
        "settings.json",
        "results.json",
        "arviz.nc",
        "loss.png",
        "latent.png",
        "loadings.csv",
        "variance.csv",
        "scores.csv",
    }
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["training"]["seed"] == 3
    assert {"torch", "pyro-ppl", "latent-zoo"} <= set(settings["versions"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    run = zoo.load(tmp_path / "run")
    x = zoo.data.load("iris", dtype=torch.float64).x
    assert run.model.log_marginal(x).mean().item() == pytest.approx(results["log_marginal"], abs=1e-12)
    assert abs(results["distance"]) < 1e-6


@pytest.mark.parametrize("guide", ["MeanField", "Amortized"])
def test_fit_on_a_file_with_columns_and_labels(zoo_command, table, guide):
    result = zoo_command(
        "fit",
        "FactorAnalysis",
        "table.csv",
        "--columns",
        "c,a,b",
        "--labels",
        "kind",
        "-k",
        1,
        "--guide",
        guide,
        "--steps",
        50,
        "--out",
        "deep/er/run",
        "--quiet",
        "--dtype",
        "float32",
    )
    assert result.exit_code == 0, result.output
    assert zoo.load("deep/er/run").model.weight.dtype == torch.float32


def names_of(path):
    with h5py.File(path) as file:
        return set(file) - {"draw", "row", "chain"}


def test_default_guides(zoo_command, table):
    assert "PPCA with Exact" in zoo_command("fit", "PPCA", "iris", "-k", 2, "--quiet").output
    assert "GMM with Exact" in zoo_command("fit", "GMM", "faithful", "--components", 2, "--quiet").output
    vae = zoo_command("fit", "VAE", "table.csv", "--columns", "a,b,c", "-k", 1, "--steps", 2, "--quiet")
    assert "VAE with Amortized" in vae.output
    network = zoo_command("fit", "PPCA", "iris", "-k", 2, "--hidden", 4, "--steps", 2, "--quiet")
    assert "PPCA with Amortized" in network.output


def test_the_arviz_file_is_small_and_its_groups_are_chosen(zoo_command, tmp_path):
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(900, 6)))
    words = ("fit", "PPCA", tmp_path / "wide.npy", "-k", 3, "--quiet")
    small = {"posterior", "sample_stats", "observed_data", "constant_data"}
    for number, (options, expected) in enumerate(
        [
            ((), small),
            (("--arviz", "posterior,prior_predictive"), {"posterior", "prior_predictive"}),
            (("--arviz", "all"), small | {"prior", "prior_predictive", "posterior_predictive"}),
        ]
    ):
        done = zoo_command(*words, "--out", f"run{number}", *options)
        assert done.exit_code == 0, done.output
        assert names_of(tmp_path / f"run{number}" / "arviz.nc") == expected
    assert (tmp_path / "run0" / "arviz.nc").stat().st_size < 5e6
    assert zoo_command(*words, "--out", "none", "--arviz", "none").exit_code == 0
    assert not (tmp_path / "none" / "arviz.nc").exists()
    refused(zoo_command(*words, "--out", "wrong", "--arviz", "priors"), "groups has no 'priors'", "'prior'")


def test_threads(zoo_command, monkeypatch):
    seen, step = [], zoo.PPCA.em_step
    monkeypatch.setattr(zoo.PPCA, "em_step", lambda self, x: (seen.append(torch.get_num_threads()), step(self, x))[1])
    monkeypatch.setattr(threads, "PER_THREAD", 100.0)
    before = torch.get_num_threads()
    words = ("fit", "PPCA", "iris", "-k", 2, "--quiet", "--threads")
    assert zoo_command(*words, 3).exit_code == 0
    assert set(seen) == {3}
    assert torch.get_num_threads() == before
    refused(zoo_command(*words, 0), "threads must be a whole number of at least 1")
    seen.clear()
    reference.cache_clear()  # another test may have asked for it
    conjugate = ("benchmark", "conjugate", "--only", "iris PPCA", "--method", "Exact", "--seeds", 1, "--out", "bench")
    result = zoo_command(*conjugate, "--threads", 2)
    assert result.exit_code == 0
    assert "- **held**: From the default start every guide reaches EM's optimum" in result.output
    assert set(seen) == {2}
    assert torch.get_num_threads() == before
    refused(zoo_command("benchmark", "speed", "--out", "speed", "--threads", 2), "speed measures on one thread")
    refused(zoo_command(*conjugate[:6], "--guide-set", "a=1", "--out", "bench"), "settings a are given without a guide")
    refused(zoo_command("benchmark", "conjugate"), "zoo benchmark conjugate --out FOLDER")
    refused(zoo_command("benchmark", "conjugat", "--out", "bench"), "unknown benchmark 'conjugat'")
    refused(zoo_command(*conjugate, "--budget", "cpu"), "holds the budget 'quick', not 'cpu'", "--budget 'quick'")


def test_a_random_start_is_farther_from_the_optimum(zoo_command):
    steps = {}
    for start in ("data", "random"):
        done = zoo_command("fit", "PPCA", "iris", "-k", 2, "--quiet", "--start", start)
        assert done.exit_code == 0, done.output
        steps[start] = int(re.search(r"SVI: (\d+) steps", done.output)[1])
    assert steps["data"] < steps["random"]
    assert zoo_command("fit", "PPCA", "iris", "-k", 2, "--start", "spectral").exit_code == 2


def test_a_first_vae_holds_out_rows(zoo_command, tmp_path):
    done = zoo_command("fit", "VAE", "breast_cancer", "-k", 2, "--steps", 300, "--out", "run", "--quiet")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["rows"], results["held_out_rows"]) == (512, 57)
    assert sum(path.stat().st_size for path in (tmp_path / "run").iterdir()) < 6e6
    assert zoo.load(tmp_path / "run").settings["patience"] == 20
    whole = zoo_command("fit", "VAE", "breast_cancer", "-k", 2, "--steps", 3, "--patience", 0, "--quiet")
    assert "569 rows" in whole.output


def test_fit_mixture_without_folder(zoo_command, tmp_path):
    result = zoo_command("fit", "GMM", "faithful", "--components", 2, "--guide", "Exact", "--quiet")
    assert result.exit_code == 0, result.output
    assert "-1130.26" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::zoo.infer.UnboundedLikelihood")  # the collapse below
def test_a_run_that_collapses_is_written_and_says_so(zoo_command, tmp_path):
    rows = torch.cat([torch.randn(60, 2), torch.full((10, 2), 9.0)])
    pl.DataFrame(rows.numpy(), schema=["a", "b"]).write_csv(tmp_path / "equal.csv")
    result = zoo_command("fit", "GMM", "equal.csv", "--components", 2, "--out", "run", "--quiet")
    assert result.exit_code == 0, result.output
    assert "has collapsed onto 10 of the rows (rows 60, 61" in result.output
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert not found["converged"]
    assert "optimum" not in found  # there is none
    assert zoo.load(tmp_path / "run").model.log_marginal(rows).isfinite().all()


def test_dependent_columns_are_refused_by_name(zoo_command, tmp_path):
    rows = torch.randn(40, 2).double()
    pl.DataFrame(torch.cat([rows, rows.sum(1, keepdim=True)], 1).numpy()).write_csv(tmp_path / "sum.csv")
    result = zoo_command("fit", "GMM", "sum.csv", "--components", 2, "--out", "run")
    refused(result, "column 2 ('column_2') of x is a linear combination of columns 0 ('column_0'), 1 ('column_1')")


def test_vae_states_its_floor_and_its_estimator(zoo_command, table):
    result = zoo_command("fit", "VAE", "table.csv", "--columns", "a,b,c", "-k", 1, "--steps", 30, "--quiet")
    assert result.exit_code == 0, result.output
    assert "IWAE-500" in result.output
    assert "variance floor: 0.001" in result.output


@pytest.mark.parametrize(
    ("words", "hints"),
    [
        (("PCA", "iris", "-k", 2), ("unknown model 'PCA'", "PPCA")),
        (("PPCA", "iris", "-k", 2, "--guide", "MeanFeld"), ("unknown guide 'MeanFeld'", "MeanField")),
        (("PPCA", "irs", "-k", 2), ("'irs'", "'iris'")),
        (("PPCA", "iris", "-k", 0), ("--latent-dim", "at least 1")),
        (("PPCA", "iris", "-k", 4), ("--latent-dim", "below data_dim=4")),
        (("PPCA", "iris"), ("PPCA requires 'latent_dim'", "--latent-dim")),
        (("PPCA", "iris", "--components", 2), ("PPCA has no setting 'components'",)),
        (("GMM", "iris", "-k", 2), ("GMM has no setting 'latent_dim'", "components")),
        (("GMM", "iris", "--components", 151, "--guide", "Exact"), ("--components 151", "150 rows")),
        (("GMM", "iris", "--components", 2, "--guide", "FullRank"), ("'component'", "discrete", "MeanField")),
        (("GMM", "iris", "--components", 2, "--covariance", "round"), ("covariance", "'round'")),
        (("PPCA", "iris", "-k", 1, "--batch-size", 151), ("--batch-size 151", "150 rows")),
        (("PPCA", "table.csv", "-k", 1), ("kind",)),
        (("PPCA", "table.csv", "-k", 1, "--columns", "a,bb"), ("bb",)),
        (("PPCA", "absent.csv", "-k", 1), ("absent.csv",)),
        (("PPCA", "iris", "-k", 1, "--hidden", "8"), ("no setting 'hidden'",)),
        (("PPCA", "iris", "-k", 1, "--guide", "Amortized", "--hidden", "8,x"), ("hidden", "8,x")),
        (("PPCA", "iris", "-k", 1, "--device", "warp"), ("warp",)),
    ],
)
def test_refusals_name_the_way_out_and_leave_nothing(zoo_command, table, tmp_path, words, hints):
    guide = () if "--guide" in words else ("--guide", "Exact")
    result = zoo_command("fit", *words, *guide, "--out", "run", "--quiet")
    refused(result, *hints)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("a,b\n1,2\n3,nan\n5,nan\n", ("column 1", "observed")),  # single entries may be missing, not all but one
        ("a,b\n1,2\n3,inf\n5,1\n", ("row 1", "column 1")),
        ("a,b\n", ("no rows",)),
        ("a,b\n1,2\n", ("1 row",)),
        ("a,b\n1,2\n1,3\n1,5\n", ("constant column", "(0 ('a'))")),
        ("a,b\n1,2\n3", ("bad.csv",)),
    ],
)
def test_bad_tables(zoo_command, tmp_path, text, hints):
    (tmp_path / "bad.csv").write_text(text)
    result = zoo_command("fit", "FactorAnalysis", "bad.csv", "-k", 1, "--guide", "Exact", "--out", "run", "--quiet")
    refused(result, *hints)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_a_folder_with_a_run_is_not_overwritten(zoo_command, tmp_path):
    words = ("fit", "PPCA", "iris", "-k", 1, "--guide", "Exact", "--out", "run", "--quiet")
    assert zoo_command(*words).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(zoo_command(*words), "run")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_a_deep_model_with_its_options(zoo_command, tmp_path):
    folder = tmp_path / "run"
    found = zoo_command(
        *("fit", "VAE", "iris", "-k", 1, "--covariance", "scalar", "--noise", "constant"),
        *("--floor", 0.005, "--model-hidden", 8, "--patience", 3, "--steps", 300, "--quiet", "--out", folder),
    )
    assert found.exit_code == 0, found.output
    assert "held-out ELBO" in found.output
    assert "variance floor: 0.005 of each column's variance" in found.output
    kept = zoo.load(folder)
    assert (kept.model.settings["covariance"], kept.model.settings["hidden"]) == ("scalar", [8])
    results = json.loads((folder / "results.json").read_text())
    assert results["rows"] == 135
    assert results["held_out_rows"] == 15
    assert results["at_floor"] < 0.05


def test_binarised_rows(zoo_command, tmp_path):
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random((40, 6)))
    options = ("fit", "VAE", tmp_path / "grey.npy", "-k", 1, "--likelihood", "bernoulli", "--steps", 20, "--quiet")
    assert zoo_command(*options, "--binarise").exit_code == 0
    refused(zoo_command(*options), "binarise grey values")
    refused(zoo_command("fit", "VAE", "iris", "-k", 1, "--binarise", "--quiet"), "needs entries in [0, 1]")


def test_bayesian_model_is_fitted_by_coordinate_ascent(zoo_command, tmp_path):
    done = zoo_command("fit", "BayesianPCA", "iris", "--latent-dim", 1, "--out", "run")
    assert done.exit_code == 0, done.output
    assert "coordinate ascent" in done.output
    assert (tmp_path / "run" / "arviz.nc").exists()
    refused = zoo_command("fit", "BayesianPCA", "iris", "--latent-dim", 1, "--batch-size", 10)
    assert refused.exit_code != 0
    assert "--batch-size is an option of SVI" in refused.output
    refused = zoo_command("fit", "BayesianPCA", "iris", "--latent-dim", 1, "--start", "data")
    assert "--start is an option of SVI" in refused.output


def test_selects_the_size_of_a_bayesian_model(zoo_command):
    done = zoo_command("select", "BayesianPCA", "iris", "--values", "1-2", "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert "best by bound on log p(X): 2, held-out log p(x): 2;" in done.output
