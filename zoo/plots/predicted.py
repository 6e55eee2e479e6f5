"""Generated, reconstructed and imputed rows, as images on a grid or as profiles over the columns.

Common arguments are described in :mod:`zoo.plots.decoded`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from zoo.algebra.missing import Imputation
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.tables import column_names, row_names
from zoo.factors.generation import Generated, Reconstruction
from zoo.plots.images import (
    Image,
    array,
    check_image,
    column_axis,
    moments,
    mosaic,
    pick,
    same_shape,
    standardised,
)
from zoo.plots.style import GREY, PALETTE, SIZE, TEXT, colour, legend_above, marker, new_axes


def samples(
    result: Generated,
    *,
    mean: bool = False,
    image: Image = None,
    across: int = 8,
    columns: Sequence[str] = (),
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Generated rows, as a grid of images or as thin profiles.

    Args:
        result: from :func:`zoo.generate`.
        mean: whether to draw the mean of every row given its latents, without noise.
        across: the number of images per line.
        columns: the names of the columns; empty for those of ``result``.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the size of ``image`` is not the width of the rows.
    """
    rows = array(result.mean if mean else result.x)
    n, d = rows.shape
    columns = columns or result.columns
    size = check_image(image, d, columns)
    if size is not None:
        across = min(check_whole(across, "across"), n)
        return mosaic(rows[: n - n % across].reshape(-1, across, d), size, unit=unit, limits=limits, ax=ax)
    ax = new_axes(ax)
    ax.plot(standardised(rows, standard).T, color=PALETTE[0], alpha=max(0.05, min(0.6, 10 / n)), linewidth=0.7)
    column_axis(ax, d, columns, standard, unit)
    return ax


