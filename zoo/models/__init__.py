"""Latent factor models, each a Pyro model in a file of its own."""

from zoo.models.bayesian_factor_analysis import BayesianFactorAnalysis
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.bayesian_pca import BayesianPCA
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA
from zoo.models.vae import VAE

__all__ = ["GMM", "PPCA", "VAE", "BayesianFactorAnalysis", "BayesianGMM", "BayesianPCA", "FactorAnalysis"]
