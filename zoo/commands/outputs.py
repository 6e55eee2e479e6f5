"""The options of ``zoo transform``, ``zoo impute`` and ``zoo generate``; torch is loaded once they have been read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.console import FAILURES, OWN_GUIDE, OWN_MODEL, THREADS, fail
from zoo.commands.judging import RUN


class Rotation(StrEnum):
    """Rotations of the factors of a linear model, orthogonal and oblique."""

    principal = "principal"
    varimax = "varimax"
    quartimax = "quartimax"
    promax = "promax"
    oblimin = "oblimin"
    geomin = "geomin"


NEW_DATA = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Data set or file, its columns matched by name; by default that of zoo fit."),
]
OUT = Annotated[Path, typer.Option("--out", help="Path of the table, .csv or .parquet.")]
FORCE = Annotated[bool, typer.Option("--force", help="Replace the table if it exists.")]
SEED = Annotated[int, typer.Option(help="Seed of the draws.")]
ROTATION = Annotated[
    Rotation | None, typer.Option(help="Rotation of the factors of a linear model; by default that of zoo fit.")
]


def transform_(
    folder: RUN,
    source: NEW_DATA = None,
    model: OWN_MODEL = None,
    guide: OWN_GUIDE = None,
    path: OUT = Path("scores.csv"),
    rotation: ROTATION = None,
    force: FORCE = False,
    seed: SEED = 0,
    threads: THREADS = None,
) -> None:
    """Write the scores of rows: means and deviations of their factors, or components with responsibilities.

    The model stays as it is. A guide with parameters for every row is fitted anew to other rows than those of the run.
    """
    from zoo.commands import output_job
    from zoo.commands.saved import Own

    turned = rotation and rotation.value
    try:
        output_job.transform_and_write(
            folder, Own(model, guide), source, path, rotation=turned, force=force, seed=seed, threads=threads
        )
    except FAILURES as error:
        fail(error)


def impute_(
    folder: RUN,
    source: NEW_DATA = None,
    model: OWN_MODEL = None,
    guide: OWN_GUIDE = None,
    path: OUT = Path("filled.csv"),
    deviations: Annotated[
        bool, typer.Option("--deviations", help="Add the standard deviations of the entries filled in, as NAME sd.")
    ] = False,
    force: FORCE = False,
    seed: SEED = 0,
    threads: THREADS = None,
) -> None:
    """Write a table with its missing entries filled in by their means given the observed ones, all else as it was."""
    from zoo.commands import output_job
    from zoo.commands.saved import Own

    try:
        output_job.impute_and_write(
            folder, Own(model, guide), source, path, deviations=deviations, force=force, seed=seed, threads=threads
        )
    except FAILURES as error:
        fail(error)


def generate_(
    folder: RUN,
    n: Annotated[int, typer.Option("-n", help="Number of rows.")] = 100,
    path: OUT = Path("new.csv"),
    model: OWN_MODEL = None,
    guide: OWN_GUIDE = None,
    force: FORCE = False,
    seed: SEED = 0,
    threads: THREADS = None,
) -> None:
    """Write new rows drawn from a fitted model, with the column names of its data."""
    from zoo.commands import output_job
    from zoo.commands.saved import Own

    try:
        output_job.generate_and_write(folder, Own(model, guide), n, path, force=force, seed=seed, threads=threads)
    except FAILURES as error:
        fail(error)
