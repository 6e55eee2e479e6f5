"""Tables from polars frames and from numpy arrays, and the conversion of their columns to tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from zoo.base.entries import WHOLE, refuse_beyond
from zoo.base.precision import Spread
from zoo.data.series import as_whole, codes, floats, tidy
from zoo.data.text import find_decimal

BLOCK = 2**22  # numbers converted at a time: 32 MiB of float64
MAPPED = 2**26  # numbers: an array on disk of at least this size is not read if it needs no conversion

Labels = tuple[Tensor, tuple[str, ...]]


@dataclass(frozen=True)
class RowNames:
    """A column that names the rows; ``names`` (n,) is None where it merely counts them."""

    column: str
    names: npt.NDArray[Any] | None


class Table(Protocol):
    """Named columns that can be read as numbers or as labels."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""

    @property
    def index(self) -> RowNames | None:
        """The column that names the rows."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader found out about the file, in words."""

    def numbers(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        """The columns ``names`` in this order, as a tensor (n, len(names)) with its own memory."""

    def labels(self, name: str) -> Labels:
        """The column ``name`` as codes (n,), int64, and the names of the codes."""

    def text(self, name: str) -> npt.NDArray[Any]:
        """The column ``name`` as names of rows (n,): whole numbers or text."""


@dataclass(frozen=True)
class FrameTable:
    """A polars frame; a lazy one reads only the requested columns from its file."""

    frame: pl.LazyFrame
    columns: tuple[str, ...]
    origin: str
    rows: int | None = None  # if counted by the reader
    decimal: str | None = "."  # in text; None for what the numbers tell
    index: RowNames | None = None
    notes: tuple[str, ...] = ()

    def settled(self, names: Sequence[str]) -> "FrameTable":
        """The columns ``names`` alone, in memory, with the decimal mark that their numbers have."""
        frame = self._read(names)
        decimal = find_decimal([tidy(frame[name]) for name in names if frame[name].dtype == pl.String], self.origin)
        notes = (*self.notes, "decimal commas") if decimal == "," else self.notes
        return replace(self, frame=frame.lazy(), columns=tuple(names), decimal=decimal, notes=notes)

    def numbers(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        if self.decimal is None:
            return self.settled(names).numbers(names, dtype)
        frame = self._read(names)
        x = torch.empty(frame.height, len(names), dtype=dtype)  # (n, d)
        for j, name in enumerate(names):
            values = floats(frame[name], self.origin, self.decimal).to_numpy(writable=True)
            for i in np.flatnonzero(np.abs(values) >= WHOLE).tolist():
                if (whole := as_whole(frame[name][i])) is not None:
                    refuse_beyond(np.array(whole, dtype=object), self.origin, (i, j), names)
            _refuse_lost(Spread().add(torch.from_numpy(values).unsqueeze(1)), dtype, self.origin, names, j)
            x[:, j] = narrow(values, dtype, f"{self.origin}: column {name!r}")
        return x

    def labels(self, name: str) -> Labels:
        return as_labels(self._read([name])[name], self.origin)

    def text(self, name: str) -> npt.NDArray[Any]:
        column = self._read([name])[name]
        return column.to_numpy() if column.dtype.is_integer() else np.array(column.cast(pl.String).to_list(), dtype=str)

    def _read(self, names: Sequence[str]) -> pl.DataFrame:
        try:
            frame = self.frame.select(names).collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise unreadable(self.origin, error) from error
        if self.rows is not None and frame.height != self.rows:
            raise ValueError(f"{self.origin} cannot be read: check its line endings and quotes")
        if not frame.height:
            raise ValueError(f"{self.origin} has no rows")
        return frame


@dataclass(frozen=True)
class ArrayTable:
    """A numeric array (n, d), possibly on disk; column j is divided by ``divisor[j]``."""

    array: npt.NDArray[Any]
    columns: tuple[str, ...]
    origin: str
    divisor: npt.NDArray[Any] | None = None
    index: RowNames | None = None
    notes: tuple[str, ...] = ()

    def numbers(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        position = {name: j for j, name in enumerate(self.columns)}
        chosen = [position[name] for name in names]
        whole = chosen == list(range(len(self.columns)))
        rows, width = self.array.shape
        if whole and self.divisor is None and self._as_it_is(dtype):
            return torch.from_numpy(np.asarray(self.array))
        x = torch.empty(rows, len(chosen), dtype=dtype)  # (n, d)
        step = max(1, BLOCK // width)
        spread = Spread()
        for start in range(0, rows, step):
            block = self.array[start : start + step]
            block = block if whole else block[:, chosen]
            if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
                refuse_beyond(block, self.origin, columns=names, first=start)
            values = block.astype(np.float64)
            if self.divisor is not None:
                values /= self.divisor[chosen]
            x[start : start + step] = narrow(values, dtype, self.origin)
            if dtype != torch.float64 and self.array.dtype.itemsize > 2:
                spread.add(torch.from_numpy(values))
        if spread.count.ndim:
            _refuse_lost(spread, dtype, self.origin, names)
        return x

    def _as_it_is(self, dtype: torch.dtype) -> bool:
        """Whether the array is large, on disk, and of the requested type."""
        array = self.array
        mapped = isinstance(array, np.memmap) and array.mode == "c" and array.flags.c_contiguous
        wanted = np.dtype(str(dtype).removeprefix("torch.")) if dtype in (torch.float32, torch.float64) else None
        return mapped and array.size >= MAPPED and array.dtype == wanted

    def text(self, name: str) -> npt.NDArray[Any]:
        column = np.asarray(self.array[:, self.columns.index(name)])
        return column if column.dtype.kind in "iu" else column.astype(str)

    def labels(self, name: str) -> Labels:
        column = self.array[:, self.columns.index(name)]
        native = np.dtype(np.float64) if column.dtype.kind == "f" else column.dtype.newbyteorder("=")
        return as_labels(pl.Series(name, column.astype(native)), self.origin)


def _refuse_lost(spread: Spread, dtype: torch.dtype, origin: str, names: Sequence[str], first: int = 0) -> None:
    """Refuse columns, counted from ``first``, whose variation ``dtype`` cannot hold beside their offset."""
    if dtype != torch.float64:
        spread.refuse_lost(dtype, origin, names, "pass dtype=torch.float64, or subtract the mean", first=first)


def as_labels(series: pl.Series, origin: str) -> Labels:
    """The codes (n,), int64, and label names of a column."""
    code, label_names = codes(series, origin)
    return torch.from_numpy(code.astype(np.int64)), label_names


def narrow(values: npt.NDArray[np.float64], dtype: torch.dtype, origin: str) -> Tensor:
    """Converts to ``dtype``; refuses large finite values that would become infinite."""
    exact = torch.from_numpy(values)
    x = exact.to(dtype)
    if dtype != torch.float64:
        overflow = x.isinf() & exact.isfinite()
        if overflow.any():
            raise ValueError(
                f"{origin} has {exact[overflow][0].item()}, too large for {dtype}: pass dtype=torch.float64"
            )
    return x


def unreadable(origin: str, error: BaseException) -> ValueError:
    """The error for a file that cannot be read: its name, and the first line of the reason."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ValueError(f"{origin} cannot be read; it may be truncated or of another format: {reason}")


def pick(column: str | int, known: tuple[str, ...], name: str) -> str:
    """The column with this name; columns of arrays are named by their position."""
    if str(column) not in known:
        raise ValueError(f"{name}: unknown column {column!r}: {nearest(str(column), known)}")
    return str(column)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A hint: the most similar known word, else all known words."""
    lower = {each.lower(): each for each in known}
    close = get_close_matches(word.lower(), lower, n=1)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    return f"known are {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
