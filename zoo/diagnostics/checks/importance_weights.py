"""Can importance weights turn the guide's draws into the posterior?"""

from collections.abc import Iterator
from types import ModuleType

from zoo.diagnostics.checks.check import Case, Check, Finding, Level, Picture, grade
from zoo.posterior.evaluation import Evaluation

KHAT = (0.02, 0.10)  # share of rows with k-hat > 0.7
KHAT_SHARED = (0.7, 1.0)  # k-hat of the shared sites; above 1 the mean of the weights is infinite
ORDER: tuple[Level, ...] = ("bad", "careful", "good", "unknown")


class ImportanceWeights(Check):
    """k-hat of the weights p(x, z) / q(z | x): one per row, and one for all shared sites together.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """

    name = "importance weights"

    def measure(self, case: Case) -> Evaluation:
        """k-hat of the rows and of the shared sites."""
        found = case.evaluation
        if found.shared is not None and not found.shared.sites and not found.shared.khat <= KHAT_SHARED[0]:
            raise ValueError(
                "the guide draws all rows jointly, so there are no weights of single rows; those of all rows have "
                f"k-hat {found.shared.khat:.2f}, which grows with the number of rows"
            )
        return found

    def judge(self, measured: Evaluation) -> Finding:
        """Thresholds: 2% and 10% of the rows with k-hat above 0.7; for shared sites k-hat of 0.7 and 1."""
        shared, rows = measured.shared, not bool(measured.khat.isnan().all())
        share = measured.summary()["khat_above_0.7"]
        levels, reasons = [], []
        value, threshold = share, KHAT[1]
        if shared is not None:
            value, threshold = shared.khat, KHAT_SHARED[1]
            levels.append(grade(shared.khat, KHAT_SHARED))
            what = ", ".join(shared.sites) or "all rows jointly"
            reasons.append(f"k-hat of {what} is {shared.khat:.2f} ({measured.draws} draws)")
        if rows:
            level = grade(share, KHAT)
            if not levels or ORDER.index(level) < ORDER.index(levels[0]):
                value, threshold = share, KHAT[1]
            levels.append(level)
            each = "given the shared sites" if shared is not None else f"{measured.draws} draws each"
            reasons.append(f"k-hat is above 0.7 for {100 * share:.3g}% of {len(measured.khat)} rows ({each})")
        worst = min(levels, key=ORDER.index)
        advice = "Do not use importance-corrected moments there: the guide misses part of the posterior"
        reason = "; ".join(reasons)
        return Finding(self.name, worst, value, threshold, reason, advice if worst != "good" else "")

    def draw(self, measured: Evaluation, plots: ModuleType) -> Iterator[Picture]:
        """k-hat of every row, if rows have weights of their own."""
        if bool(measured.khat.isnan().all()):
            return
        yield Picture(
            "k-hat of every row",
            "The Pareto shape k-hat of the importance weights. Above 0.7 the guide misses part of the posterior. Rows "
            "at the bottom have equal weights: there the guide is exact.",
            plots.khat(measured),
        )
