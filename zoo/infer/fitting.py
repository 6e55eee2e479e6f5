"""Variational EM by ``pyro.infer.SVI``: the only module that builds one."""

import math
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.callables import PyroCallable, mode, modules, undecorated, unwrapped
from zoo.base.checks import ArrayLike, missing_entries
from zoo.base.entries import naming
from zoo.base.order import RowOrder
from zoo.base.protocols import AcceptsWeights, Collapsing, Delaying, Estimating, HoldsRows, Placed
from zoo.base.random import seeded
from zoo.base.threads import suited
from zoo.base.weights import by_weights, weighted_rows
from zoo.infer.asked import Start
from zoo.infer.captured import CapturedSVI
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.expectation_maximisation import em
from zoo.infer.guard import diverged, floored
from zoo.infer.keeping import Checkpoint, Signals
from zoo.infer.line_search import LineSearchSVI, ProjectedSVI
from zoo.infer.loading import load
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.optim.natural import LocalFirstSVI, NaturalGradient
from zoo.infer.pairing import check_pair, move
from zoo.infer.planning import Plan, plan
from zoo.infer.remaining import confirmed
from zoo.infer.resuming import kept, matching, put, put_watchers
from zoo.infer.run import Fit, Store
from zoo.infer.running import Running
from zoo.infer.watchers import (
    Callback,
    Callbacks,
    Collapse,
    EarlyStopping,
    Hold,
    LastGood,
    Progress,
    Settled,
    Transform,
    Validation,
    Watcher,
)
from zoo.infer.weighting import weighted

READ = 50  # steps between two readings of the losses on a GPU


