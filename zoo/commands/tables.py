"""Tables that the commands write: CSV or Parquet files, which appear whole or not at all."""

from pathlib import Path

import polars

from zoo.base.atomic import new_file

SUFFIXES = (".csv", ".parquet")


def check_place(path: Path, *, force: bool) -> Path:
    """Refuse a path for a table before anything is computed.

    Raises:
        ValueError: its suffix is that of no format.
        FileExistsError: it exists, and ``force`` is False.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {path} must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise FileExistsError(f"--out {path} is a folder: name a file in it")
    if path.exists() and not force:
        raise FileExistsError(f"--out {path} exists: choose another name, or replace it by --force")
    return path


def write_table(frame: polars.DataFrame, path: Path, *, force: bool = False) -> None:
    """Write a table in the format of its suffix."""
    with new_file(path, replace=force) as partial:
        if path.suffix.lower() == ".parquet":
            frame.write_parquet(partial)
        else:
            frame.write_csv(partial)
