"""A step of ``zoo.fit`` over one of a hand-written torch loop with fused Adam."""

import copy
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from guides import Amortized, MeanField
from guides.encoder import ONE
from zoo.base.module import Module
from zoo.benchmark.speed.measuring import Samples, Task, processor_seconds
from zoo.infer.decisions import PAYS
from zoo.infer.fitting import fit
from zoo.infer.watchers import Watcher
from zoo.models.ppca import PPCA
from zoo.models.vae import VAE

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
STEPS = 400  # of a fit, after those to warm up
WARM_UP = 20
BATCH = 128


@dataclass(frozen=True)
class Loop:
    """A pair to fit, and the same model and guide in plain torch.

    Attributes:
        model: fresh.
        guide: fresh.
        x: the data (n, d).
        by_hand: takes one step of the hand-written loop.
        options: of :func:`zoo.fit`.
    """

    model: Module
    guide: Module
    x: Tensor
    by_hand: Callable[[], None]
    options: dict[str, Any] = field(default_factory=dict)

    def fit(self, steps: int, capture: bool | None, callback: Callable[..., None] | Watcher) -> None:
        """Fit the pair, with a function or a watcher that is called after every step."""
        fit(
            self.model,
            self.guide,
            self.x,
            steps=steps,
            capture=capture,
            progress=False,
            callbacks=[callback],
            **self.options,
        )


def tasks() -> Iterator[Task]:
    """VAEs on minibatches and PPCA on all rows: default steps, steps by Pyro, and when a recorded graph pays."""
    cases: dict[str, tuple[Callable[[], Loop], float]] = {  # with the bar of a step by Pyro
        "VAE 784-400-20 Gaussian": (vae, 1.35),
        "VAE 784-400-20 Bernoulli": (binary_vae, 1.35),
        "PPCA 1000 x 20 MeanField": (lambda: ppca(False), 2.8),
        "PPCA 1000 x 20 Amortized": (lambda: ppca(True), 2.8),
    }
    other = "a hand-written step"
    for name, (build, _) in cases.items():
        yield Task(f"step {name}", functools.partial(_measure, build, None), "us", other, times=1.0)
    for name, (build, bar) in cases.items():
        yield Task(f"step {name}, not recorded", functools.partial(_measure, build, False), "us", other, times=bar)
    for name, (build, _) in cases.items():
        yield Task(f"break-even {name}", functools.partial(_break_even, build), "steps", plus=PAYS)


def _measure(build: Callable[[], Loop], capture: bool | None, repeats: int) -> Samples:
    """Microseconds per step, the medians of every fit."""
    pairs = [step_times(build(), STEPS, WARM_UP, capture=capture) for _ in range(repeats)]
    mine, other = zip(*pairs, strict=True)
    return Samples(mine, other)


def step_times(loop: Loop, steps: int, warm_up: int, *, capture: bool | None = None) -> tuple[float, float]:
    """Medians of the step of ``zoo.fit`` and of the hand-written one, in microseconds; they take turns."""
    ours, theirs = [], []
    since = processor_seconds()

    def turn(step: int, _: float) -> None:
        nonlocal since
        start = processor_seconds()
        loop.by_hand()
        end = processor_seconds()
        if step >= warm_up:
            ours.append(start - since)
            theirs.append(end - start)
        since = processor_seconds()

    with torch.random.fork_rng():
        loop.fit(steps + warm_up, capture, turn)
    return 1e6 * statistics.median(ours), 1e6 * statistics.median(theirs)


def _break_even(build: Callable[[], Loop], repeats: int) -> Samples:
    """The number of steps from which on a recorded graph has saved what recording it takes."""
    found = [break_even(build) for _ in range(repeats + 1)]
    return Samples(found[1:])  # the first does what is only done once in a process


def break_even(build: Callable[[], Loop], steps: int = 60, warm_up: int = 10) -> float:
    """Steps until the time saved by a graph equals the time that recording adds; infinite if it saves none."""
    whole, each = {}, {}
    for capture in (False, True):
        times = [processor_seconds()]
        build().fit(steps, capture, lambda *_, t=times: t.append(processor_seconds()))
        each[capture] = statistics.median(b - a for a, b in itertools.pairwise(times[warm_up:]))
        whole[capture] = times[-1] - times[0] - steps * each[capture]
    saved = each[False] - each[True]
    return (whole[True] - whole[False]) / saved if saved > 0 else math.inf


def by_hand(
    loss: Callable[[Tensor], Tensor], params: Sequence[Tensor], batches: Callable[[], Tensor]
) -> Callable[[], None]:
    """One step of the loop that a user would write in plain torch, with the fused Adam.

    On a CPU the loss is read at every step; on a GPU that would wait for it.
    """
    optim = torch.optim.Adam(params, lr=1e-3, fused=True)

    def step() -> None:
        optim.zero_grad()
        value = loss(batches())
        value.backward()
        optim.step()
        if not value.is_cuda:
            value.item()

    return step


