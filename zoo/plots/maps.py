"""Points in a plane: markers for a few thousand rows, a sample or a density for more, however many labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke

from zoo.plots.style import TEXT, colour, groups, legend_above, marker

MOST = 5_000  # points that are drawn one by one
LAYERS = 8  # in which points are drawn, so that no label covers the others
DIRECT = 8  # labels above this number are written beside their points as well
CELLS = 60  # across a density


def points(ax: Axes, places: np.ndarray, marks: np.ndarray | None, names: Sequence[str]) -> str:
    """Draws rows in a plane, with a colour and a marker for every label, in equal units.

    Up to 5,000 rows are drawn one by one. Of more with labels a random sample of 5,000 is drawn, and of more without
    labels their density, on a logarithmic scale.

    Args:
        ax: the axes to draw on.
        places: where (n, 2).
        marks: codes of the labels (n,), or None.
        names: the names of the codes.

    Returns:
        what the axes should say about the rows left out; empty if all are drawn.
    """
    n = len(places)
    ax.set_aspect("equal", adjustable="datalim")
    if marks is None and n > MOST:
        _density(ax, places)
        return f"density of {n:,} rows"
    order, note = sample(n)
    style: dict[str, Any] = {"s": 9 if n < 2000 else 5, "linewidths": 0.0, "alpha": 0.8}
    parts = groups(marks, names, n)
    for layer in np.array_split(order, LAYERS if len(parts) > 1 else 1):
        inside = np.zeros(n, bool)
        inside[layer] = True
        for i, chosen in parts:
            ax.scatter(*places[chosen & inside].T, color=colour(i), marker=marker(i), **style)
    if marks is not None:
        for i, _ in parts:
            ax.scatter([], [], color=colour(i), marker=marker(i), label=names[i], s=9, linewidths=0.0)
        if len(parts) > DIRECT:
            _name(ax, places, parts, names)
        legend_above(ax)
    return note


def sample(n: int) -> tuple[np.ndarray, str]:
    """The numbers of the rows to draw, in random order, and what to say if these are not all."""
    order = np.random.default_rng(0).permutation(n)
    return order[:MOST], f"{MOST:,} of {n:,} rows, at random" if n > MOST else ""


def _density(ax: Axes, places: np.ndarray) -> None:
    cells = ax.hexbin(*places.T, gridsize=CELLS, norm=LogNorm(), cmap="cividis", mincnt=1, linewidths=0.2)
    bar = ax.figure.colorbar(cells, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label("rows per cell", fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT - 1)
    bar.outline.set_visible(False)


def _name(ax: Axes, places: np.ndarray, parts: list[tuple[int, np.ndarray]], names: Sequence[str]) -> None:
    """The names of the labels at the medians of their rows."""
    for i, chosen in parts:
        if chosen.any():
            ax.annotate(
                names[i],
                tuple(np.median(places[chosen], 0)),
                fontsize=TEXT,
                fontweight="bold",
                ha="center",
                va="center",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
