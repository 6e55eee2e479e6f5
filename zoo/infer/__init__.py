"""How is a model fitted: stochastic variational inference, EM, the best of several starts."""

from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.guard import Diverged, UnboundedLikelihood
from zoo.infer.loading import load
from zoo.infer.losses.annealed import AnnealedELBO, warm_up
from zoo.infer.losses.compiled import CompiledELBO
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.optim.schedules import cosine
from zoo.infer.run import Fit
from zoo.infer.starts import Restarts, Start, em_restarts, restarts

__all__ = [
    "IWAE",
    "LBFGS",
    "AnnealedELBO",
    "CompiledELBO",
    "Diverged",
    "Fit",
    "Fused",
    "QuadratureELBO",
    "Restarts",
    "Start",
    "UnboundedLikelihood",
    "cosine",
    "em",
    "em_restarts",
    "fit",
    "load",
    "restarts",
    "warm_up",
]
