"""Readers of CSV, Parquet and NPY files."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import polars as pl

from zoo.data.table import ArrayTable, FrameTable, RowNames, Table, unreadable
from zoo.data.text import SEPARATORS, WINDOWS, FirstColumn, Format, find_encoding, find_separator, is_number

# The errors of numpy's header parser on damaged files.
NPY_ERRORS = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError)


def read_file(path: Path, how: Format | None = None) -> Table:
    """Opens the table in a file, whose format is that of its suffix.

    Args:
        path: the file.
        how: how a CSV file is written; None for what its content tells.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the format is not supported, the file is damaged or contains no table, or ``how`` is given for a
            file of another format than CSV.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unsupported suffix {path.suffix!r}, it must be one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if reader is read_csv:
        return read_csv(path, how or Format())
    if how not in (None, Format()):
        raise ValueError(f"{path}: separator, decimal and encoding are of CSV files")
    return reader(path)


def read_csv(path: Path, how: Format = Format()) -> FrameTable:  # noqa: B008 (it is frozen)
    """A CSV file with a header line; columns are read as text and parsed when used."""
    encoding = how.encoding or find_encoding(path)
    try:
        separator = how.separator or find_separator(path, encoding)
    except UnicodeError as error:
        raise unreadable(str(path), error) from error
    scanned = scan_lines(path, encoding, separator)
    options: dict[str, Any] = {"infer_schema": False, "separator": separator, "n_rows": scanned.rows}
    options |= {"new_columns": scanned.header} | ({"has_header": False, "skip_rows": 1} if scanned.shifted else {})
    if encoding.replace("_", "-").lower() in ("utf-8", "utf-8-sig", "ascii"):
        frame = pl.scan_csv(path, glob=False, **options)
    else:  # which polars does not read
        frame = pl.read_csv(io.BytesIO(path.read_text(encoding=encoding).encode()), **options).lazy()
    notes = [f"fields separated by {SEPARATORS.get(separator, repr(separator))}"] if separator != "," else []
    if encoding not in ("utf-8", "utf-8-sig"):
        notes.append(f"encoding {'Windows-1252' if encoding == WINDOWS else encoding}")
    header, rows, index = tuple(scanned.header), scanned.rows, scanned.index
    if _counting([*header]) and len(header) > 1:
        notes.append("the first line, which counts the columns, taken as their names")
    return FrameTable(frame, header, str(path), rows, how.decimal, index, tuple(notes))


@dataclass(frozen=True)
class Scanned:
    """What a pass through all lines finds: column names, data rows, and the names of the rows.

    ``shifted`` means that the header lacks a name for the first column, as R's ``write.table`` leaves it out.
    """

    header: list[str]
    rows: int
    index: RowNames | None
    shifted: bool


def scan_lines(path: Path, encoding: str, separator: str) -> Scanned:
    """A check that all rows have equal length, with what it finds.

    This pass is needed because polars silently fills short rows with nulls and renames repeated columns. Blank lines at
    the end are not counted.
    """
    rows = blank = 0
    shifted = False
    try:
        with path.open(encoding=encoding, newline="") as stream:
            lines = csv.reader(stream, strict=True, delimiter=separator)
            header = check_header([name.strip().removeprefix("\ufeff") for name in next(lines, [])], path)
            first = FirstColumn(header[0])
            for line in lines:
                if not line:
                    blank += 1
                    continue
                if blank and len(header) > 1:
                    raise ValueError(f"{path}: blank line before line {lines.line_num}")
                if not rows and len(line) == len(header) + 1:
                    shifted, first = True, FirstColumn("")
                if len(line) != len(header) + shifted:
                    raise _uneven(path, lines.line_num, len(line), len(header) + shifted, shifted)
                first.add(line[0])
                rows += blank + 1  # in a single column, a blank line is a missing value
                blank = 0
    except (csv.Error, UnicodeError) as error:
        raise unreadable(str(path), error) from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    names = first.found if len(header) + shifted > 1 else None
    if shifted:
        _check_shifted(path, header, names, first)
        header = ["", *header]
    array = None if names is None or first.counts else np.array(names)
    return Scanned(header, rows, None if names is None else RowNames(header[0], array), shifted)


def _uneven(path: Path, line: int, fields: int, known: int, shifted: bool) -> ValueError:
    """The error for a line of another length."""
    those = "the first line of data" if shifted else "the header"
    return ValueError(f"{path}: line {line} has {fields} fields, {those} has {known}")


def _check_shifted(path: Path, header: list[str], names: list[str] | None, first: FirstColumn) -> None:
    """Refuse lines with a field more than the header, unless the first names the rows.

    Raises:
        ValueError: it does not: it may hold numbers, or have empty or repeated entries.
    """
    if names is None or not (first.counts or not any(is_number(name) for name in names)):
        raise ValueError(
            f"{path}: line 2 has {len(header) + 1} fields, the header has {len(header)}, and the first of them are no "
            "names of rows: look for a separator at the end of the lines, or decimal commas"
        )


def check_header(header: list[str], path: Path) -> list[str]:
    """Refuses an empty header, repeated names, and a file without a header."""
    if not header:
        raise ValueError(f"{path} is empty: a line of column names must come first")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: column name {repeated[0]!r} appears more than once")
    if not pl.Series(header).cast(pl.Float64, strict=False).null_count() and not _counting(header):
        raise ValueError(f"{path} has no header: its first line is all numbers, put column names above it")
    return header


def _counting(header: list[str]) -> bool:
    """Whether column names count from 0 or 1, as pandas and R write them."""
    return any(header == [str(j) for j in range(first, first + len(header))] for first in (0, 1))


def read_parquet(path: Path) -> FrameTable:
    """A Parquet file, of which only the columns in use are read."""
    try:
        frame = pl.scan_parquet(path, glob=False)
        columns = tuple(frame.collect_schema().names())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise unreadable(str(path), error) from error
    if not columns:
        raise ValueError(f"{path} has no columns")
    table = FrameTable(frame, columns, str(path))
    hidden = next((name for name in columns if name.startswith("__index_level_")), None)  # as pandas writes it
    return table if hidden is None else replace(table, index=RowNames(hidden, table.text(hidden)))


def read_npy(path: Path) -> ArrayTable:
    """A numeric NPY array (n, d), mapped into memory (copy on write); its columns are named "0", "1", ..."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except NPY_ERRORS as error:  # numpy's message recommends pickle: do not repeat it
        raise ValueError(f"{path} is not a numeric NPY array: it is pickled, truncated or of another format") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an NPZ archive: save its array with numpy.save")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}, not real numbers")
    if array.ndim != 2:
        raise ValueError(f"{path} has shape {array.shape}: reshape it to two dimensions, rows x columns")
    if not array.size:
        raise ValueError(f"{path} is empty, with no {'columns' if len(array) else 'rows'}")
    return ArrayTable(array, tuple(str(j) for j in range(array.shape[1])), str(path))


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".npy": read_npy,
    ".tsv": read_csv,
}