def shuffled(x: Tensor, count: int) -> Callable[[], Tensor]:
    """Batches of ``count`` rows, epoch by epoch."""
    order: Iterator[Tensor] = iter(())

    def batch() -> Tensor:
        nonlocal order
        index = next(order, None)
        if index is None:
            order = iter(torch.randperm(len(x), device=x.device).split(count))
            index = next(order)
        return x[index]

    return batch


def vae() -> Loop:
    """A VAE 784-400-20 with Gaussian pixels on batches of 128."""
    x = torch.rand(1024, 784)
    model, guide = _networks(x, 400, 20)
    mean, scale, encoder = (copy.deepcopy(part) for part in (model.mean, model.scale, guide.encoder))
    shift, unit = model.columns.shift, model.columns.unit

    def loss(rows: Tensor) -> Tensor:
        loc, raw = encoder((rows - shift) / unit).split(20, -1)
        deviation = softplus(raw + ONE)
        z = loc + deviation * torch.randn_like(loc)
        noise = unit * (model.floor + softplus(scale(z)).square()).sqrt()
        bound = _log_normal(rows, shift + unit * mean(z), noise) + _log_standard(z) - _log_normal(z, loc, deviation)
        return -bound * (len(x) / len(rows))

    params = [p for part in (mean, scale, encoder) for p in part.parameters()]
    return Loop(model, guide, x, by_hand(loss, params, shuffled(x, BATCH)), {"batch_size": BATCH, "patience": 0})


def binary_vae(x: Tensor | None = None, hidden: int = 400, latent: int = 20, batch: int = BATCH) -> Loop:
    """A VAE 784-400-20 with Bernoulli pixels on batches of 128, binarised anew at every step.

    Args:
        x: the data (n, d) between 0 and 1, on the device to use; None draws 1,024 rows.
        hidden, latent: the widths of the networks.
        batch: rows per step.
    """
    x = torch.rand(1024, 784) if x is None else x
    model, guide = _networks(x, hidden, latent, likelihood="bernoulli")
    decoder, encoder = copy.deepcopy(model.mean), copy.deepcopy(guide.encoder)
    shift, unit, bias = guide.columns.shift, guide.columns.unit, model.likelihood.shift

    def loss(rows: Tensor) -> Tensor:
        rows = torch.bernoulli(rows)
        loc, raw = encoder((rows - shift) / unit).split(latent, -1)
        deviation = softplus(raw + ONE)
        z = loc + deviation * torch.randn_like(loc)
        fitted = -binary_cross_entropy_with_logits(bias + decoder(z), rows, reduction="sum")
        return -(fitted + _log_standard(z) - _log_normal(z, loc, deviation)) * (len(x) / len(rows))

    params = [p for part in (decoder, encoder) for p in part.parameters()]
    options = {"batch_size": batch, "patience": 0, "transform": torch.bernoulli}
    return Loop(model, guide, x, by_hand(loss, params, shuffled(x, batch)), options)


def ppca(linear: bool) -> Loop:
    """PPCA 1000 x 20 with five factors, all rows at every step, by draws: the default would be a line search."""
    x = torch.randn(1000, 5) @ torch.randn(5, 20) + 0.5 * torch.randn(1000, 20)
    model = PPCA(20, 5)
    guide: Module = Amortized(model, x, hidden=()) if linear else MeanField(model, x, closed_form=False)
    weight, mean, log_scale = torch.randn(20, 5), torch.zeros(20), torch.zeros(())
    columns = guide.columns(x) if isinstance(guide, Amortized) else x
    encoder = torch.nn.Linear(20, 5)
    loc, spread = torch.zeros(1000, 5), torch.zeros(5) if linear else torch.zeros(1000, 5)
    params = [weight, mean, log_scale, spread, *(encoder.parameters() if linear else [loc])]
    for p in params:
        p.requires_grad_()

    def loss(rows: Tensor) -> Tensor:
        m = encoder(columns) if linear else loc  # (n, k)
        s = softplus(spread + ONE) if linear else spread.exp()
        z = m + s * torch.randn_like(m)
        own = _log_normal(z, m, s.expand_as(z))
        residual = (rows - (z @ weight.T + mean)) / log_scale.exp()  # (n, d)
        fitted = -0.5 * residual.square().sum() - rows.numel() * (log_scale + HALF_LOG_TAU)
        return -(fitted + _log_standard(z) - own)

    return Loop(model, guide, x, by_hand(loss, params, lambda: x), {"loss": Trace_ELBO()})


def _networks(x: Tensor, hidden: int, latent: int, **options: Any) -> tuple[VAE, Amortized]:
    """A VAE with one hidden layer and its guide, placed on the data."""
    model = VAE(x.shape[1], latent, hidden=(hidden,), **options)
    guide = Amortized(model, x, hidden=(hidden,))
    model.initialize(x)
    return model.to(x), guide.to(x)


def _log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The density of independent Gaussians, summed over all entries."""
    return (-0.5 * ((x - mean) / scale).square() - scale.log() - HALF_LOG_TAU).sum()


def _log_standard(z: Tensor) -> Tensor:
    return (-0.5 * z.square() - HALF_LOG_TAU).sum()
