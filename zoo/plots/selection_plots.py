"""Model selection and model checks: sizes, bounds, relevance of the factors, and predictive checks."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from zoo.base.checks import check_whole
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.diagnostics.model.selection import Selection
from zoo.plots.images import array
from zoo.plots.style import GREY, PALETTE, SIZE, TEXT, colour, legend_above, marker, new_axes
from zoo.posterior.evidence import Bounds
from zoo.posterior.rates import RateDistortion

MANY = 12  # largest number of ticks under an axis
SHORT = {"standard deviation": "sd", "correlation": "corr.", "excess kurtosis": "kurtosis"}
LONGEST = 30  # largest number of letters beside an axis


def selection(found: Selection, *, ax: Axes | None = None) -> Axes:
    r"""The measures of every size in a selection, in nats per row on one axis; higher is better.

    These are held-out log p(x), and the criteria on its scale: -AIC / 2n and -BIC / 2n, a fit's log-likelihood per row
    minus its penalty, and the bound on log p(X) / n of a Bayesian model. A ring marks the size that each measure
    selects. Bars are two standard errors of the difference to the best size over the same rows, so the best has none: a
    size whose bar reaches the best is hardly worse. (The standard error of a mean is mostly due to the variation
    between rows, which is common to all sizes.) Triangles at the top mark the numbers of factors by parallel analysis
    and Velicer's MAP, where these lie among the sizes.

    Args:
        found: from :func:`zoo.select_size`. Sizes that failed, or failed on held-out rows only, are marked at the
            bottom.
        ax: the axes to draw on; None creates a figure.
    """
    ax = new_axes(ax)
    names = {"held_out": "held out", "aic": "AIC", "bic": "BIC", "bound": "bound"}
    scale = {"held_out": 1.0, "aic": -0.5 / found.n, "bic": -0.5 / found.n, "bound": 1 / found.n}
    for number, by in enumerate(names):
        rows = [row for row in found.table if getattr(row, by) is not None]
        if not rows:
            continue
        values = np.array([row.value for row in rows])
        height = scale[by] * np.array([getattr(row, by) for row in rows])
        error = np.zeros(len(rows))
        if by == "held_out":
            error = np.array([2 * found.below(row.value)[1] for row in rows])
        order = values.argsort()
        chosen = found.best(by).value  # type: ignore[arg-type]
        style: dict[str, Any] = {"color": colour(number), "marker": marker(number), "markersize": 4, "linewidth": 1.1}
        style |= {"linestyle": ("-", "--", ":", "-.")[number], "capsize": 2, "elinewidth": 0.9}
        ax.errorbar(values[order], height[order], error[order], label=f"{names[by]}: best {chosen}", **style)
        at = float(height[values == chosen][0])
        ax.plot(chosen, at, "o", markersize=9, markerfacecolor="none", markeredgecolor=colour(number), linewidth=1.1)
    bottom = blended_transform_factory(ax.transData, ax.transAxes)
    for mark, label, failed in (
        ("x", "failed", [row.value for row in found.table if row.best is None]),
        ("1", "failed, held out", [row.value for row in found.table if row.best is not None and row.error is not None]),
    ):
        if failed:
            style = {"linestyle": "", "marker": mark, "markersize": 6, "markeredgewidth": 1.4, "color": "black"}
            ax.plot(failed, np.full(len(failed), 0.04), transform=bottom, label=label, **style)
    values = np.array(sorted(row.value for row in found.table))
    _mark_retention(ax, found)
    if len(values) <= MANY:
        ax.set_xticks(values)
    else:
        ax.locator_params(axis="x", integer=True)
    margin = 0.05 * max(float(values[-1] - values[0]), 1.0)
    ax.set_xlim(values[0] - margin, values[-1] + margin)
    ax.set_xlabel("number of factors or components", fontsize=TEXT)
    ax.set_ylabel("nats per row, higher is better", fontsize=TEXT)
    ax.margins(y=0.12)
    _plain(ax)
    legend_above(ax)
    return ax


def _mark_retention(ax: Axes, found: Selection) -> None:
    """Triangles at the top of the axes for the numbers of factors by parallel analysis and MAP."""
    if found.retention is None:
        return
    top = blended_transform_factory(ax.transData, ax.transAxes)
    rules = {"parallel analysis": found.retention.parallel, "MAP": found.retention.map}
    first, last = min(row.value for row in found.table), max(row.value for row in found.table)
    for (name, value), face, size in zip(rules.items(), (GREY, "white"), (7, 4), strict=True):
        at = [value] if first <= value <= last else []
        style: dict[str, Any] = {"linestyle": "", "marker": "v", "markersize": size, "color": GREY}
        ax.plot(at, [0.96] * len(at), transform=top, markerfacecolor=face, label=f"{name}: {value}", **style)


def bounds(found: Bounds, *, ax: Axes | None = None) -> Axes:
    """Bounds on log p(x): means over the rows, or totals with shared sites, with two standard errors of the draws.

    All are below log p(x) in expectation, so the highest is the tightest; a bound that still rises with the number of
    draws has not reached its limit. The dashed line is log p(x), if known. The number above a bound is its difference
    from log p(x), or from the highest bound if log p(x) is unknown.

    Args:
        found: from :func:`zoo.log_evidence_bounds`.
        ax: the axes to draw on; None creates a figure.
    """
    ax = new_axes(ax)
    rungs = [rung for rung in found.rungs if rung.name != "exact"]
    heights = np.array([rung.mean for rung in rungs])
    what = "total" if found.shared else "mean over the rows"
    place = np.arange(len(rungs))
    style: dict[str, Any] = {"color": PALETTE[0], "marker": "o", "markersize": 4, "linestyle": "", "capsize": 2.5}
    ax.errorbar(
        place,
        heights,
        [2 * rung.mean_se for rung in rungs],
        label=f"{what}, 2 se",
        **style,
    )
    weighted = [i for i, rung in enumerate(rungs) if rung.name != "AIS"]
    ax.plot(place[weighted], heights[weighted], color=PALETTE[0], linewidth=0.9, alpha=0.6)
    last = found.rungs[-1]
    top = last if last.name == "exact" else max(rungs, key=lambda rung: rung.mean)
    for at, rung in zip(place, rungs, strict=True):
        if rung is not top:
            text = f"{rung.mean - top.mean:+.2g}"
            ax.annotate(
                text,
                (at, rung.mean + 2 * rung.mean_se),
                (0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=TEXT - 1,
            )
    if last.name == "exact":
        name = "log p(X)" if found.shared else "log p(x)"
        ax.axhline(last.mean, color="black", linewidth=0.9, linestyle="--", label=name)
    ax.set_xticks(place, [rung.name.replace("-", "\n") for rung in rungs])
    ax.set_xlim(-0.5, len(rungs) - 0.5)
    ax.margins(y=0.18)
    ax.set_ylabel(found.unit, fontsize=TEXT)
    _plain(ax)
    legend_above(ax)
    return ax


def relevance(found: RateDistortion, *, by: Literal["variance", "kl"] = "variance", ax: Axes | None = None) -> Axes:
    r"""The relevance of the units of z, in decreasing order.

    By ``"variance"``: the variance of a unit's posterior mean over the rows, :math:`\mathrm{Var}_x E_q[z_j \mid x]`, on
    a logarithmic axis. Bars start at the threshold of :func:`zoo.posterior.rate_distortion`: upward bars are active
    units, downward (hatched) bars collapsed ones. A bar that reaches the axis, marked by a triangle, means 0.

    By ``"kl"``: the KL term of a unit in the bound in nats per row, :math:`\mathrm{KL}(q(z_j \mid x) \| p(z_j))`;
    collapsed units are hatched.

    Args:
        found: from :func:`zoo.posterior.rate_distortion`.
        by: the measure.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: ``by`` is unknown, or the units have no separate KL.
    """
    if by not in ("variance", "kl"):
        raise ValueError(f"by must be one of variance, kl; got {by!r}")
    if by == "kl" and found.unit_kl is None:
        raise ValueError("this guide has no density per unit and thus no KL per unit: use by='variance'")
    measured = found.variance if found.unit_kl is None or by == "variance" else found.unit_kl
    values, active = array(measured), array(found.active) > 0
    order = np.argsort(-values, kind="stable")
    place = np.arange(len(values))
    values, active = values[order], active[order]
    ax = new_axes(ax)
    base = 0.0
    height = values
    if by == "variance":
        base = found.threshold if found.threshold > 0 else float(values[values > 0].min(initial=1.0)) / 2
        lowest = min(values[values > 0].min(initial=base), base) / 3
        ax.set_yscale("log")
        ax.set_ylim(lowest, 2 * max(values.max(), base))
        height = np.maximum(values, lowest) - base
        ax.axhline(base, color="black", linewidth=0.9, linestyle="--", label=f"threshold {found.threshold:g}")
        none = values < lowest
        if none.any():
            bottom = blended_transform_factory(ax.transData, ax.transAxes)
            style: dict[str, Any] = {"linestyle": "", "marker": "v", "markersize": 4, "color": PALETTE[5]}
            ax.plot(place[none], np.full(none.sum(), 0.03), transform=bottom, label="0", zorder=3, **style)
    for chosen, label, number, hatch in ((active, "active", 0, ""), (~active, "collapsed", 5, "/////")):
        if chosen.any():
            face = colour(number) if not hatch else "white"
            style = {"color": face, "edgecolor": colour(number), "hatch": hatch, "linewidth": 0.8}
            text = f"{int(chosen.sum())} {label}"
            ax.bar(place[chosen], height[chosen], 0.75, bottom=base, label=text, **style)
    _unit_ticks(ax, order)
    ax.set_xlabel("unit of z, sorted", fontsize=TEXT)
    ax.set_ylabel(
        "variance of the posterior mean" if by == "variance" else "KL from the prior,\nnats per row", fontsize=TEXT
    )
    legend_above(ax)
    return ax


def predictive(found: PredictiveCheck, *, most: int = 16, ax: Axes | None = None) -> Axes:
    """Statistics of the data relative to those of replicated data, in order of decreasing distance.

    Values are in standard deviations of the replicates from their mean: the bar is the central interval of the
    replicates, the marker the value in the data, a triangle outside the bar and a circle inside. Statistics outside
    come first. Where some are very far away, the axis is linear up to 3 and logarithmic beyond. An infinite distance
    (all replicates are equal) is an arrow at the edge.

    Args:
        found: from :func:`zoo.predictive_check`.
        most: largest number of statistics to draw; the legend counts all.
        ax: the axes to draw on; None creates a figure whose height depends on the number of statistics.

    Raises:
        ValueError: ``most`` is not a whole number of at least 1.
    """
    check_whole(most, "most")
    observed, replicates = array(found.observed), array(found.replicates)
    low, high = array(found.interval)
    mean, deviation = np.nanmean(replicates, 0), np.nanstd(replicates, 0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance, low, high = ((at - mean) / deviation for at in (observed, low, high))
    distance = np.where(observed == mean, 0.0, distance)
    low, high = (np.nan_to_num(end, nan=0.0) for end in (low, high))
    outside = list(found.outside)
    far = np.abs(distance)
    inside = [i for i in np.argsort(-far, kind="stable") if i not in set(outside)]
    chosen = [*outside, *inside][:most]
    place = np.arange(len(chosen))
    ax = new_axes(ax, (SIZE[0], 0.75 + 0.155 * len(chosen)))
    ax.hlines(place, low[chosen], high[chosen], color=GREY, linewidth=3.0, alpha=0.5, label=f"{found.level * 100:g}%")
    known = far[chosen][np.isfinite(far[chosen])]
    widest = max(known.max(initial=0.0), np.abs(low[chosen]).max(), high[chosen].max())
    log = widest > 12
    edge = widest * 1.4 if log else widest * 1.08
    out = np.isin(chosen, outside)
    total = len(observed)
    for own, label, number, mark in (
        (out, f"outside: {len(outside)} of {total}", 5, "^"),
        (~out, f"inside: {total - len(outside)}", 0, "o"),
    ):
        if own.any():
            at = np.clip(distance[chosen][own], -edge, edge)
            style: dict[str, Any] = {"linestyle": "", "marker": mark, "markersize": 4.5, "color": colour(number)}
            ax.plot(at, place[own], label=label, clip_on=False, zorder=3, **style)
    for i in place[~np.isfinite(distance[chosen])]:
        side = np.sign(observed[chosen[i]] - mean[chosen[i]])
        ax.annotate("", (side * edge, i), (side * edge * 0.7, i), arrowprops={"arrowstyle": "->", "lw": 1.0})
    if log:
        ax.set_xscale("symlog", linthresh=3, linscale=1.5)
        powers = [10.0**p for p in range(1, int(np.ceil(np.log10(edge))) + 1) if 10.0**p <= edge]
        ticks = [-2.0, 0.0, 2.0, *powers, *(-power for power in powers)]
        ax.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        ax.minorticks_off()
    ax.set_xlim(-edge, edge)
    ax.axvline(0.0, color=GREY, linewidth=0.7, zorder=0)
    names = [_short(found.statistics[i], found.where[i]) for i in chosen]
    ax.set_yticks(place, names, fontsize=TEXT - 1.5)
    ax.set_ylim(len(chosen) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("sd of the replicates from their mean", fontsize=TEXT)
    legend_above(ax)
    return ax


def marginals(found: PredictiveCheck, column: int | str = 0, *, ax: Axes | None = None) -> Axes:
    """The quantiles of a column against those of replicated data: on the diagonal where the model fits the column.

    The band is the pointwise central interval of the replicates' quantiles, so that even under a correct model a few
    quantiles of many columns lie outside; these are triangles. The quantiles of a column are correlated: misfit shows
    as a range of them outside the band, not as a single one.

    Args:
        found: from :func:`zoo.predictive_check`.
        column: the number of the column from 0, or its name.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: there is no such column.
    """
    if isinstance(column, str):
        if column not in found.columns:
            raise ValueError(f"there is no column {column!r}, only {', '.join(found.columns[:20])}")
        column = found.columns.index(column)
    if not 0 <= column < len(found.columns):
        raise ValueError(f"column={column}, but the rows have {len(found.columns)} columns, counted from 0")
    own = array(found.marginal)[:, column]
    low, high = array(found.band)[:, :, column]
    middle = (low + high) / 2
    ax = new_axes(ax)
    ax.fill_between(middle, low, high, color=GREY, alpha=0.3, linewidth=0.0, label=f"{100 * found.level:g}%")
    ends = [min(middle[0], own[0]), max(middle[-1], own[-1])]
    ax.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", zorder=1)
    out = (own < low) | (own > high)
    for chosen, label, number, mark in (
        (~out, f"inside: {int((~out).sum())} of {len(own)} quantiles", 0, "o"),
        (out, f"outside: {int(out.sum())}", 5, "^"),
    ):
        if chosen.any():
            style: dict[str, Any] = {"linestyle": "", "marker": mark, "markersize": 3.5, "color": colour(number)}
            ax.plot(middle[chosen], own[chosen], label=label, **style)
    ax.set_xlabel(f"{found.columns[column]}: quantiles of the replicates", fontsize=TEXT)
    ax.set_ylabel("quantiles of the rows", fontsize=TEXT)
    legend_above(ax)
    return ax


def _short(statistic: str, where: str) -> str:
    """Statistic and columns, shortened to fit beside an axis."""
    text = f"{SHORT.get(statistic, statistic.removeprefix('quantile '))} {where}".strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"


def _unit_ticks(ax: Axes, order: np.ndarray) -> None:
    """The numbers of sorted units, as many as fit."""
    thin = max(1, -(-len(order) // (2 * MANY)))
    ax.set_xticks(np.arange(len(order))[::thin], [str(unit) for unit in order[::thin]])
    ax.tick_params(axis="x", labelsize=TEXT - (1 if len(order) <= MANY else 2))


def _plain(ax: Axes) -> None:
    """Plain numbers at the ticks, without an offset, which would overlap the legend."""
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
