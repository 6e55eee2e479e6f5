"""What ``zoo fit`` does: fit, evaluate, show and write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.atomic import new_folder
from zoo.base.threads import exactly
from zoo.commands.console import out, words
from zoo.commands.fit_asked import Parts, Rows, prepare
from zoo.commands.fit_run import run_job
from zoo.commands.fit_shown import show, show_tables
from zoo.commands.fit_written import Written, tables_of, write_folder
from zoo.export.contents import GROUPS, SMALL, check_groups

SMALL_FILE = 6e5  # numbers in the ArviZ file, at most, where no groups are given: below 5 MB
LARGE_FILE = 2e7  # where they are: some hundred megabytes


@dataclass(frozen=True)
class Outputs:
    """What is written: the folder or None, groups of the ArviZ file, the format of tables, and the rotation or None.

    The groups are names, ``"all"``, ``"none"``, or None for the default; the format is ``"csv"``, ``"parquet"`` or
    ``"none"``.
    """

    folder: Path | None
    arviz: str | None
    tables: str
    rotation: str | None


def fit_and_show(
    parts: Parts,
    rows: Rows,
    options: dict[str, Any],
    wanted: Outputs,
    *,
    seed: int,
    threads: int | None,
    quiet: bool,
) -> None:
    """Fit, print the results, and write them to a folder; see ``zoo fit --help`` for the arguments.

    Args:
        parts: model and guide.
        rows: the data.
        options: ``steps``, ``batch_size``, ``device``, ``patience`` and ``start``; None where not given.
        wanted: what is written.
        seed: of the fit.
        threads: their number; None for as many as pay.
        quiet: whether to show no progress bar.
    """
    groups = _groups(wanted.arviz)
    most = SMALL_FILE if wanted.arviz is None else LARGE_FILE
    with exactly(threads):
        job = prepare(parts, rows, options, seed, quiet)
        if wanted.folder is None:
            done = run_job(job)
            tables = tables_of(done, wanted.rotation, seed, scores=False)
        else:
            with new_folder(wanted.folder) as place:
                done = run_job(job)
                tables = tables_of(done, wanted.rotation, seed, scores=wanted.tables != "none")
                write_folder(job, done, tables, Written(place, groups, most, wanted.tables))
    show(done)
    show_tables(tables)
    if wanted.folder is not None:
        out.print(f"run written to {wanted.folder}")


def _groups(text: str | None) -> tuple[str, ...]:
    """The groups of the ArviZ file.

    Raises:
        ValueError: there is no such group.
    """
    if text is None:
        return SMALL
    return GROUPS if text == "all" else () if text == "none" else check_groups(words(text) or ())
