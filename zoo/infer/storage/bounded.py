"""A limit on what the constructor of a saved model or guide may create, since its arguments come from a file."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SIZED = {"arange", "randperm", "empty", "zeros", "ones", "rand", "randn", "full", "eye"} | {
    f"new_{name}" for name in ("empty", "zeros", "ones", "full")
}
VIEWS = {"expand", "expand_as", "broadcast_to", "__get__", "size", "dim", "numel", "stride", "unsqueeze", "squeeze"}
ROWS = 2**22  # entries of the rows that a constructor looks at
LEAST = 2**22  # numbers that any constructor may create at a time: 32 MiB of float64
MARGIN = 16  # times the largest saved tensor: room for what a constructor holds only while it runs
CALLS, PER_TENSOR = 2_000, 200  # calls of torch in all, and per saved tensor


class TooLarge(ValueError):  # noqa: N818 - it reads as what it says
    """The recorded arguments ask for far more than the file holds."""


class Bounded(TorchFunctionMode):
    """A block in which torch creates no tensor far larger than the saved ones, and is not called without end.

    A ``settings.json`` that asks for a billion columns or a million layers is refused before anything is allocated.

    Args:
        saved: the tensors of the file, and those of the model for which a guide is built.
        rows: the number of rows of :func:`rows_like`, on whose tensors torch may work.

    Raises:
        TooLarge: a tensor would be too large, or torch is called too often.
    """

    def __init__(self, saved: Iterable[Tensor], rows: int | None = None) -> None:
        super().__init__()
        saved = list(saved)
        self.rows = rows
        self.limit = max(LEAST, MARGIN * max((value.numel() for value in saved), default=0))
        self.left = CALLS + PER_TENSOR * len(saved)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.left -= 1
        if self.left < 0:
            raise TooLarge("they ask for many more parts than there are saved tensors")
        name = getattr(func, "__name__", "")
        if name in SIZED and (count := _numel(name, args, kwargs)) > self.limit:
            raise TooLarge(f"they ask for a tensor of {count:.3g} numbers, the largest saved one has far fewer")
        if name not in VIEWS:  # of a tensor that takes no memory yet
            for value in args:
                if isinstance(value, Tensor) and value.numel() > self.limit and value.shape[0] != self.rows:
                    raise TooLarge(f"they ask for a tensor of shape {tuple(value.shape)}, too large for the file")
        return func(*args, **kwargs)


def rows_like(shape: Sequence[int], saved: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros in the shape (n, d) of the rows that a guide was built for, which take no memory.

    Where they are very many, and no saved tensor has as many rows, fewer stand for them.

    Raises:
        TooLarge: a single row has too many columns.
    """
    n, *rest = shape
    width = math.prod(float(each) for each in rest)
    if width > ROWS:
        raise TooLarge(f"they ask for rows of {width:.3g} columns")
    if n * width > ROWS and not any(n in value.shape for value in saved.values()):
        n = max(1, int(ROWS / width))
    return torch.zeros(1, dtype=dtype, device=device).expand(n, *rest)


def _numel(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """How many numbers a call creates, from its sizes; 0 where they are not among the leading arguments."""
    given = args[1:] if name.startswith("new_") else args
    if "size" in kwargs:
        given = (kwargs["size"],)
    elif name in ("full", "new_full"):
        given = given[:1]
    if name == "arange":
        ends = [float(n) for n in given if isinstance(n, int | float)] or [0.0]
        return (ends[1] - ends[0]) / (ends[2] if len(ends) > 2 and ends[2] else 1.0) if len(ends) > 1 else ends[0]
    first = given[0] if given else ()
    sizes = list(first) if isinstance(first, tuple | list | torch.Size) else [n for n in given if isinstance(n, int)]
    if name == "eye" and len(sizes) == 1:
        sizes *= 2
    return math.prod(float(n) for n in sizes if isinstance(n, int))
