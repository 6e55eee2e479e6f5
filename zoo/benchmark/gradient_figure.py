"""The figure of the benchmark of gradients: variances along a trajectory, and bounds along training."""

from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zoo.benchmark.estimators import ESTIMATORS, FIXED
from zoo.plots.style import MARKERS, MORE, PALETTE, TEXT

POINTS = ("start", "half-way", "optimum")
LEAST = 1e-9  # of the largest variance shown; what is below is nothing
WIDTH, HEIGHT, LEGEND = 2.6, 2.1, 1.1  # inches of a panel, and below all
SHOWN = [one.name for one in ESTIMATORS if one.name != f"{FIXED} fixed draws"]
COLOURS = dict(zip(SHOWN, (*PALETTE[:7], *MORE), strict=False))
SIGNS = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(SHOWN)}


def draw(table: pl.DataFrame) -> Figure | None:
    """Top: variance of the gradient of the guide's parameters. Below: the bound along training. One pair a column.

    Only pairs with parameters of the guide are shown, of the first seed; None if there are none.
    """
    if not {"estimator", "at"} <= set(table.columns):
        return None
    done = table.filter(pl.col("status") == "done", pl.col("seed") == pl.col("seed").min())
    noise = done.filter(pl.col("at") != "training", pl.col("guide_variance").is_not_nan())
    curves = done.filter(pl.col("at") == "training")
    upper = _pairs(noise)
    shown = set(upper)
    lower = [pair for pair in _pairs(curves) if (pair[0].removesuffix(", training"), pair[1]) in shown]
    if not upper:
        return None
    figure = Figure(
        figsize=(WIDTH * max(len(upper), len(lower)), HEIGHT * (2 if lower else 1) + LEGEND), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(2 if lower else 1, max(len(upper), len(lower)), squeeze=False)
    for ax in grid.flat:
        ax.set_visible(False)
    for ax, (case, method) in zip(grid[0], upper, strict=False):
        _variances(ax, _of(noise, case, method), f"{case}, {method}")
    for ax, (case, method) in zip(grid[-1], lower, strict=False):
        _bounds(ax, _of(curves, case, method), f"{case}, {method}")
    grid[0, 0].set_ylabel("variance, (nats per row)²", fontsize=TEXT)
    if lower:
        grid[1, 0].set_ylabel("bound, nats per row", fontsize=TEXT)
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


def _bounds(ax: Axes, part: pl.DataFrame, title: str) -> None:
    """The bound after so many steps, around the bounds after the last."""
    _dress(ax, title)
    for name in SHOWN:
        own = part.filter(pl.col("estimator") == name, pl.col("steps") >= 1)
        if len(own):
            ax.plot(own["steps"], own["bound"], color=COLOURS[name], marker=SIGNS[name], markersize=3, linewidth=1.2)
    ends = part.filter(pl.col("bound").is_not_nan()).group_by("estimator", maintain_order=True).agg(pl.col("bound"))
    last = [bounds[-1] for bounds in ends["bound"].to_list()]
    span = max(last) - min(last)
    ax.set_ylim(min(last) - 1.5 * span, max(last) + 0.1 * span)
    ax.set_xscale("log")
    ax.set_xlabel("steps", fontsize=TEXT)


def _dress(ax: Axes, title: str) -> None:
    ax.set_visible(True)
    ax.set_title(title, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1)
    ax.spines[["top", "right"]].set_visible(False)
