"""Few-label classification: accuracy by the number of labels."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from zoo.factors.probing import Probe
from zoo.plots.style import GREY, TEXT, colour, legend_above, marker, new_axes


def probe(result: Probe, *, ax: Axes | None = None) -> Axes:
    """Accuracy on held-out rows against the number of labelled rows, on the factors and on the rows themselves.

    Bars are one standard error over the repeats; the dotted line is the share of the most common label.

    Args:
        result: from :func:`zoo.factors.probe`.
        ax: the axes to draw on; None creates a figure.
    """
    ax = new_axes(ax)
    table = result.frame()
    sizes = np.array(result.sizes)
    handles = []
    order = sizes.argsort()
    for i, (name, label) in enumerate((("z", "on factors z"), ("x", "on rows x"))):
        mean, error = table[name].to_numpy()[order], table[f"{name}_se"].to_numpy()[order]
        style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "linestyle": "-" if i == 0 else "--"}
        style |= {"markersize": 4, "linewidth": 1.2}
        ax.errorbar(sizes[order], mean, error, capsize=2, **style)
        handles.append(Line2D([], [], label=label, **style))
    chance = ax.axhline(result.most_common, color=GREY, linewidth=0.9, linestyle=":", label="most common label")
    ax.set_xscale("log")
    ax.set_xticks(sizes[order], [str(size) for size in sizes[order]])
    ax.minorticks_off()
    ax.set_xlabel("labelled rows", fontsize=TEXT)
    ax.set_ylabel("accuracy on held-out rows", fontsize=TEXT)
    legend_above(ax, [*handles, chance])
    return ax
