"""The benchmark of speed: its bars, its rows, its files, and that it resumes."""

import math

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from zoo.benchmark.rows import Rows
from zoo.benchmark.speed import likelihood, measuring, steps, suite
from zoo.benchmark.speed.measuring import Samples, Task
from zoo.commands.main import app


def task(name="a task", ours=(1.0, 3.0, 2.0), yardstick=(), error=math.nan, **bar):
    return Task(name, lambda repeats: Samples(ours[:repeats], yardstick[:repeats], error), **bar)


@pytest.mark.parametrize(
    ("given", "held", "words"),
    [
        (task(), "-", "-"),
        (task(plus=2.0), "yes", "2 s"),
        (task(plus=1.9), "no", "1.9 s"),
        (task(yardstick=(1.0, 1.0, 4.0), times=1.0), "yes", "1 x"),  # ratios 1, 3 and 0.5
        (task(yardstick=(1.0, 1.0, 4.0), times=0.99), "no", "0.99 x"),
        (task(yardstick=(0.5, 0.5, 0.5), times=3.0, plus=0.5), "yes", "3 x + 0.5 s"),
        (task(yardstick=(0.5, 0.5, 0.5), times=3.0, plus=0.4), "no", "3 x + 0.4 s"),
        (task(plus=2.0, error=1e-9, tolerance=1e-8), "yes", "2 s"),
        (task(plus=2.0, error=1e-7, tolerance=1e-8), "no", "2 s"),
        (task(plus=2.0, tolerance=1e-8), "no", "2 s"),
    ],
)
def test_bars(given, held, words):
    row = given.row(3)
    assert (row["held"], row["bar"]) == (held, words)
    assert (row["ours_min"], row["ours"], row["ours_max"]) == (1.0, 2.0, 3.0)
    assert math.isnan(row["ratio"]) == math.isnan(row["yardstick"])


def test_turns_are_taken_and_those_to_warm_up_do_not_count(monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(measuring, "processor_seconds", lambda: now[0])

    def call(name, seconds):
        def called(turn):
            seen.append((name, turn))
            now[0] += seconds

        return called

    mine, other = measuring.interleaved(call("ours", 2.0), call("theirs", 3.0), 2, warm_up=1, scale=10.0)
    assert mine == [20.0, 20.0]
    assert other == [30.0, 30.0]
    assert seen == [(name, turn) for turn in (0, 0, 1) for name in ("ours", "theirs")]


def test_seconds_of_children_count():
    took = measuring.clock(lambda: suite.waiting._python("sum(range(20_000_000))"))
    assert took > 0.1


def test_rows_files_and_resuming(tmp_path):
    state = torch.get_rng_state()
    words = ["benchmark", "speed", "--rows", "FIT iris PPCA 1 Exact", "--repeats", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert torch.equal(state, torch.get_rng_state())
    table = pl.read_csv(tmp_path / "table.csv")
    assert table["row"].to_list() == ["fit iris PPCA 1 Exact", "fit iris PPCA 1 Exact, random start"]
    assert table["threads"].to_list() == [1, 1]
    assert (table["ours"] > 0).all()
    assert (table["yardstick"] > 0).all()
    assert (table["error"].abs() < table["tolerance"]).all()
    text = (tmp_path / "table.md").read_text()
    assert "of 1 bars held. Medians of 2" in text
    assert f"torch {torch.__version__}" in text
    assert "| fit iris PPCA 1 Exact |" in text
    assert (tmp_path / "table.nc").exists()

    log = tmp_path / "rows.jsonl"
    first = log.read_text().splitlines(keepends=True)[0]
    log.write_text(first + '{"row": "fit ir')  # killed while the second was written
    again = []
    suite.benchmark_speed(tmp_path, pattern="fit iris PPCA 1 E*", repeats=2, report=again.append)
    assert [row["row"] for row in again] == ["fit iris PPCA 1 Exact, random start"]
    assert log.read_text().startswith(first)


def test_rows_that_cannot_be_measured_are_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv(likelihood.FREY, raising=False)
    why = {}
    monkeypatch.setattr(suite, "TASKS", (task("em other", plus=3.0), *likelihood.tasks()))
    table = suite.benchmark_speed(tmp_path, pattern="em [of][tr]*", left_out=why.__setitem__)
    assert table["row"].to_list() == ["em other"]
    assert why == {"em Frey faces PPCA 20": "set ZOO_FREY_FACES to the path of frey_faces.npz"}
    with pytest.raises(ValueError, match="none of the rows can be measured here"):
        suite.benchmark_speed(tmp_path / "new", pattern="Frey")


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no row fits 'nothing': their names begin with fit, em_step, sweep, em, step"):
        suite.benchmark_speed(tmp_path, pattern="nothing")
    with pytest.raises(ValueError, match="repeats"):
        suite.benchmark_speed(tmp_path, repeats=0)


def test_a_wrong_result_is_shown():
    off = task("off", plus=2.0, error=1e-3, tolerance=1e-8).row(3) | suite.surroundings()
    slow = task("slow", plus=1.0, yardstick=(1.0, 1.0, 1.0)).row(3) | suite.surroundings()
    text = suite.markdown(pl.DataFrame([off, slow]))
    assert "| off | 2 s (1 to 3) | - | - | 2 s | no: off by 1.0e-03 |" in text
    assert "| slow | 2 s (1 to 3) | 1 s | 2 | 1 s | no |" in text
    assert "0 of 2 bars held" in text


def test_names_are_unique_and_all_groups_are_there():
    names = [task.name for task in suite.TASKS]
    assert len(set(names)) == len(names)
    fits = [name for name in names if name.startswith("fit ")]
    assert len(fits) == 2 * (14 * 5 - 3)  # FullRank has no discrete sites


@pytest.mark.parametrize("build", [steps.vae, steps.binary_vae, lambda: steps.ppca(True), lambda: steps.ppca(False)])
def test_steps_take_turns_with_a_loop_by_hand(build):
    torch.manual_seed(0)
    loop = build()
    before = [p.clone() for p in loop.model.parameters()]
    ours, theirs = steps.step_times(loop, steps=3, warm_up=1)
    assert ours > 0
    assert theirs > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_break_even_of_a_recorded_graph():
    assert steps.break_even(lambda: steps.ppca(True), steps=8, warm_up=2) > 0


def test_a_million_rows_are_always_the_same():
    x = likelihood.million_rows(50, 4, 2)
    assert x.shape == (50, 4)
    assert torch.equal(x, likelihood.million_rows(50, 4, 2))


def test_a_folder_of_another_benchmark_is_refused(tmp_path):
    Rows(tmp_path).append({"suite": "gaps", "case": "iris"})
    with pytest.raises(ValueError, match="holds the rows of another benchmark, not of 'speed'"):
        suite.benchmark_speed(tmp_path)
