"""Checks of rows and whole numbers, with errors that name the argument."""

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import pyro
import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.entries import NamedRows, entry_at
from zoo.base.module import like
from zoo.base.moments import refuse_moments
from zoo.base.precision import FEW, check_precision
from zoo.base.protocols import AcceptsMissing, HasWidth
from zoo.base.tables import ArrayLike, named_rows

_known: ContextVar[bool | None] = ContextVar("whether rows are incomplete", default=None)
_recording: ContextVar[bool] = ContextVar("operations are recorded", default=False)


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


@contextmanager
def recording() -> Iterator[None]:
    """A block whose operations are recorded, to be run on other numbers: none may depend on those at hand."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Whether a block of :func:`recording` runs."""
    return _recording.get()


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


def check_rows(
    x: ArrayLike, model: PyroCallable | None = None, *, least: int = 1, name: str = "x", exact: bool = False
) -> Tensor:
    """``x`` as a finite tensor (n, d) of the model's dtype and device.

    NaN marks an entry that is missing at random. It is accepted for models that support missing entries, which have the
    class attribute ``missing = True``; ``model.check`` refuses columns with too few observed entries. Pyro handlers
    around the model, such as ``config_enumerate``, make no difference here.

    Args:
        x: a tensor, an array, a data frame, nested sequences of numbers, or a data set with its rows in ``x.x``; see
            :func:`zoo.base.tables.named_rows`.
        model: the model that the rows are for; None checks the rows alone.
        least: the smallest number of rows.
        name: the argument's name, for error messages.
        exact: whether to return float64 whatever the model's dtype, for closed forms.

    Raises:
        TypeError: ``x`` holds something other than real numbers, or is a mean and a covariance.
        ValueError: ``x`` is not two-dimensional, is empty, has fewer rows than ``least``, has another width than the
            model, varies by less than the model's dtype can hold beside its offset, or has an infinite entry or, for a
            model without support for missing entries, NaN; the message names the row and the column, both counted from
            0, and by their names if they have any.
    """
    refuse_moments(x, name)
    table = named_rows(x, name)
    rows = table.values
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
    given = rows if rows.is_floating_point() or rows.element_size() < 4 else rows.double()
    rows = like(rows, inner if isinstance(inner, nn.Module) else nn.Module())
    if given.is_floating_point() and n >= (2 if least > 1 else FEW):
        check_precision(given, rows.dtype, name, table.columns)
    rows = given.to(rows.device, torch.float64) if exact else rows
    if not torch.isfinite(rows.sum()):  # one pass; look closer only where something is wrong
        _refuse_infinite(rows, table, isinstance(inner, AcceptsMissing) and inner.missing, name)
    return rows


def _refuse_infinite(rows: Tensor, table: NamedRows, missing: bool, name: str) -> None:
    """Refuse infinite entries, and NaN unless they may be missing.

    Raises:
        ValueError: names the first one.
    """
    wrong = (rows.isinf() if missing else ~torch.isfinite(rows)).nonzero()
    if not len(wrong):
        return
    row, column = wrong[0].tolist()
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    place = entry_at((row, column), table.columns, table.index)
    given = table.values[row, column].item()
    if rows[row, column].isinf() and math.isfinite(given):
        raise ValueError(f"{name} holds {given:g} in {place}{more}, too large for {rows.dtype}: use a float64 model")
    way = ", or use a model with the attribute missing = True" if math.isnan(given) and not missing else ""
    raise ValueError(f"{name} holds {given} in {place}{more}: drop or fill these rows first{way}")


def check_whole(value: int, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; the error names the argument."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if isinstance(value, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole
