"""Whether a fit can be trusted: its guide q compared with the posterior, its model p with the data.

Conventions of all functions here, not repeated in their docstrings:

- ``run`` is a trained pair: the result of :func:`zoo.fit`, :func:`zoo.em`, :func:`zoo.cavi` or :func:`zoo.load`, or
  ``zoo.Fit(model, guide)``. A fitted conjugate model alone is judged with its own posterior as the guide.
- ``x`` holds the rows (n, d): a tensor, an array or a :class:`zoo.data.Dataset`. A guide with parameters for every row
  takes the rows that it was fitted to, in their order.
- ``seed`` sets the random draws; the global random state is left unchanged.
- Rows that do not fit model or guide raise a ``ValueError`` that names the row or column.
- Log densities and their differences are in nats.
- Units of the latent space are those of the model as it is, before any alignment.
- k-hat is the shape parameter of the generalised Pareto distribution fitted to the tail of importance weights. S draws
  support k-hat up to min(0.7, 1 - 1 / log10 S) (Vehtari et al. 2024).
- Results are frozen, with ``summary()``, ``frame()`` and ``str()``.
"""

from zoo.diagnostics.checks.check import Check, Finding
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.diagnostics.guide.calibration import Calibration, sbc
from zoo.diagnostics.guide.exact import PosteriorError, posterior_error
from zoo.diagnostics.guide.importance import ImportanceMoments, importance_moments
from zoo.diagnostics.guide.linear_response import LinearResponse, linear_response
from zoo.diagnostics.guide.mcmc import Comparison, MCMCSamples, nuts
from zoo.diagnostics.guide.relevance import EffectiveSize, effective_size
from zoo.diagnostics.model.conditional_density import conditional_density
from zoo.diagnostics.model.criteria import InformationCriteria, information_criteria
from zoo.diagnostics.model.goodness import FitMeasures, fit_measures
from zoo.diagnostics.model.leave_one_out import Loo, loo
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.diagnostics.model.predictive_density import PredictiveDensity, predictive_density
from zoo.diagnostics.model.retention import Retention, factor_retention
from zoo.diagnostics.model.selection import Candidate, Selection, select_size

__all__ = [
    "Calibration",
    "Candidate",
    "Check",
    "Comparison",
    "Diagnosis",
    "EffectiveSize",
    "Finding",
    "FitMeasures",
    "ImportanceMoments",
    "InformationCriteria",
    "LinearResponse",
    "Loo",
    "MCMCSamples",
    "PosteriorError",
    "PredictiveCheck",
    "PredictiveDensity",
    "Retention",
    "Selection",
    "conditional_density",
    "diagnose",
    "effective_size",
    "factor_retention",
    "fit_measures",
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
