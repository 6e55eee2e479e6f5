"""The bound with path-derivative gradients, as a Pyro loss."""

from typing import Any

import torch
from pyro import poutine
from pyro.distributions.score_parts import ScoreParts
from pyro.infer import Trace_ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.infer.losses.traces import Args, Kwargs, latent_names


class PathELBO(Trace_ELBO):
    r"""The evidence lower bound with gradients along the path of the draws alone ("sticking the landing").

    .. math:: z = T_\phi(\epsilon), \qquad \nabla_\phi L = E\Big[ \nabla_z \big( \log p(x, z) - \log q_\phi(z) \big)
              \frac{\partial z}{\partial \phi} - \nabla_\phi \log q_\phi(z) \Big|_z \Big]

    The last term, the score, has expectation 0 and is left out. What remains is unbiased, and vanishes draw by draw
    where q is the posterior: there the optimum is a fixed point of stochastic gradients, while those of ``Trace_ELBO``
    keep the variance of the score. Far from the optimum the score may cancel noise, and the path derivative be the
    noisier of the two. It costs a second run of the guide. The gradient of the model's parameters is that of
    ``Trace_ELBO``, unless they are the guide's as well, as those of :class:`guides.Exact`: these lose, with the score,
    the term by which the noise cancelled.

    It serves every guide with reparametrised draws: several sites, flows, sites shared by all rows, minibatches,
    Pyro's autoguides. ``IWAE(K, estimator="doubly")`` is its counterpart for importance-weighted bounds.

    Args:
        num_particles, max_plate_nesting, vectorize_particles: as of ``Trace_ELBO``.

    Raises:
        ValueError: when used, for a guide with a site whose draws are not reparametrised.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for variational
        inference, NeurIPS.

    Example:
        >>> loss = PathELBO(num_particles=4, vectorize_particles=True)
        >>> # zoo.fit(model, guide, x, loss=loss)
    """

    def loss(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound."""
        with torch.no_grad():
            return float(super().loss(model, guide, *args, **kwargs))

    def _get_trace(
        self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces in which log q of every latent site has its slope along the draw as its only gradient."""
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            return model_trace, guide_trace
        names = [name for name in latent_names(guide_trace) if _moves(name, guide_trace)]
        live = {name: guide_trace.nodes[name]["value"] for name in names}
        slopes = _slopes(guide, guide_trace, live, args, kwargs)
        for name in latent_names(guide_trace):
            site = guide_trace.nodes[name]
            along: Any = 0.0
            if name in slopes:
                along = slopes[name] * (live[name] - live[name].detach())
            guide_trace.nodes[name] = {**site, "score_parts": ScoreParts(site["log_prob"], 0, along)}
        return model_trace, guide_trace


def _moves(name: str, guide_trace: poutine.Trace) -> bool:
    """Whether the draws of a site depend on parameters through a path.

    Raises:
        ValueError: they depend on them, but not through a path.
    """
    site = guide_trace.nodes[name]
    if not getattr(site["fn"], "has_rsample", False):
        raise ValueError(
            f"PathELBO differentiates along the draws, and those of the guide's site '{name}' "
            f"({type(site['fn']).__name__}) are not reparametrised: use TraceEnum_ELBO if it is discrete, or Trace_ELBO"
        )
    return bool(site["value"].requires_grad)


def _slopes(
    guide: PyroCallable, drawn: poutine.Trace, live: dict[str, Tensor], args: Args, kwargs: Kwargs
) -> dict[str, Tensor]:
    """The derivative of the guide's log q in the value of every site, of its value's shape, at fixed parameters.

    The guide runs again at the same draws, as leaves: what a site's distribution owes to earlier draws counts, what it
    owes to parameters does not.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in live.items()}
    held = drawn.copy()
    for name, leaf in leaves.items():
        held.nodes[name] = {**drawn.nodes[name], "value": leaf}
    again = prune_subsample_sites(poutine.trace(poutine.replay(guide, trace=held)).get_trace(*args, **kwargs))
    again.compute_log_prob()
    total: Any = sum(again.nodes[name]["log_prob_sum"] for name in latent_names(again))
    if not leaves or not isinstance(total, Tensor) or not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: slope for name, slope in zip(leaves, found, strict=True) if slope is not None}
