"""Running a suite: rows, failures, resuming, other folders, processes."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import polars as pl
import pytest
import torch
from threadpoolctl import threadpool_info

from tests.benchmark import tiny
from zoo.benchmark.rows import Rows, held
from zoo.benchmark.running import run
from zoo.benchmark.suite import Case, Cell, Data, Measure, Method, Own

TIMES = ["seconds", "cpu_seconds", "total_seconds", "peak_memory", "memory_of", "date", "threads"]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_rows_hold_the_whole_protocol(tmp_path, untouched):
    with untouched():
        table = run(tiny.suite(), tmp_path)
    assert len(table) == 2 * 3 * 2
    assert table["status"].to_list() == ["done", "done", "done", "done", "refused", "refused"] * 2
    row = table.to_dicts()[0]
    assert (row["suite"], row["version"], row["budget"], row["case"]) == ("tiny", 1, "quick", "first_case")
    assert json.loads(row["case_protocol"]) == {"rows": 30}
    assert json.loads(row["method_protocol"]) == {"of": "rows"}
    assert row["torch"] == torch.__version__
    assert row["latent_zoo"]
    assert row["processor"]
    assert row["cores"] == os.cpu_count()
    assert row["device"] == "cpu"
    assert row["threads"] == torch.get_num_threads()
    assert 0 <= row["seconds"] <= row["total_seconds"]
    assert row["cpu_seconds"] >= 0
    assert row["peak_memory"] > 50  # MiB: torch alone takes more
    assert row["date"].endswith("+00:00")
    refused = table.filter(pl.col("method") == "refuses")
    assert refused["message"].str.contains("is discrete").all()
    assert refused["error"].is_nan().all()
    expected = tiny.error(tiny.mean(tiny.load(1), None), tiny.load(1), None)["error"]
    assert table.filter(method="mean", seed=1)["error"].to_list() == [float(expected)] * 2


def test_failures_are_rows_and_the_rest_goes_on(tmp_path):
    def out_of_memory(data: Data, cell: Cell) -> None:
        raise MemoryError("no room")

    extra = (Method("unlucky", tiny.fails_in_seed_1), Method("large", out_of_memory))
    table = run(tiny.suite(*extra), tmp_path, only="first")
    rows = table.filter(method="unlucky").to_dicts()
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert (rows[1]["failure"], rows[1]["message"]) == ("ArithmeticError", "no luck")
    assert rows[1]["place"].startswith("tiny.py, line ")
    assert rows[1]["place"].endswith(", in fails_in_seed_1")
    assert table.filter(method="large")["failure"].to_list() == ["MemoryError"] * 2
    assert table.filter(method="mean")["status"].to_list() == ["done"] * 2

    seen = []
    run(tiny.suite(*extra), tmp_path, only="first", report=lambda *row: seen.append(row))
    assert not seen
    mended = (Method("unlucky", tiny.mean), extra[1])
    table = run(tiny.suite(*mended), tmp_path, only="first", retry_failed=True, report=lambda *row: seen.append(row))
    assert [(row["method"], row["seed"], number, count) for row, number, count in seen] == [
        ("unlucky", 1, 1, 3),
        ("large", 0, 2, 3),
        ("large", 1, 3, 3),
    ]
    assert table.filter(method="unlucky")["status"].to_list() == ["done"] * 2
    assert len(table) == 5 * 2


def test_an_interruption_is_no_row(tmp_path):
    def interrupted(data: Data, cell: Cell) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny.suite(Method("stopped", interrupted)), tmp_path, only="first")
    assert [line["method"] for line in lines(tmp_path)] == ["mean"] * 2 + ["guess"] * 2 + ["refuses"] * 2
    assert len(run(tiny.suite(), tmp_path)) == 12  # the folder is free again


def test_measures_are_numbers_or_texts(tmp_path):
    table = run(tiny.suite(measure=lambda *_: {"error": [1.0]}), tmp_path, only="first", methods=["Mean"], seeds=1)
    assert table["message"].to_list() == ["the measure 'error' must be a number or a text, got list"]


def test_warnings_are_kept(tmp_path):
    def warn(data: Data, cell: Cell) -> torch.Tensor:
        for _ in range(2):
            warnings.warn("very\nslowly", RuntimeWarning, stacklevel=1)
        return tiny.mean(data, cell)

    table = run(tiny.suite(Method("warns", warn)), tmp_path, only="first", methods=["warns"], seeds=1)
    assert table["warnings"].to_list() == ["RuntimeWarning: very slowly"]


def test_other_folders_are_refused(tmp_path):
    run(tiny.suite(), tmp_path, seeds=1)
    case = Case("second", tiny.load, {"rows": 40})
    other = Method("mean", tiny.mean, {"of": "columns"})
    for changed, message in (
        ({"name": "small"}, "holds the benchmark 'tiny', not 'small': choose another folder"),
        ({"budget": "full"}, "holds the budget 'quick', not 'full': choose another folder, or budget='quick'"),
        ({"version": 2}, r"holds version 1 of the benchmark 'tiny' \(latent-zoo .*\), and this is version 2"),
        ({"measures": [Measure("error")]}, "with other measures or another protocol: choose another folder"),
        ({"cases": [case]}, r"the case 'second' was run under another protocol \(rows: 30 there, 40 here\)"),
        ({"methods": [other]}, r"the method 'mean' was .* \(of: rows there, columns here\): run .* by again=True"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tiny.suite(**changed), tmp_path)
    more = run(tiny.suite(Method("more", tiny.mean)), tmp_path, seeds=1)
    assert len(more) == 8  # further methods and cases are welcome
    rows = run(tiny.suite(methods=[other]), tmp_path, seeds=1, again=True)
    assert rows.filter(method="mean")["method_protocol"].to_list() == ['{"of": "columns"}'] * 2
    assert len(rows) == 8
    Rows(tmp_path / "old").append({"case": "a", "seed": 0})
    with pytest.raises(ValueError, match="rows of another version of latent-zoo"):
        run(tiny.suite(), tmp_path / "old")


def test_rows_that_have_changed_are_noticed(tmp_path):
    table = run(tiny.suite(), tmp_path, only="first", methods=["mean"], seeds=1)
    assert len(table["data"][0]) == 12
    other = Case("first_case", lambda seed: tiny.load(seed + 1), {"rows": 30})
    table = run(tiny.suite(cases=[other]), tmp_path)
    assert table.filter(seed=0)["status"].to_list() == ["done", "failed", "failed"]
    assert table.filter(seed=0)["failure"].to_list() == ["", "OtherRows", "OtherRows"]
    assert table["data"][0] in table.filter(method="guess")["message"][0]
    assert table.filter(method="guess", seed=1)["status"].to_list() == ["done"]


def test_two_at_once_are_refused(tmp_path):
    with held(tmp_path), pytest.raises(BlockingIOError, match="another benchmark is writing to"):
        run(tiny.suite(), tmp_path)


def test_refusals(tmp_path):
    refused = [
        ({}, {"only": "third"}, "only='third' in its name: choose from first_case, second"),
        ({}, {"methods": ["median"]}, "unknown method 'median': choose from 'mean', 'guess', 'refuses'"),
        ({}, {"seeds": 0}, "seeds"),
        ({}, {"seeds": []}, "at least one seed"),
        ({}, {"jobs": 0}, "jobs"),
        ({}, {"device": "gpu7"}, "device='gpu7' is not available here"),
        ({"methods": [Method("a", tiny.mean, cite=("MeanFeld",))]}, {}, "nothing to cite by the name 'MeanFeld'"),
        ({"measures": [Measure("seconds")]}, {}, "measure or coordinate 'seconds': another one, or a column"),
        ({"methods": [Method("a", tiny.mean)] * 2}, {}, "method 'a'"),
    ]
    for changed, given, message in refused:
        with pytest.raises(ValueError, match=message):
            run(tiny.suite(**changed), tmp_path, **given)
    with pytest.raises(TypeError, match="protocol of 'a' must hold plain values"):
        run(tiny.suite(methods=[Method("a", tiny.mean, {"model": torch.nn.Linear(1, 1)})]), tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: choose a folder"):
        run(tiny.suite(), tmp_path / "file")


def test_own_methods_have_names_of_their_own(tmp_path):
    suite = tiny.suite(own=lambda own: Method(own.name, tiny.mean))
    table = run(suite.with_own(Own("mean")), tmp_path, only="first", seeds=1)
    assert table["method"].to_list() == ["mean", "guess", "refuses", "mean (own)"]
    with pytest.raises(ValueError, match="'tiny' takes no model or guide of one's own"):
        tiny.suite().with_own(Own("mine"))


SCRIPT = """
import sys
from pathlib import Path
from tests.benchmark import tiny
from zoo.benchmark.running import run