def fit(
    model: PyroCallable,
    guide: PyroCallable,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    loss: ELBO | None = None,
    optim: PyroOptim | None = None,
    start: Start = "data",
    seed: int = 0,
    device: str | torch.device | None = None,
    validation: ArrayLike | None = None,
    patience: int | None = None,
    every: int = 100,
    transform: Transform | None = None,
    autocast: torch.dtype | None = None,
    capture: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    store: Store | None = None,
    progress: bool = True,
    callbacks: Iterable[Callback | Watcher] = (),
) -> Fit:
    """Train model and guide together, in place, by stochastic variational inference.

    A model or guide whose parameters are unchanged since it was built is first initialised on the data (``estimate`` or
    ``initialize``, drawn with ``seed``); one that has been fitted, modified or loaded continues from its current
    parameters. Parameters with ``requires_grad=False`` are not changed. The fit uses its own parameter store and random
    stream: Pyro's global store and the caller's generators are restored afterwards, also after an error. Modules are
    trained in training mode, evaluated on held-out rows in evaluation mode, and returned to their previous modes. The
    steps run on as many threads as pay for their work, never on more than the caller has set; see
    :mod:`zoo.base.threads`.
    :func:`zoo.plan` with the same arguments shows what the defaults are for a pair, and why.

    Args:
        model: a Pyro model with the signature ``(x=None, index=None, size=None)``, a module or a function, possibly
            wrapped in Pyro handlers (``config_enumerate``, ``poutine.scale``).
        guide: a Pyro guide with the same signature: one of :mod:`guides`, of Pyro's autoguides, or your own.
        x: the data (n, d): a tensor, an array, a data frame or another table, see
            :func:`zoo.base.tables.named_rows`; NaN marks an entry missing at random, for a model with
            ``missing = True``.
        weights: how often every row counts (n,), at least 0: the terms of a row in the bound are multiplied by its
            weight, under the losses of ``zoo.infer.weighting.WEIGHTED``. None for once. Held-out rows count once.
        steps: the most steps. None: until the bound has settled, at most 20,000; with a Pyro optimizer of your own,
            whose schedule is unknown to the fit, all of them.
        batch_size: rows per step, drawn without replacement epoch by epoch, in an order that ``seed`` and the
            number of the epoch decide (:class:`zoo.base.order.RowOrder`). None uses all rows at every step, except
            for a deep model with 1,000 rows or more and a guide for new rows: there 128. ``len(x)`` uses all.
        loss: any ``pyro.infer.ELBO``. None uses ``Trace_ELBO``, except where the model declares ``quadratic``
            (linear-Gaussian models, mixtures, a VAE with a linear decoder), has no shared sites, and the guide declares
            ``gaussian``: there :class:`~zoo.infer.losses.quadrature.QuadratureELBO` gives the same bound without noise.
            Where the best q of the guide has a closed form given the model's parameters (and ``optim`` is None and
            every step uses all rows), :class:`~zoo.infer.losses.projected.ProjectedELBO` is that bound at its highest:
            the search then moves the model's parameters alone, and the guide follows.
        optim: any Pyro optimizer. None uses L-BFGS where the bound has no noise and every step uses all rows, and
            otherwise a single fused Adam, whose
            learning rate is halved, once the bound has settled, until that no longer raises it. With ``steps`` given,
            the rate falls to zero along half a cosine instead, which flattens any curve, so that such a fit is not
            reported as converged.
        start: where a fresh model starts: ``"data"``, its estimate from the data (by the eigenvectors of their moments
            for PPCA, factor analysis and a linear VAE; at random if it has none), or ``"random"``. A mixture starts as
            its ``start`` says, followed by ten steps of EM, in either case.
        seed: of the start, the batches and the draws. Numbers that a model of your own draws in its constructor, and
            not again in ``initialize``, are not covered: call ``torch.manual_seed(seed)`` on the line before
            ``model = Model(...)``, or build the pair inside :func:`zoo.best_of`, which seeds the constructor too.
        device: moves model, guide and data to this device first; None uses that of the model.
        validation: held-out rows (m, d) whose bound is evaluated every ``every`` steps, with the same draws each time.
            None holds out a tenth of 200 rows or more, at most 1,000, for a deep model with a guide for new rows and
            default loss, optimizer and patience and no weights: networks that are trained for long fit the noise of
            their own rows.
        patience: stop after this many evaluations of ``validation`` without a better bound. Model and guide then have
            the parameters of the best evaluation, also if the steps end first. None does not stop, except for rows held
            out by default: there 20. 0 holds out nothing by default, and keeps the last parameters.
        every: steps between two evaluations of the held-out rows, and between two checkpoints.
        transform: applied to the rows of every batch and to the held-out rows, such as ``torch.bernoulli`` for dynamic
            binarisation.
        autocast: the dtype of matrix products in mixed precision (``torch.bfloat16``).
        capture: whether the operations of a step are recorded once as a graph, which later steps run without Pyro's
            machinery (:class:`zoo.infer.CapturedSVI`), on the same draws. None: where the steps suffice to pay for it.
            Model and guide are then called on the first step only, and again where they or the shape of the rows
            change. On a GPU the losses of a graph are read every 50 steps, and when a callback or a watcher asks.
        checkpoint: a new or empty folder that keeps the fit so far, in case it is interrupted: a run, which
            :func:`zoo.load` restores, with the best parameters if there are held-out rows, else the last good ones; and
            the state from which ``resume`` goes on. It is written every ``every`` steps, but no more often than takes a
            twentieth of the time, and always as a whole. SIGINT (Ctrl-C) and SIGTERM then end the fit after the step in
            progress, saved, unless the caller handles these signals.
        resume: go on from ``checkpoint``, to the end and to the bit as if the fit had not been interrupted, on the same
            machine with the same number of threads: parameters, optimizer, schedules, losses, random streams, place
            among the minibatches, early stopping. All arguments must be the same, and model and guide built in the same
            way; other ones are refused. A fit that had ended is returned as it was; from an empty or new folder it
            begins anew. Callbacks of your own go on as they are, unless they have ``get_state`` and ``set_state``.
        store: the parameter store to start from, such as ``run.store`` of an earlier fit, from which functions that
            keep their parameters in ``pyro.param`` continue. It is trained in place, as modules are.
        progress: show a progress bar on standard error.
        callbacks: functions called after every step with its number and its loss per row; a true result ends the fit.
            An object with a method ``see`` (:class:`zoo.infer.Watcher`) receives the fit itself.

    Returns:
        a :class:`Fit`; in its ``training``, ``converged`` is whether it has converged and ``stopped`` why it ended. A
        noisy fit of a conjugate model has converged only if EM gains no more from there.

    Warns:
        UnboundedLikelihood: more than a twentieth of a decoder's variances ended at their floor, or a component of a
            mixture collapsed.

    Raises:
        ValueError: data, batch size, model, guide and loss are incompatible; the message names the argument.
        FileExistsError: ``checkpoint`` holds files already, and ``resume`` is False.
        RuntimeError: ``resume`` is True, and another process is running the fit.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM ended a fit with a checkpoint; it is saved.
        Diverged: the loss became NaN or infinite (a FloatingPointError); names the step and the site. Model and guide
            have the last good parameters.
    """
    started = time.perf_counter()
    if device is not None:
        move((model, guide), device)
    decided = plan(
        model,
        guide,
        x,
        weights=weights,
        steps=steps,
        batch_size=batch_size,
        loss=loss,
        optim=optim,
        start=start,
        seed=seed,
        device=device,
        validation=validation,
        patience=patience,
        every=every,
        transform=transform,
        capture=capture,
        checkpoint=checkpoint,
        resume=resume,
    )
    match = matching(decided, model, guide, autocast)
    earlier = kept(decided, match) if resume else None
    if earlier is not None and earlier.finished and checkpoint is not None:
        return load(checkpoint, model=model, guide=guide)
    held = None if store is None else {key: dict(own) for key, own in store.items()}
    scope, threads = pyro.get_param_store().scope(held), suited(decided.work, decided.x.device)
    with scope, seeded(seed), threads, naming(decided.columns):
        first = _start(decided, model, guide)
        running = Running(decided, model, guide, _svi(decided, model, guide), started=started)
        begun = None if earlier is None else earlier.state
        return _fitted(running, begun, match, first, callbacks, progress, autocast)