def reconstruction(
    x: ArrayLike,
    result: Reconstruction,
    *,
    rows: Sequence[int] | None = None,
    image: Image = None,
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rows and their reconstructions: images above each other, or points and means with one standard deviation.

    Args:
        x: the rows (n, d) or a :class:`zoo.data.Dataset`.
        result: from :func:`zoo.reconstruct`, of the same rows.
        rows: the numbers of the rows to draw; None draws the first eight as images, the first three as profiles.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the result is of other rows, a row does not exist, or ``image`` has the wrong size.
    """
    names, index, data = column_names(x) or result.columns, _index(x, result), _rows(x)
    mean, deviation = same_shape(data, result.mean, "result"), np.sqrt(array(result.variance))
    size = check_image(image, data.shape[1], names)
    chosen = pick(rows, len(data), 8 if size is not None else 3)
    if size is not None:
        grid = np.stack([array(data)[chosen], mean[chosen]])
        ax = mosaic(grid, size, left=["data", "mean"], below=_labels(chosen, index), unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("row", fontsize=TEXT)
        return ax
    d = data.shape[1]
    scale = 1.0 if standard is None else moments(standard, d)[1]
    ax = new_axes(ax)
    for i, row in enumerate(chosen):
        middle, half = standardised(mean[row], standard), deviation[row] / scale
        ax.fill_between(range(d), middle - half, middle + half, color=colour(i), alpha=0.2, linewidth=0)
        ax.plot(middle, color=colour(i), linewidth=1.2)
        style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "linestyle": "", "markersize": 3.5}
        ax.plot(standardised(array(data)[row], standard), **style)
    column_axis(ax, d, names, standard, unit)
    keys = [_key(GREY, "data", marker="o"), _key(GREY, "mean, sd", linestyle="-")]
    _row_legend(ax, chosen, index, keys)
    return ax


def imputation(
    x: ArrayLike,
    result: Imputation,
    *,
    truth: ArrayLike | None = None,
    rows: Sequence[int] | None = None,
    image: Image = None,
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Imputed entries.

    As images: the observed pixels (missing ones in colour), the mean, the standard deviation, and the truth if known.
    Otherwise: imputed against true values with one standard deviation, or without the truth, profiles of a few rows.

    Args:
        x: the rows (n, d) with NaN, or a :class:`zoo.data.Dataset`.
        result: from :func:`zoo.impute` or a model's ``impute``, of the same rows.
        truth: the rows without NaN, if known.
        rows: the numbers of the rows to draw. None draws the first eight with missing entries as images, the first
            three as profiles, and all of them against the truth.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: nothing is missing, the result is of other rows, or ``image`` has the wrong size.
    """
    names, index, data = column_names(x) or result.columns, _index(x, result), _rows(x)
    values = array(data)
    mean, deviation = same_shape(data, result.mean, "result"), np.sqrt(array(result.variance))
    true = None if truth is None else same_shape(data, truth, "truth")
    size = check_image(image, data.shape[1], names)
    missing = np.isnan(values)
    gaps = np.flatnonzero(missing.any(1))
    if not len(gaps):
        raise ValueError("x has no missing entries (NaN): nothing was imputed")
    usual = 8 if size is not None else len(gaps) if true is not None else 3
    chosen = gaps[:usual].tolist() if rows is None else pick(rows, len(data), usual)
    if size is not None:
        shown = {"observed": values, "mean": mean, "sd": deviation} | ({} if true is None else {"truth": true})
        grid = np.stack([each[chosen] for each in shown.values()])
        ax = mosaic(grid, size, left=list(shown), below=_labels(chosen, index), unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("row (missing pixels in colour)", fontsize=TEXT)
        return ax
    d = data.shape[1]
    scale = np.ones(d) if standard is None else moments(standard, d)[1]
    middle, half = standardised(mean, standard), deviation / scale
    if true is not None:
        return _against_truth(middle, half, standardised(true, standard), missing, chosen, names, standard, unit, ax)
    ax = new_axes(ax)
    for i, row in enumerate(chosen):
        gone = missing[row]
        ax.plot(middle[row], color=colour(i), linewidth=0.7, alpha=0.6)
        style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "linestyle": "", "markersize": 4}
        ax.plot(np.flatnonzero(~gone), middle[row, ~gone], **style)
        style |= {"markerfacecolor": "white", "elinewidth": 0.9, "capsize": 2}
        ax.errorbar(np.flatnonzero(gone), middle[row, gone], half[row, gone], **style)
    column_axis(ax, d, names, standard, unit)
    open_key = _key(GREY, "imputed, sd", marker="o")
    open_key.set_markerfacecolor("white")
    keys = [_key(GREY, "observed", marker="o"), open_key]
    _row_legend(ax, chosen, index, keys)
    return ax


def _rows(x: ArrayLike) -> Tensor:
    """Rows (n, d), in which entries may be missing."""
    return check_rows(x, SimpleNamespace(missing=True))


def _key(shade: str, label: str, *, marker: str = "", linestyle: Literal["", "-"] = "") -> Line2D:
    """A legend entry."""
    return Line2D([], [], color=shade, marker=marker, linestyle=linestyle, markersize=4, linewidth=1.2, label=label)


def _index(x: ArrayLike, result: Reconstruction | Imputation) -> np.ndarray | None:
    """The names of the rows, if known."""
    own = row_names(x)
    return result.index if own is None else own


def _labels(rows: Sequence[int], index: np.ndarray | None, word: str = "") -> list[str]:
    """The rows by name, else by number after a word."""
    return [f"{word}{row}" if index is None else str(index[row]) for row in rows]


def _row_legend(ax: Axes, rows: Sequence[int], index: np.ndarray | None, keys: list[Line2D]) -> None:
    """The legend of profiles: an entry for every row, then the keys."""
    labels = _labels(rows, index, "row ")
    legend_above(ax, [*(_key(colour(i), label, marker=marker(i)) for i, label in enumerate(labels)), *keys])


def _against_truth(
    mean: np.ndarray,
    deviation: np.ndarray,
    true: np.ndarray,
    missing: np.ndarray,
    chosen: list[int],
    names: Sequence[str],
    standard: ArrayLike | None,
    unit: str,
    ax: Axes | None,
) -> Axes:
    """Imputed against true values, with one standard deviation; one colour per column if there are few columns."""
    ax = new_axes(ax, (SIZE[0], SIZE[0] - 0.4))
    inside = np.zeros_like(missing)
    inside[chosen] = True
    picked = missing & inside
    d = mean.shape[1]
    parts = [(i, picked & (np.arange(d) == i)) for i in range(d)] if d <= len(PALETTE) else [(0, picked)]
    few = picked.sum() < 300
    for i, where in parts:
        if not where.any():
            continue
        label = None if len(parts) == 1 else names[i] if names else f"column {i}"
        if few:
            bars: dict[str, Any] = {"color": colour(i), "linestyle": "", "elinewidth": 0.5, "alpha": 0.6}
            ax.errorbar(true[where], mean[where], deviation[where], **bars)
        style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "linestyle": "", "alpha": 0.8 if few else 0.4}
        ax.plot(true[where], mean[where], markersize=3 if few else 2, markeredgewidth=0, label=label, **style)
    ends = [min(true[picked].min(), mean[picked].min()), max(true[picked].max(), mean[picked].max())]
    ax.plot(ends, ends, color=GREY, linewidth=0.9, linestyle="--", label="imputed = true", zorder=0)
    what = unit if standard is None else "deviations from the mean"
    ax.set_xlabel(f"true {what}", fontsize=TEXT)
    ax.set_ylabel(f"imputed {what}" + (" and sd" if few else ""), fontsize=TEXT)
    legend_above(ax)
    return ax
