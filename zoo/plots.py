"""Figures of runs: matplotlib axes at column width, colours that the colour-blind can tell apart.

Every function draws on ``ax`` or on a figure of its own, and returns the axes. Figures are made without
pyplot, so none is held in memory after its last reference; ``ax.figure`` is the figure, :func:`save` writes
it.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from torch import Tensor, nn
from torch.distributions import Categorical

from zoo.base import check_rows, latents
from zoo.data.dataset import Dataset
from zoo.fit import Fit

# Okabe and Ito (2008), Color Universal Design; the yellow last, it is faint on white
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#888888"
SIZE = (3.5, 2.6)  # inches: one column of a paper
TEXT = 8  # points


def loss(run: Fit, *, optimum: float | Tensor | None = None, ax: Axes | None = None) -> Axes:
    """The ELBO per row by step, on a logarithmic axis of steps.

    A noisy curve is drawn faintly under its running mean (over the last tenth of the steps so far).
    Validation stands beside it where the run has it.

    Args:
        run: from :func:`zoo.fit`.
        optimum: what the bound can reach at most, in nats per row: a number, or log marginals of the rows
            (their mean is taken). Drawn as a horizontal line.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: the run has no steps, or ``optimum`` is not finite.
    """
    elbo = -run.losses.detach().cpu().double().numpy()
    if not len(elbo):
        raise ValueError("the run has no losses: nothing to draw")
    best = None if optimum is None else float(torch.as_tensor(optimum).detach().double().mean())
    if best is not None and not np.isfinite(best):
        raise ValueError(f"optimum must be finite, got {best}: pass nats per row, or log marginals")
    ax = _axes(ax)
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
        _legend(ax)
    return ax


def latent(
    run: Fit,
    x: Any,
    *,
    labels: Any = None,
    label_names: Sequence[str] | None = None,
    draws: int = 200,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """What the guide says about the rows.

    Factors ``z``: the posterior mean of every row in the plane of the first two, coloured by label; a single
    factor as a histogram by label, or against the row number without labels. A mixture (discrete
    ``component``): the first two columns of the data, coloured by the responsibilities of the components,
    with their ellipses; the marker shows the label.

    Args:
        run: from :func:`zoo.fit`.
        x: rows (n, d) or a :class:`zoo.data.Dataset`, whose labels are then taken.
        labels: n labels; None takes the data set's.
        label_names: what the labels stand for: integer labels count into it from 0.
        draws: for the mean, where the guide has no closed form of it.
        seed: of these draws.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: labels of another length than the rows, a label beyond ``label_names``, or a model with
            neither factors ``z`` nor a discrete ``component`` per row.
    """
    if isinstance(x, Dataset):
        if labels is None:
            labels, label_names = x.labels, label_names or x.label_names
        columns = x.columns
    else:
        columns = ()
    data = check_rows(x, run.model)
    marks, names = _labels(labels, label_names, len(data))
    with run.scope():
        sites = {site.name: site for site in latents(run.model, data)}
    if "component" in sites and sites["component"].local and sites["component"].cardinality:
        shares = _responsibilities(run, data, sites["component"].cardinality, draws, seed)
        return _mixture(run.model, data, shares, marks, names, columns, _axes(ax))
    site = sites.get("z")
    if site is None or not site.local or len(site.shape) != 1:
        raise ValueError(
            f"latent() draws factors 'z' or a discrete 'component' per row, and the model has the sites "
            f"{', '.join(sites) or 'none'}: draw from run.posterior(x) yourself"
        )
    mean = _mean(run, data, draws, seed)  # (n, k)
    ax = _axes(ax)
    groups = _groups(marks, names, len(mean))
    style: dict[str, Any] = {"s": 9 if len(mean) < 2000 else 4, "linewidths": 0.0, "alpha": 0.8}
    if mean.shape[1] == 1 and marks is not None:
        edges = list(np.histogram_bin_edges(mean, bins=min(40, max(8, len(mean) // 10))))
        for i, chosen in groups:
            ax.hist(mean[chosen, 0], edges, color=_colour(i), alpha=0.55, label=names[i], edgecolor=_colour(i))
        ax.set_xlabel("factor 0 (posterior mean)", fontsize=TEXT)
        ax.set_ylabel("rows", fontsize=TEXT)
    elif mean.shape[1] == 1:
        ax.scatter(np.arange(len(mean)), mean[:, 0], color=PALETTE[0], **style)
        ax.set_xlabel("row", fontsize=TEXT)
        ax.set_ylabel("factor 0 (posterior mean)", fontsize=TEXT)
    else:
        for i, chosen in groups:
            label = names[i] if marks is not None else None
            ax.scatter(*mean[chosen, :2].T, color=_colour(i), marker=_marker(i), label=label, **style)
        ax.set_xlabel("factor 0 (posterior mean)", fontsize=TEXT)
        ax.set_ylabel("factor 1 (posterior mean)", fontsize=TEXT)
        ax.set_aspect("equal", adjustable="datalim")
    if marks is not None:
        _legend_outside(ax)
    return ax


def ellipses(model: Any, ax: Axes, dims: tuple[int, int] = (0, 1), sds: Sequence[float] = (1, 2)) -> Axes:
    """The components of a Gaussian mixture as ellipses of ``sds`` standard deviations in the plane of two
    columns.

    Args:
        model: a :class:`zoo.GMM`, of any of its four covariances.
        ax: where to draw.
        dims: the two columns, counted from 0.
        sds: radii in standard deviations (the inner ones are drawn stronger).

    Raises:
        ValueError: the model is no Gaussian mixture, or a column it does not have.
    """
    mean, covariance = _moments(model)  # (k, d), (k, d, d)
    for dim in dims:
        if not 0 <= dim < mean.shape[1]:
            raise ValueError(f"dims={tuple(dims)}: the model has {mean.shape[1]} columns, counted from 0")
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
                edgecolor=_colour(j),
                linewidth=1.3 - 0.4 * min(rank, 2),
                linestyle="-" if rank == 0 else "--",
            )
            ax.add_patch(patch)
        ax.plot(*centre, marker="+", color=_colour(j), markersize=6, markeredgewidth=1.3)
    ax.autoscale_view()
    return ax


def gap(rows: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """The gap KL(q(z) || p(z | x)) of every row, one strip per guide, with its mean over the rows.

    The axis is linear around zero and logarithmic beyond once the gaps span more than two powers of ten.

    Args:
        rows: the gaps (n,) in nats by the guide's name.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: no guides, no rows, or a gap that is not finite; the message names guide and row.
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
            raise ValueError(f"the gap of '{name}' in row {row} is {array[row]}: leave such rows out")
        values[name] = array
    ax = _axes(ax, (SIZE[0], 0.75 + 0.42 * len(values)))
    jitter = np.random.default_rng(0)
    means = np.array([array.mean() for array in values.values()])
    for i, array in enumerate(values.values()):
        shift = jitter.uniform(-0.28, 0.28, len(array))
        size = 8 if len(array) < 500 else 3
        ax.scatter(array, i + shift, s=size, color=_colour(i), alpha=0.45, linewidths=0.0)
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
    ax.axvline(0.0, color=GREY, linewidth=0.7, zorder=0)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("gap KL(q || p), nats per row", fontsize=TEXT)
    _legend_outside(ax)
    return ax


