"""Deep latent factor models on data with published results; every row records its whole protocol."""

import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

import guides
from zoo import data, plots
from zoo.base.checks import check_whole
from zoo.base.protocols import Floored
from zoo.base.schedules import cosine
from zoo.benchmark.rows import Rows
from zoo.infer.deep_defaults import CLIP
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.optim.fused import Fused
from zoo.infer.run import Fit
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.vae import VAE
from zoo.posterior.evidence import log_evidence_bounds
from zoo.posterior.rates import rate_distortion


@dataclass(frozen=True)
class Budget:
    """The length of training, and the effort of evaluation.

    Attributes:
        epochs: the maximum number of passes over the training rows.
        patience: epochs without a better ELBO on validation rows after which training stops; None trains to the end.
        draws: K of the importance-weighted bound.
        rows: the number of test rows, the first ones.
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
        split: returns training, validation and test rows (n, d).
        rows: the split in words.
        model: options of :class:`zoo.VAE`.
        latent_dim: number of factors.
        guide: options of :class:`guides.Amortized`.
        batch: rows per step.
        rate: Adam's initial learning rate, decayed to zero by a cosine schedule.
        warm_up: the fraction of the epochs over which the weight of the KL term rises from 0 to 1.
        binarised: ``"dynamic"`` draws every pixel anew at every step; None takes the values as they are.
        budgets: by name.
        published: the published log p(x) per row in nats for this protocol, or None.
        source: of the published number.
    """

    name: str
    split: Callable[[], tuple[Tensor, Tensor, Tensor]]
    rows: str
    model: dict[str, Any]
    latent_dim: int
    guide: dict[str, Any]
    batch: int
    rate: float
    warm_up: float
    binarised: str | None
    budgets: dict[str, Budget]
    published: float | None = None
    source: str = ""


def mnist() -> tuple[Tensor, Tensor, Tensor]:
    """50,000 training rows, the last 10,000 of the training file for validation, 10,000 test rows; values in [0, 1]."""
    x = data.load("mnist", dtype=torch.float32).x
    return x[:50_000], x[50_000:], data.load("mnist-test", dtype=torch.float32).x


