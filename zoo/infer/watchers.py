"""Watchers of a fit, called after every step: early stopping, copies of parameters, a progress bar."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import rich.progress
import torch
from pyro.infer import SVI
from rich.console import Console
from torch import Tensor

from zoo.base.callables import PyroCallable, mode
from zoo.base.memory import rows_at_once
from zoo.base.protocols import Collapsing, Delaying
from zoo.base.random import seeded
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.convergence import LEARNED, descended
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.running import Copy, Running, by_name, by_tensor, copied, put_back
from zoo.infer.weighting import each_once

Callback = Callable[[int, float], bool | None]
Transform = Callable[[Tensor], Tensor]


@runtime_checkable
class Watcher(Protocol):
    """An object that is called with the fit after every step."""

    def see(self, fit: Running) -> str | None:
        """Called after every step. A string as result ends training and is recorded as the reason."""
        ...


class Callbacks:
    """Functions of the step and its loss per row; a true result ends training.

    Args:
        functions: all of them are called after every step; on a GPU, each call waits for the step's loss.
    """

    def __init__(self, functions: Iterable[Callback]) -> None:
        self.functions = tuple(functions)

    def see(self, fit: Running) -> str | None:
        """Call every function."""
        if not self.functions:
            return None
        answers = [function(fit.step, fit.loss) for function in self.functions]
        return "a callback ended training" if any(answers) else None


class Collapse:
    """Ends training where a component of the model has collapsed, at its floor.

    Args:
        model: the model.
        every: steps between two looks.
    """

    def __init__(self, model: Collapsing, every: int = 10) -> None:
        self.model, self.every = model, every

    def see(self, fit: Running) -> str | None:
        """Look from time to time."""
        return self.look(fit) if fit.step % self.every == 0 else None

    def look(self, fit: Running) -> str | None:
        """What has collapsed, in words; None if nothing has."""
        if fit.collapsed or (reason := self.model.collapse(fit.plan.x)) is None:
            return None
        self.model.raise_to_floor()
        fit.collapsed, fit.stopped = True, reason
        warnings.warn(reason, UnboundedLikelihood, stacklevel=6)
        return reason


class Hold(AbstractContextManager["Hold"]):
    """Holds some parameters of a model fixed for the first steps.

    As a context manager it holds them from its beginning, and releases them at its end at the latest.

    Args:
        model: the model.
        steps: the number of steps.
    """

    def __init__(self, model: Delaying, steps: int) -> None:
        self.model, self.steps = model, steps

    def see(self, fit: Running) -> None:
        """Release them when due."""
        if fit.step + 1 == self.steps:
            self.model.hold(False)

    def __enter__(self) -> "Hold":
        self.model.hold(True)
        return self

    def __exit__(self, *error: Any) -> None:
        self.model.hold(False)


class LastGood:
    """Keeps a copy of the last parameters whose loss was finite.

    Args:
        every: steps between two copies.
        functions: model and guide, whose parameters are copied immediately.
    """

    def __init__(self, every: int, *functions: PyroCallable) -> None:
        self.every = every
        self._next: tuple[int, Copy] | None = (0, copied(*functions))  # good if the next loss is finite
        self._good: tuple[int, Copy] = (0, [])

    def see(self, fit: Running) -> None:
        """Keep the copy that the last loss confirmed, and make a new one when due."""
        if self._next is not None and not fit.unread:
            self._good, self._next = self._next, None
        if (fit.step + 1) % self.every == 0:
            self._next = fit.step + 1, copied(fit.model, fit.guide)

    def restore(self) -> int:
        """Restore the last good parameters; returns the number of steps that led to them."""
        put_back(self._good[1])
        return self._good[0]

    def state(self, names: Mapping[int, str]) -> dict[str, Any]:
        """The copies, by the names of their tensors."""
        waiting = None if self._next is None else (self._next[0], by_name(self._next[1], names))
        return {"good": (self._good[0], by_name(self._good[1], names)), "next": waiting}

    def resume(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from the copies that :meth:`state` gave."""
        steps, good = state["good"]
        self._good = steps, by_tensor(good, tensors)
        self._next = None if state["next"] is None else (state["next"][0], by_tensor(state["next"][1], tensors))


