"""Do the guide's intervals hold simulated truths as often as they promise?"""

from collections.abc import Iterator
from types import ModuleType

from zoo.diagnostics.checks.check import Case, Check, Finding, Picture, grade
from zoo.diagnostics.guide.calibration import Calibration, sbc
from zoo.posterior.engine import reader, reading

FALSE = (0.01, 0.001)  # p-value
SIMULATIONS = 500  # of a model all of whose sites are those of single rows


class Calibrated(Check):
    """Ranks of simulated truths among the guide's draws, uniform where the guide is the posterior."""

    name = "calibration"

    def measure(self, case: Case) -> Calibration:
        """Simulation-based calibration; with shared sites only where a number of simulations is given."""
        with reading(case.run, case.seed):
            shared = reader(case.run, case.x).layout.shared
        if shared and case.simulations is None:
            raise ValueError(
                f"'{shared[0].name}' is shared by all rows, so that every simulation is a whole data set with a fit of "
                "its own: pass simulations=, or call zoo.sbc, to spend that time"
            )
        simulations = case.simulations or SIMULATIONS
        return sbc(case.run, simulations=simulations, rows=len(case.x), seed=case.seed)

    def judge(self, measured: Calibration) -> Finding:
        """Thresholds: p-values of 0.01 and 0.001."""
        p = measured.p_value
        level = grade(p, FALSE, below=True)
        fresh = f"; a fresh {measured.guide} was fitted to them" if measured.refitted else ""
        reason = f"{measured.verdict} (p = {p:.2g} for uniform ranks, {measured.simulations} simulations{fresh})"
        advice = "Intervals of this guide do not cover what they promise" if level != "good" else ""
        return Finding(self.name, level, p, FALSE[1], reason, advice, below=True)

    def draw(self, measured: Calibration, plots: ModuleType) -> Iterator[Picture]:
        """Ranks, and the coverage of intervals."""
        yield Picture(
            "Calibration",
            f"Where {measured.simulations} simulated truths lie in the guide's posteriors: how far their distribution "
            "is from the uniform one. A calibrated guide stays within the band; a wave that rises first is that of one "
            "too narrow, a curve on one side of 0 that of a bias.",
            plots.ranks(measured),
        )
        if measured.coverage is not None:
            yield Picture(
                "Coverage",
                "How often the guide's central intervals hold the simulated truths, less what they promise.",
                plots.coverage(measured),
            )
