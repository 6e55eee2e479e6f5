"""PPCA and factor analysis as scikit-learn transformers."""

import warnings
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from zoo.alignment.canonical import to_canonical
from zoo.base.module import Module
from zoo.estimators.common import Guide, MaximumLikelihood, Transformer, array, check_components, trained
from zoo.infer.expectation_maximisation import em
from zoo.models.factor_analysis import FactorAnalysis as FactorAnalysisModel
from zoo.models.ppca import PPCA as PPCAModel

Rotation = Literal["varimax", "quartimax"]


class LinearTransformer(Transformer):
    """What estimators with loadings share; the rows' factors are their posterior means."""

    components_: np.ndarray
    mean_: np.ndarray

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means of the factors given rows (m, d), of which entries may be missing: (m, n_components)."""
        rows = self._new(X)
        return array(self._factors(rows))

    def _factors(self, rows: Tensor) -> Tensor:
        """The posterior means (m, k)."""
        raise NotImplementedError

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The rows that factors (m, n_components) stand for, without noise: (m, d)."""
        return self._given_factors(X) @ self.components_ + self.mean_

    def get_covariance(self) -> np.ndarray:
        """The covariance of the columns under the model, W W' + diag(noise) (d, d)."""
        check_is_fitted(self)
        return self.components_.T @ self.components_ + np.diag(self._noise())

    def get_precision(self) -> np.ndarray:
        """The inverse of :meth:`get_covariance` (d, d), by Woodbury's identity."""
        check_is_fitted(self)
        scaled = self.components_ / self._noise()  # (k, d)
        inner = np.eye(len(scaled)) + scaled @ self.components_.T
        return np.diag(1 / self._noise()) - scaled.T @ np.linalg.solve(inner, scaled)

    def _noise(self) -> np.ndarray:
        """Noise variances (d,)."""
        return np.broadcast_to(self.noise_variance_, self.mean_.shape)

    @property
    def _n_features_out(self) -> int:  # type: ignore[override]
        return len(self.components_)


