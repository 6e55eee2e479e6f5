"""Drawing rows as images side by side, or as profiles over their columns."""

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from torch import Tensor

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.tables import named_rows
from zoo.plots.style import PALETTE, SIZE, TEXT, new_axes

Image = tuple[int, int] | bool | None
PIXEL = re.compile(r"(.*?)(\d+)[^\d](\d+)")  # the name of a pixel's column
MANY = 12  # largest number of columns whose names fit under an axis


def array(values: ArrayLike) -> np.ndarray:
    """Numbers, or the rows of a data set, as a float64 array."""
    return named_rows(values).values.detach().cpu().double().numpy()


def image_size(columns: Sequence[str]) -> tuple[int, int] | None:
    """Height and width of the image whose pixels the columns are, by names such as ``pixel_3_14``; None if none.

    The names end in the pixel's row and column, from 0, and the pixels stand in the order of a page.

    >>> image_size([f"pixel_{i}_{j}" for i in range(2) for j in range(3)])
    (2, 3)
    >>> image_size(["length_1", "length_2"])
    """
    found = [PIXEL.fullmatch(name) for name in columns]
    places = [(int(one[2]), int(one[3])) for one in found if one is not None]
    if len(places) < 2 or len(places) != len(columns) or len({one[1] for one in found if one is not None}) > 1:
        return None
    height, width = places[-1][0] + 1, places[-1][1] + 1
    whole = height * width == len(places) and min(height, width) > 1
    return (height, width) if whole and places == [divmod(k, width) for k in range(len(places))] else None


def check_image(image: Image, d: int, columns: Sequence[str] = ()) -> tuple[int, int] | None:
    """Height and width of the image in a row of ``d`` columns; None if it is to be drawn as a profile.

    Args:
        image: (height, width), True for a square image, False for a profile; None goes by the columns' names.
        d: the number of columns.
        columns: their names, for :func:`image_size`.

    Raises:
        ValueError: the number of pixels is not d.
    """
    if image is None:
        return image_size(columns)
    if image is False:
        return None
    if image is True:
        side = math.isqrt(d)
        if side * side != d:
            raise ValueError(f"image=True needs a square image, and {d} is not a square: pass image=(height, width)")
        return side, side
    if len(image) != 2:
        raise ValueError(f"image must be (height, width), got {tuple(image)}")
    height, width = (check_whole(side, "image") for side in image)
    if height * width != d:
        raise ValueError(
            f"image=({height}, {width}) has {height * width} pixels, but the rows have {d} columns: pass a height and "
            f"a width whose product is {d}"
        )
    return height, width


