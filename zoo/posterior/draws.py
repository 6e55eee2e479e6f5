"""Joint draws of latent and data sites for some rows, and their densities row by row, of any Pyro model and guide.

Our own modules promise that draws broadcast on the left and run once for all draws; any other callable is run draw
by draw. Sites that all rows share are drawn with the first rows and held for the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate, infer_discrete
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from zoo.base.latent_sites import Latent
from zoo.base.module import Module
from zoo.base.plates import spread
from zoo.base.protocols import Pair
from zoo.posterior.engine import Arguments

Nodes = Mapping[str, dict[str, Any]]
Values = Mapping[str, Tensor]


class Drawn(NamedTuple):
    """What a guide says of some rows.

    Attributes:
        latent: every latent site, (draws, b, ...) local and (draws, ...) shared.
        log_q: the log densities of all the guide's sites in the plate of the rows, (draws, b).
    """

    latent: dict[str, Tensor]
    log_q: Tensor


def from_guide(
    run: Pair, arguments: Arguments, found: Sequence[Latent], draws: int, held: Values | None = None
) -> Drawn:
    """Latent sites from the guide, those that it leaves to the model from the model given the others and the data.

    Args:
        run: a fit.
        arguments: of model and guide: (x,) or (x, index, size).
        found: the model's latent sites.
        draws: the number of draws.
        held: shared sites (draws, ...) at values that they have already.
    """
    count = len(arguments[0])
    parts: dict[str, list[Tensor]] = {}
    log_q = []
    for nodes, number in _passes(run.guide, run.guide, arguments, found, draws, held or {}):
        _keep(parts, nodes, found, number, count)
        log_q.append(_by_row(nodes, arguments[0]).expand(number, count))
    values = {name: torch.cat(each) for name, each in parts.items()}
    if missing := [latent for latent in found if latent.name not in values]:  # summed out by TraceEnum_ELBO
        parts = {}

        def inferred(model: Any) -> Any:
            return infer_discrete(config_enumerate(model), first_available_dim=-3)

        for nodes, number in _passes(run.model, run.model, arguments, found, draws, values, inferred):
            _keep(parts, nodes, missing, number, count)
        values |= {name: torch.cat(each) for name, each in parts.items()}
    return Drawn({latent.name: values[latent.name] for latent in found}, torch.cat(log_q))


def from_model(
    run: Pair, arguments: Arguments, found: Sequence[Latent], data: Sequence[str], draws: int, held: Values
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Latent sites and data sites from the model, with the latent sites in ``held`` at these values.

    Returns:
        latent sites, (draws, b, ...) local and (draws, ...) shared; data sites (draws, b, ...).
    """
    count = len(arguments[0])
    latent: dict[str, list[Tensor]] = {}
    seen: dict[str, list[Tensor]] = {name: [] for name in data}
    free = poutine.uncondition(run.model)
    for nodes, number in _passes(free, run.model, arguments, found, draws, held):
        _keep(latent, nodes, found, number, count)
        for name in data:
            site = nodes[name]
            seen[name].append(_lay_out(site["value"], site["fn"].event_shape, True, number, count))
    return {k: torch.cat(v) for k, v in latent.items()}, {k: torch.cat(v) for k, v in seen.items()}


def log_joint(run: Pair, arguments: Arguments, found: Sequence[Latent], draws: int, values: Values) -> Tensor:
    r"""The log densities of all the model's sites in the plate of the rows at ``values``, (draws, b).

    Where no site is shared that is :math:`\log p(x, z)`; else it is conditional on the shared ones.
    """
    parts = []
    for nodes, number in _passes(run.model, run.model, arguments, found, draws, values):
        parts.append(_by_row(nodes, arguments[0]).expand(number, len(arguments[0])))
    return torch.cat(parts)


