"""The page of the suite ``aevb``: its claims, checked on the table, its text and its figure."""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zoo.benchmark.suite import Claim
from zoo.plots.style import PALETTE
from zoo.plots.style import TEXT as SMALL

METHODS = ("AEVB", "wake-sleep")
PARTS = ("held_out", "train")
FIRST = 100_000  # training samples, where the published curves begin
TEXT = """Kingma and Welling (2014) compare auto-encoding variational Bayes (AEVB) with the wake-sleep algorithm, which
trains the same pair of networks: the encoder on rows that the decoder dreams instead of by the bound.

- **MNIST**: 50,000 rows, binarised anew at every step; decoder and encoder with one layer of 500 tanh units each;
  Bernoulli pixels.
- **Frey's faces**: four fifths of 1,965 frames for training, held-out frames at random, so that each has a neighbour in
  time among the training rows; 200 tanh units; Gaussian pixels whose mean and variance depend on z. The floor under the
  variance of a pixel is 0.01 of its variance in the data: without one the bound has no maximum. About a quarter of the
  variances end there under AEVB, so that the level of the curves depends on it.
- Minibatches of 100 rows, one draw per row, the KL in closed form for AEVB. At the budget `full` by Adagrad from
  weights of variance 0.01, as published; at `cpu` by Adam with a decaying rate, the same for both
  methods, which ends higher after few samples. The paper's prior on the weights is left out.
- The **marginal likelihood** of small models (100 hidden units, 3 latents) along the training, for 1,000 and for 50,000
  training rows: the tighter of the importance-weighted bound and annealed importance sampling, which start from the
  encoder, in place of the paper's estimator by Hamiltonian Monte Carlo. With few rows an encoder trained by the bound
  overfits: held-out rows have a looser bound (`held_out`, `iwae`) under a decoder that is none the worse. Monte Carlo
  EM, the paper's third method there, is left out.

Higher is better in every column. The table shows the last point of each curve.
"""


def claims(table: pl.DataFrame, *, budget: str) -> list[Claim]:
    """What the paper states about its figures."""
    done = table.filter(pl.col("status") == "done")
    found = [_order(done, "MNIST", (3, 5, 10, 20)), _close(done), _above(done, "MNIST, N_z")]
    found += [_order(done, "Frey faces", (2, 5, 10, 20)), _above(done, "Frey"), _evidence(done)]
    if budget == "quick":
        return [Claim(claim.text, None, claim.figures) for claim in found]
    return found


def ends(table: pl.DataFrame, method: str, measure: str) -> dict[str, float]:
    """The last value of a measure by case, the mean over the seeds."""
    own = table.filter((pl.col("method") == method) & pl.col(measure).is_not_nan())
    last = own.filter(pl.col("samples") == pl.col("samples").max().over("case"))
    means = last.group_by("case", maintain_order=True).agg(pl.col(measure).mean())
    return dict(means.iter_rows())


def _order(table: pl.DataFrame, data: str, sizes: Sequence[int]) -> Claim:
    end = ends(table, "AEVB", "held_out")
    values = [end.get(f"{data}, N_z = {k}", math.nan) for k in sizes]
    rising = None if any(map(math.isnan, values)) else values == sorted(values)
    figures = ", ".join(f"{k}: {_number(value)}" for k, value in zip(sizes, values, strict=True))
    return Claim(f"{data}: more latents do not lower the held-out bound at the end", rising, figures)


def _close(table: pl.DataFrame) -> Claim:
    end = ends(table, "AEVB", "held_out")
    few, many = (end.get(f"MNIST, N_z = {k}", math.nan) for k in (20, 200))
    held = None if math.isnan(few + many) else abs(many - few) <= 2
    figures = f"20: {_number(few)}, 200: {_number(many)}"
    return Claim("MNIST: 200 latents end within 2 nats of 20", held, figures)


def _number(value: float) -> str:
    return "not run" if math.isnan(value) else f"{value:.2f}"


