"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

from zoo import data
from zoo.base import Conjugate
from zoo.checkpoint import load
from zoo.em import em
from zoo.evaluate import Evaluation, evaluate
from zoo.export import to_arviz
from zoo.fit import Fit, fit
from zoo.models import GMM, PPCA, VAE, FactorAnalysis

__all__ = [
    "GMM",
    "PPCA",
    "VAE",
    "Conjugate",
    "Evaluation",
    "FactorAnalysis",
    "Fit",
    "data",
    "em",
    "evaluate",
    "fit",
    "load",
    "to_arviz",
]