run(tiny.suite(wait=0.1, log=Path(sys.argv[2])), sys.argv[1], jobs=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_twice_and_resumed_equals_an_uninterrupted_run(tmp_path, jobs):
    def begin() -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(tmp_path / "log"), str(jobs)]
        return subprocess.Popen(words, cwd=Path(__file__).parents[2])

    for count in (2, 4):
        process = begin()
        while not (tmp_path / "killed/rows.jsonl").exists() or len(lines(tmp_path / "killed")) < count:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(lines(tmp_path / "killed")) < 12
    resumed = run(tiny.suite(), tmp_path / "killed")
    whole = run(tiny.suite(), tmp_path / "whole")
    assert resumed.drop(TIMES).equals(whole.drop(TIMES), null_equal=True)
    assert len(lines(tmp_path / "killed")) == 12


def test_processes_give_the_same_rows_and_one_that_is_killed_is_a_row(tmp_path):
    def killed(data: Data, cell: Cell) -> None:
        if cell.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("alive")

    def threads(data: Data, cell: Cell) -> torch.Tensor:
        limits = {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}
        if limits != {2}:
            raise AssertionError(f"threads: {limits}")
        return tiny.mean(data, cell)

    extra = (Method("threads", threads), Method("killed", killed))
    table = run(tiny.suite(*extra), tmp_path / "two", only="first", jobs=2, threads=5)
    rows = table.filter(method="killed").to_dicts()
    assert [row["failure"] for row in rows] == ["ArithmeticError", "ProcessEnded"]
    assert "(SIGKILL(-9))" in rows[1]["message"]
    assert rows[1]["place"] == ""
    assert rows[0]["place"].startswith("test_running.py, line ")
    assert table.filter(method="threads")["status"].to_list() == ["done"] * 2, table["message"].to_list()
    assert table["threads"].to_list() == [2] * 10
    one = run(tiny.suite(), tmp_path / "one", only="first")
    both = table.filter(pl.col("method").is_in(["mean", "guess", "refuses"]))
    assert both.drop(TIMES).equals(one.drop(TIMES), null_equal=True)
