"""Common style of the figures: size, colours, labels and legends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from zoo.base.atomic import new_file

# Okabe and Ito (2008), Color Universal Design; yellow last, as it is faint on white. The others, for more than eight
# groups, are from Paul Tol's "muted" and "dark" schemes.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MORE = (
    "#882255",
    "#999933",
    "#332288",
    "#44AA99",
    "#AA4499",
    "#661100",
    "#888888",
    "#117733",
    "#DDCC77",
    "#6699CC",
    "#CC6677",
    "#225555",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#888888"
SIZE = (3.5, 2.6)  # inches: one column of a paper
TEXT = 8  # points


def save(figure: Axes | Figure, path: str | Path, *, dpi: int = 200) -> Path:
    """Writes a figure, or the figure of an axes, in the format of the suffix of ``path`` (.png, .pdf, .svg).

    Returns:
        the path. Missing folders are created.

    Raises:
        ValueError: matplotlib cannot write files with this suffix.
    """
    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    path = Path(path)
    known = whole.canvas.get_supported_filetypes() if whole is not None else {}
    if whole is None or path.suffix.removeprefix(".") not in known:
        raise ValueError(f"'{path.name}' has no known suffix: use .png, .pdf or .svg")
    with new_file(path, replace=True) as partial:
        whole.savefig(partial, dpi=dpi)
    return path


def new_axes(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    """``ax``, or the axes of a new figure, created without pyplot."""
    if ax is not None:
        return ax
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.tick_params(labelsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax: Axes) -> None:
    """A legend in the lower right corner."""
    ax.legend(fontsize=TEXT - 1, frameon=False, loc="lower right", handlelength=1.6)


def legend_above(ax: Axes, handles: Sequence[Line2D] | None = None, *, lift: float = 0.0) -> None:
    """A legend above the axes, where it covers no points; ``lift``, in axes heights, is the room left below it."""
    found = ax.get_legend_handles_labels()
    if handles is not None:
        found = list(handles), [str(handle.get_label()) for handle in handles]
    scale = 1.6 if handles is None else 1.0
    longest = max(map(len, found[1]), default=1)
    columns = max(1, min(len(found[1]), 46 // (longest + 5)))
    ax.legend(
        *found,
        fontsize=TEXT - 1,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0 + lift),
        ncols=columns,
        handletextpad=0.3,
        columnspacing=0.9,
        borderaxespad=0.2,
        markerscale=scale,
        borderpad=0.1,
    )


def colour(number: int) -> str:
    """The colour of a group; no two of twenty are the same, and colours repeat from there on."""
    colours = (*PALETTE, *MORE)
    return colours[number % len(colours)]


def marker(number: int) -> str:
    """The marker of a group: one per colour, and another one when the colours repeat."""
    return MARKERS[(number + number // len(PALETTE)) % len(MARKERS)]


def classes(
    labels: Tensor | np.ndarray | Sequence[Any] | None, names: Sequence[str] | None, n: int
) -> tuple[np.ndarray | None, list[str]]:
    """Codes (n,) from 0, and their names."""
    if labels is None:
        return None, []
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if given.shape != (n,):
        raise ValueError(f"labels has shape {given.shape}, but x has {n} rows: pass one label per row")
    if names:
        if not np.issubdtype(given.dtype, np.integer) or given.min() < 0 or given.max() >= len(names):
            raise ValueError(f"labels must be whole numbers from 0 to {len(names) - 1}, indices into label_names")
        return given, [str(name) for name in names]
    levels, codes = np.unique(given, return_inverse=True)
    if len(levels) > 20:
        raise ValueError(f"labels has {len(levels)} distinct values, more than a legend can show (20): pass classes")
    return codes, [str(level) for level in levels]


def groups(marks: np.ndarray | None, names: Sequence[str], n: int) -> list[tuple[int, np.ndarray]]:
    """The rows of every label, as masks; without labels one group of all rows."""
    if marks is None:
        return [(0, np.ones(n, bool))]
    return [(i, marks == i) for i in range(len(names))]
