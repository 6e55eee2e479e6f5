"""Tensors as variables with named dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from zoo.base.latent_sites import Latent

RESERVED = ("chain", "draw", "row", "column", "column_other", "factor")


class Variable(NamedTuple):
    """What xarray makes a variable of.

    Attributes:
        dims: a name for every axis of ``values``.
        values: the numbers.
        attrs: what they are, in words.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every dimension."""
        return self.values.shape


Groups = dict[str, dict[str, Variable]]


def check_names(found: Sequence[Latent]) -> None:
    """Refuse latent sites that cannot stand beside the dimensions.

    Raises:
        ValueError: a site bears the name of a dimension.
    """
    if clash := [latent.name for latent in found if latent.name in RESERVED]:
        raise ValueError(f"latent site '{clash[0]}' bears the name of a dimension: rename it")


def latent(site: Latent, value: Tensor) -> Variable:
    """Draws of a latent site, (draws, n, ...) or shared (draws, ...), as one chain."""
    local = ("row",) if site.local else ()
    event = tuple(f"{site.name}_dim_{i}" for i in range(len(site.shape)))
    if site.name == "z" and site.local and len(site.shape) == 1:
        event = ("factor",)
    array = numpy(value)
    if site.cardinality is not None:
        array = array.astype(np.int64)
    return Variable(("chain", "draw", *local, *event), array[None], {})


def predicted(name: str, value: Tensor, d: int) -> Variable:
    """Draws (draws, n, ...) of a data site as one chain; d is the number of the data's columns."""
    return Variable(("chain", "draw", "row", *_columns(name, value.shape[2:], d)), numpy(value)[None], {})


def observed(name: str, value: Tensor, d: int) -> Variable:
    """A data site (n, ...) as it was seen."""
    return Variable(("row", *_columns(name, value.shape[1:], d)), numpy(value), {})


def per_draw(value: Tensor, **attrs: Any) -> Variable:
    """One number per draw and row (draws, n), as one chain."""
    return Variable(("chain", "draw", "row"), numpy(value)[None], attrs)


def parameters(model: Any, x: Tensor, found: Sequence[Latent]) -> dict[str, Variable]:
    """The model's parameters by name, without the weights of networks; read within the run's scope.

    Args:
        model: any Pyro callable.
        x: some rows (b, d), for a callable that has to be run to show its parameters.
        found: its latent sites.
    """
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
    for each in found:
        if each.name == "component" and each.cardinality is not None:
            sizes = {"component": each.cardinality, **sizes}
        if each.name == "z" and each.local and len(each.shape) == 1:
            sizes["factor"] = each.shape[0]
    return {k: Variable(_dims(k, v.shape, c, sizes), numpy(v), {}) for k, (v, c) in values.items()}


def names(given: Any, length: int, what: str) -> np.ndarray:
    """One name per entry; strings as numpy strings, which netCDF can hold.

    Raises:
        ValueError: another number of names than ``length``.
    """
    array = np.asarray(given)
    if array.shape != (length,):
        raise ValueError(f"{what} has shape {array.shape}, where the data needs ({length},): pass one each")
    return array.astype(str) if array.dtype == object else array


def numpy(value: Tensor) -> np.ndarray:
    """The values of a tensor, without a copy where they lie on the CPU."""
    return value.detach().cpu().numpy()


def _columns(name: str, event: Sequence[int], d: int) -> tuple[str, ...]:
    return ("column",) if tuple(event) == (d,) else tuple(f"{name}_dim_{i}" for i in range(len(event)))


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
