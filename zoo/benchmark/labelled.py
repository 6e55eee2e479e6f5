"""Tables with classes: the cases of the suite ``clustering``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.benchmark.suite import Case, Data
from zoo.data.loading import load
from zoo.data.splits import split_rows

HELD_OUT = 0.2  # of the rows
DRAWS_OF = 1  # seed of the uniform noise on whole numbers


@dataclass(frozen=True)
class Labelled:
    """A table with the classes of its rows, which no method sees.

    Attributes:
        name: of the data set and the case.
        factors: of methods that find factors first.
        standardised: whether columns are scaled by the mean and standard deviation of the training rows.
        levels: of grey; uniform noise makes them a density. None for columns that are real numbers.
        most: rows, the first ones; None for all.
        floor: of the variances of mixtures, as a fraction of the columns'; see :class:`zoo.GMM`.
        wide: whether the table has too many columns for a full covariance in every component.
        starts: of a mixture of the rows, at most: EM takes minutes on many rows and columns.
    """

    name: str
    factors: int
    standardised: bool = False
    levels: int | None = None
    most: int | None = None
    floor: float = 1e-6
    wide: bool = False
    starts: int = 1000

    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows (n, d), float64, before any scaling, and the classes (n,)."""
        found = load(self.name, dtype=torch.float64)
        assert found.labels is not None
        x, labels = found.x[: self.most], found.labels[: self.most]
        if self.levels is not None:
            counts = x.round() if x.max() > 1 else (x * (self.levels - 1)).round()
            x = dequantised(counts, self.levels)
        return x, labels

    def load(self, seed: int) -> Data:
        """Training and held-out rows, split at random; the classes of both in ``extra``."""
        x, labels = self.rows()
        split = split_rows(len(x), {"train": 1 - HELD_OUT, "test": HELD_OUT}, seed)
        train, test = (torch.from_numpy(split[part]) for part in ("train", "test"))
        if self.standardised:
            x = (x - x[train].mean(0)) / x[train].std(0, correction=0)
        extra = {"labels": labels[train].numpy(), "classes": len(labels.unique())}
        extra |= {"factors": self.factors, "floor": self.floor, "starts": self.starts}
        return Data(x[train], x[test], extra=extra)


def dequantised(counts: Tensor, levels: int, seed: int = DRAWS_OF) -> Tensor:
    """Whole numbers 0 to levels - 1 as real numbers in [0, 1): (c + u) / levels with u uniform in [0, 1).

    The density of these is a lower bound on the probability of the counts (Uria, Murray and Larochelle 2013), and it is
    bounded, where columns of whole numbers may be constant within a component. The draws use the raw output of PCG64,
    whose stream NumPy guarantees.

    >>> bool((dequantised(torch.tensor([[0.0, 3.0]]), 4).mul(4).floor() == torch.tensor([[0.0, 3.0]])).all())
    True
    """
    raw = np.random.PCG64(seed).random_raw(counts.numel()) >> np.uint64(11)
    uniform = torch.from_numpy(raw.astype(np.float64) * 2.0**-53).reshape(counts.shape)
    return (counts.double() + uniform) / levels


TABLES = (
    Labelled("iris", 2),
    Labelled("wine", 3, standardised=True),
    Labelled("digits", 10, levels=17, floor=1e-3),
    Labelled("mnist", 20, levels=256, most=10_000, wide=True, starts=2),
)


def labelled_case(table: Labelled) -> Case:
    """The case of a table."""
    load_rows: Callable[[int], Data] = table.load
    return Case(
        table.name,
        load_rows,
        {
            "data": table.name,
            "rows": "all" if table.most is None else f"the first {table.most}",
            "held_out": HELD_OUT,
            "split": "zoo.data.split_rows, seed of the run",
            "scaled": "by mean and standard deviation of the training rows" if table.standardised else "no",
            "dequantised": "no" if table.levels is None else f"(c + uniform) / {table.levels}, seed {DRAWS_OF}",
            "components": "the number of classes",
            "factors": table.factors,
            "floor": table.floor,
            "most_starts": table.starts,
        },
        data=(table.name,),
    )
