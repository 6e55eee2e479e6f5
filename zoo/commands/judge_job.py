"""What ``zoo diagnose`` and ``zoo report`` do: check a saved run."""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from zoo import data
from zoo.base.threads import exactly
from zoo.commands.console import out, visible
from zoo.commands.saved import Own, Saved
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.registry import sources
from zoo.report.page import report

COLOURS = {"good": "green", "careful": "yellow", "bad": "red", "unknown": "dim"}


def diagnosed(
    folder: Path, source: str | None, own: Own, *, draws: int, simulations: int | None, seed: int, threads: int | None
) -> Diagnosis:
    """The diagnosis of a saved run; see ``zoo diagnose --help`` for the arguments."""
    with exactly(threads):
        saved = Saved.read(folder, own)
        table = saved.table(source, "diagnose")
        return diagnose(saved.run, table, draws=draws, simulations=simulations, seed=seed)


def reported(folder: Path, source: str | None, own: Own, path: Path | None, *, seed: int, threads: int | None) -> Path:
    """The path of the page on a saved run; see ``zoo report --help`` for the arguments."""
    with exactly(threads):
        saved = Saved.read(folder, own)
        table = saved.table(source, "report")
        place, rotation = path or folder / "report.html", saved.record.get("rotation", "varimax")
        return report(saved.run, table, place, rerun=_again(saved, source), rotation=rotation, seed=seed)


def _again(saved: Saved, source: str | None) -> list[str]:
    """The commands that fit the run again, into a new folder, and diagnose it; they work from any folder."""
    folder = saved.folder.resolve()
    fresh = next(each for each in _beside(folder) if not each.exists())
    rows = [] if source is None else [_anywhere(source)]
    own = saved.own.absolute()
    tail = [*rows, *(word for role, name in own.items() for word in (f"--{role}", name))]
    if "command" not in saved.record:
        return [shlex.join(["zoo", "diagnose", str(folder), *tail])]
    words = _redirected(shlex.split(saved.record["command"]), saved.how.get("source") or saved.record.get("moments"))
    commands = [[*_named_in_full(words, own), "--out", str(fresh)], ["zoo", "diagnose", str(fresh), *tail]]
    return [shlex.join(each) for each in commands]


def _beside(folder: Path) -> Iterator[Path]:
    """Names for another run beside a folder: run-again, run-again2, ..."""
    yield folder.with_name(f"{folder.name}-again")
    yield from (folder.with_name(f"{folder.name}-again{number}") for number in itertools.count(2))


def _redirected(words: list[str], source: str | None) -> list[str]:
    """The words of a ``zoo fit`` without its ``--out``, and with the full path of its rows."""
    found: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--out":
            next(given, None)
        elif source is not None and not word.startswith("-") and Path(word).name == Path(source).name:
            found.append(source)
        elif not word.startswith("--out="):
            found.append(word)
    return found


def _named_in_full(words: list[str], own: Mapping[str, str]) -> list[str]:
    """The words of a ``zoo fit`` with the names of models and guides of one's own by role, whose files may have moved.

    >>> _named_in_full(["zoo", "fit", "m.py:A", "iris", "--guide=m.py:B"], {"model": "/w/m.py:A", "guide": "/w/m.py:B"})
    ['zoo', 'fit', '/w/m.py:A', 'iris', '--guide=/w/m.py:B']
    """
    found: list[str] = []
    for word in words:
        guide = word.startswith("--guide=") or found[-1:] == ["--guide"]
        full, text = own.get("guide" if guide else "model"), word.removeprefix("--guide=")
        same = full is not None and sources.names_source(text) and text.rpartition(":")[2] == full.rpartition(":")[2]
        found.append(word.removesuffix(text) + str(full) if same else word)
    return found


def _anywhere(source: str) -> str:
    """A data set's name, or the full path of a file."""
    return source if source in data.names() else str(Path(source).resolve())


def show(found: Diagnosis, *, as_json: bool) -> None:
    """Print the verdict and the findings, in words or as JSON."""
    if as_json:
        print(json.dumps(_plain(found), indent=2))
        return
    out.print(f"{found.verdict}.", style=f"bold {COLOURS[found.level]}", highlight=False, soft_wrap=True)
    for finding in found.findings:
        advice = f" {finding.advice}." if finding.advice else ""
        level, check = (f"{finding.level:8s}", COLOURS[finding.level]), (finding.check, "bold")
        line = Text.assemble("  ", level, " ", check, visible(f": {finding.reason}.{advice}"))
        out.print(line, highlight=False, soft_wrap=True)


def _plain(found: Diagnosis) -> dict[str, Any]:
    """The findings for JSON; numbers that are not finite become null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = [
        dataclasses.asdict(f) | {"value": number(f.value), "threshold": number(f.threshold)} for f in found.findings
    ]
    return {"level": found.level, "trusted": found.trusted, "verdict": found.verdict, "findings": rows}
