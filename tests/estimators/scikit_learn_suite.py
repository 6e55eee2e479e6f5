"""A plugin of pytest that puts our classes in the place of scikit-learn's, for scikit-learn's own test files.

``python -m pytest -p tests.estimators.scikit_learn_suite --pyargs sklearn.mixture.tests.test_gaussian_mixture``
"""

from typing import Any

import sklearn.decomposition
import sklearn.decomposition._factor_analysis
import sklearn.mixture
import sklearn.mixture._gaussian_mixture

from zoo import estimators


class FactorAnalysis(estimators.FactorAnalysis):
    """With the parameters of scikit-learn's that choose an algorithm, which ours has no need of."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        tol: float = 1e-2,
        copy: bool = True,
        max_iter: int = 1000,
        noise_variance_init: Any = None,
        svd_method: str = "randomized",
        iterated_power: int = 3,
        rotation: Any = None,
        random_state: int = 0,
    ) -> None:
        super().__init__(n_components, rotation=rotation, tol=tol, max_iter=max_iter, random_state=random_state)
        self.copy, self.noise_variance_init = copy, noise_variance_init
        self.svd_method, self.iterated_power = svd_method, iterated_power


class GaussianMixture(estimators.GaussianMixture):
    """With ``reg_covar`` in the place of ``floor``."""

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ) -> None:
        super().__init__(
            n_components,
            covariance_type=covariance_type,
            floor=reg_covar,
            n_init=n_init,
            init_params=init_params,
            weights_init=weights_init,
            means_init=means_init,
            precisions_init=precisions_init,
            warm_start=warm_start,
            tol=tol,
            max_iter=max_iter,
            random_state=random_state,
        )
        self.reg_covar, self.verbose, self.verbose_interval = reg_covar, verbose, verbose_interval


sklearn.decomposition.FactorAnalysis = FactorAnalysis
sklearn.decomposition._factor_analysis.FactorAnalysis = FactorAnalysis
sklearn.mixture.GaussianMixture = GaussianMixture
sklearn.mixture._gaussian_mixture.GaussianMixture = GaussianMixture
