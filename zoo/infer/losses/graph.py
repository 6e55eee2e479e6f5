"""The operations of a function of tensors as a graph, and what such a function holds outside its arguments."""

import gc
import operator
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.infer.losses.annealed import AnnealedELBO

ATEN = torch.ops.aten
EMPTY = (ATEN.empty.memory_format, ATEN.empty_like.default, ATEN.new_empty.default, ATEN.empty_strided.default)
SHAPED = [getattr(ATEN, f"{n}_like").default for n in ("ones", "zeros", "full")]  # of a tensor, use its shape alone
SHAPED += [getattr(ATEN, f"new_{n}").default for n in ("ones", "zeros", "full")]
NEUTRAL = {ATEN.add.Tensor: 0, ATEN.mul.Tensor: 1, ATEN.div.Tensor: 1, ATEN.pow.Tensor_Scalar: 1}
SHORT = "add addmm cat clone div exp log mm mul mv neg pow reciprocal rsub sigmoid sqrt sub sum t tanh unsqueeze"
DIRECT = {getattr(ATEN, name): getattr(torch, name) for name in SHORT.split()}  # half the time of a call via torch.ops
LARGEST = 2**20  # entries of what is computed once and kept

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device)
FIXED = (*PLAIN, Tensor, torch.Generator, ref, type, ModuleType, BuiltinFunctionType)
HOLDERS = (dict, list, set, deque, tuple, frozenset, MethodType, CellType)  # whose members gc lists
ANEW = {  # attributes that are replaced at every run, and read in the same run only
    AnnealedELBO: {"step", "_pair"},
    AutoGuide: {"plates"},
    Messenger: {"_data_cache", "_samples_cache", "_param_hits", "_param_misses"},  # of substitute and lift
}
LIBRARIES = ("torch", "pyro", "zoo", "guides")  # whose functions refer to nothing that changes


class NotCaptured(Exception):  # noqa: N818 - it reads as what it says
    """A graph would not give what model and guide give; the message says why."""


