"""Whether model, guide and loss are compatible, and which loss suits them: the checks of :func:`zoo.fit`."""

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
from zoo.base.checks import check_held, incomplete
from zoo.base.latent_sites import Layout
from zoo.base.protocols import Conjugate, HoldsRows, Smooth, declares
from zoo.infer.losses.closed_form import ClosedFormELBO, check_closed_form_pair, closed_form
from zoo.infer.losses.fixed_draws import FixedDraws, check_fixed_draws
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.traces import Nodes, shared_sites

GAUSSIAN = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
PLATES = "create_plates=lambda x, index=None, size=None: pyro.plate('rows', size or len(x), subsample=index, dim=-1)"


def move(functions: tuple[PyroCallable, ...], device: str | torch.device) -> None:
    """Move the modules behind model and guide to a device.

    Raises:
        ValueError: the device is not available.
    """
    check_device(device)
    for module in modules(*functions):
        module.to(device)


def check_device(device: str | torch.device) -> None:
    """Refuse a device that there is none of.

    Raises:
        ValueError: the device is not available.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={str(device)!r} is not available here: {str(error).splitlines()[0]}") from None


def check_count(guide: PyroCallable, n: int, validation: Tensor | None) -> None:
    """Refuse rows other than those that a guide with parameters for every row was built for.

    Raises:
        ValueError: names the guide and both numbers of rows.
    """
    inner = unwrapped(guide)
    held = inner.count if isinstance(inner, HoldsRows) else None
    if not isinstance(held, int):
        return
    name = name_of(guide)
    check_held(name, held, n)
    if validation is not None and len(validation) != held:
        raise ValueError(
            f"{name} has parameters for the {held} rows of x only, not for the {len(validation)} of validation: use "
            "Amortized or Exact"
        )


def check_types(model: PyroCallable, guide: PyroCallable) -> None:
    """Check that model and guide are callables of the same dtype on the same device.

    Raises:
        ValueError: they differ, or an argument is not callable.
    """
    for name, function in (("model", model), ("guide", guide)):
        if not callable(function):
            raise ValueError(f"{name} is not a Pyro callable, got {type(function).__name__}")
    inner = [unwrapped(function) for function in (model, guide)]
    first = [next(m.parameters(), None) for m in inner if isinstance(m, nn.Module)]
    pair = [p for p in first if p is not None]
    if len(pair) == 2 and (pair[0].dtype, pair[0].device) != (pair[1].dtype, pair[1].device):
        raise ValueError(
            f"the model is {pair[0].dtype} on {pair[0].device}, the guide {pair[1].dtype} on {pair[1].device}: "
            "move one of them with .to(...), or build the guide after the model has its dtype"
        )


def default_loss(model: PyroCallable, guide: PyroCallable, found: Layout) -> ELBO:
    """The default loss of a pair, which depends only on what model and guide declare and on the model's sites.

    :class:`~zoo.infer.losses.quadrature.QuadratureELBO` where its rule is exact: the model declares ``quadratic``
    (log p(x, z) is a quadratic function of the continuous latent sites, for every value of the discrete ones), all its
    latent sites are local, its only plate is that of the rows, and the guide declares ``gaussian`` (its sites are
    Gaussian or categorical). :class:`~zoo.infer.losses.closed_form.ClosedFormELBO` where the model is conditionally
    conjugate and the guide holds factors of its families. ``Trace_ELBO`` in all other cases.

    Args:
        model: the model.
        guide: the guide.
        found: the model's sites and plates.
    """
    simple = not found.shared and found.nesting == 1
    if simple and declares(model, "quadratic") and gaussian(guide) and not tight(model, guide):
        return QuadratureELBO()
    if closed_form(model, guide):
        return ClosedFormELBO()
    return Trace_ELBO(max_plate_nesting=found.nesting)


def gaussian(guide: PyroCallable) -> bool:
    """Whether a guide declares that all its sites are Gaussian or categorical, or is one of Pyro's Gaussian guides."""
    return isinstance(undecorated(guide), GAUSSIAN) or declares(guide, "gaussian")


