"""The models as scikit-learn estimators: for pipelines, grid searches and data frames.

Thin classes over the models, with scikit-learn's names: ``fit`` runs EM (``guide=None``), coordinate ascent for the
Bayesian models, or SVI with the guide that you name; ``run_`` is the fitted run, which every function of :mod:`zoo`
takes. Rows may have missing entries (NaN). ``transform`` gives posterior means, never draws. Computed in float64.
"""

from zoo.estimators.bayesian import BayesianGaussianMixture, BayesianPCA
from zoo.estimators.deep import VAE
from zoo.estimators.linear import PPCA, FactorAnalysis
from zoo.estimators.mixture import GaussianMixture

__all__ = ["PPCA", "VAE", "BayesianGaussianMixture", "BayesianPCA", "FactorAnalysis", "GaussianMixture"]
