"""The sites of a model, found by running it once: latent and observed, local and shared, in plates of its own."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from zoo.base.callables import PyroCallable, mode, unwrapped
from zoo.base.module import like
from zoo.base.random import seeded


@dataclass(frozen=True)
class Plate:
    """A plate of the model other than that of the rows: ``size`` independent copies along dimension ``dim`` < 0."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class Latent:
    """A latent site of a model.

    Attributes:
        name: the site's name.
        shape: the shape of one draw (of one row, for a local site): its plates, outermost first, then its event.
        support: the constraint on its values.
        local: True for a site inside the plate of the rows, False for one shared by all rows.
        cardinality: the number of values of a discrete site, None for a continuous one.
        plates: the plates it is in besides that of the rows, outermost first.
        values: the values of a discrete site, (cardinality, *event); None for a continuous one.
    """

    name: str
    shape: torch.Size
    support: constraints.Constraint
    local: bool
    cardinality: int | None = None
    plates: tuple[Plate, ...] = ()
    values: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def event_dim(self) -> int:
        """The number of event dimensions, the rightmost ones of ``shape``."""
        return len(self.shape) - len(self.plates)

    @property
    def transform(self) -> Transform | None:
        """The map from real values to the support; None if the support is the real line."""
        base = self.support
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        if isinstance(base, type(constraints.real)):  # copies and unpickled constraints are other objects
            return None
        return torch.distributions.biject_to(self.support)

    @property
    def width(self) -> int:
        """The number of unconstrained coordinates of one draw (K - 1 for a simplex of K values)."""
        transform = self.transform
        return self.shape.numel() if transform is None else torch.Size(transform.inverse_shape(self.shape)).numel()

    @property
    def attribute(self) -> str:
        """The name as a valid attribute name."""
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Layout:
    """The sites of a model and their plates.

    Attributes:
        latents: the latent sites, in the order in which they are sampled.
        data: the names of the data sites, which are observed when x is given.
        plate: the name of the plate of the rows, at dim -1.
        nesting: the depth of the plates: the model's batch dimensions are -nesting to -1.
    """

    latents: tuple[Latent, ...]
    data: tuple[str, ...]
    plate: str
    nesting: int

    @property
    def local(self) -> tuple[Latent, ...]:
        """The latent sites with a value for every row."""
        return tuple(latent for latent in self.latents if latent.local)

    @property
    def shared(self) -> tuple[Latent, ...]:
        """The latent sites shared by all rows."""
        return tuple(latent for latent in self.latents if not latent.local)


def layout(model: PyroCallable, x: Tensor | None = None) -> Layout:
    """The sites of a model, found by running it once on its first row.

    Args:
        model: any Pyro callable with the signature ``(x=None, index=None, size=None)``.
        x: the data (n, d). The model is called as for a minibatch, with row 0 of n, so that covariates for all rows are
            selected by ``index``. None lets the model generate row 0; the data sites are then those whose values the
            model returns (one, a tuple or a dict), or the one named ``x``.

    Raises:
        ValueError: a data site is outside the plate of the rows, a latent site is discrete without finite support, or a
            plate is sequential.
    """
    arguments: tuple[Any, ...] = (None, torch.zeros(1, dtype=torch.long), 1)
    if x is not None:
        module = unwrapped(model)
        row = like(x[:1], module) if isinstance(module, nn.Module) else x[:1]
        arguments = (row, torch.zeros(1, dtype=torch.long, device=row.device), len(x))
    with pyro.get_param_store().scope(), seeded(0), torch.no_grad(), poutine.block(), mode(False, model):
        trace = poutine.trace(model).get_trace(*arguments)
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site_is_factor(site)
    }
    data = data_sites(trace)
    plate = _rows_plate(sites, data)
    found = tuple(_latent(site, plate) for name, site in sites.items() if name not in data and not site["is_observed"])
    depth = [-frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.vectorized]
    return Layout(found, data, plate, max(depth, default=1))


def latents(model: PyroCallable, x: Tensor | None = None) -> tuple[Latent, ...]:
    """The latent sites of a Pyro model, in the order in which they are sampled; see :func:`layout`."""
    return layout(model, x).latents


def data_sites(trace: poutine.Trace) -> tuple[str, ...]:
    """The names of the data sites in a trace of a model.

    They are the observed ones; if nothing is observed (the model generates), the sites whose values the model returns
    (one, a tuple or a dict of them), else the one named ``x``.
    """
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site_is_factor(site)
    }
    observed = tuple(name for name, site in sites.items() if site["is_observed"])
    if observed:
        return observed
    returned = trace.nodes["_RETURN"]["value"] if "_RETURN" in trace.nodes else None
    values = returned.values() if isinstance(returned, dict) else returned
    values = list(values) if isinstance(values, Iterable) and not isinstance(values, Tensor) else [returned]
    same = tuple(name for name, site in sites.items() if any(site["value"] is value for value in values))
    return same or tuple(name for name in sites if name == "x")


def _rows_plate(sites: dict[str, Any], data: tuple[str, ...]) -> str:
    """The name of the plate of the data sites at dim -1."""
    for name in data:
        frames = [frame for frame in sites[name]["cond_indep_stack"] if frame.vectorized and frame.dim == -1]
        if not frames:
            raise ValueError(
                f"data site '{name}' does not have a value for every row: put it into a plate over the rows at "
                "dim -1 (zoo.base.rows)"
            )
        return str(frames[0].name)
    return "rows"


def _latent(site: dict[str, Any], plate: str) -> Latent:
    """A latent site, from its entry in a trace."""
    function, name = site["fn"], site["name"]
    frames = site["cond_indep_stack"]
    if single := [frame.name for frame in frames if not frame.vectorized]:
        raise ValueError(
            f"latent site '{name}' is in plate '{single[0]}', which is sequential: use it as a context manager, "
            "with pyro.plate(...)"
        )
    plates = sorted((Plate(f.name, f.size, f.dim) for f in frames if f.name != plate), key=lambda own: own.dim)
    shape = torch.Size([own.size for own in plates]) + function.event_shape
    local = any(frame.name == plate for frame in frames)
    if not function.support.is_discrete:
        return Latent(name, shape, function.support, local, plates=tuple(plates))
    if not function.has_enumerate_support:
        raise ValueError(
            f"latent site '{name}' ({type(function).__name__}) is discrete without finite support, which no guide "
            "supports: sum it out of the model"
        )
    values = function.enumerate_support(expand=False)
    values = values.reshape(len(values), *function.event_shape)
    return Latent(name, shape, function.support, local, len(values), tuple(plates), values)
