"""The numbers and tensors that a model and a guide use from outside their arguments."""

import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, handlers, modules

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Watch:
    """Numbers and tensors that model and guide use from their modules, handlers, closures and globals.

    Deeper places, such as the entries of a dictionary, are not watched.

    Args:
        functions: model and guide.
    """

    def __init__(self, *functions: PyroCallable) -> None:
        self._entries: list[
            tuple[Any, Any, Any]
        ] = []  # a dictionary, its key and the value; or a cell, None, its value
        self._sizes: list[tuple[Any, int]] = []
        for function in functions:
            wrapped, inner = handlers(function)
            for handler in wrapped:
                self._held(vars(handler))
            self._code(inner)
        for module in {part: None for root in modules(*functions) for part in root.modules()}:
            self._held(vars(module))
            for members in (module._parameters, module._buffers, module._modules):
                self._entries += [(members, key, value) for key, value in members.items()]
                self._sizes.append((members, len(members)))
            self._code(type(module).forward)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors among them."""
        return (value for _, _, value in self._entries if isinstance(value, Tensor))

    def changed(self) -> bool:
        """Whether one was replaced."""
        for place, key, value in self._entries:
            now = place.cell_contents if key is None else place.get(key)
            if now is not value and not _equal(now, value):
                return True
        return any(len(members) != size for members, size in self._sizes)

    def _held(self, place: dict[str, Any]) -> None:
        """The plain attributes of an object, and those of functions among them."""
        for key, value in place.items():
            if _plain(value) or isinstance(value, types.FunctionType):
                self._entries.append((place, key, value))
            self._code(value)

    def _code(self, function: Any) -> None:
        """The closure and the globals of a function outside torch and Pyro."""
        function = inspect.unwrap(getattr(function, "__func__", function)) if callable(function) else function
        if not isinstance(function, types.FunctionType):
            return
        if (function.__module__ or "").split(".")[0] in ("torch", "pyro"):  # code run by exec has no module
            return
        for cell in (c for c in function.__closure__ or () if c != types.CellType()):
            if _plain(cell.cell_contents):
                self._entries.append((cell, None, cell.cell_contents))
        place = function.__globals__
        self._entries += [(place, k, place[k]) for k in function.__code__.co_names if k in place and _plain(place[k])]


def _plain(value: Any) -> bool:
    return (isinstance(value, Tensor) and not isinstance(value, nn.Parameter)) or type(value) in PLAIN


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and not isinstance(one, Tensor) and (one == other or one != one)
