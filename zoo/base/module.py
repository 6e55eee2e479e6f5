"""Modules whose parameters belong to one instance, and which record how they were built."""

import functools
import hashlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, modules, unwrapped

_numbers = itertools.count()


class Module(PyroModule):
    """A ``PyroModule`` whose parameters belong to this instance alone.

    Pyro's parameter store knows a parameter by its name, and two unnamed modules (or two instances of one
    class) that both own ``scale`` would silently share it. Every ``Module`` therefore takes a root name that no
    other instance has; copies and unpickled ones take a new one. A parameter with ``requires_grad=False`` stays
    out of the store, so that no optimizer moves it.

    The arguments of the constructor are recorded (:attr:`settings`), so that a saved run can build the module again,
    and so is a fingerprint of the parameters that it drew (:attr:`fresh`).
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recorded(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__(_root(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_set_supermodule(_root(self), self._pyro_context)

    def __getattr__(self, name: str) -> Any:
        members = self.__dict__
        if "_pyro_context" in members and members["_pyro_context"].active:
            # Pyro would turn requires_grad on again for a frozen parameter: hand it out past the store.
            frozen = members["_parameters"].get(f"{name}_unconstrained", members["_parameters"].get(name))
            if frozen is not None and not frozen.requires_grad and not name.endswith("_unconstrained"):
                known = members["_pyro_params"].get(name)
                return frozen if known is None else torch.distributions.transform_to(known[0])(frozen)
            child = members["_modules"].get(name)
            if child is not None and not isinstance(child, PyroModule):
                root = self._pyro_get_fullname(name)
                for key, parameter in child.named_parameters():
                    if parameter.requires_grad:
                        pyro.param(param_with_module_name(root, key), parameter)
                return child
        return super().__getattr__(name)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments (tensors by shape, modules by class), JSON-able for our classes.

        What a constructor works out for itself, as from its data, it leaves in ``self.__dict__["_resolved"]``, and that
        takes the place of the argument.
        """
        return self.__dict__.get("_given", {}) | self.__dict__.get("_resolved", {})

    @property
    def fresh(self) -> bool:
        """Whether the parameters are still those that the constructor drew, up to their dtype and device.

        False for a class without ``initialize``, which has no start on the data, and wherever a parameter is frozen.
        """
        drawn = self.__dict__.get("_drawn")
        return drawn is not None and all(p.requires_grad for p in self.parameters()) and drawn == _fingerprint(self)

    def keep(self) -> None:
        """Declare the current parameters a start of their own, which no fit redraws: ``fresh`` is False from now on."""
        self.__dict__.pop("_drawn", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.double`` and ``.cuda`` call: a change of dtype or device leaves ``fresh`` as it was."""
        fresh = self.fresh
        super()._apply(fn, recurse)
        if fresh:
            self.__dict__["_drawn"] = _fingerprint(self)
        return self


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that leaves a record of its arguments and of the parameters it drew; its signature stays.

    Of a constructor that calls that of its base class, the outer one alone leaves a record.
    """

    @functools.wraps(init)
    def recording(self: Module, *args: Any, **kwargs: Any) -> None:
        if "_given" in self.__dict__:
            return init(self, *args, **kwargs)
        self.__dict__["_given"] = {}
        init(self, *args, **kwargs)
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = list(bound.arguments.items())[1:]
        self.__dict__["_given"] = {name: _described(name, value) for name, value in given}
        if hasattr(self, "initialize"):
            self.__dict__["_drawn"] = _fingerprint(self)
        return None

    return recording


def _described(name: str, value: Any) -> Any:
    """A constructor's argument without its data: tensors by shape, modules by class, whatever handlers are around."""
    value = unwrapped(value) if callable(value) else value
    if name == "x" or isinstance(value, Tensor):
        return {"tensor": list(np.shape(getattr(value, "x", value)))}  # a Dataset has its table as x
    if isinstance(value, nn.Module):
        return {"module": f"{type(value).__module__}:{type(value).__qualname__}"}
    return list(value) if isinstance(value, tuple) else value


def _fingerprint(module: nn.Module) -> str:
    """A hash of the names, shapes and bytes of all parameters: it detects any change without keeping a copy."""
    found = hashlib.blake2b(digest_size=16)
    for name, parameter in module.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} ".encode())
        if not parameter.is_meta:  # which has no values
            values = parameter.detach().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _root(module: Module) -> str:
    return f"{type(module).__name__}_{next(_numbers)}"


def like(x: Tensor | np.ndarray | Sequence[Any], function: PyroCallable) -> Tensor:
    """``x`` as a tensor of the dtype and device of a callable's parameters (as it is where there are none yet)."""
    x = torch.as_tensor(x)
    parameter = next((p for module in modules(function) for p in module.parameters()), None)
    if parameter is None:
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(parameter)
