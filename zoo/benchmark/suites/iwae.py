"""Importance-weighted autoencoders with one stochastic layer: Burda, Grosse and Salakhutdinov (2016), table 1.

About a minute at ``quick``, 25 minutes at ``cpu`` with two processes, a day on one GPU at ``full``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

import guides
from zoo import data
from zoo.base.module import Module
from zoo.base.schedules import cosine
from zoo.benchmark.suite import (
    Case,
    Cell,
    Claim,
    Data,
    GuideMaker,
    Measure,
    Method,
    ModelMaker,
    Pair,
    Point,
    Published,
    Suite,
)
from zoo.infer.losses.iwae import IWAE
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.vae import VAE
from zoo.posterior.evidence import log_evidence_bounds
from zoo.posterior.rates import rate_distortion

BATCH, HIDDEN, LATENT, RATE = 20, (200, 200), 50, 1e-3
SIZES = (1, 5, 50)  # draws k
STAGES = 8  # of the published schedule: stage i has 3^i epochs at a rate lower by 10^(-i/7)
SOURCE = "Burda, Grosse and Salakhutdinov (2016), table 1, one stochastic layer"
PUBLISHED = {  # negative log-likelihood, and active units
    "VAE, k = 1": (86.76, 19),
    "VAE, k = 5": (86.47, 20),
    "VAE, k = 50": (86.35, 20),
    "IWAE, k = 5": (85.54, 22),
    "IWAE, k = 50": (84.78, 25),
}
TEXT = """Autoencoders 784-[200, 200 tanh]-50 on MNIST, all 60,000 training rows binarised anew at every step, batches
of 20. A VAE averages the bound over k draws; an importance-weighted autoencoder (IWAE) is trained on the log of the
mean of k weights, a tighter bound. (With k = 1 they are the same.)

- `nll`: minus the importance-weighted bound on log p(x) of test rows, nats per row, lower is better. Published: 5,000
  draws on 10,000 rows; the draws, rows and epochs of each budget are in its protocol. It is an upper limit of the
  negative log-likelihood that tightens as the draws grow.
- `active`: units whose posterior mean varies over the rows (variance above 0.01).

The published values take 3,280 epochs with a falling rate, as `full` does. `cpu` stops after some 15, with Adam's rate
decayed along half a cosine: its numbers are a few nats higher, and what it shows is the order.
"""


@dataclass(frozen=True)
class Effort:
    """What a budget spends: epochs (None: the published 3,280), training rows, test rows, and draws of the bound."""

    epochs: float | None
    train: int
    test: int
    draws: int


EFFORTS = {
    "quick": Effort(0.5, 10_000, 500, 50),
    "cpu": Effort(15, 60_000, 2_000, 500),
    "full": Effort(None, 60_000, 10_000, 5_000),
}
MEASURES = (
    Measure("nll", "nats per row", "lower", 2, "minus the importance-weighted bound on log p(x) of test rows"),
    Measure("nll_error", "nats per row", None, 3, "its Monte Carlo standard error"),
    Measure("bound", "nats per row", "higher", 2, "the evidence lower bound of test rows"),
    Measure("active", "units", None, 0, f"active units of {LATENT}"),
)


def staircase(epoch: int) -> Callable[[int], float]:
    """The published schedule: a factor 10^(-i/7) on the rate for 3^i epochs, i = 0 to 7; ``epoch`` is in steps.

    >>> rate = staircase(10)
    >>> [round(rate(step), 3) for step in (0, 9, 10, 39, 40, 32799)]
    [1.0, 1.0, 0.72, 0.72, 0.518, 0.1]
    """

    def factor(step: int) -> float:
        stage = int(math.log(2 * (step // epoch) + 1, 3) + 1e-9)  # 3^0 + ... + 3^(i - 1) = (3^i - 1) / 2
        return 10 ** (-min(stage, STAGES - 1) / (STAGES - 1))

    return factor


def case(effort: Effort) -> Case:
    """MNIST as published: all rows of the training file, binarised anew at every step."""

    def rows(seed: int) -> Data:
        train = data.load("mnist", dtype=torch.float32).x[: effort.train]
        test = data.load("mnist-test", dtype=torch.float32).x
        return Data(train, data.binarised(test[:: len(test) // effort.test], "fixed", seed=0))

    published: dict[str | tuple[str, str], Published] = {}
    for name, (nll, active) in PUBLISHED.items():
        published[name, "nll"] = Published(nll, SOURCE, "IWAE table")
        published[name, "active"] = Published(active, SOURCE, "IWAE table")
    protocol = {
        "data": "mnist",
        "split": f"{effort.train:,} rows of the training file, {effort.test:,} of the test file, evenly spaced",
        "binarised": "dynamic: training rows at every step, test rows once with seed 0",
        "nll": f"IWAE-{effort.draws}",
    }
    return Case("MNIST", rows, protocol, published, data=("mnist",))


def model(data_dim: int) -> VAE:
    """The decoder."""
    return VAE(data_dim, LATENT, HIDDEN, likelihood="bernoulli", activation="tanh")


def encoder(own: Module, x: Tensor) -> guides.Amortized:
    """The encoder."""
    return guides.Amortized(own, x, HIDDEN, activation="tanh")


def elbo(draws: int) -> ELBO:
    """The evidence lower bound, averaged over draws."""
    return Trace_ELBO(num_particles=draws, vectorize_particles=draws > 1, max_plate_nesting=1)


@dataclass(frozen=True)
class Training:
    """Trains a pair, ours or with parts of a user's."""

    loss: Callable[[int], ELBO]
    draws: int
    effort: Effort
    model: ModelMaker = model
    guide: GuideMaker = encoder

    def __call__(self, data: Data, cell: Cell) -> Fit:
        epoch = len(data.train) // BATCH
        steps, schedule = epoch * (3**STAGES - 1) // 2, staircase(epoch)
        if self.effort.epochs is not None:
            steps = round(self.effort.epochs * epoch)
            schedule = cosine(steps)
        settings = {
            "steps": steps,
            "batch_size": BATCH,
            "loss": self.loss(self.draws),
            "optim": Fused(torch.optim.Adam, {"lr": RATE}, schedule=schedule),
            "transform": torch.bernoulli,
            "patience": 0,
        }
        run: Fit = Pair(self.model, self.guide, settings)(data, cell)
        return run


