"""Has training ended?"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from zoo.base.callables import undecorated, unwrapped
from zoo.base.protocols import Conjugate
from zoo.diagnostics.checks.check import Case, Check, Finding, Level, Picture, clean, grade
from zoo.infer.convergence import assess
from zoo.infer.expectation_maximisation import em
from zoo.infer.run import Fit

CLIMB = 100  # steps of EM that show what training has left
LEFT = (1e-3, 1e-2)  # nats per row that EM still gains


@dataclass(frozen=True, eq=False)
class Left:
    """What training has left.

    Attributes:
        value: nats per row that the bound or the likelihood still gains.
        reason: how that was seen, with the number.
        level: of the value.
        threshold: where ``"bad"`` begins.
        run: the pair.
        optimum: the mean of log p(x) over the rows at the fitted parameters, where it is exact.
    """

    value: float
    reason: str
    level: Level
    threshold: float
    run: Fit
    optimum: float | None


class Convergence(Check):
    """For a conjugate model, EM goes on from a copy of it; otherwise the record of the training is assessed.

    The rule for the record is :func:`zoo.infer.convergence.assess`, which also tells :func:`zoo.fit` when to stop.
    """

    name = "convergence"

    def measure(self, case: Case) -> Left:
        """How much the bound or the likelihood can still be raised, in nats per row."""
        run, x = case.run, case.x
        rows = run.settings.get("rows", len(x))
        if rows != len(x):
            raise ValueError(f"the run was fitted to {rows} rows, these are {len(x)}: pass the rows it was fitted to")
        module, model = unwrapped(run.model), undecorated(run.model)
        own = [p.requires_grad for p in module.parameters()] if isinstance(module, nn.Module) else []
        if own and not any(own):
            raise ValueError("the model was held as it is, and only the guide trained")
        if isinstance(model, Conjugate) and all(own):
            with torch.no_grad():
                start = float(model.log_marginal(x).double().mean())
            try:
                end = float(em(copy.deepcopy(model), x, steps=CLIMB)[-1]) / len(x)
            except FloatingPointError as error:
                raise ValueError(f"EM cannot go on from here: {error}") from None
            value = clean(max(0.0, end - start))
            gain = f"gains {value:.2g} nats per row" if value else "gains nothing"
            reason = f"EM, continued for {CLIMB} steps from the fitted model, {gain}"
            return Left(value, reason, grade(value, LEFT), LEFT[1], run, start)
        if run.training is None:
            raise ValueError("there is no record of the training: zoo.Fit(model, guide, training=...) takes one")
        found = assess(run.training)
        if math.isnan(found.left):
            raise ValueError(found.reason)
        level: Level = "good" if found.converged else "careful" if found.left <= 10 * LEFT[1] else "bad"
        return Left(clean(max(0.0, found.left)), found.reason, level, 10 * LEFT[1], run, None)

    def judge(self, measured: Left) -> Finding:
        """Thresholds in nats per row: 0.001 and 0.01 for EM, 0.1 for a loss curve that has not settled."""
        advice = "Train longer: leave steps= out, or raise it" if measured.level != "good" else ""
        return Finding(self.name, measured.level, measured.value, measured.threshold, measured.reason, advice)

    def draw(self, measured: Left, plots: ModuleType) -> Iterator[Picture]:
        """The loss curve."""
        training: Any = measured.run.training
        if training is None or not len(training.losses):
            return
        line = "; the line is log p(x) at the fitted parameters, which the bound cannot exceed"
        caption = f"The bound per row at every step{line if measured.optimum is not None else ''}."
        yield Picture("Training", caption, plots.loss(measured.run, optimum=measured.optimum))
