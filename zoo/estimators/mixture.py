"""Gaussian mixtures as a scikit-learn estimator."""

import copy
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from zoo.base.checks import check_whole
from zoo.base.random import seeded
from zoo.estimators.common import Estimator, Guide, MaximumLikelihood, array, trained
from zoo.factors.generation import generate
from zoo.infer.expectation_maximisation import em
from zoo.infer.guard import UnboundedLikelihood
from zoo.infer.run import Fit
from zoo.models.gmm import GMM

STARTS = {"random_from_data": "random"}  # scikit-learn's names of our starts


class Clusters(DensityMixin, Estimator):
    """What the mixtures share."""

    means_: np.ndarray
    score = Estimator.score  # in the place of the mixin's, which is empty

    def predict_proba(self, X: Any) -> np.ndarray:
        """The responsibilities of the components for rows (m, d): (m, n_components)."""
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        """The component with the largest responsibility for every row (m,)."""
        return self.predict_proba(X).argmax(1)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """Fits the model, and gives the component of every row (n,)."""
        return self.fit(X, y, sample_weight).predict(X)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """New rows from the fitted model (n_samples, d) and their components (n_samples,), sorted by component."""
        check_is_fitted(self)
        found = generate(self.run_, check_whole(n_samples, "n_samples"), seed=self._seed())
        component = array(found.latents["component"]).astype(int)
        order = component.argsort(kind="stable")
        return array(found.x)[order], component[order]


