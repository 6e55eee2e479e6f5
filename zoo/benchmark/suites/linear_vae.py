"""Posterior collapse of the linear VAE, beside the closed forms of PPCA (Lucas et al. 2019).

Minutes: quick 1 on one core, cpu 15 on two, full 20 on a GPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import guides
from zoo.base.module import Module
from zoo.base.moments import Moments
from zoo.base.protocols import Conjugate, LinearGaussian
from zoo.base.schedules import cosine
from zoo.benchmark.spectra import SIMULATED, WINE, Table, eigenvalues, noise_below, optimum, pixels
from zoo.benchmark.suite import Case, Cell, Claim, Data, GuideMaker, Measure, Method, ModelMaker, Own, Suite
from zoo.infer.fitting import fit
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.ppca import PPCA
from zoo.plots.style import MARKERS, PALETTE, TEXT, legend_above, new_axes
from zoo.posterior.evaluation import evaluate
from zoo.posterior.psis import LEAST
from zoo.posterior.rates import rate_distortion

CLOSED, DEFAULT = "PPCA, closed form", "linear VAE, default fit"
ANALYTIC, ONE_DRAW = "linear VAE, analytic bound, Adam", "linear VAE, one draw, Adam"
SHOWN = 2_000  # rows at most of which rate and active units are computed, at a cost of their square
RATE = 0.01  # Adam's initial learning rate, decayed to 0 by a cosine schedule
SLOW = 0.003  # the same for minibatches, whose noise keeps units alive at a higher rate, for twice as many steps


def suite(budget: str) -> Suite:
    """The suite ``linear-vae``."""
    tables: tuple[Table, ...] = (SIMULATED, WINE)
    if budget == "quick":
        tables = (replace(SIMULATED, above=(0, 2, 6, 9)), replace(WINE, above=(1, 3)))
    else:
        tables = (*tables, pixels(10_000 if budget == "cpu" else 60_000))
    steps = {"quick": 1_000, "cpu": 4_000, "full": 10_000}[budget]
    return Suite(
        name="linear-vae",
        question="Which factors collapse: those whose eigenvalue is below the noise variance, and no others?",
        cases=[_case(table, above) for table in tables for above in (*table.above, None)],
        methods=_methods(steps),
        measures=MEASURES,
        measure=measure,
        seeds={"quick": 1, "cpu": 3, "full": 5}[budget],
        budget=budget,
        own=partial(_own, steps),
        claims=claims,
        text=TEXT_OF_PAGE,
        draw=draw,
    )


MEASURES = (
    Measure("collapsed", "units", digits=0, text="units whose posterior mean has a variance below 0.01 over the rows"),
    Measure("expected", "units", digits=0, text="eigenvalues, among the K largest, that do not exceed the noise"),
    Measure("elbo", "nats per row", "higher", 4, "the evidence lower bound"),
    Measure("log_marginal", "nats per row", "higher", 4, "log p(x) of the fitted model, exact"),
    Measure("distance", "nats per row", "lower", 6, "the maximum of log p(x), in closed form, minus the bound"),
    Measure("unit_kl_error", "nats", "lower", 4, "largest difference of a unit's KL from log(eigenvalue / noise) / 2"),
    Measure("noise", "variance", digits=4, text="the noise variance of the fitted model"),
    Measure("expected_noise", "variance", digits=4, text="that of PPCA's maximum, or the fixed one"),
)


def _case(table: Table, above: int | None) -> Case:
    """A table with a fixed noise variance, or with a learned one where ``above`` is None."""

    def rows(seed: int) -> Data:
        x = table.rows()
        values = eigenvalues(x)
        noise = math.nan if above is None else noise_below(values, above)
        dtype = torch.float64 if table.batch is None else torch.float32
        extra = {"values": values, "noise": noise, "latent_dim": table.latent_dim, "batch": table.batch}
        return Data(x.to(dtype), x.to(dtype), extra=extra | {"exact": x})

    name = "learned noise" if above is None else f"{above} eigenvalues above the noise"
    how = "learned" if above is None else f"fixed between eigenvalues {above} and {above + 1} (geometric mean)"
    protocol = {
        "rows": table.source or "simulated with eigenvalues 16 * 0.75^j, seed 0",
        "split": "none: the bound is of the training rows",
        "latent_dim": table.latent_dim,
        "noise": how,
        "batch_size": table.batch or "all rows",
    }
    known = () if table.name == "simulated" else (table.name,)
    return Case(f"{table.name}, {name}", rows, protocol, data=known)


def _model(data: Data) -> PPCA:
    noise = data.extra["noise"]
    fixed = None if math.isnan(noise) else noise
    return PPCA(data.train.shape[1], data.extra["latent_dim"], noise=fixed).to(data.train.dtype)


def closed_form(data: Data, cell: Cell) -> Fit:
    """PPCA at its maximum by eigenvectors, with its posterior."""
    model = _model(data).double()
    model.maximize(Moments.of(data.extra["exact"]))
    return Fit(model, guides.Exact(model))


def encoder(model: Module, x: Tensor) -> Module:
    """The linear encoder: means affine in the row, one diagonal covariance for all rows."""
    return guides.Amortized(model, x, hidden=())


@dataclass(frozen=True)
class Trained:
    """Trains a linear VAE from a random start; an optimizer of None leaves loss and search to :func:`zoo.fit`."""

    guide: GuideMaker = encoder
    loss: Callable[[], Any] | None = None
    steps: int | None = None
    model: ModelMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> Fit:
        torch.manual_seed(cell.seed)
        x = data.train
        model: Module = _model(data) if self.model is None else self.model(x.shape[1]).to(x.dtype)
        settings: dict[str, Any] = {}
        if self.loss is not None:
            assert self.steps is not None
            batch = data.extra["batch"]
            rate, steps = (RATE, self.steps) if batch is None else (SLOW, 2 * self.steps)
            optim = Fused(torch.optim.Adam, {"lr": rate}, schedule=cosine(steps))
            settings = {"loss": self.loss(), "steps": steps, "optim": optim, "batch_size": batch}
        device = None if cell.device == "cpu" else cell.device
        guide = self.guide(model, x)
        return fit(model, guide, x, start="random", seed=cell.seed, device=device, progress=False, **settings)


def _protocol(steps: int) -> dict[str, Any]:
    """The settings of Adam."""
    how = f"Adam, rate {RATE}, cosine; on minibatches rate {SLOW}, twice the steps"
    return {"optimizer": how, "steps": steps, "start": "random"}


def _methods(steps: int) -> list[Method]:
    settings = _protocol(steps)
    cite = ("PPCA", "Amortized")
    return [
        Method(CLOSED, closed_form, {"solution": "eigenvectors of the covariance"}, cite=("PPCA",)),
        Method(DEFAULT, Trained(), {"settings": "defaults of zoo.fit", "start": "random"}, cite=cite),
        Method(
            ANALYTIC,
            Trained(loss=QuadratureELBO, steps=steps),
            {**settings, "loss": "QuadratureELBO, exact here"},
            cases=lambda case: case.data != ("mnist",),  # K + 1 points per row: too long
            cite=cite,
        ),
        Method(
            ONE_DRAW,
            Trained(loss=Trace_ELBO, steps=steps),
            {**settings, "loss": "Trace_ELBO, one draw"},
            cite=cite,
        ),
    ]


def _own(steps: int, own: Own) -> Method:
    """A user's guide with PPCA, fixed and learned noise; or a user's model, whose noise is its own affair."""
    if own.guide is None and own.model is None:
        raise ValueError("linear-vae takes a guide, or a model and a guide: give --guide")
    train = Trained(own.guide or encoder, Trace_ELBO, steps, own.model)

    def learned(case: Case) -> bool:
        return own.model is None or case.protocol["noise"] == "learned"

    settings = {"loss": "Trace_ELBO, one draw"} | _protocol(steps)
    return Method(own.name, train, settings, cases=learned)


def measure(run: Fit, data: Data, cell: Cell) -> Mapping[str, float]:
    """Collapsed units, bound and exact log p(x) beside their closed forms."""
    noise, top, unit_kl = optimum(data.extra["values"], data.extra["latent_dim"], data.extra["noise"])
    device = run.settings.get("device", "cpu") if run.training is not None else "cpu"
    x = data.train.to(device)
    found = rate_distortion(run, x[:SHOWN], draws=2, seed=cell.seed)
    bound = evaluate(run, x, draws=LEAST, seed=cell.seed).summary()  # in closed form for a Gaussian guide
    model = run.model
    elbo = bound["elbo"]
    own = float(model.noise.detach().double().mean()) if isinstance(model, LinearGaussian) else math.nan
    kl = found.unit_kl
    values = data.extra["values"][: data.extra["latent_dim"]]
    return {
        "collapsed": float(len(found.collapsed)),
        "expected": float((values <= noise).sum()),
        "elbo": elbo,
        "log_marginal": bound["log_marginal"] if isinstance(model, Conjugate) else math.nan,
        "distance": top - elbo,
        "unit_kl_error": _furthest(kl, unit_kl) if len(x) <= SHOWN else math.nan,
        "noise": own,
        "expected_noise": noise,
    }


def _furthest(kl: Tensor | None, expected: Tensor) -> float:
    """The largest difference between sorted KLs; NaN where they are unknown, or of another number of units."""
    if kl is None or len(kl) != len(expected):
        return math.nan
    return float((kl.double().cpu().sort().values - expected.sort().values).abs().max())


def claims(table: pl.DataFrame) -> Sequence[Claim]:
    """Lucas et al.: collapsed units are the eigenvalues below the noise; at the optimum the bound is log p(x)."""
    ours = (CLOSED, DEFAULT, ANALYTIC, ONE_DRAW)
    done = table.filter((pl.col("status") == "done") & pl.col("method").is_in(ours))
    fixed = done.filter(~pl.col("case").str.contains("learned"))
    learned = done.filter(pl.col("case").str.contains("learned"))
    return [
        _equal("With a fixed noise variance, as many units collapse as eigenvalues do not exceed it", fixed),
        _equal("With a learned noise variance no unit collapses", learned),
        _tight(done),
    ]


def _equal(text: str, rows: pl.DataFrame) -> Claim:
    """Whether collapsed and expected units agree in every row."""
    if not len(rows):
        return Claim(text, None, "no finished rows")
    wrong = rows.filter(pl.col("collapsed") != pl.col("expected"))
    figures = f"{len(rows) - len(wrong)} of {len(rows)} runs agree"
    for row in wrong.head(5).iter_rows(named=True):
        figures += f"; {row['case']}, {row['method']}, seed {row['seed']}: {row['collapsed']:g} of {row['expected']:g}"
    return Claim(text, not len(wrong), figures)


def _tight(rows: pl.DataFrame) -> Claim:
    """Whether the bound of fits without noise reaches the maximum of log p(x)."""
    text = "The linear VAE's highest bound is PPCA's maximum likelihood, although q is factorised"
    exact = rows.filter(pl.col("method") == DEFAULT)
    if not len(exact):
        return Claim(text, None, "no finished rows")
    furthest = float(exact["distance"].abs().max())  # type: ignore[arg-type]
    return Claim(text, furthest < 1e-3, f"largest distance {furthest:.1e} nats per row in {len(exact)} default fits")


def draw(table: pl.DataFrame) -> Any:
    """Collapsed units against the eigenvalues below the noise, one point per case and method."""
    done = table.filter(pl.col("status") == "done")
    ax = new_axes(None, (4.5, 3.2))
    top = float(done["expected"].max()) + 0.5  # type: ignore[arg-type]
    ax.plot([-0.5, top], [-0.5, top], color="#888888", linewidth=0.8, zorder=0)
    methods = done["method"].unique(maintain_order=True).to_list()
    for number, method in enumerate(methods):
        own = done.filter(pl.col("method") == method)
        shift = 0.12 * (number - (len(methods) - 1) / 2)  # side by side, as they agree
        ax.plot(
            own["expected"].to_numpy() + shift,
            own["collapsed"].to_numpy(),
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            markersize=4,
            label=method,
        )
    ax.set_xlabel("eigenvalues not above the noise variance", fontsize=TEXT)
    ax.set_ylabel("collapsed units", fontsize=TEXT)
    legend_above(ax)
    return ax.get_figure()


TEXT_OF_PAGE = """\
A linear VAE is probabilistic PCA with a linear encoder whose covariance is diagonal and the same for all rows. Lucas,
Tucker, Grosse and Norouzi (2019) show that its bound has the same maxima as PPCA's likelihood, that a factor collapses
(its posterior is the prior) exactly where the eigenvalue of the data's covariance does not exceed the noise variance,
and that this is a matter of the noise variance and not of the bound: learned, it becomes the mean of the eigenvalues
left out, which is below all those kept, and no factor collapses.

Every case is a table of rows with a noise variance, fixed between two eigenvalues or learned (that of PPCA, in closed
form, is `expected_noise`). A unit has collapsed if its posterior mean varies by less than 0.01 over the rows (Burda et
al. 2016); at the optimum that variance is 1 - noise / eigenvalue, or 0, and the unit's KL from the prior is
log(eigenvalue / noise) / 2, or 0. `distance` is the maximum of log p(x) in closed form minus the bound that was
reached. All runs but the closed form start at random.

A guide with a full covariance reaches the same log p(x), but its factors may have any rotation: then all units may be
active although the model uses fewer dimensions.
"""