class Validation:
    """The bound of held-out rows, in evaluation mode, with the same draws at every evaluation.

    Args:
        x: held-out rows (m, d).
        every: steps between two evaluations; there is one at the last step as well.
        seed: of the draws.
        transform: applied to the rows.
        keep: whether to keep a copy of the parameters of the best evaluation.

    Attributes:
        best: a copy of the parameters of the best evaluation, or empty.
    """

    def __init__(self, x: Tensor, every: int, *, seed: int, transform: Transform | None = None, keep: bool) -> None:
        self.x, self.every, self.seed, self.transform, self.keep = x, every, seed, transform, keep
        self.best: Copy = []
        self._bound = math.inf

    def see(self, fit: Running) -> None:
        """Evaluate the bound when due."""
        if fit.step % self.every and fit.step != fit.plan.steps - 1:
            return
        with mode(False, fit.model, fit.guide):
            bound = self._measure(fit.svi)
        fit.curve.append((fit.step, bound))
        if fit.best_step is None or bound < self._bound:
            self._bound, fit.best_step = bound, fit.step
            if self.keep:
                self.best = copied(fit.model, fit.guide)

    def restore(self) -> None:
        """Restore the parameters of the best evaluation."""
        put_back(self.best)

    def state(self, names: Mapping[int, str]) -> dict[str, Any]:
        """The best bound, and the parameters that gave it by the names of their tensors."""
        return {"bound": self._bound, "best": by_name(self.best, names)}

    def resume(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from the best that :meth:`state` gave."""
        self._bound, self.best = state["bound"], by_tensor(state["best"], tensors)

    def _measure(self, svi: SVI) -> float:
        """The negative bound per row, in chunks."""
        m, d = self.x.shape
        total = 0.0
        with seeded(self.seed), each_once():
            for index in torch.arange(m, device=self.x.device).split(rows_at_once(d)):
                rows = self.x if len(index) == m else self.x[index]
                rows = rows if self.transform is None else self.transform(rows)
                arguments = (rows,) if len(index) == m else (rows, index, m)
                total += float(svi.evaluate_loss(*arguments)) * len(index) / m
        return total / m


class EarlyStopping:
    """Ends training when the held-out bound has not improved for some evaluations of the preceding :class:`Validation`.

    Args:
        patience: the number of evaluations without a better bound.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def see(self, fit: Running) -> str | None:
        """Count the evaluations since the best one."""
        looks = sum(1 for at, _ in fit.curve if fit.best_step is not None and at > fit.best_step)
        return f"the held-out bound did not improve in {looks} evaluations" if looks >= self.patience else None


class Settled:
    """Ends training when the bound has settled, by the rule of :mod:`zoo.infer.convergence`.

    It applies to fits with a line search or with the default Adam and its schedule.
    """

    def see(self, fit: Running) -> str | None:
        """Apply the rule to the losses so far."""
        plan, done = fit.plan, False
        if plan.settling is not None:
            done = plan.settling.settled(fit.step, lambda: fit.losses)
        elif isinstance(plan.optim, LBFGS):
            learned, dtype = type(plan.loss).__name__ in LEARNED, str(plan.x.dtype).removeprefix("torch.")
            done = descended(fit.losses, learned=learned, dtype=dtype)
        return "the bound has settled" if done else None


class Progress(AbstractContextManager["Progress"]):
    """A progress bar on standard error with the running ELBO per row.

    Args:
        total: the most steps.
        show: whether to show it.
    """

    def __init__(self, total: int, show: bool = True) -> None:
        columns = (
            rich.progress.TextColumn("[bold]fit"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("step {task.completed}"),
            rich.progress.TextColumn("ELBO/row {task.fields[elbo]}"),
            rich.progress.TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self.show = show
        self.bar = rich.progress.Progress(*columns, console=console, disable=not show, transient=True)
        self.task = self.bar.add_task("fit", total=total, elbo="")
        self._last = 0.0

    def see(self, fit: Running) -> None:
        """Update the bar, at most ten times a second."""
        if self.show and (now := time.perf_counter()) - self._last > 0.1:
            self._last = now
            self.bar.update(self.task, completed=fit.step + 1, elbo=f"{-fit.loss:.4f}")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()
