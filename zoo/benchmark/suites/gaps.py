"""Approximation and amortization gaps (Cremer, Li and Duvenaud 2018), on linear models beside their closed forms.

Minutes: quick 1 on one core, cpu 25 on two, full about 120 on a GPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

import guides
from zoo.base.callables import PyroCallable, mode, name_of, undecorated
from zoo.base.module import Module
from zoo.base.random import seeded
from zoo.base.schedules import cosine
from zoo.benchmark.frozen import Linear, Undisclosed, held, known_gaps
from zoo.benchmark.suite import (
    Case,
    Cell,
    Data,
    DoesNotApply,
    GuideMaker,
    Measure,
    Method,
    ModelMaker,
    Own,
    Published,
    Suite,
)
from zoo.benchmark.suites.gaps_page import FACTORISED, FLOW, FULL, SEMI, TEXT, claims, draw
from zoo.data.binarisation import binarised
from zoo.data.loading import load
from zoo.data.parts import load_parts
from zoo.data.splits import split_rows
from zoo.infer.deep_defaults import CLIP
from zoo.infer.fitting import fit
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.ppca import PPCA
from zoo.models.vae import VAE
from zoo.posterior.annealing import AIS
from zoo.posterior.evidence import Bound, log_evidence_bounds
from zoo.posterior.inference_gaps import gaps
from zoo.posterior.local_families import NoLocalFamily

DIGITS = {"train": 0.6, "validation": 0.2, "test": 0.2}
SOURCE = "Cremer, Li and Duvenaud (2018), MNIST"


@dataclass(frozen=True)
class Look:
    """The effort of an evaluation.

    Attributes:
        rows: on which the gaps are measured, the first ones, of training and of held-out rows each.
        search: steps of the search for the best q.
        draws: of every bound, and K of the importance-weighted one.
        ais: annealed importance sampling.
    """

    rows: int
    search: int
    draws: int
    ais: AIS


@dataclass(frozen=True)
class Effort:
    """The length of the trainings, and the effort of the evaluation.

    Attributes:
        linear, deep: the evaluation of linear models and of VAEs.
        steps: of the guides for frozen linear models.
        digits, mnist: epochs of the VAEs.
        train: training rows of MNIST, the first ones.
        refined: steps of training with refinement, after the proposal of a semi-amortized guide has been trained.
        hidden: widths of the layers for MNIST.
        latent_dim: factors for MNIST.
    """

    linear: Look
    deep: Look
    steps: int
    digits: int
    mnist: int
    train: int
    refined: int
    hidden: tuple[int, ...] = (200, 200)
    latent_dim: int = 50


EFFORTS = {
    "quick": Effort(
        linear=Look(50, 400, 400, AIS(40, chains=12, leapfrog=3)),
        deep=Look(15, 150, 100, AIS(20, chains=6, leapfrog=3)),
        steps=150,
        digits=20,
        mnist=1,
        train=2_000,
        refined=5,
        hidden=(50,),
        latent_dim=10,
    ),
    "cpu": Effort(
        linear=Look(301, 600, 1_000, AIS(100, chains=16, leapfrog=4)),
        deep=Look(100, 500, 1_000, AIS(200, chains=12, leapfrog=6)),
        steps=1_000,
        digits=200,
        mnist=30,
        train=50_000,
        refined=50,
    ),
    "full": Effort(
        linear=Look(301, 1_000, 5_000, AIS(500, chains=32, leapfrog=8)),
        deep=Look(1_000, 2_000, 5_000, AIS(1_000, chains=16, leapfrog=10)),
        steps=5_000,
        digits=1_000,
        mnist=500,
        train=50_000,
        refined=2_000,
    ),
}

MEASURES = (
    Measure("log_marginal", "nats per row", digits=2, text="log p(x), the highest of its estimates"),
    Measure("best", "nats per row", "higher", 2, "the bound of the best q of every row in the guide's family"),
    Measure("elbo", "nats per row", "higher", 2, "the bound of the guide's q"),
    Measure("approximation", "nats per row", "lower", 3, "approximation gap: log_marginal - best"),
    Measure("amortization", "nats per row", "lower", 3, "amortization gap: best - elbo"),
    Measure("held_out_amortization", "nats per row", "lower", 3, "amortization gap of held-out rows"),
    Measure("approximation_se", "nats per row", digits=3, text="Monte Carlo standard error of the approximation gap"),
    Measure("amortization_se", "nats per row", digits=3, text="Monte Carlo standard error of the amortization gap"),
    Measure("closed_approximation", "nats per row", digits=3, text="approximation gap in closed form (linear models)"),
    Measure("closed_amortization", "nats per row", digits=3, text="amortization gap in closed form (linear models)"),
)


def suite(budget: str) -> Suite:
    """The suite ``gaps``."""
    effort = EFFORTS[budget]
    return Suite(
        name="gaps",
        question="Is a bound loose because of the guide's family, or because of amortization?",
        cases=_cases(effort),
        methods=_methods(effort),
        measures=MEASURES,
        measure=partial(measure, effort),
        seeds={"quick": 1, "cpu": 2, "full": 3}[budget],
        budget=budget,
        own=partial(_own, effort),
        claims=partial(claims, brief=budget == "quick"),
        text=TEXT,
        draw=draw,
    )


# Cases.


def _cases(effort: Effort) -> list[Case]:
    linear = [_linear(effort, "iris", PPCA, 2), _linear(effort, "holzinger", FactorAnalysis, 3)]
    return [*linear, _digits(effort), _mnist(effort)]


def _linear(effort: Effort, name: str, kind: type[Linear], latent_dim: int) -> Case:
    """A frozen linear model: its guides are all that is trained."""

    def rows(seed: int) -> Data:
        x = load(name, dtype=torch.float64).x
        return Data(x, x, extra={"frozen": held(kind, latent_dim, x), "hidden": (8,)})

    protocol = {
        "data": f"{name}, all rows, as they are",
        "split": "none: the gaps are of the training rows",
        "model": f"{kind.__name__}, {latent_dim} factors, at its maximum (EM), frozen; loadings rotated by pi/8 from "
        "the principal axes in each plane of neighbouring factors",
        "evaluated": "through draws alone, as a deep model: the closed forms are hidden",
    }
    protocol |= {"training": f"{effort.steps} steps of Adam, rate 0.01, cosine, all rows"}
    return Case(f"{name}, {kind.__name__} {latent_dim}", rows, protocol, data=(name,))


def _digits(effort: Effort) -> Case:
    """scikit-learn's digits, binarised."""
    split = split_rows(1797, DIGITS, seed=0)

    def rows(seed: int) -> Data:
        x = load("digits", dtype=torch.float32).x / 16
        train, validation, test = (x[torch.from_numpy(split[part])] for part in DIGITS)
        return _pixels(train, validation, test, hidden=(64, 64), latent_dim=8, epochs=effort.digits, batch=50)

    protocol = {
        "data": "scikit-learn's digits, values / 16",
        "split": split.record(),
        **_of_pixels(effort.digits, 50, (64, 64), 8),
    }
    return Case("digits", rows, protocol, data=("digits",))


