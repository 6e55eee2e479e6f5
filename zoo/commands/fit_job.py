"""What ``zoo fit`` does: fit, evaluate, show and write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.atomic import new_folder, refuse_taken, remove_folder
from zoo.base.threads import exactly
from zoo.commands.console import out, words
from zoo.commands.fit_asked import Parts, Rows, prepare
from zoo.commands.fit_run import run_job
from zoo.commands.fit_shown import show, show_tables
from zoo.commands.fit_written import Written, tables_of, write_folder
from zoo.export.contents import GROUPS, SMALL, check_groups
from zoo.infer.storage.files import holds_run

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
    resume: bool = False

    def checkpoint(self) -> dict[str, Any]:
        """The options of :func:`zoo.fit` that keep the fit so far beside the folder, and go on from there.

        Raises:
            ValueError: ``--resume`` is given without ``--out``.
            FileExistsError: the folder or the checkpoint exists, and ``--resume`` is not given.
        """
        if self.folder is None:
            if self.resume:
                raise ValueError("--resume needs the folder of the fit that was interrupted: give it by --out")
            return {}
        refuse_taken(self.folder)
        place = beside(self.folder)
        if place.exists() and not self.resume:
            raise FileExistsError(
                f"{place} holds a fit that was interrupted: --resume goes on with it; remove it to begin anew"
            )
        return {"checkpoint": place, "resume": self.resume}


def beside(folder: Path) -> Path:
    """Where the fit is kept until its folder is written."""
    return folder.with_name(f"{folder.name}.checkpoint")


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

    Raises:
        KeyboardInterrupt, SystemExit: a signal ended the fit.
    """
    groups = _groups(wanted.arviz)
    most = SMALL_FILE if wanted.arviz is None else LARGE_FILE
    if wanted.folder is not None and wanted.resume and holds_run(wanted.folder):
        remove_folder(beside(wanted.folder))
        out.print(f"{wanted.folder} holds the whole run: there is nothing to resume", highlight=False, soft_wrap=True)
        return
    kept = wanted.checkpoint()
    with exactly(threads):
        job = prepare(parts, rows, options | kept, seed, quiet)
        if wanted.folder is None:
            done = run_job(job)
            tables = tables_of(done, wanted.rotation, seed, scores=False)
        else:
            with new_folder(wanted.folder) as place:
                done = run_job(job)
                tables = tables_of(done, wanted.rotation, seed, scores=wanted.tables != "none")
                write_folder(job, done, tables, Written(place, groups, most, wanted.tables))
            remove_folder(beside(wanted.folder))
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
