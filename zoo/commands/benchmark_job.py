"""Runs a benchmark for ``zoo benchmark``, and says how it goes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.benchmark.named import SUITES, named_suite
from zoo.benchmark.owning import own_named
from zoo.benchmark.running import run
from zoo.benchmark.speed.suite import benchmark_speed, markdown
from zoo.benchmark.suite import Suite
from zoo.benchmark.writing import write
from zoo.commands.console import err
from zoo.registry.making import settings_of


def listed() -> str:
    """The benchmarks, and what each asks."""
    lines = [f"{name:12s} {named_suite(name).question}" for name in SUITES]
    lines.append("speed        How fast are fits, EM and steps, beside scikit-learn and hand-written loops?")
    return "\n".join([*lines, "", "zoo benchmark NAME --out FOLDER runs one; zoo benchmark --help has the options"])


def chosen(
    name: str,
    budget: str,
    model: str | None,
    guide: str | None,
    set_: Sequence[str] | None,
    guide_set: Sequence[str] | None,
) -> Suite:
    """The suite of a name, with the user's model and guide.

    Raises:
        ValueError: there is no such suite or budget, or it does not take what is given.
    """
    if name not in SUITES:
        raise ValueError(f"unknown benchmark {name!r}: choose from {', '.join([*SUITES, 'speed'])}")
    suite = named_suite(name, budget)
    settings, of_guide = settings_of(set_), settings_of(guide_set, "--guide-set")
    if model is None and guide is None and not settings and not of_guide:
        return suite
    return suite.with_own(own_named(model, guide, settings=settings, guide_settings=of_guide))


def ran(suite: Suite, folder: Path, page: Path | None, **options: Any) -> str:
    """The tables and claims, after the cells that were left are run and everything is written."""
    table = run(suite, folder, report=_cell, **options)
    found = write(suite, table, folder, page)
    versions = table["latent_zoo"].unique().sort().to_list()
    if len(versions) > 1:
        err.print(f"note: the rows are of several versions of latent-zoo: {', '.join(versions)}", highlight=False)
    cells = table.unique(["case", "method", "seed"])
    failed = (cells["status"] == "failed").sum()
    way = f"; {failed} of {len(cells)} cells failed: page.md says why, and --retry-failed runs them again" * bool(
        failed
    )
    return f"{found}\n\nwritten to {folder}{way}"


def speed(folder: Path, rows: str | None, repeats: int, threads: int | None) -> str:
    """The table of ``zoo benchmark speed``."""
    if threads not in (None, 1):
        raise ValueError("--threads is an option of the other benchmarks: speed measures on one thread")
    return markdown(benchmark_speed(folder, pattern=rows, repeats=repeats, report=_measured, left_out=_left_out))


def _cell(row: dict[str, Any], number: int, count: int) -> None:
    """Print a line for a finished cell of a suite."""
    last = row["points"][-1] if row["points"] else {}
    values = "  ".join(f"{name} {value:.5g}" for name, value in last.items() if not isinstance(value, str))
    where = f" ({row['place']})" if row["place"] and row["status"] == "failed" else ""
    found = values if row["status"] == "done" else f"{row['status']}: {row['failure']}: {row['message']}{where}"
    head = f"{number}/{count} {row['case']}, {row['method']}, seed {row['seed']}"
    _say(f"{head}: {found}  {row['seconds']:.2f} s")


def _measured(row: dict[str, Any]) -> None:
    """Print a line for a finished row of the benchmark of speed."""
    against = "" if math.isnan(row["ratio"]) else f"x {row['ratio']:.3g} of {row['yardstick']:.3g}, "
    found = f"{row['ours']:.3g} {row['unit']}  {against}bar {row['bar']}, held: {row['held']}"
    _say(f"{row['row']:52s} {found}")


def _left_out(name: str, why: str) -> None:
    _say(f"{name:52s} left out: {why}")


def _say(line: str) -> None:
    err.print(line, highlight=False, soft_wrap=True)
