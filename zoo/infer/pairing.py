"""Whether model, guide and loss go together, and which loss suits them: what :func:`zoo.fit` asks before it starts."""

from collections.abc import Iterator
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

from zoo.base.callables import PyroCallable, mode, modules, name_of, undecorated, unwrapped
from zoo.base.latent_sites import Layout
from zoo.base.protocols import Conjugate, GaussianGuide, HoldsRows, Quadratic, TightGuide
from zoo.infer.losses.closed_form import ClosedFormELBO, check_closed_form_pair, closed_form
from zoo.infer.losses.fixed_draws import FixedDraws, check_fixed_draws
from zoo.infer.losses.quadrature import QuadratureELBO

GAUSSIAN = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
PLATES = "create_plates=lambda x, index=None, size=None: pyro.plate('rows', size or len(x), subsample=index, dim=-1)"


def move(functions: tuple[PyroCallable, ...], device: str | torch.device) -> None:
    """Move what has parameters.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device)!r} is not available here: {str(error).splitlines()[0]}") from None
    for module in modules(*functions):
        module.to(device)


def check_count(guide: PyroCallable, n: int, validation: Tensor | None) -> None:
    """A guide with parameters for every row serves the rows it was built for, and no others.

    Raises:
        ValueError: there are others.
    """
    inner = unwrapped(guide)
    held = inner.count if isinstance(inner, HoldsRows) else None
    if not isinstance(held, int):
        return
    name = name_of(guide)
    if held != n:
        raise ValueError(f"{name} holds {held} rows, got {n}: fit a new one for this data, or use Amortized or Exact")
    if validation is not None and len(validation) != held:
        raise ValueError(
            f"{name} has parameters for the {held} rows of x alone, none for the {len(validation)} of validation: use "
            "Amortized or Exact"
        )


def check_types(model: PyroCallable, guide: PyroCallable) -> None:
    """Model and guide must agree on dtype and device.

    Raises:
        ValueError: they do not; or an argument is no Pyro callable.
    """
    for name, function in (("model", model), ("guide", guide)):
        if not callable(function):
            raise ValueError(f"{name} is no Pyro callable, got {type(function).__name__}")
    inner = [unwrapped(function) for function in (model, guide)]
    first = [next(m.parameters(), None) for m in inner if isinstance(m, nn.Module)]
    pair = [p for p in first if p is not None]
    if len(pair) == 2 and (pair[0].dtype, pair[0].device) != (pair[1].dtype, pair[1].device):
        raise ValueError(
            f"the model is {pair[0].dtype} on {pair[0].device}, the guide {pair[1].dtype} on {pair[1].device}: "
            "move one with .to(...), or build the guide after the model has its type"
        )


def default_loss(model: PyroCallable, guide: PyroCallable, nesting: int = 1) -> ELBO:
    """The loss that model and guide call for by what they declare; no number decides it.

    :class:`~zoo.infer.losses.quadrature.QuadratureELBO` where its rule is exact: the model declares ``quadratic``
    (log p(x, z) is a quadratic function of the continuous latent sites, for every value of the discrete ones) and the
    guide ``gaussian`` (its sites are Gaussian or categorical). :class:`~zoo.infer.losses.closed_form.ClosedFormELBO`
    where the model is conditionally conjugate and the guide holds factors of its families. ``Trace_ELBO`` everywhere
    else.

    Args:
        model: the model.
        guide: the guide.
        nesting: the depth of the model's plates.
    """
    inner = undecorated(model)
    quadratic = isinstance(inner, Quadratic) and bool(inner.quadratic)
    if quadratic and gaussian(guide) and not tight(model, guide):
        return QuadratureELBO()
    if closed_form(model, guide):
        return ClosedFormELBO()
    return Trace_ELBO(max_plate_nesting=nesting)


def gaussian(guide: PyroCallable) -> bool:
    """Whether a guide declares that all its sites are Gaussian or categorical, or is a Gaussian autoguide of Pyro's."""
    inner = undecorated(guide)
    return isinstance(inner, GAUSSIAN) or (isinstance(inner, GaussianGuide) and bool(inner.gaussian))


