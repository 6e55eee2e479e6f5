"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

from zoo import data
from zoo.base import Conjugate
from zoo.checkpoint import load
from zoo.em import em
from zoo.evaluate import Evaluation, evaluate
from zoo.export import to_arviz
from zoo.factors import edit, generate, impute, interpolate, probe, reconstruct, traverse
from zoo.fit import Fit, fit
from zoo.gauge import Gauge, align, canonical, gauge_of, posterior_difference
from zoo.missing import Imputation
from zoo.models import GMM, PPCA, VAE, FactorAnalysis
from zoo.restarts import Restarts, em_restarts, restarts

__all__ = [
    "GMM",
    "PPCA",
    "VAE",
    "Conjugate",
    "Evaluation",
    "FactorAnalysis",
    "Fit",
    "Gauge",
    "Imputation",
    "Restarts",
    "align",
    "canonical",
    "data",
    "edit",
    "em",
    "em_restarts",
    "evaluate",
    "fit",
    "gauge_of",
    "generate",
    "impute",
    "interpolate",
    "load",
    "posterior_difference",
    "probe",
    "reconstruct",
    "restarts",
    "to_arviz",
    "traverse",
]
