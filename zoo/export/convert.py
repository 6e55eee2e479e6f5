"""Fitted runs as an ArviZ object in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from zoo.base.checks import ArrayLike
from zoo.base.pairs import Trained
from zoo.base.threads import on_suited_threads
from zoo.compat.container import assemble
from zoo.export.contents import GROUPS
from zoo.export.layout import place, prepare

LARGEST = 4 * 2**30  # bytes of predictive draws


@on_suited_threads
def to_arviz(
    run: Trained | Sequence[Trained],
    x: ArrayLike,
    *,
    draws: int = 500,
    seed: int = 0,
    rows: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
    labels: Tensor | np.ndarray | Sequence[Any] | None = None,
    groups: Sequence[str] | None = None,
    compact: bool = False,
) -> Any:
    r"""Draws, predictions and densities of a run as an ArviZ object, for ``az.summary``, ``az.plot_*`` and
    ``.to_netcdf``.

    Groups, with named dimensions (d the data's columns, k the factors):

    - ``posterior``: every latent site; ``z`` (chain, draw, row, factor), ``component`` (chain, draw, row), sites that
      all rows share (chain, draw, ...). A plate of the model's own is a dimension of its name, as ``features`` in
      ``weight`` (chain, draw, features, weight_dim_0). Discrete sites that the guide leaves out are drawn from the
      model given the other sites and x. The draws are independent, so the R-hat and the effective sample size of a
      single run carry no information.
    - ``posterior_predictive``: the data sites, as ``x`` (chain, draw, row, column), from the model at the posterior
      draws.
    - ``prior``, ``prior_predictive``: the same from the model alone, at its fitted parameters.
    - ``observed_data``: the data sites, as ``x`` (row, column).
    - ``sample_stats``, in nats. Where no site is shared by all rows: ``lp`` = log p(x_i, z_i), ``log_q`` =
      log q(z_i | x_i) and ``log_weight``, their difference, (chain, draw, row). With shared sites, and under guides
      that draw all rows together (Pyro's joint autoguides), the same quantities for all sites jointly (chain, draw),
      and ``log_weight_shared``, with the local sites integrated out. ``khat`` (row), given enough draws, is a
      coordinate because it has no draws: see :func:`zoo.posterior.psis_khat`. The group is absent where the guide has
      a point mass on a site (``AutoDelta``, ``AutoLaplaceApproximation``) and thus no density.
    - ``log_likelihood``: log p(x_i | shared sites) (chain, draw, row) in nats, with the local sites integrated out: in
      closed form where the model has ``log_marginal_given``, else by importance weighting from the guide (Burda et
      al. 2016), with the number of draws in the attribute ``draws``. ``az.loo`` and ``az.compare`` use this group; they
      treat the guide's draws as posterior draws, as ``zoo.loo(..., correct=False)`` does. It is present only where
      there are draws of the parameters: absent without shared sites and under a point mass.
    - ``constant_data``: the model's point-estimated parameters (``weight``, ``mean``, ``scale``; ``noise``
      variances where the model has them; no network weights), ``label``, and where no site is shared ``log_marginal``
      (row), log p(x_i) at these parameters in nats: in closed form where the model has ``log_marginal``, else by
      importance weighting, with its standard error ``log_marginal_se``. To compare such models, pass
      :func:`zoo.export.elpd` of held-out rows to ``az.compare``.

    Where a group is absent, an attribute of ``posterior`` with its name gives the reason.

    Several runs of one model, as from several seeds, become one chain each. Rotation and sign of their factors, or the
    numbers of their components, are aligned to the first run by :func:`zoo.alignment.align`, in ``posterior``,
    ``prior`` and ``constant_data``; the attribute ``alignment`` describes it, or states that none is known.
    R-hat then measures whether the seeds agree: near 1 they have reached the same optimum and the same guide, which may
    still be far from the posterior. A parameter has one value per run and no draws, so the parameters are in
    ``constant_data`` with the leading dimension ``chain``, as is ``khat`` in ``sample_stats``; repeated over the draws
    in ``posterior``, they would have a standard deviation of 0 and an infinite R-hat.

    Attributes of the object and of every group: package and version, model, guide, seed, settings (JSON; a list for
    several runs), versions of torch and Pyro. With shared sites the object and ``sample_stats`` also have ``elbo`` and
    ``log_marginal``, the bound and log p(X) of all rows in nats, their standard errors ``elbo_se`` and
    ``log_marginal_se``, and ``khat`` of the weights of the shared sites (lists for several runs). The caller's random
    streams and Pyro's global parameter store are not affected.

    Args:
        run: a :class:`zoo.Fit`, whose model and guide may be any Pyro callables, or a fitted conjugate model, with its
            own posterior as the guide; or a sequence of them.
        x: rows (n, d): a tensor, an array, or a :class:`zoo.data.Dataset`, whose column names and labels are then
            used.
        draws: number of draws per run, from the posterior and from the prior.
        seed: seed of the draws; every chain has its own random stream.
        rows: names of the n rows; None numbers them from 0.
        columns: names of the d columns; None uses the data set's, or x0, x1, ...
        labels: n labels, numbers or strings; None uses the data set's.
        groups: names of the groups to export; None exports all. Replicated data are the largest by far. The draws in
            ``posterior`` do not depend on the others.
        compact: draws in float32, at half the size of float64. Its rounding, 6e-8 of a value, is far below the error of
            any estimate from the draws; log densities, observations and parameters keep their precision.

    Returns:
        an ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x).

    Raises:
        ValueError: a group that does not exist, names or labels whose number differs from the data's, rows that model
            or guide cannot take, predictive draws of more than 4 GiB, log weights that are NaN or infinite, a site with
            the name of a dimension, or runs of different models.
    """
    export = prepare(run, x, draws, seed, rows, columns, labels, None, groups, compact)
    if export.predicted_bytes > LARGEST:
        n, d = export.x[0].shape
        size = export.predicted_bytes / 2**30
        raise ValueError(
            f"{draws} predictive draws of {n} rows x {d} columns take {size:.0f} GiB: reduce draws, leave out groups, "
            "or write them to a file with zoo.export.write_arviz"
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
    whole: dict[str, dict[str, Any]] = {"constant_data": dict(export.constants)}
    for group, made in arrays.items():
        own = {name: first.groups[group][name]._replace(values=array) for name, array in made.items()}
        whole[group] = whole.get(group, {}) | own
    datasets = {g: export.dataset(g, whole[g], whole[g].values(), first) for g in GROUPS if whole.get(g)}
    found = export.attributes(list(bounds.values()))
    if "sample_stats" in datasets:
        datasets["sample_stats"].attrs.update(found)
    return assemble(datasets, {**export.attrs, **found})
