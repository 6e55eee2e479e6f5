"""A ``pyro.infer.SVI`` that records its step once as a graph, and then runs the graph."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import incomplete, missing_entries
from zoo.base.random import seeded
from zoo.infer.losses.graph import NotCaptured, recorded
from zoo.infer.losses.surrogate import CAPTURED, loss_and_surrogate, turn
from zoo.infer.losses.traces import check_drawn, latent_names
from zoo.infer.losses.watch import Watch
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.natural import NaturalGradient

MOST = 16  # recordings of one fit; more are a sign of an attribute that changes at every step


def not_recorded(loss: ELBO, optim: PyroOptim) -> str:
    """Why steps with this loss and this optimizer cannot be recorded; empty where they may be."""
    if isinstance(optim, NaturalGradient):
        return "NaturalGradient reads the guide's factors at every step"
    return "" if type(loss) in CAPTURED else f"{type(loss).__name__} is not among the losses that can be recorded"


class CapturedSVI(SVI):
    """Stochastic variational inference whose later steps run a graph, without Pyro's machinery.

    The first step for a shape of the rows is an ordinary one, with Pyro's checks if they are enabled. The operations of
    bound and gradients are then recorded, compared with the loss at other parameters, draws and rows, and run at
    every later step: the same operations on the same draws of torch's generator, so that the steps are those of
    ``pyro.infer.SVI``. On a GPU, bound, gradients and a :class:`Fused` Adam are one CUDA graph, which is launched as a
    whole; its draws follow the seed too.

    If a number, a tensor or a submodule that model, guide or their functions use is replaced, the graph is recorded
    anew. What a graph cannot hold (branches on draws or parameters, numbers taken out of tensors, numpy, state that
    is written to, losses other than ``Trace_ELBO``, ``AnnealedELBO``, ``QuadratureELBO``
    and ``ClosedFormELBO``) is refused with one
    warning, and all steps are ordinary ones.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: any Pyro optimizer.
        loss: the objective.

    Attributes:
        refused: why steps are not captured; empty if they are.

    Warns:
        UserWarning: the pair cannot be captured; once, with the reason.

    Example:
        >>> import guides, pyro, zoo
        >>> x = zoo.data.load("iris").x
        >>> model = zoo.PPCA(4, 2)
        >>> with pyro.get_param_store().scope():
        ...     svi = CapturedSVI(model, guides.MeanField(model, x), zoo.infer.Fused(), pyro.infer.Trace_ELBO())
        ...     losses = [svi.step(x) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(self, model: PyroCallable, guide: PyroCallable, optim: PyroOptim, loss: ELBO) -> None:
        super().__init__(model, guide, optim, loss)
        self.objective = loss
        self.refused = not_recorded(loss, optim)
        self._graphs: dict[Any, _Graph] = {}
        self._recorded = 0

    def step(self, *args: Any, **kwargs: Any) -> float:
        """A step. Returns the loss before it."""
        return float(self.advance(*args, **kwargs))

    def advance(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """A step, whose loss is not read: on a GPU it is a tensor that may still be in computation."""
        if self.refused or kwargs or am_i_wrapped():
            return super().step(*args, **kwargs)
        missing = bool(args) and isinstance(args[0], Tensor) and incomplete(args[0])
        lower = tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
        key = (missing, lower, self.objective.num_particles, *map(_kind, args))
        graph = self._graphs.get(key)
        if graph is not None and graph.valid():
            return graph.step(args)
        loss = super().step(*args)
        try:
            self._recorded += 1
            if self._recorded > MOST:
                raise NotCaptured(f"its shapes, numbers or attributes changed {MOST} times")
            with missing_entries(missing), pyro.validation_enabled(False):
                self._graphs.pop(key, None)
                self._graphs[key] = _Graph(self, args)
        except NotCaptured as error:
            self.refused = str(error)
            pair = f"{name_of(self.model)} with {name_of(self.guide)}"
            warnings.warn(
                f"the steps of {pair} run without a graph: {self.refused}. pass capture=False if they shall",
                stacklevel=4,
            )
        return loss


class _Graph:
    """The graph for one shape of the arguments."""

    def __init__(self, svi: CapturedSVI, args: tuple[Any, ...]) -> None:
        self.svi, self.watch = svi, Watch(svi.model, svi.guide)
        self.params, self.given = self._sites(args), [a for a in args if isinstance(a, Tensor)]
        model, guide, known = svi.model, svi.guide, list(self.params.values())
        if any(p.requires_grad for p in self.given):
            raise NotCaptured("one of its arguments requires a gradient")
        self.dial = torch.zeros((), device=next((t.device for t in known), None))
        state = [(t, t._version) for t in (*known, *self.given, *self.watch.tensors())]

        def evaluate(*inputs: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                loss, surrogate = loss_and_surrogate(svi.objective, self.dial, model, guide, *args)
                found = torch.autograd.grad(surrogate, known, allow_unused=True)
            self.moved = [p for p, g in zip(known, found, strict=True) if g is not None]
            ours = [(p, g) for p, g in zip(known, found, strict=True) if g is not None]
            placed = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in ours]  # as autograd
            return [loss.detach(), *placed]

        with poutine.block(), seeded(0):
            self.run: Callable[..., Any] = recorded(evaluate, [*known, *self.given])
        if self.watch.changed() or any(t._version != version for t, version in state):
            raise NotCaptured("it changes its own parameters, buffers or attributes when it runs")
        self._check(args)
        self.cuda = self._launched() if self.given and self.given[0].is_cuda else None

    def valid(self) -> bool:
        """Whether parameters and state are still those of the recording."""
        now = dict(pyro.get_param_store().named_parameters())
        return not self.watch.changed() and all(now.get(name) is p for name, p in self.params.items())

    def step(self, args: tuple[Any, ...]) -> Tensor:
        """Bound, gradients and the optimizer's step for arguments of the same shapes."""
        given = [a for a in args if isinstance(a, Tensor)]
        if self.cuda is not None:
            return self.cuda(given)
        fused = isinstance(self.svi.optim, Fused)
        with torch.inference_mode() if fused else torch.no_grad():
            self._turn()
            loss = self._gradients(given)
            self.svi.optim(set(self.params.values()))
            self._forget()
        return loss

    def _gradients(self, given: list[Tensor]) -> Tensor:
        """The loss; gradients become those of the parameters."""
        loss, *gradients = self.run(*self.params.values(), *given)
        for p, gradient in zip(self.moved, gradients, strict=True):
            p.grad = gradient
        return loss

    def _turn(self) -> None:
        turn(self.dial, self.svi.objective, self.svi.model, self.svi.guide)

    def _forget(self) -> None:
        for p in self.params.values():
            p.grad = None

    def _sites(self, args: tuple[Any, ...]) -> dict[str, Tensor]:
        """The parameters that model and guide use, by name."""
        with poutine.block(), seeded(0), torch.no_grad(), poutine.trace(param_only=True) as seen:
            drawn = poutine.trace(self.svi.guide).get_trace(*args)
            scored = poutine.trace(poutine.replay(self.svi.model, trace=drawn)).get_trace(*args)
        for name in latent_names(scored):
            check_drawn(name, drawn)
        return {name: site["value"].unconstrained() for name, site in seen.trace.nodes.items()}

    def _check(self, args: tuple[Any, ...]) -> None:
        """Compare loss and gradients with those of the loss, at other parameters, draws and rows.

        Raises:
            NotCaptured: they differ.
        """
        length = max((len(t) for t in self.given if t.ndim), default=0)
        args = tuple(a.roll(1, 0) if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)
        given = [a for a in args if isinstance(a, Tensor)]
        with poutine.block(), _elsewhere(list(self.params.values())):
            step = getattr(self.svi.objective, "step", None)  # of a schedule
            self._turn()
            if step is not None:
                self.svi.objective.step = step
            with seeded(1):
                right = float(self.svi.loss_and_grads(self.svi.model, self.svi.guide, *args))
            gradients = [p.grad for p in self.params.values()]
            self._forget()
            with seeded(1), torch.no_grad():
                ours = float(self._gradients(given))
            if step is not None:
                self.svi.objective.step = step
            pairs = list(zip(gradients, [p.grad for p in self.params.values()], strict=True))
            self._forget()
        largest = max((float(g.abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
        if not math.isfinite(right + largest):
            return
        close = torch.finfo(given[0].dtype if given and given[0].is_floating_point() else torch.float32).eps ** 0.5
        same = abs(right - ours) <= close * max(abs(right), 1e-3 * largest)
        for one, other in pairs:
            same = same and (one is None) == (other is None)
            if same and one is not None and other is not None:
                same = float((one - other).norm()) <= close * max(float(one.norm()), 1e-3 * largest)
        if not same:
            raise NotCaptured(
                f"at other values its graph gives the loss {ours:.9g}, and not {right:.9g}, or other gradients (look "
                "for randomness outside torch, values read through numpy, and state that changes)"
            )

    def _launched(self) -> Callable[[list[Tensor]], Tensor]:
        """The step as one CUDA graph; with an optimizer other than a fused Adam, without its part.

        Raises:
            NotCaptured: an operation waits for the GPU.
        """
        optim, params = self.svi.optim, set(self.params.values())
        whole = isinstance(optim, Fused) and optim.capturable
        static = [t.clone() for t in self.given]
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            side.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), seeded(0), torch.cuda.stream(side):  # libraries set themselves up
                self._gradients(static)
            torch.cuda.current_stream().wait_stream(side)
            self._forget()
            with torch.no_grad(), torch.cuda.graph(graph):
                loss = self._gradients(static)
                if whole:
                    optim.update(params)
        except RuntimeError as error:
            raise NotCaptured(f"CUDA cannot record it ({str(error).strip().splitlines()[0]})") from error
        finally:
            gradients = [(p, p.grad) for p in params]
            self._forget()

        def step(given: list[Tensor]) -> Tensor:
            for buffer, value in zip(static, given, strict=True):
                buffer.copy_(value)
            self._turn()
            if whole:
                optim.adjust()
            graph.replay()
            if not whole:
                for p, gradient in gradients:
                    p.grad = None if gradient is None else gradient.clone()
                optim(params)
                self._forget()
            return loss.clone()

        return step


@contextlib.contextmanager
def _elsewhere(params: list[Tensor]) -> Iterator[None]:
    """A block with slightly different parameters and no gradients."""
    kept = [p.detach().clone() for p in params]
    try:
        with torch.no_grad(), seeded(1):
            for p in params:
                p.grad = None
                p.mul_(1 + 0.02 * torch.randn_like(p)).add_(0.01 * torch.randn_like(p))
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(params, kept, strict=True):
                p.grad = None
                p.copy_(old)


def _kind(value: Any) -> Any:
    """What a graph depends on: shape, type and place of a tensor, or the value of anything else."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.stride()
    return value
