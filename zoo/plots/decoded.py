"""Decoded factors, as images on a grid or as profiles over the columns.

Arguments common to the functions here and in :mod:`zoo.plots.predicted`:

- ``image``: (height, width) where a row is an image, True where it is a square one, False to draw rows as profiles over
  their columns. None goes by the columns' names: rows of ``pixel_0_0``, ``pixel_0_1``, ... (as those of ``digits`` and
  ``mnist``, and of runs fitted to them) are images.
- ``standard``: rows (n, d) that put columns of different units on one axis: profiles are then in standard deviations
  of these rows from their means.
- ``unit``: the unit of the data.
- ``limits``: the values drawn black and white in images; None uses the minimum and the maximum.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.pairs import Trained, known_columns, pair_of
from zoo.factors.decoding import decoded_mean, factor_site
from zoo.factors.intervention import Intervention
from zoo.factors.traversal import Decoded, Traversal
from zoo.plots.images import (
    Image,
    array,
    check_image,
    column_axis,
    gradient,
    image_size,
    mosaic,
    pick,
    standardised,
)
from zoo.plots.style import GREY, TEXT, colour, legend_above, marker, new_axes


def traversal(
    result: Traversal | Sequence[Traversal],
    *,
    image: Image = None,
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The decoded mean along one factor, or along several.

    As images, every line is a factor, or a row of the data where the traversal starts from several rows. As profiles,
    one factor from one position, coloured by its value.

    Args:
        result: from :func:`zoo.traverse`; several must have the same values, and one position each.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: traversals that cannot be combined, more lines than profiles can show, or an ``image`` whose size is
            not the width of the rows.
    """
    several = [result] if isinstance(result, Traversal) else list(result)
    if not several:
        raise ValueError("result is empty: pass the result of zoo.traverse")
    first = several[0]
    size = check_image(image, first.mean.shape[-1], first.columns)
    values = array(first.values)
    if any(t.mean.shape != first.mean.shape or not np.array_equal(array(t.values), values) for t in several):
        raise ValueError("result has traversals with different values or positions: draw them one by one")
    places = len(first.mean)
    if len(several) > 1 and places > 1:
        raise ValueError(f"result has several factors from {places} rows each: traverse from one row (rows=[0])")
    lines = np.concatenate([array(t.mean) for t in several])  # (r, s, d)
    if size is not None:
        left = [f"factor {t.factor}" for t in several] if places == 1 else [f"row {row}" for row in first.rows or ()]
        ax = mosaic(lines, size, left=left, below=[f"{value:.2g}" for value in values], unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("value of the factor" if places == 1 else f"value of factor {first.factor}", fontsize=TEXT)
        return ax
    if len(lines) > 1:
        raise ValueError(
            f"result has {len(lines)} lines, but profiles show one: draw one factor from one row (rows=[0]), or pass "
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
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The decoded path from one point to another, as a strip of images or as profiles coloured by their position.

    Args:
        result: from :func:`zoo.factors.interpolate`.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the size of ``image`` is not the width of the rows.
    """
    lines = array(result.mean)
    t = np.linspace(0, 1, len(lines))
    size = check_image(image, lines.shape[-1], result.columns)
    if size is not None:
        ax = mosaic(lines[None], size, below=[f"{place:.2g}" for place in t], unit=unit, limits=limits, ax=ax)
        ax.set_xlabel("position from a (0) to b (1)", fontsize=TEXT)
        return ax
    ax = new_axes(ax)
    gradient(ax, standardised(lines, standard), t, "from a (0) to b (1)")
    column_axis(ax, lines.shape[-1], result.columns, standard, unit)
    return ax


def intervention(
    result: Intervention,
    *,
    rows: Sequence[int] | None = None,
    image: Image = None,
    standard: ArrayLike | None = None,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rows before and after some of their factors are set: images above each other, or profiles.

    As profiles, a row's mean before the intervention is drawn dashed with open markers, and after it solid.

    Args:
        result: from :func:`zoo.factors.intervene`.
        rows: positions in ``result`` of the rows to draw; None draws the first eight as images, the first three as
            profiles.
        image, standard, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: a row does not exist, or the size of ``image`` is not the width of the rows.
    """
    before, after = array(result.before), array(result.mean)
    size = check_image(image, after.shape[1], result.columns)
    chosen = pick(rows, len(after), 8 if size is not None else 3)
    names = [str(result.rows[i]) for i in chosen]
    title = ", ".join(f"factor {factor}" for factor in result.factors)
    if size is not None:
        grid = np.stack([before[chosen], after[chosen]])
        ax = mosaic(grid, size, left=["before", "after"], below=names, unit=unit, limits=limits, ax=ax)
        ax.set_xlabel(f"row, with {title} set", fontsize=TEXT)
        return ax
    ax = new_axes(ax)
    keys = []
    for i, row in enumerate(chosen):
        style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "markersize": 3.5, "linewidth": 1.1}
        ax.plot(standardised(before[row], standard), linestyle="--", markerfacecolor="white", **style)
        ax.plot(standardised(after[row], standard), **style)
        keys.append(Line2D([], [], label=f"row {names[i]}", **style))
    grey: dict[str, Any] = {"color": GREY, "marker": "o", "markersize": 3.5}
    keys += [Line2D([], [], linestyle="--", markerfacecolor="white", label="before", **grey)]
    keys += [Line2D([], [], label="after", **grey)]
    column_axis(ax, after.shape[1], result.columns, standard, unit)
    ax.set_xlabel(f"column, with {title} set", fontsize=TEXT)
    legend_above(ax, keys)
    return ax


def manifold(
    run: Trained,
    *,
    image: Image = None,
    column: int | None = None,
    factors: tuple[int, int] = (0, 1),
    steps: int = 12,
    x: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The plane of two factors, decoded at quantiles of the standard normal, with the other factors at 0.

    Drawn as a grid of images, or for one column of a table as a map of its mean.

    Args:
        run: a trained pair with standard normal factors. Covariates must be those of a single row:
            ``run.given(batch=[...])``.
        column: the number of a column of the data, from 0, instead of ``image``.
        factors: the factors on the horizontal and the vertical axis, counted from 0.
        steps: number of quantiles (i + 1/2) / steps per factor.
        x: the rows that the guide was fitted to, where it needs them to draw the shared sites.
        draws: number of draws of the shared sites.
        seed: seed of these draws.
        image, unit, limits: see :mod:`zoo.plots.decoded`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the model does not have these factors, or not exactly one of ``image`` and ``column`` is given.
    """
    run = pair_of(run)
    k = factor_site(run, "manifold").shape.numel()
    for factor in factors:
        if check_whole(factor, "factors", 0) >= k:
            raise ValueError(f"factors: {factor} is out of range, as the model has {k} factors, counted from 0")
    if len(factors) != 2 or factors[0] == factors[1]:
        raise ValueError(f"factors must be two different numbers, got {tuple(factors)}")
    columns = known_columns(run, x)
    if image is None and column is None and image_size(columns) is not None:
        image = image_size(columns)
    if (image is None) == (column is None):
        raise ValueError("pass either image, for rows that are images, or column, for a map of one column")
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
            raise ValueError(f"column={column}, but the rows have {d} columns, counted from 0")
        ax = new_axes(ax)
        drawn = ax.pcolormesh(place.numpy(), place.numpy(), mean[::-1, :, column], cmap="cividis", shading="nearest")
        bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.02)
        bar.set_label(f"mean of column {column} ({unit})", fontsize=TEXT)
        bar.ax.tick_params(labelsize=TEXT - 1)
    ax.set_xlabel(f"factor {factors[0]}", fontsize=TEXT)
    ax.set_ylabel(f"factor {factors[1]}", fontsize=TEXT)
    return ax
