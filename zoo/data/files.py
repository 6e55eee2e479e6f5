"""Readers of CSV, Parquet and NPY files."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError

import numpy as np
import polars as pl

from zoo.data.table import ArrayTable, FrameTable, Table, unreadable

# The errors of numpy's header parser on damaged files.
NPY_ERRORS = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError)


def read_file(path: Path) -> Table:
    """Opens the table in a file, whose format is that of its suffix.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the format is not supported, or the file is damaged or contains no table.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unsupported suffix {path.suffix!r}, it must be one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return reader(path)


def read_csv(path: Path) -> FrameTable:
    """A CSV file with a header line; columns are read as text and parsed when used."""
    header, rows = scan_lines(path)
    frame = pl.scan_csv(path, infer_schema=False, new_columns=header, n_rows=rows, glob=False)
    return FrameTable(frame, tuple(header), str(path), rows)


def scan_lines(path: Path) -> tuple[list[str], int]:
    """The column names and the number of data rows, after a check that all rows have equal length.

    This pass is needed because polars silently fills short rows with nulls and renames repeated columns. Blank lines at
    the end are not counted.
    """
    rows = blank = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = check_header([name.strip() for name in next(lines, [])], path)
            for line in lines:
                if not line:
                    blank += 1
                    continue
                if blank and len(header) > 1:
                    raise ValueError(f"{path}: blank line before line {lines.line_num}")
                if len(line) != len(header):
                    raise ValueError(
                        f"{path}: line {lines.line_num} has {len(line)} fields, the header has {len(header)}"
                    )
                rows += blank + 1  # in a single column, a blank line is a missing value
                blank = 0
    except (csv.Error, UnicodeDecodeError) as error:
        raise unreadable(str(path), error) from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    return header, rows


def check_header(header: list[str], path: Path) -> list[str]:
    """Refuses an empty header, repeated names, and a file without a header."""
    if not header:
        raise ValueError(f"{path} is empty: a line of column names must come first")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: column name {repeated[0]!r} appears more than once")
    numbers = pl.Series(header).cast(pl.Float64, strict=False)
    if not numbers.null_count() and any(not name.isdigit() for name in header):
        raise ValueError(f"{path} has no header: its first line is all numbers, put column names above it")
    return header


def read_parquet(path: Path) -> FrameTable:
    """A Parquet file, of which only the columns in use are read."""
    try:
        frame = pl.scan_parquet(path, glob=False)
        columns = tuple(frame.collect_schema().names())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise unreadable(str(path), error) from error
    if not columns:
        raise ValueError(f"{path} has no columns")
    return FrameTable(frame, columns, str(path))


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


READERS: dict[str, Callable[[Path], Table]] = {".csv": read_csv, ".parquet": read_parquet, ".npy": read_npy}