def _fitted(
    running: Running,
    begun: dict[str, Any] | None,
    match: dict[str, Any],
    first: tuple[Any, ...],
    callbacks: Iterable[Callback | Watcher],
    progress: bool,
    autocast: torch.dtype | None,
) -> Fit:
    """The fit from its first step on, or from the state of one that had begun."""
    if begun is not None:
        put(begun, running)
    folder = running.plan.checkpoint
    with Signals(folder) as signals, ExitStack() as stack, mode(True, running.model, running.guide):
        watchers = _watchers(running, callbacks, progress, stack)
        if begun is not None:
            put_watchers(begun, running, watchers)
        keeper = stack.enter_context(Checkpoint(running, watchers, match, signals))
        _train(running, keeper, autocast)
    return _end(running, keeper, first)


def _start(decided: Plan, model: PyroCallable, guide: PyroCallable) -> tuple[Any, ...]:
    """Initialise fresh parts on the data, and run both once. Returns the arguments of the first step."""
    parts = {"model": unwrapped(model), "guide": unwrapped(guide)}
    if "model" in decided.start:
        _place_model(decided, parts["model"])
    counted, own = weighted_rows(decided.x, decided.weights)
    if decided.em_steps and (own is None or _accepts(parts["model"])):
        # A component that loses its rows leaves the model unchanged; one that collapses is reported by the fit itself.
        with suppress(FloatingPointError, torch.linalg.LinAlgError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboundedLikelihood)
            em(parts["model"], counted, weights=own, steps=decided.em_steps, accelerate=False)
    if "guide" in decided.start:
        guided = parts["guide"]
        assert isinstance(guided, Placed)
        if isinstance(guided, HoldsRows):
            guided.initialize(decided.x)
        else:
            guided.initialize(counted, **(by_weights(guided, own) if _accepts(guided) else {}))
    x, n = decided.x, len(decided.x)
    index = torch.arange(n, device=x.device)[: decided.batch_size]
    arguments: tuple[Any, ...] = (x,) if decided.full else (x[index], index, n)
    if decided.transform is not None:
        arguments = (decided.transform(arguments[0]), *arguments[1:])
    guide_trace = check_pair(model, guide, arguments, decided.layout, decided.loss)
    objective = decided.loss.pair if isinstance(decided.loss, ProjectedELBO) else decided.loss
    if isinstance(objective, QuadratureELBO):
        objective.prepare(guide_trace)
    for module in modules(model, guide):
        module.zero_grad()  # left by an earlier fit
    return arguments