def recorded(evaluate: Callable[..., list[Tensor]], inputs: list[Tensor]) -> fx.GraphModule:
    """The operations of ``evaluate`` on ``inputs``; other tensors, such as buffers, are read anew at every run.

    The results share no memory, as an optimizer may write to gradients.

    Raises:
        NotCaptured: the run takes a number out of a tensor, writes to one that was there before, or fails.
    """
    recorder = _Recorder(inputs)
    try:
        with recorder:
            results = evaluate(*inputs)
    except Exception as error:
        raise NotCaptured((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    nodes: list[Any] = []
    for node in map(recorder.node, results):
        shared = node in nodes or node not in recorder.owners
        nodes.append(recorder.graph.call_function(torch.clone, (node,)) if shared else node)
    recorder.graph.output(nodes)
    recorder.graph.eliminate_dead_code()
    return fx.GraphModule(recorder.held, recorder.graph)


class _Recorder(TorchDispatchMode):
    """Writes the operations of its block into a graph, without those whose results are known or always the same."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.held: dict[str, Tensor] = {}  # what is neither an input nor computed at every run
        self.nodes: dict[Any, fx.Node] = {}  # by what the result shows, and by operation
        self.views: dict[int, dict[Any, Tensor]] = {}  # of every storage; kept, so that no address is used twice
        self.owners: set[fx.Node] = set()  # of their memory
        self.constants: set[fx.Node] = set()
        for i, own in enumerate(inputs):
            self._note(own, self.graph.placeholder(f"input_{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and find or add the node of its result."""
        if func is ATEN.lift_fresh.default:  # of a literal
            self.constants.add(self.node(args[0]))
            func = ATEN.clone.default
        given: Any = map_aggregate((args, kwargs or {}), self.node)
        sources: list[fx.Node] = []
        map_arg(given, sources.append)
        writes = func._schema.is_mutable
        pure = not (writes or func in EMPTY or torch.Tag.nondeterministic_seeded in func.tags)
        constant = pure and (func in SHAPED or self.constants.issuperset(sources))
        noted = self._functional(func, args[0]) if writes else func
        given = map_aggregate((args, kwargs or {}), self.node) if noted is func and writes else given
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            operation = f"{func} {given}"
            node = self._known(func, args, result, operation, constant) if pure else None
            if node is None:
                node = self.graph.call_function(DIRECT.get(noted.overloadpacket, noted), *given)
                self.owners |= set() if func.is_view else {node}
            self.nodes[operation] = self._note(result, node)
        elif result is None or isinstance(result, tuple | list):
            node = self.graph.call_function(func, *given)
            for i, own in enumerate(result or ()):
                if isinstance(own, Tensor) and _shown(own) not in self.nodes:
                    self._note(own, self.graph.call_function(operator.getitem, (node, i)))
        elif not constant:
            raise NotCaptured("it takes a number out of a tensor (.item(), a branch), which a graph would freeze")
        return result

    def node(self, value: Any) -> Any:
        """The node of a tensor; other values stay."""
        if isinstance(value, Tensor) and _shown(value) not in self.nodes:
            name = f"held_{len(self.held)}"
            self.held[name] = value
            self._note(value, self.graph.get_attr(name))
        return self.nodes[_shown(value)] if isinstance(value, Tensor) else value

    def _note(self, value: Tensor, node: fx.Node) -> fx.Node:
        self.nodes[_shown(value)] = node
        self.views.setdefault(value.untyped_storage().data_ptr(), {})[_shown(value)] = value
        return node

    def _functional(self, func: Any, target: Tensor) -> Any:
        """The operation that returns what another one writes to a tensor; itself where that is empty or has views."""
        node, views = self.node(target), list(self.views[target.untyped_storage().data_ptr()].values())
        if node.target in EMPTY:
            return func
        base = max(views, key=Tensor.numel)
        whole = base.numel() * base.element_size() == base.untyped_storage().nbytes()
        if not whole or (self.node(base).op != "call_function" and self.node(base) not in self.constants):
            raise NotCaptured("it writes to a tensor that was there before")
        for own in views:
            if (held := self.nodes[_shown(own)]).op == "get_attr":
                self.held[str(held.target)] = own.clone()  # as it is before
        if len(views) > 1:  # from here on, they are those of a copy, to which the graph writes as well
            copy = self.graph.call_function(torch.clone, (self.node(base),))
            for own in views:
                place = (copy, own.shape, own.stride(), own.storage_offset())
                self._note(own, self.graph.call_function(torch.as_strided, place))
            return func
        return getattr(getattr(ATEN, func.overloadpacket.__name__.removesuffix("_")), func._overloadname)

    def _known(self, func: Any, args: Any, result: Tensor, operation: str, constant: bool) -> fx.Node | None:
        """The node of a result that needs no operation: it was computed before, is an argument, or is constant."""
        known = self.nodes.get(_shown(result)) or self.nodes.get(operation)
        source = args[0][0] if func is ATEN.cat.default and len(args[0]) == 1 else None
        if func in NEUTRAL and not isinstance(args[1], Tensor) and args[1] == NEUTRAL[func]:
            source = args[0]
        if known is None and source is not None and _shown(source)[1:] == _shown(result)[1:]:
            return self.node(source)
        if known is None and constant and result.numel() <= LARGEST:
            self.constants.add(known := self.node(result))
        return known


def _shown(value: Tensor) -> Any:
    """The memory that a tensor shows, and how."""
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device


class Watch:
    """Whether what functions hold outside their arguments, however deep, is replaced, added or removed.

    These are attributes, entries of containers, closures and defaults, and what functions refer to by name.

    Args:
        functions: model, guide and whatever else counts.

    Raises:
        NotCaptured: they hold what may change without a trace, such as an array of numpy.
    """

    def __init__(self, *functions: Any) -> None:
        self._holders: list[Any] = []  # all of whose members count
        self._named: list[tuple[dict[str, Any], Iterable[str]]] = []  # dictionaries, and which of their entries count
        found, waiting = {}, [*functions]
        while waiting:
            value = waiting.pop()
            if not isinstance(value, FIXED) and id(value) not in found:
                found[id(value)] = value
                holders, named = _places(value)
                self._holders += holders
                self._named += named
                waiting += _members(holders, named)
        self._kept = _members(self._holders, self._named)

    def changed(self) -> bool:
        """Whether anything was."""
        now = _members(self._holders, self._named)
        return len(now) != len(self._kept) or not all(map(operator.is_, now, self._kept))


def _members(holders: list[Any], named: list[tuple[dict[str, Any], Iterable[str]]]) -> list[Any]:
    return [*gc.get_referents(*holders), *(own.get(name) for own, names in named for name in names)]


def _places(value: Any) -> tuple[list[Any], list[tuple[dict[str, Any], Iterable[str]]]]:
    """Objects all of whose members count, and dictionaries with the names of those that do."""
    if isinstance(value, HOLDERS):
        return [value], []
    if isinstance(value, partial):
        return [(value.func, value.args, value.keywords)], []
    if isinstance(value, FunctionType):
        if (value.__module__ or "").split(".")[0] in LIBRARIES:  # code run by exec has no module
            return [], []
        own = (value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value))
        return [part for part in own if part], [(value.__globals__, value.__code__.co_names)]
    if not hasattr(value, "__dict__"):
        raise NotCaptured(f"it holds a value of type {type(value).__name__}, whose changes cannot be seen")
    methods = [value.forward] if isinstance(value, nn.Module) else []
    anew = {name for kind, names in ANEW.items() if isinstance(value, kind) for name in names}
    if anew:
        return methods, [(vars(value), [name for name in vars(value) if name not in anew])]
    return [vars(value), *methods], []
