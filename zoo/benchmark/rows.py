"""The finished rows of a benchmark on disk, from which an interrupted benchmark resumes."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import xarray as xr
from filelock import FileLock, Timeout

from zoo.base.atomic import new_file


@contextmanager
def held(folder: str | Path) -> Iterator[Path]:
    """A block during which no other process writes to a folder; the lock ends with the process, however it ends.

    Raises:
        BlockingIOError: another benchmark writes there.
        NotADirectoryError: it is a file.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{folder} is a file: choose a folder") from None
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"another benchmark is writing to {folder}: wait for its end, or choose another folder"
        ) from None
    try:
        yield path
    finally:
        lock.release()


class Rows:
    """The rows in a folder, one line of ``rows.jsonl`` each.

    Args:
        folder: created if necessary; existing rows are read.

    Raises:
        ValueError: a line of ``rows.jsonl`` is damaged, except for an incomplete last line.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "rows.jsonl"
        self._rows: list[dict[str, Any]] = []
        if not self._log.exists():
            return
        lines = self._log.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # incomplete after an interruption: that row runs again
            del lines[-1]
            with new_file(self._log, replace=True) as partial:
                partial.write_bytes(b"".join(lines))
        for number, line in enumerate(lines, 1):
            try:
                self._rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self._log}, line {number}, is damaged ({error}): remove it") from None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, in memory and, by a single write at the end of the file, on disk."""
        line = (json.dumps(row) + "\n").encode()
        self._rows.append(row)
        file = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def write(self, markdown: Callable[[pl.DataFrame], str]) -> pl.DataFrame:
        """Write all rows as CSV, Markdown and netCDF, and return them."""
        table = pl.DataFrame(self._rows, infer_schema_length=None)
        columns = xr.Dataset({name: ("run", table[name].to_numpy()) for name in table.columns})
        with new_file(self.folder / "table.csv", replace=True) as partial:
            table.write_csv(partial)
        with new_file(self.folder / "table.md", replace=True) as partial:
            partial.write_text(markdown(table), encoding="utf-8")
        with new_file(self.folder / "table.nc", replace=True) as partial:
            columns.to_netcdf(partial, engine="h5netcdf")
        return table