def _place_model(decided: Plan, model: PyroCallable) -> None:
    """Set a fresh model to its estimate from the data, or to a random start on them."""
    counted, own = weighted_rows(decided.x, decided.weights)
    weighing = by_weights(model, own) if _accepts(model) else {}
    if decided.estimate:
        assert isinstance(model, Estimating)
        model.estimate(counted, **weighing)
    else:
        assert isinstance(model, Placed)
        model.initialize(counted, **weighing)


def _accepts(part: object) -> bool:
    """Whether the starts of a part accept weights of the rows; those of other parts see every row that counts once."""
    return isinstance(part, AcceptsWeights) and part.weighted


def _svi(decided: Plan, model: PyroCallable, guide: PyroCallable) -> SVI:
    """The SVI that takes the steps."""
    own = None if decided.weights is None else decided.weights.to(decided.x)
    late = [p for module in modules(model) for p in module.parameters()] if decided.e_step else []
    if own is not None and not isinstance(decided.loss, ClosedFormELBO):
        model, guide = weighted(model, guide, own, decided.layout.plate)
    if isinstance(decided.loss, TraceEnum_ELBO):
        guide = config_enumerate(guide, "parallel")
    if isinstance(decided.optim, NaturalGradient) and not decided.full:
        decided.optim.pace(decided.steps)
        return LocalFirstSVI(model, guide, decided.optim, decided.loss)
    if not isinstance(decided.optim, LBFGS):
        if decided.captured:
            return CapturedSVI(model, guide, decided.optim, decided.loss)
        return SVI(model, guide, decided.optim, decided.loss)
    if isinstance(decided.loss, ProjectedELBO):
        return ProjectedSVI(model, guide, decided.optim, decided.loss)
    return LineSearchSVI(model, guide, decided.optim, decided.loss, late=late, since=decided.e_step)


def _watchers(
    running: Running, callbacks: Iterable[Callback | Watcher], progress: bool, stack: ExitStack
) -> list[Watcher]:
    """The watchers of the fit, in the order in which they are called; context managers among them enter ``stack``."""
    decided = running.plan
    own = list(callbacks)
    functions = [callback for callback in own if not isinstance(callback, Watcher)]
    watchers: list[Watcher] = [LastGood(decided.every, running.model, running.guide)]
    inner = unwrapped(running.model)
    if decided.held_steps and isinstance(inner, Delaying):
        hold = Hold(inner, decided.held_steps)
        watchers.append(stack.enter_context(hold) if len(running.losses) < decided.held_steps else hold)
    if isinstance(collapsing := undecorated(running.model), Collapsing):
        watchers.append(Collapse(collapsing))
    if decided.validation is not None:
        keep = decided.patience is not None or decided.checkpoint is not None
        held_out, seed, transform = decided.validation, decided.seed, decided.transform
        watchers.append(Validation(held_out, decided.every, seed=seed, transform=transform, keep=keep))
    watchers.append(stack.enter_context(Progress(decided.steps, progress)))
    watchers += [callback for callback in own if isinstance(callback, Watcher)]
    watchers.append(Callbacks(functions))
    if decided.patience is not None:
        watchers.append(EarlyStopping(decided.patience))
    return [*watchers, Settled()]


