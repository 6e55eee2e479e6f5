"""Covariates: values per row that a model has besides the data, in buffers from which it selects by ``index``."""

import copy
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, handlers, mode, name_of, unwrapped
from zoo.base.module import like
from zoo.base.random import seeded

OURS = ("zoo", "guides")  # packages whose modules have no covariates


def row_buffers(model: PyroCallable, x: Tensor | None = None) -> dict[str, int]:
    """The buffers of a model with covariates, and their numbers of rows.

    They are recognised by the model's behaviour: for row 0 alone, it uses entry 0 of such a buffer and no other.

    Args:
        model: any Pyro callable with the signature ``(x=None, index=None, size=None)``.
        x: the data (n, d), for a model that cannot generate.
    """
    module = unwrapped(model)
    if not isinstance(module, nn.Module) or type(module).__module__.split(".")[0] in OURS:
        return {}
    held = {name: value for name, value in module._buffers.items() if value is not None and value.ndim}
    held = {name: value for name, value in held.items() if len(value) > 1}
    if not held:
        return {}
    before = _outcome(model, None)
    if before is not None:
        x = None  # generated rows serve as well, and have no missing entries
    elif x is None or (before := _outcome(model, x)) is None:
        return {}
    found = {}
    for name, value in held.items():
        own, others = value.clone(), value.clone()
        own[0], others[1:] = _odd(value), _odd(value)
        used = not _same(before, _outcome(with_buffers(model, {name: own}), x))
        if used and _same(before, _outcome(with_buffers(model, {name: others}), x)):
            found[name] = len(value)
    return found


def check_row_buffers(model: PyroCallable, n: int, x: Tensor | None = None) -> None:
    """Refuse rows for which a model has no covariates.

    Args:
        model: any Pyro callable.
        n: the number of rows.
        x: the data (n, d); None if the model generates.

    Raises:
        ValueError: buffers have covariates for another number of rows; the message names them.
    """
    found = row_buffers(model, x)
    if wrong := next((held for held in found.values() if held != n), None):
        names, given = ", ".join(f"'{name}'" for name in found), ", ".join(f"{name}=..." for name in found)
        raise ValueError(
            f"the model {name_of(model)} has {names} for {wrong} rows, and {n} are needed: pass "
            f"run.given({given}) in place of run, with one entry for each of the {n} rows"
        )


def check_buffers(model: PyroCallable, buffers: Mapping[str, Any]) -> dict[str, Tensor]:
    """New values for the covariates of a model, with the dtype and device of the old ones.

    Raises:
        TypeError: the model is a function, which has no buffers.
        ValueError: no such buffer, entries of another shape, or buffers with different numbers of rows.
    """
    module, name = unwrapped(model), name_of(model)
    if not isinstance(module, nn.Module):
        raise TypeError(f"the model {name} is a function: make it a zoo.base.Module with the covariates as buffers")
    known = {own: value for own, value in module._buffers.items() if value is not None}
    values: dict[str, Tensor] = {}
    for own, given in buffers.items():
        if own not in known:
            raise ValueError(
                f"the model {name} has no buffer '{own}'; its buffers are {', '.join(map(repr, known)) or '(none)'}"
            )
        value = torch.as_tensor(given).to(known[own])
        if not value.ndim or value.shape[1:] != known[own].shape[1:]:
            rest = "".join(f", {size}" for size in known[own].shape[1:])
            raise ValueError(f"{own} has shape {tuple(value.shape)}: pass one entry for every row, (n{rest})")
        values[own] = value
    counts = {own: len(value) for own, value in values.items()}
    left = {own: held for own, held in row_buffers(model).items() if own not in values}
    if len({*counts.values(), *left.values()}) > 1 and counts:
        text = ", ".join(f"'{own}' {count}" for own, count in counts.items())
        text += "".join(f", '{own}' {held} (current)" for own, held in left.items())
        raise ValueError(f"the buffers of {name} would have different numbers of rows: {text}; pass them all together")
    return values


