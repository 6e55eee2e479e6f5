"""Single entries of tables: as numbers, and their places in words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from numbers import Complex, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

WHOLE = 2**53  # the largest size up to which float64 holds every whole number
WAY_OUT = "exclude the column, or encode it as numbers, as by labels= or dummies= of zoo.data.as_dataset"

_named: ContextVar[Sequence[str]] = ContextVar("_named", default=())  # the columns of the table that is worked on


@dataclass(frozen=True, eq=False)
class NamedRows:
    """A table of numbers.

    Attributes:
        values: the rows (n, d), of any dtype that torch computes with; missing entries are NaN.
        columns: the names of the d columns; empty if they have none.
        index: the names of the n rows, numbers or text; None if they have none.
    """

    values: Tensor
    columns: tuple[str, ...] = ()
    index: np.ndarray | None = None


@contextmanager
def naming(columns: Sequence[str]) -> Iterator[None]:
    """A block whose error messages name the columns of a table, where all that is at hand is a tensor of its rows.

    Args:
        columns: the names of the columns; without any, those of the block around it hold.
    """
    token = _named.set(columns or _named.get())
    try:
        yield
    finally:
        _named.reset(token)


def column_at(column: int, columns: Sequence[str] = ()) -> str:
    """A column in words: its number, counted from 0, and its name, also as :func:`naming` has it."""
    columns = columns or _named.get()
    return f"column {column} ('{columns[column]}')" if len(columns) > column else f"column {column}"


def numbers_of(columns: Sequence[int]) -> str:
    """Columns as a short list: their numbers, counted from 0, and their names; the first ten of them."""
    shown = [column_at(column).removeprefix("column ") for column in columns[:10]]
    return ", ".join(shown) + (", ..." if len(columns) > 10 else "")


def entry_at(place: Sequence[int], columns: Sequence[str] = (), index: np.ndarray | None = None) -> str:
    """An entry in words: row and column, counted from 0, with their names."""
    if len(place) < 2:
        return f"entry {place[0]}" if place else "its only entry"
    label = f" ('{index[place[0]]}')" if index is not None else ""
    return f"row {place[0]}{label}, {column_at(place[1], columns)}"


def number(value: Any, name: str, place: Sequence[int], columns: Sequence[str] = ()) -> float:
    """One entry as a float; None and pandas' NA are NaN.

    Raises:
        TypeError: it is no real number; names its place.
        ValueError: a whole number beyond 2**53.
    """
    if value is None or type(value).__name__ == "NAType" or value is np.ma.masked:
        return float("nan")
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, int | np.integer):
        refuse_beyond(np.asarray(value), name, tuple(place), columns)
    if isinstance(value, Real | Decimal | np.bool_):
        return float(value)
    where = entry_at(place, columns)
    if isinstance(value, Complex):
        raise TypeError(f"{name} is complex, {value} in {where}: pass real numbers")
    text = isinstance(value, str | bytes)
    raise refuse(name, f"text, {value[:30]!r}" if text else f"an object of type {type(value).__name__}", where)


def refuse(name: str, what: str, where: str, way_out: str = WAY_OUT) -> TypeError:
    """The error for entries of a table that are no numbers."""
    return TypeError(f"{name} holds something other than numbers: {what}, in {where}; {way_out}")


def refuse_beyond(
    values: Tensor | np.ndarray,
    name: str,
    place: Sequence[int] | None = None,
    columns: Sequence[str] = (),
    *,
    first: int = 0,
) -> None:
    """Refuse whole numbers beyond 2**53, between which float64 has gaps.

    Args:
        values: whole numbers of any shape.
        name: the argument's name.
        place: where ``values`` stands, if it is a single entry; or None.
        columns: the names of the columns.
        first: the number of the first row of ``values``.

    Raises:
        ValueError: names the first such number and its place.
    """
    beyond = (values > WHOLE) | (values < -WHOLE)
    if not beyond.any():
        return
    if place is None:
        where = torch.as_tensor(beyond).nonzero()[0].tolist()
        values, place = values[tuple(where)], [where[0] + first, *where[1:]] if where else where
    raise ValueError(
        f"{name} holds {int(values)} in {entry_at(place, columns)}, and float64 has gaps between whole numbers beyond "
        "2**53: exclude the column if it is an identifier, or subtract an offset from it first"
    )
