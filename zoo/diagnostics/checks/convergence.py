"""Had training converged?"""

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base.callables import undecorated, unwrapped
from zoo.base.protocols import Conjugate
from zoo.diagnostics.checks.check import Case, Check, Finding, Level, Picture, clean, grade
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.convergence import assess
from zoo.infer.expectation_maximisation import em
from zoo.infer.run import Fit

STEPS = 100  # of EM, continued from the fitted model
GAIN = (1e-3, 1e-2)  # nats per row that these steps gain


@dataclass(frozen=True, eq=False)
class RemainingGain:
    """What further training would gain.

    Attributes:
        value: the gain of the ELBO or the log-likelihood in nats per row.
        reason: how it was measured, with the number.
        level: its grade.
        threshold: the threshold of ``"bad"``.
        run: the pair.
        optimum: the mean of log p(x) over the rows at the fitted parameters, if it has a closed form.
    """

    value: float
    reason: str
    level: Level
    threshold: float
    run: Fit
    optimum: float | None


class Convergence(Check):
    """For a conjugate model EM continues from a copy of it; otherwise the training record is assessed.

    The record is assessed by :func:`zoo.infer.convergence.assess`, the rule by which :func:`zoo.fit` stops.
    """

    name = "convergence"

    def measure(self, case: Case) -> RemainingGain:
        """The gain of further training in nats per row."""
        run, x = case.run, case.x
        rows = run.settings.get("rows", len(x))
        if rows != len(x):
            raise ValueError(f"the run was fitted to {rows} rows, these are {len(x)}: pass the rows it was fitted to")
        module, model = unwrapped(run.model), undecorated(run.model)
        own = [p.requires_grad for p in module.parameters()] if isinstance(module, nn.Module) else []
        if own and not any(own):
            raise ValueError("the model was held fixed, and only the guide was trained")
        if isinstance(model, Conjugate) and all(own):
            return _by_em(run, model, x)
        if run.training is None:
            raise ValueError("there is no training record: pass one, zoo.Fit(model, guide, training=...)")
        found = assess(run.training)
        if math.isnan(found.left):
            raise ValueError(found.reason)
        level: Level = "good" if found.converged else "careful" if found.left <= 10 * GAIN[1] else "bad"
        reason = found.reason + _ended(run, level)
        return RemainingGain(clean(max(0.0, found.left)), reason, level, 10 * GAIN[1], run, None)

    def judge(self, measured: RemainingGain) -> Finding:
        """Thresholds in nats per row: 0.001 and 0.01 for EM, 0.1 for a loss curve that has not settled."""
        advice = "Train longer: omit steps=, or increase it" if measured.level != "good" else ""
        return Finding(self.name, measured.level, measured.value, measured.threshold, measured.reason, advice)

    def draw(self, measured: RemainingGain, plots: ModuleType) -> Iterator[Picture]:
        """The loss curve."""
        training = measured.run.training
        if training is None or not len(training.losses):
            return
        line = "; the line is log p(x) at the fitted parameters, an upper limit of the ELBO"
        caption = f"The ELBO per row at every step{line if measured.optimum is not None else ''}."
        yield Picture("Training", caption, plots.loss(measured.run, optimum=measured.optimum))


def _by_em(run: Fit, model: Any, x: Tensor) -> RemainingGain:
    """The gain of further steps of EM.

    Raises:
        ValueError: EM fails at the fitted parameters.
    """
    with torch.no_grad():
        start = float(model.log_marginal(x).double().mean())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboundedLikelihood)  # the check of collapse reports it
            end = float(em(copy.deepcopy(model), x, steps=STEPS)[-1]) / len(x)
    except FloatingPointError as error:
        raise ValueError(f"EM cannot continue from the fitted model: {error}") from None
    value = clean(max(0.0, end - start))
    level = grade(value, GAIN)
    gain = f"gains {value:.2g} nats per row" if value else "gains nothing"
    reason = f"EM, continued for {STEPS} steps from the fitted model, {gain}{_ended(run, level)}"
    return RemainingGain(value, reason, level, GAIN[1], run, start)


def _ended(run: Fit, level: Level) -> str:
    """Why training ended, for a level that is not good."""
    stopped = "" if run.training is None or level == "good" else run.training.stopped
    return f"; training ended: {stopped}" if stopped else ""