def save(figure: Axes | Figure, path: str | Path, *, dpi: int = 200) -> Path:
    """Write a figure, or the one that an axes belongs to; the suffix of ``path`` names the format (png, pdf,
    svg).

    Returns:
        the path. Folders on the way are made.

    Raises:
        ValueError: the suffix names no format that matplotlib writes.
    """
    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    path = Path(path)
    known = whole.canvas.get_supported_filetypes() if whole is not None else {}
    if whole is None or path.suffix.removeprefix(".") not in known:
        raise ValueError(f"'{path.name}' ends in no known format: take one of .png, .pdf, .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.savefig(path, dpi=dpi)
    return path


def _axes(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    """``ax``, or the axes of a new figure that pyplot knows nothing of."""
    if ax is not None:
        return ax
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.tick_params(labelsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=TEXT - 1, frameon=False, loc="lower right", handlelength=1.6)


def _legend_outside(ax: Axes, handles: Sequence[Line2D] | None = None) -> None:
    """A legend above the axes, where it covers no points."""
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
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        handletextpad=0.3,
        columnspacing=0.9,
        borderaxespad=0.2,
        markerscale=scale,
        borderpad=0.1,
    )


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _marker(number: int) -> str:
    """Another marker once the colours repeat."""
    return MARKERS[number // len(PALETTE) % len(MARKERS)]


def _early(curve: np.ndarray) -> float:
    """Where to cut the first steps, which a random start puts far below the rest."""
    even = np.unique(np.geomspace(1, len(curve), 60).astype(int)) - 1
    return float(np.quantile(curve[even], 0.3))


def _labels(labels: Any, names: Sequence[str] | None, n: int) -> tuple[np.ndarray | None, list[str]]:
    """Codes (n,) from 0 and what they stand for."""
    if labels is None:
        return None, []
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if given.shape != (n,):
        raise ValueError(f"labels has shape {given.shape}, and x {n} rows: pass one label per row")
    if names:
        if not np.issubdtype(given.dtype, np.integer) or given.min() < 0 or given.max() >= len(names):
            raise ValueError(f"labels must be whole numbers from 0 to {len(names) - 1}, as label_names says")
        return given, [str(name) for name in names]
    levels, codes = np.unique(given, return_inverse=True)
    if len(levels) > 20:
        raise ValueError(f"labels takes {len(levels)} values, more than a legend holds (20): pass classes")
    return codes, [str(level) for level in levels]


def _groups(marks: np.ndarray | None, names: Sequence[str], n: int) -> list[tuple[int, np.ndarray]]:
    """The rows of every label, as masks; one group of all rows without labels."""
    if marks is None:
        return [(0, np.ones(n, bool))]
    return [(i, marks == i) for i in range(len(names))]


def _closed(run: Fit, x: Tensor) -> Any:
    """The guide's distribution given the rows, or None where it has none in closed form."""
    if not hasattr(run.guide, "posterior"):
        return None
    try:
        return run.guide.posterior(x)
    except (ValueError, NotImplementedError):
        return None


def _mean(run: Fit, x: Tensor, draws: int, seed: int) -> np.ndarray:
    """The posterior mean of ``z`` (n, k)."""
    with run.scope(), torch.no_grad():
        q = _closed(run, x)
        try:
            if q is not None and q.mean.ndim == 2:
                return q.mean.cpu().numpy()
        except NotImplementedError:
            pass
    return run.posterior(x, draws, seed=seed)["z"].mean(0).cpu().numpy()


def _responsibilities(run: Fit, x: Tensor, components: int, draws: int, seed: int) -> np.ndarray:
    """q(component) (n, k)."""
    with run.scope(), torch.no_grad():
        q = _closed(run, x)
        if not isinstance(q, Categorical) and hasattr(run.model, "posterior"):
            sites = run.posterior(x, 1)
            q = run.model.posterior(x) if "component" not in sites else q  # summed out of the guide
        if isinstance(q, Categorical):
            return q.probs.cpu().numpy()
    chosen = run.posterior(x, draws, seed=seed)["component"].long()
    return nn.functional.one_hot(chosen, components).double().mean(0).cpu().numpy()


@torch.no_grad()
def _moments(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means (k, d) and covariances (k, d, d) of a Gaussian mixture."""
    if getattr(model, "covariance", None) not in ("full", "tied", "diag", "spherical"):
        name = type(model).__name__
        raise ValueError(f"{name} is no Gaussian mixture with mean, scale and covariance: pass a zoo.GMM")
    mean, scale = model.mean.double(), model.scale.double()
    k, d = mean.shape
    if model.covariance in ("full", "tied"):
        covariance = scale @ scale.mT
    else:
        covariance = torch.diag_embed(scale.square().reshape(k, -1).expand(k, d))
    return mean.cpu().numpy(), covariance.expand(k, d, d).cpu().numpy()


def _mixture(
    model: Any,
    x: Tensor,
    shares: np.ndarray,
    marks: np.ndarray | None,
    names: list[str],
    columns: Sequence[str],
    ax: Axes,
) -> Axes:
    points = x.detach().cpu().numpy()
    palette = np.array([to_rgb(_colour(j)) for j in range(shares.shape[1])])
    colours = np.clip(shares @ palette, 0, 1)
    titles = [*columns[:2], *(f"x{j}" for j in range(len(columns[:2]), 2))]
    one = points.shape[1] == 1
    across, up = (np.arange(len(points)), points[:, 0]) if one else (points[:, 0], points[:, 1])
    size = 10 if len(points) < 2000 else 4
    for i, chosen in _groups(marks, names, len(points)):
        marker = MARKERS[i % len(MARKERS)]
        ax.scatter(across[chosen], up[chosen], s=size, c=colours[chosen], marker=marker, linewidths=0.0, alpha=0.75)
    handles = [
        Line2D([], [], color=_colour(j), marker="o", linestyle="", markersize=4, label=f"component {j}")
        for j in range(shares.shape[1])
    ]
    if marks is not None:
        handles += [
            Line2D([], [], color=GREY, marker=mark, linestyle="", markersize=4, label=name)
            for mark, name in zip(itertools.cycle(MARKERS), names, strict=False)
        ]
    if one:
        ax.set_xlabel("row", fontsize=TEXT)
        ax.set_ylabel(titles[0], fontsize=TEXT)
    else:
        if hasattr(model, "covariance"):
            ellipses(model, ax)
        ax.set_xlabel(titles[0], fontsize=TEXT)
        ax.set_ylabel(titles[1], fontsize=TEXT)
    _legend_outside(ax, handles)
    return ax