def with_buffers(model: PyroCallable, buffers: Mapping[str, Tensor]) -> PyroCallable:
    """A copy of a model with other buffers, in the same handlers; all else is shared, including parameters."""
    inner = unwrapped(model)
    assert isinstance(inner, nn.Module)
    twin = _twin(inner)
    twin.__dict__["_buffers"] = {**inner._buffers, **buffers}
    return _rewrapped(model, twin)


def holding(guide: PyroCallable, old: PyroCallable, new: PyroCallable) -> PyroCallable:
    """A copy of a guide that refers to the model ``new`` where it referred to ``old``; itself if it does not.

    Raises:
        ValueError: the guide is a function that refers to the old model.
    """
    inner, model = unwrapped(guide), unwrapped(old)
    if isinstance(inner, nn.Module):
        twin = _holding(inner, model, unwrapped(new))
        return guide if twin is inner else _rewrapped(guide, twin)
    captured = getattr(inner, "__closure__", None) or ()
    values = [cell.cell_contents for cell in captured]
    names = getattr(getattr(inner, "__code__", None), "co_names", ())
    values += [getattr(inner, "__globals__", {}).get(name) for name in names]
    if any(value is model for value in values):
        raise ValueError(
            f"the guide {name_of(guide)} is a function that refers to the model, and would still use it with the old "
            "covariates: make it a zoo.base.Module with the model as an attribute"
        )
    return guide


def _holding(module: nn.Module, old: PyroCallable, new: PyroCallable) -> nn.Module:
    """A copy of a module, with shared parameters, in which the model ``old`` is replaced; itself if it is not found."""

    def exchanged(value: Any) -> Any:
        if isinstance(value, tuple) and any(exchanged(each) is not each for each in value):
            return tuple(exchanged(each) for each in value)
        if callable(value) and unwrapped(value) is old:
            return _rewrapped(value, new)
        return value

    plain = {name: exchanged(value) for name, value in vars(module).items() if not name.startswith("_modules")}
    changed = {name: value for name, value in plain.items() if value is not vars(module)[name]}
    children = {
        name: new if child is old else child if child is None else _holding(child, old, new)
        for name, child in module._modules.items()
    }
    if not changed and all(child is children[name] for name, child in module._modules.items()):
        return module
    twin = _twin(module)
    twin.__dict__.update(changed)
    twin.__dict__["_modules"] = children
    return twin


def _twin(module: nn.Module) -> nn.Module:
    """Another module with the same parts, which unlike ``copy.copy`` keeps its name in Pyro's parameter store."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def _rewrapped(function: PyroCallable, inner: PyroCallable) -> PyroCallable:
    """``inner`` in the handlers of ``function``, as the same method if it was one."""
    found, method = handlers(function)
    if isinstance(method, types.MethodType):
        inner = types.MethodType(method.__func__, inner)
    for handler in reversed(found):
        inner = copy.copy(handler)(inner)
    return inner


def _odd(value: Tensor) -> Any:
    """A value that an entry of this type is unlikely to have, so that using it changes the result, or fails."""
    if value.is_floating_point() or value.is_complex():
        return float("nan")
    if value.dtype == torch.bool:
        return ~value[0]
    least = torch.iinfo(value.dtype).min
    return least if least else torch.iinfo(value.dtype).max


def _outcome(model: PyroCallable, x: Tensor | None) -> list[np.ndarray] | None:
    """Values and log densities of the model's run on row 0 with a fixed seed; None if it fails."""
    index = torch.zeros(1, dtype=torch.long, device=None if x is None else x.device)
    arguments: tuple[Any, ...] = (None, index, 1)
    if x is not None:
        module = unwrapped(model)
        arguments = (like(x[:1], module) if isinstance(module, nn.Module) else x[:1], index, len(x))
    try:
        with (
            pyro.get_param_store().scope(),
            seeded(0),
            torch.no_grad(),
            pyro.validation_enabled(False),
            poutine.block(),
            mode(False, model),
        ):
            trace = poutine.trace(model).get_trace(*arguments)
            trace.compute_log_prob()
    except Exception:  # any error at a value that the model cannot use
        return None
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return [site[key].detach().cpu().numpy() for site in sites for key in ("value", "log_prob")]


def _same(one: list[np.ndarray] | None, other: list[np.ndarray] | None) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True)
    )
