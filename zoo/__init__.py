"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

from zoo import data
from zoo.base import Conjugate
from zoo.em import em
from zoo.fit import Fit, fit
from zoo.models import GMM, PPCA, VAE, FactorAnalysis

__all__ = ["GMM", "PPCA", "VAE", "Conjugate", "FactorAnalysis", "Fit", "data", "em", "fit"]
