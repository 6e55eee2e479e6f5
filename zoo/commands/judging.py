"""The commands that check a saved run: ``zoo diagnose`` and ``zoo report``."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from zoo import data
from zoo.commands.console import fail, out
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.infer.loading import load
from zoo.infer.run import Fit

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, written by zoo fit --out or Fit.save.")]
DATA = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Data set or file with its rows; by default that of zoo fit."),
]
COLOURS = {"good": "green", "careful": "yellow", "bad": "red", "unknown": "dim"}


def diagnose_(
    folder: RUN,
    source: DATA = None,
    draws: Annotated[int, typer.Option(help="Draws from the guide per row.")] = 500,
    simulations: Annotated[
        int | None,
        typer.Option(help="Simulations for the calibration; by default 500, or none with shared sites."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 unless it can be trusted.")] = False,
) -> None:
    """Check whether the posterior of a run can be trusted, with thresholds and reasons."""
    try:
        run, table = _read(folder, source)
        found = diagnose(run, table, draws=draws, simulations=simulations, seed=seed)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    if as_json:
        print(json.dumps(_plain(found), indent=2))
    else:
        _show(found)
    if strict and not found.trusted:
        raise typer.Exit(1)


def report_(
    folder: RUN,
    source: DATA = None,
    path: Annotated[Path | None, typer.Option("--out", help="Path of the page; by default RUN/report.html.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Write a self-contained HTML page on a run: verdict and reasons, figures, tables, how to reproduce it."""
    from zoo.report.page import report

    try:
        run, table = _read(folder, source)
        record = _record(folder)
        again = [record["command"]] if "command" in record else []
        again += [f"zoo diagnose {folder}" + (f" {source}" if source else "")]
        page = report(run, table, path or folder / "report.html", rerun=again, seed=seed)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    out.print(f"report written to {page}", highlight=False, soft_wrap=True)


def _record(folder: Path) -> dict[str, Any]:
    """The results that ``zoo fit`` saved with the run, if any."""
    file = folder / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _read(folder: Path, source: str | None) -> tuple[Fit, data.Dataset]:
    """A run and its rows, prepared as by ``zoo fit``.

    Raises:
        ValueError: the source of the rows is not recorded.
    """
    run = load(folder)
    how = _record(folder).get("table", {})
    source = source or how.get("source")
    if source is None:
        raise ValueError(f"{folder} does not record its rows: name them, as in zoo diagnose {folder} DATA")
    kind = getattr(torch, run.settings.get("dtype", "float64"))
    table = data.load(source, columns=how.get("columns"), labels=how.get("labels"), dtype=kind)
    seed = run.settings.get("seed", 0)
    if how.get("held_out"):
        table, _ = table.split(test=how["held_out"], seed=seed)
    if how.get("binarised"):
        drawn = torch.bernoulli(table.x, generator=torch.Generator().manual_seed(seed))
        table = dataclasses.replace(table, x=drawn)
    return run, table


def _show(found: Diagnosis) -> None:
    """Print the verdict and the findings."""
    out.print(f"[bold {COLOURS[found.level]}]{found.verdict}.[/]", highlight=False, soft_wrap=True)
    for finding in found.findings:
        advice = f" {finding.advice}." if finding.advice else ""
        out.print(
            f"  [{COLOURS[finding.level]}]{finding.level:8s}[/] [bold]{finding.check}[/]: {finding.reason}.{advice}",
            highlight=False,
            soft_wrap=True,
        )


def _plain(found: Diagnosis) -> dict[str, Any]:
    """The findings for JSON; numbers that are not finite become null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = [
        dataclasses.asdict(f) | {"value": number(f.value), "threshold": number(f.threshold)} for f in found.findings
    ]
    return {"level": found.level, "trusted": found.trusted, "verdict": found.verdict, "findings": rows}
