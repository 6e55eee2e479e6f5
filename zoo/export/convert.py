"""A fitted run as an ArviZ object."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
import xarray
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from zoo.base import Latent, Module, check_rows, check_whole, latents, seeded
from zoo.data.dataset import Dataset
from zoo.export.container import assemble
from zoo.fit import Fit

RESERVED = ("chain", "draw", "row", "column", "column_other", "factor")
LARGEST = 4 * 2**30  # bytes of posterior predictive draws
INNER = 100  # draws of the local sites for every draw of the shared ones
INDEPENDENT = "independent draws from a guide, one chain: R-hat and effective sample size say nothing here"
POINT = (
    "parameters are point estimates, so every draw is the same: LOO and WAIC only restate the in-sample log "
    "density; compare models by log p(x) of held-out rows"
)

Variables = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]


def to_arviz(
    run: Fit,
    x: Any,
    *,
    draws: int = 500,
    seed: int = 0,
    rows: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
    labels: Any = None,
) -> Any:
    """Draws, predictions and densities of a run as an ArviZ object, for ``az.summary``, ``az.plot_*``,
    ``.to_netcdf``.

    Groups, with named dimensions (d the data's columns, k the factors):

    - ``posterior``: every latent site; ``z`` (chain, draw, row, factor), ``component`` (chain, draw, row),
      sites that all rows share (chain, draw, ...). The draws are independent: R-hat and effective sample
      size say nothing.
    - ``posterior_predictive``: ``x`` (chain, draw, row, column) from the model at the posterior draws.
    - ``observed_data``: ``x`` (row, column).
    - ``log_likelihood``: ``x`` (chain, draw, row) in nats, the *marginal* log p(x_i) with the row's own
      latent sites integrated out: in closed form where the model has ``log_marginal``, else estimated by
      importance weighting from the guide (Burda et al. 2016), with the number of draws in the attribute
      ``draws``. Under point-estimated parameters it is the same for every draw, and LOO and WAIC only
      restate the in-sample density (``az.loo`` of 0.x says k-hat = inf, that of 1.x raises): the attribute
      ``note`` says so. The group is absent where the guide has
      no density of its own per row (Pyro's joint autoguides, ``AutoDelta``) and the model no
      ``log_marginal``; the attribute ``log_likelihood`` of ``posterior`` says why.
    - ``constant_data``: the model's point-estimated parameters (``weight``, ``mean``, ``scale``; ``noise``
      variances where the model has them; no network weights) and ``label``.

    Attributes of the object and of every group: package and version, model, guide, seed, settings (JSON),
    versions of torch and Pyro. The caller's random streams and Pyro's global store are left alone.

    Args:
        run: from :func:`zoo.fit`; model and guide may be any Pyro callables.
        x: rows (n, d): a tensor, an array, or a :class:`zoo.data.Dataset`, whose columns and labels are then
            taken.
        draws: from the posterior.
        seed: of the draws.
        rows: n names of the rows; None counts from 0.
        columns: d names of the columns; None takes the data set's, or x0, x1, ...
        labels: n labels, numbers or strings; None takes the data set's.

    Returns:
        an ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x).

    Raises:
        ValueError: names or labels of another length than the data, rows unfit for model or guide,
            predictive draws of more than 4 GiB, or a site that bears a dimension's name.
    """
    check_whole(draws, "draws")
    data = check_rows(x, run.model)
    n, d = data.shape
    if columns is None:
        columns = getattr(x, "columns", None) if isinstance(x, Dataset) else [f"x{j}" for j in range(d)]
    if labels is None and isinstance(x, Dataset) and x.labels is not None:
        codes = x.labels.cpu().numpy()
        labels = np.array(x.label_names)[codes] if x.label_names else codes
    coords: dict[str, np.ndarray] = {
        "chain": np.arange(1),
        "draw": np.arange(draws),
        "row": _names(rows, n, "rows") if rows is not None else np.arange(n),
        "column": _names(columns, d, "columns"),
    }
    coords["column_other"] = coords["column"]
    if draws * data.numel() * data.element_size() > LARGEST:
        size = draws * data.numel() * data.element_size() / 2**30
        raise ValueError(f"{draws} predictive draws of {n} rows x {d} columns are {size:.0f} GiB: take fewer")
    with run.scope(), torch.no_grad(), seeded(seed):
        found = latents(run.model, data)
        if clash := [latent.name for latent in found if latent.name in RESERVED]:
            raise ValueError(f"latent site '{clash[0]}' bears the name of a dimension: rename it")
        sample = _sample(run, data, found, draws)
        density, about = _log_likelihood(run, data, found, sample, draws)
        groups: dict[str, Variables] = {
            "posterior": {s.name: _latent(s, sample.latent[s.name]) for s in found},
            "posterior_predictive": {k: _observed(k, v, n, d) for k, v in sample.predicted.items()},
            "log_likelihood": {},
            "observed_data": {k: _observed(k, v, n, d, 0) for k, v in sample.observed.items()},
            "constant_data": _parameters(run.model, data, found),
        }
    if density is not None:
        groups["log_likelihood"]["x"] = (("chain", "draw", "row"), _numpy(density)[None], about)
    if labels is not None:
        given = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        groups["constant_data"]["label"] = (("row",), _names(given, n, "labels"), {})
    notes: dict[str, dict[str, Any]] = {"posterior": {"note": INDEPENDENT}, "log_likelihood": about}
    if density is None:
        notes["posterior"]["log_likelihood"] = about["note"]
    attrs = {
        "creation_library": "latent-zoo",
        "creation_library_version": _version("latent-zoo"),
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "model": _title(run.model),
        "guide": _title(run.guide),
        "seed": seed,
        "settings": json.dumps(
            {"fit": run.settings, "model": _settings(run.model), "guide": _settings(run.guide)}, default=str
        ),
    }
    return _assemble({name: group for name, group in groups.items() if group}, coords, attrs, notes)


def _assemble(
    groups: Mapping[str, Mapping[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]],
    coords: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, Any]],
) -> Any:
    """The ArviZ object from numpy arrays.

    Args:
        groups: variables by group and name: dimensions, values and attributes.
        coords: the names along a dimension; other dimensions count from 0.
        attrs: of the object and of every group.
        notes: further attributes by group.
    """
    datasets = {}
    for name, variables in groups.items():
        sizes: dict[str, int] = {}
        for dims, values, _ in variables.values():
            sizes |= zip(dims, values.shape, strict=True)
        along = {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
        datasets[name] = xarray.Dataset(dict(variables), along, {**attrs, **notes.get(name, {})})
    return assemble(datasets, attrs)


class _Sample(NamedTuple):
    """Joint draws: latent and predicted sites, (draws, n, ...) local and (draws, ...) shared; observed
    values (n, ...)."""

    latent: dict[str, Tensor]
    predicted: dict[str, Tensor]
    observed: dict[str, Tensor]


def _sample(run: Fit, x: Tensor, found: Sequence[Latent], draws: int) -> _Sample:
    """Latent sites from the guide and observed sites from the model at these.

    A discrete site that the guide leaves to the model is drawn from the model given the others and the data.

    Our own modules promise that draws broadcast on the left; any other callable is run draw by draw.
    """
    n = len(x)
    seen = {k: s["value"] for k, s in poutine.trace(run.model).get_trace(x).nodes.items() if _is_data(s)}
    free = poutine.uncondition(run.model)
    at_once = isinstance(run.model, Module) and isinstance(run.guide, Module)
    parts: dict[str, list[Tensor]] = {}
    for _ in range(1 if at_once else draws):
        with _plate(draws) if at_once else _plate(None):
            nodes = poutine.trace(run.guide).get_trace(x).nodes
            values = {latent.name: nodes[latent.name]["value"] for latent in found if latent.name in nodes}
            if len(values) < len(found):  # summed out by TraceEnum_ELBO
                given = config_enumerate(poutine.condition(run.model, values))
                rest = infer_discrete(given, first_available_dim=-3)
                nodes = poutine.trace(rest).get_trace(x).nodes
                values |= {s.name: nodes[s.name]["value"] for s in found if s.name not in values}
            nodes = poutine.trace(poutine.condition(free, values)).get_trace(x).nodes
        count = draws if at_once else 1
        for latent in found:
            parts.setdefault(latent.name, []).append(
                _lay_out(values[latent.name], latent.shape, latent.local, count, n)
            )
        for name in seen:
            value = _lay_out(nodes[name]["value"], nodes[name]["fn"].event_shape, True, count, n)
            parts.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return _Sample({s.name: joined[s.name] for s in found}, {name: joined[name] for name in seen}, seen)


def _plate(draws: int | None) -> Any:
    """The plate ``draws`` (dim -2), or nothing."""
    return nullcontext() if draws is None else pyro.plate("draws", draws, dim=-2)


def _lay_out(value: Tensor, event: torch.Size, local: bool, draws: int, n: int) -> Tensor:
    """A site's value as (draws, n, *event), or (draws, *event) for one that all rows share."""
    wide = value.expand(draws, n if local else 1, *event)
    return wide if local else wide[:, 0]


