"""A ``pyro.infer.SVI`` that records its step once as a graph, and then runs the graph."""

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
from zoo.base.checks import incomplete, missing_entries, recording
from zoo.base.random import seeded
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.graph import NotCaptured, Watch, recorded
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.traces import loss_and_surrogate
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
    bound and gradients are then recorded, compared with those of the pair at other parameters, draws and rows, and run
    at every later step: the same operations on the same draws of torch's generator, so that the steps are those of
    ``pyro.infer.SVI``. On a GPU, they and a :class:`Fused` Adam are one CUDA graph, which is launched as a whole.

    If a number, a tensor or a submodule that model, guide, loss or their functions use is replaced, however deep inside
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
        self._due: set[str] = set()  # arguments, in words, for which a graph is recorded before their next step

    def step(self, *args: Any, **kwargs: Any) -> float:
        """A step. Returns the loss before it."""
        return float(self.advance(*args, **kwargs))

    def advance(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """A step, whose loss is not read: on a GPU it is a tensor that may still be in computation."""
        if self.refused or kwargs or am_i_wrapped():
            return super().step(*args, **kwargs)
        missing = bool(args) and isinstance(args[0], Tensor) and incomplete(args[0])
        lower = tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
        key = (missing, lower, *map(_kind, args))
        graph = self._graphs.get(key)
        if graph is not None and not graph.watch.changed():
            return graph.step(_tensors(args))
        if repr(key) in self._due:  # the fit that this one goes on from had the graph before this step
            self._due.remove(repr(key))
            self._record(key, args, missing)
            return self._graphs[key].step(_tensors(args)) if key in self._graphs else super().step(*args)
        loss = super().step(*args)
        self._recorded += 1
        self._record(key, args, missing)
        return loss

    def get_state(self) -> dict[str, Any]:
        """For which arguments there is a graph, in words, how many were recorded, and why there are none."""
        current = [repr(key) for key, graph in self._graphs.items() if not graph.watch.changed()]
        return {"graphs": sorted({*current, *self._due}), "recorded": self._recorded, "refused": self.refused}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there: the graphs are recorded anew, each when it is needed."""
        self._graphs, self._due = {}, set(state["graphs"])
        self._recorded, self.refused = state["recorded"], state["refused"]

    def _record(self, key: Any, args: tuple[Any, ...], missing: bool) -> None:
        """Record the graph for arguments of a kind, or refuse to with a warning."""
        self._graphs.pop(key, None)
        try:
            if self._recorded > MOST:
                raise NotCaptured(f"its shapes, numbers or attributes changed {MOST} times")
            with missing_entries(missing), recording(), pyro.validation_enabled(False):
                self._graphs[key] = _Graph(self, args)
        except NotCaptured as error:
            self.refused = str(error)
            pair = f"{name_of(self.model)} with {name_of(self.guide)}"
            warnings.warn(
                f"the steps of {pair} run without a graph: {self.refused}. pass capture=False if they shall",
                stacklevel=5,
            )


class _Graph:
    """The steps for one kind of arguments as a graph.

    Raises:
        NotCaptured: it would not give what the pair gives.
    """

    def __init__(self, svi: CapturedSVI, args: tuple[Any, ...]) -> None:
        self.svi, given, store = svi, _tensors(args), pyro.get_param_store()
        self.params = [p for _, p in store.named_parameters() if p.requires_grad]
        self.beta = torch.full((), 0.5, device=next((p.device for p in self.params), None))  # of an AnnealedELBO
        self.watch = Watch(svi.model, svi.guide, svi.objective, store)
        if any(own.requires_grad for own in given):
            raise NotCaptured("one of its arguments requires a gradient")
        with seeded(0):
            self.run = recorded(lambda *_: self._evaluate(args), [*self.params, *given])
        if self.watch.changed():
            raise NotCaptured("it changes its own attributes when it runs")
        with torch.no_grad():
            self._check(args)
        optim = svi.optim if isinstance(svi.optim, Fused) and svi.optim.capturable else None
        self.step = self._step if optim is None else self._launched(optim, given)

    def _step(self, given: list[Tensor]) -> Tensor:
        """Bound, gradients and the optimizer's step for arguments of the same shapes."""
        optim = self.svi.optim
        with torch.inference_mode() if isinstance(optim, Fused) else torch.no_grad():  # the one is faster
            self._turn()
            loss = self._gradients(given)
            if isinstance(optim, Fused):
                optim.adjust()
                optim.update()
            else:
                optim(set(self.moved))
            for p in self.moved:
                p.grad = None
        return loss

    def _turn(self) -> None:
        """Count the step of a loss with a schedule."""
        if isinstance(self.svi.objective, AnnealedELBO):
            self.beta.fill_(self.svi.objective.next_beta(self.svi.model, self.svi.guide))

    def _gradients(self, given: list[Tensor]) -> Tensor:
        """The loss; gradients become those of the parameters."""
        loss, *gradients = self.run(*self.params, *given)
        for p, gradient in zip(self.moved, gradients, strict=True):
            p.grad = gradient
        return loss

    def _evaluate(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The loss and the gradients, by model and guide."""
        svi = self.svi
        torch.clear_autocast_cache()  # of other parameters
        with torch.enable_grad(), poutine.block():
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

    def _check(self, args: tuple[Any, ...]) -> None:
        """Compare the graph with the pair at other parameters, draws and rows."""
        kept, length = [p.clone() for p in self.params], max((len(t) for t in _tensors(args) if t.ndim), default=0)
        args = tuple(a.roll(1, 0) if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)
        try:
            with seeded(1):
                for p in self.params:
                    p.mul_(1 + 0.02 * torch.randn_like(p)).add_(0.01 * torch.randn_like(p))
            with seeded(1):
                right = self._evaluate(args)
            with seeded(1):
                ours = self.run(*self.params, *_tensors(args))
        except RuntimeError as error:  # such as a covariance that is not positive definite
            raise NotCaptured(f"it fails at other parameters ({type(error).__name__})") from error
        finally:
            torch.clear_autocast_cache()
            for p, old in zip(self.params, kept, strict=True):
                p.copy_(old)
        close = max(torch.finfo(p.dtype).eps for p in self.params) ** 0.5
        least = 1e-3 * max((float(gradient.norm()) for gradient in right[1:]), default=0.0)
        for own, other in zip(ours, right, strict=True):
            if not (own - other).norm() <= close * max(float(other.norm()), least):
                raise NotCaptured(
                    f"at other values its graph gives the loss {ours[0]:.9g}, not {right[0]:.9g}, or other gradients "
                    "(look for randomness outside torch, values read through numpy, and state that changes)"
                )

    def _launched(self, optim: Fused, given: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
        """The step as one CUDA graph.

        Raises:
            NotCaptured: an operation waits for the GPU.
        """
        static, graph, side = [own.clone() for own in given], torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            side.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), seeded(0), torch.cuda.stream(side):  # libraries set themselves up
                self.run(*self.params, *static)
            torch.cuda.current_stream().wait_stream(side)
            with torch.no_grad(), torch.cuda.graph(graph):
                loss = self._gradients(static)
                optim.update()
        except RuntimeError as error:
            raise NotCaptured(f"CUDA cannot record it ({str(error).strip().splitlines()[0]})") from error
        finally:
            for p in self.params:
                p.grad = None

        def step(given: list[Tensor]) -> Tensor:
            for buffer, value in zip(static, given, strict=True):
                buffer.copy_(value)
            self._turn()
            optim.adjust()
            graph.replay()
            return loss.clone()

        return step


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [own for own in args if isinstance(own, Tensor)]


def _kind(value: Any) -> Any:
    """What a graph depends on: shape, type and place of a tensor, or the value of anything else."""
    return (value.shape, value.dtype, value.device, value.stride()) if isinstance(value, Tensor) else value
