"""Fitted runs as an ArviZ object in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.compat.container import assemble
from zoo.export.layout import ORDER, place, prepare
from zoo.infer.run import Fit

LARGEST = 4 * 2**30  # bytes of predictive draws


def to_arviz(
    run: Fit | Sequence[Fit],
    x: Any,
    *,
    draws: int = 500,
    seed: int = 0,
    rows: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
    labels: Any = None,
) -> Any:
    r"""Draws, predictions and densities of a run as an ArviZ object, for ``az.summary``, ``az.plot_*``,
    ``.to_netcdf``.

    Groups, with named dimensions (d the data's columns, k the factors):

    - ``posterior``: every latent site; ``z`` (chain, draw, row, factor), ``component`` (chain, draw, row),
      sites that all rows share (chain, draw, ...). The draws are independent: R-hat and effective sample
      size of a single run say nothing.
    - ``posterior_predictive``: ``x`` (chain, draw, row, column) from the model at the posterior draws.
    - ``prior``, ``prior_predictive``: the same from the model alone, at its fitted parameters.
    - ``observed_data``: ``x`` (row, column).
    - ``sample_stats``, in nats: ``lp`` = log p(x_i, z_i), ``log_q`` = log q(z_i | x_i) and ``log_weight``, their
      difference, (chain, draw, row); ``khat`` (row), a coordinate beside them as it has no draws, from 25 draws on: see
      :func:`zoo.posterior.psis_khat`. Absent where the guide has no density of its own per row (Pyro's joint
      autoguides, ``AutoDelta``), or a site is shared.
    - ``log_likelihood``: ``x`` (chain, draw, row) in nats, the *marginal* log p(x_i) with the row's own
      latent sites integrated out: in closed form where the model has ``log_marginal``, else estimated by
      importance weighting from the guide (Burda et al. 2016), with the number of draws in the attribute
      ``draws``. Under point-estimated parameters it is the same for every draw, and LOO and WAIC only
      restate the in-sample density (``az.loo`` of 0.x says k-hat = inf, that of 1.x raises): the attribute
      ``note`` says so, and :func:`zoo.export.elpd` of held-out rows is what to give ``az.compare``. Absent where the
      guide has no density per row and the model no ``log_marginal``.
    - ``constant_data``: the model's point-estimated parameters (``weight``, ``mean``, ``scale``; ``noise``
      variances where the model has them; no network weights) and ``label``.

    Why a group is absent says an attribute of ``posterior`` of the group's name.

    Several runs of one model, as from several seeds, become one chain each. Rotation and sign of their factors, or the
    numbers of their components, are aligned to the first run by :func:`zoo.alignment.align`, in ``posterior``,
    ``prior`` and ``constant_data``; the attribute ``alignment`` says so, or that the model has no such gauge and is
    taken as it is. R-hat then asks whether the seeds agree: near 1 they have come to one optimum and one guide, which
    may still be far from the posterior. A parameter has one value per run and no draws, so the parameters stand in
    ``constant_data`` with the dimension ``chain`` in front, as does ``khat`` in ``sample_stats``; in ``posterior``,
    repeated over the draws, they would have a standard deviation of 0 and an infinite R-hat.

    Attributes of the object and of every group: package and version, model, guide, seed, settings (JSON; a list for
    several runs), versions of torch and Pyro. The caller's random streams and Pyro's global store are left alone.

    Args:
        run: from :func:`zoo.fit`; model and guide may be any Pyro callables. Or a sequence of runs.
        x: rows (n, d): a tensor, an array, or a :class:`zoo.data.Dataset`, whose columns and labels are then
            taken.
        draws: from the posterior and from the prior, per run.
        seed: of the draws; every chain has a stream of its own.
        rows: n names of the rows; None counts from 0.
        columns: d names of the columns; None takes the data set's, or x0, x1, ...
        labels: n labels, numbers or strings; None takes the data set's.

    Returns:
        an ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x).

    Raises:
        ValueError: names or labels of another length than the data, rows unfit for model or guide,
            predictive draws of more than 4 GiB, log weights that are no numbers, a site that bears a dimension's name,
            or runs that are not of one model.
    """
    export = prepare(run, x, draws, seed, rows, columns, labels, None)
    if export.predicted_bytes > LARGEST:
        n, d = export.x[0].shape
        size = export.predicted_bytes / 2**30
        raise ValueError(
            f"{draws} predictive draws of {n} rows x {d} columns are {size:.0f} GiB: take fewer, or write them to a "
            "file with zoo.write_arviz"
        )
    arrays: dict[str, dict[str, np.ndarray]] = {}
    bounds: dict[int, dict[str, float]] = {}
    for chain, piece in export.pieces():
        if not arrays:
            first, blanks = piece, export.empty(piece)
            arrays = {g: {name: np.empty(b.shape, b.dtype) for name, b in held.items()} for g, held in blanks.items()}
        for group, held in piece.groups.items():
            for name, each in held.items():
                arrays[group][name][place(each, chain, piece.rows)] = each.values
        bounds[chain] = piece.bounds
    groups: dict[str, dict[str, Any]] = {"constant_data": dict(export.constants)}
    for group, made in arrays.items():
        own = {name: first.groups[group][name]._replace(values=array) for name, array in made.items()}
        groups[group] = groups.get(group, {}) | own
    datasets = {g: export.dataset(g, groups[g], groups[g].values(), first) for g in ORDER if groups.get(g)}
    found = export.attributes(list(bounds.values()))
    if "sample_stats" in datasets:
        datasets["sample_stats"].attrs.update(found)
    return assemble(datasets, {**export.attrs, **found})
