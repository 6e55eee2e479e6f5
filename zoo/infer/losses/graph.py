"""A bound and its gradients as one graph of torch operations, recorded from one run of model and guide."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

ATEN = torch.ops.aten
ONES = (ATEN.ones.default, ATEN.ones_like.default)
ZEROS = (ATEN.zeros.default, ATEN.zeros_like.default, ATEN.new_zeros.default)
SHORT = "add addmm cat clone div exp log mm mul mv neg pow rsub sigmoid sqrt sub sum t tanh unsqueeze"
DIRECT = {getattr(ATEN, name): getattr(torch, name) for name in SHORT.split()}  # half the time of a call via torch.ops
LARGEST = 2**20  # entries of what is computed once and kept


class NotCaptured(Exception):  # noqa: N818 - it reads as what it says
    """A graph would not give what model and guide give; the message says why."""


def recorded(evaluate: Callable[..., list[Tensor]], inputs: list[Tensor]) -> fx.GraphModule:
    """The operations of ``evaluate`` on ``inputs``, without those that change nothing.

    Tensors that are not inputs, such as a module's buffers, are read anew whenever the graph runs.

    Raises:
        NotCaptured: the run takes a number out of a tensor, or writes to a tensor that was there before.
    """
    try:
        graph = make_fx(evaluate)(*inputs)
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        if "tracing tensor" in why[0] or "aten._local_scalar_dense" in str(error):
            why[0] = "it takes a number out of a tensor (.item(), float(), a branch), which a graph would freeze"
        raise NotCaptured(why[0]) from error
    nodes = graph.graph.nodes
    changed = {_origin(node.args[0]) for node in nodes if _writes(node)}
    if any(origin.op in ("placeholder", "get_attr") for origin in changed):
        raise NotCaptured("it writes to a tensor that was there before")
    literals: set[str] = set()
    for node in list(nodes):
        same = _same(node)
        if same is not None and node.target is ATEN.lift_fresh_copy.default:
            literals.add(same.name)
        if same is not None and _origin(node) not in changed and _origin(same) not in changed:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    _fold(graph, changed, literals)
    _merge(graph.graph, changed)
    _separate(graph.graph)
    graph.graph.eliminate_dead_code()
    for node in nodes:
        node.target = DIRECT.get(getattr(node.target, "overloadpacket", None), node.target)
    graph.recompile()
    return graph


def _fold(graph: fx.GraphModule, changed: set[fx.Node], literals: set[str]) -> None:
    """Compute once what depends on literals and shapes only."""
    values: dict[fx.Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and node.name in literals:
            values[node] = getattr(graph, node.target)
        meta = node.meta.get("tensor_meta")
        if node.op != "call_function" or not isinstance(meta, tuple) or meta[0].numel() > LARGEST:
            continue
        if node.is_impure() or _origin(node) in changed or node.target is ATEN.empty.memory_format:
            continue
        if node.target in (*ONES, *ZEROS):  # whatever the values of the tensor whose shape it has
            filled = float(node.target in ONES)
            values[node] = torch.full(meta[0], filled, dtype=meta[1], device=node.meta["val"].device)
        elif node.all_input_nodes and all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
        else:
            continue
        name = f"folded_{len(values)}"
        graph.register_buffer(name, values[node], persistent=False)
        with graph.graph.inserting_before(node):
            fresh = graph.graph.get_attr(name)
        values[fresh], fresh.meta = values[node], node.meta
        node.replace_all_uses_with(fresh)


def _merge(graph: fx.Graph, changed: set[fx.Node]) -> None:
    """Compute once what is computed twice, mostly by the density and its derivative."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        touched = any(_origin(source) in changed for source in (node, *node.all_input_nodes))
        if node.op == "call_function" and not node.is_impure() and not drawn and not touched:
            twin = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
            if twin is not node:
                node.replace_all_uses_with(twin)


def _separate(graph: fx.Graph) -> None:
    """Copy results that share memory with an input or with one another, as an optimizer may write to gradients."""
    output: Any = graph.output_node()
    results: list[fx.Node] = []
    for node in output.args[0]:
        if _origin(node).op != "call_function" or any(_origin(node) is _origin(other) for other in results):
            with graph.inserting_before(output):
                node = graph.call_function(ATEN.clone.default, (node,))
        results.append(node)
    output.args = (results,)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _origin(node: Any) -> fx.Node:
    """The node whose memory this one shows, wholly or in part."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        if schema is None or any(r.alias_info is not None for r in schema.returns):  # an element of a list
            node = node.args[0]
        else:
            break
    return node


def _same(node: fx.Node) -> fx.Node | None:
    """The argument of an operation that leaves it as it is: x * 1, x + 0, a view of the same shape."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.target is ATEN.lift_fresh_copy.default:  # a literal
        return source
    one, other = source.meta.get("tensor_meta"), node.meta.get("tensor_meta")
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return None
    if (one[0], one[1], one[3]) != (other[0], other[1], other[3]):  # shape, dtype, strides
        return None
    target, rest = node.target, node.args[1:]
    if target in (ATEN.detach.default, ATEN.alias.default, ATEN.expand.default, ATEN.view.default):
        return source
    scales = (ATEN.mul.Tensor, ATEN.div.Tensor, ATEN.mul.Scalar, ATEN.div.Scalar, ATEN.pow.Tensor_Scalar)
    if (target in scales and rest == (1,)) or (target in (ATEN.add.Tensor, ATEN.sub.Tensor) and rest == (0,)):
        return source
    return None
