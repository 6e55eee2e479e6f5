"""Whether model, guide and loss go together, and which loss suits them: what :func:`zoo.fit` asks before it starts."""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

from zoo.base.latent_sites import latents
from zoo.base.protocols import Conjugate
from zoo.infer.losses.quadrature import QuadratureELBO

GAUSSIAN = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)


def move(modules: tuple[Any, ...], device: str | torch.device) -> None:
    """Move what has parameters.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device)!r} is not to be had here: {str(error).splitlines()[0]}") from None
    for module in modules:
        if isinstance(module, nn.Module):
            module.to(device)


def check_count(guide: Any, n: int, validation: Tensor | None) -> None:
    """A guide with parameters for every row serves the rows it was built for, and no others.

    Raises:
        ValueError: there are others.
    """
    held = getattr(guide, "count", None)
    if not isinstance(held, int):
        return
    name = type(guide).__name__
    if held != n:
        raise ValueError(f"{name} holds {held} rows, got {n}: fit a new one for this data, or use Amortized or Exact")
    if validation is not None and len(validation) != held:
        raise ValueError(
            f"{name} has parameters for the {held} rows of x alone, none for the {len(validation)} of validation: use "
            "Amortized or Exact"
        )


def check_types(model: Any, guide: Any) -> None:
    """Model and guide must agree on dtype and device.

    Raises:
        ValueError: they do not; or an argument is no Pyro callable.
    """
    for name, module in (("model", model), ("guide", guide)):
        if not callable(module):
            raise ValueError(f"{name} is no Pyro callable, got {type(module).__name__}")
    first = [next(m.parameters(), None) for m in (model, guide) if isinstance(m, nn.Module)]
    pair = [p for p in first if p is not None]
    if len(pair) == 2 and (pair[0].dtype, pair[0].device) != (pair[1].dtype, pair[1].device):
        raise ValueError(
            f"the model is {pair[0].dtype} on {pair[0].device}, the guide {pair[1].dtype} on {pair[1].device}: "
            "move one with .to(...), or build the guide after the model has its type"
        )


def default_loss(model: Any, guide: Any) -> ELBO:
    """The loss that model and guide call for by what they declare; no number decides it.

    :class:`~zoo.infer.losses.quadrature.QuadratureELBO` where its rule is exact: the model declares ``quadratic``
    (log p(x, z) is a quadratic function of the continuous latent sites, for every value of the discrete ones) and the
    guide ``gaussian`` (its sites are Gaussian or categorical). ``Trace_ELBO`` everywhere else.
    """
    if not tight(model, guide) and getattr(model, "quadratic", False) and gaussian(guide):
        return QuadratureELBO()
    return Trace_ELBO(max_plate_nesting=1)


def gaussian(guide: Any) -> bool:
    """Whether a guide declares that all its sites are Gaussian or categorical, or is a Gaussian autoguide of Pyro's."""
    return isinstance(guide, GAUSSIAN) or bool(getattr(guide, "gaussian", False))


def tight(model: Any, guide: Any) -> bool:
    """Whether a guide declares that it is the posterior of its conjugate model: every draw gives log p(x)."""
    return isinstance(model, Conjugate) and bool(getattr(guide, "tight", False))


def noiseless(model: Any, guide: Any, loss: ELBO) -> bool:
    """Whether the loss and its gradient are the same for different draws, so that a line search may follow them."""
    if isinstance(loss, QuadratureELBO):
        return bool(getattr(guide, "smooth", True))
    return type(loss) is Trace_ELBO and tight(model, guide)


def check_pair(model: Any, guide: Any, x: Tensor, probe: tuple[Any, ...], loss: ELBO | None, subsampled: bool) -> None:
    """Refuse combinations of model, guide and loss that Pyro would run to a silently wrong answer.

    Raises:
        ValueError: names the combination and the way out.
    """
    if subsampled and isinstance(guide, AutoContinuous):
        raise ValueError(
            f"{type(guide).__name__} holds parameters for the rows of one batch, not for all {len(x)}: pass "
            "batch_size=None, or take MeanField or Amortized"
        )
    if subsampled and isinstance(guide, AutoGuide) and guide.create_plates is None:
        raise ValueError(
            f"{type(guide).__name__} does not know the plate of the batches: build it with create_plates=lambda x, "
            "index=None, size=None: pyro.plate('rows', size or len(x), subsample=index, dim=-1), or take MeanField"
        )
    if subsampled and isinstance(loss, RenyiELBO):
        raise ValueError("RenyiELBO scales a minibatch inside its logarithm and is no bound then: pass batch_size=None")
    if isinstance(loss, JitTrace_ELBO) and hasattr(loss, "_loss_and_surrogate_loss"):
        raise ValueError("this JitTrace_ELBO is compiled for another model already: make a new one for every fit")
    with torch.no_grad(), poutine.block():
        sites = poutine.trace(guide).get_trace(*probe).nodes
        plan = poutine.trace(model).get_trace(*probe).nodes
    for latent in latents(model, x):
        summed = isinstance(loss, TraceEnum_ELBO) and plan[latent.name]["infer"].get("enumerate")
        if latent.name not in sites and not summed:
            raise ValueError(
                f"the guide has no site '{latent.name}': it would be drawn from the prior without a word. "
                "Add it to the guide, or sum it out with TraceEnum_ELBO if it is discrete"
            )


def deep(model: Any) -> bool:
    """Whether a model has networks."""
    return isinstance(model, nn.Module) and any(isinstance(m, nn.Linear) for m in model.modules())
