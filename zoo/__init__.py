"""Latent Zoo: latent factor models and variational guides for Pyro, any with any, with the exact answer beside them.

Names and wings are loaded on first use, so that ``import zoo`` itself takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guides.ascent import cavi
    from zoo import benchmark as benchmark
    from zoo import data
    from zoo import plots as plots
    from zoo import report as report
    from zoo.alignment import to_canonical
    from zoo.diagnostics import diagnose, importance_moments, linear_response, loo, nuts, predictive_check, select_size
    from zoo.export import to_arviz
    from zoo.factors import generate, impute, reconstruct, traverse
    from zoo.infer import Fit, best_of, em, fit, load, plan
    from zoo.models import GMM, PPCA, VAE, BayesianFactorAnalysis, BayesianGMM, BayesianPCA, FactorAnalysis
    from zoo.posterior import evaluate, log_evidence_bounds

__version__ = "0.1.0"  # the one place: the distribution and ``zoo --version`` read it here

_ORIGINS = {  # the same for the interpreter; the tests compare the two
    "guides.ascent": ("cavi",),
    "zoo.alignment": ("to_canonical",),
    "zoo.diagnostics": (
        "diagnose",
        "importance_moments",
        "linear_response",
        "loo",
        "nuts",
        "predictive_check",
        "select_size",
    ),
    "zoo.export": ("to_arviz",),
    "zoo.factors": ("generate", "impute", "reconstruct", "traverse"),
    "zoo.infer": ("Fit", "best_of", "em", "fit", "load", "plan"),
    "zoo.models": ("GMM", "PPCA", "VAE", "BayesianFactorAnalysis", "BayesianGMM", "BayesianPCA", "FactorAnalysis"),
    "zoo.posterior": ("evaluate", "log_evidence_bounds"),
}
_ORIGIN = {name: module for module, names in _ORIGINS.items() for name in names}
_WINGS = (
    "algebra",
    "alignment",
    "base",
    "benchmark",
    "citation",
    "compat",
    "data",
    "diagnostics",
    "distributions",
    "estimators",
    "export",
    "factors",
    "infer",
    "likelihoods",
    "models",
    "networks",
    "plots",
    "posterior",
    "registry",
    "report",
)

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
    if name in _WINGS:
        return importlib.import_module(f"zoo.{name}")
    if name not in _ORIGIN:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_ORIGIN[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORIGIN, *_WINGS})