class MaximumLikelihoodFactors(MaximumLikelihood, LinearTransformer):
    """Factors by maximum likelihood: what PPCA and factor analysis share."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "MaximumLikelihoodFactors":
        """Fits the model to rows (n, d).

        Args:
            X: the rows; NaN where an entry is missing at random.
            y: ignored.
            sample_weight: how often every row counts (n,): the same as repeating rows.

        Returns:
            the estimator.

        Raises:
            ValueError: rows for which the likelihood has no maximum, or a parameter out of range.
        """
        rows, weights = self._given(X, sample_weight, columns=2)
        model = self._build(rows if weights is None else rows[weights > 0]).double()
        named, seed = self._named(rows), self._seed()
        if self.guide is None:
            run: Any = em(model, named, weights=weights, steps=self.max_iter, tol=self.tol, seed=seed)
            self.loglike_, self.n_iter_ = run.log_likelihood.tolist(), run.steps
        else:
            run = trained(model, self.guide, named, weights, self.max_iter, seed)
            size = len(rows) if weights is None else float(weights.sum())
            self.loglike_, self.n_iter_ = (-size * run.losses).tolist(), len(run.losses)
        if not run.converged:
            warnings.warn(
                f"{type(self).__name__} did not converge ({run.settings['stopped']}): raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.run_ = to_canonical(run, self._rotation())
        found: Any = self.run_.model
        self.components_, self.mean_ = array(found.weight.mT), array(found.mean)
        self.noise_variance_ = self._noise_of(array(found.noise))
        return self

    def _build(self, rows: Tensor) -> Module:
        """The model for rows (n, d), of which all count."""
        raise NotImplementedError

    def _rotation(self) -> Any:
        return "principal"

    def _noise_of(self, noise: np.ndarray) -> Any:
        return noise

    @torch.no_grad()
    def _factors(self, rows: Tensor) -> Tensor:
        model: Any = self.run_.model
        return model.posterior(rows).mean


class PPCA(MaximumLikelihoodFactors):
    r"""Probabilistic principal component analysis: :math:`x = W z + \mu + N(0, \sigma^2 I)`, :math:`z \sim N(0, I)`.

    Args:
        n_components: number of factors k < d; None takes one less than the dimensions that the rows
            span, at most d - 1.
        guide: None maximises the likelihood in closed form, by EM where entries are missing; the name of a guide in
            :mod:`guides`, or a function of model and rows that builds one, fits by SVI.
        tol: of EM, in nats per row.
        max_iter: the most steps.
        random_state: of random starts and of :meth:`sample`.

    Attributes:
        components_: loadings W' (k, d), in principal axes: the rows are orthogonal, the longest first.
        mean_: of the columns (d,).
        noise_variance_: sigma^2.
        loglike_: log-likelihood after every step, in nats over all rows.
        n_iter_: the number of steps.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61(3).

    >>> from zoo.data import load
    >>> from zoo.estimators import PPCA
    >>> x = load("iris").x.double().numpy()
    >>> PPCA(2).fit(x).transform(x).shape
    (150, 2)
    """

    noise_variance_: float

    def __init__(
        self,
        n_components: int | None = None,
        *,
        guide: Guide | None = None,
        tol: float = 1e-9,
        max_iter: int = 10_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.guide = guide
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _build(self, rows: Tensor) -> Module:
        d = rows.shape[1]
        if self.n_components is None:
            return PPCAModel(d, max(1, _rank(rows) - 1))
        return PPCAModel(d, check_components(self.n_components, d - 1, f"one less than the {d} columns"))

    def _noise_of(self, noise: np.ndarray) -> float:
        return float(noise[0])


class FactorAnalysis(MaximumLikelihoodFactors):
    r"""Factor analysis: :math:`x = W z + \mu + N(0, \Psi)` with a noise variance for every column.

    Args:
        n_components: number of factors k < d; None takes the largest number that the covariance identifies, for which
            (d - k)^2 >= d + k.
        rotation: None (principal axes, W' Psi^-1 W diagonal), ``"varimax"`` or ``"quartimax"``; for oblique ones see
            :func:`zoo.alignment.rotate`, which takes ``run_``.
        guide: None maximises the likelihood, by EM where entries are missing; the name of a guide in :mod:`guides`, or
            a function of model and rows that builds one, fits by SVI.
        tol: of EM, in nats per row.
        max_iter: the most steps.
        random_state: of random starts and of :meth:`sample`.

    Attributes:
        components_: loadings W' (k, d).
        mean_: of the columns (d,).
        noise_variance_: Psi (d,), at least 0.005 of the column's variance.
        loglike_: log-likelihood after every step, in nats over all rows.
        n_iter_: the number of steps.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        Rubin and Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.

    >>> import numpy as np
    >>> from zoo.data import load
    >>> from zoo.estimators import FactorAnalysis
    >>> x = load("holzinger").x.double().numpy()
    >>> round(FactorAnalysis(2).fit(x).score(x) * len(x), 4)
    -3760.2453
    >>> x[0, 3] = np.nan
    >>> FactorAnalysis(2).fit(x).transform(x).shape
    (301, 2)
    """

    noise_variance_: np.ndarray

    def __init__(
        self,
        n_components: int | None = None,
        *,
        rotation: Rotation | None = None,
        guide: Guide | None = None,
        tol: float = 1e-9,
        max_iter: int = 10_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.rotation = rotation
        self.guide = guide
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _build(self, rows: Tensor) -> Module:
        d = rows.shape[1]
        if self.n_components is None:
            return FactorAnalysisModel(d, max(1, max(k for k in range(d) if (d - k) ** 2 >= d + k)))
        return FactorAnalysisModel(d, check_components(self.n_components, d - 1, f"one less than the {d} columns"))

    def _rotation(self) -> Any:
        if self.rotation not in (None, *get_args(Rotation)):
            raise ValueError(f"rotation must be None, 'varimax' or 'quartimax', got {self.rotation!r}")
        return self.rotation or "principal"


def _rank(rows: Tensor) -> int:
    """The number of dimensions that rows (n, d) span around their mean; the most possible where entries are missing."""
    if rows.isnan().any():
        return min(len(rows) - 1, rows.shape[1])
    return int(torch.linalg.matrix_rank(rows - rows.mean(0)))
