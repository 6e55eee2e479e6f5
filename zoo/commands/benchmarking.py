"""The command that runs the benchmarks: ``zoo benchmark``."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.console import THREADS, err, fail, out

OLD = ("conjugate", "speed")


def benchmark_(
    suite: Annotated[
        str,
        typer.Argument(help="conjugate: SVI against EM's optimum; speed: times; deep, aevb, iwae and others."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the tables, from which to resume.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; by default the benchmark's own.")] = None,
    only: Annotated[str | None, typer.Option(help="Run only cases with this text in their names.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Run only this method; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that run cells side by side.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells again that failed.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run methods again whose protocol has changed.")] = False,
    guide: Annotated[list[str] | None, typer.Option(help="Run only this guide (conjugate); repeatable.")] = None,
    start: Annotated[list[str] | None, typer.Option(help="random or data (conjugate), by default both.")] = None,
    budget: Annotated[str, typer.Option(help="quick: minutes; cpu: up to an hour; full: for a GPU.")] = "quick",
    page: Annotated[Path | None, typer.Option(help="A further place for page.md, e.g. notebooks/iwae.md.")] = None,
    device: Annotated[str | None, typer.Option(help="Device to train on, e.g. cpu or cuda.")] = None,
    rows: Annotated[str | None, typer.Option(help="Measure only rows (speed) with this text or pattern (*).")] = None,
    repeats: Annotated[int, typer.Option(help="Measurements per row (speed), of which the median counts.")] = 5,
    threads: THREADS = None,
) -> None:
    """Compare with scikit-learn, published results or hand-written loops; write CSV, Markdown, netCDF."""
    try:
        if suite == "speed" and threads not in (None, 1):
            raise ValueError("--threads is an option of the other benchmarks: speed measures on one thread")
        from zoo.base.threads import exactly

        with exactly(threads):
            if suite not in OLD:
                from zoo.benchmark.named import named_suite
                from zoo.benchmark.running import run
                from zoo.benchmark.writing import write

                chosen = named_suite(suite, budget)
                found = run(
                    chosen,
                    folder,
                    seeds=seeds,
                    only=only,
                    methods=method,
                    jobs=jobs,
                    device=device or "cpu",
                    retry_failed=retry_failed,
                    again=again,
                    report=_cell,
                )
                out.print(str(write(chosen, found, folder, page)), highlight=False, soft_wrap=True)
                return
            if suite == "speed":
                text = _speed(folder, rows, repeats)
            else:
                text = _conjugate(folder, _seeds(seeds, 5), only, guide, start)
        out.print(text, highlight=False, soft_wrap=True)
    except (ValueError, FloatingPointError, OSError) as error:
        fail(error)


def _seeds(given: int | None, default: int) -> range:
    count = default if given is None else given
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    return range(count)


def _speed(folder: Path, rows: str | None, repeats: int) -> str:
    from zoo.benchmark.speed.suite import benchmark_speed, markdown

    return markdown(benchmark_speed(folder, pattern=rows, repeats=repeats, report=_measured, left_out=_left_out))


def _conjugate(folder: Path, seeds: range, only: str | None, guide: list[str] | None, start: list[str] | None) -> str:
    from zoo.benchmark import conjugate

    names, starts = tuple(guide or conjugate.GUIDES), tuple(start or conjugate.BOTH)
    table = conjugate.benchmark_conjugate(
        folder,
        seeds=seeds,
        only=only,
        guide_names=names,
        starts=starts,  # type: ignore[arg-type]  # which refuses other words
        report=_report,
    )
    return conjugate.markdown(table)


def _report(row: dict[str, Any]) -> None:
    """Print a line for a finished row."""
    found = f"{row['method']:17s} {row['start']:6s} seed {row['seed']}"
    found += f"  distance {row['distance']:9.1e}  {row['steps']:6d} steps"
    err.print(f"{row['case']:26s} {found}  {row['seconds']:8.2f} s", highlight=False, soft_wrap=True)


def _cell(row: dict[str, Any], number: int, count: int) -> None:
    """Print a line for a finished cell of a suite."""
    last = row["points"][-1] if row["points"] else {}
    values = "  ".join(f"{name} {value:.5g}" for name, value in last.items() if not isinstance(value, str))
    found = (
        values if row["status"] == "done" else f"{row['status']}: {row['failure']}: {row['message']} ({row['place']})"
    )
    head = f"{number}/{count} {row['case']}, {row['method']}, seed {row['seed']}"
    err.print(f"{head}: {found}  {row['seconds']:.2f} s", highlight=False, soft_wrap=True)


def _measured(row: dict[str, Any]) -> None:
    """Print a line for a finished row of the benchmark of speed."""
    against = "" if math.isnan(row["ratio"]) else f"x {row['ratio']:.3g} of {row['yardstick']:.3g}, "
    found = f"{row['ours']:.3g} {row['unit']}  {against}bar {row['bar']}, held: {row['held']}"
    err.print(f"{row['row']:52s} {found}", highlight=False, soft_wrap=True)


def _left_out(name: str, why: str) -> None:
    err.print(f"{name:52s} left out: {why}", highlight=False, soft_wrap=True)
