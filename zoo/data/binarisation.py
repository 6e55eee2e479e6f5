"""Grey values as zeros and ones: drawn once, drawn anew at every step, or cut at a threshold."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.base.checks import check_whole

How = Literal["fixed", "dynamic", "threshold"]
THRESHOLD = 0.5
BLOCK = 2**20  # entries drawn at a time


def binarised(x: Tensor, how: How, seed: int = 0, *, stream: int = 0) -> Tensor:
    """Grey values as zeros and ones.

    A number on binarised data means little without the way in which they were binarised:

    - ``fixed``: every entry is 1 with the probability of its value, drawn once, for training rows too;
    - ``dynamic``: training rows keep their values and are drawn anew at every step (see :func:`binarising`); the rows
      that a bound is reported for are drawn once, as for ``fixed``;
    - ``threshold``: 1 where the value exceeds 1/2.

    The draws use the raw output of PCG64, whose stream NumPy guarantees: the same zeros and ones on every machine and
    with every version. Missing entries stay NaN.

    Args:
        x: values in [0, 1], (n, d).
        how: one of the three.
        seed: of the draws, from 0.
        stream: a number for each part of the data, whose draws are to be independent.

    Returns:
        The rows (n, d), of the dtype and on the device of ``x``.

    Raises:
        ValueError: ``how`` is none of the three, or an entry is outside [0, 1].

    >>> binarised(torch.tensor([[0.0, 0.4, 0.6, 1.0]]), "threshold")
    tensor([[0., 0., 1., 1.]])
    """
    _check(how)
    beyond = ((x < 0) | (x > 1)).nonzero()
    if len(beyond):
        place = tuple(beyond[0].tolist())
        raise ValueError(
            f"x needs entries in [0, 1] to be binarised: entry {place} is {x[place].item()}; scale the data"
        )
    if how == "threshold":
        ones = x > THRESHOLD
    else:
        ones = (_uniform(x.numel(), seed, stream).reshape(x.shape) < x.cpu()).to(x.device)
    return torch.where(x.isnan(), x, ones.to(x.dtype))


def binarising(how: How) -> Callable[[Tensor], Tensor] | None:
    """The ``transform`` of :func:`zoo.fit` for training rows: draws every batch for ``dynamic``, else None.

    Raises:
        ValueError: ``how`` is unknown.
    """
    return torch.bernoulli if _check(how) == "dynamic" else None


def _check(how: How) -> How:
    if how not in get_args(How):
        raise ValueError(f"how must be one of {', '.join(map(repr, get_args(How)))}; got {how!r}")
    return how


def _uniform(count: int, seed: int, stream: int) -> Tensor:
    """Uniform draws in [0, 1), (count,), float64: the upper 53 bits of the raw output."""
    key = (check_whole(stream, "stream", 0),)
    bits = np.random.PCG64(np.random.SeedSequence(check_whole(seed, "seed", 0), spawn_key=key))
    found = np.empty(count)
    for start in range(0, count, BLOCK):
        piece = found[start : start + BLOCK]
        piece[:] = (bits.random_raw(len(piece)) >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(found)
