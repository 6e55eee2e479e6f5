"""The options of ``zoo diagnose`` and ``zoo report``; torch is loaded once they have been read."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.console import FAILURES, OWN_GUIDE, OWN_MODEL, THREADS, fail, out

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, written by zoo fit --out or Fit.save.")]
DATA = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Data set or file with its rows; by default that of zoo fit."),
]


def diagnose_(
    folder: RUN,
    source: DATA = None,
    model: OWN_MODEL = None,
    guide: OWN_GUIDE = None,
    draws: Annotated[int, typer.Option(help="Draws from the guide per row.")] = 500,
    simulations: Annotated[
        int | None,
        typer.Option(help="Simulations for the calibration; by default 500, or none with shared sites."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 unless it can be trusted.")] = False,
    threads: THREADS = None,
) -> None:
    """Check whether the posterior of a run can be trusted, with thresholds and reasons."""
    from zoo.commands import judge_job
    from zoo.commands.saved import Own

    own = Own(model, guide)
    try:
        found = judge_job.diagnosed(
            folder, source, own, draws=draws, simulations=simulations, seed=seed, threads=threads
        )
    except FAILURES as error:
        fail(error)
    judge_job.show(found, as_json=as_json)
    if strict and not found.trusted:
        raise typer.Exit(1)


def report_(
    folder: RUN,
    source: DATA = None,
    model: OWN_MODEL = None,
    guide: OWN_GUIDE = None,
    path: Annotated[Path | None, typer.Option("--out", help="Path of the page; by default RUN/report.html.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    threads: THREADS = None,
) -> None:
    """Write a self-contained HTML page on a run: verdict and reasons, figures, tables, how to reproduce it."""
    from zoo.commands import judge_job
    from zoo.commands.saved import Own

    own = Own(model, guide)
    try:
        page = judge_job.reported(folder, source, own, path, seed=seed, threads=threads)
    except FAILURES as error:
        fail(error)
    out.print(f"report written to {page}", highlight=False, soft_wrap=True)
