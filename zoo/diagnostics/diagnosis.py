"""Can this posterior be trusted? A series of checks, each with its measure, threshold and reason."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import polars as pl

from zoo.base.callables import unwrapped
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.module import Module
from zoo.base.pairs import Trained, rows_of
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.checks.check import Case, Check, Finding, Level, Picture
from zoo.diagnostics.checks.every import CHECKS
from zoo.diagnostics.guide.calibration import LEAST
from zoo.infer.run import run_of
from zoo.posterior.evaluation import check_draws

ACCURACY = ("gap", "importance weights", "posterior")  # each shows how close the guide is to the posterior
TRAINING = "convergence"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` returns.

    Attributes:
        findings: the results of the checks, in their order.
        measured: the measurement of every check by its name; checks that were not possible are missing.
        checks: the checks by name; they draw their measurements.
    """

    findings: tuple[Finding, ...]
    measured: Mapping[str, Any] = field(repr=False)
    checks: Mapping[str, Check] = field(repr=False)

    @property
    def level(self) -> Level:
        """The worst level of all findings, limited by the checks that were not possible.

        ``"unknown"`` if none of gap, importance weights and posterior could be checked; at best ``"careful"`` if
        convergence could not be checked.
        """
        levels = {finding.level for finding in self.findings}
        if "bad" in levels:
            return "bad"
        if not any(self._known(check) for check in ACCURACY):
            return "unknown"
        return "careful" if "careful" in levels or not self._known(TRAINING) else "good"

    @property
    def trusted(self) -> bool:
        """Whether no check failed and those that matter most were possible."""
        return self.level in ("good", "careful")

    @property
    def verdict(self) -> str:
        """The result in one sentence, with the number of checks that were possible."""
        failed = [finding.check for finding in self.findings if finding.level == "bad"]
        doubtful = [finding.check for finding in self.findings if finding.level == "careful"]
        missing = [finding.check for finding in self.findings if finding.level == "unknown"]
        total, made = len(self.findings), ""
        if missing:
            made = f" ({total - len(missing)} of {total} checks were possible; missing: {_listed(missing)})"
        if failed:
            checks = "check" if len(failed) == 1 else "checks"
            return f"Do not trust this posterior: it failed the {checks} of {_listed(failed)}{made}"
        if self.level == "unknown":
            return f"Whether this posterior can be trusted is unknown{made}"
        if self.level == "careful":
            look = doubtful if self._known(TRAINING) else [*doubtful, TRAINING]
            return f"This posterior can be used with care: look at {_listed(look)}{made}"
        return f"This posterior can be trusted, as far as these checks show{made}"

    def _known(self, check: str) -> bool:
        return any(finding.check == check and finding.level != "unknown" for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        found = {finding.check: finding for finding in self.findings}
        if check not in found:
            raise KeyError(f"no check {check!r}: there are {', '.join(found)}")
        return found[check]

    def summary(self) -> dict[str, float]:
        """The measured value of every check by its name; NaN for checks that were not possible."""
        return {finding.check: finding.value for finding in self.findings}

    def frame(self) -> pl.DataFrame:
        """A row per check: level, value, threshold, reason, advice."""
        names = ("check", "level", "value", "threshold", "reason", "advice")
        return pl.DataFrame({name: [getattr(finding, name) for finding in self.findings] for name in names})

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {finding}" for finding in self.findings)])


@on_suited_threads
def diagnose(
    run: Trained,
    x: ArrayLike,
    *,
    draws: int = 500,
    simulations: int | None = None,
    seed: int = 0,
    checks: Sequence[Check] = CHECKS,
) -> Diagnosis:
    """Check whether the posterior of a trained pair can be trusted.

    - convergence: had training converged? For a conjugate model EM continues from a copy of it; otherwise the training
      record is assessed.
    - gap: log p(x) minus the ELBO per row; exact for a conjugate model, otherwise an importance-weighted estimate that
      is too low on average.
    - importance weights: the share of rows with k-hat above 0.7, and k-hat of the shared sites.
    - posterior: means, standard deviations and correlations against the exact ones, if they have a closed form; a point
      estimate fails.
    - calibration: ranks of simulated truths among draws from the guide; uniform if the guide is the posterior.
    - collapse: latent units or components that carry no information.
    - floor: the share of variances at their floor, where the likelihood has no maximum.
    - uniquenesses of factor analysis: Heywood cases by column, and more factors than the covariances determine.

    A check that is not possible is reported as unknown, with the reason, and limits the verdict.

    Args:
        run: a trained pair.
        x: the rows (n, d) that it was fitted to.
        draws: draws from the guide per row, at least 30.
        simulations: the number of simulations for the calibration, at least 20. None takes 500 simulated rows, and
            skips the calibration of a model with shared sites, where every simulation requires a fit.
        seed: of the draws.
        checks: the checks in their order; by default all of :data:`zoo.diagnostics.checks.every.CHECKS`.

    Returns:
        a :class:`Diagnosis` with a finding per check.

    Raises:
        ValueError: ``draws`` < 30 or ``simulations`` < 20.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """
    run = run_of(run)
    check_draws(draws)
    if simulations is not None:
        check_whole(simulations, "simulations", LEAST)
    case = Case(run, rows_of(run, x), draws, simulations, seed)
    own = all(isinstance(unwrapped(function), Module) for function in (run.model, run.guide))
    expected = (ValueError, NotImplementedError) if own else (Exception,)  # a user's own model may raise anything
    findings: list[Finding] = []
    measured: dict[str, Any] = {}
    for check in checks:
        if not check.applies(case):
            continue
        try:
            measured[check.name] = check.measure(case)
        except expected as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            findings.append(Finding(check.name, "unknown", math.nan, math.nan, reason))
        else:
            findings.append(check.judge(measured[check.name]))
    return Diagnosis(tuple(findings), measured, {check.name: check for check in checks})


def pictures(found: Diagnosis, plots: ModuleType) -> Iterator[Picture]:
    """The figures of all checks in their order; ``plots`` is the package :mod:`zoo.plots`."""
    for name, measured in found.measured.items():
        yield from found.checks[name].draw(measured, plots)


def tables(found: Diagnosis) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and tables of all checks in their order."""
    for name, measured in found.measured.items():
        yield from found.checks[name].tables(measured)


def _listed(names: list[str]) -> str:
    """Names joined as in a sentence: "a, b and c"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
