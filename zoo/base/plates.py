"""The plate ``rows`` over independent observations, and a plate of draws to its left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor


@contextmanager
def rows(x: Tensor | None, index: Tensor | None = None, size: int | None = None) -> Iterator[Tensor]:
    """The plate ``rows`` (dim -1) over independent observations; yields the row numbers.

    Args:
        x: the rows at hand (b, d), or None to generate ``size`` rows.
        index: the row numbers (b,) of a minibatch; then log densities are scaled by size / b.
        size: the full number of rows.

    Raises:
        ValueError: neither ``x`` nor ``size`` is given, or ``index`` without ``size``.
    """
    if size is None:
        if x is None:
            raise ValueError("x is None: pass size, the number of rows to generate")
        if index is not None:
            raise ValueError("index is given without size: pass size, the full number of rows")
        size = x.shape[-2]
    with pyro.plate("rows", size, subsample=index, dim=-1) as numbers:
        yield numbers


def spread(function: Any, draws: int) -> Callable[..., Any]:
    """A model or guide inside a plate of draws at dim -2, to the left of the rows."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate("draws", draws, dim=-2):
            return function(*args, **kwargs)

    return drawn
