"""Loss and surrogate loss as tensors, for those losses that can be recorded as a graph."""

from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.quadrature import QuadratureELBO

CAPTURED = (Trace_ELBO, AnnealedELBO, QuadratureELBO, ClosedFormELBO)  # themselves; a subclass may do anything


def loss_and_surrogate(
    loss: ELBO, dial: Tensor, model: PyroCallable, guide: PyroCallable, *args: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and the scalar whose gradients are those of ``loss_and_grads``, without turning any into a number.

    Args:
        loss: one of :data:`CAPTURED`.
        dial: a scalar that holds the weight of an ``AnnealedELBO`` (:func:`turn`).
        model, guide, args: as for ``loss_and_grads``.
    """
    if isinstance(loss, AnnealedELBO):
        return loss.objective(dial, model, guide, args, {})
    if isinstance(loss, QuadratureELBO | ClosedFormELBO):
        value = loss.differentiable_loss(model, guide, *args)
        return value, value
    total: Any = 0.0
    surrogate: Any = 0.0
    assert isinstance(loss, Trace_ELBO)
    for model_trace, guide_trace in loss._get_traces(model, guide, args, {}):
        log_r = None
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                total = total - site["log_prob_sum"]
                surrogate = surrogate - site["log_prob_sum"]
        for site in guide_trace.nodes.values():
            if site["type"] == "sample":
                _, score, entropy = site["score_parts"]
                total = total + site["log_prob_sum"]
                if not is_identically_zero(entropy):
                    surrogate = surrogate + entropy.sum()
                if not is_identically_zero(score):
                    log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
                    surrogate = surrogate - (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    return torch.as_tensor(total) / loss.num_particles, torch.as_tensor(surrogate) / loss.num_particles


def turn(dial: Tensor, loss: ELBO, model: PyroCallable, guide: PyroCallable) -> None:
    """Set the dial for the next step of the loss."""
    if isinstance(loss, AnnealedELBO):
        dial.fill_(loss.next_beta(model, guide))
