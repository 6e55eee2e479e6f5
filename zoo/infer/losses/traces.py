"""Helpers of the losses: sites and plates in traces of model and guide."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from zoo.base.callables import PyroCallable

Args = tuple[Any, ...]  # of model and guide
Kwargs = dict[str, Any]
Site = dict[str, Any]  # in a trace
Nodes = Mapping[str, Site]  # the sites of a trace by name


def reported(loss: float) -> float:
    """Returns a loss unchanged, with Pyro's warning if it is NaN."""
    warn_if_nan(loss, "loss")
    return loss


def latent_names(trace: Trace) -> list[str]:
    """The names of the latent sites in a trace, without those that draw subsamples."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]


def check_drawn(name: str, guide_trace: Trace) -> None:
    """Refuse a guide that leaves out a latent site of the model, which Pyro would then draw from the prior.

    Raises:
        ValueError: names the site.
    """
    if name not in guide_trace.nodes:
        raise ValueError(
            f"the guide has no site '{name}', which would silently be drawn from the prior: add it to the guide, or "
            "sum it out of the model (by TraceEnum_ELBO where it is discrete)"
        )


def loss_and_surrogate(loss: Trace_ELBO, model: PyroCallable, guide: PyroCallable, args: Args) -> tuple[Tensor, Tensor]:
    """The loss, and the scalar whose gradients are those of ``loss_and_grads``, without turning any into a number."""
    total: Any = 0.0
    surrogate: Any = 0.0
    for model_trace, guide_trace in loss._get_traces(model, guide, args, {}):
        joint = model_trace.log_prob_sum()
        total = total + guide_trace.log_prob_sum() - joint
        surrogate = surrogate - joint
        log_r = None
        for site in guide_trace.nodes.values():
            if site["type"] != "sample":
                continue
            _, score, entropy = site["score_parts"]
            surrogate = surrogate + torch.as_tensor(entropy).sum()
            if not is_identically_zero(score):
                log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
                surrogate = surrogate - (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    return torch.as_tensor(total) / loss.num_particles, torch.as_tensor(surrogate) / loss.num_particles


def plates_of(site: Site) -> list[str]:
    """The names of the plates that a site is in, except the plate of the draws."""
    return [frame.name for frame in site["cond_indep_stack"] if frame.vectorized and frame.name != "draws"]


def rows_plate(model_trace: Trace) -> str:
    """The name of the plate of the rows: the plate of the data at dim -1."""
    for site in model_trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"]:
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and frame.dim == -1:
                    return str(frame.name)
    return "rows"


def shared_sites(loss: str, name: str, rows: str) -> str:
    """The error message for a site shared by all rows, under a loss that needs a weight for every row."""
    return (
        f"site '{name}' is shared by all rows, and {loss} needs a weight for every row: the log of a mean over draws "
        f"is a sum over the rows only if all sites are in the plate '{rows}'. Use Trace_ELBO; zoo.evaluate estimates "
        "log p(x) by importance sampling after the fit"
    )


@contextmanager
def one_plate(loss: str) -> Iterator[None]:
    """A block in which a loss runs model and guide inside a plate of draws at dim -2, left of the rows.

    Raises:
        ValueError: model or guide has a plate of its own at dim -2; the message names it.
    """
    try:
        yield
    except ValueError as error:
        if "collide at dim" not in str(error):
            raise
        pair = str(error).splitlines()[0].strip()
        raise ValueError(
            f"{loss} has its draws in a plate at dim -2, left of the rows, where model or guide has a plate already "
            f"({pair}): use Trace_ELBO(max_plate_nesting=2), or make it an event dimension (.to_event)"
        ) from error
