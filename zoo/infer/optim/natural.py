"""Natural gradients for guides made of exponential-family factors, behind Pyro's optimizer interface."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, modules, name_of
from zoo.base.protocols import FactorPart, HoldsFactor
from zoo.infer.optim.fused import Fused

OTHERS = 0.01  # learning rate of Adam for what is no factor
SWEEPS = 5  # of coordinate ascent that an epoch is worth while steps on minibatches approach the optimum
EPOCHS = 5  # over which the last of them are a mean


def decaying(delay: float = 10.0, forgetting: float = 0.7, hold: int = 0) -> Callable[[int], float]:
    r"""Rates :math:`\rho_t = (t + \tau)^{-\kappa}` of stochastic variational inference, with t = 0, 1, ... the step.

    With ``forgetting=1`` the rates after ``hold`` steps give all later minibatches the same weight: a mean over whole
    epochs, in which their noise cancels. :func:`paced` chooses these numbers.

    Args:
        delay: tau, at least 1: how much the first steps are held back.
        forgetting: kappa, in (0.5, 1]: within it the rates sum to infinity and their squares do not.
        hold: steps before the rates begin to fall.

    Raises:
        ValueError: a number out of range.

    References:
        Hoffman, Blei, Wang and Paisley (2013), Stochastic variational inference, JMLR 14; Robbins and Monro (1951).

    >>> schedule = decaying(delay=1.0, forgetting=0.5 + 0.5)
    >>> [schedule(step) for step in (0, 1, 3)]
    [1.0, 0.5, 0.25]
    """
    if not delay >= 1:
        raise ValueError(f"delay must be at least 1, got {delay!r}: a rate above 1 overshoots")
    if not 0.5 < forgetting <= 1:
        raise ValueError(f"forgetting must be in (0.5, 1], got {forgetting!r}: other rates do not converge")

    def schedule(step: int) -> float:
        return (max(step - hold, 0) + delay) ** -forgetting

    return schedule


def paced(steps: int, share: float) -> Callable[[int], float]:
    r"""Rates for a known number of steps on minibatches of a share b / n of the rows: a fast approach, then a mean.

    .. math:: \rho_t = \max\{(t + 10)^{-0.7},\, \min(1, 5 b / n)\} \quad (t < T / 2), \qquad
              \rho_t = \rho_{T/2}^{2 - 2t/T}\, \Big(\frac{b}{5 n}\Big)^{2t/T - 1} \quad (t \geq T / 2)

    In the first half of the T steps the rates fall as those of Robbins and Monro until an epoch is worth five sweeps of
    coordinate ascent, and stay there: rates that go on falling end the ascent before it has arrived. In the second
    they fall geometrically, until a factor is a mean over some five epochs, in which the noise of minibatches cancels.

    Args:
        steps: T, at least 1.
        share: b / n.

    >>> rates = paced(500, 0.1)
    >>> [round(rates(step), 3) for step in (0, 249, 250, 375, 500)]
    [0.5, 0.5, 0.5, 0.1, 0.02]
    """
    half, last = steps / 2, min(1.0, share / EPOCHS)
    falling, least = decaying(), min(1.0, SWEEPS * share)

    def schedule(step: int) -> float:
        rate = max(falling(min(step, int(half))), least)
        return rate if step < half else rate * (last / rate) ** min(step / half - 1, 1.0)

    return schedule


class NaturalGradient(PyroOptim):
    r"""Natural-gradient steps for every exponential-family factor of a guide, another optimizer for the rest.

    .. math:: \eta \leftarrow \eta - \rho\, F(\eta)^{-1} \nabla_\eta \mathrm{loss}

    with :math:`\eta` the natural parameters of a factor and F its Fisher information. On the exact bound of a
    conditionally conjugate model (:class:`~zoo.infer.losses.closed_form.ClosedFormELBO`), a step of length one is the
    factor's update in coordinate ascent.

    Where a step sees all rows, it moves one factor, in turn, in the order of the guide's sites with those of the rows
    first: a round of steps of length one is a sweep of coordinate ascent (without rotations), and the bound never
    falls. (Moved at once from the gradient at one point, two factors that depend on each other overshoot.) Where it
    sees a minibatch, it moves all shared factors at once, and the factors of the rows at hand alone: stochastic
    variational inference. There :func:`zoo.fit` first sets the rows' factors to their optimum and then takes the
    gradient of the shared ones (:class:`LocalFirstSVI`); in plain ``pyro.infer.SVI`` both move from one gradient, so
    that the shared factors see every row as its last visit left it, and get no further than a sweep or so per epoch. A
    step that would leave the domain of a factor is halved until it does not.

    Without the rotations of :func:`zoo.cavi`, a linear model with more factors than the data need creeps along a ridge
    towards a lesser maximum: take :func:`zoo.cavi`, or fewer factors.

    Args:
        guide: a guide with parts of :mod:`guides.families`, such as ``guides.MeanField(model, x, family="conjugate")``.
        rate: the length of the steps, or a schedule: a map from the number of the step, or of the round of steps
            where factors move in turn, to it. None: 1 where a step sees all rows; on minibatches :func:`paced` where
            the number of steps is known, :func:`decaying` otherwise. A loss that draws at random, such as
            ``Trace_ELBO``, needs a decaying schedule of its own.
        local_rate: that of the factors of the rows on minibatches; 1 sets them to their optimum given the others.
        others: the optimizer of parameters that belong to no factor, those of the model included; None takes a fused
            Adam with the learning rate 0.01.
        steps: the number of steps that will be taken, which :func:`zoo.fit` sets; None if unknown.

    Raises:
        ValueError: the guide has no such factor, or one whose Fisher information depends on another factor's draws.

    References:
        Amari (1998), Natural gradient works efficiently in learning, Neural Computation 10; Hoffman, Blei, Wang and
        Paisley (2013), Stochastic variational inference, JMLR 14.
    """

    def __init__(
        self,
        guide: PyroCallable,
        rate: float | Callable[[int], float] | None = None,
        *,
        local_rate: float = 1.0,
        others: PyroOptim | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(torch.optim.Adam, {"lr": OTHERS})
        self.parts = _parts(guide)
        for name, value in (("rate", rate), ("local_rate", local_rate)):
            if isinstance(value, int | float) and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value!r}: a longer step overshoots the optimum")
        self.rate, self.local_rate = rate, local_rate
        self.others = Fused(torch.optim.Adam, {"lr": OTHERS}) if others is None else others
        self.steps = 0
        self._begun, self._planned = 0, steps  # the step at which the schedule begins, and its length
        self._largest = 0  # rows of a minibatch so far

    def pace(self, steps: int) -> None:
        """Lay out the default schedule on minibatches for ``steps`` steps from here on."""
        self._begun, self._planned = self.steps, steps

    def local_step(self) -> None:
        """Move the factors of the rows of a minibatch alone; no step is counted."""
        for part in self.parts:
            rows = _rows(part)
            if rows is not None and any(p.grad is not None for p in part.parameters()):
                part.natural_step(self.local_rate * len(rows) / _count(part), rows)

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One step: a factor in turn, or on a minibatch all shared factors and those of its rows."""
        present = set(params)
        held = {p for part in self.parts for p in part.parameters()}
        moving = [part for part in self.parts if any(p.grad is not None for p in part.parameters())]
        if any(_rows(part) is not None for part in moving):
            self._minibatch(moving)
        elif moving:
            number, turn = divmod(self.steps, len(moving))
            moving[turn].natural_step(self._rate(number, 1.0))
        self.steps += 1
        if rest := present - held:
            self.others(rest, *args, **kwargs)
        for p in held:
            p.grad = None

    def _minibatch(self, moving: list[Any]) -> None:
        """The rows' factors, whose terms the loss counts n / b times, and all shared ones.

        A last batch of few rows, whose gradient is the noisier, moves the shared factors by as much less.
        """
        size, count = max((len(rows), _count(part)) for part in moving if (rows := _rows(part)) is not None)
        self._largest = max(self._largest, size)
        schedule = decaying() if self._planned is None else paced(self._planned, self._largest / count)
        shared = self._rate(self.steps, schedule(self.steps - self._begun)) * size / self._largest
        self.local_step()
        for part in moving:
            if _rows(part) is None:
                part.natural_step(shared)

    def _rate(self, number: int, default: float) -> float:
        if self.rate is None:
            return default
        return self.rate(number) if callable(self.rate) else self.rate

    def get_state(self) -> dict[str, Any]:
        """The steps taken, the schedule, the rows of the largest minibatch, and the state of the other optimizer."""
        own = {"steps": self.steps, "begun": self._begun, "planned": self._planned, "largest": self._largest}
        return {**own, "others": self.others.get_state()}

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that ``get_state`` gave."""
        self.steps, self._largest = state_dict["steps"], state_dict["largest"]
        self._begun, self._planned = state_dict["begun"], state_dict["planned"]
        self.others.set_state(state_dict["others"])


class LocalFirstSVI(SVI):
    """Stochastic variational inference with two gradients per minibatch: for its rows' factors, then the shared ones.

    Args:
        model, guide, loss: as for ``pyro.infer.SVI``.
        optim: a :class:`NaturalGradient`.

    References:
        Hoffman, Blei, Wang and Paisley (2013), Stochastic variational inference, JMLR 14, figure 4.
    """

    optim: NaturalGradient

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Move the factors of the rows, then all shared ones; returns the loss between the two."""
        self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self.optim.local_step()
        for part in self.optim.parts:
            part.zero_grad()
        return float(super().step(*args, **kwargs))


