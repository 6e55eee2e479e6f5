"""Variational EM by ``pyro.infer.SVI``: the only place that builds one."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import PyroOptim
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from zoo.base.checks import check_rows, check_whole
from zoo.base.random import seeded
from zoo.infer.guard import Diverged, Guard, floored, held_out
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.optim.settling import Settling
from zoo.infer.pairing import check_count, check_pair, check_types, deep, default_loss, move, noiseless
from zoo.infer.run import Fit, Training
from zoo.infer.storage.checkpoint import refuse_taken

Callback = Callable[[int, float], bool | None]
Transform = Callable[[Tensor], Tensor]


def fit(
    model: Any,
    guide: Any,
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
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> Fit:
    """Train model and guide together, in place, by stochastic variational inference.

    A model or guide that nobody has touched since it was built first takes a random start on the data
    (``initialize``, drawn with ``seed``); one that has been fitted, set or loaded goes on from where it is. Parameters
    with ``requires_grad=False`` stay as they are. The fit has a parameter store and a random stream of its own: Pyro's
    global store and the caller's generators are as before afterwards, also when it raises.

    Args:
        model: a Pyro model with the signature ``(x=None, index=None, size=None)``.
        guide: a Pyro guide with the same signature; one of :mod:`guides`, of Pyro's autoguides, or your own.
        x: the data (n, d); NaN is an entry missing at random, for a model with ``missing = True``.
        steps: the most steps. None: until the bound ceases to rise (at most 20,000).
        batch_size: rows per step, drawn without replacement epoch by epoch; None takes all rows at every step.
        loss: any ``pyro.infer.ELBO``. None takes ``Trace_ELBO()``; where the model declares ``quadratic``
            (linear-Gaussian models, mixtures, a VAE with a linear decoder) and the guide ``gaussian``, the
            :class:`~zoo.infer.losses.quadrature.QuadratureELBO` instead, which is the same bound without noise.
        optim: any Pyro optimizer. None takes L-BFGS where the bound has no noise and every step sees all rows (of a
            fresh pair its first 25 steps raise the guide alone: variational EM begins with an E-step), and one fused
            Adam otherwise, whose rate anneals to zero once the bound has settled.
        seed: of the start, the batches and the draws.
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
        progress: show a progress bar on standard error.
        callbacks: called after every step with its number and its loss per row; a true answer ends the fit.

    Returns:
        a :class:`Fit`.

    Warns:
        UnboundedLikelihood: more than a twentieth of a decoder's variances ended at their floor.

    Raises:
        ValueError: data, batch size, model, guide and loss do not go together; the message names the argument.
        FileExistsError: ``checkpoint`` holds something already.
        Diverged: the loss ceased to be a number (a FloatingPointError); names the step and the site, and model and
            guide hold the last good parameters.
    """
    if device is not None:
        move((model, guide), device)
    x = check_rows(x, model, least=2)
    apart = None if validation is None else check_rows(validation, model, name="validation")
    _check_data(model, x, transform, "x")
    if apart is not None:
        _check_data(model, apart, transform, "validation")
    n = len(x)
    check_count(guide, n, apart)
    cap = 20_000 if steps is None else check_whole(steps, "steps")
    if batch_size is not None and check_whole(batch_size, "batch_size") > n:
        raise ValueError(f"batch_size={batch_size} exceeds the {n} rows of x: take at most {n}, or None for all rows")
    batch = n if batch_size is None else batch_size
    check_whole(every, "every")
    if patience is not None and check_whole(patience, "patience") and apart is None:
        raise ValueError("patience looks at held-out rows: pass validation=, or leave it out")
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        refuse_taken(folder)
    check_types(model, guide)
    started = time.perf_counter()
    losses: list[float] = []
    converged = False
    with pyro.get_param_store().scope(), seeded(seed):
        fresh = [module for module in (model, guide) if getattr(module, "fresh", False)]
        for module in fresh:
            module.initialize(x)
        first = (x,) if batch == n else (x[:batch], torch.arange(batch, device=x.device), n)
        probe = first if transform is None else (transform(first[0]), *first[1:])
        check_pair(model, guide, x if transform is None else probe[0], probe, loss, batch < n)
        chosen = guide
        if loss is None:
            loss = default_loss(model, guide)
        if isinstance(loss, TraceEnum_ELBO):
            chosen = config_enumerate(chosen, "parallel")
        settling = None
        if optim is None and batch == n and transform is None and noiseless(model, chosen, loss):
            optim = LBFGS(**_e_step(model, guide, cap)) if model in fresh and guide in fresh else LBFGS()
        elif optim is None:
            settling = Settling(cap, patient=steps is None)
            optim = Fused(torch.optim.Adam, {"lr": 0.01 if deep(model) else 0.03}, schedule=settling)
        loss = optim.watch(loss) if isinstance(optim, LBFGS) else loss
        for module in (model, guide):
            if isinstance(module, nn.Module):
                module.zero_grad()  # what an earlier fit left behind
        svi = SVI(model, chosen, optim, loss)
        guard = Guard(model, guide, every, patience, folder)
        batches = _batches(x, batch, transform)

        share: float | None = None

        def so_far() -> Fit:
            record = Training(
                losses=torch.tensor(losses, dtype=torch.float64),
                converged=converged,
                loss=type(getattr(loss, "inner", loss)).__name__,
                optimizer=type(optim).__name__,
                rows=n,
                batch_size=batch_size,
                seed=seed,
                dtype=str(x.dtype).removeprefix("torch."),
                device=str(x.device),
                seconds=time.perf_counter() - started,
                validation=torch.tensor(guard.curve, dtype=torch.float64) if guard.curve else None,
                best_step=guard.best_step if guard.curve else None,
                transform=None if transform is None else getattr(transform, "__name__", type(transform).__name__),
                at_floor=share,
            )
            return Fit(model, guide, record)

        with _bar(progress, cap) as tick, _written_on_interrupt(guard, so_far):
            for step in range(cap):
                before = guard.copy() if guard.due(step) else None
                arguments = next(batches)
                with (
                    pyro.validation_enabled(step == 0 and pyro.infer.util.is_validation_enabled()),
                    torch.autocast(x.device.type, autocast) if autocast is not None else nullcontext(),
                ):
                    try:
                        value = svi.step(*arguments) / n
                    except torch.linalg.LinAlgError:  # a covariance that is none any more
                        value = math.nan
                if not math.isfinite(value):
                    raise guard.diverged(step, value, model, chosen, arguments, so_far())
                if before is not None:
                    guard.good(before)
                    if apart is None and step > 0:
                        guard.write(so_far())
                losses.append(value)
                tick(step, value)
                tired = False
                if apart is not None and (guard.due(step) or step == cap - 1):
                    tired = guard.look(step, held_out(svi, apart, seed, transform))
                    if guard.best_step == step:
                        guard.write(so_far())
                answers = [callback(step, value) for callback in callbacks]  # every one is called
                if any(answers):
                    break
                if (
                    tired
                    or (isinstance(optim, LBFGS) and _flat(losses, x.dtype, isinstance(loss.inner, QuadratureELBO)))
                    or (settling is not None and settling.settled(step, value))
                ):
                    converged = True
                    break
        if patience is not None:
            guard.restore("best")
        share = floored(model, chosen, probe, seed)
        run = so_far()
        guard.write(run)
        return run


def _check_data(model: Any, x: Tensor, transform: Transform | None, name: str) -> None:
    """Ask the model whether it can serve the rows as the steps will see them.

    Raises:
        ValueError: it cannot, or ``transform`` makes other rows of them.
    """
    check = getattr(model, "check", None)
    if transform is None:
        if check is not None:
            check(x)
        return
    with seeded(0):
        for rows in x.split(10_000):
            seen = transform(rows)
            if not isinstance(seen, Tensor) or seen.shape != rows.shape:
                got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
                raise ValueError(
                    f"transform makes {got} of {name}'s rows {tuple(rows.shape)}: it must keep their shape"
                )
            if check is not None:
                check(seen)


@contextmanager
def _written_on_interrupt(guard: Guard, so_far: Callable[[], Fit]) -> Iterator[None]:
    """Whatever ends a fit before its end, the checkpoint holds what was reached."""
    try:
        yield
    except BaseException as error:
        run = so_far()
        if guard.checkpoint is not None and len(run.losses):
            if not isinstance(error, Diverged):  # the parameters may be half-way through an update
                guard.restore("good")
            guard.write(run)
        raise


def _batches(x: Tensor, batch: int, transform: Transform | None) -> Iterator[tuple[Any, ...]]:
    """The arguments of every step: all rows, or minibatches (rows, their numbers, the full number of rows)."""
    n = len(x)
    seen = transform or (lambda rows: rows)
    if batch == n:
        while True:
            yield (seen(x),)
    while True:
        for index in torch.randperm(n, device=x.device).split(batch):
            yield seen(x[index]), index, n


def _e_step(model: Any, guide: Any, cap: int) -> dict[str, Any]:
    """Options of L-BFGS with which a guide of its own parameters is fitted to the model's start before both move on."""
    held = {id(p) for p in model.parameters()}
    if all(id(p) in held for p in guide.parameters()):
        return {}
    return {"late": model.parameters(), "since": min(25, cap // 4)}


def _flat(losses: list[float], dtype: torch.dtype, learned: bool) -> bool:
    """Whether L-BFGS has ceased to descend: less than the resolution of the bound in the last iterations.

    A learned guide ends in a long flat valley along which the model hardly moves, so its resolution is coarser; and it
    may wait on a saddle, loadings and guide still to turn together, so that it is looked at for longer, and in nats
    whatever the bound itself is.
    """
    window, resolution = (50, 1e-7) if learned else (20, 1e-9)
    if dtype != torch.float64:
        resolution = 1e-6
    size = 1.0 if learned and dtype == torch.float64 else max(1.0, abs(losses[-1]))
    return len(losses) > window and losses[-1 - window] - losses[-1] <= resolution * size


@contextmanager
def _bar(show: bool, total: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with the running ELBO per row; yields what to call after every step."""
    columns = (
        TextColumn("[bold]fit"),
        BarColumn(),
        TextColumn("step {task.completed}"),
        TextColumn("ELBO/row {task.fields[elbo]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as bar:
        task = bar.add_task("fit", total=total, elbo="")
        last = 0.0

        def tick(step: int, loss: float) -> None:
            nonlocal last
            if show and (now := time.perf_counter()) - last > 0.1:
                last = now
                bar.update(task, completed=step + 1, elbo=f"{-loss:.4f}")

        yield tick
