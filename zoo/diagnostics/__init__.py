"""Whether a fit can be believed: its q beside the posterior, its p beside the data."""

from zoo.diagnostics.calibration import Calibration, sbc
from zoo.diagnostics.criteria import Criteria, criteria
from zoo.diagnostics.importance import Importance, PosteriorError, importance, posterior_error
from zoo.diagnostics.loadings import Loadings, bootstrap_loadings
from zoo.diagnostics.loo import Loo, loo
from zoo.diagnostics.mcmc import Comparison, Sampled, nuts
from zoo.diagnostics.predictive import PredictiveCheck, predictive_check
from zoo.diagnostics.scan import Candidate, Scan, scan
from zoo.diagnostics.verdict import Diagnosis, Finding, diagnose

__all__ = [
    "Calibration",
    "Candidate",
    "Comparison",
    "Criteria",
    "Diagnosis",
    "Finding",
    "Importance",
    "Loadings",
    "Loo",
    "PosteriorError",
    "PredictiveCheck",
    "Sampled",
    "Scan",
    "bootstrap_loadings",
    "criteria",
    "diagnose",
    "importance",
    "loo",
    "nuts",
    "posterior_error",
    "predictive_check",
    "sbc",
    "scan",
]
