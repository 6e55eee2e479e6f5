"""How far is the ELBO below log p(x)?"""

from collections.abc import Iterator
from types import ModuleType

import torch

from zoo.diagnostics.checks.check import ROUNDING, Case, Check, Finding, Level, Picture, grade
from zoo.posterior.evaluation import Evaluation

LOST = (0.05, 0.5)  # nats per row
ERRORS = 5.0  # standard errors below 0 at which an exact gap is impossible
KHAT = 0.7  # above it, an importance-weighted log p(x) is too low by an unknown amount


class Gap(Check):
    """The gap log p(x) - ELBO = KL(q || p(z | x)): exact for a conjugate model.

    For other models log p(x) is estimated by importance weighting, so that the gap is too small on average.
    """

    name = "gap"

    def measure(self, case: Case) -> Evaluation:
        """ELBO and log marginal likelihood."""
        return case.evaluation

    def judge(self, measured: Evaluation) -> Finding:
        """Thresholds 0.05 and 0.5 nats per row, beyond two standard errors; an exact gap below 0 is bad."""
        s = measured.summary()
        gap, error, exact = s["gap"], s["gap_se"], measured.estimator == "exact"
        size = max(1.0, abs(s["elbo"]), abs(s["log_marginal"]))
        rounding = max(ROUNDING, 100 * torch.finfo(measured.elbo.dtype).eps) * size
        gap = gap if abs(gap) > rounding else 0.0
        if exact and gap < -ERRORS * error:
            reason = f"the ELBO is {-gap:.3g} nats per row above log p(x), which is impossible for a lower bound"
            advice = (
                "The guide's density does not match its draws: look for a point mass or a wrong Jacobian of a transform"
            )
            return Finding(self.name, "bad", gap, LOST[1], reason, advice)
        level: Level = grade(gap - 2 * error, LOST)
        kind = "" if exact else f", estimated by {measured.estimator}"
        least = "" if exact else "at least "
        reason = f"the ELBO is {least}{gap:.3g} nats per row below log p(x){kind}"
        if (shared := measured.shared) is not None:
            reason += f" (over all rows: ELBO {shared.total:.6g}, log p(X) {shared.log_marginal:.6g})"
        advice = ""
        if level != "good":
            advice = "Take a richer guide: FullRank, Amortized(covariance='full'), Flow, or Exact where available"
        elif not exact and measured.shared is not None and measured.shared.khat > KHAT:
            level = "careful"
            reason += f", but k-hat of the weights is {measured.shared.khat:.2f}, so log p(x) may be far higher"
            advice = "Compare with zoo.nuts, or take a richer guide"
        return Finding(self.name, level, gap, LOST[1], reason, advice)

    def draw(self, measured: Evaluation, plots: ModuleType) -> Iterator[Picture]:
        """The gap of every row, if it is a sum over rows."""
        if measured.shared is None:
            yield Picture(
                "Gap of every row",
                "log p(x) - ELBO of every row: the Kullback-Leibler divergence of the guide from the posterior.",
                plots.row_gaps(measured),
            )
