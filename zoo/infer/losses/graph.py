"""Graphs recorded by ``make_fx``: their branches, inputs and guards, and their compilation."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

INSTEAD = "use Trace_ELBO() for this pair"


def reason(error: Exception) -> str:
    """Why a capture failed: the first line of the error, or an explanation of torch's tracing errors."""
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "tracing tensor" in why:
        return "it converts a tensor to a number (.item(), float(), a branch), which a graph would freeze"
    return why


def compiled(graph: fx.GraphModule, values: list[Tensor]) -> Callable[..., Any]:
    """A graph, compiled by TorchInductor for inputs such as ``values``.

    Raises:
        RuntimeError: the compiler fails or is missing.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            compiled: Any = torch._inductor.compile(
                graph, [t.detach() for t in values], options={"fallback_random": True}
            )
    except Exception as error:
        raise RuntimeError(
            f"CompiledELBO: TorchInductor failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            f"it needs a working C++ compiler (g++). Or {INSTEAD}"
        ) from error
    return compiled


class Branches(TorchFunctionMode):
    """Evaluates branches on tensors during the capture, and records their conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[Tensor] = []
        self.outcomes: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__bool__, torch.is_nonzero, Tensor.is_nonzero):
            with disable_proxy_modes_tracing():
                outcome = bool(func(*args, **(kwargs or {})))
            self.conditions.append(args[0])
            self.outcomes.append(outcome)
            return outcome
        if func in (torch.equal, Tensor.equal):
            one, other = args
            return one.shape == other.shape and bool((one == other).all())
        return func(*args, **(kwargs or {}))


def lifted(graph: fx.GraphModule, inputs: list[Tensor]) -> list[Tensor]:
    """Make the tensors that the graph holds, except literals, inputs of it. Returns the values of all inputs."""
    values = list(inputs)
    nodes = graph.graph
    last = [n for n in nodes.nodes if n.op == "placeholder"][-1:] or [None]
    for node in list(nodes.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, node.target)
        if not isinstance(value, Tensor) or any("lift_fresh" in str(user.target) for user in node.users):
            continue
        with nodes.inserting_after(last[0]) if last[0] is not None else nodes.inserting_before():
            fresh = nodes.placeholder(f"state_{len(values)}")
        node.replace_all_uses_with(fresh)
        nodes.erase_node(node)
        last = [fresh]
        values.append(value)
    graph.recompile()
    return values


def writes(graph: fx.GraphModule) -> bool:
    """Whether an operation changes a tensor from outside the graph, directly or through a view."""

    def root(node: Any) -> Any:
        while isinstance(node, fx.Node) and node.op == "call_function" and hasattr(node.target, "_schema"):
            schema: Any = node.target._schema
            if not any(r.alias_info is not None for r in schema.returns):
                break
            node = node.args[0]
        return node

    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            for argument, value in zip(schema.arguments, node.args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    origin = root(value)
                    if isinstance(origin, fx.Node) and origin.op in ("placeholder", "get_attr"):
                        return True
    return False


def split_guards(graph: fx.GraphModule, kept: int, params: int) -> fx.GraphModule | None:
    """Move the conditions, which are a graph's outputs after the first ``kept``, to a separate graph.

    Raises:
        ValueError: a condition depends on a draw or on one of the first inputs, the parameters.
    """
    nodes = graph.graph
    output = next(n for n in nodes.nodes if n.op == "output")
    results = list(output.args[0])
    conditions = results[kept:]
    output.args = (results[:kept],)
    placeholders = [n for n in nodes.nodes if n.op == "placeholder"]
    forbidden = set(placeholders[:params])
    needed: set[Any] = set()
    queue = list(conditions)
    while queue:
        node = queue.pop()
        if node in needed:
            continue
        needed.add(node)
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node in forbidden or random:
            raise ValueError(f"it branches on a {'draw' if random else 'parameter'}")
        queue += node.all_input_nodes
    small = fx.Graph()
    copied: dict[Any, Any] = {}
    known: dict[Any, Any] = {}
    for node in nodes.nodes:
        if node.op == "placeholder":
            copied[node] = small.placeholder(node.name)
        elif node in needed:
            fresh = small.node_copy(node, copied.__getitem__)
            twin = str(fresh.target), repr(fresh.args), repr(fresh.kwargs)
            if twin in known:
                small.erase_node(fresh)
            copied[node] = known.setdefault(twin, fresh)
    small.output(tuple(copied[c] for c in conditions))
    graph.recompile()
    return fx.GraphModule(graph, small) if conditions else None
