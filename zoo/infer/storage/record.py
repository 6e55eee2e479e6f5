"""Runs to JSON and tensors, and back: modules, handlers, training, other parameters and their constraints."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from torch import Tensor

from zoo.base.callables import PyroCallable, handlers, held_modules, name_of, unwrapped
from zoo.base.module import Module
from zoo.base.origin import origin_of

if TYPE_CHECKING:
    from zoo.infer.run import Fit

Settings = dict[str, Any]  # JSON

_PLAIN = [
    "real",
    "simplex",
    "lower_cholesky",
    "unit_lower_cholesky",
    "corr_cholesky",
    "positive_definite",
    "sphere",
    "ordered_vector",
    "positive_ordered_vector",
    "softplus_positive",
    "softplus_lower_cholesky",
]
_BOUNDED = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
}


def record(run: "Fit") -> tuple[Settings, dict[str, Tensor]]:
    """The settings of a run and its tensors, whose names begin with ``model.``, ``guide.``, ``training.``, ``store.``.

    Raises:
        ValueError: a parameter has an unsupported constraint, a module has state that is not a tensor, or the run has
            networks that are part of neither the model nor the guide.
    """
    tensors = {f"{role}.{name}": value for role in ("model", "guide") for name, value in _state(run, role).items()}
    loose = _loose(run)
    tensors |= {f"store.{name}": value for name, value in loose.items()}
    training = None
    if run.training is not None:
        given = {own.name: getattr(run.training, own.name) for own in fields(run.training)}
        training = {name: to_json(value) for name, value in given.items()}
        tensors |= {f"training.{name}": value for name, value in given.items() if isinstance(value, Tensor)}
    settings = {
        "model": _callable_record(run.model),
        "guide": _callable_record(run.guide),
        "training": training,
        "store": {name: _constraint_record(name, run.store["constraints"].get(name)) for name in loose},
    }
    return settings, tensors


def from_format_1(settings: Settings, tensors: Mapping[str, Tensor], file: Path) -> tuple[Settings, dict[str, Tensor]]:
    """Converts settings and tensors of format 1 (latent-zoo 0.1.0), which had the training in three sections.

    Raises:
        ValueError: model or guide was wrapped in Pyro handlers, which that version did not support.
    """
    for role in ("model", "guide"):
        if settings[role]["class"] == "functools:partial":
            raise ValueError(
                f"{file}: latent-zoo 0.1.0 saved the {role} inside Pyro's handlers without the names of its "
                "parameters: fit it again with this version, and save that run"
            )
    curves = {name: tensors[name] for name in ("losses", "validation") if name in tensors}
    training = {key: value for key, value in settings["fit"].items() if key != "steps"}
    training |= {"converged": settings["converged"], "losses": {"tensor": []}}
    training |= {name: to_json(value) for name, value in curves.items()}
    others = {name: value for name, value in tensors.items() if name not in curves}
    return settings | {"training": training}, others | {f"training.{name}": value for name, value in curves.items()}


def class_path(thing: Any) -> str:
    """``package.module:Name`` of an object's class, or of a function or class itself."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def handler_names(function: PyroCallable) -> list[str]:
    """The classes of the Pyro handlers around a callable, from the outside in."""
    return [type(handler).__name__ for handler in handlers(function)[0]]


def arguments(module: Module) -> Settings:
    """A module's constructor arguments, as JSON."""
    return {name: to_json(value) for name, value in module.settings.items()}


