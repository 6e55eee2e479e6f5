"""A ``pyro.infer.SVI`` that records its step once as a graph, and then runs the graph."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import incomplete, missing_entries
from zoo.base.random import seeded
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.graph import NotCaptured, Watch, recorded
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.traces import check_drawn, latent_names, loss_and_surrogate
from zoo.infer.losses.wake_sleep import WakeSleep
from zoo.infer.optim.fused import Fused
from zoo.infer.optim.natural import NaturalGradient

# themselves, as a subclass may do anything
CAPTURED = (Trace_ELBO, AnnealedELBO, QuadratureELBO, ClosedFormELBO, IWAE, WakeSleep)
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

    If a number, a tensor or a submodule that model, guide or their functions use is replaced, however deep inside
    them, the graph is recorded anew. What a graph cannot hold (branches on draws or parameters, numbers taken out of
    tensors, numpy, state that is written to or cannot be watched, losses other than ``Trace_ELBO``, ``AnnealedELBO``,
    ``QuadratureELBO``, ``ClosedFormELBO``, ``IWAE`` and ``WakeSleep``) is refused with one warning, and all steps are
    ordinary.

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
        if graph is not None and not graph.watch.changed():
            return graph.step(_tensors(args))
        loss = super().step(*args)
        try:
            self._graphs.pop(key, None)
            self._recorded += 1
            if self._recorded > MOST:
                raise NotCaptured(f"its shapes, numbers or attributes changed {MOST} times")
            with missing_entries(missing), pyro.validation_enabled(False), poutine.block():
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
        self.svi = svi
        self.watch = Watch(svi.model, svi.guide)
        self.params = [p for _, p in pyro.get_param_store().named_parameters() if p.requires_grad]
        self.beta = torch.zeros((), device=next((p.device for p in self.params), None))  # of an AnnealedELBO
        self.moved: list[Tensor] = []  # the parameters that have a gradient
        given = _tensors(args)
        if any(own.requires_grad for own in given):
            raise NotCaptured("one of its arguments requires a gradient")
        before = [(t, t._version) for t in (*given, *self.watch.tensors()) if not t.is_inference()]
        with seeded(0):
            drawn = poutine.trace(svi.guide).get_trace(*args)
            for name in latent_names(poutine.trace(poutine.replay(svi.model, trace=drawn)).get_trace(*args)):
                check_drawn(name, drawn)
        with seeded(0):
            self.run = recorded(lambda *_: self._evaluate(args), [*self.params, *given])
        if self.watch.changed() or any(t._version != version for t, version in before):
            raise NotCaptured("it changes its own parameters, buffers or attributes when it runs")
        self._check(args)
        self.launch = self._launched(given) if given and given[0].is_cuda else None

    def step(self, given: list[Tensor]) -> Tensor:
        """Bound, gradients and the optimizer's step for arguments of the same shapes."""
        if self.launch is not None:
            return self.launch(given)
        with torch.inference_mode() if isinstance(self.svi.optim, Fused) else torch.no_grad():
            self._turn()
            loss = self._gradients(given)
            self.svi.optim(set(self.moved))
            self._taken()
        return loss

    def _evaluate(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The loss and the gradients, by model and guide."""
        svi = self.svi
        with torch.enable_grad():
            if isinstance(svi.objective, AnnealedELBO):
                loss, surrogate = svi.objective.objective(self.beta, svi.model, svi.guide, args, {})
            elif type(svi.objective) is Trace_ELBO:
                loss, surrogate = loss_and_surrogate(svi.objective, svi.model, svi.guide, args)
            else:
                loss = surrogate = svi.objective.differentiable_loss(svi.model, svi.guide, *args)
            found = zip(self.params, torch.autograd.grad(surrogate, self.params, allow_unused=True), strict=True)
        own = [(p, g) for p, g in found if g is not None]
        self.moved = [p for p, _ in own]
        return [loss.detach(), *(g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in own)]

    def _gradients(self, given: list[Tensor]) -> Tensor:
        """The loss; gradients become those of the parameters."""
        loss, *gradients = self.run(*self.params, *given)
        for p, gradient in zip(self.moved, gradients, strict=True):
            p.grad = gradient
        return loss

    def _turn(self) -> None:
        """Count the step of a loss with a schedule."""
        if isinstance(self.svi.objective, AnnealedELBO):
            self.beta.fill_(self.svi.objective.next_beta(self.svi.model, self.svi.guide))

    def _check(self, args: tuple[Any, ...]) -> None:
        """Compare loss and gradients with those of ``pyro.infer.SVI``, at other parameters, draws and rows.

        Raises:
            NotCaptured: they differ.
        """
        svi, length = self.svi, max((len(t) for t in _tensors(args) if t.ndim), default=0)
        args = tuple(a.roll(1, 0) if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)
        kept, step = [p.detach().clone() for p in self.params], getattr(svi.objective, "step", 0)
        right: list[Tensor | None]
        ours: list[Tensor | None]
        try:
            with torch.no_grad(), seeded(1):
                for p in self.params:
                    p.grad = None
                    p.mul_(1 + 0.02 * torch.randn_like(p)).add_(0.01 * torch.randn_like(p))
            self._turn()
            if isinstance(svi.objective, AnnealedELBO):
                svi.objective.step = step
            with seeded(1):
                loss = svi.loss_and_grads(svi.model, svi.guide, *args)
                right = [torch.tensor(loss, dtype=torch.float64), *self._taken()]
            with seeded(1), torch.no_grad():
                own = float(self._gradients(_tensors(args)))
                ours = [torch.tensor(own, dtype=torch.float64), *self._taken()]
        except RuntimeError as error:  # such as a covariance that is not positive definite
            raise NotCaptured(f"it fails at other parameters ({type(error).__name__})") from error
        finally:
            with torch.no_grad():
                for p, old in zip(self.params, kept, strict=True):
                    p.copy_(old)
            if isinstance(svi.objective, AnnealedELBO):
                svi.objective.step = step
        norms = [0.0 if one is None else float(one.norm()) for one in right]
        close, least = max(torch.finfo(p.dtype).eps for p in self.params) ** 0.5, 1e-3 * max(norms[1:])

        def same(one: Tensor | None, other: Tensor | None) -> bool:
            if one is None or other is None:
                return one is other
            return float((one - other).norm()) <= close * max(float(one.norm()), least)

        if math.isfinite(sum(norms)) and not all(map(same, right, ours)):
            raise NotCaptured(
                f"at other values its graph gives the loss {own:.9g}, and not {loss:.9g}, or other gradients "
                "(look for randomness outside torch, values read through numpy, and state that changes)"
            )

    def _taken(self) -> list[Tensor | None]:
        """The gradients, which are taken from the parameters."""
        found = [p.grad for p in self.params]
        for p in self.params:
            p.grad = None
        return found

    def _launched(self, given: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
        """The step as one CUDA graph; with an optimizer other than a fused Adam, without its part.

        Raises:
            NotCaptured: an operation waits for the GPU.
        """
        optim, static = self.svi.optim, [own.clone() for own in given]
        whole = isinstance(optim, Fused) and optim.capturable
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            side.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), seeded(0), torch.cuda.stream(side):  # libraries set themselves up
                self._gradients(static)
            torch.cuda.current_stream().wait_stream(side)
            self._taken()
            with torch.no_grad(), torch.cuda.graph(graph):
                loss = self._gradients(static)
                if whole:
                    optim.update(self.moved)
        except RuntimeError as error:
            raise NotCaptured(f"CUDA cannot record it ({str(error).strip().splitlines()[0]})") from error
        finally:
            gradients = self._taken()

        def step(given: list[Tensor]) -> Tensor:
            for buffer, value in zip(static, given, strict=True):
                buffer.copy_(value)
            self._turn()
            if whole:
                optim.adjust()
            graph.replay()
            if not whole:
                for p, gradient in zip(self.params, gradients, strict=True):
                    p.grad = None if gradient is None else gradient.clone()
                optim(set(self.moved))
                self._taken()
            return loss.clone()

        return step


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [own for own in args if isinstance(own, Tensor)]


def _kind(value: Any) -> Any:
    """What a graph depends on: shape, type and place of a tensor, or the value of anything else."""
    return (value.shape, value.dtype, value.device, value.stride()) if isinstance(value, Tensor) else value
