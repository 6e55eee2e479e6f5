"""The course of a fit: its bound by step, and the remaining gaps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from zoo.base.pairs import Trained
from zoo.infer.run import run_of
from zoo.plots.style import GREY, PALETTE, SIZE, TEXT, colour, legend, legend_above, new_axes

ROUNDING = 1e-9  # nats: smaller gaps are rounding errors


def loss(run: Trained, *, optimum: float | Tensor | None = None, ax: Axes | None = None) -> Axes:
    """The ELBO per row against the step, on a logarithmic axis.

    A noisy curve is drawn faintly under its running mean (over the last tenth of the steps so far), together with the
    validation curve if there is one.

    Args:
        run: from :func:`zoo.fit`, :func:`zoo.em` or :func:`zoo.cavi`, or another pair with a record of its training
            (``zoo.Fit(..., training=...)``).
        optimum: an upper limit of the bound, in nats per row: a number, or log marginals of the rows, whose mean is
            used. Drawn as a horizontal line.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: the run has no record of its training or no steps, or ``optimum`` is not finite.
    """
    run = run_of(run)
    if run.training is None:
        raise ValueError(
            "this pair has no record of its training and thus no losses to draw: pass one with "
            "zoo.Fit(model, guide, training=zoo.infer.Training(losses=..., converged=...)), or train it with zoo.fit"
        )
    elbo = -run.losses.detach().cpu().double().numpy()
    if not len(elbo):
        raise ValueError("the run has no losses: nothing to draw")
    best = None if optimum is None else float(torch.as_tensor(optimum).detach().double().mean())
    if best is not None and not np.isfinite(best):
        raise ValueError(f"optimum must be finite, got {best}: pass nats per row, or log marginals")
    ax = new_axes(ax)
    steps = np.arange(1, len(elbo) + 1)
    width = np.ceil(steps / 10).astype(int)
    total = np.concatenate([[0.0], elbo.cumsum()])
    mean = (total[steps] - total[steps - width]) / width
    noisy = len(elbo) > 20 and (np.diff(elbo[len(elbo) // 4 :]) < 0).mean() > 0.1
    if noisy:
        ax.plot(steps, elbo, color=PALETTE[0], alpha=0.3, linewidth=0.6)
    ax.plot(steps, mean if noisy else elbo, color=PALETTE[0], linewidth=1.4, label="training")
    shown = [np.quantile(mean if noisy else elbo, 0.99), _early(mean if noisy else elbo)]
    if noisy:
        shown += list(np.quantile(elbo[-max(10, len(elbo) // 10) :], [0.05, 0.95]))
    if run.validation is not None:
        step, value = run.validation.detach().cpu().double().numpy().T
        ax.plot(step + 1, -value, color=PALETTE[5], linewidth=1.0, marker="o", markersize=2.5, label="validation")
        shown += [-value[-1], np.max(-value)]
    if best is not None:
        ax.axhline(best, color="black", linewidth=0.9, linestyle="--", label="log marginal")
        shown.append(best)
    low, high = min(shown), max(shown)
    pad = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - pad, high + pad)
    ax.set_xscale("log")
    ax.set_xlim(1, max(len(elbo), 2))
    ax.set_xlabel("step", fontsize=TEXT)
    ax.set_ylabel("ELBO (nats per row)", fontsize=TEXT)
    if run.validation is not None or best is not None:
        legend(ax)
    return ax


def gap(rows: Mapping[str, Tensor | np.ndarray | Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """The gap KL(q(z) || p(z | x)) of every row, one strip per guide, with its mean over the rows.

    If the gaps span more than two powers of ten, the axis is linear around zero and logarithmic beyond. Gaps below 1e-9
    nats are rounding errors and drawn as 0; if all are, the axis extends to 1 nat.

    Args:
        rows: the gaps (n,) in nats by the guide's name.
        ax: the axes to draw on; None creates a figure.

    Raises:
        ValueError: there are no guides or no rows, or a gap is not finite; the message names guide and row.
    """
    if not rows:
        raise ValueError("rows is empty: pass the gaps per row by the guide's name")
    values = {}
    for name, given in rows.items():
        array = torch.as_tensor(given).detach().cpu().double().numpy()
        if array.ndim != 1 or not len(array):
            raise ValueError(f"the gaps of '{name}' have shape {array.shape}: pass one number per row, (n,)")
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"the gap of '{name}' in row {row} is {array[row]}: omit such rows")
        values[name] = np.where(np.abs(array) < ROUNDING, 0.0, array)
    ax = new_axes(ax, (SIZE[0], 0.75 + 0.42 * len(values)))
    jitter = np.random.default_rng(0)
    means = np.array([array.mean() for array in values.values()])
    for i, array in enumerate(values.values()):
        shift = jitter.uniform(-0.28, 0.28, len(array))
        size = 8 if len(array) < 500 else 3
        ax.scatter(array, i + shift, s=size, color=colour(i), alpha=0.45, linewidths=0.0)
        label = "mean" if i == 0 else None
        ax.plot([means[i]] * 2, [i - 0.38, i + 0.38], color="black", linewidth=1.4, label=label)
    largest = max(np.abs(array).max() for array in values.values())
    least = max(np.abs(means)[means != 0].min(initial=largest), 1e-6 * largest)
    if largest > 100 * least:
        power = int(np.floor(np.log10(least)))
        ax.set_xscale("symlog", linthresh=10.0**power)
        lowest = min(array.min() for array in values.values())
        decades = np.arange(power, int(np.ceil(np.log10(largest))) + 1)
        decades = decades[:: max(1, -(-len(decades) // 5))]
        negative = [-(10.0**p) for p in decades if lowest < -(10.0**p)]
        ax.set_xticks([*negative, 0.0, *(10.0**p for p in decades)])
        ax.minorticks_off()
    if largest == 0:
        ax.set_xlim(-0.1, 1.0)
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")  # an offset would overlap the label
    ax.axvline(0.0, color=GREY, linewidth=0.7, zorder=0)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("gap KL(q || p), nats per row", fontsize=TEXT)
    legend_above(ax)
    return ax


def _early(curve: np.ndarray) -> float:
    """A lower limit of the axis that cuts off the first steps, far below the rest after a random start."""
    even = np.unique(np.geomspace(1, len(curve), 60).astype(int)) - 1
    return float(np.quantile(curve[even], 0.3))