def _parts(name: str) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A table split at random, with a fixed seed, into 60, 20 and 20 percent of the rows.

    Columns that are constant in the training rows have no density and are left out.
    """

    def split() -> tuple[Tensor, Tensor, Tensor]:
        whole = data.load(name, dtype=torch.float32)
        rest, test = whole.split(test=0.2, seed=0)
        train, valid = rest.split(test=0.25, seed=0)
        kept = train.x.amax(0) > train.x.amin(0)
        return train.x[:, kept], valid.x[:, kept], test.x[:, kept]

    return split


PIXELS = {"likelihood": "bernoulli"}
DEEP = (
    Protocol(
        name="MNIST 784-[200,200]-50",
        split=mnist,
        rows="50,000 / 10,000 / 10,000",
        model=PIXELS | {"hidden": (200, 200)},
        latent_dim=50,
        guide={"hidden": (200, 200)},
        batch=100,
        rate=2e-3,
        warm_up=0.1,
        binarised="dynamic",
        budgets={
            "quick": Budget(epochs=3, patience=None, draws=100, rows=500),
            "cpu": Budget(epochs=200, patience=None, draws=500, rows=10_000),
            "full": Budget(epochs=2000, patience=None, draws=5000, rows=10_000),
        },
        published=-86.76,
        source="Burda, Grosse and Salakhutdinov (2016), VAE with k = 1, one stochastic layer; batch 20, 3280 epochs",
    ),
    Protocol(
        name="MNIST gated 784-[300,300]-40",
        split=mnist,
        rows="50,000 / 10,000 / 10,000",
        model=PIXELS | {"hidden": (300, 300), "gated": True},
        latent_dim=40,
        guide={"hidden": (300, 300), "gated": True},
        batch=100,
        rate=5e-4,
        warm_up=0.05,
        binarised="dynamic",
        budgets={
            "quick": Budget(epochs=3, patience=None, draws=100, rows=500),
            "cpu": Budget(epochs=100, patience=50, draws=500, rows=10_000),
            "full": Budget(epochs=2000, patience=50, draws=5000, rows=10_000),
        },
        published=-84.5,
        source="Tomczak and Welling (2018), standard prior, 84.45 to 84.50",
    ),
    Protocol(
        name="digits 61-[64,64]-8",
        split=_parts("digits"),
        rows="60% / 20% / 20%",
        model={"hidden": (64, 64), "floor": 0.01},
        latent_dim=8,
        guide={"hidden": (64, 64)},
        batch=50,
        rate=2e-3,
        warm_up=0.04,
        binarised=None,
        budgets={
            "quick": Budget(epochs=20, patience=10, draws=100, rows=1000),
            "cpu": Budget(epochs=500, patience=50, draws=5000, rows=1000),
            "full": Budget(epochs=500, patience=50, draws=5000, rows=1000),
        },
    ),
    Protocol(
        name="breast_cancer 30-[32]-5",
        split=_parts("breast_cancer"),
        rows="60% / 20% / 20%",
        model={"hidden": (32,), "floor": 0.01, "covariance": "low_rank", "rank": 5},
        latent_dim=5,
        guide={"hidden": (32,), "covariance": "full"},
        batch=50,
        rate=2e-3,
        warm_up=0.04,
        binarised=None,
        budgets={
            "quick": Budget(epochs=50, patience=20, draws=100, rows=1000),
            "cpu": Budget(epochs=1000, patience=100, draws=5000, rows=1000),
            "full": Budget(epochs=1000, patience=100, draws=5000, rows=1000),
        },
    ),
)
BUDGETS = ("quick", "cpu", "full")


def benchmark_deep(
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    budget: str = "quick",
    only: str | None = None,
    device: str | None = None,
    progress: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pl.DataFrame:
    """Train the deep models of :data:`DEEP` and evaluate them on test rows.

    Finished rows are appended to ``rows.jsonl`` in the folder and not run again; runs with their loss curves are saved
    under ``runs``. At the end ``table.csv``, ``table.md`` and ``table.nc`` are written.

    Args:
        folder: for rows, runs and tables; created if necessary.
        seeds: one run of every protocol per seed.
        budget: ``"quick"`` (about a minute each, a smoke test), ``"cpu"`` (up to half an hour each on two cores) or
            ``"full"`` (the published number of epochs, for a GPU). Recorded in every row.
        only: run only protocols with this text in their names.
        device: to train on, such as ``"cuda"``.
        progress: show progress bars.
        report: called with every new row.

    Returns:
        one row per protocol and seed: bounds on test rows in nats per row with standard errors, the published result,
        and the protocol.

    Raises:
        ValueError: there is no such protocol or budget.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}; got {budget!r}")
    chosen = [p for p in DEEP if only is None or only.lower() in p.name.lower()]
    if not chosen:
        raise ValueError(f"no protocol has {only!r} in its name: choose from {', '.join(p.name for p in DEEP)}")
    rows = Rows(folder)
    done = {(row["case"], row["budget"], row["seed"]) for row in rows}
    for protocol in chosen:
        for seed in seeds:
            if (protocol.name, budget, seed) in done:
                continue
            place = rows.folder / "runs" / _slug(f"{protocol.name} {budget} {seed}")
            shutil.rmtree(place, ignore_errors=True)  # left by an interrupted benchmark
            row = _row(protocol, budget, check_whole(seed, "seed", 0), place, device, progress)
            rows.append(row)
            report(row)
    return rows.write(markdown)


def _row(p: Protocol, name: str, seed: int, place: Path, device: str | None, progress: bool) -> dict[str, Any]:
    """Train a model by its protocol, and evaluate it on test rows."""
    budget = p.budgets[name]
    train, valid, test = p.split()
    torch.manual_seed(seed)
    model = VAE(train.shape[1], p.latent_dim, **p.model)
    guide = guides.Amortized(model, train, **p.guide)
    started = time.perf_counter()
    run = _train(p, budget, model, guide, (train, valid), seed, place, device, progress)
    seconds = time.perf_counter() - started
    plots.save(plots.loss(run), place / "curve.png")
    test = test[: budget.rows].to(run.settings["device"])
    if p.binarised:
        test = torch.bernoulli(test, generator=torch.Generator(test.device).manual_seed(0))
    epoch = math.ceil(len(train) / p.batch)
    return {
        "case": p.name,
        "budget": name,
        "seed": seed,
        **_measured(p, budget, run, train, test, seed),
        "seconds": seconds,
        "epochs": len(run.losses) / epoch,
        "best_epoch": run.settings["best_step"] / epoch,
        "device": run.settings["device"],
        "floor": model.floor if isinstance(model, Floored) else math.nan,
        "at_floor": run.settings.get("at_floor", math.nan),
        **_settings(p, budget),
    }


