"""Deep latent factor models on data with published results, and on small tables beside factor analysis.

About a minute at ``quick``, 15 minutes at ``cpu`` with two processes, an hour on one GPU at ``full``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import torch
from torch import Tensor

import guides
from zoo import data
from zoo.base.module import Module
from zoo.base.protocols import Floored
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
from zoo.data.binarisation import How
from zoo.infer.deep_defaults import CLIP
from zoo.infer.expectation_maximisation import em
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.vae import VAE
from zoo.posterior.evidence import log_evidence_bounds
from zoo.posterior.rates import rate_distortion


@dataclass(frozen=True)
class Effort:
    """The length of training, and the effort of evaluation.

    Attributes:
        epochs: the maximum number of passes over the training rows.
        patience: epochs without a better ELBO on validation rows after which training stops; None trains to the end.
        draws: K of the importance-weighted bound.
        rows: the most test rows, evenly spaced.
    """

    epochs: int
    patience: int | None
    draws: int
    rows: int


@dataclass(frozen=True)
class Protocol:
    """A model on a data set, with everything required to reproduce its result.

    Attributes:
        name: its name in the table.
        data: the name of the data set.
        model: options of :class:`zoo.VAE`.
        latent_dim: number of factors.
        guide: options of :class:`guides.Amortized`.
        batch: rows per step.
        rate: Adam's initial learning rate, decayed to zero by a cosine schedule.
        warm_up: the fraction of the epochs over which the weight of the KL term rises from 0 to 1.
        efforts: by budget.
        binarised: ``"dynamic"`` draws every pixel of the training rows anew at every step; None takes values as they
            are.
        published: the published negative log-likelihood per row in nats for this protocol, or None.
    """

    name: str
    data: str
    model: Mapping[str, Any]
    latent_dim: int
    guide: Mapping[str, Any]
    batch: int
    rate: float
    warm_up: float
    efforts: Mapping[str, Effort]
    binarised: How | None = None
    published: Published | None = None


OURS, LINEAR = "VAE", "factor analysis"
PIXELS = {"likelihood": "bernoulli"}
DEEP = (
    Protocol(
        name="MNIST 784-[200,200]-50",
        data="mnist",
        model=PIXELS | {"hidden": (200, 200)},
        latent_dim=50,
        guide={"hidden": (200, 200)},
        batch=100,
        rate=2e-3,
        warm_up=0.1,
        binarised="dynamic",
        efforts={
            "quick": Effort(epochs=3, patience=None, draws=100, rows=500),
            "cpu": Effort(epochs=200, patience=None, draws=500, rows=10_000),
            "full": Effort(epochs=2000, patience=None, draws=5000, rows=10_000),
        },
        published=Published(
            86.76, "Burda, Grosse and Salakhutdinov (2016), VAE with k = 1; batch 20, 3280 epochs", "IWAE table"
        ),
    ),
    Protocol(
        name="MNIST gated 784-[300,300]-40",
        data="mnist",
        model=PIXELS | {"hidden": (300, 300), "gated": True},
        latent_dim=40,
        guide={"hidden": (300, 300), "gated": True},
        batch=100,
        rate=5e-4,
        warm_up=0.05,
        binarised="dynamic",
        efforts={
            "quick": Effort(epochs=3, patience=None, draws=100, rows=500),
            "cpu": Effort(epochs=100, patience=50, draws=500, rows=10_000),
            "full": Effort(epochs=2000, patience=50, draws=5000, rows=10_000),
        },
        published=Published(84.5, "Tomczak and Welling (2018), standard prior, 84.45 to 84.50", "VampPrior table"),
    ),
    Protocol(
        name="digits 61-[64,64]-8",
        data="digits",
        model={"hidden": (64, 64), "floor": 0.01},
        latent_dim=8,
        guide={"hidden": (64, 64)},
        batch=50,
        rate=2e-3,
        warm_up=0.04,
        efforts={
            "quick": Effort(epochs=20, patience=10, draws=100, rows=1000),
            "cpu": Effort(epochs=500, patience=50, draws=5000, rows=1000),
            "full": Effort(epochs=500, patience=50, draws=5000, rows=1000),
        },
    ),
    Protocol(
        name="breast_cancer 30-[32]-5",
        data="breast_cancer",
        model={"hidden": (32,), "floor": 0.01, "covariance": "low_rank", "rank": 5},
        latent_dim=5,
        guide={"hidden": (32,), "covariance": "full"},
        batch=50,
        rate=2e-3,
        warm_up=0.04,
        efforts={
            "quick": Effort(epochs=50, patience=20, draws=100, rows=1000),
            "cpu": Effort(epochs=1000, patience=100, draws=5000, rows=1000),
            "full": Effort(epochs=1000, patience=100, draws=5000, rows=1000),
        },
    ),
)
MEASURES = (
    Measure("nll", "nats per row", "lower", 2, "minus the importance-weighted bound on log p(x) of test rows"),
    Measure("nll_error", "nats per row", None, 3, "its Monte Carlo standard error"),
    Measure("elbo", "nats per row", "higher", 2, "the evidence lower bound of test rows"),
    Measure("rate", "nats per row", None, 2, "the mean KL of q(z | x) from the prior"),
    Measure("active", "units", None, 0, "units whose posterior mean varies over the rows"),
    Measure("at_floor", "", None, 2, "the share of the decoder's variances at their floor"),
    Measure("epochs", "", None, 0, "passes over the training rows"),
)
TEXT = """Each case is a model on a data set under one protocol: likelihood, networks, binarisation, split, optimizer. A
number without these is no baseline; they stand in every row.

