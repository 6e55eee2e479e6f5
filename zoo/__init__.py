"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them."""

import importlib
from typing import Any

from guides.ascent import cavi
from zoo import data
from zoo.alignment import to_canonical
from zoo.diagnostics import diagnose, importance_moments, linear_response, loo, nuts, predictive_check, select_size
from zoo.export import to_arviz
from zoo.factors import generate, impute, reconstruct, traverse
from zoo.infer import Fit, best_of, em, fit, load, plan
from zoo.models import GMM, PPCA, VAE, BayesianFactorAnalysis, BayesianGMM, BayesianPCA, FactorAnalysis
from zoo.posterior import evaluate, log_evidence_bounds

LAZY = ("benchmark", "plots", "report")  # loaded on first use: most programs need none of them

__all__ = [
    "GMM",
    "PPCA",
    "VAE",
    "BayesianFactorAnalysis",
    "BayesianGMM",
    "BayesianPCA",
    "FactorAnalysis",
    "Fit",
    "best_of",
    "cavi",
    "data",
    "diagnose",
    "em",
    "evaluate",
    "fit",
    "generate",
    "importance_moments",
    "impute",
    "linear_response",
    "load",
    "log_evidence_bounds",
    "loo",
    "nuts",
    "plan",
    "predictive_check",
    "reconstruct",
    "select_size",
    "to_arviz",
    "to_canonical",
    "traverse",
]


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
