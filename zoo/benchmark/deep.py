"""Deep latent factor models on data with published numbers, every row with its whole protocol."""

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
from zoo.base.schedules import cosine
from zoo.benchmark.rows import Rows
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.optim.fused import Fused
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.vae import VAE
from zoo.posterior.evidence import log_evidence_bounds
from zoo.posterior.rates import rate_distortion


@dataclass(frozen=True)
class Budget:
    """How long to train, and how closely to look.

    Attributes:
        epochs: the most passes over the training rows.
        patience: epochs without a better held-out bound after which training stops; None trains on to the end.
        draws: K of the importance-weighted bound.
        rows: test rows that take part, the first ones.
    """

    epochs: int
    patience: int | None
    draws: int
    rows: int


@dataclass(frozen=True)
class Protocol:
    """A model on a data set, and all that it takes to repeat the number.

    Attributes:
        name: what the table calls it.
        split: gives training, validation and test rows (n, d).
        rows: the split in words.
        model: options of :class:`zoo.VAE`.
        latent_dim: number of factors.
        guide: options of :class:`guides.Amortized`.
        batch: rows per step.
        rate: Adam's learning rate, which falls to zero along half a cosine.
        warm_up: the share of the epochs over which the KL term's weight rises from 0 to 1.
        binarised: ``"dynamic"`` draws every pixel anew at every step; None takes the values as they are.
        budgets: by name.
        published: log p(x) per row in nats that a paper gives for this protocol, or None.
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
    """50,000 training rows, the last 10,000 of the training file for validation, 10,000 test rows; grey in [0, 1]."""
    x = data.load("mnist", dtype=torch.float32).x
    return x[:50_000], x[50_000:], data.load("mnist-test", dtype=torch.float32).x


def _parts(name: str) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A table in three random parts, always the same: 60, 20 and 20 percent of the rows.

    Columns that are constant in the training rows have no density, and are left out.
    """

    def split() -> tuple[Tensor, Tensor, Tensor]:
        whole = data.load(name, dtype=torch.float32)
        rest, test = whole.split(test=0.2, seed=0)
        train, valid = rest.split(test=0.25, seed=0)
        kept = train.x.amax(0) > train.x.amin(0)
        return train.x[:, kept], valid.x[:, kept], test.x[:, kept]

    return split


CLIP = 200.0  # of the gradient's norm per row: some three times the usual, so that only a leap is cut
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


def deep(
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    budget: str = "quick",
    only: str | None = None,
    device: str | None = None,
    progress: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pl.DataFrame:
    """Train the deep models of :data:`DEEP` and measure them on held-out rows.

    Every finished row is kept in ``rows.jsonl`` in the folder, and its run, with its curve, under ``runs``; rows found
    there are not run again. At the end ``table.csv``, ``table.md`` and ``table.nc`` are written.

    Args:
        folder: where rows and runs are kept; made if it is not there.
        seeds: one run of every protocol per seed.
        budget: ``"quick"`` (a minute or so each, to see that all works), ``"cpu"`` (up to half an hour each on two
            cores) or ``"full"`` (the published number of epochs; for a GPU). It stands in every row.
        only: part of a protocol's name, to run a few of them.
        device: where to train, as ``"cuda"``.
        progress: show progress bars.
        report: called with every new row.

    Returns:
        one row per protocol and seed: the bounds on held-out rows in nats per row with their standard errors, what the
        published number is, and the protocol.

    Raises:
        ValueError: no protocol or budget of that name.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}; got {budget!r}")
    chosen = [p for p in DEEP if only is None or only.lower() in p.name.lower()]
    if not chosen:
        raise ValueError(f"no protocol has {only!r} in its name: there are {', '.join(p.name for p in DEEP)}")
    rows = Rows(folder)
    done = {(row["case"], row["budget"], row["seed"]) for row in rows}
    for protocol in chosen:
        for seed in seeds:
            if (protocol.name, budget, seed) in done:
                continue
            place = rows.folder / "runs" / _slug(f"{protocol.name} {budget} {seed}")
            shutil.rmtree(place, ignore_errors=True)  # of an interrupted benchmark
            row = _row(protocol, budget, check_whole(seed, "seed", 0), place, device, progress)
            rows.append(row)
            report(row)
    return rows.write(markdown)


def _row(p: Protocol, name: str, seed: int, place: Path, device: str | None, progress: bool) -> dict[str, Any]:
    budget = p.budgets[name]
    train, valid, test = p.split()
    n, d = train.shape
    torch.manual_seed(seed)
    model = VAE(d, p.latent_dim, **p.model)
    guide = guides.Amortized(model, train, **p.guide)
    epoch = math.ceil(n / p.batch)
    steps = budget.epochs * epoch
    look = max(1, budget.epochs // 100)  # epochs between two looks at the validation rows
    started = time.perf_counter()
    run = fit(
        model,
        guide,
        train,
        steps=steps,
        batch_size=p.batch,
        loss=AnnealedELBO(beta=linear_warmup(max(1, round(p.warm_up * steps))) if p.warm_up else 1.0),
        optim=Fused(torch.optim.Adam, {"lr": p.rate}, schedule=cosine(steps), clip_norm=CLIP * n),
        seed=seed,
        device=device,
        validation=valid,
        every=look * epoch,
        patience=None if budget.patience is None else max(1, budget.patience // look),
        transform=torch.bernoulli if p.binarised else None,
        checkpoint=place,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    plots.save(plots.loss(run), place / "curve.png")
    held_out = test[: budget.rows].to(run.settings["device"])
    if p.binarised:
        held_out = torch.bernoulli(held_out, generator=torch.Generator(held_out.device).manual_seed(0))
    bounds = log_evidence_bounds(run, held_out, draws=(budget.draws,), seed=seed)
    top = bounds[f"IWAE-{budget.draws}"]
    factors = rate_distortion(run, held_out, seed=seed)
    return {
        "case": p.name,
        "budget": name,
        "seed": seed,
        "elbo": bounds["ELBO"].mean,
        "iwae": top.mean,
        "iwae_se": top.mean_se,
        "draws": budget.draws,
        "test_rows": len(held_out),
        "published": math.nan if p.published is None else p.published,
        "source": p.source,
        "factor_analysis": math.nan if p.binarised else _linear(train, held_out, p.latent_dim),
        "rate": factors.rate,
        "distortion": factors.distortion,
        "active_units": int(factors.active.sum()),
        "seconds": seconds,
        "epochs": len(run.losses) / epoch,
        "best_epoch": run.settings["best_step"] / epoch,
        "device": run.settings["device"],
        "split": p.rows,
        "binarised": p.binarised or "no",
        "floor": getattr(model, "floor", math.nan),
        "at_floor": run.settings.get("at_floor", math.nan),
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
    """A name fit for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _linear(train: Tensor, test: Tensor, latent_dim: int) -> float:
    """The held-out log-likelihood per row of factor analysis with as many factors, as a yardstick."""
    model = FactorAnalysis(train.shape[1], latent_dim).double()
    em(model, train.double())
    with torch.no_grad():
        return float(model.log_marginal(test.double()).mean())


def markdown(table: pl.DataFrame) -> str:
    """The table for people: bounds beside what is published, with the protocol in short."""
    lines = [
        "Held-out nats per row; IWAE-K is a lower bound on log p(x), with the standard error of its draws.",
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
