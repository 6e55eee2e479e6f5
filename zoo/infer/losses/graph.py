"""The operations of a function of tensors as a graph, and what such a function holds outside its arguments."""

import gc
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
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

ATEN = torch.ops.aten
VIEWS = [getattr(ATEN, name).default for name in ("detach", "alias", "expand", "view")]
NEUTRAL = {ATEN.add.Tensor: (0,), ATEN.mul.Tensor: (1,), ATEN.div.Tensor: (1,), ATEN.pow.Tensor_Scalar: (1,)}
SHAPED = [getattr(ATEN, f"{n}_like").default for n in ("ones", "zeros", "full")]  # of a tensor, use its shape alone
SHAPED += [getattr(ATEN, f"new_{n}").default for n in ("ones", "zeros", "full")]
EMPTY = (ATEN.empty.memory_format, ATEN.empty_like.default, ATEN.new_empty.default, ATEN.empty_strided.default)
SHORT = "add addmm cat clone div exp log mm mul mv neg pow reciprocal rsub sigmoid sqrt sub sum t tanh unsqueeze"
DIRECT = {getattr(ATEN, name): getattr(torch, name) for name in SHORT.split()}  # half the time of a call via torch.ops
LARGEST = 2**20  # entries of what is computed once and kept

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device)
FIXED = (*PLAIN, Tensor, torch.Generator, ref, type, ModuleType, BuiltinFunctionType, BuiltinMethodType)
HOLDERS = (dict, list, set, deque, tuple, frozenset, MethodType, CellType)  # whose members gc lists
TORCHS = set(vars(nn.Module())) - {"training", "_modules"}  # attributes of every module, such as its hooks
ANEW = {  # attributes that Pyro's objects replace at every run, and read in the same run only
    AutoGuide: {"plates"},
    Messenger: {"_data_cache", "_samples_cache", "_param_hits", "_param_misses"},  # of substitute and lift
}
LIBRARIES = ("torch", "pyro", "zoo", "guides")  # whose functions refer to nothing that changes
MOST = 20_000  # values


class NotCaptured(Exception):  # noqa: N818 - it reads as what it says
    """A graph would not give what model and guide give; the message says why."""


def recorded(evaluate: Callable[..., list[Tensor]], inputs: list[Tensor]) -> fx.GraphModule:
    """The operations of ``evaluate`` on ``inputs``; other tensors, such as buffers, are read anew at every run.

    What is the same at every run is computed once, and so is what occurs twice, unless ``evaluate`` writes to tensors
    other than those that it has just made.

    Raises:
        NotCaptured: the run takes a number out of a tensor, or writes to a tensor that was there before.
    """
    try:
        module = make_fx(evaluate)(*inputs)
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        if "tracing tensor" in why[0] or "aten._local_scalar_dense" in str(error):
            why[0] = "it takes a number out of a tensor (.item(), float(), a branch), which a graph would freeze"
        raise NotCaptured(why[0]) from error
    written = [node.args[0] for node in module.graph.nodes if _writes(node)]
    if any(isinstance(own, fx.Node) and own.op in ("placeholder", "get_attr") for own in written):
        raise NotCaptured("it writes to a tensor that was there before")
    if all(isinstance(own, fx.Node) and own.target in EMPTY for own in written):
        _reduce(module)
    module.graph.eliminate_dead_code()
    _separate(module, inputs)
    for node in module.graph.nodes:
        node.target = DIRECT.get(getattr(node.target, "overloadpacket", None), node.target)
    module.recompile()
    return module


def _reduce(module: fx.GraphModule) -> None:
    """Leave out views that show the whole, and compute once what is the same at every run or occurs twice."""
    known: dict[str, fx.Node] = {}
    values: dict[fx.Node, Tensor] = {}  # of operations that depend on literals and shapes only
    for node in module.graph.nodes:
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op != "call_function" or node.is_impure() or drawn or _writes(node) or node.target in EMPTY:
            continue
        same = _whole(node) or known.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if same is not node:
            node.replace_all_uses_with(same)
        elif (value := _value(module, node, values)) is not None:
            values[node] = value
    for node, value in values.items():
        if any(user not in values for user in node.users):
            name = f"value_{node.name}"
            module.register_buffer(name, value, persistent=False)
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name), delete_user_cb=lambda user: user not in values)


def _whole(node: fx.Node) -> fx.Node | None:
    """What a view shows, or what an operation starts from, if the result is the same; None if it is another one."""
    source: Any = node.args[0] if node.args else None
    if node.target is ATEN.cat.default and len(source) == 1:
        source = source[0]
    elif node.target is operator.getitem or (node.target is ATEN.t.default and source.target is ATEN.t.default):
        source = source.args[0]  # of a split
    elif node.target not in VIEWS and (node.target not in NEUTRAL or node.args[1:] != NEUTRAL[node.target]):
        return None
    return source if isinstance(source, fx.Node) and _form(source) == _form(node) else None


