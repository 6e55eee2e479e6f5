"""Draws without a path for gradients, and guides all of whose draws are such."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.base.callables import PyroCallable


class Unreparametrised(dist.TorchDistribution):
    """A distribution whose draws are constants to the gradient, as those of a discrete one.

    Pyro's losses then estimate the gradient with respect to its parameters by the score function. (``has_rsample_``
    does this to Pyro's elementary distributions; events of independent entries and transformed ones refuse it.)

    Args:
        base: the distribution of the draws.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as in torch)
    has_rsample = False

    def __init__(self, base: Any) -> None:
        self.carried = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.carried.support

    @property
    def has_enumerate_support(self) -> bool:
        return bool(self.carried.has_enumerate_support)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values: Tensor = self.carried.enumerate_support(expand)
        return values

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Unreparametrised":
        return Unreparametrised(self.carried.expand(torch.Size(batch_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            drawn: Tensor = self.carried.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        density: Tensor = self.carried.log_prob(value)
        return density


class _WithoutPath(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        function = msg["fn"]
        if msg["is_observed"] or site_is_subsample(msg) or not getattr(function, "has_rsample", False):
            return
        if not isinstance(function, dist.Delta):  # a point has no density whose score could be taken
            msg["fn"] = Unreparametrised(function)


def without_path(guide: PyroCallable) -> PyroCallable:
    """A guide with the same densities and draws, of which no gradient passes through a draw.

    Under ``Trace_ELBO`` its gradient is that of the score function (REINFORCE), also for sites that could be
    reparametrised; under ``TraceGraph_ELBO`` with the baselines that the sites' ``infer`` names.

    Args:
        guide: a Pyro guide.

    References:
        Paisley, Blei and Jordan (2012), Variational Bayesian inference with stochastic search, ICML; Ranganath, Gerrish
        and Blei (2014), Black box variational inference, AISTATS.
    """
    bound: PyroCallable = _WithoutPath()(guide)
    return bound
