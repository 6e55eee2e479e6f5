"""Modules whose parameters belong to one instance, and which record how they were built."""

import inspect
import itertools
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

_numbers = itertools.count()


class _Recorded(type(PyroModule)):  # type: ignore[misc]
    """Records how an instance was built, so that a saved run can build it again."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        build: Any = type(module).__init__
        bound = inspect.signature(build).bind(module, *args, **kwargs)
        bound.apply_defaults()
        given = {key: _describe(key, value) for key, value in list(bound.arguments.items())[1:]}
        module.__dict__["settings"] = given | module.__dict__.get("_resolved", {})
        if hasattr(module, "initialize"):
            module.__dict__["_drawn"] = {k: p.detach().clone() for k, p in module.named_parameters()}
        return module


def _describe(name: str, value: Any) -> Any:
    """A constructor's argument without its data: tensors by shape, modules by class."""
    if name == "x" or isinstance(value, Tensor):
        return {"tensor": list(torch.as_tensor(getattr(value, "x", value)).shape)}
    if isinstance(value, nn.Module):
        return {"module": f"{type(value).__module__}:{type(value).__qualname__}"}
    return list(value) if isinstance(value, tuple) else value


class Module(PyroModule, metaclass=_Recorded):
    """A ``PyroModule`` whose parameters belong to this instance alone.

    Pyro's parameter store knows a parameter by its name, and two unnamed modules (or two instances of one
    class) that both own ``scale`` would silently share it. Every ``Module`` therefore takes a root name that no
    other instance has; copies and unpickled ones take a new one. A parameter with ``requires_grad=False`` stays
    out of the store, so that no optimizer moves it.

    Attributes:
        settings: the constructor's arguments (tensors by shape, modules by class), JSON-able for our classes.
    """

    settings: dict[str, Any]

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
    def fresh(self) -> bool:
        """Whether the parameters are still those that the constructor drew (False where it draws none)."""
        drawn = self.__dict__.get("_drawn")
        if drawn is None:
            return False
        now = dict(self.named_parameters())
        return now.keys() == drawn.keys() and all(
            p.requires_grad and p.shape == drawn[k].shape and torch.equal(p.detach(), drawn[k].to(p))
            for k, p in now.items()
        )


def _root(module: Module) -> str:
    return f"{type(module).__name__}_{next(_numbers)}"


def like(x: Any, module: nn.Module) -> Tensor:
    """``x`` as a tensor of the module's dtype and device (as it is where the module has no parameters yet)."""
    x = torch.as_tensor(x)
    parameter = next(module.parameters(), None)
    if parameter is None:
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(parameter)
