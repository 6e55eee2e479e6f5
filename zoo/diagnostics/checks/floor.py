"""Have variances reached their floor?"""

from zoo.diagnostics.checks.check import Case, Check, Finding, grade

FLOORED = (0.01, 0.05)  # share of variances at their floor


class Floor(Check):
    """The share of a decoder's variances at their floor, where the likelihood has no maximum."""

    name = "floor"

    def applies(self, case: Case) -> bool:
        """Whether the training record has the share."""
        return "at_floor" in case.run.settings

    def measure(self, case: Case) -> float:
        """The share from the training record."""
        return float(case.run.settings["at_floor"])

    def judge(self, measured: float) -> Finding:
        """Thresholds 1% and 5%."""
        level = grade(measured, FLOORED)
        reason = f"{100 * measured:.2g}% of the variances are at their floor"
        advice = "The likelihood has no maximum there: raise floor, or take a smaller model" if level != "good" else ""
        return Finding(self.name, level, measured, FLOORED[1], reason, advice)
