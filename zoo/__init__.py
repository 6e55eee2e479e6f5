"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

import importlib
from typing import Any

from zoo import data
from zoo.algebra.missing import Imputation
from zoo.alignment import Gauge, Loadings, align, bootstrap_loadings, canonical, gauge_of, posterior_difference
from zoo.base import Conjugate
from zoo.diagnostics import (
    Calibration,
    Comparison,
    Criteria,
    Diagnosis,
    Finding,
    Importance,
    Loo,
    PosteriorError,
    PredictiveCheck,
    Sampled,
    Scan,
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
from zoo.export import to_arviz, write_arviz
from zoo.factors import edit, generate, impute, interpolate, probe, reconstruct, traverse
from zoo.infer import (
    IWAE,
    AnnealedELBO,
    Diverged,
    Fit,
    Restarts,
    UnboundedLikelihood,
    em,
    em_restarts,
    fit,
    load,
    restarts,
    warm_up,
)
from zoo.models import GMM, PPCA, VAE, FactorAnalysis
from zoo.posterior import (
    AIS,
    Bits,
    Evaluation,
    Gaps,
    Information,
    Ladder,
    bits_per_dimension,
    evaluate,
    gaps,
    information,
    ladder,
)

LAZY = ("benchmark", "plots", "report")  # loaded on first use: most programs need none of them

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


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
