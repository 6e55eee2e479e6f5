"""The data set that :func:`zoo.data.load` returns."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A table of numbers with optional labels and a note of its origin.

    Args:
        x: the data, (n, d), floating point; missing entries are NaN.
        labels: class codes (n,), int64, indices into ``label_names``; None without labels.
        label_names: the names of the classes; empty without labels.
        columns: the names of the d columns of ``x``.
        name: the data set's name, or the file's name without its suffix.
        source: a citation of the origin; for a file its name.
        licence: terms of use.
        index: the names of the n rows, numbers or text; None for rows that are merely counted.
        notes: how a file was read, where that was found out from its content.
    """

    x: Tensor
    labels: Tensor | None
    label_names: tuple[str, ...]
    columns: tuple[str, ...]
    name: str
    source: str
    licence: str
    index: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows n."""
        return len(self.x)

    def __repr__(self) -> str:
        rows, width = self.x.shape
        labels = "no labels" if self.labels is None else f"{len(self.label_names)} labels"
        return f"Dataset({self.name}: {rows} rows x {width} columns, {labels}; {self.source})"

    def split(self, test: float = 0.2, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """Splits the rows at random into a training and a test part.

        The rows of each part keep their order. The global random generator is not affected.

        Args:
            test: the share of rows in the test part, between 0 and 1.
            seed: seed of the split.

        Returns:
            The training part, (n - m, d), and the test part, (m, d), with m = round(test * n).

        Raises:
            ValueError: one of the two parts would be empty.

        >>> from zoo.data import load
        >>> train, test = load("iris").split(test=0.2)
        >>> len(train), len(test)
        (120, 30)
        """
        held_out = round(test * len(self)) if 0 < test < 1 else 0
        if not 0 < held_out < len(self):
            raise ValueError(
                f"test={test} leaves one part of {len(self)} rows empty: "
                "choose a share between 0 and 1 that gives both parts a row"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.rows(order[held_out:]), self.rows(order[:held_out])

    def rows(self, index: Tensor) -> "Dataset":
        """The rows with the given numbers (m,), in ascending order, with their labels and names."""
        index = index.sort().values.to(self.x.device)
        labels = None if self.labels is None else self.labels[index.to(self.labels.device)]
        rows = None if self.index is None else self.index[index.cpu().numpy()]
        return replace(self, x=self.x[index], labels=labels, index=rows)
