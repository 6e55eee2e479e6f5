"""Can this posterior be trusted? One check after the other, each with its measure, threshold and reason."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import polars as pl

from zoo.base.callables import undecorated, unwrapped
from zoo.base.checks import check_rows, check_whole
from zoo.base.module import Module
from zoo.diagnostics.checks.check import Case, Check, Finding, Level, Picture
from zoo.diagnostics.checks.every import CHECKS
from zoo.diagnostics.guide.calibration import LEAST
from zoo.infer.run import Fit
from zoo.posterior.psis import LEAST as LEAST_DRAWS

ACCURACY = ("gap", "importance weights", "posterior")  # any of them shows how close the guide is
TRAINING = "convergence"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` returns.

    Attributes:
        findings: the answers, in the order of the checks.
        measured: what every check measured, by its name; those that could not be made are missing.
        checks: the checks that were made, by name: they draw what they measured.
    """

    findings: tuple[Finding, ...]
    measured: Mapping[str, Any] = field(repr=False)
    checks: Mapping[str, Check] = field(repr=False)

    @property
    def level(self) -> Level:
        """The worst of the answers, capped by what could not be asked.

        ``"unknown"`` where neither gap nor importance weights nor the exact posterior could be asked, ``"careful"`` at
        best where convergence could not.
        """
        levels = {finding.level for finding in self.findings}
        if "bad" in levels:
            return "bad"
        if not any(self._known(check) for check in ACCURACY):
            return "unknown"
        return "careful" if "careful" in levels or not self._known(TRAINING) else "good"

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the posterior, and the checks that matter most could be made."""
        return self.level in ("good", "careful")

    @property
    def verdict(self) -> str:
        """The answer in one sentence, with the number of checks that could be made."""
        against = [finding.check for finding in self.findings if finding.level == "bad"]
        doubts = [finding.check for finding in self.findings if finding.level == "careful"]
        unasked = [finding.check for finding in self.findings if finding.level == "unknown"]
        total, asked = len(self.findings), ""
        if unasked:
            asked = f" ({total - len(unasked)} of {total} checks could be asked: not {_listed(unasked)})"
        if against:
            verb = "speak" if len(against) > 1 else "speaks"
            return f"Do not trust this posterior: {_listed(against)} {verb} against it{asked}"
        if self.level == "unknown":
            return f"Whether this posterior can be trusted is unknown{asked}"
        if self.level == "careful":
            look = doubts if self._known(TRAINING) else [*doubts, TRAINING]
            return f"This posterior can be used with care: look at {_listed(look)}{asked}"
        return f"This posterior can be trusted as far as these checks see{asked}"

    def _known(self, check: str) -> bool:
        return any(finding.check == check and finding.level != "unknown" for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        found = {finding.check: finding for finding in self.findings}
        if check not in found:
            raise KeyError(f"no check {check!r}: there are {', '.join(found)}")
        return found[check]

    def summary(self) -> dict[str, float]:
        """The measured value of every check, by its name; NaN where there is none."""
        return {finding.check: finding.value for finding in self.findings}

    def frame(self) -> pl.DataFrame:
        """A row per check: level, value, threshold, reason, advice."""
        names = ("check", "level", "value", "threshold", "reason", "advice")
        return pl.DataFrame({name: [getattr(finding, name) for finding in self.findings] for name in names})

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {finding}" for finding in self.findings)])


def diagnose(
    run: Fit,
    x: Any,
    *,
    draws: int = 500,
    simulations: int | None = None,
    seed: int = 0,
    checks: Sequence[Check] = CHECKS,
) -> Diagnosis:
    """Make all checks of a trained pair that show whether its posterior can be trusted.

    - convergence: has training ended? For a conjugate model, EM goes on from a copy of it; otherwise the record of the
      training is assessed.
    - gap: log p(x) less the bound, per row. Exact for a conjugate model, else a lower estimate by importance weighting.
    - importance weights: on how many rows is k-hat above 0.7, and what is it for the sites that all rows share?
    - posterior: means and standard deviations beside the exact ones, where these are known; a point estimate is none.
    - calibration: ranks of simulated truths among the guide's draws, uniform where the guide is right.
    - collapse: units or components that carry nothing.
    - floor: variances at the floor, where a likelihood has no maximum.

    A check that cannot be made is reported as unknown, with the reason, and caps the verdict.

    Args:
        run: a trained pair: what :func:`zoo.fit` or :func:`zoo.load` returned, or ``zoo.Fit(model, guide)``.
        x: the rows (n, d) it was fitted to.
        draws: draws per row; at least 30.
        simulations: simulated rows of the calibration, at least 20. None takes 500, and leaves the calibration of a
            model with shared sites out, where every simulation costs a fit.
        seed: of the draws; the caller's random stream is left alone.
        checks: those to make, in this order; by default all of :data:`zoo.diagnostics.checks.every.CHECKS`.

    Returns:
        a :class:`Diagnosis`, with every finding's threshold and reason.

    Raises:
        ValueError: ``draws`` < 30, ``simulations`` < 20, or rows unfit for model or guide.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    if simulations is not None:
        check_whole(simulations, "simulations", LEAST)
    case = Case(run, check_rows(x, undecorated(run.model)), draws, simulations, seed)
    own = all(isinstance(unwrapped(function), Module) for function in (run.model, run.guide))
    expected = (ValueError, NotImplementedError) if own else (Exception,)  # what a callable of the user's may raise
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
    """The figures of all checks, in their order; ``plots`` is the package :mod:`zoo.plots`."""
    for name, measured in found.measured.items():
        yield from found.checks[name].draw(measured, plots)


def tables(found: Diagnosis) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables of all checks, in their order."""
    for name, measured in found.measured.items():
        yield from found.checks[name].tables(measured)


def _listed(names: list[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
