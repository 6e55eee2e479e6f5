"""A ``Trace_ELBO`` that is recorded once as a graph and compiled, for fits of many equal steps."""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.base.callables import PyroCallable
from zoo.base.random import seeded
from zoo.infer.losses.capture import Capture, equal_values, gradients_kept, kind_of, refusal, tensors_of
from zoo.infer.losses.graph import Branches, compiled, lifted, reason, split_guards, writes
from zoo.infer.losses.traces import Args, Kwargs, check_drawn, latent_names
from zoo.infer.losses.watch import PLAIN, Watch

MOST = 32  # captures of one pair of model and guide


class CompiledELBO(Trace_ELBO):
    """``Trace_ELBO`` as one compiled graph: the loss and all gradients, without Pyro's machinery at every step.

    The first step of a new signature (model, guide, the shapes and types of tensor arguments, the other arguments,
    the parameters) is a plain ``Trace_ELBO`` step, with Pyro's validation if it is enabled, followed by the capture:
    bound and gradients are recorded by ``make_fx``, compiled by TorchInductor and compared with ``Trace_ELBO`` at two
    other values of the parameters, with two other seeds and permuted rows. Later steps run the graph, with new draws
    from torch's generator: the same numbers that ``Trace_ELBO`` would draw.

    A capture takes some seconds of compilation for every shape of a batch, and saves two thirds of the time of a step
    for PPCA (1000 x 20) and a fifth for a VAE (784-400-20, batches of 128). On a CPU the break-even point is at one to
    three thousand steps; for fewer, ``Trace_ELBO`` is faster. Measured by ``tests/benchmark/test_benchmarks.py``.

    Pairs that a graph cannot represent are refused. Branches on the arguments (such as on missing entries) are
    supported: each outcome has its own graph. Attributes of the modules, and variables in the closures and globals of
    functions, are watched: if a number or a tensor there is replaced, a new graph is captured. State in deeper places
    is only checked by comparing with ``Trace_ELBO`` again at steps 10, 100, 1000, ...

    Its arguments are those of ``Trace_ELBO``.

    Raises:
        ValueError: when used, for a guide that leaves out a latent site of the model.
        NotImplementedError: when used, for a pair that branches on parameters or draws, writes to its own state,
            draws outside torch, or is otherwise not reproduced by its graph (such as Bernoulli draws, which
            TorchInductor computes from other random numbers).
        RuntimeError: when used, if the compiler fails or is missing.

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

    def loss_and_grads(self, model: PyroCallable, guide: PyroCallable, *args: Any, **kwargs: Any) -> float:
        """The negative bound; its gradients are added to the parameters'."""
        for frame in _PYRO_STACK:
            if not (isinstance(frame, BlockMessenger) or (isinstance(frame, TraceMessenger) and frame.param_only)):
                raise refusal(model, guide, f"it runs inside Pyro's handler {type(frame).__name__}")
        signature = self._signature(model, guide, args, kwargs)
        pair = self._pair(model, guide)
        capture = pair.find(signature, args, kwargs)
        if capture is None:
            return self._first(pair, signature, model, guide, args, kwargs)
        capture.steps += 1
        if capture.steps in (10, 100, 1_000, 10_000, 100_000):
            capture.check(functools.partial(self._eager, model, guide), model, guide, args, kwargs, seed=capture.steps)
        loss = capture.step(tensors_of(args, kwargs))
        warn_if_nan(loss, "loss")
        return loss

    def _signature(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> tuple[Any, ...]:
        described: list[Any] = [len(args), *kwargs]
        for number, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, Tensor):
                if value.requires_grad:
                    raise refusal(model, guide, f"its argument {number} requires a gradient")
                described.append(kind_of(value))
            elif type(value) in PLAIN:
                described.append((type(value), value))
            else:
                raise refusal(model, guide, f"its argument {number} is a {type(value).__name__}, not a tensor")
        given = tensors_of(args, kwargs)
        if len(given) > 1:  # which are the same tensor
            described.append(tuple(next(i for i, g in enumerate(given) if g is t) for t in given))
        options = self.num_particles, self.vectorize_particles, self.max_plate_nesting
        return (*described, options, torch.get_default_dtype(), torch.is_autocast_enabled())

    def _pair(self, model: PyroCallable, guide: PyroCallable) -> "_Pair":
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

    def _first(
        self, pair: "_Pair", signature: Any, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> float:
        """A step of ``Trace_ELBO``, then the capture of the graph for later steps."""
        with poutine.block(), seeded(0), torch.no_grad(), pyro.validation_enabled(False):
            drawn = poutine.trace(guide).get_trace(*args, **kwargs)
            scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
        for name in latent_names(scored):
            check_drawn(name, drawn)
        with poutine.trace(param_only=True) as seen:
            loss = super().loss_and_grads(model, guide, *args, **kwargs)
        names = tuple(seen.trace.nodes)
        # In another store, or after a branch, a known graph may fit now that the parameters exist.
        if pair.find(signature, args, kwargs) is None:
            if sum(map(len, pair.graphs.values())) >= MOST:
                raise refusal(model, guide, f"it needed {MOST} graphs: an argument or an attribute keeps changing")
            signature = self._signature(model, guide, args, kwargs)  # max_plate_nesting may have been guessed
            with poutine.block(), pyro.validation_enabled(False), gradients_kept(names):
                capture = self._capture(names, model, guide, args, kwargs)
            pair.graphs.setdefault(signature, []).append(capture)
        return loss

    def _eager(self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> float:
        return float(super().loss_and_grads(model, guide, *args, **kwargs))

    def _capture(
        self, names: tuple[str, ...], model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> "Capture":
        store = pyro.get_param_store()
        params = [store._params[name] for name in names]
        if len(set(map(id, params))) < len(params):
            raise refusal(model, guide, "two of its parameters are the same tensor")
        given = tensors_of(args, kwargs)
        watch = Watch(model, guide)
        known = {id(t): t for t in (*params, *given)}
        state = list({id(t): t for t in watch.tensors() if id(t) not in known}.values())
        inputs = list({**known, **{id(t): t for t in state}}.values())
        branches = Branches()
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
            raise refusal(model, guide, reason(error)) from error
        if [t._version for t in inputs] != versions or watch.changed():
            raise refusal(model, guide, "it changes its own parameters, buffers or attributes when it runs")
        values = lifted(graph, inputs)
        if writes(graph):
            raise refusal(model, guide, "it writes to a tensor that was there before")
        try:
            guards = split_guards(graph, 1 + len(used), len(params))
        except ValueError as error:
            raise refusal(model, guide, str(error)) from None
        run = compiled(graph, values)
        capture = Capture(
            names=names,
            used=tuple(used),
            kinds=[kind_of(p) for p in params],
            slots=[next((j for j, g in enumerate(given) if g is t), None) for t in values],
            state=[None if i < len(params) or any(g is t for g in given) else t for i, t in enumerate(values)],
            guards=guards,
            outcomes=tuple(branches.outcomes),
            watch=watch,
            run=run,
        )
        self._check(capture, model, guide, args, kwargs)
        return capture

    def _check(self, capture: Capture, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs) -> None:
        """Compare a new graph with ``Trace_ELBO``, which must leave the state of model and guide as it is.

        Raises:
            NotImplementedError: they differ, or the state changes.
        """
        before = [None if t is None else t.detach().clone() for t in capture.state]
        eager = functools.partial(self._eager, model, guide)
        for seed in (1, 2):
            capture.check(eager, model, guide, args, kwargs, seed=seed)
        after = zip(before, capture.state, strict=True)
        if capture.watch.changed() or any(a is not None and not equal_values(a, b) for a, b in after):
            raise refusal(model, guide, "it changes its own parameters, buffers or attributes when it runs")

    def _loss_and_surrogate(
        self, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs
    ) -> tuple[Tensor, Tensor]:
        """Loss and surrogate loss of ``Trace_ELBO``, as tensors."""
        loss, surrogate = torch.zeros(()), torch.zeros(())
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
        return loss / self.num_particles, surrogate / self.num_particles


@dataclass
class _Pair:
    """The graphs of one model and guide by signature: several if a branch, a parameter or an attribute differs."""

    model: Callable[[], Any]
    guide: Callable[[], Any]
    graphs: dict[Any, list["Capture"]] = field(default_factory=dict)

    def find(self, signature: Any, args: Args, kwargs: Kwargs) -> "Capture | None":
        return next((c for c in self.graphs.get(signature, ()) if c.fits(args, kwargs)), None)


def _reference(item: Any, forget: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(item, forget)
    except TypeError:
        return lambda: item
