"""All measurements of speed as one table, which an interrupted benchmark resumes."""

import fnmatch
import math
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from threadpoolctl import threadpool_limits

from zoo.base.checks import check_whole
from zoo.base.random import seeded
from zoo.base.threads import exactly
from zoo.benchmark.rows import Rows
from zoo.benchmark.speed import fits, likelihood, mixtures, steps, waiting
from zoo.benchmark.speed.measuring import Task, Unavailable

TASKS: tuple[Task, ...] = tuple(
    task for group in (fits, mixtures, likelihood, steps, waiting) for task in group.tasks()
)
PACKAGES = {"torch": "torch", "Pyro": "pyro-ppl", "numpy": "numpy", "scikit-learn": "scikit-learn", "zoo": "latent-zoo"}
REPEATS = 5


def benchmark_speed(
    folder: str | Path,
    *,
    pattern: str | None = None,
    repeats: int = REPEATS,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    left_out: Callable[[str, str], None] = lambda name, why: None,
) -> pl.DataFrame:
    """Measure fits, steps, EM, start-up, checks and files against yardsticks and bars, on one thread.

    What is measured and its yardstick take turns in this process. Times are seconds of the processor, children
    included. Finished rows are appended to ``rows.jsonl`` in the folder and not measured again, so that an interrupted
    benchmark resumes; a new folder measures anew. At the end ``table.csv``, ``table.md`` and ``table.nc`` are written.

    Args:
        folder: for the rows and tables; created if necessary.
        pattern: measure only rows with this text in their names; with wildcards (``*``, ``?``, ``[a-c]``), only those
            whose whole name fits. In any case.
        repeats: values per row, of which the median counts.
        report: called with every new row.
        left_out: called with the name of every row that cannot be measured here, and the reason.

    Returns:
        one row per measurement; see :meth:`zoo.benchmark.speed.measuring.Task.row`, with machine, threads and versions.

    Raises:
        ValueError: no row fits ``pattern``, ``repeats`` is not a whole number of at least 1, nothing could be
            measured, or the folder holds another benchmark.
    """
    check_whole(repeats, "repeats")
    chosen = choose(pattern)
    rows = Rows(folder)
    if any("row" not in row for row in rows):
        raise ValueError(f"{folder} holds the rows of another benchmark, not of 'speed': choose another folder")
    done = {row["row"] for row in rows}
    here = surroundings()
    for task in chosen:
        if task.name in done:
            continue
        try:
            row = measure(task, repeats) | here
        except Unavailable as why:
            left_out(task.name, str(why))
            continue
        rows.append(row)
        report(row)
    if not list(rows):
        raise ValueError("none of the rows can be measured here: choose others")
    return rows.write(markdown)


def measure(task: Task, repeats: int = REPEATS) -> dict[str, Any]:
    """A row of the table, measured on one thread, torch's and BLAS's, and with random streams of its own.

    Raises:
        Unavailable: the row cannot be measured here.
    """
    with exactly(1), threadpool_limits(1), seeded(0):
        return task.row(repeats)


def choose(pattern: str | None) -> list[Task]:
    """The tasks whose names fit a pattern.

    Raises:
        ValueError: there are none.
    """
    wanted = (pattern or "").lower()
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    chosen = [task for task in TASKS if fnmatch.fnmatchcase(task.name.lower(), wanted)]
    if not chosen:
        groups = dict.fromkeys(task.name.split()[0] for task in TASKS)
        raise ValueError(f"no row fits {pattern!r}: their names begin with {', '.join(groups)}")
    return chosen


def surroundings() -> dict[str, Any]:
    """Machine, threads and versions, as columns."""
    names = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": 1,
        "versions": f"Python {platform.python_version()}, {names}",
    }


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def markdown(table: pl.DataFrame) -> str:
    """The table in Markdown, with how many bars are held, and where it was measured."""
    barred = table.filter(pl.col("held") != "-")
    held = (barred["held"] == "yes").sum()
    repeats = max(table["repeats"].to_list())
    lines = [
        f"{held} of {len(barred)} bars held. Medians of {repeats} (smallest to largest), seconds of the processor; "
        "in a bar, x is the yardstick."
    ]
    places = table.select("machine", "threads", "versions").unique(maintain_order=True)
    for place in places.iter_rows(named=True):
        lines += ["", f"{place['machine']}; {place['threads']} thread; {place['versions']}."]
    lines += ["", "| row | ours | yardstick | ratio | bar | held |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in table.iter_rows(named=True)]
    return "\n".join([*lines, ""])


def _line(row: dict[str, Any]) -> str:
    """A line of the Markdown table."""
    cells = [row["row"], _spread(row, "ours"), _spread(row, "yardstick"), _number(row["ratio"]), row["bar"]]
    wrong = row["held"] == "no" and not row["error"] <= row["tolerance"] and not math.isnan(row["tolerance"])
    return "| " + " | ".join([*cells, row["held"] + f": off by {row['error']:.1e}" * wrong]) + " |"


def _spread(row: dict[str, Any], name: str) -> str:
    """Median, smallest and largest value."""
    if math.isnan(row[name]):
        return "-"
    few = row[f"{name}_min"] == row[f"{name}_max"]
    around = "" if few else f" ({_number(row[f'{name}_min'])} to {_number(row[f'{name}_max'])})"
    return f"{_number(row[name])} {row['unit']}{around}"


def _number(value: float) -> str:
    """Three digits, without an exponent where that is short."""
    return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
