"""The numbers and tensors that a model and a guide use from outside their arguments."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


class Watch:
    """Numbers and tensors that model and guide use from their modules, closures and globals."""

    def __init__(self, *roots: Any) -> None:
        self.entries: list[tuple[dict[str, Any], str, Any]] = []
        self.sizes: list[tuple[dict[str, Any], int]] = []
        self.cells: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        for root in roots:
            self._walk(root, 6)
        del self._seen

    def tensors(self) -> Iterator[Tensor]:
        for _, _, value in self.entries:
            if isinstance(value, Tensor):
                yield value
        for _, value in self.cells:
            if isinstance(value, Tensor):
                yield value

    def changed(self) -> bool:
        for place, key, value in self.entries:
            now = place.get(key)
            if now is not value and not _equal(now, value):
                return True
        for place, size in self.sizes:
            if len(place) != size:
                return True
        return any(c.cell_contents is not v and not _equal(c.cell_contents, v) for c, v in self.cells)

    def _walk(self, item: Any, depth: int) -> None:
        if id(item) in self._seen or depth == 0:
            return
        self._seen.add(id(item))
        if isinstance(item, nn.Module):
            for module in item.modules():
                self._seen.add(id(module))
                self._module(module)
        elif isinstance(item, functools.partial):
            for part in (item.func, *item.args, *item.keywords.values()):
                self._walk(part, depth - 1)
        elif isinstance(item, types.MethodType):
            self._walk(item.__self__, depth - 1)
            self._walk(item.__func__, depth - 1)
        elif isinstance(item, types.FunctionType):
            self._function(item, depth)
        elif hasattr(item, "__dict__") and (callable(item) or isinstance(item, Messenger)) and not _foreign(item):
            self._attributes(vars(item), depth)

    def _module(self, module: nn.Module) -> None:
        own = {k: v for k, v in vars(module).items() if k not in _USUAL}
        for key, value in [*own.items(), ("training", module.training)]:
            if _plain(value):
                self.entries.append((vars(module), key, value))
        for place in (module._parameters, module._buffers, module._modules):
            self.entries += [(place, key, value) for key, value in place.items()]
            self.sizes.append((place, len(place)))
        if not _foreign(module):
            self._walk(type(module).forward, 2)

    def _attributes(self, place: dict[str, Any], depth: int) -> None:
        for key, value in list(place.items()):
            if _plain(value):
                self.entries.append((place, key, value))
            else:
                self._walk(value, depth - 1)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # still empty
                continue
            if _plain(value):
                self.cells.append((cell, value))
            else:
                self._walk(value, depth - 1)
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if value is None:
                continue
            if _plain(value):
                self.entries.append((function.__globals__, name, value))
            elif isinstance(value, nn.Module | types.FunctionType) and not _foreign(value):
                self._walk(value, depth - 1)


_USUAL = frozenset(vars(nn.Module()))


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value) in PLAIN or (type(value) is tuple and all(map(_plain, value)))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor) or type(one) is not type(other):
        return False
    return type(one) in (*PLAIN, tuple) and repr(one) == repr(other)


def _foreign(item: Any) -> bool:
    """Whether the code is part of torch, Pyro or Python."""
    home = getattr(item, "__module__", None) or type(item).__module__
    return home.split(".")[0] in ("torch", "builtins", "functools") or home.startswith(("pyro.nn", "pyro.dist"))
