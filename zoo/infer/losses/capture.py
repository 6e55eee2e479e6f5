"""A compiled graph of bound and gradients, and the conditions under which it is valid."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from zoo.base.callables import PyroCallable, name_of
from zoo.base.random import seeded
from zoo.infer.losses.graph import INSTEAD
from zoo.infer.losses.traces import Args, Kwargs
from zoo.infer.losses.watch import Watch


@dataclass
class Capture:
    """A compiled graph, and the conditions under which it is valid.

    Attributes:
        names: the parameters in Pyro's store, which are the first inputs.
        used: the positions of those that have a gradient.
        kinds: their shapes and types.
        slots: for every input that is a tensor argument, its position among these, else None.
        state: for every input that is a buffer, frozen parameter or other tensor, this tensor, else None.
        guards: the graph that computes the conditions of branches from all inputs; None if there are none.
        outcomes: the values of these conditions.
        watch: numbers and tensors from outside the arguments on which the graph depends.
        run: the graph, from inputs to loss and gradients.
        steps: the number of runs.
    """

    names: tuple[str, ...]
    used: tuple[int, ...]
    kinds: list[Any]
    slots: list[int | None]
    state: list[Tensor | None]
    guards: fx.GraphModule | None
    outcomes: tuple[bool, ...]
    watch: "Watch"
    run: Callable[..., Any]
    steps: int = 0

    def __post_init__(self) -> None:
        self.frozen = [(t, kind_of(t)) for t in self.state if t is not None]
        self.rest = list(zip(self.slots, self.state, strict=True))[len(self.names) :]

    def inputs(self, params: list[Tensor], given: list[Tensor]) -> list[Any]:
        return [*params, *(state if slot is None else given[slot] for slot, state in self.rest)]

    def fits(self, args: Args, kwargs: Kwargs) -> bool:
        """Whether parameters, state and branches are the same as at the capture."""
        known = pyro.get_param_store()._params
        params = [known.get(name) for name in self.names]
        for p, kind in zip(params, self.kinds, strict=True):
            if p is None or kind_of(p) != kind:
                return False
        if self.watch.changed() or any(kind_of(t) != kind for t, kind in self.frozen):
            return False
        return self.same_branches(params, tensors_of(args, kwargs))

    def same_branches(self, params: Any, given: list[Tensor]) -> bool:
        if self.guards is None:
            return True
        with torch.no_grad():
            return tuple(map(bool, self.guards(*self.inputs(params, given)))) == self.outcomes

    def step(self, given: list[Tensor]) -> float:
        """The loss; gradients are added to those of the parameters, which are added to the traces of SVI."""
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

    def check(
        self, eager: Any, model: PyroCallable, guide: PyroCallable, args: Args, kwargs: Kwargs, *, seed: int
    ) -> None:
        """Compare with ``Trace_ELBO`` at other parameters, other draws and (for odd seeds) permuted rows.

        Raises:
            NotImplementedError: they differ, at two such places.
        """
        if seed % 2:
            length = max((len(t) for t in tensors_of(args, kwargs) if t.ndim), default=0)

            def turned(t: Any) -> Any:
                return t.roll(1, 0) if isinstance(t, Tensor) and t.ndim and len(t) == length else t

            turned_args, turned_kwargs = pytree.tree_map(turned, (args, kwargs))
            params = [pyro.get_param_store()._params[name] for name in self.names]
            if self.same_branches(params, tensors_of(turned_args, turned_kwargs)):
                args, kwargs = turned_args, turned_kwargs
        for again in (seed, seed + 1000):  # twice, because of rounding
            loss, ours = self._compare(eager, args, kwargs, again)
            if ours is None:
                return
        raise refusal(
            model,
            guide,
            f"at other values its graph gives the loss {ours:.9g} where Trace_ELBO gives {loss:.9g}, or other "
            "gradients; look for randomness outside torch, values read through numpy, and state that changes",
        )

    def _compare(self, eager: Any, args: Args, kwargs: Kwargs, seed: int) -> tuple[float, float | None]:
        """The losses of Trace_ELBO and of the graph near the current parameters; None for the second if they agree."""
        params = [pyro.get_param_store()._params[name] for name in self.names]
        kept = [p.detach().clone() for p in params]
        found = []
        try:
            with poutine.block(), pyro.validation_enabled(False), gradients_kept(self.names):
                with seeded(seed), torch.no_grad():
                    for p in params:
                        p.mul_(1 + 0.02 * torch.randn_like(p)).add_(0.01 * torch.randn_like(p))
                for function in (lambda: eager(args, kwargs), lambda: self.step(tensors_of(args, kwargs))):
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
            return loss, None  # no comparison is possible
        eps = torch.finfo(params[0].dtype if params else torch.float32).eps
        right = names == our_names and abs(loss - ours) <= eps**0.6 * max(abs(loss), 1e-3 * largest)
        for one, other, size in zip(gradients, our_gradients, sizes, strict=True):
            right = right and (one is None) == (other is None)
            if right and one is not None and other is not None and one.numel():
                right = float((one - other).abs().max()) <= eps**0.4 * max(size, 1e-3 * largest)
        return loss, None if right else ours


def kind_of(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.dtype, t.device, t.stride(), t.requires_grad


def tensors_of(args: Args, kwargs: Kwargs) -> list[Tensor]:
    return [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]


def equal_values(one: Tensor, other: Any) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


def refusal(model: PyroCallable, guide: PyroCallable, why: str) -> NotImplementedError:
    pair = f"{name_of(model)} with {name_of(guide)}"
    return NotImplementedError(f"CompiledELBO cannot capture {pair}: {why}. Instead, {INSTEAD}")


@contextmanager
def gradients_kept(names: tuple[str, ...]) -> Iterator[None]:
    """A block in which the parameters have no gradients; afterwards their previous ones are restored."""
    params = [pyro.get_param_store()._params[name] for name in names]
    kept = [p.grad for p in params]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(params, kept, strict=True):
            p.grad = gradient
