"""How good is a trained pair on given rows: bounds on log p(x), draws and densities, importance weights."""

from zoo.posterior.annealing import AIS
from zoo.posterior.evaluation import Evaluation, evaluate
from zoo.posterior.evidence import Bound, Bounds, log_evidence_bounds
from zoo.posterior.inference_gaps import Gaps, gaps
from zoo.posterior.psis import psis_khat, psis_weights
from zoo.posterior.rates import Bits, RateDistortion, bits_per_dimension, rate_distortion

__all__ = [
    "AIS",
    "Bits",
    "Bound",
    "Bounds",
    "Evaluation",
    "Gaps",
    "RateDistortion",
    "bits_per_dimension",
    "evaluate",
    "gaps",
    "log_evidence_bounds",
    "psis_khat",
    "psis_weights",
    "rate_distortion",
]
