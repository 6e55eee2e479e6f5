"""Checks of rows and whole numbers, with errors that name the argument."""

import operator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.module import like


def incomplete(x: Tensor) -> bool:
    """Whether rows have missing entries (NaN), at the price of a sum where they have none."""
    if torch.jit.is_tracing():  # the answer becomes part of what is compiled, as it must
        with pyro.util.ignore_jit_warnings():
            return bool(x.isnan().any())
    return bool(x.sum().isnan()) and bool(x.isnan().any())


def check_rows(x: Any, model: PyroCallable | None = None, *, least: int = 1, name: str = "x") -> Tensor:
    """``x`` as a finite tensor (n, d) of the model's dtype and device.

    NaN stands for an entry that is missing at random, and passes where the model says that it knows what to do with it:
    by the class attribute ``missing = True``. ``model.check`` refuses columns in which too little is observed. Where
    Pyro handlers (``config_enumerate``) stand around a model, the model behind them is asked.

    Raises:
        TypeError: ``x`` holds no numbers.
        ValueError: not two-dimensional, empty, fewer rows than ``least``, another width than the model's, or an
            entry that is infinite or, for a model without support of missing entries, NaN; the message names the row
            and the column, both counted from 0.
    """
    if hasattr(x, "x") and isinstance(getattr(x, "x", None), Tensor):
        x = x.x  # a Dataset
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} holds something that is no number ({error}): pass a tensor (n, d)") from None
    if x.is_complex():
        raise TypeError(f"{name} is complex: pass real numbers")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: pass one row per observation, (n, d)")
    n, d = x.shape
    if n == 0 or d == 0:
        raise ValueError(f"{name} is empty, {n} rows x {d} columns: nothing to fit")
    if n < least:
        raise ValueError(f"{name} has {n} row{'s' * (n != 1)}: at least {least} are needed")
    model = None if model is None else unwrapped(model)
    width = getattr(model, "data_dim", None)
    if width is not None and d != width:
        raise ValueError(f"{name} has {d} columns, the model {name_of(model)} was built for data_dim={width}")
    x = like(x, model) if isinstance(model, nn.Module) else like(x, nn.Module())
    if not torch.isfinite(x.sum()):  # one pass; look closer only where something is wrong
        allowed = getattr(model, "missing", False)
        wrong = (x.isinf() if allowed else ~torch.isfinite(x)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(
                f"{name} holds {x[row, column].item()} in row {row}, column {column}{more}: "
                "drop or fill these rows first"
            )
    return x


def check_whole(value: int, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; the error names the argument."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if isinstance(value, bool) or whole < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return whole
