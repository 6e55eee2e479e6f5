"""A ``pyro.infer.SVI`` whose step is an iteration of L-BFGS, for bounds without noise."""

import math
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from torch import Tensor

from zoo.base.callables import PyroCallable, modules
from zoo.base.random import seeded
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.optim.fused import ordered
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.running import Copy, put_back

FLOOR = 1e-6  # lower bound on row norms of the Hessian, relative to the largest
WALL = 10.0  # relative height of the value that replaces a loss which is not finite


@dataclass(frozen=True)
class Point:
    """The loss and its gradients at one value of the parameters.

    Attributes:
        loss: the negative bound.
        values: copies of the parameters there, by parameter.
        gradients: those of the loss, by parameter; zero where the loss does not depend on it.
    """

    loss: float
    values: dict[Tensor, Tensor]
    gradients: dict[Tensor, Tensor]

    @property
    def here(self) -> bool:
        """Whether the parameters still have these values."""
        return all(torch.equal(p, value) for p, value in self.values.items())


class Coordinates:
    """The coordinates u = p / unit of the search over parameters p, and torch's L-BFGS on them.

    Args:
        params: the parameters that are optimised; all others are fixed.
        units: one positive tensor per parameter, of its shape.
        options: of ``torch.optim.LBFGS``.
    """

    def __init__(self, params: list[Tensor], units: list[Tensor], options: dict[str, Any]) -> None:
        self.params, self.units = params, units
        self.scaled = [(p / unit).detach().contiguous().requires_grad_() for p, unit in zip(params, units, strict=True)]
        self.optimizer = torch.optim.LBFGS(self.scaled, **options)

    @torch.no_grad()
    def read(self) -> None:
        """Set the coordinates from the parameters."""
        for u, p, unit in zip(self.scaled, self.params, self.units, strict=True):
            u.copy_(p / unit)

    @torch.no_grad()
    def write(self) -> None:
        """Set the parameters from the coordinates."""
        for u, p, unit in zip(self.scaled, self.params, self.units, strict=True):
            p.copy_(u * unit)

    def pull(self, gradients: dict[Tensor, Tensor]) -> None:
        """Set the coordinates' gradients from those of the parameters."""
        for u, p, unit in zip(self.scaled, self.params, self.units, strict=True):
            u.grad = (gradients[p] * unit).contiguous()

    @property
    def finite(self) -> bool:
        """Whether all parameters are finite."""
        return all(bool(torch.isfinite(p).all()) for p in self.params)


