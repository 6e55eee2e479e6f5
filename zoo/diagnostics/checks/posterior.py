"""How far are means, deviations and correlations from the exact ones?"""

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

AMISS = (0.1, 0.2)  # of a mean, in posterior standard deviations; of the logarithm of a ratio of two; of a correlation
MISTAKEN = (0.02, 0.1)  # total variation between responsibilities
MOST = 0.95  # of the rows
MOST_ROWS = 10_000  # that show whether the guide has a spread


@dataclass(frozen=True)
class PointMass:
    """A guide without a spread.

    Attributes:
        reason: names the guide and the site.
    """

    reason: str


class Posterior(Check):
    """Moments of the guide beside the exact posterior's, where the model has a closed form; never a point estimate."""

    name = "posterior"

    def measure(self, case: Case) -> PosteriorError | Tensor | PointMass:
        """The error of every row: of moments, or the total variation of responsibilities (n,)."""
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
        """Thresholds 0.1 and 0.2 on 95% of the rows; for responsibilities 0.02 and 0.1. A point mass is bad."""
        if isinstance(measured, PointMass):
            reason = f"a point estimate, no posterior: {measured.reason.split(': ')[0]}"
            advice = "Take a guide with a spread, such as MeanField, FullRank or AutoNormal"
            return Finding(self.name, "bad", float("nan"), float("nan"), reason, advice)
        if isinstance(measured, Tensor):
            value, limits = float(measured.quantile(MOST)), MISTAKEN
            reason = (
                f"on 95% of the rows the responsibilities are within {clean(value):.2g} of the exact ones "
                "(total variation)"
            )
            advice = "Train longer, or take MeanField or Exact, which have them in closed form"
        else:
            mean = float(measured.mean.quantile(MOST))
            spread = float(measured.deviation.log().abs().amax(-1).quantile(MOST))
            correlation = float(measured.correlation.abs().flatten(1).amax(-1).quantile(MOST))
            value, limits = max(mean, spread, correlation), AMISS
            factor = float(torch.tensor(spread, dtype=torch.float64).exp())
            reason = (
                f"on 95% of the rows the means are within {clean(mean):.2g} posterior standard deviations of the exact "
                f"ones, the standard deviations within a factor of {factor:.3g}, correlations within "
                f"{clean(correlation):.2g}"
            )
            advice = "Use a guide with correlations, train longer, or take Exact"
        level = grade(value, limits)
        return Finding(self.name, level, clean(value), limits[1], reason, advice if level != "good" else "")


def _responsibilities(run: Fit, x: Tensor) -> Tensor:
    """The total variation between the guide's and the posterior's probabilities of every row (n,)."""
    model, guide = undecorated(run.model), undecorated(run.guide)
    if not isinstance(model, Conjugate):
        raise ValueError(f"{name_of(run.model)} has no closed-form posterior")
    if not isinstance(guide, HasPosterior):
        raise ValueError(f"{name_of(run.guide)} does not offer its probabilities (a method posterior)")
    with reading(run, 0):
        ours: Any = guide.posterior(x)
        exact: Any = model.posterior(x)
        apart: Tensor = (ours.probs - exact.probs).abs()
        return 0.5 * apart.sum(-1)
