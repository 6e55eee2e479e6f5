"""Data sets in training, validation and test rows, with a record of what they are: the input of a benchmark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zoo.data.binarisation import How, binarised, binarising
from zoo.data.dataset import Dataset
from zoo.data.fingerprints import fingerprint
from zoo.data.loading import load
from zoo.data.splits import Split, rows_in_order, split_rows

NAMES = ("train", "validation", "test")
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
PUBLISHED = {"mnist": ({"train": 50_000, "validation": 10_000, "test": 10_000}, "mnist-test")}


@dataclass(frozen=True, eq=False, repr=False)
class Parts:
    """Training, validation and test rows of a data set.

    Attributes:
        train: rows to fit to.
        validation: rows for early stopping and for choices.
        test: rows to report.
        split: the row numbers of the three; of data in two files they go on from the first to the second.
        how: how the rows were binarised; None for rows as they are.
        seed: of the binarisation.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    split: Split
    how: How | None = None
    seed: int | None = None

    def __repr__(self) -> str:
        values = "" if self.how is None else f", binarised ({self.how}, seed {self.seed})"
        return f"Parts({self.train.name}: {self.split!r}{values})"

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """For :func:`zoo.fit`: draws the rows of every batch if they are binarised dynamically."""
        return None if self.how is None else binarising(self.how)

    def binarised(self, how: How, seed: int = 0) -> "Parts":
        """The same rows as zeros and ones; see :func:`zoo.data.binarised`.

        ``dynamic`` leaves the training rows as they are, for ``transform`` to draw. The parts' draws are independent.

        Raises:
            ValueError: the rows are binarised already, or have entries outside [0, 1].
        """
        if self.how is not None:
            raise ValueError(f"{self.train.name} is binarised already ({self.how}): load it anew")
        train, validation, test = (
            replace(part, x=part.x if _drawn_later(name, how) else binarised(part.x, how, seed, stream=k))
            for k, (name, part) in enumerate(self._parts().items())
        )
        return Parts(train, validation, test, self.split, how, seed)

    def record(self) -> dict[str, Any]:
        """What the rows are, for JSON: provenance, split, binarisation, and the fingerprint of each part."""
        return {
            "data": self.train.name,
            "source": self.train.source,
            "licence": self.train.licence,
            "columns": len(self.train.columns),
            "split": self.split.record(),
            "binarised": None if self.how is None else {"how": self.how, "seed": self.seed},
            "fingerprints": {name: fingerprint(part.x) for name, part in self._parts().items()},
        }

    def _parts(self) -> dict[str, Dataset]:
        return {name: getattr(self, name) for name in NAMES}


def load_parts(
    source: str, *, fractions: Mapping[str, float] | None = None, seed: int = 0, dtype: torch.dtype | None = None
) -> Parts:
    """Loads a data set in training, validation and test rows.

    MNIST has a published split: the first 50,000 and the last 10,000 rows of its training file, and its test file.
    Other data are split at random by :func:`zoo.data.split_rows`.

    Args:
        source: a name or a path, as for :func:`zoo.data.load`.
        fractions: the shares of ``train``, ``validation`` and ``test``; by default the published split, else 0.6, 0.2
            and 0.2.
        seed: of a random split.
        dtype: floating-point type of the rows; by default torch's default type.

    Raises:
        ValueError: ``fractions`` has other parts, or as for :func:`zoo.data.load`.

    >>> load_parts("iris", seed=3)
    Parts(iris: Split(150 rows: train 90, validation 30, test 30; seed 3))
    """
    whole = load(source, dtype=dtype)
    if fractions is None and source in PUBLISHED:
        sizes, other = PUBLISHED[source]
        split = rows_in_order(sizes)
        train, validation = (whole.rows(torch.from_numpy(split[name])) for name in NAMES[:2])
        return Parts(train, validation, load(other, dtype=dtype), split)
    shares = SHARES if fractions is None else fractions
    if set(shares) != set(NAMES):
        raise ValueError(f"fractions must be of {', '.join(NAMES)}; got {', '.join(shares)}")
    split = split_rows(len(whole), {name: shares[name] for name in NAMES}, seed)
    train, validation, test = (whole.rows(torch.from_numpy(split[name])) for name in NAMES)
    return Parts(train, validation, test, split)


def _drawn_later(name: str, how: How) -> bool:
    """Whether the rows of a part are drawn at every step, and not here."""
    return name == "train" and how == "dynamic"