- MNIST: the published split (50,000 / 10,000 / 10,000), training rows binarised anew at every step, test rows once.
- `digits` and `breast_cancer`: 60 / 20 / 20 percent of the rows at random (seed 0), without columns that are constant
  in the training rows. Factor analysis with as many factors, by EM, is the linear baseline; its `nll` is exact.
- Adam with a rate that decays along half a cosine, the weight of the KL warmed up; where the budget has a patience,
  training stops early by the bound of the validation rows and keeps the best parameters.

The published values were reached in 2,000 epochs and more, as at the budget `full`; `cpu` stops earlier.
"""


def rows(protocol: Protocol, most: int, seed: int) -> Data:
    """Training, validation and test rows of a protocol; the same for every seed."""
    parts = data.load_parts(protocol.data, dtype=torch.float32)
    if protocol.binarised is not None:
        parts = parts.binarised(protocol.binarised)
    train, validation, test = parts.train.x, parts.validation.x, parts.test.x
    if protocol.data != "mnist":  # a constant column has no density
        kept = train.amax(0) > train.amin(0)
        train, validation, test = train[:, kept], validation[:, kept], test[:, kept]
    return Data(train, test[:: math.ceil(len(test) / most)], validation)


@dataclass(frozen=True)
class Training:
    """Trains the pair of a protocol, or a user's model or guide in its place."""

    budget: str
    model: ModelMaker | None = None
    guide: GuideMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> Fit:
        p = protocol_of(cell.case)
        effort = p.efforts[self.budget]
        epoch = math.ceil(len(data.train) / p.batch)
        steps = effort.epochs * epoch
        look = max(1, effort.epochs // 100)  # epochs between two evaluations on validation rows
        settings = {
            "steps": steps,
            "batch_size": p.batch,
            "loss": AnnealedELBO(beta=linear_warmup(max(1, round(p.warm_up * steps)))),
            "optim": Fused(torch.optim.Adam, {"lr": p.rate}, schedule=cosine(steps), clip_norm=CLIP * len(data.train)),
            "every": look * epoch,
            "patience": None if effort.patience is None else max(1, effort.patience // look),
            "transform": torch.bernoulli if p.binarised == "dynamic" else None,
        }

        def model(data_dim: int) -> Module:
            return VAE(data_dim, p.latent_dim, **p.model)

        def encoder(own: Module, x: Tensor) -> Module:
            return guides.Amortized(own, x, **p.guide)

        run: Fit = Pair(self.model or model, self.guide or encoder, settings)(data, cell)
        return run


def linear(data: Data, cell: Cell) -> FactorAnalysis:
    """Factor analysis with as many factors."""
    model = FactorAnalysis(data.train.shape[1], protocol_of(cell.case).latent_dim).double()
    em(model, data.train.double())
    return model


def protocol_of(case: Case) -> Protocol:
    """The protocol of a case."""
    return next(own for own in DEEP if own.name == case.name)


def measured(fitted: Fit | FactorAnalysis, data: Data, cell: Cell, draws: int) -> Point:
    """Bounds, rate and active units on test rows."""
    if isinstance(fitted, FactorAnalysis):
        with torch.no_grad():
            exact = float(fitted.log_marginal(data.test.double()).mean())
        return {"nll": -exact, "nll_error": 0.0, "elbo": exact}
    bounds = log_evidence_bounds(fitted, data.test, draws=(draws,))
    tightest = bounds[f"IWAE-{draws}"]
    factors = rate_distortion(fitted, data.test[:2000], draws=5)
    found = {"nll": -tightest.mean, "nll_error": tightest.mean_se, "elbo": bounds["ELBO"].mean}
    found |= {"rate": factors.rate, "active": int(factors.active.sum())}
    if isinstance(fitted.model, Floored) and fitted.training is not None and fitted.training.at_floor is not None:
        found["at_floor"] = fitted.training.at_floor
    return found | {"epochs": fitted.steps / math.ceil(len(data.train) / protocol_of(cell.case).batch)}


def claims(table: pl.DataFrame, budget: str) -> list[Claim]:
    """A deep model has a higher likelihood than the linear one on small tables."""
    means = table.group_by("case", "method").agg(pl.col("nll").mean())
    found = {(case, method): nll for case, method, nll in means.iter_rows()}
    made = []
    ran = {case for case, _ in found}
    for p in (own for own in DEEP if own.binarised is None and own.name in ran):
        ours, theirs = (-found.get((p.name, method), math.nan) for method in (OURS, LINEAR))
        held = None if budget == "quick" or math.isnan(ours + theirs) else ours > theirs
        text = f"{p.name}: a higher likelihood than {LINEAR}"
        made.append(Claim(text, held, f"{ours:.2f} against {theirs:.2f} nats per row"))
    return made


def case_of(protocol: Protocol, budget: str) -> Case:
    """A protocol as a case."""
    effort = protocol.efforts[budget]
    settings = {
        "data": protocol.data,
        "split": "50,000 / 10,000 / 10,000" if protocol.data == "mnist" else "60% / 20% / 20%, seed 0",
        "binarised": protocol.binarised or "no",
        "model": dict(protocol.model),
        "latent_dim": protocol.latent_dim,
        "guide": dict(protocol.guide),
        "batch": protocol.batch,
        "optimizer": f"Adam, {protocol.rate}, half a cosine",
        "clip_norm_per_row": CLIP,
        "warm_up_epochs": protocol.warm_up * effort.epochs,
        "epochs": effort.epochs,
        "patience": effort.patience,
        "nll": f"IWAE-{effort.draws} of at most {effort.rows:,} test rows",
    }
    published: dict[str | tuple[str, str], Published] = {}
    if protocol.published is not None:
        published["nll"] = protocol.published
    return Case(protocol.name, partial(rows, protocol, effort.rows), settings, published, data=(protocol.data,))


def suite(budget: str) -> Suite:
    """The suite ``deep`` at a budget."""
    draws = {p.name: p.efforts[budget].draws for p in DEEP}
    linear_cases = {p.name for p in DEEP if p.binarised is None}
    return Suite(
        name="deep",
        question="How high is log p(x) of deep models on test rows, beside published values and a linear model?",
        cases=[case_of(p, budget) for p in DEEP],
        methods=[
            Method(OURS, Training(budget), cite=("VAE", "Amortized", "AnnealedELBO")),
            Method(
                LINEAR,
                linear,
                cases=lambda case: case.name in linear_cases,
                cite=("FactorAnalysis", "em"),
                baseline=True,
            ),
        ],
        measures=MEASURES,
        measure=lambda fitted, data, cell: measured(fitted, data, cell, draws[cell.case.name]),
        budget=budget,
        own=lambda own: Method(own.name, Training(budget, own.model, own.guide)),
        claims=lambda table: claims(table, budget),
        text=TEXT,
    )