def _train(
    p: Protocol,
    budget: Budget,
    model: VAE,
    guide: guides.Amortized,
    rows: tuple[Tensor, Tensor],
    seed: int,
    place: Path,
    device: str | None,
    progress: bool,
) -> Fit:
    """The fit to training and validation rows."""
    train, valid = rows
    epoch = math.ceil(len(train) / p.batch)
    steps = budget.epochs * epoch
    look = max(1, budget.epochs // 100)  # epochs between two evaluations on validation rows
    return fit(
        model,
        guide,
        train,
        steps=steps,
        batch_size=p.batch,
        loss=AnnealedELBO(beta=linear_warmup(max(1, round(p.warm_up * steps))) if p.warm_up else 1.0),
        optim=Fused(torch.optim.Adam, {"lr": p.rate}, schedule=cosine(steps), clip_norm=CLIP * len(train)),
        seed=seed,
        device=device,
        validation=valid,
        every=look * epoch,
        patience=None if budget.patience is None else max(1, budget.patience // look),
        transform=torch.bernoulli if p.binarised else None,
        checkpoint=place,
        progress=progress,
    )


def _measured(p: Protocol, budget: Budget, run: Fit, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Bounds, rate and distortion on test rows, and the published result."""
    bounds = log_evidence_bounds(run, test, draws=(budget.draws,), seed=seed)
    tightest = bounds[f"IWAE-{budget.draws}"]
    factors = rate_distortion(run, test, seed=seed)
    return {
        "elbo": bounds["ELBO"].mean,
        "iwae": tightest.mean,
        "iwae_se": tightest.mean_se,
        "draws": budget.draws,
        "test_rows": len(test),
        "published": math.nan if p.published is None else p.published,
        "source": p.source,
        "factor_analysis": math.nan if p.binarised else _linear(train, test, p.latent_dim),
        "rate": factors.rate,
        "distortion": factors.distortion,
        "active_units": int(factors.active.sum()),
    }


def _settings(p: Protocol, budget: Budget) -> dict[str, Any]:
    """The protocol as columns of the table."""
    return {
        "split": p.rows,
        "binarised": p.binarised or "no",
        "latent_dim": p.latent_dim,
        "model": str(p.model),
        "guide": str(p.guide),
        "batch": p.batch,
        "learning_rate": p.rate,
        "clip_norm_per_row": CLIP,
        "warm_up_epochs": p.warm_up * budget.epochs,
        "budget_of": str(asdict(budget)),
    }


def _slug(name: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _linear(train: Tensor, test: Tensor, latent_dim: int) -> float:
    """The test log-likelihood per row of factor analysis with as many factors, for comparison."""
    model = FactorAnalysis(train.shape[1], latent_dim).double()
    em(model, train.double())
    with torch.no_grad():
        return float(model.log_marginal(test.double()).mean())


def markdown(table: pl.DataFrame) -> str:
    """The table in Markdown: bounds and published results, with the main settings."""
    lines = [
        "Test rows, nats per row; IWAE-K is a lower bound on log p(x), with its Monte Carlo standard error.",
        "",
        "| case | budget | seed | ELBO | IWAE-K | K | published | factor analysis | active | epochs | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.iter_rows(named=True):
        number = [f"{row[key]:.2f}" if math.isfinite(row[key]) else "-" for key in ("published", "factor_analysis")]
        lines.append(
            f"| {row['case']} | {row['budget']} | {row['seed']} | {row['elbo']:.2f} | {row['iwae']:.2f} "
            f"({row['iwae_se']:.1g}) | {row['draws']} | {number[0]} | {number[1]} | "
            f"{row['active_units']} of {row['latent_dim']} | {row['epochs']:.0f} | {row['seconds'] / 60:.1f} |"
        )
    sources = table.filter(pl.col("source") != "").select("case", "source").unique(maintain_order=True)
    lines += ["", *(f"Published for {case}: {source}." for case, source in sources.iter_rows()), ""]
    return "\n".join(lines)
