"""How far are means, standard deviations and correlations from the exact ones?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.protocols import Conjugate, HasPosterior, Mixture
from zoo.diagnostics.checks.check import Case, Check, Finding, clean, grade
from zoo.diagnostics.guide.exact import PosteriorError, posterior_error
from zoo.infer.run import Fit
from zoo.posterior.engine import PointEstimate, reader, reading

MOMENTS = (0.1, 0.2)  # error of a mean in posterior standard deviations, of a log standard deviation, of a correlation
RESPONSIBILITIES = (0.02, 0.1)  # total variation distance
MOST = 0.95  # the share of rows within the reported error
MOST_ROWS = 10_000  # rows that are drawn to detect a point mass


@dataclass(frozen=True)
class PointMass:
    """A guide that is a point mass.

    Attributes:
        reason: the message that names guide and site.
    """

    reason: str


class Posterior(Check):
    """Moments of the guide against those of the closed-form posterior; a point estimate fails for every model."""

    name = "posterior"

    def measure(self, case: Case) -> PosteriorError | Tensor | PointMass:
        """Errors of the moments of every row, or for a mixture the total variation of the responsibilities (n,)."""
        run, x = case.run, case.x
        try:
            with reading(run, case.seed):
                source = reader(run, x)
                source.draw(next(source.chunks(MOST_ROWS))[1], 2)
        except PointEstimate as error:
            return PointMass(str(error))
        if isinstance(undecorated(run.model), Mixture):
            return _responsibilities(run, x)
        return posterior_error(run, x)

    def judge(self, measured: PosteriorError | Tensor | PointMass) -> Finding:
        """Thresholds for 95% of the rows: 0.1 and 0.2; for responsibilities 0.02 and 0.1. A point mass is bad."""
        if isinstance(measured, PointMass):
            reason = f"a point estimate, not a posterior: {measured.reason.split(': ')[0]}"
            advice = "Take a guide with a density, such as MeanField, FullRank or AutoNormal"
            return Finding(self.name, "bad", float("nan"), float("nan"), reason, advice)
        if isinstance(measured, Tensor):
            value, limits = float(measured.quantile(MOST)), RESPONSIBILITIES
            reason = (
                f"for 95% of the rows the responsibilities are within {clean(value):.2g} of the exact ones (total "
                "variation)"
            )
            advice = "Train longer, or take MeanField or Exact, whose responsibilities are in closed form"
        else:
            mean = float(measured.mean.quantile(MOST))
            spread = float(measured.deviation.log().abs().amax(-1).quantile(MOST))
            correlation = float(measured.correlation.abs().flatten(1).amax(-1).quantile(MOST))
            value, limits = max(mean, spread, correlation), MOMENTS
            factor = float(torch.tensor(spread, dtype=torch.float64).exp())
            reason = (
                f"for 95% of the rows the means are within {clean(mean):.2g} posterior standard deviations of the "
                f"exact ones, the standard deviations within a factor of {factor:.3g}, correlations within "
                f"{clean(correlation):.2g}"
            )
            advice = "Take a guide with correlations (FullRank), train longer, or take Exact"
        level = grade(value, limits)
        return Finding(self.name, level, clean(value), limits[1], reason, advice if level != "good" else "")


def _responsibilities(run: Fit, x: Tensor) -> Tensor:
    """The total variation distance between the probabilities of guide and posterior, per row (n,)."""
    model, guide = undecorated(run.model), undecorated(run.guide)
    if not isinstance(model, Conjugate):
        raise ValueError(f"{name_of(run.model)} has no closed-form posterior")
    if not isinstance(guide, HasPosterior):
        raise ValueError(f"{name_of(run.guide)} has no method posterior, which gives its probabilities")
    with reading(run, 0):
        ours: Any = guide.posterior(x)
        exact: Any = model.posterior(x)
        difference: Tensor = (ours.probs - exact.probs).abs()
        return 0.5 * difference.sum(-1)