def tight(model: PyroCallable, guide: PyroCallable) -> bool:
    """Whether a guide declares that it is the posterior of its conjugate model: every draw gives log p(x)."""
    inner = undecorated(guide)
    return isinstance(undecorated(model), Conjugate) and isinstance(inner, TightGuide) and bool(inner.tight)


def noiseless(model: PyroCallable, guide: PyroCallable, loss: ELBO) -> bool:
    """Whether the loss and its gradient are the same for different draws, so that a line search may follow them."""
    if isinstance(loss, QuadratureELBO):
        return bool(getattr(undecorated(guide), "smooth", True))
    if isinstance(loss, ClosedFormELBO | FixedDraws):
        return True
    return type(loss) is Trace_ELBO and tight(model, guide)


def deep(model: PyroCallable) -> bool:
    """Whether a model has networks."""
    return any(isinstance(part, nn.Linear) for module in modules(model) for part in module.modules())


def random_layers(*functions: PyroCallable) -> list[nn.Module]:
    """The layers that draw at random in training, such as dropout."""
    return [part for part in _parts(*functions) if isinstance(part, DROPOUT) and getattr(part, "p", 1.0) != 0.0]


def batch_norms(*functions: PyroCallable) -> list[nn.Module]:
    """The layers whose answer for one row depends on the others of its batch, in training."""
    return [part for part in _parts(*functions) if isinstance(part, BATCH_NORM)]


def _parts(*functions: PyroCallable) -> Iterator[nn.Module]:
    for module in modules(*functions):
        yield from module.modules()


def own_parameters(model: PyroCallable, guide: PyroCallable) -> bool:
    """Whether a guide has parameters beside those of the model."""
    held = {id(p) for module in modules(model) for p in module.parameters()}
    return any(id(p) not in held for module in modules(guide) for p in module.parameters())


def check_batches(model: PyroCallable, guide: PyroCallable, n: int, batch_size: int) -> None:
    """Batch normalisation needs batches of two rows at least.

    Raises:
        ValueError: one batch of every epoch, or each, is a single row.
    """
    layers = [layer for layer in batch_norms(model, guide) if isinstance(layer, nn.BatchNorm1d)]
    if not layers or (batch_size > 1 and n % batch_size != 1):
        return
    name = type(layers[0]).__name__
    better = next(size for size in range(max(2, batch_size), n + 2) if n % size != 1)
    sizes = f"{n} = {n // batch_size} x {batch_size} + 1"
    if batch_size == 1:
        found = "batch_size=1 shows one row per step"
    else:
        found = f"batch_size={batch_size} leaves one row for the last batch ({sizes})"
    raise ValueError(f"{found}, which has no variance to normalise by in {name}: pass batch_size={better}")


def check_autoguide(guide: PyroCallable, found: Layout, n: int, subsampled: bool) -> None:
    """Refuse autoguides of Pyro's that hold what they know of one batch for all.

    Raises:
        ValueError: names the guide and the way out.
    """
    inner = unwrapped(guide)
    if not subsampled or not isinstance(inner, AutoGuide) or not found.local:
        return
    name = type(inner).__name__
    if isinstance(inner, AutoContinuous):
        raise ValueError(
            f"{name} holds parameters for the rows of one batch, not for all {n}: pass batch_size=None, or take "
            "MeanField or Amortized"
        )
    if inner.create_plates is None:
        raise ValueError(f"{name} does not know the plate of the batches: build it with {PLATES}, or take MeanField")