def _mnist(effort: Effort) -> Case:
    """MNIST, binarised."""

    def rows(seed: int) -> Data:
        parts = load_parts("mnist", dtype=torch.float32)
        train, validation, test = parts.train.x[: effort.train], parts.validation.x, parts.test.x
        options = {"hidden": effort.hidden, "latent_dim": effort.latent_dim, "epochs": effort.mnist, "batch": 100}
        return _pixels(train, validation[:2_000], test, **options)

    protocol = {
        "data": f"MNIST, values / 255, the first {effort.train} training rows",
        "split": "training rows 0-49999, validation rows 50000-51999 of the training file; test rows of the test file",
        **_of_pixels(effort.mnist, 100, effort.hidden, effort.latent_dim),
    }
    published: dict[str | tuple[str, str], Published] = {
        (method, measure): Published(value, SOURCE, "amortisation gaps")
        for method, values in (
            (FACTORISED, (-89.80, -91.23, -92.57)),
            (FLOW, (-88.94, -90.38, -91.79)),
        )
        for measure, value in zip(
            ("log_marginal", "best", "elbo", "approximation", "amortization"),
            (*values, round(values[0] - values[1], 2), round(values[1] - values[2], 2)),
            strict=True,
        )
    }
    return Case("mnist", rows, protocol, published, data=("mnist", "mnist-test"))


def _of_pixels(epochs: int, batch: int, hidden: tuple[int, ...], latent_dim: int) -> dict[str, Any]:
    """The protocol of a VAE of pixels."""
    return {
        "binarised": "training rows anew at every step; rows to be measured once, seed 0",
        "model": f"VAE, Bernoulli, hidden {hidden}, {latent_dim} factors, trained anew with every guide",
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": "Adam, rate 0.001, cosine; KL warm-up over the first tenth",
    }


