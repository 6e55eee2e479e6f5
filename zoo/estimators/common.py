"""What all estimators share: the door for rows, weights and seeds, and the training of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import guides
from zoo.base.callables import PyroCallable
from zoo.base.checks import check_whole
from zoo.base.module import Module
from zoo.base.tables import ArrayLike, named_rows
from zoo.diagnostics.model.criteria import free_parameters
from zoo.factors.generation import generate
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

    def score_samples(self, X: Any) -> np.ndarray:
        """The log density of every row (m,), in nats; that of its observed entries where some are missing."""
        raise NotImplementedError

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean of :meth:`score_samples`, in nats per row."""
        return float(np.average(self.score_samples(X), weights=sample_weight))


class Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """Base class of the estimators of factors, of which there are ``_n_features_out``."""

    _n_features_out: int

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """New rows from the fitted model (n_samples, d), noise included; by ``random_state``."""
        check_is_fitted(self)
        return array(generate(self.run_, check_whole(n_samples, "n_samples"), seed=self._seed()).x)

    def _given_factors(self, X: Any) -> np.ndarray:
        """Factors given to ``inverse_transform`` (m, n_components).

        Raises:
            ValueError: they have another shape.
        """
        check_is_fitted(self)
        factors = np.asarray(X, dtype=np.float64)
        if factors.ndim != 2 or factors.shape[1] != self._n_features_out:
            raise ValueError(f"X has shape {factors.shape}: pass factors (m, {self._n_features_out})")
        return factors


class MaximumLikelihood(Estimator):
    """What estimators of a conjugate model share: its likelihood in closed form."""

    @torch.no_grad()
    def score_samples(self, X: Any) -> np.ndarray:
        """The log density of every row (m,), in nats; that of its observed entries where some are missing."""
        rows = self._new(X)
        model: Any = self.run_.model
        return array(model.log_marginal(rows))

    def bic(self, X: Any) -> float:
        """Bayesian information criterion, -2 log L + p log n: the lower, the better (mclust's is its negative)."""
        return self._deviance(X) + free_parameters(self.run_.model) * float(np.log(len(X)))

    def aic(self, X: Any) -> float:
        """Akaike information criterion, -2 log L + 2 p: the lower, the better."""
        return self._deviance(X) + 2.0 * free_parameters(self.run_.model)

    def _deviance(self, X: Any) -> float:
        return -2.0 * float(self.score_samples(X).sum())


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