def _is_data(site: dict[str, Any]) -> bool:
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and type(site["fn"]).__name__ not in ("_Subsample", "Unit")
        and isinstance(site["value"], Tensor)
    )


def _log_likelihood(
    run: Fit, x: Tensor, found: Sequence[Latent], sample: _Sample, draws: int
) -> tuple[Tensor | None, dict[str, Any]]:
    """log p(x_i | parameters) or log p(x_i | shared sites) (draws, n), and what it is; or None and why."""
    shared = [latent for latent in found if not latent.local]
    local = [latent for latent in found if latent.local]
    if not shared and hasattr(run.model, "log_marginal"):
        exact = run.model.log_marginal(x)
        return exact.expand(draws, len(x)), {"kind": "closed-form marginal log p(x_i)", "note": POINT}
    if reason := _no_density(run, x, local):
        return None, {"note": f"absent: {reason}"}
    if not shared:
        estimate = _importance(run, x, local, {}, draws)
        kind = f"importance-weighted estimate of log p(x_i) with K = {draws} draws from the guide"
        return estimate.expand(draws, len(x)), {"kind": kind, "draws": draws, "note": POINT}
    inner = INNER if local else 1
    each = []
    for i in range(draws):
        fixed = {s.name: sample.latent[s.name][i] for s in shared}
        each.append(_importance(run, x, local, fixed, inner))
    kind = "log p(x_i | shared sites)"
    if local:
        kind = f"importance-weighted estimate of {kind} with K = {inner} draws of the row's own sites"
    return torch.stack(each), {"kind": kind, "draws": inner}


