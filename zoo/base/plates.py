"""The plate ``rows`` over independent observations, and a plate of draws to its left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor


@contextmanager
def rows(
    x: Tensor | None, index: Tensor | None = None, size: int | None = None, *, name: str = "rows"
) -> Iterator[Tensor]:
    """The plate ``rows`` (dim -1) over independent observations; yields the row numbers.

    Args:
        x: the rows (b, d), or None to generate ``size`` rows.
        index: the row numbers (b,) of a minibatch; log densities are then scaled by size / b.
        size: the full number of rows.
        name: the name of the plate; a guide uses that of the model.

    Raises:
        ValueError: neither ``x`` nor ``size`` is given, or ``index`` without ``size``.
    """
    if size is None:
        if x is None:
            raise ValueError("x is None: pass size, the number of rows to generate")
        if index is not None:
            raise ValueError("index is given without size: pass size, the full number of rows")
        size = x.shape[-2]
    with pyro.plate(name, size, subsample=index, dim=-1) as numbers:
        yield numbers


def spread(function: Callable[..., Any], draws: int, dim: int = -2) -> Callable[..., Any]:
    """A model or guide inside a plate of draws at ``dim``, to the left of the rows and of all other plates."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate("draws", draws, dim=dim):
            return function(*args, **kwargs)

    return drawn
