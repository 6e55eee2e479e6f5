"""Speed, measured: ``pytest -m benchmarks``, or ``python tests/test_benchmarks.py`` for the tables alone.

Everything is a ratio of interleaved medians: the reference runs one step between every two steps of what is measured,
so that both see the same machine. On a machine with other work the ratios still scatter by a tenth or so.
"""

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import zoo
from guides import Amortized, MeanField
from guides.encoder import ONE
from zoo.infer.planning import PAYS

pytestmark = pytest.mark.benchmarks

NOISE = 1.10  # what a busy machine may add to a ratio
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


# --- time per step, over a hand-written torch loop ---------------------------------------------------------------


@dataclass(frozen=True)
class StepTime:
    """A measured ratio.

    Attributes:
        name: which model and guide.
        kind: ``by Pyro`` or ``captured``.
        reference: microseconds per step of the hand-written loop.
        ratio: the step of ``zoo.fit`` over it.
        bar: the most it may be.
    """

    name: str
    kind: str
    reference: float
    ratio: float
    bar: float

    def __str__(self) -> str:
        return f"{self.name:<22} {self.kind:<9} {self.reference:9.0f} us  x {self.ratio:5.2f}   (at most {self.bar})"


def log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The density of independent Gaussians, summed over all entries."""
    return (-0.5 * ((x - mean) / scale).square() - scale.log() - HALF_LOG_TAU).sum()


def log_standard(z: Tensor) -> Tensor:
    return (-0.5 * z.square() - HALF_LOG_TAU).sum()


def by_hand(loss: Callable[..., Tensor], params: list[Tensor], batches: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of the loop that a user would write in plain torch, with the fused Adam."""
    optim = torch.optim.Adam(params, lr=1e-3, fused=True)

    def step() -> None:
        optim.zero_grad()
        value = loss(batches())
        value.backward()
        optim.step()
        value.item()

    return step


def shuffled(x: Tensor, count: int) -> Callable[[], Tensor]:
    """Batches of ``count`` rows, epoch by epoch."""
    order = iter(())

    def batch() -> Tensor:
        nonlocal order
        index = next(order, None)
        if index is None:
            order = iter(torch.randperm(len(x)).split(count))
            index = next(order)
        return x[index]

    return batch


def vae() -> tuple:
    """A VAE 784-400-20 on batches of 128: model, guide, data, options of the fit, and the loop by hand."""
    x = torch.rand(1024, 784)
    model = zoo.VAE(784, 20, hidden=(400,))
    guide = Amortized(model, x, hidden=(400,))
    model.initialize(x)
    mean, scale, encoder = (copy.deepcopy(part) for part in (model.mean, model.scale, guide.encoder))
    shift, unit = model.columns.shift, model.columns.unit

    def loss(rows: Tensor) -> Tensor:
        loc, raw = encoder((rows - shift) / unit).split(20, -1)
        deviation = softplus(raw + ONE)
        z = loc + deviation * torch.randn_like(loc)
        noise = unit * (model.floor + softplus(scale(z)).square()).sqrt()
        bound = log_normal(rows, shift + unit * mean(z), noise) + log_standard(z) - log_normal(z, loc, deviation)
        return -bound * (len(x) / len(rows))

    params = [p for part in (mean, scale, encoder) for p in part.parameters()]
    return model, guide, x, {"batch_size": 128}, by_hand(loss, params, shuffled(x, 128))


def binary_vae() -> tuple:
    """The MNIST model, 784-[200,200]-50 under a Bernoulli likelihood, batches of 128 binarised anew at every step."""
    x = torch.rand(1024, 784)
    model = zoo.VAE(784, 50, hidden=(200, 200), likelihood="bernoulli")
    guide = Amortized(model, x, hidden=(200, 200))
    model.initialize(x)
    decoder, encoder = copy.deepcopy(model.mean), copy.deepcopy(guide.encoder)
    shift, unit, bias = guide.columns.shift, guide.columns.unit, model.likelihood.shift

    def loss(rows: Tensor) -> Tensor:
        rows = torch.bernoulli(rows)
        loc, raw = encoder((rows - shift) / unit).split(50, -1)
        deviation = softplus(raw + ONE)
        z = loc + deviation * torch.randn_like(loc)
        fit = -binary_cross_entropy_with_logits(bias + decoder(z), rows, reduction="sum")
        return -(fit + log_standard(z) - log_normal(z, loc, deviation)) * (len(x) / len(rows))

    params = [p for part in (decoder, encoder) for p in part.parameters()]
    options = {"batch_size": 128, "transform": torch.bernoulli}
    return model, guide, x, options, by_hand(loss, params, shuffled(x, 128))


