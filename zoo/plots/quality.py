"""The quality of q: gap and k-hat per row, ranks of simulated truths, and coverage."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from zoo.diagnostics.guide.calibration import Calibration
from zoo.diagnostics.guide.importance import ImportanceMoments
from zoo.diagnostics.guide.uniform import ecdf_band
from zoo.plots.style import GREY, PALETTE, TEXT, colour, legend_above, marker, new_axes
from zoo.posterior.evaluation import Evaluation

LIMITS = ((0.5, "0.5: finite variance"), (0.7, "0.7: reliable"))  # of k-hat
SHOWN = 7  # largest number of units with their own colour and name


def row_gaps(found: Evaluation, *, ax: Axes | None = None) -> Axes:
    """The gap of every row in decreasing order, with two standard errors where it is estimated.

    Rows with k-hat above 0.7 are marked: where log p(x) is estimated, their gaps are underestimated. The numbers of the
    three rows with the largest gaps are annotated. (:func:`zoo.plots.gap` compares the gaps of several guides.)

    Gaps at the level of rounding errors are drawn as 0: those below 1e-9 (in float32 1e-6) times the largest absolute
    log p(x), or times a nat if that is more. If all are, the axis extends to 1 nat.

    With shared sites theta, the gap is that of a row given theta, averaged over q(theta); the legend gives the gap of
    all rows together, including that of theta.

    Args:
        found: from :func:`zoo.evaluate`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: a gap is not finite (the message names the row), or there are no gaps per row, as there is no local
            site or the guide draws all rows jointly.
    """
    shared = found.shared
    if shared is not None and bool(found.khat.isnan().all()):
        raise ValueError(
            "there are no gaps per row: the model has no local site, or the guide draws all rows jointly; the gap of "
            f"all rows together, found.shared.gap, is {shared.gap:.3g} nats"
        )
    gap, error, khat = _numbers(found.log_marginal - found.elbo), _numbers(found.gap_se), _numbers(found.khat)
    if not np.isfinite(gap).all():
        row = int(np.flatnonzero(~np.isfinite(gap))[0])
        raise ValueError(f"the gap of row {row} is {gap[row]}: omit such rows")
    resolution = max(1e-9, 8 * torch.finfo(found.elbo.dtype).eps) * max(1.0, np.abs(_numbers(found.log_marginal)).max())
    gap = np.where(np.abs(gap) < resolution, 0.0, gap)
    ax = new_axes(ax)
    order = np.argsort(-gap, kind="stable")
    place = np.arange(len(gap))
    estimated = bool(error.any())
    far = khat[order] > 0.7
    size = 9 if len(gap) < 500 else 3
    if estimated:
        ax.vlines(place, (gap - 2 * error)[order], (gap + 2 * error)[order], color=GREY, linewidth=0.6, alpha=0.6)
    for chosen, label, number in ((~far, "k-hat up to 0.7", 0), (far, "k-hat above 0.7", 5)):
        if chosen.any():
            ax.scatter(
                place[chosen],
                gap[order][chosen],
                s=size if number == 0 else 2 * size,
                color=colour(number),
                marker=marker(0 if number == 0 else 2),
                linewidths=0.0,
                label=label,
                zorder=3,
            )
    if np.ptp(gap) > 1e-3 * np.abs(gap).max(initial=0.0):  # otherwise all are equal up to rounding
        widest = ", ".join(map(str, order[:3]))
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": TEXT - 2, "va": "center"}
        ax.annotate(f"row{'s' * (len(gap) > 1)} {widest}", (place[0], gap[order[0]]), (5, 0), **style)
    ax.axhline(gap.mean(), color="black", linewidth=0.9, linestyle="--", label=f"mean {gap.mean():.3g}")
    ax.axhline(0.0, color=GREY, linewidth=0.7, zorder=0)
    if not gap.any():
        ax.set_ylim(-0.1, 1.0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")  # an offset would overlap the legend
    ax.set_xlabel("rows, largest gap first", fontsize=TEXT)
    how = "" if found.estimator == "exact" else f"\n(log p(x) by {found.estimator})"
    if shared is not None:
        how = f"\n(given {', '.join(shared.sites) or 'the guide'})"
        ax.plot([], [], " ", label=f"all rows: {shared.gap:.3g} (se {_total_error(found):.1g})")
    ax.set_ylabel(f"gap, nats{how}", fontsize=TEXT)
    legend_above(ax)
    return ax


def _total_error(found: Evaluation) -> float:
    """The standard error of the gap of all rows together."""
    assert found.shared is not None
    return float(np.hypot(found.shared.total_se, found.shared.log_marginal_se))


def khat(found: Evaluation | ImportanceMoments, *, ax: Axes | None = None) -> Axes:
    r"""The Pareto shape k-hat of every row, with the thresholds 0.5 and 0.7.

    Rows whose weights are all equal, or bounded, have k-hat :math:`-\infty` and are drawn at the bottom. The limit of
    :func:`zoo.importance_moments` is drawn as well if few draws lower it. With shared sites, the dash-dotted line is
    the k-hat of these, and the k-hats of rows are given them; rows without weights have no marker.

    Args:
        found: from :func:`zoo.evaluate` or :func:`zoo.importance_moments`.
        ax: the axes to draw on; None creates a figure.
    """
    values = _numbers(found.khat)
    shared = found.shared if isinstance(found, Evaluation) else None
    together = np.nan if shared is None else shared.khat
    ax = new_axes(ax)
    known = np.append(values, together)
    known = known[np.isfinite(known)]
    low, high = (min(known.min(), 0.0), max(known.max(), 0.8)) if len(known) else (-0.5, 0.8)
    floor = low - 0.12 * (high - low)
    limits = [*LIMITS]
    if isinstance(found, ImportanceMoments) and found.limit < 0.7:
        lower = [(at, name) for at, name in LIMITS if at < found.limit - 0.01]  # two lines would overlap
        limits = [*lower, (found.limit, f"{found.limit:.2f}: the most for {found.draws} draws")]
    limit = limits[-1][0]
    row = np.arange(len(values))
    size = 9 if len(values) < 500 else 3
    bottom = np.isneginf(values)
    parts = (
        (~bottom & (values <= limit), 0, "o", None),
        (~bottom & (values > limit), 5, "^", f"{int((values > limit).sum())} of {len(values)} rows above"),
        (bottom, 2, "s", f"{int(bottom.sum())} at the floor"),
    )
    for chosen, number, mark, label in parts:
        if chosen.any():
            height = np.where(bottom, floor, values)[chosen]
            style: dict[str, Any] = {"s": size, "marker": mark, "linewidths": 0.0, "alpha": 0.8}
            ax.scatter(row[chosen], height, color=colour(number), label=label, **style)
    for at, name in limits:
        ax.axhline(at, color="black", linewidth=0.9, linestyle="--" if at == limit else ":", label=name)
    if shared is not None and not np.isnan(together):
        style = {"color": PALETTE[2], "linewidth": 1.2, "linestyle": "-."}
        at, sites = max(together, floor), ", ".join(shared.sites) or "all rows together"
        ax.axhline(at, label=f"{sites}: {together:.2f}", **style)
    if bottom.any():
        ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
        ax.set_yticks([floor, *ticks], ["$-\\infty$", *(f"{tick:.2g}" for tick in ticks)])
    ax.set_ylim((floor if bottom.any() else low) - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel("row", fontsize=TEXT)
    ax.set_ylabel("k-hat", fontsize=TEXT)
    legend_above(ax)
    return ax


def ranks(found: Calibration, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    """The ranks of simulated truths in q: the ECDF of u minus that of uniform numbers, for every unit.

    The curve of a calibrated q stays inside the band with probability ``level``. A curve that rises above 0 and then
    falls below it means that q is too narrow, its mirror image that q is too wide, and a curve on one side of 0 a bias.
    The likelihood's curve is dashed.

    Args:
        found: from :func:`zoo.diagnostics.sbc`.
        level: the probability that the band contains a whole curve.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: ``level`` is not in (0, 1).

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness
        of fit evaluation and multiple sample comparison, Statistics and Computing 32.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability in (0, 1), got {level!r}")
    ax = new_axes(ax)
    at, low, high = ecdf_band(found.simulations, level)
    ax.fill_between(at, low, high, color=GREY, alpha=0.25, linewidth=0.0, label=f"{100 * level:g}% of curves")
    grid = np.linspace(0, 1, 401)

    def curve(u: Tensor) -> np.ndarray:
        return np.searchsorted(np.sort(_numbers(u)), grid, side="right") / found.simulations - grid

    units = found.pit.shape[1]
    for j, unit in enumerate(found.units):
        own = units <= SHOWN
        label = unit if own else f"{units} units" if j == 0 else None
        style: dict[str, Any] = {"color": colour(j) if own else PALETTE[0], "alpha": 1.0 if own else 0.4}
        ax.plot(grid, curve(found.pit[:, j]), linewidth=1.1, label=label, **style)
    ax.plot(grid, curve(found.likelihood_pit), color="black", linewidth=0.9, linestyle="--", label="likelihood")
    ax.axhline(0.0, color=GREY, linewidth=0.7, zorder=0)
    ax.set_xlim(0, 1)
    ax.set_xlabel("u = Q(truth)", fontsize=TEXT)
    ax.set_ylabel("ECDF minus uniform", fontsize=TEXT)
    legend_above(ax)
    return ax


