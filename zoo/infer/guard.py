"""Errors and warnings of a fit that goes wrong: a loss that is not finite, variances at their floor."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.base.callables import PyroCallable, mode, modules, name_of, undecorated
from zoo.base.protocols import Floored
from zoo.base.random import seeded
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.run import Fit
from zoo.infer.running import Running, copied, put_back


class Diverged(FloatingPointError):  # noqa: N818 - it reads as what it says
    """The loss of a fit became NaN or infinite. Model and guide have the last good parameters again.

    Attributes:
        step: the step at which this happened.
        site: the first site whose value or log density is not finite, or None.
        run: the fit before that step, with the last good parameters.
    """

    def __init__(self, message: str, step: int, site: str | None, run: Fit) -> None:
        super().__init__(message)
        self.step, self.site, self.run = step, site, run


def floored(
    model: PyroCallable, guide: PyroCallable, arguments: tuple[Any, ...], seed: int, most: float = 0.05
) -> float | None:
    """The share of a decoder's variances at their floor; warns if it is large.

    Args:
        model: a model, possibly :class:`~zoo.base.protocols.Floored`.
        guide: its guide, which draws z.
        arguments: of model and guide, for some rows.
        seed: of the draws.
        most: the largest share without a warning.

    Returns:
        the share, or None for a model without a floor.
    """
    decoder = undecorated(model)
    if not isinstance(decoder, Floored):
        return None
    with torch.no_grad(), seeded(seed), pyro.validation_enabled(False), poutine.block(), mode(False, model, guide):
        share = decoder.at_floor(poutine.trace(guide).get_trace(*arguments).nodes["z"]["value"])
    if share is None:
        return None
    found = float(share.mean())
    if found > most:
        warnings.warn(
            f"{100 * found:.0f}% of the decoder's variances are at their floor ({decoder.floor:g} of the column's) or "
            "below a thousandth of the column's: there the likelihood is unbounded, and its value depends on the floor "
            "and the number of steps, not on how good the model is. Raise floor, use fewer factors, hidden units or "
            "steps, noise='constant', or more rows; compare models at the same floor only, and on held-out rows",
            UnboundedLikelihood,
            stacklevel=3,
        )
    return found


def diverged(
    loss: float,
    arguments: tuple[Any, ...],
    fit: Running,
    restore: Callable[[], object],
    folder: Path | None,
    best: bool,
) -> Diverged:
    """The error to raise for a loss that is not finite, after restoring the last good parameters.

    Args:
        loss: of the last step.
        arguments: of that step.
        fit: the fit before it.
        restore: restores the last good parameters.
        folder: of a checkpoint, or None.
        best: whether the checkpoint holds the parameters of the best held-out bound.
    """
    bad = copied(fit.model, fit.guide)
    restore()
    site, why = _spoiled_site(fit.svi.model, fit.svi.guide, arguments)  # because of the rows
    if not why:
        put_back(bad)
        why = _spoiled_parameter(fit.model, fit.guide)
        if not why:
            site, why = _spoiled_site(fit.svi.model, fit.svi.guide, arguments)
        restore()
    step = len(fit.losses)
    ways = "lower the learning rate, clip the gradient, look for outliers in x, or raise the floor on the variances"
    kept = f"; the {'best' if best else 'last good'} parameters are in {folder}" if folder is not None else ""
    text = f"the loss is {loss} at step {step}{why}: {ways}. Model and guide have the last good parameters{kept}"
    return Diverged(text, step, site, fit.run())


def _spoiled_parameter(model: PyroCallable, guide: PyroCallable) -> str:
    """The first parameter that is not finite, in words."""
    for module in modules(guide, model):
        for name, p in module.named_parameters():
            if not torch.isfinite(p).all():
                return f" (parameter '{name}' of {name_of(module)} has {_odd(p)})"
    for name, p in pyro.get_param_store().named_parameters():
        if not torch.isfinite(p).all():
            return f" (parameter '{name}' has {_odd(p)})"
    return ""


def _spoiled_site(model: PyroCallable, guide: PyroCallable, arguments: tuple[Any, ...]) -> tuple[str | None, str]:
    """The first site that is not finite, by name and in words."""
    try:
        with torch.no_grad(), pyro.validation_enabled(False), seeded(0), poutine.block():
            drawn = poutine.trace(guide).get_trace(*arguments)
            scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*arguments)
            for trace in (drawn, scored):
                trace.compute_log_prob()
                for name, site in trace.nodes.items():
                    if site["type"] != "sample" or site_is_subsample(site):
                        continue
                    for what, value in (("values", site["value"]), ("log densities", site["log_prob"])):
                        if what == "values" and site["is_observed"]:  # NaN may be a missing entry
                            continue
                        if not torch.isfinite(value).all():
                            return name, f" (site '{name}' has {what} of {_odd(value)})"
    except (ValueError, RuntimeError) as error:  # invalid parameters of a distribution, a failed factorisation
        return None, f" ({str(error).splitlines()[0]})"
    return None, ""


def _odd(value: Tensor) -> str:
    return str(value[~torch.isfinite(value)].flatten()[0].item())