def measured(run: Fit, given: Data, effort: Effort) -> Point:
    """The measures of a trained pair."""
    bounds = log_evidence_bounds(run, given.test, draws=(effort.draws,))
    tightest = bounds[f"IWAE-{effort.draws}"]
    active = rate_distortion(run, given.test[:1000], draws=2).active.sum()
    return {
        "nll": -tightest.mean,
        "nll_error": tightest.mean_se,
        "bound": bounds["ELBO"].mean,
        "active": int(active),
    }


def claims(table: pl.DataFrame, budget: str) -> list[Claim]:
    """More draws give a higher likelihood under the importance-weighted bound."""
    means = dict(table.group_by("method").agg(pl.col("nll").mean()).iter_rows())
    names = ("VAE, k = 1", *(f"IWAE, k = {k}" for k in SIZES[1:]))
    values = [means.get(name, math.nan) for name in names]
    undecided = budget == "quick" or any(map(math.isnan, values))
    figures = " > ".join(f"{value:.2f}" for value in values)
    text = f"Negative log-likelihood falls with the draws: k = {', '.join(map(str, SIZES))}"
    return [Claim(text, None if undecided else values == sorted(values, reverse=True), figures)]


def suite(budget: str) -> Suite:
    """The suite ``iwae`` at a budget."""
    effort = EFFORTS[budget]
    rate = "0.001 * 10^(-i/7) for 3^i epochs" if effort.epochs is None else "0.001, half a cosine"
    protocol = {"batch": BATCH, "epochs": effort.epochs or 3280, "optimizer": f"Adam, {rate}"}
    vae, iwae = ("VAE", "Amortized", "ELBO"), ("VAE", "Amortized", "IWAE")
    methods = [Method(f"VAE, k = {k}", Training(elbo, k, effort), {**protocol, "k": k}, cite=vae) for k in SIZES]
    methods += [Method(f"IWAE, k = {k}", Training(IWAE, k, effort), {**protocol, "k": k}, cite=iwae) for k in SIZES[1:]]
    return Suite(
        name="iwae",
        question="Does training on a tighter bound, of more draws, give a higher likelihood?",
        cases=[case(effort)],
        methods=methods,
        measures=MEASURES,
        measure=lambda run, given, cell: measured(run, given, effort),
        budget=budget,
        own=lambda own: Method(
            own.name, Training(elbo, 1, effort, own.model or model, own.guide or encoder), {**protocol, "k": 1}
        ),
        claims=lambda table: claims(table, budget),
        text=TEXT,
    )
