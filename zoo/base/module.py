"""Modules that own their parameters and record their constructor arguments."""

import functools
import hashlib
import inspect
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to

from zoo.base.callables import PyroCallable, modules, unwrapped

_numbers = itertools.count()


class Module(PyroModule):
    """A ``PyroModule`` whose parameters belong to this instance alone.

    Pyro's parameter store identifies parameters by name, so that two unnamed modules (or two instances of one class)
    with a parameter ``scale`` would silently share it. Every ``Module`` therefore has a unique root name; copies and
    unpickled instances get a new one. A parameter with ``requires_grad=False`` stays out of the store, so that no
    optimizer changes it.

    The constructor's arguments are recorded (:attr:`settings`), so that a saved run can rebuild the module, and so is a
    fingerprint of the initial parameters (:attr:`fresh`).

    Attributes:
        absent: values of constructor arguments for saved runs whose record lacks them, as they are older.
    """

    absent: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recorded(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__(_root(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyro_context.used = False  # the original may have run; Pyro refuses to rename what has
        self._pyro_set_supermodule(_root(self), self._pyro_context)

    def __getattr__(self, name: str) -> Any:
        members = self.__dict__
        if "_pyro_context" in members and members["_pyro_context"].active:
            # Pyro would set requires_grad again for a frozen parameter: return it without the store.
            frozen = members["_parameters"].get(f"{name}_unconstrained", members["_parameters"].get(name))
            if frozen is not None and not frozen.requires_grad and not name.endswith("_unconstrained"):
                known = members["_pyro_params"].get(name)
                return frozen if known is None else transform_to(known[0])(frozen)
            child = members["_modules"].get(name)
            if child is not None and not isinstance(child, PyroModule):
                root = self._pyro_get_fullname(name)
                for key, parameter in child.named_parameters():
                    if parameter.requires_grad:
                        pyro.param(param_with_module_name(root, key), parameter)
                return child
        elif "_pyro_params" in members and (found := _constrained(members, name)) is not None:
            return found
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        members = self.__dict__
        if type(value) is Tensor and name in members.get("_pyro_params", ()):  # as Pyro, in a third of the time
            to_real = _transforms(members["_pyro_params"][name][0])[1]
            members["_parameters"][f"{name}_unconstrained"].data = to_real(value.detach())
        else:
            super().__setattr__(name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments (tensors by shape, modules by class); for our classes they can be JSON.

        Arguments that a constructor determines itself, as from its data, are in ``self.__dict__["_resolved"]``.
        """
        return self.__dict__.get("_given", {}) | self.__dict__.get("_resolved", {})

    @property
    def fresh(self) -> bool:
        """Whether the parameters are still those of the constructor, up to dtype and device; buffers, if it has none.

        False for a class without ``initialize``, and if a parameter is frozen.
        """
        drawn = self.__dict__.get("_drawn")
        return drawn is not None and all(p.requires_grad for p in self.parameters()) and drawn == _fingerprint(self)

    def keep(self) -> None:
        """Make the current parameters a start that no fit draws again: ``fresh`` is False from now on."""
        self.__dict__.pop("_drawn", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by ``.to``, ``.double`` and ``.cuda``; a change of dtype or device does not affect ``fresh``."""
        fresh = self.fresh
        super()._apply(fn, recurse)
        if fresh:
            self.__dict__["_drawn"] = _fingerprint(self)
        return self


def _recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that records its arguments and its initial parameters, with the same signature.

    If a constructor calls that of its base class, only the outer one is recorded.
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
        self.__dict__["_given"] = {name: described(name, value) for name, value in given}
        if hasattr(self, "initialize"):
            self.__dict__["_drawn"] = _fingerprint(self)
        return None

    return recording


def described(name: str, value: Any) -> Any:
    """A constructor's argument without data: tensors by shape, modules by class, without handlers around them."""
    value = unwrapped(value) if callable(value) else value
    if name == "x" or isinstance(value, Tensor):
        return {"tensor": list(np.shape(getattr(value, "x", value)))}  # a Dataset has its table as x
    if isinstance(value, nn.Module):
        return {"module": f"{type(value).__module__}:{type(value).__qualname__}"}
    return list(value) if isinstance(value, tuple) else value


def _fingerprint(module: nn.Module) -> str:
    """A hash of the names, shapes and bytes of all parameters, which detects any change without a copy.

    Where there are none, as in models with priors on everything, of the buffers: their hyperparameters.
    """
    found = hashlib.blake2b(digest_size=16)
    held: list[tuple[str, Tensor]] = [*module.named_parameters()]
    held = held or [*module.named_buffers()]  # a model whose hyperparameters are all it has
    for name, parameter in held:
        found.update(f"{name} {tuple(parameter.shape)} ".encode())
        if not parameter.is_meta:  # which has no values
            values = parameter.detach().cpu().contiguous().reshape(-1)
            values = values if values.stride(0) == 1 else values.clone(memory_format=torch.contiguous_format)
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _constrained(members: dict[str, Any], name: str) -> Any:
    """A parameter or buffer outside of models and guides, as Pyro returns it; None for other attributes."""
    if name not in members["_pyro_params"]:
        found = members["_parameters"].get(name)
        return members["_buffers"].get(name) if found is None else found
    real = members["_parameters"][f"{name}_unconstrained"]
    found = _transforms(members["_pyro_params"][name][0])[0](real)
    found.unconstrained = weakref.ref(real)
    return found


@functools.lru_cache(maxsize=64)
def _transforms(constraint: constraints.Constraint) -> tuple[Transform, Transform]:
    """The transform from real numbers to a constrained parameter, and its inverse."""
    found = transform_to(constraint)
    return found, found.inv


def _root(module: Module) -> str:
    return f"{type(module).__name__}_{next(_numbers)}"


def like(x: Tensor | np.ndarray | Sequence[Any], function: PyroCallable) -> Tensor:
    """``x`` as a tensor with the dtype and device of a callable's parameters (unchanged if there are none yet)."""
    x = torch.as_tensor(x)
    parameter = _first_parameter(function)
    if parameter is None:
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(parameter)


def _first_parameter(function: PyroCallable) -> Tensor | None:
    """The first parameter of a callable's modules; None without any."""
    if isinstance(function, nn.Module):  # whose own come first: no need to walk through it
        own = next((p for p in function.__dict__["_parameters"].values() if p is not None), None)
        return next(function.parameters(), None) if own is None else own
    return next((p for module in modules(function) for p in module.parameters()), None)
