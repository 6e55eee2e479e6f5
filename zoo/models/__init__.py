"""Latent factor models; each is a Pyro model in its own file."""

from zoo.models.bayesian_factor_analysis import BayesianFactorAnalysis
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.bayesian_pca import BayesianPCA
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA
from zoo.models.vae import VAE

__all__ = [
    "GMM",
    "PPCA",
    "VAE",
    "BayesianFactorAnalysis",
    "BayesianGMM",
    "BayesianPCA",
    "FactorAnalysis",
]
