"""A ``pyro.infer.SVI`` whose step is an iteration of L-BFGS, for bounds without noise."""

import math
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from torch import Tensor

from zoo.base.callables import PyroCallable, modules
from zoo.base.random import seeded
from zoo.infer.losses.projected import ProjectedELBO
from zoo.infer.optim.coordinates import Coordinates, joined, place, units
from zoo.infer.optim.fused import ordered
from zoo.infer.optim.lbfgs import LBFGS

WALL = 10.0  # relative height of the value that replaces a loss which is not finite
LASTING = 25  # steps for which units are used again after a search that gained nothing


@dataclass(frozen=True)
class Point:
    """The loss at one value of the parameters.

    Attributes:
        loss: the negative bound.
        value: a copy of all parameters there (p,).
        gradient: of the loss (p,); zero where the loss does not depend on a parameter.
    """

    loss: float
    value: Tensor
    gradient: Tensor


class LineSearchSVI(SVI):
    r"""Stochastic variational inference without noise: every step is one iteration of L-BFGS on the same draws.

    ``step`` passes torch's L-BFGS a closure over ``loss_and_grads``. Parameters have different units: loadings have
    those of their columns, log scales have none. The search therefore uses coordinates in which the rows of the Hessian
    have about the same norm (:func:`~zoo.infer.optim.coordinates.units`), estimated at the steps ``optim.refresh``.

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
        Nocedal and Wright (2006), Numerical Optimization, ch. 3 and 7.
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
        self._unit: Tensor | None = None
        self._measured = 0  # the step before which the units were estimated
        self._coordinates: Coordinates | None = None
        self._last: Point | None = None
        self._given: list[tuple[int, Any]] = []  # the arguments of the last step and their versions
        self._held: Any = None  # the arguments themselves, so that no other object takes their place in memory
        self._before = math.inf
        self._exhausted = False  # whether a search from new coordinates, in new units, gained nothing

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One iteration. Returns the loss before it."""
        start = self._start(args, kwargs)
        moving = self._moving(start.loss)
        if not moving or (self._exhausted and start is self._last):
            self.steps += 1
            return start.loss
        coordinates = self._chosen(moving, args, kwargs)
        measured = self._measured == self.steps
        self.steps += 1
        self._exhausted = False
        if self._search(coordinates, start, args, kwargs):
            coordinates.curved = True
        else:
            self._exhausted, self._last = measured and self.steps > self.since, start
            self._coordinates = None  # forget the curvature, and without one, the units
            self._unit = self._unit if coordinates.curved else None
        self._forget_gradients()
        return start.loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss with the draws of the search."""
        with seeded(self.optim.seed):
            return float(super().evaluate_loss(*args, **kwargs))

    def get_state(self) -> dict[str, Any]:
        """Where the search stands: its coordinates, units and curvature, the last point, and what it has counted."""
        store, where, last = pyro.get_param_store(), self._coordinates, self._last
        return {
            "counts": (self.since, self.steps, self.evaluations, self._measured, self._before, self._exhausted),
            "names": [store.param_name(p) for p in self._params],
            "unit": self._unit,
            "coordinates": None
            if where is None
            else (len(where.params), where.unit, where.curved, where.optimizer.state_dict()),
            "last": None if last is None else (last.loss, last.value, last.gradient),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.since, self.steps, self.evaluations, self._measured, self._before, self._exhausted = state["counts"]
        own = dict(pyro.get_param_store().named_parameters())
        self._params = [own[name] for name in state["names"]]
        like = self._params[0] if self._params else torch.zeros(())
        self._unit = None if state["unit"] is None else state["unit"].to(like)
        self._last, self._coordinates = None, None
        if state["last"] is not None:
            loss, value, gradient = state["last"]
            self._last = Point(loss, value.to(like), gradient.to(like))
        if state["coordinates"] is not None:
            count, unit, curved, curvature = state["coordinates"]
            self._coordinates = Coordinates(self._params[:count], unit.to(like), self.optim.pt_optim_args)
            self._coordinates.optimizer.load_state_dict(curvature)
            self._coordinates.curved = curved

    def seen(self, *args: Any) -> None:
        """Take these for the arguments of the last step, whose loss and gradient are then not computed again."""
        self._given, self._held = _marks(args), (args, {})

    def _start(self, args: Any, kwargs: Any) -> Point:
        """The current point, which is not evaluated again if the last search ended there."""
        given = _marks((*args, *kwargs.values()))
        same, self._given, self._held = given == self._given, given, (args, kwargs)
        if same and self._last is not None and torch.equal(self._last.value, joined(self._params)):
            return self._last
        return self._evaluate(args, kwargs)

    def _evaluate(self, args: Any, kwargs: Any) -> Point:
        """The loss and its gradient at the current parameters, on the draws of the search."""
        self._forget_gradients()
        self.evaluations += 1
        with seeded(self.optim.seed), poutine.trace(param_only=True) as capture:
            loss = float(self.loss_and_grads(self.model, self.guide, *args, **kwargs))
        found = {site["value"].unconstrained() for site in capture.trace.nodes.values()}
        self._params += ordered(found.difference(self._params))
        return self._point(loss)

    def _point(self, loss: float) -> Point:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        return Point(loss, joined(self._params), joined(gradients))

    def _search(self, coordinates: Coordinates, start: Point, args: Any, kwargs: Any) -> bool:
        """One iteration from ``start``. Returns whether it changed the parameters; if not, they are as before."""
        params, unit, u = coordinates.params, coordinates.unit, coordinates.u
        wall = start.loss + WALL * (1.0 + abs(start.loss))
        known: Point | None = start

        def closure() -> float:
            nonlocal known
            point, known = known, None
            if point is None:
                place(params, start.value + unit * u.detach())
                point = self._guarded(wall, args, kwargs)
            u.grad = unit * point.gradient[: len(unit)]  # parameters that have just appeared wait for the next step
            self._last = point
            return point.loss

        with torch.no_grad(), warnings.catch_warnings():
            u.zero_()
            warnings.filterwarnings("ignore", "Encountered (NaN|[-+]?inf)")  # Pyro's, of a trial that is rejected
            coordinates.optimizer.step(closure)
        end = start.value + unit * u.detach()
        moved = bool(end.isfinite().all()) and not torch.equal(end, start.value)
        place(params, end if moved else start.value)  # a search may fail, or divide zero by zero
        return moved

    def _guarded(self, wall: float, args: Any, kwargs: Any) -> Point:
        """The current point; if its loss is too large or undefined, with a finite one, as the search interpolates."""
        if joined(self._params).isfinite().all():
            with suppress(torch.linalg.LinAlgError, ValueError):
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

    def _chosen(self, moving: list[Tensor], args: Any, kwargs: Any) -> Coordinates:
        """The coordinates of the last step, unless new ones are due; their units, unless they are of old."""
        due = self.steps in self.optim.refresh or self.steps == self.since
        size = sum(p.numel() for p in self._params)
        old, unit = self._coordinates, self._unit
        if old is not None and not due and len(old.unit) == size:
            return old
        if unit is None or due or len(unit) != size or self.steps >= self._measured + LASTING:
            with seeded(self.optim.seed):
                differentiable = partial(self.objective.differentiable_loss, self.model, self.guide, *args, **kwargs)
                unit = units(differentiable, self._params, moving, self.optim.probes)
            self._measured = self.steps
        self._unit, self._coordinates = unit, Coordinates(self._params, unit, self.optim.pt_optim_args)
        return self._coordinates

    def _forget_gradients(self) -> None:
        for p in self._params:
            p.grad = None


def _marks(values: Iterable[Any]) -> list[tuple[int, Any]]:
    """By what values are known again: which objects they are, and the versions of tensors."""
    return [(id(one), getattr(one, "_version", None)) for one in values]


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
        self._params = [p for module in modules(model) for p in module.parameters() if p.requires_grad]
        self._found: tuple[Tensor, Tensor] | None = None  # the parameters after search and solution, which may rotate

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One iteration. Returns the loss before it."""
        found = self._found
        if found is not None and torch.equal(joined(self._params), found[1]):
            place(self._params, found[0])  # undo the rotation, which the search's curvature does not know
        loss = super().step(*args, **kwargs)
        searched = joined(self._params)
        if found is not None and torch.equal(searched, found[0]):
            place(self._params, found[1])
        else:
            self.projection.solve()
            self._found = searched, joined(self._params)
        return loss

    def get_state(self) -> dict[str, Any]:
        """Where the search stands, and the parameters after it and after the solution."""
        return super().get_state() | {"found": self._found}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().set_state(state)
        like = self._params[0]
        self._found = None if state["found"] is None else (state["found"][0].to(like), state["found"][1].to(like))

    def _evaluate(self, args: Any, kwargs: Any) -> Point:
        """The bound at the best q and its gradient, which runs neither model nor guide."""
        self._forget_gradients()
        self.evaluations += 1
        return self._point(float(self.loss_and_grads(self.model, self.guide, *args, **kwargs)))
