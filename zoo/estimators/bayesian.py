"""Bayesian PCA and Bayesian mixtures, fitted by variational Bayes, as scikit-learn estimators."""

import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from guides.ascent import cavi
from zoo.base.checks import check_whole
from zoo.base.module import Module
from zoo.base.tables import ArrayLike
from zoo.diagnostics.guide.relevance import conjugate_factors, effective_size
from zoo.diagnostics.model.predictive_density import predictive_density
from zoo.estimators.common import Guide, array, check_components, trained
from zoo.estimators.linear import LinearTransformer
from zoo.estimators.mixture import Clusters
from zoo.infer.run import Fit
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.bayesian_pca import BayesianPCA as BayesianPCAModel
from zoo.posterior.engine import reading

DRAWS = 1000  # of the parameters, for the predictive density


def _ascended(
    model: Module,
    guide: Guide | None,
    rows: ArrayLike,
    weights: Tensor | None,
    *,
    restarts: int,
    steps: int,
    tol: float,
    seed: int,
) -> tuple[Fit, dict[str, Any]]:
    """A run by coordinate ascent, or with a guide of the model's own families, and the factors of its q.

    Raises:
        ValueError: the guide has other families, for which the rows' factors have no closed form.
    """
    if guide is None:
        starts = check_whole(restarts, "n_init")
        run: Fit = cavi(model, rows, weights=weights, restarts=starts, sweeps=steps, tol=tol, seed=seed)
    else:
        run = trained(model, guide, rows, weights, steps, seed)
    with reading(run, seed):
        factors = conjugate_factors(run)
    if factors is None:
        raise ValueError(f"guide={guide!r} has no factors of the model's own families: use None or 'MeanField'")
    if not run.converged:
        stopped = run.settings.get("stopped", "the steps are used up")
        warnings.warn(f"the bound has not settled ({stopped}): raise max_iter", ConvergenceWarning, stacklevel=3)
    return run, {site: _held(factor) for site, factor in factors.items()}


def _held(factor: Any) -> Any:
    """A factor with tensors of its own, which can be pickled: Pyro's refer to the parameters that they come from."""
    tensors = {own.name: getattr(factor, own.name) for own in fields(factor)}
    return replace(factor, **{name: value.detach().clone() for name, value in tensors.items()})


