"""Checks of rows and whole numbers, with errors that name the argument."""

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.module import like
from zoo.base.protocols import AcceptsMissing, HasWidth


class HasTable(Protocol):
    """A data set, such as :class:`zoo.data.Dataset`: its rows are its attribute ``x``."""

    @property
    def x(self) -> Tensor:
        """The rows (n, d)."""
        ...


ArrayLike = Tensor | np.ndarray | Sequence[Any] | HasTable  # rows (n, d), or what is converted to them


_known: ContextVar[bool | None] = ContextVar("whether rows are incomplete", default=None)


@contextmanager
def missing_entries(answer: bool | None) -> Iterator[None]:
    """A block in which it is known whether rows have missing entries, so that :func:`incomplete` need not look.

    Args:
        answer: what it answers in the block; None lets it look.
    """
    token = _known.set(answer)
    try:
        yield
    finally:
        _known.reset(token)


def incomplete(x: Tensor) -> bool:
    """Whether rows have missing entries (NaN); where they have none, this costs a single sum.

    In a block of :func:`missing_entries` it costs nothing.
    """
    known = _known.get()
    if known is not None:
        return known
    if torch.jit.is_tracing():  # the answer becomes part of the compiled graph
        with pyro.util.ignore_jit_warnings():
            return bool(x.isnan().any())
    return math.isnan(x.sum()) and bool(x.isnan().any())


def check_held(guide: str, held: int, given: int) -> None:
    """Refuse another number of rows than a guide has parameters for.

    Raises:
        ValueError: names the guide and both numbers of rows.
    """
    if given != held:
        raise ValueError(
            f"{guide} holds {held} rows, got {given}: fit a new one for this data, or use Amortized or Exact"
        )


def check_rows(x: ArrayLike, model: PyroCallable | None = None, *, least: int = 1, name: str = "x") -> Tensor:
    """``x`` as a finite tensor (n, d) of the model's dtype and device.

    NaN marks an entry that is missing at random. It is accepted for models that support missing entries, which have the
    class attribute ``missing = True``; ``model.check`` refuses columns with too few observed entries. Pyro handlers
    around the model, such as ``config_enumerate``, make no difference here.

    Args:
        x: a tensor, an array, nested sequences of numbers, or a data set with its rows in ``x.x``.
        model: the model that the rows are for; None checks the rows alone.
        least: the smallest number of rows.
        name: the argument's name, for error messages.

    Raises:
        TypeError: ``x`` holds something other than real numbers.
        ValueError: ``x`` is not two-dimensional, is empty, has fewer rows than ``least``, has another width than the
            model, or has an infinite entry or, for a model without support for missing entries, NaN; the message names
            the row and the column, both counted from 0.
    """
    table = getattr(x, "x", None)
    try:
        rows = torch.as_tensor(table if isinstance(table, Tensor) else x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} holds something other than numbers ({error}): pass a tensor (n, d)") from None
    if rows.is_complex():
        raise TypeError(f"{name} is complex: pass real numbers")
    if rows.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: pass one row per observation, (n, d)")
    n, d = rows.shape
    if n == 0 or d == 0:
        raise ValueError(f"{name} is empty, {n} rows x {d} columns: nothing to fit")
    if n < least:
        raise ValueError(f"{name} has {n} row{'s' * (n != 1)}: at least {least} are needed")
    inner: PyroCallable = nn.Module() if model is None else unwrapped(model)
    if isinstance(inner, HasWidth) and d != inner.data_dim:
        raise ValueError(f"{name} has {d} columns, the model {name_of(inner)} was built for data_dim={inner.data_dim}")
    rows = like(rows, inner if isinstance(inner, nn.Module) else nn.Module())
    if not torch.isfinite(rows.sum()):  # one pass; look closer only where something is wrong
        allowed = isinstance(inner, AcceptsMissing) and inner.missing
        wrong = (rows.isinf() if allowed else ~torch.isfinite(rows)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(
                f"{name} holds {rows[row, column].item()} in row {row}, column {column}{more}: "
                "drop or fill these rows first"
            )
    return rows


def check_whole(value: int, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; the error names the argument."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if isinstance(value, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole
