"""Whether a fit can search the model's parameters alone, with the guide at its best q in closed form."""

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.algebra import linear_gaussian
from zoo.base.callables import PyroCallable, mode, undecorated
from zoo.base.protocols import Conjugate, Projecting, Projection, declares, linear_form
from zoo.base.random import seeded

TRIED = 100  # rows on which a model's closed forms are compared with its density


def projection_of(model: PyroCallable, guide: PyroCallable, x: Tensor) -> Projection | None:
    """The best q of a guide in closed form for the rows (n, d); None where there is none.

    A model whose closed forms are not those of its own density (a subclass that changes ``forward`` alone) has none.
    """
    inner = undecorated(guide)
    if not isinstance(inner, Projecting) or not declares(guide, "projection"):
        return None
    try:
        found = inner.projection(model, x)
        return found if found is not None and _consistent(model, x) else None
    except (torch.linalg.LinAlgError, ValueError):  # degenerate parameters, which the loss will report
        return None


@torch.no_grad()
def _consistent(model: PyroCallable, x: Tensor) -> bool:
    """Whether log p(x, z) - log p(z | x) = log p(x), with the first from a run of the model and the others closed."""
    index = torch.arange(min(len(x), TRIED), device=x.device)
    rows = x[index]
    with pyro.get_param_store().scope(), seeded(0), poutine.block(), mode(False, model):
        trace = poutine.trace(model).get_trace(rows, index, len(x))
    sites = [s for s in trace.nodes.values() if s["type"] == "sample" and not site_is_subsample(s)]
    latent = [site for site in sites if not site["is_observed"]]
    if len(latent) != 1:
        return False
    inner, form, z = undecorated(model), linear_form(model), latent[0]["value"]
    if form is not None:
        posterior, marginal = linear_gaussian.posterior(rows, *form), linear_gaussian.log_marginal(rows, *form)
    else:
        assert isinstance(inner, Conjugate)  # no guide projects onto another model
        posterior, marginal = inner.posterior(rows), inner.log_marginal(rows)
    terms = [site["fn"].log_prob(site["value"]).sum() for site in sites]
    terms += [-posterior.log_prob(z).sum(), -marginal.sum()]
    size = max(float(term.abs()) for term in terms)
    return abs(float(sum(terms))) <= 1e4 * torch.finfo(x.dtype).eps * max(size, 1.0)
