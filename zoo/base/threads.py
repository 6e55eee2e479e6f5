"""How many of torch's threads a computation runs on: one where threads would wait for each other, more where they pay.

``torch.set_num_threads`` sets the number of the calling thread of Python, and the number that threads begin with that
meet torch later; those that have met it before keep theirs. The threads of OpenMP spin while they wait, so that on a
machine with other work every small operation waits for the slowest of them.
"""

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from zoo.base.callables import PyroCallable, modules
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.protocols import Pair

# Multiply-adds of a pass over the data, per thread. Measured on one thread, float64: products of matrices do 5e6 to 2e7
# of them in a millisecond, and a step of SVI takes 2 ms at 2e6 (a VAE 64-(64,64) with 64 rows), 11 ms at 3e7 and 39 ms
# at 1e8. Its hundred or so operations let the threads meet as often, at some 10 us each on an idle machine (estimated)
# and at a time slice each on a busy one. Measured on a busy machine with two cores, two threads over one:
# `zoo fit PPCA iris -k 2` (1e3 per pass) 267 s over 8.9 s, 300 Cholesky factors of (272, 2, 2) 0.32 s over 0.006 s.
# `pytest -m benchmarks -n 0 -s tests/benchmark/test_benchmarks_threads.py` prints the curve of a machine.
PER_THREAD = 1e7

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_lock = threading.Lock()
_lent: list[int] = []  # the numbers that are set for the time being
_met = threading.local()  # has an attribute in threads of Python that have been here before
_usual = 1  # the number before the first of _lent


@contextmanager
def exactly(threads: int | None) -> Iterator[None]:
    """A block that runs on this number of torch's threads; None leaves the number alone.

    The number of the calling thread of Python is restored afterwards, also after an error.

    Raises:
        ValueError: ``threads`` is not a whole number of at least 1.

    >>> before = torch.get_num_threads()
    >>> with exactly(3):
    ...     torch.get_num_threads()
    3
    >>> torch.get_num_threads() == before
    True
    """
    if threads is not None:
        check_whole(threads, "threads")
    with _set(lambda before: before if threads is None else threads):
        yield


@contextmanager
def suited(work: float, device: torch.device | str = "cpu") -> Iterator[None]:
    """A block that runs on as many of torch's threads as pay, and on no more than the caller has set.

    The caller's number is that of ``torch.set_num_threads``, else of ``OMP_NUM_THREADS``, else the number of cores. It
    is restored afterwards, also after an error.

    Args:
        work: multiply-adds of a pass over the data, by :func:`work_of`.
        device: of the data; on any other than a CPU the number is left alone.
    """
    few = torch.device(device).type == "cpu"
    with _set(lambda before: min(before, enough(work)) if few else before):
        yield


def enough(work: float) -> int:
    """The number of threads beyond which more do not pay, for passes of this many multiply-adds.

    >>> enough(150 * 8), enough(128 * 640_000)
    (1, 9)
    """
    return max(1, math.ceil(work / PER_THREAD))


def work_of(shape: tuple[int, ...], *functions: PyroCallable, rows: int | None = None) -> float:
    """Multiply-adds of a pass over the data: rows times the number of parameters that all rows share.

    Args:
        shape: of the data, (n, d).
        functions: model and guide. Parameters with an entry for every row are not counted.
        rows: rows per pass; None for all of them.
    """
    n, d = shape
    shared = {id(p): p.numel() for p in _parameters(functions) if n == d or n not in p.shape}
    return float(n if rows is None else rows) * max(d, sum(shared.values()))


def suited_to(shape: tuple[int, ...], *functions: PyroCallable, passes: int = 1) -> AbstractContextManager[None]:
    """The block of :func:`suited` for passes of model and guide over the data, on the device of their parameters.

    Args:
        shape: of the data, (n, d).
        functions: model and guide.
        passes: how often all rows are passed at once, such as the number of draws.
    """
    device = next((p.device for p in _parameters(functions)), "cpu")
    return suited(work_of(shape, *functions) * passes, device)


def on_suited_threads(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function of a model, a pair or several pairs, and their rows, that runs on as many threads as pay.

    If it has an argument ``draws``, a pass over the data is made for every draw.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def threaded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises it
        bound.apply_defaults()
        functions, shape = _functions(next(iter(bound.arguments.values()))), _shape(bound.arguments["x"])
        if len(shape) != 2:
            return function(*args, **kwargs)  # refuses it
        draws = bound.arguments.get("draws")
        with suited_to(shape, *functions, passes=draws if isinstance(draws, int) else 1):
            return function(*args, **kwargs)

    return threaded


def side_by_side(function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]) -> list[Result]:
    """The results of a function for several tuples of arguments, each on a thread of Python with one of torch's.

    For work that is done block by block: these threads meet once, where torch's own meet at every operation.

    >>> side_by_side(lambda a, b: (a + b, torch.get_num_threads()), [(1, 2), (3, 4)])
    [(3, 1), (7, 1)]
    """
    differentiable = torch.is_grad_enabled()  # which a thread does not inherit

    def alone(given: tuple[Any, ...]) -> Result:
        with exactly(1), torch.set_grad_enabled(differentiable):
            return function(*given)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(alone, arguments))


def _parameters(functions: tuple[PyroCallable, ...]) -> Iterator[nn.Parameter]:
    return (p for module in modules(*functions) for p in module.parameters())


def _functions(given: Any) -> tuple[PyroCallable, ...]:
    """The model and the guide of a pair or of the first of several; a model alone."""
    if isinstance(given, list | tuple):
        return _functions(given[0]) if given else ()
    return (given.model, given.guide) if isinstance(given, Pair) else (given,) if callable(given) else ()


def _shape(x: ArrayLike) -> tuple[int, ...]:
    table = getattr(x, "x", x)
    return tuple(table.shape) if isinstance(table, torch.Tensor | np.ndarray) else np.shape(np.asarray(table))


@contextmanager
def _set(choose: Callable[[int], int]) -> Iterator[None]:
    """A block with another number of threads, chosen from the caller's.

    A thread of Python that meets torch while another one has lent it a number begins with that number: here it counts
    as having the usual one, and has it afterwards. A thread that has set the very same number itself cannot be told
    from it.
    """
    global _usual
    with _lock:
        before = now = torch.get_num_threads()
        if not _lent:
            _usual = before
        elif not hasattr(_met, "torch") and before in _lent:
            before = _usual
        _met.torch = True
        lent = choose(before)
        if lent != now:
            torch.set_num_threads(lent)
        _lent.append(lent)
    try:
        yield
    finally:
        with _lock:
            _lent.remove(lent)
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