def tight(model: PyroCallable, guide: PyroCallable) -> bool:
    """Whether a guide declares that it is the posterior of its conjugate model, so that every draw gives log p(x)."""
    return isinstance(undecorated(model), Conjugate) and declares(guide, "tight")


def noiseless(model: PyroCallable, guide: PyroCallable, loss: ELBO) -> bool:
    """Whether the loss and its gradient are the same for different draws, as a line search requires."""
    if isinstance(loss, QuadratureELBO):
        inner = undecorated(guide)
        return not isinstance(inner, Smooth) or inner.smooth
    if isinstance(loss, ClosedFormELBO | FixedDraws | ProjectedELBO):
        return True
    return type(loss) is Trace_ELBO and tight(model, guide)


def deep(model: PyroCallable) -> bool:
    """Whether a model has neural networks."""
    return any(isinstance(part, nn.Linear) for module in modules(model) for part in module.modules())


def random_layers(*functions: PyroCallable) -> list[nn.Module]:
    """The layers that are random in training mode, such as dropout."""
    return [part for part in _parts(*functions) if isinstance(part, DROPOUT) and getattr(part, "p", 1.0) != 0.0]


def batch_norms(*functions: PyroCallable) -> list[nn.Module]:
    """The layers whose output for one row depends on the other rows of its batch in training mode."""
    return [part for part in _parts(*functions) if isinstance(part, BATCH_NORM)]


def _parts(*functions: PyroCallable) -> Iterator[nn.Module]:
    for module in modules(*functions):
        yield from module.modules()


def own_parameters(model: PyroCallable, guide: PyroCallable) -> bool:
    """Whether a guide has parameters besides those of the model."""
    held = {id(p) for module in modules(model) for p in module.parameters()}
    return any(id(p) not in held for module in modules(guide) for p in module.parameters())


