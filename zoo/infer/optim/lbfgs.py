"""L-BFGS for bounds without noise, for ``pyro.infer.SVI``."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from zoo.base.random import seeded
from zoo.infer.optim.fused import ordered


class LBFGS(PyroOptim):
    r"""L-BFGS with a strong Wolfe line search, for full-batch bounds without noise (or with fixed draws).

    A line search needs the loss at several points, so the optimizer watches the loss: every step of ``SVI`` is one
    iteration of torch's L-BFGS, and each of its evaluations sees the same random draws.

    Parameters come in all units: loadings in those of their columns, log scales in none. The search therefore runs in
    equilibrated coordinates :math:`u_i = p_i \sqrt{D_i}`, with :math:`D_i` the norm of row i of the Hessian, estimated
    from a few Hessian-vector products at the steps ``refresh``.

    Args:
        history: number of past steps that shape the curvature.
        evaluations: the most evaluations in one iteration.
        seed: of the draws, where the bound takes any, and of the probes.
        probes: Hessian-vector products per estimate; 0 searches in the parameters as they are.
        refresh: steps before which the coordinates are chosen anew, and the curvature forgotten.
        late: parameters that stay as they are at first. With the model's, variational EM begins with an E-step: a guide
            that knows nothing of a model yet would lead it away from its start.
        since: the step from which on they take part at the latest; a step that gains nothing ends the wait.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> optim = LBFGS()
        >>> # svi = SVI(model, guide, optim, optim.watch(Trace_ELBO()))

    References:
        Nocedal and Wright (2006), Numerical Optimization, ch. 3 and 7; Dauphin, de Vries and Bengio (2015),
        Equilibrated adaptive learning rates for non-convex optimization, NIPS, for the row norms.
    """

    def __init__(
        self,
        *,
        history: int = 20,
        evaluations: int = 25,
        seed: int = 0,
        probes: int = 10,
        refresh: Sequence[int] = (0, 25, 100, 300, 1000, 3000),
        late: Iterable[Tensor] = (),
        since: int = 0,
    ) -> None:
        arguments = {
            "lr": 1.0,
            "max_iter": 1,
            "max_eval": evaluations,
            "history_size": history,
            "tolerance_grad": 0.0,
            "tolerance_change": 1e-14,
            "line_search_fn": "strong_wolfe",
        }
        super().__init__(torch.optim.LBFGS, arguments)
        self.seed = seed
        self.probes = probes
        self.refresh = frozenset(refresh)
        self.since = since
        self.steps = 0
        self.evaluations = 0
        self.optimizer: torch.optim.LBFGS | None = None
        self.watched: Watched | None = None
        self._late = {id(p) for p in late}
        self._seen: list[Tensor] = []  # all parameters
        self._params: list[Tensor] = []  # those that the search moves
        self._units: list[Tensor] = []
        self._scaled: list[Tensor] = []
        self._first: float | None = None
        self._before = math.inf
        self._wall = math.inf
        self._last: tuple[float, list[tuple[Tensor, Tensor, Tensor]]] | None = None

    def watch(self, loss: ELBO) -> "Watched":
        """The loss to give to ``SVI`` together with this optimizer."""
        self.watched = Watched(loss, self)
        return self.watched

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One iteration, from the loss and the gradients that ``SVI`` has just computed.

        Raises:
            RuntimeError: the loss is not watched, so that it cannot be evaluated again.
        """
        if self.watched is None or self.watched.again is None:
            raise RuntimeError("LBFGS has seen no loss: pass SVI(model, guide, optim, optim.watch(Trace_ELBO()))")
        self._seen = ordered(params) or self._seen  # SVI sees none where the loss was recalled
        early = self._early()
        self._params = early or self._seen
        if self.optimizer is None or self.steps in self.refresh or self.steps == self.since:
            self._choose_units()
        self.steps += 1
        before = [p.detach().clone() for p in self._params]
        with torch.no_grad():
            for u, p, unit in zip(self._scaled, self._params, self._units, strict=True):
                u.copy_(p / unit)
        assert self.optimizer is not None
        self.optimizer.step(self._evaluate)
        self._place()
        finite = all(torch.isfinite(p).all() for p in self._params)
        if not finite or all(torch.equal(p, old) for p, old in zip(self._params, before, strict=True)):
            # The line search has found nothing, or divided zero by zero: stay, and forget the curvature.
            with torch.no_grad():
                for p, old in zip(self._params, before, strict=True):
                    p.copy_(old)
            self.optimizer = None
            self._last = None

    def _early(self) -> list[Tensor]:
        """The parameters that move alone at first, while that raises the bound; then none."""
        if self.steps >= self.since:
            return []
        assert self._first is not None
        gain, self._before = self._before - self._first, self._first
        if gain <= 1e-9 * max(1.0, abs(self._first)):
            self.since = self.steps
            return []
        return [p for p in self._seen if id(p) not in self._late]

    def _choose_units(self) -> None:
        """New coordinates: one over the root of the Hessian's row norms."""
        assert self.watched is not None
        gradients = [p.grad for p in self._params]
        self._units = [torch.ones_like(p) for p in self._params]
        norms = self.watched.row_norms(self._params, self.probes) if self.probes else None
        if norms is not None:
            top = max(float(norm.max()) for norm in norms)
            self._units = [norm.clamp_min(1e-6 * top).rsqrt() for norm in norms]
        for p, gradient in zip(self._params, gradients, strict=True):
            p.grad = gradient
        self._scaled = [(p / unit).detach().requires_grad_() for p, unit in zip(self._params, self._units, strict=True)]
        self.optimizer = torch.optim.LBFGS(self._scaled, **self.pt_optim_args)

    @torch.no_grad()
    def _place(self) -> None:
        for u, p, unit in zip(self._scaled, self._params, self._units, strict=True):
            p.copy_(u * unit)

    def _evaluate(self) -> float:
        """The loss at the search's point, its gradient in the search's coordinates."""
        if self._first is not None:
            loss, self._first = self._first, None
            self._wall = loss + 10.0 * (1.0 + abs(loss))
        else:
            self._place()
            self.forget_gradients()
            loss = math.inf
            if all(torch.isfinite(p).all() for p in self._params):
                self.evaluations += 1
                with suppress(torch.linalg.LinAlgError, ValueError):
                    loss = self.watched.again()  # type: ignore[union-attr, misc]
        if not -math.inf < loss < self._wall:  # too far, or no density there: a low wall, since the search interpolates
            loss = self._wall
            self.forget_gradients()
        slopes = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in self._seen}
        for u, p, unit in zip(self._scaled, self._params, self._units, strict=True):
            u.grad = slopes[p] * unit
        self._last = loss, [(p, p.detach().clone(), slope.clone()) for p, slope in slopes.items()]
        return loss

    def forget_gradients(self) -> None:
        """Clear the gradients of all parameters seen so far."""
        for p in self._seen:
            p.grad = None

    def recall(self) -> float | None:
        """Loss and gradients of the last evaluation, where the line search has stayed at its parameters."""
        if self._last is None or not all(torch.equal(p, at) for p, at, _ in self._last[1]):
            return None
        for p, _, gradient in self._last[1]:
            p.grad = gradient.clone()
        return self._last[0]

    def get_state(self) -> dict[str, Any]:
        """The number of steps; the curvature is rebuilt in a few."""
        return {"steps": self.steps}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go on counting steps from a state that ``get_state`` gave."""
        self.steps = state_dict["steps"]


class Watched(ELBO):
    """A loss that L-BFGS can evaluate again at other parameters, each time with the same draws."""

    def __init__(self, loss: ELBO, optim: LBFGS) -> None:
        super().__init__()
        self.inner = loss
        self.optim = optim
        self.again: Callable[[], float] | None = None
        self._call: tuple[Any, ...] = ()
        self._given: tuple[tuple[Any, Any], ...] = ()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.inner._get_trace(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The watched loss, with the optimizer's draws."""
        with seeded(self.optim.seed):
            return float(self.inner.loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The watched loss and its gradients, with the optimizer's draws; not taken twice at one place."""

        def again() -> float:
            with seeded(self.optim.seed):
                return float(self.inner.loss_and_grads(model, guide, *args, **kwargs))

        given = tuple((a, getattr(a, "_version", None)) for a in (*args, *kwargs.values()))
        same = len(given) == len(self._given) and all(
            a is b and v == w for (a, v), (b, w) in zip(given, self._given, strict=True)
        )
        known = self.optim.recall() if same else None
        if known is None:
            self.optim.forget_gradients()
            known = again()
            self.optim.evaluations += 1
        self._given, self.again = given, again
        self._call = (model, guide, args, kwargs)
        self.optim._first = known
        return known

    def row_norms(self, params: list[Tensor], probes: int) -> list[Tensor] | None:
        """The norms of the Hessian's rows, from Rademacher probes; None where the loss has no second derivative."""
        model, guide, args, kwargs = self._call
        totals = [torch.zeros_like(p) for p in params]
        try:
            with seeded(self.optim.seed):
                loss = self.inner.differentiable_loss(model, guide, *args, **kwargs)
                gradients = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
                for _ in range(probes):
                    signs = [torch.randint(0, 2, p.shape, device=p.device).to(p) * 2 - 1 for p in params]
                    pairs = zip(gradients, signs, strict=True)
                    slope = torch.stack([(g * s).sum() for g, s in pairs if g is not None]).sum()
                    products = torch.autograd.grad(slope, params, retain_graph=True, allow_unused=True)
                    for total, product in zip(totals, products, strict=True):
                        if product is not None:
                            total += product.square() / probes
        except (RuntimeError, NotImplementedError, AttributeError):
            return None
        if not all(torch.isfinite(total).all() for total in totals):
            return None
        return [total.sqrt() for total in totals]
