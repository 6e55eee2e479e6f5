"""What all estimators share: the door for rows, weights and seeds, and the training of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import guides
from zoo.base.callables import PyroCallable
from zoo.base.checks import check_whole
from zoo.base.module import Module
from zoo.base.tables import ArrayLike, named_rows
from zoo.infer.fitting import fit
from zoo.infer.run import Fit

Guide = str | Callable[..., PyroCallable]  # a name such as "MeanField", or a function of model and rows

SEEDS = 2**31 - 1


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """Rows x (n, d) and the names of their columns, as :func:`zoo.base.tables.named_rows` reads them."""

    x: Tensor
    columns: tuple[str, ...]


class Estimator(BaseEstimator):
    """Base class of the estimators: rows in float64, in which NaN marks an entry missing at random."""

    run_: Fit

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _given(self, X: Any, sample_weight: Any = None, *, columns: int = 1) -> tuple[Tensor, Tensor | None]:
        """The rows to fit (n, d), and their weights (n,) or None."""
        rows = validate_data(
            self,
            X,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2,
            ensure_min_features=columns,
        )
        if sample_weight is None:
            return named_rows(rows).values, None
        weights = np.asarray(sample_weight, dtype=np.float64)
        if weights.ndim == 0:
            weights = np.full(len(rows), weights)
        if weights.shape != (len(rows),):
            raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(len(rows),)}!")
        if not weights.any():
            raise ValueError("all entries of sample_weight are zero: at least one row must count")
        return named_rows(rows).values, named_rows(weights).values

    def _new(self, X: Any) -> Tensor:
        """Rows given after the fit (m, d)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return named_rows(rows).values

    def _named(self, rows: Tensor) -> ArrayLike:
        """The rows with the names of their columns, where :meth:`fit` was given a data frame."""
        columns = tuple(map(str, getattr(self, "feature_names_in_", ())))
        return NamedTensor(rows, columns) if columns else rows

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(SEEDS))


def check_components(n_components: Any, most: int, why: str) -> int:
    """The number of components; ``most`` if it is None.

    Raises:
        ValueError: it is no whole number from 1 to ``most``.
    """
    if n_components is None:
        return most
    if check_whole(n_components, "n_components") > most:
        raise ValueError(f"n_components={n_components} must be at most {most}, {why}")
    return int(n_components)


def guide_of(guide: Guide, model: Module, rows: Tensor) -> PyroCallable:
    """The guide of a name or of a function.

    Raises:
        ValueError: there is no guide of this name.
    """
    if not isinstance(guide, str):
        return guide(model, rows)
    kinds: dict[str, Any] = {name: getattr(guides, name) for name in guides.__all__ if name != "CannotServe"}
    known = {name: kind for name, kind in kinds.items() if isinstance(kind, type)}
    if guide not in known:
        raise ValueError(f"there is no guide {guide!r}: known are {', '.join(known)}; or pass a function (model, x)")
    return kinds[guide](model) if guide == "Exact" else kinds[guide](model, rows)


def trained(model: Module, guide: Guide, x: ArrayLike, weights: Tensor | None, steps: int | None, seed: int) -> Fit:
    """A fit of the model with a guide, by :func:`zoo.fit`."""
    weighing: Any = {} if weights is None else {"weights": weights}
    return fit(
        model, guide_of(guide, model, named_rows(x).values), x, steps=steps, seed=seed, progress=False, **weighing
    )


def array(values: Tensor) -> np.ndarray:
    """A tensor as a NumPy array with its own memory."""
    return np.array(values.detach().cpu().numpy())