def _in_rows(site: dict[str, Any], n: int) -> bool:
    return any(frame.vectorized and frame.dim == -1 and frame.size == n for frame in site["cond_indep_stack"])


def _no_density(run: Fit, x: Tensor, local: Sequence[Latent]) -> str:
    """Why log q(z_i) of a row cannot be had from the guide; the empty string where it can."""
    nodes = poutine.trace(run.guide).get_trace(x).nodes
    for latent in local:
        site = nodes.get(latent.name)
        if site is None:
            return f"the guide leaves '{latent.name}' to the model, which has no log_marginal"
        joint = site["infer"].get("is_auxiliary") or not _in_rows(site, len(x))
        own = f"{latent.name}_unconstrained"  # AutoNormal's
        if joint or (_is_point(site) and own not in nodes):
            return f"the guide has no density of its own per row for '{latent.name}', the model no log_marginal"
    return ""


def _is_point(site: dict[str, Any]) -> bool:
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return isinstance(base, pyro.distributions.Delta)


def _importance(run: Fit, x: Tensor, local: Sequence[Latent], fixed: dict[str, Tensor], draws: int) -> Tensor:
    r""":math:`\log \frac1K \sum_k p(x_i, z_{ik}) / q(z_{ik})` at the ``fixed`` shared sites (n,)."""
    at_once = isinstance(run.model, Module) and isinstance(run.guide, Module)
    weights = []
    for _ in range(1 if at_once else draws):
        with _plate(draws) if at_once else _plate(None):
            sites: dict[str, Any] = {}
            if local:
                guide = poutine.condition(run.guide, fixed) if fixed else run.guide
                sites = dict(poutine.trace(guide).get_trace(x).nodes)
            values = {s.name: sites[s.name]["value"] for s in local} | fixed
            nodes = poutine.trace(poutine.condition(run.model, values)).get_trace(x).nodes
        weight = _row_density(nodes, x) - (_row_density(sites, x) if sites else 0.0)
        weights.append(weight.expand(draws if at_once else 1, len(x)))
    log_weights = torch.cat(weights)
    return log_weights.logsumexp(0) - np.log(len(log_weights))


