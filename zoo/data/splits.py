"""Splits of rows that can be written down and repeated, whatever the versions of torch and NumPy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.base.checks import check_whole
from zoo.base.order import shuffled
from zoo.data.fingerprints import fingerprint

SHUFFLED = "order of PCG64's raw output"
IN_ORDER = "rows in order"


@dataclass(frozen=True, eq=False)
class Split(Mapping[str, npt.NDArray[np.int64]]):
    """Row numbers by the name of their part: ``split["train"]`` is (m,), int64, in ascending order.

    Attributes:
        parts: the row numbers of each part.
        n: the number of rows that were split.
        seed: of the split; None for rows in order.
    """

    parts: Mapping[str, npt.NDArray[np.int64]]
    n: int
    seed: int | None

    def __getitem__(self, name: str) -> npt.NDArray[np.int64]:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        """Number of parts."""
        return len(self.parts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in self.parts.items())
        return f"Split({self.n} rows: {sizes}; {self._how})"

    @property
    def _how(self) -> str:
        return "in order" if self.seed is None else f"seed {self.seed}"

    @property
    def checksum(self) -> str:
        """SHA-256 of the parts: their names and row numbers, in order."""
        content = np.concatenate([np.append(len(rows), rows) for rows in self.parts.values()]).astype(np.int64)
        return fingerprint(np.append(content, np.frombuffer("\n".join(self.parts).encode(), np.uint8)))

    def record(self) -> dict[str, Any]:
        """What it takes to repeat the split and to check it, for JSON."""
        return {
            "rows": self.n,
            "sizes": {name: len(rows) for name, rows in self.parts.items()},
            "method": IN_ORDER if self.seed is None else SHUFFLED,
            "seed": self.seed,
            "sha256": self.checksum,
        }


def split_rows(n: int, fractions: Mapping[str, float], seed: int) -> Split:
    """Splits n rows at random into parts with the given shares.

    The rows are shuffled by :func:`zoo.base.order.shuffled` and cut at the rounded cumulative shares: the same split on
    every machine and with every version.

    Args:
        n: number of rows.
        fractions: the share of each part by its name; they sum to 1.
        seed: of the split, from 0.

    Raises:
        ValueError: the shares do not sum to 1, or leave a part without a row.

    >>> split = split_rows(150, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=0)
    >>> split
    Split(150 rows: train 90, validation 30, test 30; seed 0)
    >>> split["test"][:5]
    array([ 5,  9, 12, 16, 26])
    """
    check_whole(n, "n", 1)
    shares = list(fractions.values())
    if not shares or abs(sum(shares) - 1) > 1e-9 or min(shares) <= 0:
        raise ValueError(f"fractions must be positive and sum to 1, got {dict(fractions)}")
    ends = [round(total * n) for total in accumulate(shares, initial=0.0)]
    if empty := [name for name, (a, b) in zip(fractions, pairwise(ends), strict=True) if a == b]:
        raise ValueError(f"fractions={dict(fractions)} leaves {empty[0]!r} without a row of {n}: choose a larger share")
    return Split(_cut(shuffled(n, check_whole(seed, "seed", 0)), fractions, ends), n, seed)


def rows_in_order(sizes: Mapping[str, int]) -> Split:
    """Splits rows in the order in which they stand: a published split such as MNIST's.

    Args:
        sizes: the number of rows of each part by its name, one part after the other.

    Raises:
        ValueError: a size is below 1, or there is none.

    >>> rows_in_order({"train": 50_000, "validation": 10_000, "test": 10_000})
    Split(70000 rows: train 50000, validation 10000, test 10000; in order)
    """
    if not sizes:
        raise ValueError("sizes is empty: name at least one part")
    ends = list(accumulate((check_whole(size, f"size of {name!r}", 1) for name, size in sizes.items()), initial=0))
    return Split(_cut(np.arange(ends[-1]), sizes, ends), ends[-1], None)


def _cut(order: npt.NDArray[np.int64], names: Mapping[str, Any], ends: list[int]) -> dict[str, npt.NDArray[np.int64]]:
    """The parts of an order of rows, each sorted."""
    return {name: np.sort(order[a:b]) for name, (a, b) in zip(names, pairwise(ends), strict=True)}
