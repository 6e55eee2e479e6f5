"""The order in which minibatches take the rows of a table."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def shuffled(n: int, *seed: int) -> npt.NDArray[np.int64]:
    """The numbers 0, ..., n - 1 in an order that the numbers ``seed`` alone decide, on every machine and version.

    They are sorted by n random keys, the raw output of the bit generator PCG64, whose stream NumPy guarantees (unlike
    that of ``Generator.permutation`` and of ``torch.randperm``).

    >>> shuffled(5, 0, 1)
    array([4, 1, 2, 0, 3])
    """
    return np.argsort(np.random.PCG64(list(seed)).random_raw(n))


@dataclass(frozen=True)
class RowOrder:
    """Minibatches drawn without replacement, epoch by epoch: a function of the seed and the number of the step alone.

    Every epoch has a permutation of its own, which no earlier epoch and no other random stream takes part in. To go on
    from any step is therefore to look it up: its position is two integers, the epoch and the batch within it.

    Args:
        n: the number of rows.
        size: rows per batch; the last of an epoch has fewer where they do not divide n.
        seed: of all permutations.

    >>> order = RowOrder(5, 2, seed=0)
    >>> [batch.tolist() for batch in order.batches(0)]
    [[4, 1], [2, 0], [3]]
    >>> order.position(5)
    (1, 2)
    """

    n: int
    size: int
    seed: int

    def position(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the number of its batch within that."""
        return divmod(step, -(-self.n // self.size))

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """The row numbers (b,) of every batch of an epoch."""
        return torch.from_numpy(shuffled(self.n, self.seed, epoch + 1)).split(self.size)

    def epochs(self, step: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches epoch by epoch without end, from that of a step on."""
        epoch, first = self.position(step)
        while True:
            yield self.batches(epoch)[first:]
            epoch, first = epoch + 1, 0