def _pixels(train: Tensor, validation: Tensor, test: Tensor, **extra: Any) -> Data:
    """Rows of pixels: training rows in [0, 1], to be drawn anew, and the others as zeros and ones."""
    validation, test, shown = (
        binarised(x, "fixed", 0, stream=stream) for stream, x in enumerate((validation, test, train))
    )
    return Data(train, test, validation, {"shown": shown, **extra})


# Methods.


@dataclass(frozen=True)
class Training:
    """Trains a guide, with a model where it is not frozen.

    Attributes:
        guide: builds the guide for a model, its rows and the widths of its layers.
        effort: the budget.
        model: a user's model in place of the case's.
    """

    guide: Callable[[Module, Tensor, tuple[int, ...]], Module]
    effort: Effort
    model: ModelMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> Fit:
        torch.manual_seed(cell.seed)
        extra, x = data.extra, data.train
        model = self._model(data)
        guide = self.guide(model, x, extra["hidden"])
        settings: dict[str, Any] = {"seed": cell.seed, "progress": False}
        settings["device"] = None if cell.device == "cpu" else cell.device
        if "epochs" not in extra:
            steps = self.effort.steps
            return fit(model, guide, x, steps=steps, optim=_adam(0.01, steps), **settings)
        settings |= {"batch_size": extra["batch"], "transform": torch.bernoulli}
        epoch = math.ceil(len(x) / extra["batch"])
        steps = extra["epochs"] * epoch
        if takes(guide, x) and not takes(guide, data.test):
            raise DoesNotApply(
                f"{name_of(guide)} has parameters for the training rows alone, and this case measures held-out rows "
                "too: use an amortized guide"
            )
        if isinstance(guide, guides.SemiAmortized):
            return self._in_two_phases(model, guide, data, steps, settings)
        return self._deep(model, guide, data, steps, settings)

    def _model(self, data: Data) -> Module:
        extra, d = data.extra, data.train.shape[1]
        if self.model is not None:
            return self.model(d).to(data.train.dtype)
        if "frozen" in extra:
            frozen: Module = extra["frozen"]
            return frozen
        return VAE(d, extra["latent_dim"], extra["hidden"], likelihood="bernoulli")

    @staticmethod
    def _deep(model: Module, guide: Module, data: Data, steps: int, settings: Mapping[str, Any]) -> Fit:
        """With a warm-up of the KL; the parameters are those of the best bound of validation rows."""
        return fit(
            model,
            guide,
            data.train,
            steps=steps,
            loss=AnnealedELBO(beta=linear_warmup(max(1, steps // 10))),
            optim=_adam(1e-3, steps, CLIP * len(data.train)),
            validation=data.validation,
            every=max(1, steps // 20),
            patience=20,
            **settings,
        )

    def _in_two_phases(
        self, model: Module, guide: guides.SemiAmortized, data: Data, steps: int, settings: Mapping[str, Any]
    ) -> Fit:
        """The proposal first, as an amortized guide; then with its refinement, which costs a hundredfold per step."""
        refinements, guide.steps = guide.steps, 0
        self._deep(model, guide, data, steps, settings)
        guide.steps = refinements
        refined = self.effort.refined
        optim = _adam(3e-4, refined, CLIP * len(data.train))
        return fit(model, guide, data.train, steps=refined, optim=optim, patience=0, **settings)


def takes(guide: PyroCallable, x: Tensor) -> bool:
    """Whether a guide can be called with these rows; one with parameters for every row takes those alone."""
    with torch.no_grad(), pyro.get_param_store().scope(), poutine.block(), mode(False, guide), seeded(0):
        try:
            guide(x)
        except (RuntimeError, IndexError, ValueError):
            return False
    return True


def _adam(rate: float, steps: int, clip: float | None = None) -> Fused:
    return Fused(torch.optim.Adam, {"lr": rate}, schedule=cosine(steps), clip_norm=clip)


def _methods(effort: Effort) -> list[Method]:
    def amortized(covariance: Any) -> Callable[..., Module]:
        return lambda model, x, hidden: guides.Amortized(model, x, hidden, covariance, skip=False)

    makers: dict[str, tuple[Callable[..., Module], dict[str, Any], tuple[str, ...]]] = {
        FACTORISED: (amortized("diag"), {"guide": "Amortized"}, ("Amortized",)),
        FULL: (amortized("full"), {"guide": "Amortized, full covariance"}, ("Amortized",)),
        FLOW: (
            lambda model, x, hidden: guides.Flow(model, x, hidden),
            {"guide": "Flow, 2 inverse autoregressive steps"},
            ("Flow",),
        ),
        SEMI: (
            lambda model, x, hidden: guides.SemiAmortized(model, x, hidden),
            {"guide": "SemiAmortized, 5 steps", "refined_steps": effort.refined},
            ("SemiAmortized",),
        ),
    }
    cite = ("gaps", "AIS", "PPCA", "FactorAnalysis", "VAE")
    return [
        Method(name, Training(make, effort), own, cite=(*more, *cite)) for name, (make, own, more) in makers.items()
    ]


def _own(effort: Effort, own: Own) -> Method:
    """A user's guide with the models of the cases, or with a model of the user's; a model alone has our encoder."""
    if own.guide is None and own.model is None:
        raise ValueError("gaps takes a guide, a model, or both: give --guide or --model")
    given: GuideMaker | None = own.guide

    def make(model: Module, x: Tensor, hidden: tuple[int, ...]) -> Module:
        return guides.Amortized(model, x, hidden, skip=False) if given is None else given(model, x)

    settings = {"guide": "own" if given is not None else "Amortized", "model": "own" if own.model else "the case's"}
    return Method(own.name, Training(make, effort, own.model), settings, cite=("gaps", "AIS"))


# Measures.


def measure(effort: Effort, run: Fit, data: Data, cell: Cell) -> dict[str, float]:
    """The gaps of the first training rows, and the amortization gap of the first held-out rows."""
    frozen: Linear | None = data.extra.get("frozen")
    linear = frozen if undecorated(run.model) is frozen else None
    pair = run if linear is None else replace(run, model=Undisclosed(linear))
    per_row = data.extra.get("shown") is None
    look = effort.linear if per_row else effort.deep
    device = next(run.model.parameters()).device if isinstance(run.model, Module) else "cpu"
    shown = (data.train if per_row else data.extra["shown"])[: look.rows].to(device)
    if per_row and not takes(run.guide, shown):
        shown = data.train.to(device)  # a guide with parameters for every row
    found = _gaps(look, pair, shown, cell.seed)
    closed = (math.nan, math.nan) if linear is None else known_gaps(linear, run.guide, shown)
    held_out = math.nan
    if not per_row:
        held_out = _gaps(look, pair, data.test[: look.rows].to(device), cell.seed, evidence=False)["amortization"]
    return {
        **found,
        "closed_approximation": closed[0],
        "closed_amortization": closed[1],
        "held_out_amortization": held_out,
    }


def _gaps(look: Look, run: Fit, x: Tensor, seed: int, evidence: bool = True) -> dict[str, float]:
    """log p(x) by the highest of its estimates, the best bound and the guide's; no best one for an unknown family."""
    names = ("log_marginal", "best", "elbo", "approximation", "amortization", "approximation_se", "amortization_se")
    row = dict.fromkeys(names, math.nan)
    ais = look.ais if evidence else None
    try:
        found = gaps(run, x, steps=look.search, draws=look.draws, ais=ais, seed=seed)
    except NoLocalFamily:
        bounds = log_evidence_bounds(run, x, draws=(look.draws,), ais=ais, seed=seed)
        return row | {"log_marginal": _highest(bounds.rungs[1:]).mean, "elbo": bounds["ELBO"].mean}
    estimates = [Bound(found.estimator, found.log_marginal, found.log_marginal_se)]
    if evidence:
        estimates += log_evidence_bounds(run, x, draws=(look.draws,), seed=seed).rungs[1:]
    top, own = _highest(estimates), found.summary()
    return row | {
        "log_marginal": top.mean,
        "best": own["best"],
        "elbo": own["elbo"],
        "approximation": top.mean - own["best"],
        "amortization": own["amortization"],
        "approximation_se": math.hypot(top.mean_se, own["best_se"]),
        "amortization_se": own["amortization_se"],
    }


def _highest(estimates: Sequence[Bound]) -> Bound:
    """The exact log p(x) if it is among them, else the highest on average: all others are lower bounds."""
    return max(estimates, key=lambda bound: (bound.name == "exact", bound.mean))
