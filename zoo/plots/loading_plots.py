"""Linear factors: the variance that each explains, and loadings of the columns with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from zoo.alignment.canonical import canonical_transform, to_canonical
from zoo.alignment.loadings import Loadings
from zoo.alignment.symmetry import model_of
from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.moments import Moments
from zoo.infer.run import Fit
from zoo.plots.images import array
from zoo.plots.style import GREY, PALETTE, SIZE, TEXT, colour, legend_above, marker, new_axes


def scree(run: PyroCallable | Fit, x: ArrayLike, *, most: int | None = None, ax: Axes | None = None) -> Axes:
    r"""The eigenvalues of the sample covariance, and the variances that a linear-Gaussian model has along its factors.

    Rows and factors are in units of the noise, :math:`\Psi^{-1/2} x`, where the noise has variance 1 in every direction
    (dashed line), and the factors are rotated to principal axes: a bar extends from the noise to the model's variance
    along the factor, :math:`1 + (W^T \Psi^{-1} W)_{jj}`. At the maximum of the likelihood the bars end at the
    eigenvalues of :math:`\Psi^{-1/2} S \Psi^{-1/2}`, drawn as points; eigenvalues beyond the last bar that are far
    above the line indicate more factors. Where all columns share one noise variance (PPCA), everything is multiplied by
    it: the points are then the eigenvalues of S.

    The percentage above a bar is the factor's share of the columns' variance under the model: of the total variance
    where the columns share one noise variance, else of each column's own variance, averaged over the columns.

    Args:
        run: a linear-Gaussian model (PPCA, FactorAnalysis), or a :class:`zoo.Fit` of one.
        x: rows (n, d) without missing entries.
        most: largest number of eigenvalues; None draws three times the number of factors, and at least 10.
        ax: the axes to draw on; None creates a figure.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: entries are missing, so that there is no sample covariance, or ``most`` is out of range.
    """
    model = model_of(run)
    if canonical_transform(model).rotation is None:
        raise TypeError(f"{name_of(model)} has components, not factors: use zoo.plots.latent")
    data = check_rows(x, model, least=2)
    if bool(data.isnan().any()):
        raise ValueError("x has missing entries (NaN), so its sample covariance is unknown: pass complete rows")
    model = to_canonical(model)
    with torch.no_grad():
        weight, noise = array(model.weight), array(model.noise)
    shared = bool(np.ptp(noise) <= 1e-9 * noise.max())
    root = np.sqrt(noise)
    sample = np.linalg.eigvalsh(array(Moments.of(data).covariance) / np.outer(root, root))[::-1]
    signal = ((weight / root[:, None]) ** 2).sum(0)
    unit = float(noise.mean()) if shared else 1.0
    total = noise + (weight**2).sum(1)
    part = (weight**2).sum(0) / total.sum() if shared else (weight**2 / total[:, None]).mean(0)
    k = len(signal)
    shown = min(len(sample), max(10, 3 * k) if most is None else check_whole(most, "most"))
    ax = new_axes(ax)
    bars = min(k, shown)
    style: dict[str, Any] = {"color": PALETTE[4], "edgecolor": PALETTE[0], "linewidth": 0.7}
    ax.bar(range(bars), unit * signal[:bars], 0.7, bottom=unit, label="factors", **style)
    style = {"color": PALETTE[5], "marker": "o", "markersize": 3.5, "linewidth": 0.9}
    ax.plot(range(shown), unit * sample[:shown], label="rows", **style)
    ax.axhline(unit, color="black", linewidth=0.9, linestyle="--", label=f"noise {unit:.3g}")
    for j in range(bars):
        top = unit * max(1 + signal[j], sample[j])
        text = f"{100 * part[j]:.0f}%"
        ax.annotate(text, (j, top), (3, 3), textcoords="offset points", fontsize=TEXT - 1.5)
    step = max(1, -(-shown // 12))
    ax.set_xticks(range(0, shown, step))
    ax.set_ylim(0, 1.12 * unit * max(1 + signal.max(), sample[0]))
    ax.set_xlabel("factor (principal axes)", fontsize=TEXT)
    ax.set_ylabel("variance" if shared else "variance in units of the noise", fontsize=TEXT)
    legend_above(ax)
    return ax


def loadings(found: Loadings, *, factors: Sequence[int] | None = None, ax: Axes | None = None) -> Axes:
    """The loadings of every column on every factor, with their intervals.

    An open marker means that the interval contains 0. The intervals of :func:`zoo.alignment.bootstrap_loadings`
    describe repeated sampling of rows, those of :func:`zoo.alignment.posterior_loadings` the posterior of the guide;
    see there for their coordinates.

    Args:
        found: from either of the two.
        factors: the numbers of the factors, counted from 0; None draws all.
        ax: the axes to draw on; None creates a figure whose height depends on the number of columns.

    Raises:
        ValueError: the model does not have a factor, or there are none.
    """
    d, k = found.estimate.shape
    chosen = list(range(k)) if factors is None else [check_whole(factor, "factors", 0) for factor in factors]
    if not chosen or max(chosen) >= k or len(set(chosen)) < len(chosen):
        raise ValueError(f"factors must be different numbers of the {k} factors, counted from 0; got {chosen}")
    estimate, (low, high) = array(found.estimate), array(found.interval)
    sure = array(found.sure) > 0
    step = 0.8 / len(chosen)
    ax = new_axes(ax, (SIZE[0], min(9.0, 0.75 + d * (0.1 + 0.075 * len(chosen)))))
    for i, j in enumerate(chosen):
        place = np.arange(d) + (i - (len(chosen) - 1) / 2) * step
        style: dict[str, Any] = {"color": colour(j), "linewidth": 1.0}
        ax.hlines(place, low[:, j], high[:, j], **style)
        for own, face in ((sure[:, j], colour(j)), (~sure[:, j], "white")):
            style = {"marker": marker(j), "markersize": 4, "markerfacecolor": face, "color": colour(j)}
            ax.plot(estimate[own, j], place[own], linestyle="", zorder=3, **style)
        ax.plot([], [], label=f"factor {j}", linestyle="-", marker=marker(j), markersize=4, color=colour(j))
    if not sure[:, chosen].all():
        ax.plot([], [], "o", markersize=4, color=GREY, markerfacecolor="white", label="0 inside")
    ax.axvline(0.0, color="black", linewidth=0.8, zorder=0)
    for edge in np.arange(d - 1) + 0.5:
        ax.axhline(edge, color=GREY, linewidth=0.3, alpha=0.5, zorder=0)
    thin = max(1, -(-d // 60))
    ax.set_yticks(range(0, d, thin), found.columns[::thin], fontsize=TEXT - (1 if d <= 30 else 2))
    ax.set_ylim(d - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    what = "correlation of column and factor" if found.standardised else "loading, units of the column"
    ax.set_xlabel(f"{what} ({100 * found.level:g}% interval)", fontsize=TEXT)
    legend_above(ax)
    return ax
