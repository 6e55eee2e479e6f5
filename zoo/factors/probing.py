"""Few-label classification on the factors z, compared with classification on the rows x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.data.dataset import Dataset
from zoo.factors.decoding import encode, factor_site


@dataclass(frozen=True, eq=False)
class Probe:
    """Accuracy on rows held out, by the number of labelled rows.

    Attributes:
        sizes: the numbers of labelled rows (s,).
        z: accuracy of the classifier on the posterior means, (repeats, s).
        x: accuracy of the classifier on the rows themselves, (repeats, s), with the same labelled and held-out rows.
        held_out: the number of rows on which the accuracy is measured.
        most_common: the share of the most common label: the accuracy of always predicting it.
    """

    sizes: tuple[int, ...]
    z: Tensor
    x: Tensor
    held_out: int
    most_common: float

    def summary(self) -> dict[str, float]:
        """Mean accuracy on factors and on rows with the most labels, and that of predicting the most common label."""
        most = max(range(len(self.sizes)), key=lambda i: self.sizes[i])
        found = {"labelled": float(self.sizes[most]), "z": float(self.z[:, most].mean())}
        return found | {"x": float(self.x[:, most].mean()), "most_common": self.most_common}

    def frame(self) -> pl.DataFrame:
        """One line per size: mean accuracy and standard error over the repeats, of z, of x and of their difference.

        Every repeat uses the same rows for both, so the error of the difference is that of paired values.
        """
        columns: dict[str, Any] = {"labelled": list(self.sizes)}
        for name, value in (("z", self.z), ("x", self.x), ("difference", self.z - self.x)):
            columns[name] = value.mean(0).tolist()
            columns[f"{name}_se"] = (value.std(0) / len(value) ** 0.5).tolist()
        return pl.DataFrame(columns)

    def __repr__(self) -> str:
        lines = [
            f"{line['labelled']:>8}   {line['z']:.3f} ({line['z_se']:.3f})   {line['x']:.3f} ({line['x_se']:.3f})"
            for line in self.frame().iter_rows(named=True)
        ]
        head = f"Accuracy on {self.held_out} held-out rows (standard error over {len(self.z)} repeats)"
        return "\n".join([head, "labelled   on z            on x", *lines])


def probe(
    run: Trained,
    x: ArrayLike,
    labels: Tensor | np.ndarray | Sequence[Any] | None = None,
    *,
    sizes: Sequence[int] = (10, 20, 50, 100, 200),
    repeats: int = 20,
    held_out: float = 0.5,
    draws: int = 200,
    seed: int = 0,
) -> Probe:
    """Accuracy of logistic regression on the factors and on the rows, for increasing numbers of labelled rows.

    In every repeat the rows are shuffled, the last ones are held out, and the first ones, with at least one of every
    class, are the labelled ones. Both classifiers (scikit-learn's, with its default penalty) standardise their inputs
    by the labelled rows. In the classifier on the rows, a missing entry is replaced by the mean of the labelled entries
    in its column. The model never uses labels, but it may have been fitted to the held-out rows: pass rows it was not
    fitted to where that matters. The standard errors are those of the choice of rows; since repeats share rows, they
    are somewhat too small (Nadeau and Bengio 2003, Machine Learning 52).

    Args:
        run: a trained pair.
        x: rows (n, d) or a :class:`zoo.data.Dataset`, whose labels are then used.
        labels: n labels; None uses the data set's.
        sizes: increasing numbers of labelled rows, each at least the number of classes.
        repeats: number of shuffles, at least 2.
        held_out: the share of the rows on which the accuracy is measured.
        draws: number of draws for the posterior means, where these have no closed form.
        seed: seed of the shuffles and the draws.

    Raises:
        ValueError: the number of labels differs from that of the rows, there is only one class, a size is below the
            number of classes or above the number of rows that are not held out, or an argument is out of range.
    """
    run = pair_of(run)
    factor_site(run, "probe", decoding=False)
    if labels is None and isinstance(x, Dataset):
        labels = x.labels
    if labels is None:
        raise ValueError("labels is None, and x has none: pass one label per row")
    rows = rows_of(run, x)
    classes, codes = _classes(labels, len(rows))
    check_whole(repeats, "repeats", 2)
    count = round(held_out * len(rows)) if 0 < held_out < 1 else 0
    if not count:
        raise ValueError(f"held_out must be a share of the rows between 0 and 1, got {held_out}")
    _check_sizes(sizes, classes, len(rows) - count, count)
    inputs = [encode(run, rows, draws=draws, seed=seed).cpu().double().numpy(), rows.cpu().double().numpy()]
    random = np.random.default_rng(seed)
    scores = np.empty((2, repeats, len(sizes)))
    for repeat in range(repeats):
        order = random.permutation(len(rows))
        first = np.unique(codes[order], return_index=True)[1]  # one of every class
        order = np.concatenate([order[first], np.delete(order, first)])
        test = order[-count:]
        for i, features in enumerate(inputs):
            for j, size in enumerate(sizes):
                train = order[:size]
                scores[i, repeat, j] = _accuracy(features[train], codes[train], features[test], codes[test])
    z, raw = torch.from_numpy(scores)
    return Probe(tuple(int(s) for s in sizes), z, raw, count, float(np.bincount(codes).max() / len(codes)))


def _accuracy(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    from sklearn.impute import SimpleImputer  # imported here, as it takes a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(
        SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression(max_iter=5000)
    )
    return float(classifier.fit(x, y).score(x_test, y_test))


def _classes(labels: Tensor | np.ndarray | Sequence[Any], n: int) -> tuple[int, np.ndarray]:
    """The number of classes, and codes (n,) from 0."""
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if given.shape != (n,):
        raise ValueError(f"labels has shape {given.shape}, but x has {n} rows: pass one label per row")
    levels, codes = np.unique(given, return_inverse=True)
    if len(levels) < 2:
        raise ValueError(f"labels has only one class ({levels[0]}): pass at least two")
    if np.issubdtype(given.dtype, np.floating) and len(levels) > 100:
        raise ValueError(f"labels has {len(levels)} distinct values: pass classes, not measurements")
    return len(levels), codes


def _check_sizes(sizes: Sequence[int], classes: int, most: int, held_out: int) -> None:
    if not len(sizes):
        raise ValueError("sizes is empty: pass the numbers of labelled rows")
    for size in sizes:
        if check_whole(size, "sizes") > most:
            raise ValueError(
                f"sizes includes {size}, but only {most} rows remain besides the {held_out} held out: reduce it, "
                "or reduce held_out"
            )
        if size < classes:
            raise ValueError(f"sizes includes {size}, but there are {classes} classes: take at least one row of each")