def coverage(found: Calibration, *, ax: Axes | None = None) -> Axes:
    """The coverage of central intervals of q minus their nominal level, with two standard errors.

    Args:
        found: from :func:`zoo.diagnostics.sbc`.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the site is discrete and has no intervals.
    """
    if found.coverage is None or found.coverage_se is None:
        raise ValueError(f"{found.units[0]} is discrete and has no intervals: use zoo.plots.ranks")
    ax = new_axes(ax)
    held, error = _numbers(found.coverage), _numbers(found.coverage_se)  # (levels, k)
    nominal = np.array(found.levels)
    places = np.arange(len(nominal))
    units = held.shape[1]
    own = units <= SHOWN
    shifts = np.linspace(-0.25, 0.25, units) if units > 1 else np.zeros(1)
    for j, shift in zip(range(units), shifts, strict=True):
        label = found.units[j] if own else f"{units} units" if j == 0 else None
        ax.errorbar(
            places + shift,
            100 * (held[:, j] - nominal),
            200 * error[:, j],
            fmt=marker(j) if own else "o",
            markersize=3.5 if own else 2.0,
            linewidth=0.9 if own else 0.5,
            color=colour(j) if own else PALETTE[0],
            label=label,
        )
    ax.axhline(0.0, color="black", linewidth=0.9, linestyle="--", label="nominal")
    ax.set_xticks(places, [f"{100 * level:g}%" for level in found.levels])
    ax.set_xlabel("central interval of q", fontsize=TEXT)
    ax.set_ylabel("coverage minus nominal level,\npercentage points", fontsize=TEXT)
    legend_above(ax)
    return ax


def _numbers(values: Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return values.detach().cpu().double().numpy()