def _train(running: Running, keeper: Checkpoint, autocast: torch.dtype | None) -> None:
    """Take all steps, or as many as the watchers allow.

    Raises:
        Diverged: a loss is not finite.
    """
    decided, watchers, good, begun = running.plan, keeper.watchers, keeper.good, len(running.losses)
    batches = _batches(decided, begun)
    checked = begun  # losses
    for step in range(begun, decided.steps):
        arguments, missing = next(batches)
        with missing_entries(missing):  # no step looks for them
            running.add(_step(running.svi, arguments, autocast, first=step == 0))
        if not running.unread or (step + 1) % READ == 0:
            checked = _check_finite(running, checked, arguments, good)
        reasons = [reason for watcher in watchers if (reason := watcher.see(running))]  # all are called
        if reasons or step == decided.steps - 1:
            _check_finite(running, checked, arguments, good)
        if reasons:
            running.stopped = reasons[0]
            return
        keeper.see(running)
    running.stopped = f"all {decided.steps:,} steps were taken"


def _check_finite(running: Running, checked: int, arguments: tuple[Any, ...], good: LastGood) -> int:
    """Check the losses after the first ``checked``; returns the number of all.

    Raises:
        Diverged: one is not finite; on a GPU up to 50 steps after it.
    """
    bad = next((step for step in range(checked, len(running.losses)) if not math.isfinite(running.losses[step])), None)
    if bad is None:
        return len(running.losses)
    loss = running.losses[bad]
    del running.losses[bad:]
    chosen = running.plan.validation is not None
    raise diverged(loss, arguments, running, good.restore, running.plan.checkpoint, chosen)


def _step(svi: SVI, arguments: tuple[Any, ...], autocast: torch.dtype | None, *, first: bool) -> Tensor | float:
    """The loss of a step; NaN where a covariance has ceased to be positive definite."""
    with (
        pyro.validation_enabled(first and pyro.infer.util.is_validation_enabled()),
        torch.autocast(arguments[0].device.type, autocast) if autocast is not None else nullcontext(),
    ):
        try:
            return svi.advance(*arguments) if isinstance(svi, CapturedSVI) else float(svi.step(*arguments))
        except torch.linalg.LinAlgError:
            return math.nan


def _batches(decided: Plan, begun: int) -> Iterator[tuple[tuple[Any, ...], bool | None]]:
    """The arguments of every step from ``begun`` on, and whether its rows have missing entries, found once an epoch.

    The arguments are all rows, or minibatches (rows, their numbers, the full number of rows).
    """
    x, n = decided.x, len(decided.x)
    while decided.full:
        yield (_seen(decided, x),), decided.missing
    size = decided.batch_size
    assert size is not None
    gappy = x.isnan().any(1)  # (n,)
    for epoch in RowOrder(n, size, decided.seed).epochs(begun):
        batches = torch.cat(epoch).to(x.device).split(size)
        missing = [decided.missing] * len(batches)
        if decided.missing:
            missing = torch.stack([gappy[index].any() for index in batches]).tolist()
        for index, gaps in zip(batches, missing, strict=True):
            yield (_seen(decided, x.index_select(0, index)), index, n), gaps


def _seen(decided: Plan, rows: Tensor) -> Tensor:
    return rows if decided.transform is None else decided.transform(rows)


def _end(running: Running, keeper: Checkpoint, first: tuple[Any, ...]) -> Fit:
    """Restore the parameters of the best held-out bound, check the floor, and write the last checkpoint."""
    decided = running.plan
    for watcher in keeper.watchers:
        if isinstance(watcher, Validation) and decided.patience is not None:
            watcher.restore()
    for watcher in keeper.watchers:
        if isinstance(watcher, Collapse):
            watcher.look(running)
    running.at_floor = floored(running.model, running.svi.guide, first, decided.seed)
    run = confirmed(running.run(), decided)
    keeper.finish(run)
    return run
