"""Are the uniquenesses of factor analysis estimates of anything?"""

from zoo.alignment.rotated import RotatedFactors, rotate
from zoo.base.callables import undecorated
from zoo.base.protocols import BoundedNoise
from zoo.diagnostics.checks.check import Case, Check, Finding


class Uniquenesses(Check):
    """Heywood cases, whose uniqueness is at its floor, and more factors than the covariances determine."""

    name = "uniquenesses"

    def applies(self, case: Case) -> bool:
        """Whether the model is a factor analysis."""
        return isinstance(undecorated(case.run.model), BoundedNoise)

    def measure(self, case: Case) -> RotatedFactors:
        """The factors, with the columns at their floor."""
        with case.run.scope():
            return rotate(case.run, "principal")

    def judge(self, measured: RotatedFactors) -> Finding:
        """Careful if one is at its floor, or if there are too many factors for them to be unique."""
        share, problems = len(measured.at_floor) / len(measured.columns), measured.warnings
        if not problems:
            least = float(measured.uniquenesses.min())
            reason = f"the smallest uniqueness is {least:.3g} of its column's variance, above its floor"
            return Finding(self.name, "good", share, 1.0, reason)
        advice = "Compare fewer factors by zoo.select_size and zoo.diagnostics.fit_measures"
        return Finding(self.name, "careful", share, 1.0, "; ".join(problems), advice)
