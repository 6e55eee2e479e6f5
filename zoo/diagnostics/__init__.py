"""Whether a fit can be believed: its q compared with the posterior, its p with the data."""

from zoo.diagnostics.diagnosis import Diagnosis, Finding, diagnose
from zoo.diagnostics.guide.calibration import Calibration, sbc
from zoo.diagnostics.guide.exact import PosteriorError, posterior_error
from zoo.diagnostics.guide.importance import Importance, importance
from zoo.diagnostics.guide.mcmc import Comparison, Sampled, nuts
from zoo.diagnostics.model.criteria import Criteria, criteria
from zoo.diagnostics.model.leave_one_out import Loo, loo
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.diagnostics.model.selection import Candidate, Scan, scan

__all__ = [
    "Calibration",
    "Candidate",
    "Comparison",
    "Criteria",
    "Diagnosis",
    "Finding",
    "Importance",
    "Loo",
    "PosteriorError",
    "PredictiveCheck",
    "Sampled",
    "Scan",
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
