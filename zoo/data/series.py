"""A polars column as numbers or as label codes."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from zoo.data.text import LABELS_MISSING, MISSING_NUMBERS


def floats(series: pl.Series, origin: str, decimal: str = ".") -> pl.Series:
    """The column as float64, with NaN for missing entries; text is parsed, booleans become 0 and 1.

    Args:
        series: the column.
        origin: the name of the file, for error messages.
        decimal: the decimal mark in text.

    Raises:
        ValueError: the column contains text that is not a number, or neither numbers nor text.
    """
    kind = series.dtype
    if kind.is_numeric() or kind in (pl.Boolean, pl.Null):
        return series.cast(pl.Float64).fill_null(float("nan"))
    if kind in (pl.String, pl.Categorical, pl.Enum):
        return parse(tidy(series, MISSING_NUMBERS), origin, decimal).fill_null(float("nan"))
    raise ValueError(
        f"{origin}: column {series.name!r} has type {kind}, not numbers: leave it out by exclude={[series.name]!r}"
    )


def as_whole(entry: Any) -> int | None:
    """An entry that is, or is written as, a whole number; None for any other, such as one with a point or exponent.

    >>> as_whole(3), as_whole(" -12 "), as_whole("1e3"), as_whole(3.0)
    (3, -12, None, None)
    """
    if isinstance(entry, str):
        return int(entry) if re.fullmatch(r"\s*[+-]?[0-9]+\s*", entry) else None
    return entry if isinstance(entry, int) else None


def parse(text: pl.Series, origin: str, decimal: str = ".") -> pl.Series:
    """Text parsed as numbers; a column of true and false becomes 1 and 0."""
    lower = text.str.to_lowercase()
    if lower.is_in(["true", "false"]).all():  # null entries are ignored
        return (lower == "true").cast(pl.Float64)
    numbers = _pointed(text, decimal).cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & text.is_not_null()).arg_true()
    if len(bad):
        row = bad[0]
        raise ValueError(
            f"{origin}: column {text.name!r} contains text, first {text[row]!r} in data row {row + 1}: "
            f"leave it out by exclude={[text.name]!r}, or use it as labels={text.name!r}"
        )
    return numbers


def _pointed(text: pl.Series, decimal: str) -> pl.Series:
    """Text with a point for the decimal mark; null where it has a point already."""
    if decimal == ".":
        return text
    return text.str.replace(",", ".", literal=True).set(text.str.contains(".", literal=True).fill_null(False), None)


def codes(series: pl.Series, origin: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Integer codes (n,) of a column of labels, and the label of each code, in sorted order.

    An Enum keeps the order of its declared categories.

    Raises:
        ValueError: a label is missing, or the column contains neither text nor whole numbers.
    """
    kind = series.dtype
    if kind in (pl.String, pl.Categorical, pl.Enum):
        series = tidy(series) if kind != pl.Enum else series
    elif kind.is_float():
        series = series.fill_nan(None)
    elif not (kind.is_integer() or kind == pl.Boolean):
        raise ValueError(f"{origin}: column {series.name!r} has type {kind}, not labels (text or integers)")
    if series.null_count():
        row = series.is_null().arg_true()[0]
        raise ValueError(
            f"{origin}: label column {series.name!r} is empty in data row {row + 1}: fill it, or drop the row"
        )
    if series.dtype == pl.String:
        series = whole_numbers(series)
    if series.dtype.is_float():
        if not (series.is_finite() & (series == series.floor())).all():
            raise ValueError(
                f"{origin}: column {series.name!r} contains fractions, not labels (text or integers): "
                "use it as one of the columns"
            )
        series = series.cast(pl.Int64)
    if series.dtype == pl.String:
        series = series.cast(pl.Enum(series.unique().sort()))
    if isinstance(series.dtype, pl.Enum):
        return series.to_physical().to_numpy(), tuple(series.dtype.categories)
    values, code = np.unique(series.to_numpy(), return_inverse=True)
    return code, tuple(str(value) for value in values)


def tidy(series: pl.Series, missing: tuple[str, ...] = LABELS_MISSING) -> pl.Series:
    """Text without surrounding blanks, with null for the marks of missing values."""
    text = series.cast(pl.String).str.strip_chars()
    return text.set(text.is_in(missing), None)


def whole_numbers(text: pl.Series) -> pl.Series:
    """The text as integers, if converting back gives the same text ("01" stays text)."""
    numbers = text.cast(pl.Int64, strict=False)
    return numbers if (numbers.cast(pl.String) == text).all() and not numbers.null_count() else text
