"""Variational EM by ``pyro.infer.SVI``: the only place that builds one."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, mode, modules, unwrapped
from zoo.base.random import seeded
from zoo.infer.expectation_maximisation import em
from zoo.infer.guard import diverged, floored
from zoo.infer.line_search import LineSearchSVI
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.pairing import check_pair, move
from zoo.infer.planning import Plan, plan
from zoo.infer.run import Fit, Store
from zoo.infer.running import Running
from zoo.infer.watchers import (
    Callback,
    Callbacks,
    Checkpoint,
    EarlyStopping,
    LastGood,
    Progress,
    Settled,
    Transform,
    Validation,
    Watcher,
)


def fit(
    model: PyroCallable,
    guide: PyroCallable,
    x: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    loss: ELBO | None = None,
    optim: PyroOptim | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    validation: Any = None,
    patience: int | None = None,
    every: int = 100,
    transform: Transform | None = None,
    autocast: torch.dtype | None = None,
    checkpoint: str | Path | None = None,
    store: Store | None = None,
    progress: bool = True,
    callbacks: Iterable[Callback | Watcher] = (),
) -> Fit:
    """Train model and guide together, in place, by stochastic variational inference.

    A model or guide that nobody has touched since it was built first takes a random start on the data
    (``initialize``, drawn with ``seed``); one that has been fitted, set or loaded goes on from where it is. Parameters
    with ``requires_grad=False`` stay as they are. The fit has a parameter store and a random stream of its own: Pyro's
    global store and the caller's generators are as before afterwards, also when it raises. Modules are trained in
    training mode, look at held-out rows in evaluation mode, and are in the modes they came in afterwards.
    :func:`zoo.plan` with the same arguments shows what the defaults are for a pair, and why.

    Args:
        model: a Pyro model with the signature ``(x=None, index=None, size=None)``, a module or a function, also one
            behind Pyro's handlers (``config_enumerate``, ``poutine.scale``).
        guide: a Pyro guide with the same signature; one of :mod:`guides`, of Pyro's autoguides, or your own.
        x: the data (n, d); NaN is an entry missing at random, for a model with ``missing = True``.
        steps: the most steps. None: until the bound ceases to rise, at most 20,000; with a Pyro optimizer of your own,
            whose schedule the fit does not know, all of them.
        batch_size: rows per step, drawn without replacement epoch by epoch; None takes all rows at every step.
        loss: any ``pyro.infer.ELBO``. None takes ``Trace_ELBO()``; where the model declares ``quadratic``
            (linear-Gaussian models, mixtures, a VAE with a linear decoder) and the guide ``gaussian``, the
            :class:`~zoo.infer.losses.quadrature.QuadratureELBO` instead, which is the same bound without noise.
        optim: any Pyro optimizer. None takes L-BFGS where the bound has no noise and every step sees all rows (of a
            fresh pair its first 25 steps raise the guide alone: variational EM begins with an E-step; a fresh model
            whose guide is its own posterior takes ten steps of EM before the first), and one fused
            Adam otherwise, whose rate is halved, once the bound has settled, until that no longer raises it. With
            ``steps`` given, the rate falls to zero along half a cosine instead, which flattens any curve: the fit then
            does not claim to have converged.
        seed: of the start, the batches and the draws. What a model of your own draws in its constructor, and does not
            draw anew in ``initialize``, is not covered: call ``torch.manual_seed(seed)`` on the line before
            ``model = Model(...)``, or build the pair inside :func:`zoo.best_of`, which seeds that too.
        device: moves model, guide and data there first; None leaves them where the model is.
        validation: held-out rows (m, d) whose bound is taken every ``every`` steps, with the same draws each time.
        patience: stop after this many looks at ``validation`` without a better bound; model and guide then hold the
            parameters of the best look, as they do when the steps end before.
        every: steps between two looks at the held-out rows, and between two checkpoints.
        transform: maps the rows of every batch to what the step sees, as ``torch.bernoulli`` does for dynamic
            binarisation; the held-out rows take it too.
        autocast: mixed precision: the type of the matrix products (``torch.bfloat16``), the rest stays as it is.
        checkpoint: a folder, new or empty, that holds the fit so far whenever it is interrupted: with the best
            parameters where there are held-out rows, else the last good ones. :func:`zoo.load` brings it back.
        store: the parameter store to start from, such as ``run.store`` of an earlier fit: with it, functions that keep
            their parameters in ``pyro.param`` go on from there. They are trained in place, as modules are.
        progress: show a progress bar on standard error.
        callbacks: called after every step with its number and its loss per row; a true answer ends the fit. An object
            with a method ``see`` (:class:`zoo.infer.Watcher`) sees the fit itself.

    Returns:
        a :class:`Fit`. Its ``training`` says whether it has converged, and in ``stopped`` why it ended.

    Warns:
        UnboundedLikelihood: more than a twentieth of a decoder's variances ended at their floor.

    Raises:
        ValueError: data, batch size, model, guide and loss do not go together; the message names the argument.
        FileExistsError: ``checkpoint`` holds something already.
        Diverged: the loss ceased to be a number (a FloatingPointError); names the step and the site, and model and
            guide hold the last good parameters.
    """
    started = time.perf_counter()
    if device is not None:
        move((model, guide), device)
    decided = plan(
        model,
        guide,
        x,
        steps=steps,
        batch_size=batch_size,
        loss=loss,
        optim=optim,
        seed=seed,
        device=device,
        validation=validation,
        patience=patience,
        every=every,
        transform=transform,
        checkpoint=checkpoint,
    )
    held = None if store is None else {key: dict(own) for key, own in store.items()}
    with pyro.get_param_store().scope(held), seeded(seed):
        first = _start(decided, model, guide)
        running = Running(decided, model, guide, _svi(decided, model, guide), started=started)
        good = LastGood(every, model, guide)
        with ExitStack() as stack, mode(True, model, guide):
            watchers = _watchers(running, good, callbacks, progress, stack)
            _train(running, watchers, good, autocast)
        return _end(running, watchers, first)


def _start(decided: Plan, model: PyroCallable, guide: PyroCallable) -> tuple[Any, ...]:
    """Place fresh parts on the data, and run both once. Returns the arguments of the first step."""
    parts: dict[str, Any] = {"model": unwrapped(model), "guide": unwrapped(guide)}
    for name in decided.start:
        parts[name].initialize(decided.x)
    if decided.em_steps:
        with suppress(
            FloatingPointError, torch.linalg.LinAlgError
        ):  # a component that collapses: the model is as it was
            em(parts["model"], decided.x, steps=decided.em_steps)
    x, n = decided.x, len(decided.x)
    index = torch.arange(n, device=x.device)[: decided.batch_size]
    arguments: tuple[Any, ...] = (x,) if decided.full else (x[index], index, n)
    if decided.transform is not None:
        arguments = (decided.transform(arguments[0]), *arguments[1:])
    check_pair(model, guide, arguments, decided.layout, decided.loss)
    for module in modules(model, guide):
        module.zero_grad()  # what an earlier fit left behind
    return arguments


def _svi(decided: Plan, model: PyroCallable, guide: PyroCallable) -> SVI:
    """What takes the steps."""
    if isinstance(decided.loss, TraceEnum_ELBO):
        guide = config_enumerate(guide, "parallel")
    if not isinstance(decided.optim, LBFGS):
        return SVI(model, guide, decided.optim, decided.loss)
    late = [p for module in modules(model) for p in module.parameters()] if decided.e_step else []
    return LineSearchSVI(model, guide, decided.optim, decided.loss, late=late, since=decided.e_step)


def _watchers(
    running: Running, good: LastGood, callbacks: Iterable[Callback | Watcher], progress: bool, stack: ExitStack
) -> list[Watcher]:
    """What looks at the fit after every step, in this order; those with an end of their own join ``stack``."""
    decided = running.plan
    own = list(callbacks)
    functions = [callback for callback in own if not isinstance(callback, Watcher)]
    watchers: list[Watcher] = [good]
    validation = None
    if decided.validation is not None:
        validation = Validation(
            decided.validation,
            decided.every,
            seed=decided.seed,
            transform=decided.transform,
            keep=decided.patience is not None or decided.checkpoint is not None,
        )
        watchers.append(validation)
    if decided.checkpoint is not None:
        watchers.append(stack.enter_context(Checkpoint(decided.checkpoint, running, good, decided.every, validation)))
    watchers.append(stack.enter_context(Progress(decided.steps, progress)))
    watchers += [callback for callback in own if isinstance(callback, Watcher)]
    watchers.append(Callbacks(functions))
    if decided.patience is not None:
        watchers.append(EarlyStopping(decided.patience))
    return [*watchers, Settled()]


def _train(running: Running, watchers: list[Watcher], good: LastGood, autocast: torch.dtype | None) -> None:
    """Take steps until a watcher ends it, or there are no more to take.

    Raises:
        Diverged: a loss is no finite number.
    """
    decided = running.plan
    batches = _batches(decided)
    for step in range(decided.steps):
        arguments = next(batches)
        loss = _step(running.svi, arguments, autocast, first=step == 0) / len(decided.x)
        if not math.isfinite(loss):
            chosen = decided.validation is not None
            raise diverged(loss, arguments, running, good.restore, decided.checkpoint, chosen)
        running.losses.append(loss)
        reasons = [reason for watcher in watchers if (reason := watcher.see(running))]  # every one looks
        if reasons:
            running.stopped = reasons[0]
            return
    running.stopped = f"all {decided.steps:,} steps were taken"


def _step(svi: SVI, arguments: tuple[Any, ...], autocast: torch.dtype | None, *, first: bool) -> float:
    """The loss of a step; NaN where a covariance is none any more."""
    with (
        pyro.validation_enabled(first and pyro.infer.util.is_validation_enabled()),
        torch.autocast(arguments[0].device.type, autocast) if autocast is not None else nullcontext(),
    ):
        try:
            return float(svi.step(*arguments))
        except torch.linalg.LinAlgError:
            return math.nan


def _batches(decided: Plan) -> Iterator[tuple[Any, ...]]:
    """The arguments of every step: all rows, or minibatches (rows, their numbers, the full number of rows)."""
    x, n = decided.x, len(decided.x)
    while True:
        if decided.full:
            yield (_seen(decided, x),)
            continue
        for index in torch.randperm(n, device=x.device).split(decided.batch_size):
            yield _seen(decided, x[index]), index, n


def _seen(decided: Plan, rows: Tensor) -> Tensor:
    return rows if decided.transform is None else decided.transform(rows)


def _end(running: Running, watchers: list[Watcher], first: tuple[Any, ...]) -> Fit:
    """Choose the parameters that held-out rows ask for, look at the floor, and write the last checkpoint."""
    decided = running.plan
    for watcher in watchers:
        if isinstance(watcher, Validation) and decided.patience is not None:
            watcher.restore()
    running.at_floor = floored(running.model, running.svi.guide, first, decided.seed)
    run = running.run()
    for watcher in watchers:
        if isinstance(watcher, Checkpoint):
            watcher.write(run)
    return run
