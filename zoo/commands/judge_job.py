"""What ``zoo diagnose`` and ``zoo report`` do: check a saved run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch

from zoo import data
from zoo.base.threads import exactly
from zoo.commands.console import out
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.infer.loading import load
from zoo.infer.run import Fit
from zoo.report.page import report

COLOURS = {"good": "green", "careful": "yellow", "bad": "red", "unknown": "dim"}


def diagnosed(
    folder: Path, source: str | None, *, draws: int, simulations: int | None, seed: int, threads: int | None
) -> Diagnosis:
    """The diagnosis of a saved run; see ``zoo diagnose --help`` for the arguments."""
    with exactly(threads):
        run, table = _read(folder, source)
        return diagnose(run, table, draws=draws, simulations=simulations, seed=seed)


def reported(folder: Path, source: str | None, path: Path | None, *, seed: int, threads: int | None) -> Path:
    """The path of the page on a saved run; see ``zoo report --help`` for the arguments."""
    with exactly(threads):
        run, table = _read(folder, source)
        record = _record(folder)
        again = [record["command"]] if "command" in record else []
        again += [f"zoo diagnose {folder}" + (f" {source}" if source else "")]
        return report(run, table, path or folder / "report.html", rerun=again, seed=seed)


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


def show(found: Diagnosis, *, as_json: bool) -> None:
    """Print the verdict and the findings, in words or as JSON."""
    if as_json:
        print(json.dumps(_plain(found), indent=2))
        return
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
