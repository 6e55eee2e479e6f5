"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

from zoo import data
from zoo.annealing import AIS
from zoo.base import Conjugate
from zoo.bounds import Ladder, ladder
from zoo.checkpoint import load
from zoo.diagnostics import (
    Calibration,
    Comparison,
    Criteria,
    Diagnosis,
    Finding,
    Importance,
    Loadings,
    Loo,
    PosteriorError,
    PredictiveCheck,
    Sampled,
    Scan,
    bootstrap_loadings,
    criteria,
    diagnose,
    importance,
    loo,
    nuts,
    posterior_error,
    predictive_check,
    sbc,
    scan,
)
from zoo.em import em
from zoo.evaluate import Evaluation, evaluate
from zoo.export import to_arviz, write_arviz
from zoo.factors import edit, generate, impute, interpolate, probe, reconstruct, traverse
from zoo.fit import Fit, fit
from zoo.gaps import Gaps, gaps
from zoo.gauge import Gauge, align, canonical, gauge_of, posterior_difference
from zoo.guard import Diverged, UnboundedLikelihood
from zoo.information import Bits, Information, bits_per_dimension, information
from zoo.missing import Imputation
from zoo.models import GMM, PPCA, VAE, FactorAnalysis
from zoo.objectives import IWAE, AnnealedELBO, warm_up
from zoo.restarts import Restarts, em_restarts, restarts

__all__ = [
    "AIS",
    "GMM",
    "IWAE",
    "PPCA",
    "VAE",
    "AnnealedELBO",
    "Bits",
    "Calibration",
    "Comparison",
    "Conjugate",
    "Criteria",
    "Diagnosis",
    "Diverged",
    "Evaluation",
    "FactorAnalysis",
    "Finding",
    "Fit",
    "Gaps",
    "Gauge",
    "Importance",
    "Imputation",
    "Information",
    "Ladder",
    "Loadings",
    "Loo",
    "PosteriorError",
    "PredictiveCheck",
    "Restarts",
    "Sampled",
    "Scan",
    "UnboundedLikelihood",
    "align",
    "bits_per_dimension",
    "bootstrap_loadings",
    "canonical",
    "criteria",
    "data",
    "diagnose",
    "edit",
    "em",
    "em_restarts",
    "evaluate",
    "fit",
    "gaps",
    "gauge_of",
    "generate",
    "importance",
    "impute",
    "information",
    "interpolate",
    "ladder",
    "load",
    "loo",
    "nuts",
    "posterior_difference",
    "posterior_error",
    "predictive_check",
    "probe",
    "reconstruct",
    "restarts",
    "sbc",
    "scan",
    "to_arviz",
    "traverse",
    "warm_up",
    "write_arviz",
]
