"""The conjugate benchmark: its rows, its files, and that it resumes."""

import json
import re

import polars as pl
import pytest
import torch
import xarray as xr

from zoo.benchmark import conjugate as benchmark
from zoo.benchmark.rows import Rows


def test_rows_files_and_resuming(tmp_path):
    seen = []
    names = ("Exact", "FullRank")
    table = benchmark.benchmark_conjugate(
        tmp_path, seeds=[0], only="iris PPCA 2", guide_names=names, report=seen.append
    )
    both = [(name, start) for start in ("random", "data") for name in names]
    assert [(row["method"], row["start"]) for row in seen] == [("scikit-learn", "random"), *both]
    assert table["distance"].abs().max() < 1e-6  # scikit-learn's too, once its n - 1 is undone
    exact = table.filter(pl.col("method") == "Exact").to_dicts()[0]
    assert exact["mean_error"] < 1e-3
    assert abs(exact["gap"]) < 1e-8
    assert pl.read_csv(tmp_path / "table.csv")["case"].to_list() == ["iris PPCA 2"] * 5
    text = (tmp_path / "table.md").read_text()
    assert text.count("| iris PPCA 2 |") == 6
    assert "from random starts" in text
    assert "from the default starts" in text
    with xr.open_dataset(tmp_path / "table.nc") as stored:
        assert stored["distance"].shape == (5,)

    log = tmp_path / "rows.jsonl"
    kept = log.read_text().splitlines()
    log.write_text("\n".join(kept[:4]) + "\n")  # interrupted before the last cell
    again = []
    benchmark.benchmark_conjugate(tmp_path, seeds=[0], only="iris PPCA 2", guide_names=names, report=again.append)
    assert [(row["method"], row["start"]) for row in again] == [("FullRank", "data")]
    assert [json.loads(line)["method"] for line in log.read_text().splitlines()] == ["scikit-learn", *names, *names]


def test_guides_that_cannot_serve_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STARTS", 2)
    table = benchmark.benchmark_conjugate(tmp_path, seeds=[0], only="faithful GMM 2", guide_names=("Exact", "FullRank"))
    assert table["method"].to_list() == ["scikit-learn", "Exact", "Exact"]
    assert table["log_marginal"].max() * 272 == pytest.approx(-1130.26396, abs=1e-3)


def test_a_failed_cell_is_a_row_of_the_table(tmp_path, monkeypatch):
    best_of = benchmark.best_of

    def fail(build, *args, **kwargs):
        if isinstance(build(), tuple):  # SVI; the reference is by EM
            raise FloatingPointError("all 1 runs failed")
        return best_of(build, *args, **kwargs)

    monkeypatch.setattr(benchmark, "best_of", fail)
    table = benchmark.benchmark_conjugate(
        tmp_path, seeds=[0], only="iris PPCA 2", guide_names=("Exact",), starts=("data",)
    )
    assert table["distance"].is_nan().to_list() == [False, True]
    assert re.search(r"\| iris PPCA 2 \| \S+ \| failed \|", (tmp_path / "table.md").read_text())


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="'nothing'"):
        benchmark.benchmark_conjugate(tmp_path, only="nothing")
    with pytest.raises(ValueError, match="'Fullrank'"):
        benchmark.benchmark_conjugate(tmp_path, guide_names=("Fullrank",))
    with pytest.raises(ValueError, match="unknown start 'spectral'"):
        benchmark.benchmark_conjugate(tmp_path, starts=("spectral",))


def test_simulated_rows_are_always_the_same():
    state = torch.get_rng_state()
    assert torch.equal(benchmark.simulated(), benchmark.simulated())
    assert torch.equal(state, torch.get_rng_state())
    assert benchmark.digits().shape == (1797, 61)


def test_a_line_that_was_cut_off_runs_again(tmp_path):
    rows = Rows(tmp_path)
    rows.append({"case": "a", "seed": 0})
    rows.append({"case": "b", "seed": 0})
    log = tmp_path / "rows.jsonl"
    whole = log.read_text()
    log.write_text(whole[:-5])
    assert [row["case"] for row in Rows(tmp_path)] == ["a"]
    assert log.read_text() == whole.splitlines(keepends=True)[0]
    log.write_text(whole[:5] + "\n" + whole)
    with pytest.raises(ValueError, match="line 1, is damaged"):
        Rows(tmp_path)
