"""Estimators of the gradient of the bound, and the pairs that each of them serves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from torch.distributions import kl_divergence

import zoo.distributions.divergences  # noqa: F401 - registers a KL in closed form
from zoo.base.callables import PyroCallable
from zoo.base.latent_sites import Layout, layout
from zoo.base.protocols import declares
from zoo.base.random import seeded
from zoo.distributions.unreparametrised import without_path
from zoo.infer.losses.closed_form import ClosedFormELBO, closed_form
from zoo.infer.losses.fixed_draws import FixedDraws, check_fixed_draws
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.leave_one_out import LeaveOneOutELBO
from zoo.infer.losses.path import PathELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.traces import Args, Site, latent_names

DRAWS = 10  # of the estimators with several
FIXED = 30
MEMORY = 0.9  # of the decaying mean
WARM_UP = 100  # gradients, after which the mean has forgotten its start to 3e-5


@dataclass(frozen=True, eq=False)
class Traced:
    """A pair as the estimators see it: its sites, and the distributions at them."""

    model: PyroCallable
    guide: PyroCallable
    args: Args
    found: Layout
    model_trace: poutine.Trace
    guide_trace: poutine.Trace

    @classmethod
    def of(cls, model: PyroCallable, guide: PyroCallable, args: Args) -> "Traced":
        """The pair, run once on the rows, or on a minibatch ``(rows, index, size)``."""
        with seeded(0), torch.no_grad():
            drawn = poutine.trace(guide).get_trace(*args)
            alone = poutine.trace(model).get_trace(*args)
        return cls(model, guide, args, layout(model, args[0]), alone, drawn)

    @property
    def depth(self) -> int:
        """The deepest plate of model and guide."""
        nodes = [*self.model_trace.nodes.values(), *self.guide_trace.nodes.values()]
        frames = [frame for site in nodes for frame in site.get("cond_indep_stack", ()) if frame.vectorized]
        return max((-frame.dim for frame in frames), default=0)

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The guide's latent sites by name, without point masses."""
        nodes = {name: self.guide_trace.nodes[name] for name in latent_names(self.guide_trace)}
        return {name: site for name, site in nodes.items() if not isinstance(site["fn"], dist.Delta)}

    @cached_property
    def enumerable(self) -> list[str]:
        """The sites whose values can be summed over."""
        return [name for name, site in self.sites.items() if site["fn"].has_enumerate_support]

    @cached_property
    def path(self) -> bool:
        """Whether gradients pass through every draw."""
        return bool(self.sites) and all(site["fn"].has_rsample for site in self.sites.values())

    @cached_property
    def smooth(self) -> bool:
        """Whether every draw is a smooth function of the parameters."""
        return self.path and not self.enumerable

    def discrete(self) -> bool:
        """Whether there are sites to sum over, and gradients pass through the draws of all others."""
        others = [site["fn"].has_rsample for name, site in self.sites.items() if name not in self.enumerable]
        return bool(self.enumerable) and all(others)

    def analytic(self) -> bool:
        """Whether the KL of every site has a closed form."""
        if not self.smooth or self.sites.keys() != set(latent_names(self.model_trace)):
            return False
        try:
            for name, site in self.sites.items():
                kl_divergence(site["fn"], self.model_trace.nodes[name]["fn"])
        except NotImplementedError:
            return False
        return True

    def steady(self) -> bool:
        """Whether a bound over fixed draws has a maximum near that of the bound."""
        try:
            check_fixed_draws(self.guide, self.found, FIXED, self.args)
        except ValueError:
            return False
        return self.smooth

    def summed(self) -> bool:
        """Whether all sites are discrete, and the model marks them to be summed over."""
        marked = all(self.model_trace.nodes[name]["infer"].get("enumerate") for name in self.enumerable)
        return bool(self.enumerable) and len(self.enumerable) == len(self.sites) and marked


def _unchanged(guide: PyroCallable) -> PyroCallable:
    return guide


def _with_baseline(guide: PyroCallable) -> PyroCallable:
    """All sites by the score function, with a decaying mean of earlier costs, row by row, as their baseline."""
    options = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": MEMORY}}
    return poutine.infer_config(without_path(guide), config_fn=lambda site: options)


def _enumerated(guide: PyroCallable) -> PyroCallable:
    return config_enumerate(guide, "parallel")


def _empty(guide: PyroCallable) -> PyroCallable:
    def nothing(*args: Any, **kwargs: Any) -> None:
        """No latent site is left."""

    return nothing


