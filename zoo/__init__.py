"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

from zoo.em import em
from zoo.models import GMM, PPCA, VAE, FactorAnalysis

__all__ = ["GMM", "PPCA", "VAE", "FactorAnalysis", "em"]