def data_sites(run: Pair, arguments: Arguments) -> dict[str, Tensor]:
    """The model's observed sites and their values (b, ...).

    Raises:
        ValueError: one of them stands outside the plate of the rows.
    """
    nodes = poutine.trace(run.model).get_trace(*arguments).nodes
    found = {name: site for name, site in nodes.items() if _is_data(site)}
    for name, site in found.items():
        if not _in_rows(site, len(arguments[0])):
            raise ValueError(
                f"data site '{name}' has no values of its own for every row: put it into a plate over the rows at "
                "dim -1 (zoo.base.rows)"
            )
    return {name: site["value"] for name, site in found.items()}


def no_density(run: Pair, arguments: Arguments, local: Sequence[Latent]) -> str:
    """Why log q(z_i | x_i) of a row cannot be had from the guide; the empty string where it can."""
    nodes = poutine.trace(run.guide).get_trace(*arguments).nodes
    for latent in local:
        site = nodes.get(latent.name)
        if site is None:
            return f"the guide leaves '{latent.name}' to the model"
        joint = site["infer"].get("is_auxiliary") or not _in_rows(site, len(arguments[0]))
        own = f"{latent.name}_unconstrained"  # AutoNormal's
        if joint or (_is_point(site) and own not in nodes):
            return f"the guide has no density of its own per row for '{latent.name}'"
    return ""


def _passes(
    function: Callable[..., Any],
    owner: Any,
    arguments: Arguments,
    found: Sequence[Latent],
    draws: int,
    held: Values,
    wrap: Callable[[Any], Any] = lambda conditioned: conditioned,
) -> Iterator[tuple[Nodes, int]]:
    """The sites of every run of ``function``, with the number of draws in it: all at once, or one.

    Args:
        function: made of ``owner``, whose class decides.
        owner: model or guide.
        arguments: of the call.
        found: the model's latent sites.
        draws: in all.
        held: latent sites at given values, with the draws leading.
        wrap: a handler outside of the conditioning and of the plate of draws.
    """
    if isinstance(owner, Module):
        local = {latent.name for latent in found if latent.local}
        values = {name: value if name in local else value.unsqueeze(1) for name, value in held.items()}
        spread_out = wrap(spread(poutine.condition(function, values), draws))  # infer_discrete hides outer plates
        yield poutine.trace(spread_out).get_trace(*arguments).nodes, draws
        return
    for i in range(draws):
        conditioned = wrap(poutine.condition(function, {name: value[i] for name, value in held.items()}))
        yield poutine.trace(conditioned).get_trace(*arguments).nodes, 1


def _keep(parts: dict[str, list[Tensor]], nodes: Nodes, found: Sequence[Latent], draws: int, count: int) -> None:
    for latent in found:
        if latent.name in nodes:
            value = _lay_out(nodes[latent.name]["value"], latent.shape, latent.local, draws, count)
            parts.setdefault(latent.name, []).append(value)


def _lay_out(value: Tensor, event: torch.Size, local: bool, draws: int, count: int) -> Tensor:
    """A site's value as (draws, b, *event), or (draws, *event) for one that all rows share."""
    wide = value.expand(draws, count if local else 1, *event)
    return wide if local else wide[:, 0]


def _by_row(nodes: Nodes, x: Tensor) -> Tensor:
    """The log density of all sites in the plate of the rows, unscaled by the size of the data, (..., b)."""
    total = x.new_zeros(len(x))
    for site in nodes.values():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and _in_rows(site, len(x)):
            total = total + scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return total


def _in_rows(site: dict[str, Any], count: int) -> bool:
    """By place and size, not by name: anyone's plate will do."""
    return any(frame.vectorized and frame.dim == -1 and frame.size == count for frame in site["cond_indep_stack"])


def _is_data(site: dict[str, Any]) -> bool:
    return (
        site["type"] == "sample"
        and site["is_observed"]
        and type(site["fn"]).__name__ not in ("_Subsample", "Unit")
        and isinstance(site["value"], Tensor)
    )


def _is_point(site: dict[str, Any]) -> bool:
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    return isinstance(base, pyro.distributions.Delta)


def whole(guide: Any) -> bool:
    """Whether a guide knows its rows only all together (Pyro's autoguides without ``create_plates``)."""
    return isinstance(guide, AutoGuide) and guide.create_plates is None
