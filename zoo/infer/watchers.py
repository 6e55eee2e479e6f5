"""What looks at a fit after every step: early stopping, copies of good parameters, checkpoints, a progress bar."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import rich.progress
import torch
from pyro.infer import SVI
from rich.console import Console
from torch import Tensor

from zoo.base.callables import PyroCallable, mode
from zoo.base.random import seeded
from zoo.infer.convergence import LEARNED, descended
from zoo.infer.guard import Diverged
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.run import Fit
from zoo.infer.running import Copy, Running, copied, put_back
from zoo.infer.storage.checkpoint import replace

Callback = Callable[[int, float], bool | None]
Transform = Callable[[Tensor], Tensor]

CHUNK = 2**22  # entries of held-out rows per evaluation


@runtime_checkable
class Watcher(Protocol):
    """Looks at a fit after every step."""

    def see(self, fit: Running) -> str | None:
        """Look at the fit after a step. A text ends training, and says why."""
        ...


class Callbacks:
    """Functions of the step and its loss per row; a true answer ends training.

    Args:
        functions: all of them are called after every step.
    """

    def __init__(self, functions: Iterable[Callback]) -> None:
        self.functions = tuple(functions)

    def see(self, fit: Running) -> str | None:
        """Call every function."""
        answers = [function(fit.step, fit.loss) for function in self.functions]
        return "a callback ended training" if any(answers) else None


class LastGood:
    """Keeps the last parameters whose loss was a number.

    Args:
        every: steps between two copies.
        functions: model and guide, whose parameters are copied at once.
    """

    def __init__(self, every: int, *functions: PyroCallable) -> None:
        self.every = every
        self._next = copied(*functions)  # good if the coming loss is a number
        self._good: Copy = []

    def see(self, fit: Running) -> None:
        """Keep the copy that has just proved good, and take one where it is due."""
        if self._next:
            self._good, self._next = self._next, []
        if (fit.step + 1) % self.every == 0:
            self._next = copied(fit.model, fit.guide)

    def restore(self) -> None:
        """Put the last good parameters back."""
        put_back(self._good)


class Validation:
    """The bound of held-out rows, in evaluation mode, with the same draws at every look.

    Args:
        x: held-out rows (m, d).
        every: steps between two looks; the last step has one as well.
        seed: of the draws.
        transform: maps the rows to what the model sees.
        keep: keep a copy of the parameters of the best look.

    Attributes:
        best: a copy of the parameters of the best look, or nothing.
    """

    def __init__(self, x: Tensor, every: int, *, seed: int, transform: Transform | None = None, keep: bool) -> None:
        self.x, self.every, self.seed, self.transform, self.keep = x, every, seed, transform, keep
        self.best: Copy = []
        self._bound = math.inf

    def see(self, fit: Running) -> None:
        """Take the bound where a look is due."""
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
        """Put the parameters of the best look back."""
        put_back(self.best)

    def _measure(self, svi: SVI) -> float:
        """The negative bound per row, in chunks."""
        m, d = self.x.shape
        total = 0.0
        with seeded(self.seed):
            for index in torch.arange(m, device=self.x.device).split(max(1, CHUNK // d)):
                rows = self.x if len(index) == m else self.x[index]
                rows = rows if self.transform is None else self.transform(rows)
                arguments = (rows,) if len(index) == m else (rows, index, m)
                total += float(svi.evaluate_loss(*arguments)) * len(index) / m
        return total / m


class EarlyStopping:
    """Ends training where the held-out bound has not improved for some looks of a :class:`Validation` before it.

    Args:
        patience: looks without a better bound.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def see(self, fit: Running) -> str | None:
        """Count the looks since the best one."""
        looks = sum(1 for at, _ in fit.curve if fit.best_step is not None and at > fit.best_step)
        return f"the held-out bound did not improve in {looks} looks" if looks >= self.patience else None


class Settled:
    """Ends training where the bound has ceased to rise, by the rule of :mod:`zoo.infer.convergence`.

    It acts on the fits whose optimizer the package knows: a line search, or the default Adam with its schedule.
    """

    def see(self, fit: Running) -> str | None:
        """Apply the rule to the losses so far."""
        plan, done = fit.plan, False
        if plan.settling is not None:
            done = plan.settling.settled(fit.step, fit.loss)
        elif isinstance(plan.optim, LBFGS):
            learned, dtype = type(plan.loss).__name__ in LEARNED, str(plan.x.dtype).removeprefix("torch.")
            done = descended(fit.losses, learned=learned, dtype=dtype)
        return "the bound has settled" if done else None


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """Keeps the fit so far on disk: with the best held-out parameters where there are some, else the last good ones.

    As a context manager it also writes what was reached when an exception ends the fit.

    Args:
        folder: where to; its contents are replaced as a whole.
        fit: the fit on its way.
        good: the last good parameters, which are written after an interruption.
        every: steps between two writes, where there are no held-out rows.
        validation: writes at every better look in place of that; stands before this one among the watchers.
    """

    def __init__(
        self, folder: Path, fit: Running, good: LastGood, every: int, validation: Validation | None = None
    ) -> None:
        self.folder, self.fit, self.good, self.every, self.validation = folder, fit, good, every, validation

    def see(self, fit: Running) -> None:
        """Write where it is due."""
        regular = fit.step > 0 and fit.step % self.every == 0
        if regular if self.validation is None else fit.best_step == fit.step:
            self.write(fit.run())

    def write(self, run: Fit) -> None:
        """Put the run into the folder, with the best parameters where held-out rows choose them."""
        best = self.validation.best if self.validation is not None else []
        now = copied(self.fit.model, self.fit.guide) if best else []
        put_back(best)
        try:
            replace(run, self.folder)
        finally:
            put_back(now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.fit.losses:
            run = self.fit.run()
            if not isinstance(error, Diverged):  # the parameters may be half-way through an update
                self.good.restore()
            self.write(run)


class Progress(AbstractContextManager["Progress"]):
    """A progress bar on standard error with the running ELBO per row.

    Args:
        total: the most steps.
        show: False keeps silent.
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
        """Move the bar, ten times a second at most."""
        if self.show and (now := time.perf_counter()) - self._last > 0.1:
            self._last = now
            self.bar.update(self.task, completed=fit.step + 1, elbo=f"{-fit.loss:.4f}")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()
