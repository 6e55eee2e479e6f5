"""What ``zoo transform``, ``zoo impute`` and ``zoo generate`` do: tables from a saved run."""

from pathlib import Path

import numpy as np
import polars
import torch
from torch import Tensor

from zoo import data
from zoo.base.callables import name_of, undecorated
from zoo.base.protocols import HoldsRows
from zoo.base.tables import index_column
from zoo.base.threads import exactly
from zoo.commands.console import out, tell
from zoo.commands.rotation import rotate_run
from zoo.commands.row_tables import scores_of
from zoo.commands.saved import Own, Saved
from zoo.commands.tables import check_place, write_table
from zoo.data.loading import find
from zoo.data.table import FrameTable
from zoo.factors.generation import generate
from zoo.factors.imputation import impute
from zoo.infer.new_rows import infer
from zoo.infer.run import Fit


def transform_and_write(
    folder: Path,
    own: Own,
    source: str | None,
    path: Path,
    *,
    rotation: str | None,
    force: bool,
    seed: int,
    threads: int | None,
) -> None:
    """Write the scores of rows; see ``zoo transform --help`` for the arguments."""
    check_place(path, force=force)
    with exactly(threads):
        saved, table, run = _prepared(folder, own, source, "transform", seed)
        found = rotate_run(run, table, rotation or saved.record.get("rotation"))
        scores = scores_of(run, table, found, seed=seed)
    write_table(scores, path, force=force)
    turned = "" if found is None else f" ({found.rotation} rotation)"
    out.print(f"scores of {len(scores)} rows{turned} written to {path}", highlight=False, soft_wrap=True)


def impute_and_write(
    folder: Path,
    own: Own,
    source: str | None,
    path: Path,
    *,
    deviations: bool,
    force: bool,
    seed: int,
    threads: int | None,
) -> None:
    """Write a table with its missing entries filled in; see ``zoo impute --help`` for the arguments."""
    check_place(path, force=force)
    with exactly(threads):
        saved, table, run = _prepared(folder, own, source, "impute", seed)
        missing = table.x.isnan()
        found = impute(run, table, seed=seed)
    mean, sd = found.mean.double().cpu(), found.variance.double().cpu().sqrt()
    filled = _filled(saved.source(source, "impute"), table, torch.where(missing, mean, table.x), missing)
    if deviations:
        titles = [(j, name) for j, name in enumerate(table.columns) if missing[:, j].any()]
        filled = filled.with_columns(
            polars.Series(f"{name} sd", np.where(missing[:, j], sd[:, j].numpy(), 0.0)) for j, name in titles
        )
    write_table(filled, path, force=force)
    out.print(
        f"{int(missing.sum())} of {missing.numel()} entries filled in by their means; table written to {path}",
        highlight=False,
        soft_wrap=True,
    )


def generate_and_write(
    folder: Path, own: Own, n: int, path: Path, *, force: bool, seed: int, threads: int | None
) -> None:
    """Write new rows drawn from the model; see ``zoo generate --help`` for the arguments."""
    check_place(path, force=force)
    if n < 1:
        raise ValueError(f"-n must be a whole number of at least 1, got {n}")
    with exactly(threads):
        saved = Saved.read(folder, own)
        drawn = generate(saved.run, n, seed=seed).x.double().cpu()
    if saved.columns and len(saved.columns) != drawn.shape[1]:
        raise ValueError(
            f"{name_of(saved.run.model)} draws {drawn.shape[1]} columns without data, and was fitted to "
            f"{len(saved.columns)}: its forward must know their number, such as from an argument data_dim"
        )
    names = saved.columns or tuple(f"x{j}" for j in range(drawn.shape[1]))
    write_table(polars.DataFrame(dict(zip(names, drawn.numpy().T, strict=True))), path, force=force)
    out.print(f"{n} rows drawn from the model written to {path}", highlight=False, soft_wrap=True)


def _prepared(folder: Path, own: Own, source: str | None, command: str, seed: int) -> tuple[Saved, data.Dataset, Fit]:
    """The saved run, the rows, and a run that serves them, whose q is new where the guide holds other rows."""
    saved = Saved.read(folder, own)
    table = saved.new_table(saved.source(source, command))
    tell(table)
    run = saved.run
    guide = undecorated(run.guide)
    same = source is None and isinstance(guide, HoldsRows) and guide.count == len(table)
    if isinstance(guide, HoldsRows) and not same:
        out.print(f"fitting q to {len(table)} rows, with the model held", highlight=False, soft_wrap=True)
    return saved, table, run if same else infer(run, table, seed=seed)


def _filled(source: str, table: data.Dataset, x: Tensor, missing: Tensor) -> polars.DataFrame:
    """The table as it came, with the columns that had missing entries replaced by the rows ``x`` (n, d).

    All columns of a file are kept, in their order. Where the file has decimal commas, all numbers are written anew, so
    that one table has one decimal mark.
    """
    read = find(source)[1].read()
    values = x.numpy()
    if not isinstance(read, FrameTable):
        return polars.DataFrame(index_column(table.index) | dict(zip(table.columns, values.T, strict=True)))
    frame = read.frame.collect()
    anew = "decimal commas" in table.notes
    return frame.with_columns(
        polars.Series(name, values[:, j]) for j, name in enumerate(table.columns) if anew or missing[:, j].any()
    )
