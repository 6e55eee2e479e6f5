"""The options of ``zoo benchmark``; torch is loaded once they have been read."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.console import FAILURES, GUIDE_SET, SET, THREADS, fail, out

MODEL = Annotated[
    str | None,
    typer.Option(help="A model of your own to run as a further method: FILE.py:NAME or PACKAGE.MODULE:NAME."),
]
GUIDE = Annotated[str | None, typer.Option(help="A guide of your own to run as a further method, written alike.")]


def benchmark_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of a benchmark; without one they are listed.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the tables, from which to resume.")] = None,
    budget: Annotated[str, typer.Option(help="quick: two minutes; cpu: up to an hour; full: for a GPU.")] = "quick",
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; by default the benchmark's own.")] = None,
    only: Annotated[str | None, typer.Option(help="Run only cases with this text in their names.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Run only this method; can be repeated.")] = None,
    model: MODEL = None,
    guide: GUIDE = None,
    set_: SET = None,
    guide_set: GUIDE_SET = None,
    jobs: Annotated[int, typer.Option(help="Processes that run side by side, each with its share of --threads.")] = 1,
    device: Annotated[str, typer.Option(help="Device to train on, e.g. cuda.")] = "cpu",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run methods again whose protocol has changed.")] = False,
    page: Annotated[Path | None, typer.Option(help="A further place for page.md.")] = None,
    rows: Annotated[str | None, typer.Option(help="Only for speed: rows with this text or pattern (*).")] = None,
    repeats: Annotated[int, typer.Option(help="Only for speed: measurements per row; the median counts.")] = 5,
    threads: THREADS = None,
) -> None:
    """Compare methods, yours among them, on fixed protocols; write tables for a paper, and resume where interrupted."""
    from zoo.commands import benchmark_job

    try:
        if name is None:
            text = benchmark_job.listed()
        elif folder is None:
            raise ValueError(f"say where to write: zoo benchmark {name} --out FOLDER")
        elif name == "speed":
            text = benchmark_job.speed(folder, rows, repeats, threads)
        else:
            suite = benchmark_job.chosen(name, budget, model, guide, set_, guide_set)
            text = benchmark_job.ran(
                suite,
                folder,
                page,
                seeds=seeds,
                only=only,
                methods=method,
                jobs=jobs,
                device=device,
                retry_failed=retry_failed,
                again=again,
                threads=threads,
            )
        out.print(text, highlight=False, soft_wrap=True)
    except FAILURES as error:
        fail(error)
