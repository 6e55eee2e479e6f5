"""The finished rows of a benchmark on disk, from which an interrupted benchmark resumes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import xarray as xr

from zoo.base.atomic import new_file


class Rows:
    """The rows in a folder: ``rows.jsonl`` row by row; ``table.csv``, ``table.md`` and ``table.nc`` at the end.

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
        lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines):
            try:
                self._rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines) - 1:  # incomplete after an interruption: that row runs again
                    with new_file(self._log, replace=True) as partial:
                        partial.write_text("".join(lines[:-1]), encoding="utf-8")
                    break
                raise ValueError(f"{self._log}, line {number + 1}, is damaged ({error}): remove it") from None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, in memory and on disk."""
        self._rows.append(row)
        with self._log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

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
