"""Do the guide's credible intervals have their nominal coverage?"""

from collections.abc import Iterator
from types import ModuleType

from zoo.diagnostics.checks.check import Case, Check, Finding, Picture, grade
from zoo.diagnostics.guide.calibration import Calibration, sbc
from zoo.posterior.engine import reader, reading

FALSE = (0.01, 0.001)  # p-value
SIMULATIONS = 500  # simulated rows of a model without shared sites


class Calibrated(Check):
    """Ranks of simulated truths among draws from the guide; uniform if the guide is the posterior."""

    name = "calibration"

    def measure(self, case: Case) -> Calibration:
        """Simulation-based calibration; for models with shared sites only if ``simulations`` is given."""
        with reading(case.run, case.seed):
            shared = reader(case.run, case.x).layout.shared
        if shared and case.simulations is None:
            raise ValueError(
                f"'{shared[0].name}' is shared by all rows, so every simulation is a whole data set with a fit of its "
                "own, which takes time: pass simulations=, or call zoo.diagnostics.sbc"
            )
        simulations = case.simulations or SIMULATIONS
        return sbc(case.run, simulations=simulations, rows=len(case.x), seed=case.seed)

    def judge(self, measured: Calibration) -> Finding:
        """Thresholds: p-values of 0.01 and 0.001."""
        p = measured.p_value
        level = grade(p, FALSE, below=True)
        fresh = f", each with a newly fitted {measured.guide}" if measured.refitted else ""
        reason = f"{measured.verdict} (uniformity of ranks: p = {p:.2g}, {measured.simulations} simulations{fresh})"
        advice = "Do not rely on the coverage of this guide's intervals: take a richer guide" if level != "good" else ""
        return Finding(self.name, level, p, FALSE[1], reason, advice, below=True)

    def draw(self, measured: Calibration, plots: ModuleType) -> Iterator[Picture]:
        """The distribution of the ranks, and the coverage of intervals."""
        yield Picture(
            "Calibration",
            f"The ranks of {measured.simulations} simulated truths within q: their empirical distribution function "
            "minus the uniform one. A calibrated guide stays within the band. A curve first above and then below 0 "
            "shows a q that is too narrow, a curve on one side of 0 a bias.",
            plots.ranks(measured),
        )
        if measured.coverage is not None:
            yield Picture(
                "Coverage",
                "The share of simulated truths within central intervals of q, minus the nominal level.",
                plots.coverage(measured),
            )