def _above(table: pl.DataFrame, cases: str) -> Claim:
    """AEVB above wake-sleep at every point of every curve."""
    own = table.filter(pl.col("case").str.starts_with(cases))
    keys = ["case", "seed", "samples"]
    both = own.filter(pl.col("method") == "AEVB").join(own.filter(pl.col("method") == "wake-sleep"), on=keys)
    margins = both.select(*keys, least=pl.min_horizontal(*(pl.col(part) - pl.col(f"{part}_right") for part in PARTS)))
    early, late = margins.filter(pl.col("samples") < FIRST), margins.filter(pl.col("samples") >= FIRST).sort("least")
    data = cases.split(",")[0]
    text = f"{data}: AEVB is above wake-sleep on training and held-out rows for every N_z, from {FIRST:,} samples on"
    before = f"{int((early['least'] > 0).sum())} of {len(early)} points before"
    if not len(late):
        return Claim(text, None, before)
    case, _, samples, lead = late.row(0)
    figures = f"{int((late['least'] > 0).sum())} of {len(late)} points, the least lead {lead:.2f} nats"
    return Claim(text, lead > 0, f"{figures} ({case}, {samples:,} samples); {before}")


def _evidence(table: pl.DataFrame) -> Claim:
    text = "Marginal likelihood: AEVB ends above wake-sleep on held-out rows, for few training rows and for many"
    ours, theirs = (ends(table, method, "evidence") for method in METHODS)
    both = [case for case in ours if case in theirs]
    figures = "; ".join(f"{case}: {ours[case]:.2f} against {theirs[case]:.2f}" for case in both)
    held = all(ours[case] > theirs[case] for case in both) if len(both) > 1 else None
    return Claim(text, held, figures or "no rows")


def draw(table: pl.DataFrame) -> Figure:
    """A panel per case: the bound against training samples, held out (lines) and training (dashed)."""
    done = table.filter(pl.col("status") == "done")
    cases = list(dict.fromkeys(done["case"]))
    groups = [[case for case in cases if case.startswith(head)] for head in ("MNIST, N_z", "Frey")]
    groups += [[case for case in cases if not any(case in group for group in groups)]]
    groups = [group for group in groups if group]
    wide = max(map(len, groups), default=1)
    figure = Figure(figsize=(1.2 + 1.75 * wide, 0.5 + 1.75 * max(1, len(groups))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(groups)), wide, squeeze=False)
    for row, group in zip(axes, groups, strict=False):
        for ax, case in zip(row, group, strict=False):
            _panel(ax, done.filter(pl.col("case") == case), case)
        _share(row[: len(group)], "bound" if group[0].count(",") < 2 else "log p(x)")
        for ax in row[len(group) :]:
            ax.set_visible(False)
    lines = {str(line.get_label()): line for ax in axes.flat for line in ax.get_lines()}
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside upper left",
        ncols=4 if wide > 2 else 2,
        fontsize=SMALL,
        frameon=False,
    )
    return figure


def _panel(ax: Any, own: pl.DataFrame, case: str) -> None:
    measures = ("evidence", "evidence_train") if own["evidence"].is_not_nan().any() else PARTS
    for number, method in enumerate(dict.fromkeys(own["method"])):
        mine = own.filter(pl.col("method") == method).sort("samples")
        curves = mine.group_by("samples", maintain_order=True).agg(pl.col(name).mean() for name in measures)
        for measure, style in zip(measures, ("-", "--"), strict=True):
            label = f"{method}, {'held out' if style == '-' else 'training'}"
            ax.plot(curves["samples"], curves[measure], style, color=PALETTE[number], linewidth=1.2, label=label)
    ax.set_xscale("log")
    ax.set_title(case, fontsize=SMALL - 1)
    ax.tick_params(labelsize=SMALL - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("training samples", fontsize=SMALL - 1)


def _share(row: Sequence[Any], what: str) -> None:
    """One scale for a row of panels, which shows the later part of the curves."""
    values = sorted(
        value for ax in row for line in ax.get_lines() for value in line.get_ydata() if math.isfinite(value)
    )
    if not values:
        return
    low, high = values[len(values) // 8], values[-1]
    for ax in row:
        ax.set_ylim(low - 0.02 * (high - low), high + 0.05 * (high - low))
    row[0].set_ylabel(f"{what}, nats per row", fontsize=SMALL - 1)
