"""The command that runs the benchmarks: ``zoo benchmark``."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.console import THREADS, err, fail, out


def benchmark_(
    suite: Annotated[
        str,
        typer.Argument(help="conjugate: SVI against EM's optimum; deep: bounds on held-out rows; speed: times."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the tables, from which to resume.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; by default 5 for conjugate, 1 for deep.")] = None,
    only: Annotated[str | None, typer.Option(help="Run only cases with this text in their names.")] = None,
    guide: Annotated[list[str] | None, typer.Option(help="Run only this guide (conjugate); repeatable.")] = None,
    start: Annotated[list[str] | None, typer.Option(help="random or data (conjugate), by default both.")] = None,
    budget: Annotated[str, typer.Option(help="Budget of deep: quick, cpu, full.")] = "quick",
    device: Annotated[str | None, typer.Option(help="Device to train on (deep), e.g. cpu or cuda.")] = None,
    rows: Annotated[str | None, typer.Option(help="Measure only rows (speed) with this text or pattern (*).")] = None,
    repeats: Annotated[int, typer.Option(help="Measurements per row (speed), of which the median counts.")] = 5,
    threads: THREADS = None,
) -> None:
    """Compare with scikit-learn, published results or hand-written loops; write CSV, Markdown, netCDF."""
    try:
        if suite not in ("conjugate", "deep", "speed"):
            raise ValueError(f"unknown benchmark {suite!r}: choose 'conjugate', 'deep' or 'speed'")
        if suite == "speed" and threads not in (None, 1):
            raise ValueError("--threads is an option of conjugate and deep: speed measures on one thread")
        from zoo.base.threads import exactly

        with exactly(threads):
            if suite == "speed":
                text = _speed(folder, rows, repeats)
            elif suite == "conjugate":
                text = _conjugate(folder, _seeds(seeds, 5), only, guide, start)
            else:
                text = _deep(folder, _seeds(seeds, 1), only, budget, device)
        out.print(text, highlight=False, soft_wrap=True, markup=False)
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


def _deep(folder: Path, seeds: range, only: str | None, budget: str, device: str | None) -> str:
    from zoo.benchmark import deep

    table = deep.benchmark_deep(
        folder, seeds=seeds, budget=budget, only=only, device=device, progress=True, report=_report
    )
    return deep.markdown(table)


def _report(row: dict[str, Any]) -> None:
    """Print a line for a finished row."""
    if "method" in row:
        found = f"{row['method']:17s} {row['start']:6s} seed {row['seed']}"
        found += f"  distance {row['distance']:9.1e}  {row['steps']:6d} steps"
    else:
        found = f"{row['budget']:5s} seed {row['seed']}  IWAE-{row['draws']} {row['iwae']:.2f} (ELBO {row['elbo']:.2f})"
    err.print(f"{row['case']:26s} {found}  {row['seconds']:8.2f} s", highlight=False, soft_wrap=True)


def _measured(row: dict[str, Any]) -> None:
    """Print a line for a finished row of the benchmark of speed."""
    against = "" if math.isnan(row["ratio"]) else f"x {row['ratio']:.3g} of {row['yardstick']:.3g}, "
    found = f"{row['ours']:.3g} {row['unit']}  {against}bar {row['bar']}, held: {row['held']}"
    err.print(f"{row['row']:52s} {found}", highlight=False, soft_wrap=True, markup=False)


def _left_out(name: str, why: str) -> None:
    err.print(f"{name:52s} left out: {why}", highlight=False, soft_wrap=True, markup=False)
