r"""Draws from model and guide of any pair, and their log densities, by site and by row.

All functions that evaluate, export or plot a pair use this module. A *value* is laid out as (draws, b, \*shape) for a
site of b rows and as (draws, \*shape) for a shared one, with the shape of :class:`zoo.base.Latent`: the model's own
plates, then the event. Log densities are not scaled by the size of the data; see :class:`Densities`.

All draws are made in one run, inside a plate to the left of the model's own, if that is equivalent to one run per draw:
our own modules guarantee it, and any other callable is tested (see :func:`_broadcasts`).
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.base.callables import PyroCallable, mode, name_of, unwrapped
from zoo.base.covariates import check_row_buffers
from zoo.base.latent_sites import Latent, Layout, Plate, layout
from zoo.base.module import Module
from zoo.base.plates import spread
from zoo.base.protocols import Pair
from zoo.base.random import seeded

Arguments = tuple[Any, ...]
Values = Mapping[str, Tensor]
MOST_COMBINATIONS = 1000  # of values of sites that are summed out, per row
OURS = ("zoo", "guides")  # packages whose modules guarantee that draws broadcast on the left


class PointEstimate(ValueError):  # noqa: N818 - it reads as what it says
    """A guide has a point mass on a site, and so no density."""


@dataclass(frozen=True)
class Densities:
    """Log densities of draws, in nats.

    Attributes:
        rows: for every site in the plate of the rows, by name, (draws, b).
        shared: for every other site, by name, (draws,).
    """

    rows: dict[str, Tensor]
    shared: dict[str, Tensor]

    @property
    def by_row(self) -> Tensor:
        """The sum over the local sites (draws, b)."""
        return sum(self.rows.values(), torch.zeros(()))

    @property
    def of_shared(self) -> Tensor | float:
        """The sum over the shared sites (draws,); 0 if there are none."""
        return sum(self.shared.values(), 0.0)

    @property
    def total(self) -> Tensor:
        """The sum over all sites and rows (draws,)."""
        return self.by_row.sum(-1) + self.of_shared


@dataclass(frozen=True)
class Drawn:
    """Draws from the guide.

    Attributes:
        values: of the latent sites that the guide covers, by name: (draws, b, ...) local, (draws, ...) shared.
        log_q: their log densities under the guide.
        joint: the guide's site from which all rows are drawn jointly, so that the density is not a product over rows
            (Pyro's joint autoguides); None if it is.
    """

    values: dict[str, Tensor]
    log_q: Densities
    joint: str | None = None


@dataclass(frozen=True)
class Reader:
    """Draws and log densities of a pair for given rows; made by :func:`reader`.

    Attributes:
        pair: the model and the guide.
        x: the rows (n, d).
        layout: the model's sites.
    """

    pair: Pair
    x: Tensor
    layout: Layout
    _broadcast: dict[str, bool] = field(default_factory=dict)  # whether model and guide support all draws in one run

    @property
    def joint_only(self) -> bool:
        """Whether the guide needs all rows at once (Pyro's autoguides without ``create_plates``)."""
        guide = unwrapped(self.pair.guide)
        return isinstance(guide, AutoGuide) and guide.create_plates is None

    @property
    def single(self) -> bool:
        """Whether model or guide needs a run for every draw, as far as they have been run."""
        return not all(self._broadcast.values())

    def chunks(self, count: int, wanted: Tensor | None = None) -> Iterator[tuple[Tensor, Arguments]]:
        """Row numbers (b,) of at most ``count`` rows at a time, and the arguments of model and guide for them.

        ``wanted`` are the numbers of the rows to include, None for all; for a guide that needs all rows at once it is
        ignored.
        """
        n = len(self.x)
        every = torch.arange(n, device=self.x.device)
        needed = every if wanted is None or self.joint_only else wanted
        for index in needed.split(n if self.joint_only else max(1, count)):
            yield index, (self.x,) if len(index) == n else (self.x[index], index, n)

    def draw(self, arguments: Arguments, draws: int, held: Values | None = None, *, points: bool = False) -> Drawn:
        """Draws of the latent sites from the guide, with their log densities.

        Args:
            arguments: of the guide, for some rows.
            draws: their number.
            held: values to which shared sites are fixed.
            points: whether point masses are allowed, where no density is needed.

        Raises:
            PointEstimate: the guide has a point mass on a site, and so no density.
            ValueError: a user-defined guide fails on these rows.
        """
        with asking(self.pair.guide, arguments):
            traces = self._run("guide", arguments, draws, held or {})
            sites, log_q = self._read(traces, draws, len(arguments[0]))
        values = {latent.name: sites[latent.name] for latent in self.layout.latents if latent.name in sites}
        if not points:
            self._refuse_points(traces, values, draws, held or {}, arguments)
        return Drawn(values, log_q, self._joint(traces[0]))

    def score(self, arguments: Arguments, values: Values, draws: int | None = None) -> Densities:
        """The log densities of the model's sites at values of the latent sites, data included.

        Args:
            arguments: of the model, for some rows.
            values: of the latent sites.
            draws: their number; needed only where ``values`` is empty.

        Discrete local sites without a value are summed out; the terms of all sites in the plate of the rows are then a
        single entry.

        Raises:
            ValueError: another site has no value, or there are too many combinations to sum over.
        """
        draws = len(next(iter(values.values()))) if values else draws or 1
        missing = [latent for latent in self.layout.latents if latent.name not in values]
        if not missing:
            return self._score(arguments, values, draws)
        terms, shared = self._combinations(arguments, values, missing, draws)
        return Densities({" ".join(own.name for own in missing): terms.logsumexp(0)}, shared)

    def complete(self, arguments: Arguments, values: Values, draws: int | None = None) -> dict[str, Tensor]:
        """``values``, completed by draws of the discrete sites that the guide leaves out, given the values and x."""
        missing = [latent for latent in self.layout.latents if latent.name not in values]
        if not missing:
            return dict(values)
        draws = len(next(iter(values.values()))) if values else draws or 1
        terms, _ = self._combinations(arguments, values, missing, draws)  # (combinations, draws, b)
        chosen = dist.Categorical(logits=terms.movedim(0, -1)).sample()  # (draws, b)
        grid = list(itertools.product(*(range(latent.cardinality or 0) for latent in missing)))
        places = torch.tensor(grid, device=chosen.device)  # (combinations, sites)
        found = dict(values)
        for number, latent in enumerate(missing):
            assert latent.values is not None
            found[latent.name] = latent.values[places[chosen, number]]
        return found

    def simulate(self, arguments: Arguments, draws: int, held: Values | None = None) -> tuple[dict[str, Tensor], Any]:
        """Draws from the model itself.

        Args:
            arguments: of the model; (None, index, size) or (None, None, size) to generate, or (x, ...).
            draws: their number.
            held: values to which latent sites are fixed; the others are drawn.

        Returns:
            the values of all latent and data sites by name, and the traces.
        """
        count = len(arguments[0]) if arguments[0] is not None else _count(arguments)
        traces = self._run("model", arguments, draws, held or {}, free=True)
        sites, _ = self._read(traces, draws, count, densities=False)
        return sites, traces

    def observed(self, arguments: Arguments) -> dict[str, Tensor]:
        """The values of the data sites for some rows, by name, (b, ...)."""
        traces = self._run("model", arguments, 1, {})
        sites, _ = self._read(traces, 1, len(arguments[0]), densities=False)
        return {name: sites[name][0] for name in self.layout.data}

    def _run(
        self, role: str, arguments: Arguments, draws: int, held: Values, free: bool = False
    ) -> list[poutine.Trace]:
        """Traces of model or guide with the sites in ``held`` fixed: one for all draws, or one for each."""
        function = getattr(self.pair, role)
        if free:
            function = poutine.uncondition(function)
        if role not in self._broadcast:
            self._broadcast[role] = _broadcasts(function, self.layout, arguments)
        placed = {name: self._placed(self._latent(name), value) for name, value in held.items()}
        if self._broadcast[role]:
            wide = spread(poutine.condition(function, placed), draws, -1 - self.layout.nesting)
            return [poutine.trace(wide).get_trace(*arguments)]
        return [
            poutine.trace(
                poutine.condition(function, {k: _natural(v[i], self._latent(k)) for k, v in placed.items()})
            ).get_trace(*arguments)
            for i in range(draws)
        ]

    def _score(self, arguments: Arguments, values: Values, draws: int) -> Densities:
        traces = self._run("model", arguments, draws, values)
        return self._read(traces, draws, len(arguments[0]))[1]

    def _combinations(
        self, arguments: Arguments, values: Values, missing: list[Latent], draws: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log densities of the rows for every combination of values of ``missing`` (c, draws, b), and the shared terms.

        Raises:
            ValueError: a missing site is not a discrete one of the rows, or there are too many combinations.
        """
        count = 1
        for latent in missing:
            if latent.cardinality is None or not latent.local or latent.plates:
                raise ValueError(
                    f"the guide {name_of(self.pair.guide)} has no site '{latent.name}': add it to the guide. (Only "
                    "discrete local sites can be left out, which are then summed out.)"
                )
            count *= latent.cardinality
        if count > MOST_COMBINATIONS:
            raise ValueError(
                f"the sites {', '.join(own.name for own in missing)} that the guide leaves out have {count} "
                f"combinations of values, more than {MOST_COMBINATIONS}: add one of them to the guide"
            )
        rows = len(arguments[0])
        terms, shared = [], {}
        for combination in itertools.product(*(latent.values for latent in missing)):  # type: ignore[arg-type]
            own = {
                latent.name: value.to(self.x.device).expand(draws, rows, *latent.shape)
                for latent, value in zip(missing, combination, strict=True)
            }
            found = self._score(arguments, {**values, **own}, draws)
            terms.append(found.by_row)
            shared = found.shared
        return torch.stack(terms), shared

    def _read(
        self, traces: list[poutine.Trace], draws: int, count: int, densities: bool = True
    ) -> tuple[dict[str, Tensor], Densities]:
        """The values of latent and data sites, and the log densities of all sites, from all traces."""
        each = draws // len(traces)
        values: dict[str, list[Tensor]] = {}
        rows: dict[str, list[Tensor]] = {}
        shared: dict[str, list[Tensor]] = {}
        known = {latent.name: latent for latent in self.layout.latents}
        for trace in traces:
            if densities:
                trace.compute_log_prob()
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or site_is_subsample(site):
                    continue
                local = self._in_rows(site, count)
                if name in known:
                    values.setdefault(name, []).append(self._laid_out(site["value"], known[name], each, count))
                elif name in self.layout.data:
                    values.setdefault(name, []).append(self._laid_out(site["value"], self._data(site), each, count))
                if densities:
                    log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
                    summed = self._summed(log_prob, each, count if local else None)
                    (rows if local else shared).setdefault(name, []).append(summed)
        found = {name: torch.cat(parts) for name, parts in values.items()}
        return found, Densities(
            {name: torch.cat(parts) for name, parts in rows.items()},
            {name: torch.cat(parts) for name, parts in shared.items()},
        )

    def _in_rows(self, site: dict[str, Any], count: int) -> bool:
        """Whether a site of model or guide is in the plate of the rows, by the plate's name, or by its dim and size."""
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if any(frame.name == self.layout.plate for frame in frames):
            return True
        known = next((latent for latent in self.layout.latents if latent.name == site["name"]), None)
        if known is not None:
            return known.local
        return any(frame.dim == -1 and frame.size == count for frame in frames) and not any(
            plate.dim == -1 and plate.name == frame.name
            for latent in self.layout.shared
            for plate in latent.plates
            for frame in frames
        )

    def _summed(self, log_prob: Tensor, draws: int, count: int | None) -> Tensor:
        """Log densities of a site's batch summed over its own plates: (draws, b), or (draws,) if ``count`` is None."""
        nesting = self.layout.nesting
        wide = log_prob.reshape((1,) * (nesting + 1 - log_prob.ndim) + log_prob.shape)
        if count is None:
            return wide.flatten(1).sum(1).expand(draws)
        wide = wide.expand(*wide.shape[:-1], count)
        return wide.flatten(1, -2).sum(1).expand(draws, count) if nesting > 1 else wide.expand(draws, count)

    def _latent(self, name: str) -> Latent:
        return next(latent for latent in self.layout.latents if latent.name == name)

    def _laid_out(self, value: Tensor, latent: Latent, draws: int, count: int) -> Tensor:
        """A site's value in a trace as (draws, b, *shape), or (draws, *shape) for a shared one."""
        nesting, batch = self.layout.nesting, value.ndim - latent.event_dim
        event = value.shape[batch:]
        wide = value.reshape((1,) * (nesting + 1 - batch) + value.shape)
        sizes = [draws] + [1] * nesting
        for plate in latent.plates:
            sizes[plate.dim] = plate.size
        if latent.local:
            sizes[-1] = count
        order = [nesting] * latent.local + [nesting + 1 + plate.dim for plate in latent.plates]
        rest = [d for d in range(1, nesting + 1) if d not in order]
        ends = range(nesting + 1, nesting + 1 + latent.event_dim)
        wide = wide.expand(*sizes, *event).permute(0, *order, *rest, *ends)
        return wide.reshape(draws, *(sizes[d] for d in order), *event)

    def _data(self, site: dict[str, Any]) -> Latent:
        """The shape of a data site of a trace, described as that of a latent one."""
        nesting, frames = self.layout.nesting, site["cond_indep_stack"]
        own = [f for f in frames if f.vectorized and f.name != self.layout.plate and f.dim >= -nesting]
        plates = sorted((Plate(f.name, f.size, f.dim) for f in own), key=lambda plate: plate.dim)
        event = site["value"].shape[site["value"].ndim - site["fn"].event_dim :]
        shape = torch.Size([plate.size for plate in plates]) + event
        return Latent(site["name"], shape, site["fn"].support, True, plates=tuple(plates))

    def _placed(self, latent: Latent, value: Tensor) -> Tensor:
        """The inverse of :meth:`_laid_out`: (draws, *batch, *event), with a batch dimension for every plate."""
        nesting = self.layout.nesting
        order = [nesting] * latent.local + [nesting + 1 + plate.dim for plate in latent.plates]
        rest = [d for d in range(1, nesting + 1) if d not in order]
        event = value.shape[value.ndim - latent.event_dim :]
        wide = value.reshape(*value.shape[: 1 + len(order)], *(1 for _ in rest), *event)
        back = [0] * nesting
        for position, d in enumerate([*order, *rest]):
            back[d - 1] = position + 1
        ends = range(nesting + 1, nesting + 1 + latent.event_dim)
        return wide.permute(0, *back, *ends)

    def _joint(self, trace: poutine.Trace) -> str | None:
        """The guide's auxiliary site outside the plate of the rows from which local sites are drawn, if any."""
        points = [
            latent.name
            for latent in self.layout.local
            if latent.name in trace.nodes and _is_delta(trace.nodes[latent.name]["fn"])
        ]
        if not any(f"{name}_unconstrained" not in trace.nodes for name in points):
            return None
        known = {latent.name for latent in self.layout.latents}
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site) or name in known:
                continue
            if not any(frame.name == self.layout.plate for frame in site["cond_indep_stack"]):
                return str(name)
        return None

    def _refuse_points(
        self, traces: list[poutine.Trace], values: Values, draws: int, held: Values, arguments: Arguments
    ) -> None:
        """Refuse a guide with a point mass: a Delta that is the same in every draw.

        A Delta that varies over the draws is a function of an auxiliary site with a density.
        """
        suspects = [name for name in values if name not in held and _is_delta(traces[0].nodes[name]["fn"])]
        if not suspects:
            return
        if draws == 1:
            values = self._read(self._run("guide", arguments, 2, {}), 2, len(arguments[0]), densities=False)[0]
        for name in suspects:
            if bool((values[name] == values[name][:1]).all()):
                raise PointEstimate(
                    f"the guide {name_of(self.pair.guide)} has a point mass on '{name}', so it has no density and "
                    "there is no bound: use a guide with a density, such as MeanField or AutoNormal (for "
                    "AutoLaplaceApproximation its Gaussian approximation, guide.laplace_approximation(x))"
                )


@contextmanager
def asking(guide: PyroCallable, arguments: Arguments) -> Iterator[None]:
    """A block that calls a guide; if a user-defined one fails on these rows, the error explains how it is called.

    Errors of the package's own guides are as the guide raised them, without the shapes that Pyro's traces append.

    Raises:
        ValueError: names the guide and the number of rows.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:
        if _ours(guide):
            raise _raised(error) from None
        raise ValueError(
            f"the guide {name_of(guide)} fails on {len(arguments[0])} rows ({str(error).splitlines()[0]}). A guide "
            "with parameters for every row must select those of the rows numbered by index, as in loc[index]; "
            "MeanField, FullRank and Amortized do this"
        ) from error


def _raised(error: Exception) -> Exception:
    """An error before Pyro's traces raised it again, each with the shapes of its sites."""
    while type(error.__cause__) is type(error) and str(error).startswith(str(error.__cause__)):
        error = error.__cause__
    return error


def _ours(function: PyroCallable) -> bool:
    inner = unwrapped(function)
    return isinstance(inner, Module) and type(inner).__module__.split(".")[0] in OURS


@contextmanager
def reading(pair: Pair, seed: int) -> Iterator[None]:
    """A block in which a pair is evaluated, but not changed.

    It has the pair's parameter store and its own random stream, modules are in evaluation mode, and gradients and
    validation are off; afterwards the previous state is restored.
    """
    with (
        pair.scope(),
        seeded(seed),
        torch.no_grad(),
        pyro.validation_enabled(False),
        mode(False, pair.model, pair.guide),
    ):
        yield


def reader(pair: Pair, x: Tensor) -> Reader:
    """A :class:`Reader` for the rows ``x`` (n, d), to be used inside :func:`reading`.

    Raises:
        ValueError: the model has covariates for another number of rows.
    """
    check_row_buffers(pair.model, len(x), x)
    return Reader(pair, x, layout(pair.model, x))


def _broadcasts(function: PyroCallable, found: Layout, arguments: Arguments) -> bool:
    """Whether one run inside a plate of draws is equivalent to a run for every draw.

    Our own modules guarantee it. Any other callable is run for two draws together, and for each of them separately at
    the same values: all log densities must be equal.
    """
    if _ours(function):
        return True
    dim = -1 - found.nesting
    with seeded(0):
        alone = poutine.trace(function).get_trace(*arguments)
        try:
            together = poutine.trace(spread(function, 2, dim)).get_trace(*arguments)
            together.compute_log_prob()
            for draw in range(2):
                chosen = _one_draw(together, alone, draw, dim)
                trace = poutine.trace(poutine.condition(function, chosen)).get_trace(*arguments)
                trace.compute_log_prob()
                if not _same(trace, together, draw, dim):
                    return False
        except Exception:  # an error that is not due to the plate will occur in separate runs as well
            return False
    return True


def _one_draw(together: poutine.Trace, alone: poutine.Trace, draw: int, dim: int) -> dict[str, Tensor]:
    """The values of one draw of a trace, in the shapes of a separate run."""
    values = {}
    for name, site in together.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or site["is_observed"]:
            continue
        batch = site["value"].ndim - site["fn"].event_dim
        wide = site["value"].reshape((1,) * (-dim - batch) + site["value"].shape)
        own = wide.expand(2, *wide.shape[1:])[draw]
        values[name] = own.reshape(alone.nodes[name]["value"].shape)
    return values


def _same(trace: poutine.Trace, together: poutine.Trace, draw: int, dim: int) -> bool:
    """Whether the log densities of a run for one draw equal those of the run for both, by site."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        ours, theirs = site["unscaled_log_prob"], together.nodes[name]["unscaled_log_prob"]
        wide = theirs.reshape((1,) * (-dim - theirs.ndim) + theirs.shape)
        wide = wide.expand(2, *wide.shape[1:])[draw]
        if wide.numel() != ours.numel():
            return False
        tolerance = 1e3 * torch.finfo(ours.dtype).eps
        if not torch.allclose(ours.flatten(), wide.flatten(), rtol=tolerance, atol=tolerance, equal_nan=True):
            return False
    return True


def _natural(value: Tensor, latent: Latent) -> Tensor:
    """A value (*batch, *event) with as many batch dimensions as the site has in a separate run."""
    depth = max([1] * latent.local + [-plate.dim for plate in latent.plates], default=0)
    batch = value.ndim - latent.event_dim
    return value.reshape(value.shape[batch - depth :])


def _is_delta(function: Any) -> bool:
    while hasattr(function, "base_dist"):
        function = function.base_dist
    return isinstance(function, dist.Delta)


def _count(arguments: Arguments) -> int:
    """The number of rows that the model generates for these arguments."""
    _, index, size = (*arguments, None, None)[:3]
    return len(index) if index is not None else int(size)