def _value(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor | None:
    """The result of an operation that is the same at every run; None if it is not, or is large."""
    result, target = node.meta.get("val"), node.target
    if not isinstance(result, Tensor) or result.numel() > LARGEST or not callable(target):
        return None
    if target is ATEN.lift_fresh_copy.default:  # a literal
        return getattr(module, str(node.all_input_nodes[0].target))
    if target in SHAPED:
        shape, stride, dtype = _form(node)
        values = {node.all_input_nodes[0]: torch.empty_strided(shape, stride, dtype=dtype, device=result.device)}
    if not all(source in values for source in node.all_input_nodes):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return target(*args, **kwargs)


def _separate(module: fx.GraphModule, inputs: list[Tensor]) -> None:
    """Copy results that share memory with an input or with one another, as an optimizer may write to gradients."""
    module.recompile()
    output: Any = module.graph.output_node()
    nodes = list(output.args[0])
    taken = {own.untyped_storage().data_ptr() for own in (*inputs, *module.buffers(), *module.parameters())}
    with torch.no_grad(), module.graph.inserting_before(output):
        for i, result in enumerate(module(*inputs)):
            place = result.untyped_storage().data_ptr()
            if place in taken:
                nodes[i] = module.graph.call_function(ATEN.clone.default, (nodes[i],))
            taken.add(place)
    output.args = (nodes,)


def _writes(node: fx.Node) -> bool:
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _form(node: fx.Node) -> Any:
    """Shape, strides and type of a result."""
    result = node.meta.get("val")
    return (result.shape, result.stride(), result.dtype) if isinstance(result, Tensor) else None


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
        self._holders: list[Any] = []
        self._reads: list[Callable[[], Iterable[Any]]] = [lambda: [p for _, p in store.named_parameters()]]
        found: dict[int, Any] = {}
        waiting = [*functions]
        while waiting:
            value = waiting.pop()
            if isinstance(value, FIXED) or id(value) in found:
                continue
            found[id(value)] = value
            holders, reads = _places(value)
            self._holders += holders
            self._reads += reads
            waiting += _members(holders, reads)
            if len(found) > MOST:
                raise NotCaptured(f"it holds more than {MOST:,} values, too many to watch")
        self._kept = _members(self._holders, self._reads)

    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [value for value in self._kept if isinstance(value, Tensor)]

    def changed(self) -> bool:
        """Whether one was replaced, added or removed."""
        try:
            now = _members(self._holders, self._reads)
        except KeyError:  # an attribute was deleted
            return True
        if len(now) != len(self._kept):
            return True
        return not (all(map(operator.is_, now, self._kept)) or all(map(_same, now, self._kept)))


def _members(holders: list[Any], reads: list[Callable[[], Iterable[Any]]]) -> list[Any]:
    return [*gc.get_referents(*holders), *chain.from_iterable(map(operator.call, reads))]


def _places(value: Any) -> tuple[list[Any], list[Callable[[], Iterable[Any]]]]:
    """The objects whose members may be replaced in a value, and functions that read others.

    Raises:
        NotCaptured: that cannot be read.
    """
    if isinstance(value, HOLDERS):
        return [value], []
    if isinstance(value, partial):
        return [(value.func, value.args, value.keywords)], []
    if isinstance(value, FunctionType):
        if (value.__module__ or "").split(".")[0] in LIBRARIES:  # code run by exec has no module
            return [], []
        names = [name for name in value.__code__.co_names if name in value.__globals__]
        own = (value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value))
        return [part for part in own if part], [partial(map, value.__globals__.get, names)] if names else []
    if not hasattr(value, "__dict__"):
        raise NotCaptured(f"it holds a value of type {type(value).__name__}, whose changes cannot be seen")
    anew: set[str] = set().union(*(names for kind, names in ANEW.items() if isinstance(value, kind)))
    if not isinstance(value, nn.Module):
        kept = partial(_without, vars(value), anew)
        return ([], [kept]) if anew else ([vars(value)], [])
    names = [name for name in vars(value) if name not in TORCHS | anew]
    holders = [value._parameters, value._buffers, value._modules, value.forward]
    return holders, [partial(operator.itemgetter(*names), vars(value))]


def _without(own: dict[str, Any], names: set[str]) -> list[Any]:
    return [value for name, value in own.items() if name not in names]


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, PLAIN) and (one == other or one != one)
