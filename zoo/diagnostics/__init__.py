"""Whether a fit can be believed: its q compared with the posterior, its p with the data."""

from zoo.diagnostics.checks.check import Check, Finding
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.diagnostics.guide.calibration import Calibration, sbc
from zoo.diagnostics.guide.exact import PosteriorError, posterior_error
from zoo.diagnostics.guide.importance import ImportanceMoments, importance_moments
from zoo.diagnostics.guide.linear_response import LinearResponse, linear_response
from zoo.diagnostics.guide.mcmc import Comparison, MCMCSamples, nuts
from zoo.diagnostics.model.criteria import InformationCriteria, information_criteria
from zoo.diagnostics.model.leave_one_out import Loo, loo
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.diagnostics.model.predictive_density import PredictiveDensity, predictive_density
from zoo.diagnostics.model.relevance import EffectiveSize, effective_size
from zoo.diagnostics.model.selection import Candidate, Selection, select_size

__all__ = [
    "Calibration",
    "Candidate",
    "Check",
    "Comparison",
    "Diagnosis",
    "EffectiveSize",
    "Finding",
    "ImportanceMoments",
    "InformationCriteria",
    "LinearResponse",
    "Loo",
    "MCMCSamples",
    "PosteriorError",
    "PredictiveCheck",
    "PredictiveDensity",
    "Selection",
    "diagnose",
    "effective_size",
    "importance_moments",
    "information_criteria",
    "linear_response",
    "loo",
    "nuts",
    "posterior_error",
    "predictive_check",
    "predictive_density",
    "sbc",
    "select_size",
]
