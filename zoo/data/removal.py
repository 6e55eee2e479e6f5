"""Entries removed at random, to measure how well they are imputed."""

import numpy as np
import torch
from torch import Tensor

from zoo.base.checks import check_whole


def random_mask(rows: int, columns: int, share: float, seed: int) -> Tensor:
    """Entries to remove, missing completely at random: a mask (rows, columns) that is True for them.

    Exactly ``floor(share * rows * columns)`` entries, drawn as by ``np.random.seed(seed)`` and
    ``np.random.choice(rows * columns, count, replace=False)``, whose legacy stream NumPy keeps fixed: the masks of
    published experiments that were drawn so (Mattei and Frellsen 2019: seed 1234) are repeated on every machine.

    Args:
        rows: n.
        columns: d.
        share: of the entries to remove, between 0 and 1.
        seed: of the draw.

    Raises:
        ValueError: a number is out of range, or no entry would be removed or left.

    >>> int(random_mask(569, 30, 0.5, seed=1234).sum())
    8535
    """
    size = check_whole(rows, "rows") * check_whole(columns, "columns")
    count = int(np.floor(share * size)) if 0 < share < 1 else 0
    if count == 0:
        raise ValueError(f"share={share} of {size} entries removes none or all: choose a share between 0 and 1")
    stream = np.random.RandomState(check_whole(seed, "seed", 0))
    mask = np.zeros(size, dtype=bool)
    mask[stream.choice(size, count, replace=False)] = True
    return torch.from_numpy(mask.reshape(rows, columns))


def remove(x: Tensor, mask: Tensor) -> Tensor:
    """A copy of rows (n, d) with NaN where ``mask`` (n, d) is True.

    Raises:
        ValueError: the mask has another shape, is not boolean, or leaves a column with fewer than two entries.
    """
    if mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and x {tuple(x.shape)}: pass one entry for every entry of x, True "
            "where it is to be removed"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: pass booleans, True where an entry is to be removed")
    left = torch.where(mask, torch.nan, x)
    few = (~left.isnan()).sum(0) < 2
    if few.any():
        column = int(few.nonzero()[0])
        raise ValueError(f"mask leaves column {column} with fewer than two entries: remove fewer")
    return left
