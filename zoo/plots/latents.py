"""Posteriors of the rows under the guide: maps of factors and of components."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from torch import Tensor

from zoo.algebra.mixture_covariances import KINDS, covariances
from zoo.alignment.canonical import canonical_transform
from zoo.alignment.symmetry import mixture_of
from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import layout
from zoo.base.pairs import Trained, known_columns, pair_of, rows_of
from zoo.base.protocols import GaussianMixture, Pair
from zoo.data.dataset import Dataset
from zoo.factors.classification import classify
from zoo.factors.decoding import encode, factor_site
from zoo.plots.images import array
from zoo.plots.maps import points, sample
from zoo.plots.style import GREY, MARKERS, PALETTE, SIZE, TEXT, classes, colour, groups, legend_above, new_axes

MAP = (3.5, 3.2)  # inches: room for a plane in equal units, and for a legend above it
HATCHES = ("", "////", "....", "xxxx", "----", "oooo", "||||", "++++")


def latent(
    run: Trained,
    x: ArrayLike,
    *,
    labels: Tensor | np.ndarray | Sequence[Any] | None = None,
    label_names: Sequence[str] | None = None,
    factors: tuple[int, int] | int = (0, 1),
    draws: int = 200,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The latent variables of the rows under the guide.

    Factors: the posterior means in the plane of two factors, with a colour and a marker for every label; of more than
    5,000 rows a sample, or without labels their density, which the axis says. A single factor as a
    histogram by label, or without labels against the row number. A mixture (discrete ``component``): the first two
    columns of the data, coloured by the responsibilities of the components, with their ellipses; the marker shows the
    label, or without labels the most probable component.

    Args:
        run: a trained pair.
        x: rows (n, d) or a :class:`zoo.data.Dataset`, whose labels are then used.
        labels: n labels; None uses the data set's.
        label_names: the names of integer labels, which are indices from 0.
        factors: the numbers of two factors, counted from 0, or of a single one.
        draws: number of draws for the posterior means, where these have no closed form.
        seed: seed of these draws.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the number of labels differs from that of the rows, a label or a factor
            is out of range, or the model has neither factors nor a discrete ``component`` per row.
    """
    run = pair_of(run)
    if isinstance(x, Dataset) and labels is None:
        labels, label_names = x.labels, label_names or x.label_names
    columns = known_columns(run, x)
    data = rows_of(run, x)
    marks, names = classes(labels, label_names, len(data))
    if _has_components(run, data):
        shares = classify(run, data, draws=draws, seed=seed).responsibilities.numpy()
        return _mixture(unwrapped(run.model), data, shares, marks, names, columns, new_axes(ax))
    factor_site(run, "latent", decoding=False)
    mean = encode(run, data, draws=draws, seed=seed).cpu().numpy()  # (n, k)
    chosen_factors = _check_factors(factors, mean.shape[1])
    ax = new_axes(ax, MAP if len(chosen_factors) == 2 else SIZE)
    titles = [f"factor {factor} (posterior mean)" for factor in chosen_factors]
    one = mean[:, chosen_factors[0]]
    if len(chosen_factors) == 1 and marks is not None:
        edges = list(np.histogram_bin_edges(one, bins=min(40, max(8, len(mean) // 10))))
        for i, chosen in groups(marks, names, len(mean)):
            ax.hist(one[chosen], edges, color=colour(i), alpha=0.55, label=names[i], edgecolor=colour(i))
        ax.set_xlabel(titles[0], fontsize=TEXT)
        ax.set_ylabel("rows", fontsize=TEXT)
    elif len(chosen_factors) == 1:
        style: dict[str, Any] = {"s": 9 if len(mean) < 2000 else 4, "linewidths": 0.0, "alpha": 0.8}
        ax.scatter(np.arange(len(mean)), one, color=PALETTE[0], **style)
        ax.set_xlabel("row", fontsize=TEXT)
        ax.set_ylabel(titles[0], fontsize=TEXT)
    else:
        note = points(ax, mean[:, chosen_factors], marks, names)
        ax.set_xlabel(f"{titles[0]}\n{note}" if note else titles[0], fontsize=TEXT)
        ax.set_ylabel(titles[1], fontsize=TEXT)
        return ax
    if marks is not None:
        legend_above(ax)
    return ax


def responsibilities(run: Trained, x: ArrayLike, *, draws: int = 200, seed: int = 0, ax: Axes | None = None) -> Axes:
    """The responsibilities of a mixture for every row, stacked, with rows sorted by component and responsibility.

    A well separated component is a block with a vertical edge; rows between two components form a slope. Every
    component has its own hatch, and above its block the number of rows for which it is the most probable one.

    Args:
        run: a trained pair, of a mixture with a discrete ``component`` per row.
        x: rows (n, d) or a :class:`zoo.data.Dataset`.
        draws: number of draws for the responsibilities, where these have no closed form.
        seed: seed of these draws.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the model has no discrete ``component`` per row.
    """
    run = pair_of(run)
    data = rows_of(run, x)
    if not _has_components(run, data):
        name = name_of(run.model)
        raise ValueError(f"{name} has no discrete component per row and thus no responsibilities: use zoo.plots.latent")
    shares = classify(run, data, draws=draws, seed=seed).responsibilities.numpy()  # (n, k)
    n, k = shares.shape
    own = shares.argmax(1)
    order = np.lexsort((-shares[np.arange(n), own], own))
    edges = np.arange(n + 1) - 0.5
    ax = new_axes(ax)
    below = np.zeros(n)
    for j in range(k):
        above = below + shares[order, j]
        style: dict[str, Any] = {"facecolor": colour(j), "edgecolor": "white", "hatch": HATCHES[j % len(HATCHES)]}
        ax.stairs(above, edges, baseline=below, fill=True, linewidth=0.0, label=f"component {j}", **style)
        below = above
        rows = np.flatnonzero(own[order] == j)
        if len(rows):
            ax.annotate(str(len(rows)), (rows.mean(), 1.0), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_ylim(0, 1)
    ax.set_xlabel("rows, sorted", fontsize=TEXT)
    ax.set_ylabel("responsibility", fontsize=TEXT)
    legend_above(ax, lift=0.06)
    return ax


def _check_factors(factors: tuple[int, int] | int, k: int) -> list[int]:
    """The numbers of one or two factors; by default the only one of a model with one factor.

    Raises:
        ValueError: the model does not have a factor, or one is given twice.
    """
    if k == 1 and factors == (0, 1):
        return [0]
    chosen = [factors] if isinstance(factors, int) else list(factors)
    for factor in chosen:
        if check_whole(factor, "factors", 0) >= k:
            raise ValueError(f"factors: {factor} is out of range, as the model has {k} factors, counted from 0")
    if len(chosen) not in (1, 2) or len(set(chosen)) != len(chosen):
        raise ValueError(f"factors must be two different numbers or one, got {factors}")
    return chosen


def ellipses(model: PyroCallable, ax: Axes, *, dims: tuple[int, int] = (0, 1), sds: Sequence[float] = (1, 2)) -> Axes:
    """The components of a Gaussian mixture as ellipses in the plane of two columns, with their numbers at the means.

    Components are numbered as by :func:`zoo.factors.classify`.

    Args:
        model: a :class:`zoo.GMM`, with any of its kinds of covariance.
        ax: the axes to draw on.
        dims: the two columns, counted from 0.
        sds: radii in standard deviations; the inner ellipses are drawn with thicker lines.

    Raises:
        ValueError: the model is not a Gaussian mixture, or does not have a column.
    """
    mean, covariance = _moments(model)  # (k, d), (k, d, d)
    for dim in dims:
        if not 0 <= dim < mean.shape[1]:
            raise ValueError(f"dims={tuple(dims)}, but the model has {mean.shape[1]} columns, counted from 0")
    pick = np.ix_(range(len(mean)), dims, dims)
    for j, (centre, block) in enumerate(zip(mean[:, list(dims)], covariance[pick], strict=True)):
        values, vectors = np.linalg.eigh(block)
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        long, short = 2 * np.sqrt(values[1]), 2 * np.sqrt(max(values[0], 0.0))
        for rank, sd in enumerate(sorted(sds)):
            patch = Ellipse(
                (centre[0], centre[1]),
                sd * long,
                sd * short,
                angle=angle,
                fill=False,
                edgecolor=colour(j),
                linewidth=1.3 - 0.4 * min(rank, 2),
                linestyle="-" if rank == 0 else "--",
            )
            ax.add_patch(patch)
        ax.plot(*centre, marker="+", color=colour(j), markersize=6, markeredgewidth=1.3)
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": TEXT, "fontweight": "bold"}
        style["path_effects"] = [withStroke(linewidth=2, foreground="white")]
        ax.annotate(str(j), (centre[0], centre[1]), (4, 3), color=colour(j), **style)
    ax.autoscale_view()
    return ax


def _has_components(run: Pair, x: Tensor) -> bool:
    """Whether the model has a discrete site ``component`` per row."""
    with run.scope():
        return any(site.name == "component" and site.cardinality for site in layout(run.model, x).local)


@torch.no_grad()
def _moments(model: PyroCallable) -> tuple[np.ndarray, np.ndarray]:
    """Means (k, d) and covariances (k, d, d) of a Gaussian mixture, components in canonical order."""
    if not isinstance(model, GaussianMixture) or model.covariance not in KINDS:
        name = name_of(model)
        raise ValueError(f"{name} is not a Gaussian mixture with mean, scale and covariance: pass a zoo.GMM")
    known = mixture_of(model)
    if known is None:
        return array(model.mean), array(covariances(model.scale.double(), model.covariance, *model.mean.shape))
    order = canonical_transform(model).order
    return array(known.mean[order]), array(known.covariance[order])


def _mixture(
    model: PyroCallable,
    x: Tensor,
    shares: np.ndarray,
    marks: np.ndarray | None,
    names: list[str],
    columns: Sequence[str],
    ax: Axes,
) -> Axes:
    """Rows in the plane of the first two columns, coloured by their responsibilities ``shares`` (n, k)."""
    rows = x.detach().cpu().numpy()
    palette = np.array([to_rgb(colour(j)) for j in range(shares.shape[1])])
    colours = np.clip(shares @ palette, 0, 1)
    titles = [*columns[:2], *(f"x{j}" for j in range(len(columns[:2]), 2))]
    one = rows.shape[1] == 1
    across, up = (np.arange(len(rows)), rows[:, 0]) if one else (rows[:, 0], rows[:, 1])
    size = 10 if len(rows) < 2000 else 4
    k = shares.shape[1]
    parts = groups(marks, names, len(rows))
    if marks is None:  # the marker repeats the information of the colour
        parts = groups(shares.argmax(1), [str(j) for j in range(k)], len(rows))
    kept = np.zeros(len(rows), bool)
    order, note = sample(len(rows))
    kept[order] = True
    for i, group in parts:
        chosen = group & kept
        style: dict[str, Any] = {"s": size, "marker": MARKERS[i % len(MARKERS)], "linewidths": 0.0, "alpha": 0.75}
        ax.scatter(across[chosen], up[chosen], c=colours[chosen], **style)
    own = [MARKERS[j % len(MARKERS)] if marks is None else "o" for j in range(k)]
    handles = [
        Line2D([], [], color=colour(j), marker=own[j], linestyle="", markersize=4, label=f"component {j}")
        for j in range(k)
    ]
    if marks is not None:
        handles += [
            Line2D([], [], color=GREY, marker=mark, linestyle="", markersize=4, label=name)
            for mark, name in zip(itertools.cycle(MARKERS), names, strict=False)
        ]
    if one:
        ax.set_xlabel(f"row\n{note}" if note else "row", fontsize=TEXT)
        ax.set_ylabel(titles[0], fontsize=TEXT)
    else:
        if isinstance(model, GaussianMixture):
            ellipses(model, ax)
        ax.set_xlabel(f"{titles[0]}\n{note}" if note else titles[0], fontsize=TEXT)
        ax.set_ylabel(titles[1], fontsize=TEXT)
    legend_above(ax, handles)
    return ax