def check_batches(model: PyroCallable, guide: PyroCallable, n: int, batch_size: int) -> None:
    """Refuse batches of a single row for a model or guide with batch normalisation.

    Raises:
        ValueError: names a better batch size.
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
    raise ValueError(f"{found}, which has no variance for {name} to normalise by: pass batch_size={better}")


def check_autoguide(guide: PyroCallable, found: Layout, n: int, subsampled: bool) -> None:
    """Refuse those of Pyro's autoguides that cannot be trained on minibatches of a model with local sites.

    Raises:
        ValueError: names the guide and the way out.
    """
    inner = unwrapped(guide)
    if not subsampled or not isinstance(inner, AutoGuide) or not found.local:
        return
    name = type(inner).__name__
    if isinstance(inner, AutoContinuous):
        raise ValueError(
            f"{name} has parameters for the rows of one batch, not for all {n}: pass batch_size=None, or use "
            "MeanField or Amortized"
        )
    if inner.create_plates is None:
        raise ValueError(f"{name} does not subsample the plate of the rows: build it with {PLATES}, or use MeanField")


def check_loss(loss: ELBO, found: Layout, subsampled: bool) -> None:
    """Refuse losses that are not a bound for the model and the batches.

    Raises:
        ValueError: names the loss and the way out.
    """
    if isinstance(loss, IWAE) and found.shared:
        raise ValueError(shared_sites("IWAE", found.shared[0].name, found.plate))
    if subsampled and isinstance(loss, FixedDraws):
        raise ValueError(
            "FixedDraws uses the same draws at every evaluation, but every minibatch would pair them with other rows, "
            "so that the bound is neither a fixed function nor unbiased: pass batch_size=None, or use Trace_ELBO"
        )
    if subsampled and isinstance(loss, RenyiELBO):
        raise ValueError(
            "RenyiELBO scales a minibatch inside its logarithm, so it is not a bound on minibatches: pass "
            "batch_size=None"
        )
    if isinstance(loss, JitTrace_ELBO) and hasattr(loss, "_loss_and_surrogate_loss"):  # set by its first step
        raise ValueError("this JitTrace_ELBO is already compiled for another model: make a new one for every fit")


def check_pair(
    model: PyroCallable, guide: PyroCallable, arguments: tuple[Any, ...], found: Layout, loss: ELBO
) -> poutine.Trace:
    """Run guide and model once, and refuse pairs for which Pyro would silently compute a wrong bound.

    Args:
        model: the model.
        guide: the guide.
        arguments: of the first step: ``(x,)``, or ``(rows, index, size)``.
        found: the model's layout.
        loss: the objective.

    Returns:
        the trace of the guide.

    Raises:
        ValueError: the guide leaves out a site, dtypes or devices differ, or a plate does not scale a minibatch to all
            rows; the message names the site or parameter and the way out.
    """
    if isinstance(loss, ClosedFormELBO):
        check_closed_form_pair(model, guide)
    with torch.no_grad(), poutine.block(), mode(False, model, guide):
        if isinstance(loss, FixedDraws):
            check_fixed_draws(guide, found, loss.draws, arguments)
        guide_trace = poutine.trace(guide).get_trace(*arguments)
        drawn = guide_trace.nodes
        try:
            scored = poutine.trace(model).get_trace(*arguments).nodes
        except RuntimeError as error:
            _check_tensors(name_of(guide), drawn, arguments[0], str(error))
            raise
    _check_tensors(name_of(guide), drawn, _reference(scored, arguments[0]))
    _check_missing(model, scored, found)
    for latent in found.latents:
        site = scored.get(latent.name)
        summed = isinstance(loss, TraceEnum_ELBO) and site is not None and site["infer"].get("enumerate")
        if latent.name not in drawn and not summed:
            raise ValueError(
                f"the guide has no site '{latent.name}', which would be drawn from the prior at every step: add it to "
                "the guide, or sum it out with TraceEnum_ELBO if it is discrete"
            )
    if len(arguments) > 1:
        local = {latent.name for latent in found.local}
        _check_plates("model", scored, local | set(found.data), arguments[2])
        _check_plates(f"guide {name_of(guide)}", drawn, local, arguments[2])
    return guide_trace


def _check_missing(model: PyroCallable, nodes: Nodes, found: Layout) -> None:
    """Refuse a model that says ``missing = True``, and has no density of rows with missing entries.

    Raises:
        ValueError: names the model, the site and the way out.
    """
    for name in found.data:
        if name not in nodes or not incomplete(nodes[name]["value"]):
            continue
        try:
            with torch.no_grad():
                whole = not nodes[name]["fn"].log_prob(nodes[name]["value"]).isnan().any()
        except ValueError:  # NaN is outside of its support
            whole = False
        if not whole:
            raise ValueError(
                f"the model {name_of(model)} says missing = True, but has no density at '{name}' of rows with missing "
                "entries: take that of the observed ones, zoo.distributions.observed.seen(density, x)"
            )


def _reference(nodes: Nodes, x: Tensor) -> Tensor:
    """A tensor with the model's dtype and device: its first floating-point parameter, else the rows."""
    params = (site["value"] for site in nodes.values() if site["type"] == "param")
    return next((value for value in params if value.is_floating_point()), x)


def _check_tensors(guide: str, nodes: Nodes, like: Tensor, more: str = "") -> None:
    """Check that the guide's parameters and draws have the model's dtype and device.

    Raises:
        ValueError: names one that does not.
    """
    for kind, what in (("param", "parameter"), ("sample", "site")):
        for name, site in nodes.items():
            value = site["value"] if site["type"] == kind else None
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            if (value.dtype, value.device) != (like.dtype, like.device):
                raise ValueError(
                    f"{what} '{name}' of guide {guide} is {value.dtype} on {value.device}, the model {like.dtype} on "
                    f"{like.device}: create it with that dtype and device, or move the model with .to(...)"
                    + (f" ({more.splitlines()[0]})" if more else "")
                )


def _check_plates(role: str, nodes: Nodes, names: set[str], n: int) -> None:
    """Check that the local sites are in a plate that scales the terms of a minibatch of b rows by n / b.

    Raises:
        ValueError: names a site that is not.
    """
    for name in names & nodes.keys():
        frames = [frame for frame in nodes[name]["cond_indep_stack"] if frame.vectorized and frame.dim == -1]
        if not any(frame.full_size == n for frame in frames):
            raise ValueError(
                f"site '{name}' of the {role} is in no plate over all {n} rows, so that a minibatch would count as all "
                "of them: use zoo.base.rows(x, index, size), or pyro.plate('rows', size, subsample=index, dim=-1)"
            )
