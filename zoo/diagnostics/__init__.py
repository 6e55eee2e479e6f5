"""Whether a fit can be believed: its q beside the posterior, its p beside the data."""

from zoo.diagnostics.calibration import Calibration, sbc
from zoo.diagnostics.criteria import Criteria, criteria
from zoo.diagnostics.importance import Importance, PosteriorError, importance, posterior_error
from zoo.diagnostics.mcmc import Comparison, Sampled, nuts
from zoo.diagnostics.verdict import Diagnosis, Finding, diagnose

__all__ = [
    "Calibration",
    "Comparison",
    "Criteria",
    "Diagnosis",
    "Finding",
    "Importance",
    "PosteriorError",
    "Sampled",
    "criteria",
    "diagnose",
    "importance",
    "nuts",
    "posterior_error",
    "sbc",
]
