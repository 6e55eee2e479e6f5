"""Variational EM by ``pyro.infer.SVI``: the only place that builds one."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from pyro.optim import PyroOptim
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from zoo.base import Conjugate, check_rows, check_whole, latents, seeded
from zoo.optim import LBFGS, Fused, Settling
from zoo.quadrature import QuadratureELBO

Callback = Callable[[int, float], bool | None]


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained model and guide. Its methods only read.

    Attributes:
        model: the model, trained in place.
        guide: the guide, trained in place.
        losses: negative ELBO per row, in nats, at every step (steps,).
        validation: steps and negative ELBO per row of held-out rows (m, 2), or None.
        converged: whether the fit stopped because the bound had ceased to rise, and not for want of steps.
        settings: how it was made: loss, optimizer, steps, batch size, seed, dtype, device, rows, seconds.
        store: the fit's own Pyro parameter store.
    """

    model: Any
    guide: Any
    losses: Tensor
    converged: bool
    settings: dict[str, Any]
    validation: Tensor | None = None
    store: Any = field(default_factory=lambda: {"params": {}, "constraints": {}}, repr=False)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Pyro's parameter store as it was at the end of the fit; the global one is as before afterwards."""
        with pyro.get_param_store().scope(dict(self.store)):
            yield

    def posterior(self, x: Any, draws: int = 1000, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of every latent site from the guide given the rows ``x``.

        Args:
            x: rows (n, d); a guide with parameters for every row takes those it was fitted to.
            draws: the number of draws.
            seed: of the draws; the caller's random stream is left alone.

        Returns:
            one tensor (draws, n, ...) per local site, (draws, ...) per site that all rows share.

        Raises:
            ValueError: ``draws`` < 1, or rows that are not fit for model or guide.
        """
        check_whole(draws, "draws")
        x = check_rows(x, self.model)
        with self.scope(), seeded(seed), torch.no_grad():
            with pyro.plate("draws", draws, dim=-2):
                trace = poutine.trace(self.guide).get_trace(x)
            found = latents(self.model, x)
        sampled = {}
        for latent in found:
            if latent.name in trace.nodes:
                value = trace.nodes[latent.name]["value"]
                event = len(latent.shape)
                width = value.shape[value.ndim - event - 1 : value.ndim - event] if latent.local else ()
                sampled[latent.name] = value.expand(draws, *(width or (1,)), *latent.shape)
                if not latent.local:
                    sampled[latent.name] = sampled[latent.name].squeeze(1)
        return sampled

    def save(self, path: str | Path) -> Path:
        """Write the run to a folder that holds none yet; :func:`zoo.load` brings it back. See :mod:`zoo.checkpoint`."""
        from zoo.checkpoint import save

        return save(self, path)


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
        loss: any ``pyro.infer.ELBO``. None takes ``Trace_ELBO()``; for a conjugate model whose bound a finite rule
            gives exactly, the :class:`~zoo.quadrature.QuadratureELBO` instead, which is the same bound without noise.
        optim: any Pyro optimizer. None takes L-BFGS where the bound has no noise and every step sees all rows, and
            one fused Adam otherwise, whose rate anneals to zero once the bound has settled.
        seed: of the start, the batches and the draws.
        device: moves model, guide and data there first; None leaves them where the model is.
        validation: held-out rows (m, d) whose bound is taken every 100 steps.
        progress: show a progress bar on standard error.
        callbacks: called after every step with its number and its loss per row; a true answer ends the fit.

    Returns:
        a :class:`Fit`.

    Raises:
        ValueError: data, batch size, model, guide and loss do not go together; the message names the argument.
        FloatingPointError: the loss ceased to be a number; the message names the step.
    """
    if device is not None:
        _move((model, guide), device)
    x = check_rows(x, model, least=2)
    held_out = None if validation is None else check_rows(validation, model, name="validation")
    if hasattr(model, "check"):
        model.check(x)
    n = len(x)
    held = getattr(guide, "count", None)
    if isinstance(held, int) and held != n:
        raise ValueError(
            f"{type(guide).__name__} holds {held} rows, got {n}: fit a new one for this data, or use Amortized or Exact"
        )
    cap = 20_000 if steps is None else check_whole(steps, "steps")
    if batch_size is not None and check_whole(batch_size, "batch_size") > n:
        raise ValueError(f"batch_size={batch_size} exceeds the {n} rows of x: take at most {n}, or None for all rows")
    batch = n if batch_size is None else batch_size
    _check_types(model, guide)
    started = time.perf_counter()
    losses: list[float] = []
    checked: list[tuple[int, float]] = []
    converged = False
    with pyro.get_param_store().scope() as store, seeded(seed):
        for module in (model, guide):
            if getattr(module, "fresh", False):
                module.initialize(x)
        probe = (x,) if batch == n else (x[:batch], torch.arange(batch, device=x.device), n)
        _check_pair(model, guide, x, probe, loss, batch < n)
        chosen = guide
        if loss is None:
            loss = _default_loss(model, guide, *probe)
        if isinstance(loss, TraceEnum_ELBO):
            chosen = config_enumerate(chosen, "parallel")
        settling = None
        if optim is None and batch == n and _noiseless(model, chosen, loss, *probe):
            optim = LBFGS()
        elif optim is None:
            settling = Settling(cap, patient=steps is None)
            optim = Fused(torch.optim.Adam, {"lr": 0.01 if _deep(model) else 0.03}, schedule=settling, clip_norm=None)
        loss = optim.watch(loss) if isinstance(optim, LBFGS) else loss
        for module in (model, guide):
            if isinstance(module, nn.Module):
                module.zero_grad()  # what an earlier fit left behind
        svi = SVI(model, chosen, optim, loss)
        batches = _batches(x, batch)
        with _bar(progress, cap) as tick:
            for step in range(cap):
                with pyro.validation_enabled(step == 0 and pyro.infer.util.is_validation_enabled()):
                    value = svi.step(*next(batches)) / n
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss is {value} at step {step}: lower the learning rate, look for outliers in x, or give "
                        "the model a floor on its variances"
                    )
                losses.append(value)
                tick(step, value)
                if held_out is not None and (step % 100 == 0 or step == cap - 1):
                    with seeded(seed):
                        checked.append((step, svi.evaluate_loss(held_out) / len(held_out)))
                answers = [callback(step, value) for callback in callbacks]  # every one is called
                if any(answers):
                    break
                if isinstance(optim, LBFGS) and _flat(losses, x.dtype, isinstance(loss.inner, QuadratureELBO)):
                    converged = True
                    break
                if settling is not None and settling.settled(step, value):
                    converged = True
                    break
    settings = {
        "loss": type(loss.inner if hasattr(loss, "inner") else loss).__name__,
        "optimizer": type(optim).__name__,
        "steps": len(losses),
        "batch_size": batch_size,
        "seed": seed,
        "dtype": str(x.dtype).removeprefix("torch."),
        "device": str(x.device),
        "rows": n,
        "seconds": time.perf_counter() - started,
    }
    return Fit(
        model,
        guide,
        torch.tensor(losses, dtype=torch.float64),
        converged,
        settings,
        torch.tensor(checked, dtype=torch.float64) if checked else None,
        dict(store),
    )


