"""How far is the bound below log p(x)?"""

from collections.abc import Iterator
from types import ModuleType

import torch

from zoo.diagnostics.checks.check import ROUNDING, Case, Check, Finding, Level, Picture, grade
from zoo.posterior.evaluation import Evaluation

LOST = (0.05, 0.5)  # nats per row
ERRORS = 5.0  # standard errors by which an exact gap may be negative
KHAT = 0.7  # above, an importance-weighted log p(x) is too low by an unknown amount


class Gap(Check):
    """The Kullback-Leibler divergence of the guide from the posterior: exact for a conjugate model.

    For other models log p(x) is estimated by importance weighting, which gives a lower estimate.
    """

    name = "gap"

    def measure(self, case: Case) -> Evaluation:
        """Bound and log marginal likelihood."""
        return case.evaluation

    def judge(self, measured: Evaluation) -> Finding:
        """Thresholds 0.05 and 0.5 nats per row, beyond two standard errors; an exact gap below 0 is bad."""
        s = measured.summary()
        gap, error, exact = s["gap"], s["gap_se"], measured.estimator == "exact"
        size = max(1.0, abs(s["elbo"]), abs(s["log_marginal"]))
        rounding = max(ROUNDING, 100 * torch.finfo(measured.elbo.dtype).eps) * size
        gap = gap if abs(gap) > rounding else 0.0
        if exact and gap < -ERRORS * error:
            reason = f"the bound is {-gap:.3g} nats per row above log p(x), which no bound can be"
            advice = (
                "The guide's density is not that of its draws: look for a point mass or a wrong change of variables"
            )
            return Finding(self.name, "bad", gap, LOST[1], reason, advice)
        level: Level = grade(gap - 2 * error, LOST)
        kind = "" if exact else f" at least, by {measured.estimator}"
        reason = f"the bound is {gap:.3g} nats per row below log p(x){kind}"
        advice = ""
        if level != "good":
            advice = "A richer guide closes it: FullRank, Amortized(covariance='full'), Flow, or Exact where it serves"
        elif not exact and measured.shared is not None and measured.shared.khat > KHAT:
            level = "careful"
            reason += f", but the weights have k-hat {measured.shared.khat:.2f}, so that log p(x) may be far higher"
            advice = "Compare with zoo.nuts, or take a guide closer to the posterior"
        return Finding(self.name, level, gap, LOST[1], reason, advice)

    def draw(self, measured: Evaluation, plots: ModuleType) -> Iterator[Picture]:
        """The gap of every row, where it splits into rows."""
        if measured.shared is None:
            yield Picture(
                "Gap of every row",
                "How far the bound is below log p(x): the Kullback-Leibler divergence of the guide from the posterior.",
                plots.row_gaps(measured),
            )
