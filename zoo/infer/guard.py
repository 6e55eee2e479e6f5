"""What a fit keeps on its way: the last good parameters, the held-out bound with the best ones, a checkpoint."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from zoo.base.random import seeded
from zoo.infer.storage.checkpoint import replace

CHUNK = 2**22  # entries of held-out rows per evaluation


class Diverged(FloatingPointError):  # noqa: N818 - it reads as what it says
    """The loss of a fit ceased to be a number. Model and guide hold the last good parameters again.

    Attributes:
        step: the step at which it did.
        site: the first site whose value or log density is no finite number, or None.
        run: the fit up to there, with the last good parameters.
    """

    def __init__(self, message: str, step: int, site: str | None, run: Any) -> None:
        super().__init__(message)
        self.step, self.site, self.run = step, site, run


class UnboundedLikelihood(UserWarning):
    """A decoder's variances go to their floor, where the likelihood has no maximum but what the floor makes it."""


def floored(model: Any, guide: Any, arguments: tuple[Any, ...], seed: int, most: float = 0.05) -> float | None:
    """The share of a decoder's noise that lies at its floor; warns where it is large.

    Args:
        model: a model; one with ``at_floor(z)`` is asked.
        guide: its guide, which draws z.
        arguments: of a step: some rows.
        seed: of the draws.
        most: the largest share without a warning.

    Returns:
        the share, or None for a model without a floor.
    """
    if not hasattr(model, "at_floor"):
        return None
    with torch.no_grad(), seeded(seed), pyro.validation_enabled(False), poutine.block():
        share = model.at_floor(poutine.trace(guide).get_trace(*arguments).nodes["z"]["value"])
    if share is None:
        return None
    found = float(share.mean())
    if found > most:
        warnings.warn(
            f"{100 * found:.0f}% of the decoder's variances are at their floor ({model.floor:g} of the column's) or "
            "below a thousandth of the column's: there the likelihood has no maximum, and its value says how far "
            "training and floor let it go, not how good the model is. Raise floor, take fewer factors, hidden units "
            "or steps, noise='constant', or more rows; compare models at one floor only, and on held-out rows",
            UnboundedLikelihood,
            stacklevel=3,
        )
    return found


class Guard:
    """Keeps copies of the parameters of model and guide while they are trained.

    Args:
        model: the model.
        guide: the guide, as it is trained.
        every: steps between two copies, two looks at held-out rows, and two checkpoints.
        patience: looks in a row without a better held-out bound after which :meth:`look` is true.
        checkpoint: the folder that holds the best parameters so far, or the last good ones without held-out rows.
    """

    def __init__(self, model: Any, guide: Any, every: int, patience: int | None, checkpoint: Path | None) -> None:
        self.modules = [m for m in (model, guide) if isinstance(m, nn.Module)]
        self.every, self.patience, self.checkpoint = every, patience, checkpoint
        self.curve: list[tuple[int, float]] = []
        self.best_step = -1
        self._best_bound = math.inf
        self._good: list[tuple[Tensor, Tensor]] = []
        self._best: list[tuple[Tensor, Tensor]] = []

    def due(self, step: int) -> bool:
        """Whether a copy is due before this step."""
        return step % self.every == 0

    def copy(self) -> list[tuple[Tensor, Tensor]]:
        """All tensors of model, guide and parameter store, each with a copy."""
        held = [t for m in self.modules for t in (*m.parameters(), *m.buffers())]
        held += [p for _, p in pyro.get_param_store().named_parameters()]
        return [(t, t.detach().clone()) for t in {id(t): t for t in held}.values()]

    def good(self, copy: list[tuple[Tensor, Tensor]]) -> None:
        """Keep a copy whose loss was a number."""
        self._good = copy

    def look(self, step: int, bound: float) -> bool:
        """Take in the negative held-out bound per row after a step; true where patience is at its end."""
        self.curve.append((step, bound))
        if bound < self._best_bound:
            self._best_bound, self.best_step = bound, step
            if self.patience is not None or self.checkpoint is not None:
                self._best = self.copy()
        looks = sum(1 for at, _ in self.curve if at > self.best_step)
        return self.patience is not None and looks >= self.patience

    def restore(self, which: str) -> None:
        """Put the ``"good"`` or the ``"best"`` copy back, where there is one."""
        put_back(self._good if which == "good" else self._best)

    def write(self, run: Any) -> None:
        """Put the run in the checkpoint's folder, with the best parameters where held-out rows choose them."""
        if self.checkpoint is None:
            return
        now = self.copy() if self._best else []
        put_back(self._best)
        try:
            replace(run, self.checkpoint)
        finally:
            put_back(now)

    def diverged(
        self, step: int, loss: float, model: Any, guide: Any, arguments: tuple[Any, ...], run: Any
    ) -> Diverged:
        """The error to raise for a loss that is no number, after the last good parameters are back."""
        bad = self.copy()
        self.restore("good")
        site, why = _spoiled_site(model, guide, arguments)  # the rows are to blame
        if not why:
            put_back(bad)
            why = _spoiled_parameter(model, guide)
            if not why:
                site, why = _spoiled_site(model, guide, arguments)
            self.restore("good")
        ways = "lower the learning rate, clip the gradient, look for outliers in x, or raise the floor on the variances"
        held = "best" if self._best else "last good"
        kept = f"; the {held} parameters are in {self.checkpoint}" if self.checkpoint is not None else ""
        text = f"the loss is {loss} at step {step}{why}: {ways}. Model and guide hold the last good parameters{kept}"
        return Diverged(text, step, site, run)


