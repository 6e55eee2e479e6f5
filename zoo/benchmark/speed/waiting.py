"""Everything else that a user waits for: start-up, checks, pages, files and sizes."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import guides
import zoo
from zoo.base.module import Module
from zoo.benchmark.speed.measuring import Samples, Task, interleaved

FAMILIES = ("Exact", "MeanField", "FullRank", "Amortized")
WINGS = "guides, zoo.diagnostics, zoo.export, zoo.factors, zoo.infer, zoo.models"  # which zoo loads on first use
FIRST = ("fit", "FactorAnalysis", "holzinger", "--guide", "MeanField", "-k", "3", "--quiet")  # the README's


def tasks() -> Iterator[Task]:
    """Processes, then functions, then a file."""
    for word in ("--help", "list"):
        yield Task(f"start zoo {word}", functools.partial(_command, word), plus=1.0)
    against = "import pyro"
    yield Task("start import zoo", functools.partial(_import, "zoo"), yardstick=against, times=1.1)
    yield Task("start import of every wing", functools.partial(_import, WINGS), yardstick=against)
    for family in FAMILIES:
        yield Task(f"diagnose digits PPCA 10 {family}", functools.partial(_diagnose, family), plus=8.0)
    yield Task("report holzinger FA 3", _report, plus=6.0)
    yield Task("load digits PPCA 10", _load, plus=1.0)
    yield Task("select_size digits PPCA 1, 5, 10", _select)
    yield Task("size of the first command's ArviZ file", _file, "MB", plus=5.0)


def _python(code: str) -> None:
    """Run code in an interpreter of its own."""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def _zoo(*words: str) -> Callable[[int], None]:
    return lambda _: _python(f"from zoo.commands.main import app; app({list(words)!r})")


def _command(word: str, repeats: int) -> Samples:
    return Samples(*interleaved(_zoo(word), None, repeats))


def _import(modules: str, repeats: int) -> Samples:
    return Samples(*interleaved(lambda _: _python(f"import {modules}"), lambda _: _python("import pyro"), repeats))


def _diagnose(family: str, repeats: int) -> Samples:
    x = zoo.data.load("digits", dtype=torch.float64).x
    model = zoo.PPCA(64, 10).double()
    zoo.em(model, x)
    build: Callable[..., Module] = getattr(guides, family)
    guide = build(model) if family == "Exact" else build(model, x)
    run = zoo.fit(model, guide, x, steps=20, progress=False)
    return Samples(*interleaved(lambda _: zoo.diagnose(run, x), None, repeats))


def _report(repeats: int) -> Samples:
    x = zoo.data.load("holzinger", dtype=torch.float64)
    model = zoo.FactorAnalysis(9, 3).double()
    run = zoo.fit(model, guides.MeanField(model, x.x), x.x, progress=False)
    with tempfile.TemporaryDirectory() as home:
        places = (Path(home) / f"{number}.html" for number in range(repeats + 1))
        return Samples(*interleaved(lambda _: zoo.report.report(run, x, next(places)), None, repeats))


def _load(repeats: int) -> Samples:
    x = zoo.data.load("digits", dtype=torch.float64).x
    model = zoo.PPCA(64, 10).double()
    run = zoo.fit(model, guides.MeanField(model, x), x, steps=2, progress=False)
    with tempfile.TemporaryDirectory() as home:
        run.save(Path(home) / "run")
        return Samples(*interleaved(lambda _: zoo.load(Path(home) / "run"), None, repeats))


def _select(repeats: int) -> Samples:
    """Three sizes, two starts each, five folds."""
    x = zoo.data.load("digits", dtype=torch.float64).x

    def select(_: int) -> None:
        zoo.select_size(lambda k, rows: zoo.PPCA(64, k).double(), x, [1, 5, 10], seeds=2)

    return Samples(*interleaved(select, None, repeats))


def _file(repeats: int) -> Samples:
    """Megabytes; written once, since all repeats would write the same."""
    with tempfile.TemporaryDirectory() as home:
        _zoo(*FIRST, "--out", str(Path(home) / "run"))(0)
        return Samples([(Path(home) / "run" / "arviz.nc").stat().st_size / 1e6])
