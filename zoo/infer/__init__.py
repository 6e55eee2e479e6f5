"""How is a model fitted: stochastic variational inference, EM, the best of several starts."""

from zoo.base.schedules import cosine
from zoo.infer.captured import CapturedSVI
from zoo.infer.collapse import HeywoodCase, UnboundedLikelihood
from zoo.infer.convergence import Convergence, assess
from zoo.infer.coordinate_ascent import Ascent, VariationalBayes
from zoo.infer.expectation_maximisation import MaximumLikelihood, em
from zoo.infer.fitting import fit
from zoo.infer.guard import Diverged
from zoo.infer.keeping import Checkpoint
from zoo.infer.line_search import LineSearchSVI
from zoo.infer.loading import load
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.fixed_draws import FixedDraws
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.wake_sleep import WakeSleep
from zoo.infer.new_rows import infer
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.optim.natural import LocalFirstSVI, NaturalGradient, decaying, paced
from zoo.infer.planning import Plan, plan
from zoo.infer.run import Fit, Training
from zoo.infer.running import Running
from zoo.infer.starts import Attempt, BestOf, best_of
from zoo.infer.watchers import Callbacks, EarlyStopping, LastGood, Progress, Settled, Validation, Watcher

__all__ = [
    "IWAE",
    "LBFGS",
    "AnnealedELBO",
    "Ascent",
    "Attempt",
    "BestOf",
    "Callbacks",
    "CapturedSVI",
    "Checkpoint",
    "ClosedFormELBO",
    "Convergence",
    "Diverged",
    "EarlyStopping",
    "Fit",
    "FixedDraws",
    "Fused",
    "HeywoodCase",
    "LastGood",
    "LineSearchSVI",
    "LocalFirstSVI",
    "MaximumLikelihood",
    "NaturalGradient",
    "Plan",
    "Progress",
    "ProjectedELBO",
    "QuadratureELBO",
    "Running",
    "Settled",
    "Training",
    "UnboundedLikelihood",
    "Validation",
    "VariationalBayes",
    "WakeSleep",
    "Watcher",
    "assess",
    "best_of",
    "cosine",
    "decaying",
    "em",
    "fit",
    "infer",
    "linear_warmup",
    "load",
    "paced",
    "plan",
]
