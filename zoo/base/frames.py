"""Data frames of pandas, polars and others as rows of numbers, without importing a library that is not there yet."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars
import torch

from zoo.base.entries import WHOLE, NamedRows, column_at, number, refuse

LIBRARIES = ("pandas", "polars", "narwhals")


def is_frame(x: object) -> bool:
    """Whether this is a data frame or a column of one, of pandas, polars, narwhals, or with the Arrow interface."""
    return _library(x) is not None or (hasattr(x, "__arrow_c_stream__") and not isinstance(x, np.ndarray))


def frame_columns(frame: Any) -> tuple[str, ...]:
    """The names of the columns; empty where they are merely counted, as in ``pandas.DataFrame(array)``.

    Raises:
        ValueError: a name is repeated.
    """
    frame = _opened(frame)
    if _library(frame) == "polars":
        names: tuple[str, ...] = (frame.name,) if isinstance(frame, polars.Series) else tuple(frame.columns)
        return () if names == ("",) else names
    if not hasattr(frame, "columns"):
        return () if frame.name is None else (_joined(frame.name),)
    if _counted(frame.columns):
        return ()
    names = tuple(_joined(label) for label in frame.columns)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"column name {repeated[0]!r} appears more than once: rename the columns of the data frame")
    return names


def frame_index(frame: Any) -> np.ndarray | None:
    """The index (n,) of a pandas frame, as numbers or as text; None where it merely counts, and for other frames."""
    frame = _opened(frame)
    if _library(frame) != "pandas" or _counted(frame.index):
        return None
    plain = np.asarray(frame.index)
    return plain if plain.dtype.kind in "iuf" else np.array([_joined(label) for label in frame.index], dtype=str)


def frame_values(frame: Any, name: str) -> NamedRows:
    """The values of a frame as a tensor (n, d), float64 or the common floating-point type of all columns.

    Raises:
        TypeError: a column holds something other than numbers; names the column.
        ValueError: a name is repeated, or a whole number exceeds 2**53.
    """
    frame = _opened(frame)
    if isinstance(frame, polars.LazyFrame):
        raise TypeError(f"{name} is a polars.LazyFrame, which holds no rows yet: pass {name}.collect()")
    columns, index = frame_columns(frame), frame_index(frame)
    if (kinds := _plain(frame)) is not None:
        return NamedRows(torch.from_numpy(np.array(frame, dtype=kinds, order="C")), columns, index)
    found = [column_values(column, name, j, columns) for j, column in enumerate(frame_series(frame))]
    single = bool(found) and all(each.dtype == np.float32 for each in found)
    values = np.empty((len(frame), len(found)), dtype=np.float32 if single else np.float64)  # (n, d)
    for j, each in enumerate(found):
        values[:, j] = each
    return NamedRows(torch.from_numpy(values), columns, index)


def frame_series(frame: Any) -> list[Any]:
    """The columns of a frame one by one, as columns of its own library, or of polars."""
    frame = _opened(frame)
    if isinstance(frame, polars.DataFrame):
        return frame.get_columns()
    return [frame.iloc[:, j] for j in range(frame.shape[1])] if hasattr(frame, "columns") else [frame]


def column_values(series: Any, name: str, j: int, columns: Sequence[str] = ()) -> np.ndarray:
    """A column of a frame as numbers (n,), with NaN for missing entries.

    Args:
        series: of pandas or polars.
        name: the argument's name, for error messages.
        j: the column's number.
        columns: the names of all columns.

    Raises:
        TypeError: it holds something other than numbers.
        ValueError: a whole number exceeds 2**53.
    """
    return (
        _of_polars(series, name, j, columns) if _library(series) == "polars" else _of_pandas(series, name, j, columns)
    )


def column_labels(series: Any) -> polars.Series:
    """A column of pandas or polars as one of polars, with null for missing entries; categories keep their order."""
    if isinstance(series, polars.Series):
        return series
    name, missing = str(series.name), series.isna().to_numpy()
    entries = [None if gone else value for value, gone in zip(series.astype(object), missing, strict=True)]
    if str(series.dtype) == "category":
        kinds = polars.Enum([str(each) for each in series.cat.categories])
        return polars.Series(name, [None if value is None else str(value) for value in entries], dtype=kinds)
    return polars.Series(name, entries, strict=False)


def _plain(frame: Any) -> type[np.floating[Any]] | None:
    """The type of the values of a pandas frame of floating-point numbers alone, which need no look at every column."""
    if _library(frame) != "pandas" or not hasattr(frame, "columns") or not len(frame.columns):
        return None
    kinds = set(frame.dtypes)
    if any(not isinstance(kind, np.dtype) or kind.kind != "f" for kind in kinds):
        return None
    return np.float32 if kinds == {np.dtype(np.float32)} else np.float64


def _library(x: object) -> str | None:
    """The library of a frame or of a column, also of a class derived from one; None for anything else."""
    for own in type(x).__mro__:
        top = own.__module__.partition(".")[0]
        if top in LIBRARIES and own.__name__ in ("DataFrame", "Series", "LazyFrame"):
            return top
    return None


def _opened(frame: Any) -> Any:
    """The pandas or polars frame in or behind a frame."""
    library = _library(frame)
    if library == "narwhals":
        return _opened(frame.to_native())
    if library is None:  # pyarrow and others, by the Arrow interface
        return polars.DataFrame(frame)
    return frame


def _counted(labels: Any) -> bool:
    """Whether a pandas index is merely 0, 1, 2, ..."""
    return type(labels).__name__ == "RangeIndex" and (labels.start, labels.step) == (0, 1)


def _joined(label: object) -> str:
    """A label as text; those of a MultiIndex joined by ``_``."""
    return "_".join(str(part) for part in label) if isinstance(label, tuple) else str(label)


def _of_pandas(series: Any, name: str, j: int, columns: Sequence[str]) -> np.ndarray:
    """A pandas column as numbers (n,), with NaN for missing entries."""
    kind, title, where = series.dtype.kind, str(series.dtype), column_at(j, columns)
    if kind in "biuf":
        if kind in "iu":
            _refuse_beyond(series.min(), series.max(), series, name, j, columns)
        if isinstance(series.dtype, np.dtype):
            plain: np.ndarray = series.to_numpy()
            return plain if plain.dtype == np.float32 else plain.astype(np.float64)
        if "Sparse" in title:
            return np.asarray(series, dtype=np.float64)
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind == "c":
        raise TypeError(f"{name} is complex in {where}: pass real numbers")
    if kind in "mM" or title.startswith("period"):
        raise refuse(name, f"dates or times ({title})", where, "exclude it, or count days since a first date")
    if title == "category":
        raise refuse(name, "categories" + _first(series.astype(object).dropna()), where)
    if title.startswith(("str", "string", "large_string")):
        raise refuse(name, "text" + _first(series.dropna()), where)
    return np.array([number(value, name, (i, j), columns) for i, value in enumerate(series)])


def _of_polars(series: polars.Series, name: str, j: int, columns: Sequence[str]) -> np.ndarray:
    """A polars column as numbers (n,), with NaN for nulls."""
    kind, where = series.dtype, column_at(j, columns)
    if kind.is_integer():
        _refuse_beyond(series.min(), series.max(), series, name, j, columns)
    if kind.is_numeric() or kind in (polars.Boolean, polars.Null):
        whole = series.cast(polars.Float32 if kind == polars.Float32 else polars.Float64)
        return whole.fill_null(float("nan")).to_numpy()
    if kind in (polars.Categorical, polars.Enum):
        raise refuse(name, "categories" + _first(series.drop_nulls()), where)
    if kind == polars.String:
        raise refuse(name, "text" + _first(series.drop_nulls()), where)
    if kind.is_temporal():
        raise refuse(name, f"dates or times ({kind})", where, "exclude it, or count days since a first date")
    if kind == polars.Object:
        return np.array([number(value, name, (i, j), columns) for i, value in enumerate(series)])
    raise refuse(name, f"entries of type {kind}", where, "exclude it, or make each of its numbers a column")


def _refuse_beyond(low: Any, high: Any, entries: Iterable[Any], name: str, j: int, columns: Sequence[str]) -> None:
    """Refuse whole numbers beyond 2**53, by their limits; names the first."""
    if any(isinstance(edge, int | np.integer) and abs(int(edge)) > WHOLE for edge in (low, high)):
        for i, value in enumerate(entries):
            number(value, name, (i, j), columns)


def _first(entries: Any) -> str:
    """The first entry of a column in words."""
    return f" (first {str(next(iter(entries)))[:30]!r})" if len(entries) else ""
