"""The parts of a Pyro callable: the handlers around it, and the modules whose parameters it uses."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from pyro.poutine.infer_config_messenger import InferConfigMessenger
from pyro.poutine.messenger import Messenger
from torch import nn

Method = TypeVar("Method", bound=Callable[..., Any])


class PyroCallable(Protocol):
    """A Pyro model or guide with the signature ``(x=None, index=None, size=None)``: a module or a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def handlers(function: PyroCallable) -> tuple[list[Messenger], PyroCallable]:
    """The Pyro handlers around a callable, outermost first, and the callable itself.

    >>> from pyro import poutine
    >>> from pyro.infer import config_enumerate
    >>> found, inner = handlers(config_enumerate(poutine.scale(print, 0.5)))
    >>> [type(handler).__name__ for handler in found], inner is print
    (['InferConfigMessenger', 'ScaleMessenger'], True)
    """
    found = []
    while isinstance(function, partial):
        held = function.func if isinstance(function.func, partial) else function
        if len(held.args) < 2 or not isinstance(held.args[0], Messenger):
            break
        found.append(held.args[0])
        function = held.args[1]
    return found, function


def unwrapped(function: PyroCallable) -> PyroCallable:
    """The callable behind all Pyro handlers: whose parameters are trained, initialised, saved and loaded."""
    inner = handlers(function)[1]
    owner = getattr(inner, "__self__", None)
    return owner if isinstance(owner, nn.Module) else inner


def undecorated(function: PyroCallable) -> PyroCallable:
    """The callable behind handlers that change no density, such as ``config_enumerate``: its closed forms still hold.

    Under any other handler (``poutine.scale``, ``condition``, ``mask``) the function is returned as it is, which has
    no closed forms.
    """
    found, inner = handlers(function)
    return inner if all(isinstance(handler, InferConfigMessenger) for handler in found) else function


def modules(*functions: PyroCallable) -> list[nn.Module]:
    """The modules whose state Pyro callables use: themselves, or for a function those it refers to by name."""
    found = {id(module): module for function in functions for module in held_modules(function).values()}
    return list(found.values())


def held_modules(function: PyroCallable) -> dict[str, nn.Module]:
    """The modules of :func:`modules` by the prefix of their parameters' names, empty for a module itself.

    >>> def guide(x=None, index=None, size=None):
    ...     return network(x)
    >>> network = nn.Linear(2, 1)
    >>> held_modules(guide)
    {'network.': Linear(in_features=2, out_features=1, bias=True)}
    >>> held_modules(network)
    {'': Linear(in_features=2, out_features=1, bias=True)}
    """
    inner = unwrapped(function)
    if isinstance(inner, nn.Module):
        return {"": inner}
    if not inspect.isfunction(inner):
        return {}
    names = inspect.getclosurevars(inner)
    referred = {**names.globals, **names.nonlocals}
    found = {id(value): (name, value) for name, value in referred.items() if isinstance(value, nn.Module)}
    return {f"{name}.": value for name, value in found.values()}


@contextmanager
def mode(training: bool, *functions: PyroCallable) -> Iterator[None]:
    """A block in which the modules of Pyro callables are in training or evaluation mode.

    In evaluation mode dropout is off, and batch normalisation uses its running statistics without updating them.
    """
    parts = {part: part.training for module in modules(*functions) for part in _all(module)}
    try:
        for part in parts:
            part.training = training
        yield
    finally:
        for part, before in parts.items():
            part.training = before


def in_evaluation_mode(method: Method) -> Method:
    """A method of a module that only reads: it runs in evaluation mode and leaves every mode as it was."""

    @functools.wraps(method)
    def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        with mode(False, self):
            return method(self, *args, **kwargs)

    return cast(Method, reading)


def _all(module: nn.Module) -> Iterator[nn.Module]:
    """A module's submodules, and those of a model that a guide refers to without registering it."""
    yield from module.modules()
    for held in vars(module).values():
        if isinstance(held, nn.Module):
            yield from held.modules()


def name_of(function: PyroCallable) -> str:
    """The name of a function, or of an object's class."""
    inner = unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))