@torch.no_grad()
def put_back(copy: list[tuple[Tensor, Tensor]]) -> None:
    """Write copies into the tensors they were taken from."""
    for tensor, value in copy:
        tensor.copy_(value)


def held_out(svi: SVI, x: Tensor, seed: int, transform: Callable[[Tensor], Tensor] | None) -> float:
    """The negative bound per row of held-out rows (m, d), in chunks, with the same draws at every call."""
    m, d = x.shape
    total = 0.0
    with seeded(seed):
        for index in torch.arange(m, device=x.device).split(max(1, CHUNK // d)):
            rows = x if len(index) == m else x[index]
            rows = rows if transform is None else transform(rows)
            arguments = (rows,) if len(index) == m else (rows, index, m)
            total += float(svi.evaluate_loss(*arguments)) * len(index) / m
    return total / m


def _spoiled_parameter(model: Any, guide: Any) -> str:
    """The first parameter that is no finite number, in words."""
    for module in (guide, model):
        if isinstance(module, nn.Module):
            for name, p in module.named_parameters():
                if not torch.isfinite(p).all():
                    return f" (parameter '{name}' of {type(module).__name__} holds {_odd(p)})"
    return ""


def _spoiled_site(model: Any, guide: Any, arguments: tuple[Any, ...]) -> tuple[str | None, str]:
    """The first site that is no finite number, by name and in words."""
    try:
        with torch.no_grad(), pyro.validation_enabled(False), seeded(0), poutine.block():
            drawn = poutine.trace(guide).get_trace(*arguments)
            scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*arguments)
            for trace in (drawn, scored):
                trace.compute_log_prob()
                for name, site in trace.nodes.items():
                    if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                        continue
                    for what, value in (("values", site["value"]), ("log densities", site["log_prob"])):
                        if what == "values" and site["is_observed"]:  # NaN may be a missing entry
                            continue
                        if not torch.isfinite(value).all():
                            return name, f" (site '{name}' has {what} of {_odd(value)})"
    except (ValueError, RuntimeError) as error:  # a distribution that refuses its parameters, a factorisation
        return None, f" ({str(error).splitlines()[0]})"
    return None, ""


def _odd(value: Tensor) -> str:
    return str(value[~torch.isfinite(value)].flatten()[0].item())
