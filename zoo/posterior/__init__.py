"""What do q and p say of given rows: bounds on log p(x), draws and densities, importance weights."""

from zoo.posterior.annealing import AIS
from zoo.posterior.evaluation import Evaluation, evaluate
from zoo.posterior.evidence import Ladder, Rung, ladder
from zoo.posterior.inference_gaps import Gaps, gaps
from zoo.posterior.psis import psis_khat, psis_weights
from zoo.posterior.rates import Bits, Information, bits_per_dimension, information

__all__ = [
    "AIS",
    "Bits",
    "Evaluation",
    "Gaps",
    "Information",
    "Ladder",
    "Rung",
    "bits_per_dimension",
    "evaluate",
    "gaps",
    "information",
    "ladder",
    "psis_khat",
    "psis_weights",
]
