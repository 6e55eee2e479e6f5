"""What a model and a guide hold outside their arguments."""

import operator
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from zoo.infer.losses.graph import NotCaptured

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device)
FIXED = (*PLAIN, Tensor, torch.Generator, ref, type, ModuleType, BuiltinFunctionType, BuiltinMethodType)
TORCHS = set(vars(nn.Module()))  # attributes of every module, such as its hooks
ANEW = {  # attributes that Pyro's objects replace at every run, and read in the same run only
    AutoGuide: {"plates"},
    Messenger: {"_data_cache", "_samples_cache", "_param_hits", "_param_misses"},  # of substitute and lift
}
LIBRARIES = ("torch", "pyro", "zoo", "guides")  # whose functions refer to nothing that changes
MOST = 20_000  # values

Read = Callable[[], Iterable[Any]]


class Watch:
    """All that model and guide hold outside their arguments, however deep, and the parameters of Pyro's store.

    These are attributes of modules, handlers and other objects, entries of dictionaries, lists and sets, and what the
    functions among them refer to by name.

    Args:
        functions: model and guide.

    Raises:
        NotCaptured: they hold what may change without a trace, such as an array of numpy, or more than 20,000 values.
    """

    def __init__(self, *functions: Any) -> None:
        store = pyro.get_param_store()
        self._reads: list[Read] = [lambda: [p for _, p in store.named_parameters()]]
        found: dict[int, Any] = {}
        waiting = [*functions]
        while waiting:
            value = waiting.pop()
            if isinstance(value, FIXED) or id(value) in found:
                continue
            found[id(value)] = value
            reads, held = _places(value)
            self._reads += reads
            waiting += held
            if len(found) > MOST:
                raise NotCaptured(f"it holds more than {MOST:,} values, too many to watch")
        self._kept = list(self._now())

    def _now(self) -> Iterable[Any]:
        return chain.from_iterable(map(operator.call, self._reads))

    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [value for value in self._kept if isinstance(value, Tensor)]

    def changed(self) -> bool:
        """Whether one was replaced, added or removed."""
        try:
            now = list(self._now())
        except KeyError:  # an attribute was deleted
            return True
        if len(now) != len(self._kept):
            return True
        if all(map(operator.is_, now, self._kept)):
            return False
        return not all(map(_same, now, self._kept))


def _places(value: Any) -> tuple[list[Read], Iterable[Any]]:
    """What reads the values that may be replaced in a value, and all that it holds.

    Raises:
        NotCaptured: that cannot be read.
    """
    if isinstance(value, dict):
        return [value.keys, value.values], [*value, *value.values()]
    if isinstance(value, list | set | deque):
        return [value.__iter__], value
    if isinstance(value, tuple | frozenset):
        return [], value
    if isinstance(value, partial):
        return [], (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return [], (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        if (value.__module__ or "").split(".")[0] in LIBRARIES:  # code run by exec has no module
            return [], ()
        cells = [cell for cell in value.__closure__ or () if cell != CellType()]
        names = [name for name in value.__code__.co_names if name in value.__globals__]
        reads: list[Read] = [partial(map, operator.attrgetter("cell_contents"), cells)] if cells else []
        reads += [partial(map, value.__globals__.get, names)] if names else []
        held = chain((value.__defaults__, value.__kwdefaults__, vars(value)), *(read() for read in reads))
        return reads, list(held)
    if not hasattr(value, "__dict__"):
        raise NotCaptured(f"it holds a value of type {type(value).__name__}, whose changes cannot be seen")
    anew: set[str] = set().union(*(names for kind, names in ANEW.items() if isinstance(value, kind)))
    if not isinstance(value, nn.Module):

        def kept() -> list[Any]:
            return [own for name, own in vars(value).items() if name not in anew]

        return [kept], kept()
    own = ["training", *(name for name in vars(value) if name not in TORCHS and name not in anew)]
    members: list[dict[str, Any]] = [value._parameters, value._buffers, value._modules]
    reads = [partial(operator.itemgetter(*own, "_modules"), vars(value)), *(place.values for place in members)]
    plain = [vars(value)[name] for name in own]
    return reads, [type(value).forward, *plain, *chain.from_iterable(place.values() for place in members)]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, PLAIN) and (one == other or one != one)
