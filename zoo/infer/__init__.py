"""How is a model fitted: stochastic variational inference, EM, the best of several starts."""

from zoo.base.schedules import cosine
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.guard import Diverged, UnboundedLikelihood
from zoo.infer.loading import load
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.losses.compiled import CompiledELBO
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.run import Fit, Training
from zoo.infer.starts import Attempt, BestOf, best_of

__all__ = [
    "IWAE",
    "LBFGS",
    "AnnealedELBO",
    "Attempt",
    "BestOf",
    "CompiledELBO",
    "Diverged",
    "Fit",
    "Fused",
    "QuadratureELBO",
    "Training",
    "UnboundedLikelihood",
    "best_of",
    "cosine",
    "em",
    "fit",
    "linear_warmup",
    "load",
]