class BayesianPCA(LinearTransformer):
    r"""Principal components with priors on everything, of which superfluous ones are switched off.

    .. math:: x = W z + \mu + N(0, \tau^{-1} I), \quad w_d \sim N(0, \mathrm{diag}(\alpha)^{-1})

    Args:
        n_components: the most factors k; None takes one less than columns and rows.
        n_init: number of starts of coordinate ascent, of which the best bound is kept.
        guide: None for coordinate ascent; ``"MeanField"``, or a function of model and rows that builds a guide with
            factors of the model's own families, fits by SVI.
        tol: in nats per row.
        max_iter: the most sweeps, or steps of SVI.
        random_state: of the starts and of :meth:`sample`.

    Attributes:
        components_: posterior means of the loadings W' (k, d), the longest first.
        mean_: of the columns (d,).
        noise_variance_: 1 / E[tau].
        relevances_: E[alpha] (k,): large for factors that are switched off.
        n_components_: the number of factors in use.
        lower_bound_: the evidence lower bound, in nats over all rows.
        converged_, n_iter_: whether it had settled, and after how many sweeps.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        Bishop (1999), Variational principal components, ICANN.

    >>> from zoo.data import load
    >>> from zoo.estimators import BayesianPCA
    >>> x = load("iris").x.double().numpy()
    >>> BayesianPCA(2, random_state=0).fit(x).transform(x).shape
    (150, 2)
    """

    noise_variance_: float

    def __init__(
        self,
        n_components: int | None = None,
        *,
        n_init: int = 10,
        guide: Guide | None = None,
        tol: float = 1e-9,
        max_iter: int = 5_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_init = n_init
        self.guide = guide
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BayesianPCA":
        """Fits q of all parameters to rows (n, d).

        Args:
            X: the rows; NaN where an entry is missing at random.
            y: ignored.
            sample_weight: how often every row counts (n,): the same as repeating rows.

        Returns:
            the estimator.

        Raises:
            ValueError: rows that the model cannot explain, or a parameter out of range.
        """
        rows, weights = self._given(X, sample_weight, columns=2)
        n, d = rows.shape
        most = min(n - 1, d)
        usual = max(1, min(n, d) - 1) if self.n_components is None else self.n_components
        k = check_components(usual, most, f"the number of columns, {d}, and below that of rows, {n}")
        self.run_, factors = _ascended(
            BayesianPCAModel(d, k).double(),
            self.guide,
            self._named(rows),
            weights,
            restarts=self.n_init,
            steps=self.max_iter,
            tol=self.tol,
            seed=self._seed(),
        )
        weight = factors["weight"].mean.mT  # (k, d)
        order = weight.norm(dim=1).argsort(descending=True, stable=True)
        peak = weight.gather(1, weight.abs().argmax(1, keepdim=True))
        self._order, self._sign = order, torch.where(peak < 0, -1.0, 1.0).to(weight)[order]  # (k,), (k, 1)
        self._factors_of_q = factors
        self.components_ = array(weight[order] * self._sign)
        self.mean_ = array(factors["mean"].mean.squeeze(-1))
        self.noise_variance_ = float(1 / factors["precision"].mean)
        self.relevances_ = array(factors["relevance"].mean[order])
        self.n_components_ = effective_size(self.run_, rows).kept
        self.lower_bound_ = -float(self.run_.losses[-1]) * (n if weights is None else float(weights.sum()))
        self.converged_, self.n_iter_ = self.run_.converged, len(self.run_.losses)
        return self

    @torch.no_grad()
    def _factors(self, rows: Tensor) -> Tensor:
        model: Any = self.run_.model
        return model.row_factor(rows, self._factors_of_q).mean[:, self._order] * self._sign.mT

    def score_samples(self, X: Any) -> np.ndarray:
        """The log predictive density of every row (m,), averaged over 1,000 draws of the parameters, in nats."""
        return array(predictive_density(self.run_, self._new(X), draws=DRAWS).log_density)


class BayesianGaussianMixture(Clusters):
    r"""A Gaussian mixture with priors on everything; components that the data do not need empty.

    Args:
        n_components: the most components k.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
        weight_concentration_prior: a of the prior on the proportions; None takes 1 / k.
        weight_concentration_prior_type: ``"dirichlet_process"`` (broken sticks) or ``"dirichlet_distribution"``.
        n_init: number of starts of coordinate ascent, of which the best bound is kept.
        guide: None for coordinate ascent; ``"MeanField"``, or a function of model and rows that builds a guide with
            factors of the model's own families, fits by SVI.
        tol: in nats per row.
        max_iter: the most sweeps, or steps of SVI.
        random_state: of the starts and of :meth:`sample`.

    Attributes:
        weights_: E[pi] (k,).
        means_: E[mu] (k, d).
        precisions_, covariances_: E[Lambda] in the shape of ``covariance_type``, and its inverse.
        n_components_: the number of components in use.
        lower_bound_: the evidence lower bound, every constant kept, in nats over all rows.
        converged_, n_iter_: whether it had settled, and after how many sweeps.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, 10.2; Blei and Jordan (2006), Bayesian Analysis 1.

    >>> from zoo.data import load
    >>> from zoo.estimators import BayesianGaussianMixture
    >>> x = load("faithful").x.double().numpy()
    >>> BayesianGaussianMixture(4, n_init=3, weight_concentration_prior=1e-3, random_state=0).fit(x).n_components_
    2
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        weight_concentration_prior: float | None = None,
        weight_concentration_prior_type: str = "dirichlet_process",
        n_init: int = 10,
        guide: Guide | None = None,
        tol: float = 1e-9,
        max_iter: int = 5_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.weight_concentration_prior = weight_concentration_prior
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.n_init = n_init
        self.guide = guide
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BayesianGaussianMixture":
        """Fits q of all parameters to rows (n, d).

        Args:
            X: the rows; NaN where an entry is missing at random.
            y: ignored.
            sample_weight: how often every row counts (n,): the same as repeating rows.

        Returns:
            the estimator.

        Raises:
            ValueError: rows that the model cannot explain, or a parameter out of range.
        """
        rows, weights = self._given(X, sample_weight)
        k = check_whole(self.n_components, "n_components")
        if k > len(rows):
            raise ValueError(f"n_components={k} exceeds n_samples = {len(rows)}: use far fewer")
        types = {"dirichlet_process": "sticks", "dirichlet_distribution": "dirichlet"}
        if self.weight_concentration_prior_type not in types:
            known = ", ".join(map(repr, types))
            raise ValueError(
                f"weight_concentration_prior_type must be one of {known}; got {self.weight_concentration_prior_type!r}"
            )
        proportions: Any = types[self.weight_concentration_prior_type] if k > 1 else "dirichlet"
        kind: Any = self.covariance_type
        prior = 1 / k if self.weight_concentration_prior is None else self.weight_concentration_prior
        model = BayesianGMM(rows.shape[1], k, kind, concentration=prior, proportions=proportions).double()
        self.run_, factors = _ascended(
            model,
            self.guide,
            self._named(rows),
            weights,
            restarts=self.n_init,
            steps=self.max_iter,
            tol=self.tol,
            seed=self._seed(),
        )
        self._keep(factors, rows, len(rows) if weights is None else float(weights.sum()))
        return self

    def _keep(self, factors: dict[str, Any], rows: Tensor, size: float) -> None:
        """Sets the attributes."""
        self._factors_of_q = factors
        if "sticks" in factors:
            taken, left = factors["sticks"].mean.unbind(-1)
            one = taken.new_ones(1)
            self.weights_ = array(torch.cat([taken, one]) * torch.cat([one, left.cumprod(0)]))
        else:
            self.weights_ = array(factors["proportions"].mean)
        self.means_ = array(factors["mean"].mean)
        precision = factors["precision"].mean
        matrix = self.covariance_type in ("full", "tied")
        if self.covariance_type == "spherical":
            precision = precision.squeeze(-1)
        self.precisions_ = array(precision)
        self.covariances_ = array(torch.linalg.inv(precision) if matrix else 1 / precision)
        self.n_components_ = effective_size(self.run_, rows).kept
        self.lower_bound_ = -float(self.run_.losses[-1]) * size
        self.converged_, self.n_iter_ = self.run_.converged, len(self.run_.losses)

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """q of the components of rows (m, d), given those of the parameters: (m, n_components)."""
        rows = self._new(X)
        model: Any = self.run_.model
        return array(model.row_factor(rows, self._factors_of_q).mean)

    def score_samples(self, X: Any) -> np.ndarray:
        """The log predictive density of every row (m,), averaged over 1,000 draws of the parameters, in nats."""
        return array(predictive_density(self.run_, self._new(X), draws=DRAWS).log_density)