@dataclass(frozen=True, eq=False)
class Estimator:
    """A loss whose gradient estimates that of the bound.

    Attributes:
        name: in tables.
        loss: makes a loss.
        serves: whether it applies to a pair.
        text: what it is, in a sentence.
        guide: what it makes of the guide.
        warm_up: gradients before it has settled.
        target: the bound whose gradient it estimates; None if it has a bias by design.
        exact: whether its gradient is that of the bound, without noise.
    """

    name: str
    loss: Callable[[], ELBO]
    serves: Callable[[Traced], bool]
    text: str
    guide: Callable[[PyroCallable], PyroCallable] = _unchanged
    warm_up: int = 0
    target: str | None = "ELBO"
    exact: bool = False

    def objective(self, depth: int) -> ELBO:
        """A fresh loss, for plates of this depth."""
        loss = self.loss()
        if math.isinf(loss.max_plate_nesting):
            loss.max_plate_nesting = depth + bool(loss.vectorize_particles and loss.num_particles > 1)  # as in Pyro
        return loss


REPARAMETRISED = "reparametrised"
SEVERAL = f"{REPARAMETRISED}, {DRAWS} draws"
ANALYTIC = "analytic KL"
PATH = "path derivative"
SCORE = "score function"
BASELINE = f"{SCORE}, baseline"
LEAVE_ONE_OUT = f"{SCORE}, leave one out, {DRAWS} draws"
SUMS = "enumeration"
IMPORTANCE = f"IWAE-{DRAWS}"
DOUBLY = f"{IMPORTANCE}, doubly"
ESTIMATORS = (
    Estimator(
        REPARAMETRISED,
        Trace_ELBO,
        lambda pair: pair.path,
        "`Trace_ELBO`: one draw, the KL by Monte Carlo",
    ),
    Estimator(
        SEVERAL,
        lambda: Trace_ELBO(DRAWS, vectorize_particles=True),
        lambda pair: pair.path,
        f"the mean of {DRAWS} draws",
    ),
    Estimator(ANALYTIC, TraceMeanField_ELBO, Traced.analytic, "`TraceMeanField_ELBO`: the KL in closed form"),
    Estimator(PATH, PathELBO, lambda pair: pair.smooth, "`PathELBO`: without the score of log q"),
    Estimator(
        SCORE,
        Trace_ELBO,
        lambda pair: bool(pair.sites),
        "`Trace_ELBO` on `without_path(guide)`: REINFORCE, row by row",
        without_path,
    ),
    Estimator(
        BASELINE,
        TraceGraph_ELBO,
        lambda pair: bool(pair.sites),
        "`TraceGraph_ELBO`: less a decaying mean of each row's earlier costs",
        _with_baseline,
        WARM_UP,
    ),
    Estimator(
        LEAVE_ONE_OUT,
        lambda: LeaveOneOutELBO(DRAWS),
        lambda pair: bool(pair.sites),
        f"`LeaveOneOutELBO`: less the mean of the other {DRAWS - 1} draws of the row",
        without_path,
    ),
    Estimator(
        SUMS,
        TraceEnum_ELBO,
        Traced.discrete,
        "`TraceEnum_ELBO`: discrete sites of the guide summed over, weighted by q",
        _enumerated,
        exact=True,
    ),
    Estimator(
        "summed out",
        TraceEnum_ELBO,
        Traced.summed,
        "`TraceEnum_ELBO` with an empty guide: the model's discrete sites summed out of it, which gives log p(x)",
        _empty,
        target="log p(x)",
        exact=True,
    ),
    Estimator(
        "quadrature",
        QuadratureELBO,
        lambda pair: declares(pair.model, "quadratic") and QuadratureELBO.exact(pair.model, pair.guide, *pair.args),
        "`QuadratureELBO`, where its rule is exact",
        exact=True,
    ),
    Estimator(
        "closed form",
        ClosedFormELBO,
        lambda pair: closed_form(pair.model, pair.guide),
        "`ClosedFormELBO`: the bound of a conditionally conjugate model",
        exact=True,
    ),
    Estimator(
        f"{FIXED} fixed draws",
        lambda: FixedDraws(FIXED),
        Traced.steady,
        f"`FixedDraws({FIXED})`: no noise, but a bias that falls with the number of draws",
        target=None,
    ),
    Estimator(
        IMPORTANCE,
        lambda: IWAE(DRAWS),
        lambda pair: pair.smooth and not pair.found.shared,
        f"the importance-weighted bound of {DRAWS} draws, another and tighter bound",
        target="IWAE",
    ),
    Estimator(
        DOUBLY,
        lambda: IWAE(DRAWS, estimator="doubly"),
        lambda pair: pair.smooth and not pair.found.shared,
        "its doubly reparametrised gradient",
        target="IWAE",
    ),
)


def serving(pair: Traced) -> list[Estimator]:
    """The estimators that apply to a pair."""
    return [estimator for estimator in ESTIMATORS if estimator.serves(pair)]