def _row_density(nodes: Mapping[str, dict[str, Any]], x: Tensor) -> Tensor:
    """The log density of all sites in the plate of the rows, unscaled, (..., n)."""
    total = x.new_zeros(len(x))
    for site in nodes.values():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and _in_rows(site, len(x)):
            total = total + site["fn"].log_prob(site["value"])
    return total


def _latent(site: Latent, value: Tensor) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    local = ("row",) if site.local else ()
    event = tuple(f"{site.name}_dim_{i}" for i in range(len(site.shape)))
    if site.name == "z" and site.local and len(site.shape) == 1:
        event = ("factor",)
    array = _numpy(value)
    if site.cardinality is not None:
        array = array.astype(np.int64)
    return ("chain", "draw", *local, *event), array[None], {}


def _observed(
    name: str, value: Tensor, n: int, d: int, lead: int = 1
) -> tuple[tuple[str, ...], np.ndarray, dict[str, Any]]:
    """A data site (draws, n, ...) with ``lead=1``, (n, ...) with ``lead=0``."""
    event = tuple(value.shape[lead + 1 :])
    dims = ("column",) if event == (d,) else tuple(f"{name}_dim_{i}" for i in range(len(event)))
    array = _numpy(value)
    return (("chain", "draw") if lead else ()) + ("row", *dims), array[None] if lead else array, {}


def _parameters(model: Any, x: Tensor, found: Sequence[Latent]) -> Variables:
    """The model's parameters by name, without the weights of networks."""
    values: dict[str, tuple[Tensor, Any]] = {}
    if isinstance(model, PyroModule):
        for prefix, module in model.named_modules():
            if not isinstance(module, PyroModule):
                continue
            own = {k: c[0] for k, c in module._pyro_params.items()}
            plain = [k for k in module._parameters if not k.endswith("_unconstrained") and k not in own]
            for name in (*own, *plain):
                value = getattr(module, name)
                if isinstance(value, Tensor):
                    values[f"{prefix}.{name}" if prefix else name] = (value, own.get(name, constraints.real))
        if isinstance(noise := getattr(model, "noise", None), Tensor):
            values.setdefault("noise", (noise, constraints.positive))
    else:
        for name, site in poutine.trace(model).get_trace(x).nodes.items():
            if site["type"] == "param" and "$$$" not in name:
                values[name] = (site["value"], site["kwargs"].get("constraint", constraints.real))
    sizes = {"column": x.shape[1]}
    for latent in found:
        if latent.name == "component" and latent.cardinality is not None:
            sizes = {"component": latent.cardinality, **sizes}
        if latent.name == "z" and latent.local and len(latent.shape) == 1:
            sizes["factor"] = latent.shape[0]
    return {k: (_dims(k, v.shape, c, sizes), _numpy(v), {}) for k, (v, c) in values.items()}


def _dims(name: str, shape: Sequence[int], constraint: Any, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Names for a parameter's axes: the first unused dimension of that size, in the order of ``sizes``."""
    free = dict(sizes)
    square: tuple[str, ...] = ()
    if constraint.event_dim == 2 and tuple(shape[-2:]) == (sizes["column"],) * 2:  # a covariance or its root
        square, shape = ("column", "column_other"), shape[:-2]
        del free["column"]
    dims = []
    for axis, size in enumerate(shape):
        known = next((dim for dim, length in free.items() if length == size), None)
        free.pop(known or "", None)
        dims.append(known or f"{name}_dim_{axis}")
    return (*dims, *square)


def _names(names: Any, length: int, what: str) -> np.ndarray:
    """One name per entry; strings as numpy strings, which netCDF can hold."""
    array = np.asarray(names)
    if array.shape != (length,):
        raise ValueError(f"{what} has shape {array.shape}, where the data needs ({length},): pass one each")
    return array.astype(str) if array.dtype == object else array


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _title(thing: Callable[..., Any]) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _settings(thing: Any) -> Any:
    return thing.settings if isinstance(thing, Module) else {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
