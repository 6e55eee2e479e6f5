"""Tensors as variables with named dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from zoo.base.callables import PyroCallable, unwrapped
from zoo.base.latent_sites import Latent, Layout
from zoo.posterior.engine import Reader

RESERVED = ("chain", "draw", "row", "column", "column_other", "factor")


class Variable(NamedTuple):
    """A variable as xarray takes it.

    Attributes:
        dims: the name of every axis of ``values``.
        values: the numbers.
        attrs: their description.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every dimension."""
        return self.values.shape


Groups = dict[str, dict[str, Variable]]


def check_names(found: Layout) -> None:
    """Refuse sites and plates whose names clash with those of dimensions.

    Raises:
        ValueError: a site or one of its plates has the name of a dimension.
    """
    sites = {latent.name for latent in found.latents} | set(found.data)
    plates = {plate.name for latent in found.latents for plate in latent.plates}
    if clash := sorted((sites | plates) & set(RESERVED)):
        kind = "latent site" if clash[0] in sites else "plate"
        raise ValueError(f"{kind} '{clash[0]}' has the name of a dimension: rename it")


def latent(site: Latent, value: Tensor) -> Variable:
    """Draws of a latent site, (draws, n, ...) or shared (draws, ...), as one chain.

    The dimensions are ``row`` for a local site, then the names of its own plates, then its event dimensions.
    """
    local = ("row",) if site.local else ()
    event = tuple(f"{site.name}_dim_{i}" for i in range(site.event_dim))
    if site.name == "z" and site.local and len(site.shape) == 1 and not site.plates:
        event = ("factor",)
    array = numpy(value)
    if site.cardinality is not None:
        array = array.astype(np.int64)
    plates = tuple(plate.name for plate in site.plates)
    return Variable(("chain", "draw", *local, *plates, *event), array[None], {})


def predicted(name: str, value: Tensor, d: int) -> Variable:
    """Draws (draws, n, ...) of a data site as one chain; d is the number of the data's columns."""
    return Variable(("chain", "draw", "row", *_columns(name, value.shape[2:], d)), numpy(value)[None], {})


def observed(name: str, value: Tensor, d: int) -> Variable:
    """The observed values of a data site (n, ...)."""
    return Variable(("row", *_columns(name, value.shape[1:], d)), numpy(value), {})


def per_row(value: Tensor, **attrs: Any) -> Variable:
    """One number per draw and row (draws, n), as one chain."""
    return Variable(("chain", "draw", "row"), numpy(value)[None], attrs)


def per_draw(value: Tensor, **attrs: Any) -> Variable:
    """One number per draw (draws,), as one chain."""
    return Variable(("chain", "draw"), numpy(value)[None], attrs)


def parameters(model: PyroCallable, source: Reader) -> dict[str, Variable]:
    """A model's parameters by name, without the weights of networks; call it inside ``reading``.

    Args:
        model: the model of the pair, or a copy of it in other latent coordinates.
        source: the pair and its rows.
    """
    inner, x, found = unwrapped(model), source.x, source.layout.latents
    values: dict[str, tuple[Tensor, Any]] = {}
    if isinstance(inner, PyroModule):
        for prefix, module in inner.named_modules():
            if not isinstance(module, PyroModule):
                continue
            own = {k: c[0] for k, c in module._pyro_params.items()}
            plain = [k for k in module._parameters if not k.endswith("_unconstrained") and k not in own]
            for name in (*own, *plain):
                value = getattr(module, name)
                if isinstance(value, Tensor):
                    values[f"{prefix}.{name}" if prefix else name] = (value, own.get(name, constraints.real))
        if isinstance(noise := getattr(inner, "noise", None), Tensor):
            values.setdefault("noise", (noise, constraints.positive))
    else:
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        for name, site in poutine.trace(model).get_trace(x[:1], first, len(x)).nodes.items():
            if site["type"] == "param" and "$$$" not in name:
                values[name] = (site["value"], site["kwargs"].get("constraint", constraints.real))
    sizes = {"column": x.shape[1]}
    for each in found:
        if each.name == "component" and each.cardinality is not None:
            sizes = {"component": each.cardinality, **sizes}
        if each.name == "z" and each.local and len(each.shape) == 1 and not each.plates:
            sizes["factor"] = each.shape[0]
    return {k: Variable(_dims(k, v.shape, c, sizes), numpy(v), {}) for k, (v, c) in values.items()}


def names(given: Any, length: int, what: str) -> np.ndarray:
    """One name per entry; strings become numpy strings, which netCDF can store.

    Raises:
        ValueError: the number of names is not ``length``.
    """
    array = np.asarray(given)
    if array.shape != (length,):
        raise ValueError(f"{what} has shape {array.shape}, but the data needs ({length},): pass one name for each")
    return array.astype(str) if array.dtype == object else array


def numpy(value: Tensor) -> np.ndarray:
    """The values of a tensor, without a copy where they are on the CPU."""
    return value.detach().cpu().numpy()


def _columns(name: str, event: Sequence[int], d: int) -> tuple[str, ...]:
    return ("column",) if tuple(event) == (d,) else tuple(f"{name}_dim_{i}" for i in range(len(event)))


def _dims(name: str, shape: Sequence[int], constraint: Any, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Names of a parameter's axes: for each, the first unused dimension of its size, in the order of ``sizes``."""
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
