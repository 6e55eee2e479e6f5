"""The figure of the benchmark of gradients: variances along a trajectory, and bounds along training."""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zoo.benchmark.estimators import ESTIMATORS, FIXED
from zoo.benchmark.gradient_cells import TRAINING
from zoo.plots.style import MARKERS, MORE, PALETTE, TEXT

POINTS = ("start", "half-way", "optimum")
LEAST = 1e-9  # of the largest variance shown; what is below is nothing
MOST = 4  # columns where nothing was trained
WIDTH, HEIGHT, LEGEND = 2.6, 2.1, 1.1  # inches of a panel, and below all
SHOWN = [one.name for one in ESTIMATORS if one.name != f"{FIXED} fixed draws"]
COLOURS = dict(zip(SHOWN, (*PALETTE[:7], *MORE), strict=False))
SIGNS = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(SHOWN)}


def draw(table: pl.DataFrame) -> Figure | None:
    """Variance of the gradient of the guide's parameters; the bound against steps, and against seconds of training.

    One pair a column: those that were trained by every estimator too, or the first four, of the first seed. None where
    no guide has parameters of its own.
    """
    if not {"estimator", "at"} <= set(table.columns):
        return None
    done = table.filter(pl.col("status") == "done", pl.col("seed") == pl.col("seed").min())
    noise = done.filter(pl.col("at") != TRAINING, pl.col("guide_variance").is_not_nan())
    curves = done.filter(pl.col("at") == TRAINING).with_columns(pl.col("case").str.replace(", training", ""))
    both = [pair for pair in _pairs(noise) if pair in _pairs(curves)]
    pairs = both or _pairs(noise)[:MOST]
    if not pairs:
        return None
    rows = 3 if both else 1
    figure = Figure(figsize=(WIDTH * max(len(pairs), 2), HEIGHT * rows + LEGEND), layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(rows, len(pairs), squeeze=False)
    for column, (case, method) in zip(grid.T, pairs, strict=True):
        _variances(column[0], _of(noise, case, method), f"{case}, {method}")
        for ax, along in zip(column[1:], ("steps", "trained_seconds"), strict=False):
            _bounds(ax, _of(curves, case, method), along)
    grid[0, 0].set_ylabel("variance, (nats per row)²", fontsize=TEXT)
    for ax in grid[1:, 0]:
        ax.set_ylabel("bound, nats per row", fontsize=TEXT)
    present = [name for name in SHOWN if name in {*noise["estimator"], *curves["estimator"]}]
    handles = [_handle(name) for name in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=TEXT - 1, frameon=False)
    return figure


def _pairs(table: pl.DataFrame) -> list[tuple[str, str]]:
    return list(table.select("case", "method").unique(maintain_order=True).iter_rows())


def _of(table: pl.DataFrame, case: str, method: str) -> pl.DataFrame:
    return table.filter(pl.col("case") == case, pl.col("method") == method)


def _handle(name: str) -> Line2D:
    return Line2D([], [], color=COLOURS[name], marker=SIGNS[name], markersize=3.5, linewidth=1.2, label=name)


def _variances(ax: Axes, part: pl.DataFrame, title: str) -> None:
    """Variances at the three points, on a logarithmic scale; those that are nothing lie on the axis."""
    _dress(ax, title)
    least = LEAST * float(part["guide_variance"].max())  # type: ignore[arg-type]
    for name in SHOWN:
        own = part.filter(pl.col("estimator") == name)
        found = dict(zip(own["at"], own["guide_variance"], strict=True))
        places = [i for i, at in enumerate(POINTS) if at in found]
        values = [max(found[POINTS[i]], least) for i in places]
        if values:
            ax.plot(places, values, color=COLOURS[name], marker=SIGNS[name], markersize=3.5, linewidth=1.2)
    ax.set_yscale("log")
    ax.set_ylim(bottom=least)
    ax.set_xticks(range(len(POINTS)), POINTS)


def _bounds(ax: Axes, part: pl.DataFrame, along: str) -> None:
    """The bound against steps or seconds, from where the last estimators begin to climb."""
    _dress(ax)
    known = part.filter(pl.col("bound").is_not_nan())
    for name in SHOWN:
        own = known.filter(pl.col("estimator") == name, pl.col("steps") >= 1)
        if len(own):
            ax.plot(own[along], own["bound"], color=COLOURS[name], marker=SIGNS[name], markersize=3, linewidth=1.2)
    last = [bounds[-1] for bounds in known.group_by("estimator").agg(pl.col("bound"))["bound"].to_list()]
    span = max(last) - min(last)
    ax.set_ylim(min(last) - 0.5 * span, max(last) + 0.1 * span)
    ax.set_xscale("log")
    ax.set_xlabel("steps" if along == "steps" else "seconds", fontsize=TEXT)


def _dress(ax: Axes, title: str = "") -> None:
    ax.set_title(title, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.spines[["top", "right"]].set_visible(False)