def ppca(linear: bool) -> tuple:
    """PPCA 1000 x 20 with five factors, all rows at every step."""
    x = torch.randn(1000, 5) @ torch.randn(5, 20) + 0.5 * torch.randn(1000, 20)
    model = zoo.PPCA(20, 5)
    guide = Amortized(model, x, hidden=()) if linear else MeanField(model, x, closed_form=False)
    weight, mean, log_scale = torch.randn(20, 5), torch.zeros(20), torch.zeros(())
    columns = guide.columns(x) if linear else x
    encoder = torch.nn.Linear(20, 5)
    loc, spread = torch.zeros(1000, 5), torch.zeros(5) if linear else torch.zeros(1000, 5)
    params = [weight, mean, log_scale, spread, *(encoder.parameters() if linear else [loc])]
    for p in params:
        p.requires_grad_()

    def loss(rows: Tensor) -> Tensor:
        m = encoder(columns) if linear else loc
        s = softplus(spread + ONE) if linear else spread.exp()
        z = m + s * torch.randn_like(m)
        own = log_normal(z, m, s.expand_as(z))
        scale = log_scale.exp()
        noise = -0.5 * ((rows - (z @ weight.T + mean)) / scale).square().sum() - rows.numel() * (
            scale.log() + HALF_LOG_TAU
        )
        return -(noise + log_standard(z) - own)

    return model, guide, x, {}, by_hand(loss, params, lambda: x)


CASES = {  # how it is built, and the bar of a step by Pyro
    "VAE x Amortized": (vae, 1.35),
    "VAE of 0 and 1": (binary_vae, 1.35),
    "PPCA x MeanField": (lambda: ppca(False), 2.8),
    "PPCA x Amortized": (lambda: ppca(True), 2.8),
}
CAPTURED = 1.0  # the bar of a captured step


def step_ratio(
    build: Callable[[], tuple], steps: int, *, capture: bool | None, warmup: int = 20
) -> tuple[float, float]:
    """Medians of the hand-written step (microseconds) and of ``zoo.fit``'s step over it, taking turns."""
    torch.manual_seed(0)
    model, guide, x, options, reference_step = build()
    ours, theirs = [], []
    since = time.perf_counter()

    def turn(step: int, _: float) -> None:
        nonlocal since
        start = time.perf_counter()
        reference_step()
        end = time.perf_counter()
        if step >= warmup:
            ours.append(start - since)
            theirs.append(end - start)
        since = time.perf_counter()

    options = {**options, "loss": Trace_ELBO(), "capture": capture, "progress": False, "callbacks": [turn]}
    with torch.random.fork_rng():
        zoo.fit(model, guide, x, steps=steps + warmup, **options)
    reference = statistics.median(theirs)
    return 1e6 * reference, statistics.median(ours) / reference


def measure_step_times(repeats: int = 3, steps: int = 400) -> list[StepTime]:
    """Every case, by Pyro and captured as by default; the median ratio of some fits each."""
    found = []
    for name, (build, bar) in CASES.items():
        for kind, capture in (("by Pyro", False), ("captured", None)):
            runs = [step_ratio(build, steps, capture=capture) for _ in range(repeats)]
            reference, ratio = (statistics.median(values) for values in zip(*runs, strict=True))
            found.append(StepTime(name, kind, reference, ratio, bar if kind == "by Pyro" else CAPTURED))
    return found


def break_even(build: Callable[[], tuple], steps: int = 60) -> float:
    """Steps from which on the recording has paid, of what the fit with it takes longer before."""
    whole, each = {}, {}
    for capture in (False, True):
        torch.manual_seed(0)
        model, guide, x, options, _ = build()
        times = [time.process_time()]
        options = {**options, "loss": Trace_ELBO(), "progress": False, "capture": capture}
        zoo.fit(model, guide, x, steps=steps, callbacks=[lambda *_, t=times: t.append(time.process_time())], **options)
        each[capture] = statistics.median(b - a for a, b in itertools.pairwise(times[10:]))
        whole[capture] = times[-1] - times[0] - steps * each[capture]
    return (whole[True] - whole[False]) / (each[False] - each[True])


@pytest.mark.parametrize("name", CASES)
def test_a_recording_pays_before_the_fit_takes_one(name):
    break_even(CASES[name][0])  # what is only done once in a process
    assert statistics.median(break_even(CASES[name][0]) for _ in range(3)) < PAYS


def test_steps_cost_little_more_than_by_hand(capsys):
    measured = measure_step_times()
    with capsys.disabled():
        print("\ntime per step of zoo.fit, over a hand-written torch loop with fused Adam", *measured, sep="\n")
    assert not [str(m) for m in measured if m.ratio > NOISE * m.bar]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")
    for measured in measure_step_times():
        print(measured)