def check_loss(loss: ELBO, subsampled: bool) -> None:
    """Refuse losses that are no bound here.

    Raises:
        ValueError: names the loss and the way out.
    """
    if subsampled and isinstance(loss, FixedDraws):
        raise ValueError(
            "FixedDraws takes the same draws at every evaluation, and minibatches would give them to other rows at "
            "every step, so that the bound is neither one function nor unbiased: pass batch_size=None, or Trace_ELBO"
        )
    if subsampled and isinstance(loss, RenyiELBO):
        raise ValueError("RenyiELBO scales a minibatch inside its logarithm and is no bound then: pass batch_size=None")
    if isinstance(loss, JitTrace_ELBO) and hasattr(loss, "_loss_and_surrogate_loss"):
        raise ValueError("this JitTrace_ELBO is compiled for another model already: make a new one for every fit")


def check_pair(model: PyroCallable, guide: PyroCallable, arguments: tuple[Any, ...], found: Layout, loss: ELBO) -> None:
    """Run guide and model once, and refuse what Pyro would run to a silently wrong answer.

    Args:
        model: the model.
        guide: the guide.
        arguments: of the first step: ``(x,)``, or ``(rows, index, size)``.
        found: the model's layout.
        loss: the objective.

    Raises:
        ValueError: the guide leaves out a site, dtypes or devices differ, or a plate does not count the rows of a
            minibatch for all; the message names the site or parameter and the way out.
    """
    if isinstance(loss, ClosedFormELBO):
        check_closed_form_pair(model, guide)
    with torch.no_grad(), poutine.block(), mode(False, model, guide):
        if isinstance(loss, FixedDraws):
            check_fixed_draws(guide, found, loss.draws, arguments)
        drawn = poutine.trace(guide).get_trace(*arguments).nodes
        try:
            scored = poutine.trace(model).get_trace(*arguments).nodes
        except RuntimeError as error:
            _check_tensors(name_of(guide), drawn, arguments[0], str(error))
            raise
    _check_tensors(name_of(guide), drawn, _reference(scored, arguments[0]))
    for latent in found.latents:
        site = scored.get(latent.name)
        summed = isinstance(loss, TraceEnum_ELBO) and site is not None and site["infer"].get("enumerate")
        if latent.name not in drawn and not summed:
            raise ValueError(
                f"the guide has no site '{latent.name}': it would be drawn from the prior at every step. "
                "Add it to the guide, or sum it out with TraceEnum_ELBO if it is discrete"
            )
    if len(arguments) > 1:
        local = {latent.name for latent in found.local}
        _check_plates("model", scored, local | set(found.data), arguments[2])
        _check_plates(f"guide {name_of(guide)}", drawn, local, arguments[2])


def _reference(nodes: Any, x: Tensor) -> Tensor:
    """A tensor of the model's dtype and device: its first real parameter, else the rows."""
    params = (site["value"] for site in nodes.values() if site["type"] == "param")
    return next((value for value in params if value.is_floating_point()), x)


def _check_tensors(guide: str, nodes: Any, like: Tensor, more: str = "") -> None:
    """The guide's parameters and draws must be of the model's dtype and device.

    Raises:
        ValueError: one is not.
    """
    for kind, what in (("param", "parameter"), ("sample", "site")):
        for name, site in nodes.items():
            value = site["value"] if site["type"] == kind else None
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            if (value.dtype, value.device) != (like.dtype, like.device):
                raise ValueError(
                    f"{what} '{name}' of guide {guide} is {value.dtype} on {value.device}, the model {like.dtype} on "
                    f"{like.device}: create it as that, or move the model with .to(...)"
                    + (f" ({more.splitlines()[0]})" if more else "")
                )


def _check_plates(role: str, nodes: Any, names: set[str], n: int) -> None:
    """On a minibatch of b rows, the sites of the rows must stand in a plate that scales their terms by n / b.

    Raises:
        ValueError: one does not.
    """
    for name in names & nodes.keys():
        frames = [frame for frame in nodes[name]["cond_indep_stack"] if frame.vectorized and frame.dim == -1]
        if not any(frame.full_size == n for frame in frames):
            raise ValueError(
                f"site '{name}' of the {role} stands in no plate over all {n} rows, so that a minibatch would count as "
                "the whole: use zoo.base.rows(x, index, size), or pyro.plate('rows', size, subsample=index, dim=-1)"
            )