def _rows(part: nn.Module) -> Tensor | None:
    """The numbers of the rows of a minibatch for which a local part was last asked; None for all rows, or no rows."""
    rows: Tensor | None = getattr(part, "rows", None)
    return None if rows is None or len(rows) == _count(part) else rows


def _count(part: nn.Module) -> int:
    """The number of rows that a local part holds."""
    return len(next(part.parameters()))


def _parts(guide: PyroCallable) -> list[Any]:
    """The factors of a guide, those of the rows first.

    Raises:
        ValueError: there is none, or one that has no Fisher information of its own.
    """
    found = {id(m): (name, m) for module in modules(guide) for name, m in module.named_modules()}
    parts: list[Any] = []
    for name, part in found.values():
        if isinstance(part, FactorPart):
            parts.append(part)
        elif isinstance(part, HoldsFactor):
            raise ValueError(
                f"NaturalGradient cannot serve the factor '{name}' of {name_of(guide)}: a Gaussian coupled to the "
                "precisions has a Fisher information that depends on their factor. Give the model independent means "
                "(means='independent'), or train by zoo.cavi, or by ClosedFormELBO with the default optimizer"
            )
    if not parts:
        raise ValueError(
            f"NaturalGradient finds no exponential-family factor in {name_of(guide)}: use guides.MeanField(model, x, "
            "family='conjugate') on a conditionally conjugate model, or another optimizer such as pyro.optim.Adam"
        )
    return sorted(parts, key=lambda part: not getattr(part, "local", False))