def _batches(x: Tensor, batch: int) -> Iterator[tuple[Any, ...]]:
    """The arguments of every step: all rows, or minibatches (rows, their numbers, the full number of rows)."""
    n = len(x)
    if batch == n:
        while True:
            yield (x,)
    while True:
        for index in torch.randperm(n, device=x.device).split(batch):
            yield x[index], index, n


def _move(modules: tuple[Any, ...], device: str | torch.device) -> None:
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


def _check_types(model: Any, guide: Any) -> None:
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


def _default_loss(model: Any, guide: Any, *probe: Any) -> ELBO:
    plain = Trace_ELBO(max_plate_nesting=1)
    if isinstance(model, Conjugate) and not _noiseless(model, guide, plain, *probe):
        rule = QuadratureELBO()
        if rule.exact(model, guide, *probe):
            return rule
    return plain


def _noiseless(model: Any, guide: Any, loss: ELBO, *probe: Any) -> bool:
    """Whether the bound of a conjugate model and its gradient are the same for different draws."""
    if not isinstance(model, Conjugate):
        return False
    if isinstance(loss, QuadratureELBO):
        return True
    if not isinstance(loss, Trace_ELBO) or isinstance(loss, JitTrace_ELBO):
        return False
    modules = [m for m in (model, guide) if isinstance(m, nn.Module)]
    seen = []
    for seed in (0, 1):
        for module in modules:
            module.zero_grad()
        with seeded(seed):
            value = loss.loss_and_grads(model, guide, *probe)
        gradients = [p.grad.flatten() for m in modules for p in m.parameters() if p.grad is not None]
        seen.append(torch.cat([probe[0].new_tensor([value]), *gradients]))
    close = 1e3 * torch.finfo(probe[0].dtype).eps * seen[0].abs().max()
    return bool(torch.isfinite(seen[0]).all()) and bool((seen[0] - seen[1]).abs().max() <= close)


def _check_pair(model: Any, guide: Any, x: Tensor, probe: tuple[Any, ...], loss: ELBO | None, subsampled: bool) -> None:
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


def _deep(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(isinstance(m, nn.Linear) for m in model.modules())


def _flat(losses: list[float], dtype: torch.dtype, learned: bool, window: int = 20) -> bool:
    """Whether L-BFGS has ceased to descend: less than the resolution of the bound in the last iterations.

    A learned guide ends in a long flat valley along which the model hardly moves, so its resolution is coarser.
    """
    if len(losses) <= window:
        return False
    resolution = 1e-6 if dtype != torch.float64 else 1e-7 if learned else 1e-9
    return losses[-1 - window] - losses[-1] <= resolution * max(1.0, abs(losses[-1]))


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