def to_json(value: object) -> Any:
    """``value`` as JSON; objects that JSON cannot represent become a note of their class or shape, for messages."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_json(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(own) for own in value]
    if isinstance(value, (Tensor, np.ndarray)):
        return {"tensor": list(value.shape)}
    return {"object": class_path(value)}


def from_json(value: Any) -> Any:
    """The inverse of :func:`to_json`, where there is one."""
    if isinstance(value, dict):
        if value.keys() == {"number"}:
            return float(value["number"])
        return {key: from_json(own) for key, own in value.items()}
    return [from_json(own) for own in value] if isinstance(value, list) else value


def constraint(noted: Any, name: str, file: Path) -> Any:
    """The constraint that a settings file records for the parameter ``name``.

    Raises:
        ValueError: it is unknown.
    """
    match noted:
        case [str(known)] if known in _PLAIN:
            return getattr(constraints, known)
        case ["independent", inner, int(width)]:
            return constraints.independent(constraint(inner, name, file), width)
        case [str(known), *bounds] if known in _BOUNDED and len(bounds) == len(_BOUNDED[known]):
            return getattr(constraints, known)(*map(from_json, bounds))
    raise ValueError(
        f"{file}: parameter '{name}' has the unknown constraint {noted}: restore it, or save the run again"
    )


def state(function: PyroCallable) -> dict[str, Any]:
    """The state of the modules behind a Pyro callable; for a plain function, of all modules it refers to."""
    return {
        f"{prefix}{name}": value
        for prefix, module in held_modules(function).items()
        for name, value in module.state_dict(keep_vars=True).items()
    }


def _state(run: "Fit", role: str) -> dict[str, Tensor]:
    function = getattr(run, role)
    found = state(function)
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the {role} {name_of(function)} has '{name}', a {type(value).__name__}, in its state: only "
                "tensors can be saved, so make it a buffer or an argument of the constructor"
            )
    return found


def _loose(run: "Fit") -> dict[str, Tensor]:
    """The unconstrained parameters that are in the store only: those made by ``pyro.param``."""
    held = [module for role in (run.model, run.guide) for module in held_modules(role).values()]
    owned = {id(p) for module in held for p in module.parameters()}
    roots = {module._pyro_name for module in held if isinstance(module, PyroModule)} - {""}
    found = {}
    for name, value in run.store["params"].items():
        if id(value) in owned or any(name.startswith((f"{root}.", f"{root}$$$")) for root in roots):
            continue
        if "$$$" in name:
            network = name.partition("$$$")[0]
            raise ValueError(
                f"the network '{network}' is part of neither model nor guide, so it could not be loaded: "
                "make it an attribute of a pyro.nn.PyroModule (or zoo.base.Module) and fit that"
            )
        found[name] = value
    return found


def _callable_record(function: PyroCallable) -> Settings:
    """What is needed to rebuild it: handlers, class and arguments, name if not built in, names of frozen parameters."""
    inner = unwrapped(function)
    found: Settings = {"class": class_path(inner), "handlers": handler_names(function), "settings": None}
    if isinstance(inner, Module):
        found["settings"] = arguments(inner)
    if (origin := origin_of(function)) is not None:
        found["origin"] = {"name": origin.name, "settings": to_json(origin.settings)}
    found["frozen"] = [
        f"{prefix}{name}"
        for prefix, module in held_modules(function).items()
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    ]
    if isinstance(inner, AutoGuide) and inner.prototype_trace is not None:
        seen = inner.prototype_trace.nodes["_INPUT"]["args"]
        found["seen"] = list(seen[0].shape) if seen and isinstance(seen[0], Tensor) else None
    return found


def _constraint_record(name: str, given: Any) -> list[Any]:
    """Name and arguments of a constraint."""
    for known in _PLAIN:
        if type(given) is type(getattr(constraints, known)):
            return [known]
    for known, bounds in _BOUNDED.items():
        if type(given) is getattr(constraints, known):
            values = [torch.as_tensor(getattr(given, bound)) for bound in bounds]
            if all(value.numel() == 1 for value in values):
                return [known, *(to_json(value.item()) for value in values)]
    if isinstance(given, constraints.independent):
        return ["independent", _constraint_record(name, given.base_constraint), given.reinterpreted_batch_ndims]
    raise ValueError(
        f"parameter '{name}' has the constraint {given}, which cannot be saved: use one of "
        f"{', '.join([*_PLAIN, 'positive', 'unit_interval', *_BOUNDED])}, or make it a PyroParam of a "
        "PyroModule"
    )
