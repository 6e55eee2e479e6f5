"""What a model makes of factors: images on a grid, or profiles over the columns.

Where a row is an image, ``image=(height, width)`` says so, and ``image=True`` that it is square; otherwise rows are
drawn as profiles over their columns. ``standard``, rows (n, d), puts columns of different units on one axis: profiles
are then in standard deviations of these rows from their means.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from zoo.algebra.missing import Imputation
from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import Pair
from zoo.data.dataset import column_names
from zoo.factors.decoding import decoded_mean, factor_site
from zoo.factors.generation import Generated, Reconstruction
from zoo.factors.traversal import Decoded, Traversal
from zoo.plots.images import (
    Image,
    array,
    check_image,
    column_axis,
    gradient,
    moments,
    mosaic,
    pick,
    same_shape,
    standardised,
)
from zoo.plots.style import GREY, PALETTE, SIZE, TEXT, colour, legend_above, marker, new_axes


def traversal(
    result: Traversal | Sequence[Traversal],
    *,
    image: Image = None,
    standard: Any = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What changes along one factor, or along several.

    As images, every line is a factor, or a row of the data where the traversal starts from several. As profiles, one
    factor from one place, coloured by its value.

    Args:
        result: from :func:`zoo.traverse`; several must take the same values, each from one place.
        image: see :mod:`zoo.plots.decoded`.
        standard: see there.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: several traversals that do not go together, more than profiles can show, or an ``image`` of another
            size than the rows.
    """
    several = [result] if isinstance(result, Traversal) else list(result)
    if not several:
        raise ValueError("result is empty: pass what zoo.traverse returns")
    first = several[0]
    size = check_image(image, first.mean.shape[-1])
    values = array(first.values)
    if any(t.mean.shape != first.mean.shape or not np.array_equal(array(t.values), values) for t in several):
        raise ValueError("result holds traversals of different values or places: draw each by itself")
    places = len(first.mean)
    if len(several) > 1 and places > 1:
        raise ValueError(f"result holds several factors from {places} rows each: traverse from one row (rows=[0])")
    lines = np.concatenate([array(t.mean) for t in several])  # (r, s, d)
    if size is not None:
        left = [f"factor {t.factor}" for t in several] if places == 1 else [f"row {row}" for row in first.rows or ()]
        ax = mosaic(lines, size, left=left, below=[f"{value:.2g}" for value in values], unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("value of the factor" if places == 1 else f"value of factor {first.factor}", fontsize=TEXT)
        return ax
    if len(lines) > 1:
        raise ValueError(
            f"result holds {len(lines)} lines, and profiles show one: draw one factor from one row (rows=[0]), or pass "
            "image"
        )
    ax = new_axes(ax)
    gradient(ax, standardised(lines[0], standard), values, f"factor {first.factor}")
    column_axis(ax, lines.shape[-1], first.columns, standard, unit)
    return ax


def interpolation(
    result: Decoded,
    *,
    image: Image = None,
    standard: Any = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The way from one point to another, as a strip of images or as profiles coloured by their place on it.

    Args:
        result: from :func:`zoo.factors.interpolate`.
        image: see :mod:`zoo.plots.decoded`.
        standard: see there.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: an ``image`` of another size than the rows.
    """
    lines = array(result.mean)
    t = np.linspace(0, 1, len(lines))
    size = check_image(image, lines.shape[-1])
    if size is not None:
        ax = mosaic(lines[None], size, below=[f"{place:.2g}" for place in t], unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("place on the way from a (0) to b (1)", fontsize=TEXT)
        return ax
    ax = new_axes(ax)
    gradient(ax, standardised(lines, standard), t, "from a (0) to b (1)")
    column_axis(ax, lines.shape[-1], result.columns, standard, unit)
    return ax


def samples(
    result: Generated,
    *,
    mean: bool = False,
    image: Image = None,
    across: int = 8,
    columns: Sequence[str] = (),
    standard: Any = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws from the model, as a grid of images or as thin profiles.

    Args:
        result: from :func:`zoo.generate`.
        mean: without the noise: the mean of every row given its latents.
        image: see :mod:`zoo.plots.decoded`.
        across: images side by side.
        columns: the names of the columns, for profiles.
        standard: see :mod:`zoo.plots.decoded`.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: an ``image`` of another size than the rows.
    """
    rows = array(result.mean if mean else result.x)
    n, d = rows.shape
    size = check_image(image, d)
    if size is not None:
        across = min(check_whole(across, "across"), n)
        return mosaic(rows[: n - n % across].reshape(-1, across, d), size, unit=unit, limits=limits, ax=ax)
    ax = new_axes(ax)
    ax.plot(standardised(rows, standard).T, color=PALETTE[0], alpha=max(0.05, min(0.6, 10 / n)), linewidth=0.7)
    column_axis(ax, d, columns, standard, unit)
    return ax


def reconstruction(
    x: Any,
    result: Reconstruction,
    *,
    rows: Sequence[int] | None = None,
    image: Image = None,
    standard: Any = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rows beside what the model makes of them: images above each other, or points and means with one deviation.

    Args:
        x: the rows (n, d) or a :class:`zoo.data.Dataset`.
        result: from :func:`zoo.reconstruct`, of the same rows.
        rows: the numbers of those to draw; None takes the first: eight as images, three as profiles.
        image: see :mod:`zoo.plots.decoded`.
        standard: see there.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: other rows than the result's, a row that is not there, or an ``image`` of another size.
    """
    names, data = column_names(x) or result.columns, _rows(x)
    mean, deviation = same_shape(data, result.mean, "result"), np.sqrt(array(result.variance))
    size = check_image(image, data.shape[1])
    chosen = pick(rows, len(data), 8 if size is not None else 3)
    if size is not None:
        grid = np.stack([array(data)[chosen], mean[chosen]])
        ax = mosaic(
            grid, size, left=["data", "mean"], below=[str(row) for row in chosen], unit=unit, limits=limits, ax=ax
        )
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
    legend_above(ax, [*(_key(colour(i), f"row {row}", marker=marker(i)) for i, row in enumerate(chosen)), *keys])
    return ax


def imputation(
    x: Any,
    result: Imputation,
    *,
    truth: Any = None,
    rows: Sequence[int] | None = None,
    image: Image = None,
    standard: Any = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """What stands for the missing entries.

    As images: the observed pixels (missing ones in colour), the mean, the standard deviation, and the truth where it is
    known. Otherwise, with the truth: imputed against true values, with one standard deviation; without it: profiles of
    a few rows.

    Args:
        x: the rows (n, d) with NaN, or a :class:`zoo.data.Dataset`.
        result: from :func:`zoo.impute` or a model's ``impute``, of the same rows.
        truth: the rows without NaN, where they are known.
        rows: the numbers of those to draw. None takes the first with missing entries: eight as images, three as
            profiles; all against the truth.
        image: see :mod:`zoo.plots.decoded`.
        standard: see there.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: nothing is missing, other rows than the result's, or an ``image`` of another size.
    """
    names, data = column_names(x), _rows(x)
    values = array(data)
    mean, deviation = same_shape(data, result.mean, "result"), np.sqrt(array(result.variance))
    true = None if truth is None else same_shape(data, getattr(truth, "x", truth), "truth")
    size = check_image(image, data.shape[1])
    missing = np.isnan(values)
    gaps = np.flatnonzero(missing.any(1))
    if not len(gaps):
        raise ValueError("x has no missing entries (NaN): nothing was imputed")
    usual = 8 if size is not None else len(gaps) if true is not None else 3
    chosen = gaps[:usual].tolist() if rows is None else pick(rows, len(data), usual)
    if size is not None:
        shown = {"observed": values, "mean": mean, "sd": deviation} | ({} if true is None else {"truth": true})
        grid = np.stack([each[chosen] for each in shown.values()])
        ax = mosaic(grid, size, left=list(shown), below=[str(row) for row in chosen], unit=unit, limits=limits, ax=ax)
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
    legend_above(ax, [*(_key(colour(i), f"row {row}", marker=marker(i)) for i, row in enumerate(chosen)), *keys])
    return ax


def manifold(
    run: Pair,
    *,
    image: Image = None,
    column: int | None = None,
    factors: tuple[int, int] = (0, 1),
    steps: int = 12,
    x: Any = None,
    draws: int = 200,
    seed: int = 0,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The plane of two factors, decoded at the quantiles of a standard normal, the others at 0.

    As a grid of images, or, for one column of a table, as a map of its mean.

    Args:
        run: a trained pair; its factors are thought of as standard normal. Covariates are those of a single row:
            ``run.given(batch=[...])``.
        image: (height, width), or True for a square.
        column: of the data, from 0, in place of ``image``.
        factors: the one that goes right and the one that goes up, counted from 0.
        steps: quantiles (i + 1/2) / steps of either.
        x: the rows that the guide was fitted to, where it needs them to draw sites that all rows share.
        draws: of these sites.
        seed: of these draws.
        unit: of the data.
        limits: the values drawn black and white in images; None takes the least and the greatest.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: the model has no such two factors, or not exactly one of ``image`` and ``column`` is given.
    """
    k = factor_site(run, "manifold").shape.numel()
    for factor in factors:
        if check_whole(factor, "factors", 0) >= k:
            raise ValueError(f"factors names factor {factor}, and the model has {k}, counted from 0")
    if len(factors) != 2 or factors[0] == factors[1]:
        raise ValueError(f"factors must be two different numbers, got {tuple(factors)}")
    if (image is None) == (column is None):
        raise ValueError("pass image for rows that are images, or column for a map of one column, and not both")
    place = torch.special.ndtri((torch.arange(check_whole(steps, "steps", 2)).double() + 0.5) / steps)
    z = torch.zeros(steps, steps, k, dtype=torch.float64)
    z[..., factors[0]] = place
    z[..., factors[1]] = place.flip(0).unsqueeze(1)  # upwards
    mean = array(decoded_mean(run, z.reshape(-1, 1, k), None, x, draws, seed).reshape(steps, steps, -1))
    if image is not None:
        size = check_image(image, mean.shape[-1])
        assert size is not None
        labels = [f"{value:.1f}" for value in place]
        thin = -(-steps // 8)
        left = [label if i % thin == 0 else "" for i, label in enumerate(labels)][::-1]
        ax = mosaic(mean, size, left=left, below=labels, unit=unit, limits=limits, ax=ax)
    else:
        d = mean.shape[-1]
        if check_whole(column if column is not None else -1, "column", 0) >= d:
            raise ValueError(f"column={column}: the rows have {d} columns, counted from 0")
        ax = new_axes(ax)
        drawn = ax.pcolormesh(place.numpy(), place.numpy(), mean[::-1, :, column], cmap="cividis", shading="nearest")
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.02)
        bar.set_label(f"mean of column {column} ({unit})", fontsize=TEXT)
        bar.ax.tick_params(labelsize=TEXT - 1)
    ax.set_xlabel(f"factor {factors[0]}", fontsize=TEXT)
    ax.set_ylabel(f"factor {factors[1]}", fontsize=TEXT)
    return ax


def _rows(x: Any) -> Tensor:
    return check_rows(x, SimpleNamespace(missing=True))  # they may have holes here


def _key(shade: str, label: str, *, marker: str = "", linestyle: Any = "") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=shade, marker=marker, linestyle=linestyle, markersize=4, linewidth=1.2, label=label)


def _against_truth(
    mean: np.ndarray,
    deviation: np.ndarray,
    true: np.ndarray,
    missing: np.ndarray,
    chosen: list[int],
    names: Sequence[str],
    standard: Any,
    unit: str,
    ax: Axes | None,
) -> Axes:
    """Imputed against true values, with one standard deviation; a colour for every column where they are few."""
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
