"""The operations of a function of tensors as a graph, without those that change nothing."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

ATEN = torch.ops.aten
ADD, SUB, MUL, DIV = ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.mul.Tensor, ATEN.div.Tensor
POWER, NEG, INVERSE = ATEN.pow.Tensor_Scalar, ATEN.neg.default, ATEN.reciprocal.default
RSUB = ATEN.rsub.Scalar
SUMS = (ATEN.sum.default, ATEN.sum.dim_IntList)
LINEAR = {NEG: 1, **dict.fromkeys((ADD, SUB, RSUB, MUL, DIV, POWER), 2), **dict.fromkeys(SUMS, 3)}  # with arguments
VIEWS = (*(getattr(ATEN, n).default for n in ("detach", "alias", "expand", "view", "cat")), operator.getitem)
SHAPED = [getattr(ATEN, f"{n}_like").default for n in ("ones", "zeros", "full")]  # of a tensor, use its shape alone
SHAPED += [getattr(ATEN, f"new_{n}").default for n in ("ones", "zeros", "full")]
SHORT = "add addmm cat clone div exp log mm mul mv neg pow reciprocal rsub sigmoid sqrt sub sum t tanh unsqueeze"
DIRECT = {getattr(ATEN, name): getattr(torch, name) for name in SHORT.split()}  # half the time of a call via torch.ops
LARGEST = 2**20  # entries of what is computed once and kept


class NotCaptured(Exception):  # noqa: N818 - it reads as what it says
    """A graph would not give what model and guide give; the message says why."""


def recorded(evaluate: Callable[..., list[Tensor]], inputs: list[Tensor]) -> fx.GraphModule:
    """The operations of ``evaluate`` on ``inputs``; other tensors, such as buffers, are read anew at every run.

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
    written = {_memory(source) for node in module.graph.nodes for source in _written(node)}
    if any(origin.op in ("placeholder", "get_attr") for origin in written):
        raise NotCaptured("it writes to a tensor that was there before")
    _Reduction(module, written).run()
    _separate(module.graph)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        node.target = DIRECT.get(getattr(node.target, "overloadpacket", None), node.target)
    module.recompile()
    return module


