"""The command that runs the benchmarks: ``zoo benchmark``."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.console import err, fail, out


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
) -> None:
    """Compare with scikit-learn, published results or hand-written loops; write CSV, Markdown, netCDF."""
    try:
        if suite not in ("conjugate", "deep", "speed"):
            raise ValueError(f"unknown benchmark {suite!r}: choose 'conjugate', 'deep' or 'speed'")
        if suite == "speed":
            from zoo.benchmark.speed.suite import benchmark_speed
            from zoo.benchmark.speed.suite import markdown as of_speed

            measured = benchmark_speed(folder, pattern=rows, repeats=repeats, report=_measured, left_out=_left_out)
            out.print(of_speed(measured), highlight=False, soft_wrap=True, markup=False)
            return
        from zoo.benchmark import conjugate, deep

        count = {"conjugate": 5, "deep": 1}[suite] if seeds is None else seeds
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}")
        if suite == "conjugate":
            names = tuple(guide or conjugate.GUIDES)
            starts: Any = tuple(start or conjugate.BOTH)
            table = conjugate.benchmark_conjugate(
                folder, seeds=range(count), only=only, guide_names=names, starts=starts, report=_report
            )
            text = conjugate.markdown(table)
        else:
            table = deep.benchmark_deep(
                folder, seeds=range(count), budget=budget, only=only, device=device, progress=True, report=_report
            )
            text = deep.markdown(table)
        out.print(text, highlight=False, soft_wrap=True, markup=False)
    except (ValueError, FloatingPointError, OSError) as error:
        fail(error)


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