def mosaic(
    grid: np.ndarray,
    image: tuple[int, int],
    *,
    left: Sequence[str] = (),
    below: Sequence[str] = (),
    unit: str = "value",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Images on a grid, with a common grey scale; NaN is drawn in colour.

    Args:
        grid: rows of images (r, c, d).
        image: height and width of an image.
        left: labels of the grid's rows; empty for none.
        below: labels of the grid's columns; empty for none.
        unit: the unit of the pixels, for the colour bar.
        limits: the values drawn black and white; None uses the minimum and the maximum.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: ``limits`` are not two increasing numbers.
    """
    r, c, _ = grid.shape
    h, w = image
    gap = max(1, round(0.08 * w))
    high, wide = r * (h + gap) - gap, c * (w + gap) - gap
    if limits is None:
        limits = float(np.nanmin(grid)), float(np.nanmax(grid))
        limits = limits if limits[0] < limits[1] else (limits[0], limits[0] + 1)
    elif len(limits) != 2 or not limits[0] < limits[1]:
        raise ValueError(f"limits must be two increasing numbers, got {tuple(limits)}")
    scale = ScalarMappable(Normalize(*limits, clip=True), colormaps["gray"])
    canvas = np.ones((high, wide, 4))
    for i in range(r):
        for j in range(c):
            tile = grid[i, j].reshape(h, w)
            shown = np.asarray(scale.to_rgba(np.nan_to_num(tile)))
            shown[np.isnan(tile)] = to_rgba(PALETTE[1])
            canvas[i * (h + gap) :, j * (w + gap) :][:h, :w] = shown
    if ax is None:
        ax = new_axes(ax, (SIZE[0], min(6.0, max(1.1, 0.4 * bool(below) + 0.2 + 2.5 * high / wide))))
        whole = ax.get_figure(root=True)
        assert whole is not None
        whole.set_layout_engine("compressed")  # the counterpart of "constrained" for axes of fixed aspect
    ax.imshow(canvas, interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    thin = max(1, -(-len(below) // 9))  # no more labels than fit
    ax.set_xticks([(j + 0.5) * (w + gap) - gap / 2 - 0.5 for j in range(c)][::thin] if below else [], below[::thin])
    ax.set_yticks([(i + 0.5) * (h + gap) - gap / 2 - 0.5 for i in range(r)] if left else [], left)
    bar = ax.figure.colorbar(scale, ax=ax, fraction=0.035, pad=0.02, aspect=max(8, 20 * high / wide))
    bar.set_label(unit, fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT - 1)
    bar.ax.locator_params(nbins=max(1, min(4, round(5 * SIZE[0] * high / wide))))  # no more labels than fit
    bar.outline.set_visible(False)
    return ax


def standardised(values: np.ndarray, standard: ArrayLike | None) -> np.ndarray:
    """Rows (..., d) in standard deviations from the column means of ``standard`` (n, d); unchanged if it is None.

    Raises:
        ValueError: ``standard`` has the wrong width, or a constant column.
    """
    if standard is None:
        return values
    shift, unit = moments(standard, values.shape[-1])
    return (values - shift) / unit


def moments(standard: ArrayLike, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the columns of ``standard`` (d,), over the observed entries."""
    rows = array(standard)
    if rows.ndim != 2 or rows.shape[1] != d:
        raise ValueError(f"standard has shape {rows.shape}: pass rows with the {d} columns of the plot")
    unit = np.nanstd(rows, 0)
    if not (unit > 0).all():
        raise ValueError(f"column {int(np.argmin(unit > 0))} of standard is constant: omit standard")
    return np.nanmean(rows, 0), unit


def column_axis(ax: Axes, d: int, columns: Sequence[str], standard: ArrayLike | None, unit: str) -> None:
    """Labels for columns on the horizontal axis and their values on the vertical one."""
    if columns and d <= MANY:
        turned = sum(map(len, columns)) > 40
        ax.set_xticks(range(d), columns, rotation=30 if turned else 0, ha="right" if turned else "center")
        ax.tick_params(axis="x", labelsize=TEXT - 1)
    else:
        ax.set_xlabel("column", fontsize=TEXT)
        ax.locator_params(axis="x", integer=True)
    ax.set_ylabel(unit if standard is None else "deviations from the mean", fontsize=TEXT)


def gradient(ax: Axes, lines: np.ndarray, position: np.ndarray, label: str) -> None:
    """Profiles (s, d), coloured by their position (s,), with a colour bar."""
    scale = ScalarMappable(Normalize(position.min(), position.max()), colormaps["cividis"])
    for place, profile in zip(position, lines, strict=True):
        ax.plot(profile, color=scale.to_rgba(place), linewidth=1.2, marker="o", markersize=2)
    bar = ax.figure.colorbar(scale, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT - 1)


def pick(rows: Sequence[int] | None, n: int, usual: int) -> list[int]:
    """The numbers of the rows to draw: the first few by default.

    Raises:
        ValueError: a row does not exist, or there are none.
    """
    chosen = list(range(min(n, usual))) if rows is None else [check_whole(row, "rows", 0) for row in rows]
    if not chosen:
        raise ValueError("rows is empty: pass the numbers of rows of x, or None for the first ones")
    if max(chosen) >= n:
        raise ValueError(f"rows: {max(chosen)} is out of range, as x has {n} rows, counted from 0")
    return chosen


def same_shape(x: Tensor, given: ArrayLike, name: str) -> np.ndarray:
    """``given`` as an array with the shape of the rows ``x``.

    Raises:
        ValueError: it has another shape.
    """
    values = array(given)
    if values.shape != tuple(x.shape):
        raise ValueError(f"{name} has shape {values.shape}, but x has {tuple(x.shape)}: pass values for the same rows")
    return values
