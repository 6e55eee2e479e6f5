"""A ``Trace_ELBO`` that is captured once as a graph and compiled, for fits of many equal steps."""

import functools
import math
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from zoo.base.random import seeded
from zoo.infer.losses.traces import check_drawn, latent_names

INSTEAD = "use Trace_ELBO() for this pair"
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
MOST = 32  # captures of one pair of model and guide


class CompiledELBO(Trace_ELBO):
    """``Trace_ELBO`` as one compiled graph: the loss and all gradients, without Pyro's machinery at every step.

    The first step of a new signature (model, guide, the shapes and types of tensor arguments, the other arguments,
    the parameters) is plain ``Trace_ELBO``, with Pyro's validation where it is on. It is followed by the capture:
    bound and gradients are recorded by ``make_fx``, compiled by TorchInductor and compared with ``Trace_ELBO`` at
    two other values of the parameters, two other draws and permuted rows. Later steps run the graph. They draw anew
    from torch's generator, the same numbers that ``Trace_ELBO`` would draw.

    When it pays: a capture costs some seconds of compiling, once for every shape of a batch, and saves two thirds of a
    step of PPCA (1000 x 20) and a fifth of one of a VAE (784-400-20, batches of 128). On a CPU that breaks even after
    one to three thousand steps; for fewer, ``Trace_ELBO`` is faster. ``tests/test_benchmarks.py`` measures it.

    What a graph cannot hold is refused. Branches on the arguments (on missing entries, say) are fine: each outcome
    gets a graph of its own. Attributes of the modules, and what the functions find in their closures and globals, are
    watched: where a number or a tensor there is exchanged, a new graph is captured. State in deeper places is compared
    with Trace_ELBO again at the steps 10, 100, 1000, ... alone.

    Takes the arguments of ``Trace_ELBO``.

    Raises:
        ValueError: when used, for a guide that leaves out a latent site of the model.
        NotImplementedError: when used, for a pair that branches on parameters or draws, writes to its own state,
            draws outside torch, or is otherwise not reproduced by its graph (Bernoulli draws, for one, which
            TorchInductor takes from other random numbers).
        RuntimeError: when used, where the compiler fails, as where there is none.

    Example:
        >>> from pyro.infer import SVI
        >>> from zoo.infer.optim.fused import Fused
        >>> # svi = SVI(model, guide, Fused(), CompiledELBO())
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._captures: dict[tuple[int, int], _Pair] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captures": {}}  # graphs are compiled anew elsewhere

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound; its gradients are added to the parameters'."""
        for frame in _PYRO_STACK:
            if not (isinstance(frame, BlockMessenger) or (isinstance(frame, TraceMessenger) and frame.param_only)):
                raise _refusal(model, guide, f"it runs inside Pyro's handler {type(frame).__name__}")
        signature = self._signature(model, guide, args, kwargs)
        pair = self._pair(model, guide)
        capture = pair.find(signature, args, kwargs)
        if capture is None:
            return self._first(pair, signature, model, guide, args, kwargs)
        capture.steps += 1
        if capture.steps in (10, 100, 1_000, 10_000, 100_000):
            capture.check(functools.partial(self._eager, model, guide), model, guide, args, kwargs, seed=capture.steps)
        loss = capture.step(_tensors(args, kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def _signature(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
        described: list[Any] = [len(args), *kwargs]
        for number, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, Tensor):
                if value.requires_grad:
                    raise _refusal(model, guide, f"its argument {number} asks for a gradient")
                described.append(_kind(value))
            elif type(value) in PLAIN:
                described.append((type(value), value))
            else:
                raise _refusal(model, guide, f"its argument {number} is a {type(value).__name__}, no tensor or number")
        given = _tensors(args, kwargs)
        if len(given) > 1:  # which are the same tensor
            described.append(tuple(next(i for i, g in enumerate(given) if g is t) for t in given))
        options = self.num_particles, self.vectorize_particles, self.max_plate_nesting
        return (*described, options, torch.get_default_dtype(), torch.is_autocast_enabled())

    def _pair(self, model: Any, guide: Any) -> "_Pair":
        key = id(model), id(guide)
        pair = self._captures.get(key)
        if pair is None or pair.model() is not model or pair.guide() is not guide:
            mine = weakref.ref(self)

            def forget(_: Any) -> None:
                loss = mine()
                if loss is not None:
                    loss._captures.pop(key, None)

            pair = self._captures[key] = _Pair(_reference(model, forget), _reference(guide, forget))
        return pair

    def _first(self, pair: "_Pair", signature: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> float:
        """A step of ``Trace_ELBO``, then the capture of the graph for those that follow."""
        with poutine.block(), seeded(0), torch.no_grad(), pyro.validation_enabled(False):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
        for name in latent_names(scored):
            check_drawn(name, drawn)
        with poutine.trace(param_only=True) as seen:
            loss = super().loss_and_grads(model, guide, *args, **kwargs)
        names = tuple(seen.trace.nodes)
        # In another store, or after a branch, a known graph may fit now that the parameters are there.
        if pair.find(signature, args, kwargs) is None:
            if sum(map(len, pair.graphs.values())) >= MOST:
                raise _refusal(model, guide, f"it took {MOST} graphs: an argument or an attribute changes all the time")
            signature = self._signature(model, guide, args, kwargs)  # max_plate_nesting may have been guessed
            with poutine.block(), pyro.validation_enabled(False), _gradients_kept(names):
                capture = self._capture(names, model, guide, args, kwargs)
            pair.graphs.setdefault(signature, []).append(capture)
        return loss

    def _eager(self, model: Any, guide: Any, args: Any, kwargs: Any) -> float:
        return float(super().loss_and_grads(model, guide, *args, **kwargs))

    def _capture(self, names: tuple[str, ...], model: Any, guide: Any, args: Any, kwargs: Any) -> "_Capture":
        store = pyro.get_param_store()
        params = [store._params[name] for name in names]
        if len(set(map(id, params))) < len(params):
            raise _refusal(model, guide, "two of its parameters are the same tensor")
        given = _tensors(args, kwargs)
        watch = _Watch(model, guide)
        known = {id(t): t for t in (*params, *given)}
        state = list({id(t): t for t in watch.tensors() if id(t) not in known}.values())
        inputs = list({**known, **{id(t): t for t in state}}.values())
        branches = _Branches()
        used: list[int] = []

        def evaluate(*inputs: Tensor) -> list[Tensor]:
            with branches, torch.enable_grad():
                loss, surrogate = self._loss_and_surrogate(model, guide, args, kwargs)
                gradients: Any = [None] * len(params)
                if surrogate.requires_grad:
                    gradients = torch.autograd.grad(surrogate, params, allow_unused=True)
            used[:] = [i for i, gradient in enumerate(gradients) if gradient is not None]
            form = torch.contiguous_format
            ours = [g.clone(memory_format=form) for g in gradients if g is not None]
            return [loss.detach().clone(), *ours, *(c.detach() for c in branches.conditions)]

        versions = [t._version for t in inputs]
        try:
            with seeded(0):
                graph = make_fx(evaluate)(*inputs)
        except Exception as error:
            raise _refusal(model, guide, _reason(error)) from error
        if [t._version for t in inputs] != versions or watch.changed():
            raise _refusal(model, guide, "it changes its own parameters, buffers or attributes when it runs")
        values = _lift(graph, inputs)
        if _writes(graph):
            raise _refusal(model, guide, "it writes to a tensor that was there before")
        try:
            guards = _guards(graph, 1 + len(used), len(params))
        except ValueError as error:
            raise _refusal(model, guide, str(error)) from None
        run = _compile(graph, values)
        capture = _Capture(
            names=names,
            used=tuple(used),
            kinds=[_kind(p) for p in params],
            slots=[next((j for j, g in enumerate(given) if g is t), None) for t in values],
            state=[None if i < len(params) or any(g is t for g in given) else t for i, t in enumerate(values)],
            guards=guards,
            outcomes=tuple(branches.outcomes),
            watch=watch,
            run=run,
        )
        before = [None if t is None else t.detach().clone() for t in capture.state]
        eager = functools.partial(self._eager, model, guide)
        for seed in (1, 2):
            capture.check(eager, model, guide, args, kwargs, seed=seed)
        after = zip(before, capture.state, strict=True)
        if watch.changed() or any(a is not None and not _same(a, b) for a, b in after):
            raise _refusal(model, guide, "it changes its own parameters, buffers or attributes when it runs")
        return capture

    def _loss_and_surrogate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """What ``Trace_ELBO`` computes, as tensors."""
        loss: Any = 0.0
        surrogate: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_r = None
            for site in model_trace.nodes.values():
                if site["type"] == "sample":
                    loss = loss - site["log_prob_sum"]
                    surrogate = surrogate - site["log_prob_sum"]
            for site in guide_trace.nodes.values():
                if site["type"] == "sample":
                    _, score, entropy = site["score_parts"]
                    loss = loss + site["log_prob_sum"]
                    if not is_identically_zero(entropy):
                        surrogate = surrogate + entropy.sum()
                    if not is_identically_zero(score):
                        log_r = _compute_log_r(model_trace, guide_trace) if log_r is None else log_r
                        surrogate = surrogate - (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
        return torch.as_tensor(loss) / self.num_particles, torch.as_tensor(surrogate) / self.num_particles


def _reason(error: Exception) -> str:
    """Why a capture failed, in the words of the error or, where these are of torch's tracing, in plain ones."""
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "tracing tensor" in why:
        return "a number is taken out of a tensor (.item(), float(), a branch), which a graph would freeze"
    return why


def _compile(graph: fx.GraphModule, values: list[Tensor]) -> Callable[..., Any]:
    """A graph, compiled by TorchInductor for inputs such as ``values``.

    Raises:
        RuntimeError: the compiler fails, as where there is none.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch's compiler says of its own code
            compiled: Any = torch._inductor.compile(
                graph, [t.detach() for t in values], options={"fallback_random": True}
            )
    except Exception as error:
        raise RuntimeError(
            f"CompiledELBO: TorchInductor failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            f"it needs a working C++ compiler (g++). Or {INSTEAD}"
        ) from error
    return compiled


@dataclass
class _Pair:
    """The graphs of one model and guide, by signature; several where a branch, a parameter or an attribute differs."""

    model: Callable[[], Any]
    guide: Callable[[], Any]
    graphs: dict[Any, list["_Capture"]] = field(default_factory=dict)

    def find(self, signature: Any, args: Any, kwargs: Any) -> "_Capture | None":
        return next((c for c in self.graphs.get(signature, ()) if c.fits(args, kwargs)), None)


@dataclass
class _Capture:
    """A compiled graph, and what must hold for it to be the right one.

    Attributes:
        names: the parameters in Pyro's store; they are the first inputs.
        used: the numbers of those that have a gradient.
        kinds: their shapes and types.
        slots: for every input, the number of the tensor argument that it is, or None.
        state: for every input, the buffer, frozen parameter or other tensor that it is, or None.
        guards: gives the conditions that were branched on, from all inputs; None where there are none.
        outcomes: what they were.
        watch: numbers and tensors that the graph took from outside the arguments.
        run: the graph: loss, gradients.
        steps: how often it ran.
    """

    names: tuple[str, ...]
    used: tuple[int, ...]
    kinds: list[Any]
    slots: list[int | None]
    state: list[Tensor | None]
    guards: fx.GraphModule | None
    outcomes: tuple[bool, ...]
    watch: "_Watch"
    run: Callable[..., Any]
    steps: int = 0

    def __post_init__(self) -> None:
        self.frozen = [(t, _kind(t)) for t in self.state if t is not None]
        self.rest = list(zip(self.slots, self.state, strict=True))[len(self.names) :]

    def inputs(self, params: list[Tensor], given: list[Tensor]) -> list[Any]:
        return [*params, *(state if slot is None else given[slot] for slot, state in self.rest)]

    def fits(self, args: Any, kwargs: Any) -> bool:
        """Whether parameters, state and branches are as they were at the capture."""
        known = pyro.get_param_store()._params
        params = [known.get(name) for name in self.names]
        for p, kind in zip(params, self.kinds, strict=True):
            if p is None or _kind(p) != kind:
                return False
        if self.watch.changed() or any(_kind(t) != kind for t, kind in self.frozen):
            return False
        return self.same_branches(params, _tensors(args, kwargs))

    def same_branches(self, params: Any, given: list[Tensor]) -> bool:
        if self.guards is None:
            return True
        with torch.no_grad():
            return tuple(map(bool, self.guards(*self.inputs(params, given)))) == self.outcomes

    def step(self, given: list[Tensor]) -> float:
        """The loss; gradients are added to the parameters', and the parameters announced to SVI."""
        store = pyro.get_param_store()
        params = [store._params[name] for name in self.names]
        with torch.no_grad():
            loss, *gradients = self.run(*self.inputs(params, given))
            for i, gradient in zip(self.used, gradients, strict=True):
                p = params[i]
                if p.grad is None:
                    p.grad = gradient
                else:
                    p.grad += gradient
            for frame in reversed(_PYRO_STACK):
                if not isinstance(frame, TraceMessenger):  # a block
                    break
                for name in self.names:  # as pyro.param(name) would, without its cost
                    frame.trace.add_node(name, name=name, type="param", value=store[name], cond_indep_stack=())
        return float(loss)

    def check(self, eager: Any, model: Any, guide: Any, args: Any, kwargs: Any, *, seed: int) -> None:
        """Compare with ``Trace_ELBO`` at other parameters, other draws and (for odd seeds) permuted rows.

        Raises:
            NotImplementedError: they differ, at two such places.
        """
        if seed % 2:
            length = max((len(t) for t in _tensors(args, kwargs) if t.ndim), default=0)

            def turned(t: Any) -> Any:
                return t.roll(1, 0) if isinstance(t, Tensor) and t.ndim and len(t) == length else t

            turned_args, turned_kwargs = pytree.tree_map(turned, (args, kwargs))
            params = [pyro.get_param_store()._params[name] for name in self.names]
            if self.same_branches(params, _tensors(turned_args, turned_kwargs)):
                args, kwargs = turned_args, turned_kwargs
        for again in (seed, seed + 1000):  # twice, for rounding may fool one
            loss, ours = self._compare(eager, args, kwargs, again)
            if ours is None:
                return
        raise _refusal(
            model,
            guide,
            f"at other values its graph gives the loss {ours:.9g} where Trace_ELBO gives {loss:.9g}, or other "
            "gradients; look for randomness outside torch, values read through numpy, and state that changes",
        )

    def _compare(self, eager: Any, args: Any, kwargs: Any, seed: int) -> tuple[float, float | None]:
        """The losses of Trace_ELBO and of the graph near the present parameters; None for the second if all agrees."""
        params = [pyro.get_param_store()._params[name] for name in self.names]
        kept = [p.detach().clone() for p in params]
        found = []
        try:
            with poutine.block(), pyro.validation_enabled(False), _gradients_kept(self.names):
                with seeded(seed), torch.no_grad():
                    for p in params:
                        p.mul_(1 + 0.02 * torch.randn_like(p)).add_(0.01 * torch.randn_like(p))
                for function in (lambda: eager(args, kwargs), lambda: self.step(_tensors(args, kwargs))):
                    with seeded(100 + seed), poutine.trace(param_only=True) as seen:
                        loss = function()
                    found.append((loss, [p.grad for p in params], set(seen.trace.nodes)))
                    for p in params:
                        p.grad = None
        finally:
            with torch.no_grad():
                for p, old in zip(params, kept, strict=True):
                    p.copy_(old)
        (loss, gradients, names), (ours, our_gradients, our_names) = found
        sizes = [float(g.abs().max()) if g is not None and g.numel() else 0.0 for g in gradients]
        largest = max(sizes, default=0.0)
        if not math.isfinite(loss + sum(sizes)):
            return loss, None  # nothing to be learned here
        eps = torch.finfo(params[0].dtype if params else torch.float32).eps
        right = names == our_names and abs(loss - ours) <= eps**0.6 * max(abs(loss), 1e-3 * largest)
        for one, other, size in zip(gradients, our_gradients, sizes, strict=True):
            right = right and (one is None) == (other is None)
            if right and one is not None and other is not None and one.numel():
                right = float((one - other).abs().max()) <= eps**0.4 * max(size, 1e-3 * largest)
        return loss, None if right else ours


class _Branches(TorchFunctionMode):
    """Answers a branch on a tensor during the capture, and keeps the condition."""

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


class _Watch:
    """Numbers and tensors that model and guide find in their modules, closures and globals."""

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
            except ValueError:  # not yet filled
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
    """Whether the code is torch's, Pyro's or Python's own."""
    home = getattr(item, "__module__", None) or type(item).__module__
    return home.split(".")[0] in ("torch", "builtins", "functools") or home.startswith(("pyro.nn", "pyro.dist"))


def _reference(item: Any, forget: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(item, forget)
    except TypeError:
        return lambda: item


def _kind(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.dtype, t.device, t.stride(), t.requires_grad


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]


def _same(one: Tensor, other: Any) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _refusal(model: Any, guide: Any, why: str) -> NotImplementedError:
    pair = " with ".join(getattr(f, "__name__", type(f).__name__) for f in (model, guide))
    return NotImplementedError(f"CompiledELBO cannot capture {pair}: {why}. Instead, {INSTEAD}")


@contextmanager
def _gradients_kept(names: tuple[str, ...]) -> Iterator[None]:
    """Parameters without gradients; afterwards they have those of before."""
    params = [pyro.get_param_store()._params[name] for name in names]
    kept = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(params, kept, strict=True):
            p.grad = gradient


def _lift(graph: fx.GraphModule, inputs: list[Tensor]) -> list[Tensor]:
    """Turn tensors that the graph holds into inputs, all but literals; gives the inputs there are now."""
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


def _writes(graph: fx.GraphModule) -> bool:
    """Whether an operation changes a tensor that was there before, directly or through a view."""

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


def _guards(graph: fx.GraphModule, kept: int, params: int) -> fx.GraphModule | None:
    """Cut the conditions off a graph's outputs, all after the first ``kept``, into a graph of their own.

    Raises:
        ValueError: a condition hangs on a draw or on one of the first inputs, the parameters.
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