class GaussianMixture(MaximumLikelihood, Clusters):
    r"""A mixture of Gaussians: :math:`p(x) = \sum_j \pi_j N(x \mid \mu_j, \Sigma_j)`.

    Args:
        n_components: number of components k.
        covariance_type: ``"full"``, ``"tied"``, ``"diag"``, ``"spherical"``, ``"tied_diag"`` or ``"tied_spherical"``,
            or mclust's names (VVV EEE VVI VII EEI EII).
        floor: the smallest variance in any direction, as a fraction of the columns' variances, below which no component
            shrinks; 0 for none. It takes the place of ``reg_covar``, which depends on the columns' units.
        n_init: number of starts, of which the best is kept.
        init_params: ``"kmeans"``, ``"k-means++"`` or ``"random_from_data"`` (any rows).
        weights_init, means_init, precisions_init: proportions (k,), means (k, d) and precisions, in the shape of
            ``precisions_``, to start from; those that are None come from ``init_params``.
        labels_init: the component of every row (n,) to start from.
        warm_start: whether another call of ``fit`` goes on from the parameters of the last one.
        guide: None fits by EM; the name of a guide in :mod:`guides`, or a function of model and rows, by SVI.
        tol: of EM, in nats per row.
        max_iter: the most steps.
        random_state: of the starts and of :meth:`sample`.

    Attributes:
        weights_: proportions (k,).
        means_: (k, d).
        covariances_, precisions_: in the shape of ``covariance_type``: (k, d, d), (d, d), (k, d), (k,), (d,) or ().
        precisions_cholesky_: upper triangular factors U, with U U' the precisions, or their square roots.
        converged_: whether the log-likelihood had settled, with no component at its floor.
        n_iter_: steps of the best start.
        lower_bound_: its log-likelihood, in nats per row.
        lower_bounds_: the same after every step.
        run_: the fitted run, for :func:`zoo.diagnose`, :func:`zoo.to_arviz` and all others.
        n_features_in_, feature_names_in_: of the rows.

    References:
        McLachlan and Peel (2000), Finite Mixture Models.

    >>> import torch
    >>> from zoo.data import load
    >>> from zoo.estimators import GaussianMixture
    >>> x = load("faithful", dtype=torch.float64).x.numpy()
    >>> found = GaussianMixture(2, random_state=0).fit(x)
    >>> round(found.score(x) * len(x), 5), sorted(found.weights_.round(3).tolist())
    (-1130.26396, [0.356, 0.644])
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        floor: float = 1e-6,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        labels_init: Any = None,
        warm_start: bool = False,
        guide: Guide | None = None,
        tol: float = 1e-9,
        max_iter: int = 10_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.floor = floor
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.warm_start = warm_start
        self.guide = guide
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "GaussianMixture":
        """Fits the mixture to rows (n, d), from ``n_init`` starts.

        Args:
            X: the rows; NaN where an entry is missing at random.
            y: ignored.
            sample_weight: how often every row counts (n,): the same as repeating rows.

        Returns:
            the estimator.

        Raises:
            ValueError: rows for which the likelihood has no maximum, or a parameter out of range.
            FloatingPointError: every start ended in a collapsed component.
        """
        rows, weights = self._given(X, sample_weight)
        seed, best, error = self._seed(), None, None
        for start in range(check_whole(self.n_init, "n_init")):
            try:
                run = self._one(rows, weights, seed + start)
            except FloatingPointError as collapsed:
                error = collapsed
                continue
            if best is None or _height(run) > _height(best):
                best = run
        if best is None:
            assert error is not None
            raise error
        if not best.converged:
            stopped = best.settings["stopped"]
            warnings.warn(f"GaussianMixture did not converge: {stopped}", ConvergenceWarning, stacklevel=2)
        self._keep(best)
        return self

    def _one(self, rows: Tensor, weights: Tensor | None, seed: int) -> Any:
        """The run from one start."""
        components = check_whole(self.n_components, "n_components")
        if components > len(rows):
            raise ValueError(f"n_components={components} exceeds n_samples = {len(rows)}: use far fewer")
        if self.warm_start and hasattr(self, "run_"):
            model: Any = copy.deepcopy(self.run_.model)
        else:
            model = self._started(rows, weights, components, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboundedLikelihood)  # said by converged_ and its warning
            if self.guide is not None:
                return trained(model, self.guide, self._named(rows), weights, self.max_iter, seed)
            return em(model, self._named(rows), weights=weights, steps=self.max_iter, tol=self.tol, seed=seed)

    def _started(self, rows: Tensor, weights: Tensor | None, components: int, seed: int) -> GMM:
        """The model at its start, or fresh where none was given."""
        kind: Any = self.covariance_type
        start: Any = STARTS.get(self.init_params, self.init_params)
        model = GMM(rows.shape[1], components, kind, floor=self.floor, start=start).double()
        given = {"means": self.means_init, "labels": self.labels_init}
        if own := {name: torch.as_tensor(value) for name, value in given.items() if value is not None}:
            model.start_from(rows, weights=weights, **own)
        elif self.weights_init is not None or self.precisions_init is not None:
            with seeded(seed):
                model.initialize(rows, weights)
        if self.weights_init is not None:
            share = torch.as_tensor(np.asarray(self.weights_init, dtype=np.float64))
            if share.shape != (components,) or not (share >= 0).all() or abs(float(share.sum()) - 1) > 1e-8:
                raise ValueError(f"weights_init must be {components} numbers of at least 0 whose sum is 1")
            model.weight = share
        if self.precisions_init is not None:
            model.scale = self._scale(model)
        return model

    def _scale(self, model: GMM) -> Tensor:
        """The scale of the mixture from ``precisions_init``."""
        precision = torch.as_tensor(np.asarray(self.precisions_init, dtype=np.float64))
        if precision.shape != model.scale.shape:
            raise ValueError(
                f"precisions_init has shape {tuple(precision.shape)}: covariance_type={self.covariance_type!r} takes "
                f"{tuple(model.scale.shape)}"
            )
        matrix = model.covariance in ("full", "tied")
        definite = torch.linalg.eigvalsh(precision) > 0 if matrix else precision > 0
        if not definite.all() or (matrix and not torch.allclose(precision, precision.mT)):
            raise ValueError("precisions_init must be symmetric and positive definite, or positive")
        return torch.linalg.cholesky(torch.linalg.inv(precision)) if matrix else precision.rsqrt()

    def _keep(self, run: Fit) -> None:
        """Sets the attributes."""
        self.run_ = run
        model: Any = run.model
        curve = -array(run.losses)
        self.weights_, self.means_ = array(model.weight), array(model.mean)
        scale = model.scale.detach()
        matrix = model.covariance in ("full", "tied")
        self.covariances_ = array(scale @ scale.mT if matrix else scale.square())
        self.precisions_ = array(torch.cholesky_inverse(scale)) if matrix else 1 / self.covariances_
        if matrix:
            self.precisions_cholesky_ = array(torch.linalg.inv(scale).mT)  # upper triangular U with U U' = precision
        else:
            self.precisions_cholesky_ = np.sqrt(self.precisions_)
        self.converged_, self.n_iter_ = run.converged, len(curve)
        self.lower_bound_, self.lower_bounds_ = float(curve[-1]), curve.tolist()

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """The responsibilities of the components for rows (m, d): (m, n_components)."""
        rows = self._new(X)
        model: Any = self.run_.model
        return array(model.posterior(rows).probs)


def _height(run: Fit) -> float:
    """The log-likelihood or bound that a run reached, in nats per row."""
    return -float(run.losses[-1])