class _Reduction:
    """A walk over the operations that computes once what is the same at every run, or what is computed twice.

    Scalar factors are carried along, and applied where something else than a product or a sum needs the result: of
    -(x - m)^2 / (2 s^2) and the derivatives that autograd makes of it, a square and a few quotients are left.

    Args:
        module: changed in place.
        written: operations whose memory is written to later, which are left as they are.

    Attributes:
        values: operations that depend on literals and shapes only, with their results.
        scaled: operations that are a number times the result of another one.
        known: the operation for what it computes.
    """

    def __init__(self, module: fx.GraphModule, written: set[fx.Node]) -> None:
        self.module, self.written = module, written
        self.values: dict[fx.Node, Tensor] = {}
        self.scaled: dict[fx.Node, tuple[float, fx.Node]] = {}
        self.known: dict[str, fx.Node] = {}

    def run(self) -> None:
        """Walk over all operations, in their order."""
        for node in list(self.module.graph.nodes):
            with self.module.graph.inserting_before(node):
                self._visit(node, self._pure(node))

    def _visit(self, node: fx.Node, pure: bool) -> None:
        source = _viewed(node)
        if pure and source is not None and _form(node) == _form(source):
            node.replace_all_uses_with(source)
        elif pure and (value := self._value(node)) is not None:
            self.values[node] = value
        elif pure and (found := self._factored(node)) is not None:
            self.scaled[node] = found
        else:
            for source in node.all_input_nodes:
                node.replace_input_with(source, self._plain(source))
            twin = self.known.setdefault(f"{node.target} {node.args} {node.kwargs}", node) if pure else node
            if twin is not node:
                node.replace_all_uses_with(twin)

    def _pure(self, node: fx.Node) -> bool:
        """Whether an operation draws nothing, and neither writes to nor reads from what is written to."""
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        touched = any(_memory(source) in self.written for source in (node, *node.all_input_nodes))
        return node.op == "call_function" and not (node.is_impure() or drawn or touched)

    def _value(self, node: fx.Node) -> Tensor | None:
        """The result of an operation that is the same at every run; None if it is not, or is large."""
        result, sources = node.meta.get("val"), node.all_input_nodes
        if not isinstance(result, Tensor) or result.numel() > LARGEST or node.target is ATEN.empty.memory_format:
            return None
        known = self.values
        if node.target is ATEN.lift_fresh_copy.default:  # a literal
            return getattr(self.module, str(sources[0].target))
        if node.target in SHAPED:
            known = {sources[0]: torch.empty_strided(*_form(node)[:2], dtype=result.dtype, device=result.device)}
        if not all(source in known for source in sources):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        target: Any = node.target
        return target(*args, **kwargs)

    def _factored(self, node: fx.Node) -> tuple[float, fx.Node] | None:
        """A number and the operation that it multiplies; None where there is no factor to carry on."""
        target, result = node.target, node.meta.get("val")
        if target not in LINEAR or not isinstance(result, Tensor) or node.kwargs or len(node.args) > LINEAR[target]:
            return None
        (f, x), (g, y) = (self._split(arg) for arg in (*node.args, None)[:2])
        found: tuple[float, fx.Node | None] = 1.0, None
        if {own.meta["val"].dtype for own in (x, y) if own is not None} not in ({torch.float32}, {torch.float64}):
            return None
        if target is NEG:
            found = -f, x
        elif target is MUL and (x is None or y is None):
            found = f * g, x or y
        elif target is DIV and y is None:
            found = f / g if g else math.inf, x
        elif target is DIV and x is None and y is not None:
            found = f / g, self._new(y, INVERSE, y)
        elif target in (ADD, SUB, RSUB) and y is None and g == 0:
            found = -f if target is RSUB else f, x
        elif target in SUMS and f != 1:
            found = f, self._new(node, target, x, *node.args[1:])
        elif target is POWER and node.args[1] in (1, 2) and (f != 1 or g == 1):
            found = f**g, self._new(node, target, x, 2) if g == 2 else x
        elif target is MUL and f * g != 1:
            found = f * g, self._new(node, target, x, y)
        elif target is DIV and f != g:
            found = f / g, self._new(node, target, x, y)
        elif target in (ADD, SUB) and x is not None and f != 1 and math.isfinite(g):
            share = (g if target is ADD else -g) / f
            found = f, self._new(node, ADD, x, share) if y is None else self._new(node, ADD, x, y, alpha=share)
        factor, other = found
        if other is None or not math.isfinite(factor) or factor == 0 or _form(other) != _form(node):
            return None
        return factor, other

    def _split(self, value: Any) -> tuple[float, fx.Node | None]:
        """A number and the operation that it multiplies; None for a number by itself, also one that fills a tensor."""
        if not isinstance(value, fx.Node):
            return (float(value) if isinstance(value, int | float) else math.nan), None
        if value in self.values:
            first = self.values[value].flatten()[:1]
            if first.numel() and bool((self.values[value] == first).all()):
                return float(first), None
        return self.scaled.get(value, (1.0, value))

    def _plain(self, node: fx.Node) -> fx.Node:
        """The operation whose result a node is, with its factor."""
        if node in self.values:
            name = f"value_{node.name}"
            self.module.register_buffer(name, self.values[node], persistent=False)
            fresh = self.module.graph.get_attr(name)
            fresh.meta = node.meta
            del self.values[node]
            self.scaled[node] = 1.0, fresh
        factor, other = self.scaled.get(node, (1.0, node))
        if factor == 1:
            return other if other is node else self._plain(other)
        return self._new(node, MUL, other, factor)

    def _new(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operation whose result has the form of another one's."""
        plain = tuple(self._plain(arg) if isinstance(arg, fx.Node) else arg for arg in args)
        fresh = self.module.graph.call_function(target, plain, kwargs)
        fresh.meta = like.meta
        return self.known.setdefault(f"{target} {plain} {kwargs}", fresh)


def _separate(graph: fx.Graph) -> None:
    """Copy results that share memory with an input or with one another, as an optimizer may write to gradients."""
    output: Any = graph.output_node()
    results: list[fx.Node] = []
    for node in output.args[0]:
        if _memory(node).op != "call_function" or any(_memory(node) is _memory(other) for other in results):
            with graph.inserting_before(output):
                node = graph.call_function(ATEN.clone.default, (node,))
        results.append(node)
    output.args = (results,)


def _written(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operation writes to."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    given = [(own, node.kwargs.get(own.name, node.args[i : i + 1])) for i, own in enumerate(arguments)]
    found: list[fx.Node] = []
    fx.node.map_arg([value for own, value in given if own.alias_info and own.alias_info.is_write], found.append)
    return found


def _memory(node: fx.Node) -> fx.Node:
    """The operation whose memory this one shows, wholly or in part."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        returns = getattr(getattr(node.target, "_schema", None), "returns", None)
        if returns is not None and all(own.alias_info is None for own in returns):
            break
        node = node.args[0]
    return node


def _viewed(node: fx.Node) -> fx.Node | None:
    """What a view shows, and what an operation on one tensor starts from that may leave it as it is."""
    source = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(source, fx.Node):
        source = source.args[0]  # of a split
    if node.target is ATEN.cat.default and isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    return source if node.target in VIEWS and isinstance(source, fx.Node) else None


def _form(node: fx.Node) -> Any:
    """Shape, strides and type of a result."""
    result = node.meta.get("val")
    return (result.shape, result.stride(), result.dtype) if isinstance(result, Tensor) else None