class LineSearchSVI(SVI):
    r"""Stochastic variational inference without noise: every step is one iteration of L-BFGS on the same draws.

    ``step`` passes torch's L-BFGS a closure over ``loss_and_grads``. Parameters have different units: loadings have
    those of their columns, log scales have none. The search therefore uses equilibrated coordinates
    :math:`u_i = p_i \sqrt{D_i}`, with :math:`D_i` the norm of row i of the Hessian, estimated from a few Hessian-vector
    products at the steps ``optim.refresh``.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        optim: the options of the search.
        loss: any ``ELBO`` whose value is a smooth function of the parameters for fixed draws.
        late: parameters that are fixed at first. With those of the model, variational EM begins with an E-step, as a
            guide that does not fit the model yet would lead it away from its start.
        since: the last step before which they are fixed; a step that gains nothing releases them earlier.

    Attributes:
        steps: iterations taken.
        evaluations: evaluations of loss and gradient.

    Example:
        >>> import guides, pyro, zoo
        >>> x = zoo.data.load("iris").x.double()
        >>> model = zoo.PPCA(4, 1).double()
        >>> with pyro.get_param_store().scope():
        ...     svi = LineSearchSVI(model, guides.Exact(model), LBFGS(), pyro.infer.Trace_ELBO())
        ...     losses = [svi.step(x) for _ in range(20)]
        >>> losses == sorted(losses, reverse=True)
        True

    References:
        Nocedal and Wright (2006), Numerical Optimization, ch. 3 and 7; Dauphin, de Vries and Bengio (2015),
        Equilibrated adaptive learning rates for non-convex optimization, NIPS, for the row norms.
    """

    def __init__(
        self,
        model: PyroCallable,
        guide: PyroCallable,
        optim: LBFGS,
        loss: ELBO,
        *,
        late: Iterable[Tensor] = (),
        since: int = 0,
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self.objective = loss
        self.since = since
        self.steps = 0
        self.evaluations = 0
        self._late = {id(p) for p in late}
        self._params: list[Tensor] = []  # all parameters, including those fixed at first
        self._coordinates: Coordinates | None = None
        self._last: Point | None = None
        self._given: tuple[tuple[Any, Any], ...] = ()
        self._before = math.inf
        self._exhausted = False  # whether the last search from new coordinates gained nothing

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One iteration. Returns the loss before it."""
        start = self._start(args, kwargs)
        moving = self._moving(start.loss)
        if not moving or (self._exhausted and start is self._last):
            self.steps += 1
            return start.loss
        new = self._coordinates is None or self.steps in self.optim.refresh or self.steps == self.since
        if new:
            units = self._units(moving, args, kwargs)
            self._coordinates = Coordinates(moving, units, self.optim.pt_optim_args)
        self.steps += 1
        assert self._coordinates is not None
        self._exhausted = False
        if not self._search(self._coordinates, start, args, kwargs):
            self._exhausted, self._last = new and self.steps > self.since, start
            self._coordinates = None  # forget the curvature
        self._forget_gradients()
        return start.loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss with the draws of the search."""
        with seeded(self.optim.seed):
            return float(super().evaluate_loss(*args, **kwargs))

    def _start(self, args: Any, kwargs: Any) -> Point:
        """The current point, which is not evaluated again if the last search ended there."""
        given = tuple((a, getattr(a, "_version", None)) for a in (*args, *kwargs.values()))
        same = len(given) == len(self._given) and all(
            a is b and v == w for (a, v), (b, w) in zip(given, self._given, strict=True)
        )
        self._given = given
        if same and self._last is not None and self._last.here:
            return self._last
        return self._evaluate(args, kwargs)

    def _evaluate(self, args: Any, kwargs: Any) -> Point:
        """The loss and its gradients at the current parameters, on the draws of the search."""
        self._forget_gradients()
        self.evaluations += 1
        with seeded(self.optim.seed), poutine.trace(param_only=True) as capture:
            loss = float(self.loss_and_grads(self.model, self.guide, *args, **kwargs))
        found = {site["value"].unconstrained() for site in capture.trace.nodes.values()}
        if not found <= set(self._params):
            self._params = ordered({*self._params, *found})
        return self._point(loss)

    def _point(self, loss: float) -> Point:
        values = {p: p.detach().clone() for p in self._params}
        gradients = {p: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._params}
        return Point(loss, values, gradients)

    def _search(self, coordinates: Coordinates, start: Point, args: Any, kwargs: Any) -> bool:
        """One iteration from ``start``. Returns whether it changed the parameters; if not, they are as before."""
        wall = start.loss + WALL * (1.0 + abs(start.loss))
        known: Point | None = start

        def closure() -> float:
            nonlocal known
            point, known = known, None
            if point is None:
                coordinates.write()
                point = self._guarded(coordinates, wall, args, kwargs)
            coordinates.pull(point.gradients)
            self._last = point
            return point.loss

        coordinates.read()
        coordinates.optimizer.step(closure)
        coordinates.write()
        moved = any(not torch.equal(p, start.values[p]) for p in coordinates.params)
        if coordinates.finite and moved:
            return True
        with torch.no_grad():  # the search failed, or divided zero by zero
            for p in coordinates.params:
                p.copy_(start.values[p])
        return False

    def _guarded(self, coordinates: Coordinates, wall: float, args: Any, kwargs: Any) -> Point:
        """The current point; if its loss is too large or undefined, with a finite one, as the search interpolates."""
        if coordinates.finite:
            with suppress(torch.linalg.LinAlgError, ValueError), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Encountered (NaN|[-+]?inf)")  # Pyro's, of a trial that is rejected
                point = self._evaluate(args, kwargs)
                if -math.inf < point.loss < wall:
                    return point
        self._forget_gradients()
        return self._point(wall)

    def _moving(self, loss: float) -> list[Tensor]:
        """The parameters to optimise: at first without the late ones, as long as that raises the bound."""
        if self.steps < self.since:
            gain, self._before = self._before - loss, loss
            early = [p for p in self._params if id(p) not in self._late]
            if early and gain > 1e-9 * max(1.0, abs(loss)):
                return early
            self.since = self.steps
        return self._params

    def _units(self, params: list[Tensor], args: Any, kwargs: Any) -> list[Tensor]:
        """The inverse square roots of the Hessian's row norms; 1 where the loss has no second derivative."""
        norms = self._row_norms(params, args, kwargs) if self.optim.probes else None
        if norms is None:
            return [torch.ones_like(p) for p in params]
        top = max(float(norm.max()) for norm in norms)
        return [norm.clamp_min(FLOOR * top).rsqrt() for norm in norms]

    def _row_norms(self, params: list[Tensor], args: Any, kwargs: Any) -> list[Tensor] | None:
        """The norms of the Hessian's rows, from Rademacher probes; None where the loss has no second derivative."""
        probes = self.optim.probes
        totals = [torch.zeros_like(p) for p in params]
        try:
            with seeded(self.optim.seed):
                loss = self.objective.differentiable_loss(self.model, self.guide, *args, **kwargs)
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

    def _forget_gradients(self) -> None:
        for p in self._params:
            p.grad = None


class ProjectedSVI(LineSearchSVI):
    """Variational EM with the E-step in closed form: the search moves the model's parameters, and the guide follows.

    After every step the guide's parameters are at the best q for those of the model.

    Args:
        model: a module.
        guide: a guide whose best q has a closed form.
        optim: the options of the search.
        loss: the bound at the best q.
    """

    def __init__(self, model: PyroCallable, guide: PyroCallable, optim: LBFGS, loss: ProjectedELBO) -> None:
        super().__init__(model, guide, optim, loss)
        self.projection = loss.projection
        self._searched: Copy = []  # the model's parameters as the search left them
        self._left: Copy = []  # and as the solution left them, which may rotate them
        self._params = [p for module in modules(model) for p in module.parameters() if p.requires_grad]

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One iteration. Returns the loss before it."""
        solved = bool(self._left) and all(torch.equal(p, left) for p, left in self._left)
        if solved:  # undo the rotation of the last solution, which the search's curvature does not know
            put_back(self._searched)
        loss = super().step(*args, **kwargs)
        if solved and all(torch.equal(p, value) for p, value in self._searched):
            put_back(self._left)
            return loss
        self._searched = [(p, p.detach().clone()) for p in self._params]
        self.projection.solve()
        self._left = [(p, p.detach().clone()) for p in self._params]
        return loss

    def _evaluate(self, args: Any, kwargs: Any) -> Point:
        """The bound at the best q and its gradients, which runs neither model nor guide."""
        self._forget_gradients()
        self.evaluations += 1
        return self._point(float(self.loss_and_grads(self.model, self.guide, *args, **kwargs)))
