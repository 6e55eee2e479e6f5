"""Can this posterior be believed? One question after the other, each with its measure, threshold and reason."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.base.checks import check_rows, check_whole
from zoo.base.module import Module
from zoo.base.protocols import Conjugate
from zoo.diagnostics.guide.calibration import LEAST, Calibration, sbc
from zoo.diagnostics.guide.exact import PosteriorError, posterior_error
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import Fit
from zoo.posterior.evaluation import LEAST_DRAWS, Evaluation, evaluate
from zoo.posterior.rates import RateDistortion, rate_distortion

Level = Literal["good", "careful", "bad", "unknown"]
ROUNDING = 1e-9  # what is smaller is not told
CLIMB = 100  # steps of EM that show what training has left
# Where doubt begins, and where belief ends.
LEFT = (1e-3, 1e-2)  # nats per row that EM still finds
KHAT = (0.02, 0.10)  # share of rows with k-hat > 0.7
LOST = (0.05, 0.5)  # nats per row, of the gap
FALSE = (0.01, 0.001)  # p-value of the calibration
AMISS = (0.1, 0.2)  # of a mean, in posterior standard deviations; of the logarithm of one's ratio; of a correlation
MISTAKEN = (0.02, 0.1)  # total variation between responsibilities
FLOORED = (0.01, 0.05)  # share of variances at their floor


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        check: what was asked: ``"convergence"``, ``"gap"``, ``"importance weights"``, ``"posterior"``,
            ``"calibration"``, ``"collapse"`` or ``"floor"``.
        level: ``"good"``, ``"careful"``, ``"bad"``, or ``"unknown"`` where it could not be asked.
        value: what was measured; NaN where nothing was.
        threshold: where ``"bad"`` begins; NaN where nothing was measured.
        reason: the answer in words, with the numbers and their unit.
        advice: what to do about it; empty where all is well.
    """

    check: str
    level: Level
    value: float
    threshold: float
    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:8s} {self.check}: {self.reason}" + (f". {self.advice}" if self.advice else "")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` returns.

    Attributes:
        findings: the answers, in the order in which they were asked.
        evaluation: bound, log marginal, gap and k-hat of the rows that were looked at.
        error: the distance from the exact posterior, or None where it is not known.
        calibration: ranks of simulated truths, or None where the guide has none.
        information: what the units carry, or None where they are not real numbers.
    """

    findings: tuple[Finding, ...]
    evaluation: Evaluation | None = field(repr=False)
    error: PosteriorError | None = field(repr=False)
    calibration: Calibration | None = field(repr=False)
    information: RateDistortion | None = field(repr=False)

    @property
    def level(self) -> Level:
        """The worst of the answers that could be had."""
        levels = {finding.level for finding in self.findings}
        order: tuple[Level, ...] = ("bad", "careful", "good")
        return next((level for level in order if level in levels), "unknown")

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the posterior: no answer is bad, and some are good."""
        return self.level in ("good", "careful")

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        against = [finding.check for finding in self.findings if finding.level == "bad"]
        doubts = [finding.check for finding in self.findings if finding.level == "careful"]
        if against:
            verb = "speak" if len(against) > 1 else "speaks"
            return f"Do not trust this posterior: {_listed(against)} {verb} against it"
        if doubts:
            return f"This posterior can be used with care: look at {_listed(doubts)}"
        if self.level == "good":
            return "This posterior can be trusted as far as these checks see"
        return "Nothing could be asked of this posterior"

    def __getitem__(self, check: str) -> Finding:
        found = {finding.check: finding for finding in self.findings}
        if check not in found:
            raise KeyError(f"no check {check!r}: there are {', '.join(found)}")
        return found[check]

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {finding}" for finding in self.findings)])


def diagnose(run: Fit, x: Any, *, draws: int = 500, simulations: int = 500, seed: int = 0) -> Diagnosis:
    """Ask of a run all that shows whether its posterior can be believed.

    - convergence: has training ended? For a conjugate model, EM goes on from a copy of it; else the loss curve tells.
    - gap: log p(x) less the bound, per row. Exact for a conjugate model, else a lower estimate by importance weighting.
    - importance weights: on how many rows is k-hat above 0.7?
    - posterior: means and standard deviations beside the exact ones, where these are known.
    - calibration: ranks of simulated truths among the guide's draws, uniform where the guide is right.
    - collapse: units or components that carry nothing.
    - floor: variances at the floor, where a likelihood has no maximum.

    What cannot be asked of a model or guide is reported as unknown, with the reason.

    Args:
        run: what :func:`zoo.fit` or :func:`zoo.load` returned.
        x: the rows (n, d) it was fitted to.
        draws: draws per row; at least 25.
        simulations: simulated rows of the calibration.
        seed: of the draws; the caller's random stream is left alone.

    Returns:
        a :class:`Diagnosis`, with every finding's threshold and reason.

    Raises:
        ValueError: ``draws`` < 25, ``simulations`` < 20, or rows unfit for model or guide.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    check_whole(simulations, "simulations", LEAST)
    x = check_rows(x, run.model)
    findings: list[Finding] = []
    own = isinstance(run.model, Module) and isinstance(run.guide, Module)
    expected = (ValueError, NotImplementedError) if own else Exception  # what another's callable may not know how to do

    def ask(check: str, measure: Callable[[], Any], judge: Callable[[Any], Iterator[Finding]]) -> Any:
        """What was measured, judged; None and an unknown answer where it cannot be."""
        try:
            found = measure()
        except expected as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            findings.append(Finding(check, "unknown", math.nan, math.nan, reason))
            return None
        findings.extend(judge(found))
        return found

    ask("convergence", lambda: _left(run, x), _converged)
    evaluation = ask("gap", lambda: evaluate(run, x, draws=draws, seed=seed), _bounded)
    error = None
    if isinstance(run.model, Conjugate) and hasattr(run.model, "components"):
        ask("posterior", lambda: _mistaken(run, x), _shared_out)
    else:
        error = ask("posterior", lambda: posterior_error(run, x), _close)
    calibration = ask("calibration", lambda: sbc(run, simulations=simulations, seed=seed), _calibrated)
    if hasattr(run.model, "components"):
        carried = None
        ask("collapse", lambda: run.model.posterior(x).probs.detach().sum(0), _occupied)
    else:
        carried = ask("collapse", lambda: rate_distortion(run, x, seed=seed), _carried)
    if "at_floor" in run.settings:
        findings.extend(_floored(run.settings["at_floor"]))
    return Diagnosis(tuple(findings), evaluation, error, calibration, carried)


def _judge(value: float, limits: tuple[float, float], *, low: bool = False) -> Level:
    """The level of a value with its two limits; ``low`` where small values are the bad ones."""
    careful, bad = limits
    if math.isnan(value):
        return "unknown"
    if (value < bad) if low else (value > bad):
        return "bad"
    return "careful" if ((value < careful) if low else (value > careful)) else "good"


@dataclass(frozen=True)
class _Left:
    """What training has left: nats per row, and how it was seen."""

    value: float
    how: str
    exact: bool


def _left(run: Fit, x: Tensor) -> _Left:
    """How far the bound or the likelihood can still be raised, in nats per row."""
    rows = run.settings.get("rows", len(x))
    if rows != len(x):
        raise ValueError(f"the run was fitted to {rows} rows, these are {len(x)}: pass the rows it was fitted to")
    own = [p.requires_grad for p in run.model.parameters()] if isinstance(run.model, nn.Module) else []
    if own and not any(own):
        raise ValueError("the model was held as it is, so that only the guide was trained")
    if isinstance(run.model, Conjugate) and all(own):
        with torch.no_grad():
            start = float(run.model.log_marginal(x).mean())
        try:
            end = float(em(copy.deepcopy(run.model), x, steps=CLIMB)[-1]) / len(x)
        except FloatingPointError as error:
            raise ValueError(f"EM cannot go on from here: {error}") from None
        return _Left(max(0.0, end - start), f"in {CLIMB} steps EM, going on from the fitted model", True)
    losses = run.losses
    if run.settings.get("optimizer") == "LBFGS" and len(losses) > 1:  # no noise
        last = min(20, len(losses) - 1)
        return _Left(float(losses[-1 - last] - losses[-1]), f"in the last {last} steps of L-BFGS the bound", True)
    tenth = len(losses) // 10
    if tenth < 10:
        raise ValueError(f"{len(losses)} steps are too few to see a trend in")
    late, early = losses[-tenth:], losses[-2 * tenth : -tenth]
    noise = float((late.var() / tenth + early.var() / tenth).sqrt())
    rise = float(early.mean() - late.mean())
    return _Left(max(0.0, rise - 2 * noise), "beyond its noise, in the last tenth of the steps the bound", False)


def _converged(left: _Left) -> Iterator[Finding]:
    level = _judge(left.value, LEFT if left.exact else (10 * LEFT[0], 10 * LEFT[1]))
    bad = LEFT[1] if left.exact else 10 * LEFT[1]
    gain = f"still gains {left.value:.2g} nats per row" if _clean(left.value) else "gains nothing"
    advice = "Train longer: leave steps= out, or raise it" if level != "good" else ""
    yield Finding("convergence", level, _clean(left.value), bad, f"{left.how} {gain}", advice)


def _bounded(e: Evaluation) -> Iterator[Finding]:
    s = e.summary()
    level = _judge(s["gap"] - 2 * s["gap_se"], LOST)
    kind = "" if e.estimator == "exact" else f" at least, by {e.estimator}"
    advice = "A richer guide closes it: FullRank, Amortized(covariance='full'), Flow, or Exact where it serves"
    size = _clean(s["gap"], max(1.0, abs(s["elbo"])))
    reason = f"the bound is {size:.3g} nats per row below log p(x){kind}"
    yield Finding("gap", level, size, LOST[1], reason, advice if level != "good" else "")
    share = s["khat_above_0.7"]
    level = _judge(share, KHAT)
    reason = f"k-hat is above 0.7 on {100 * share:.3g}% of {len(e.khat)} rows, with {e.draws} draws each"
    advice = "Take no importance-corrected moments there; the guide misses a part of the posterior"
    yield Finding("importance weights", level, share, KHAT[1], reason, advice if level != "good" else "")


def _close(error: PosteriorError) -> Iterator[Finding]:
    mean, ratio = float(error.mean.quantile(0.95)), error.deviation.log().abs().amax(-1)
    spread = float(ratio.quantile(0.95))
    apart = float(error.correlation.abs().flatten(1).amax(-1).quantile(0.95))
    worst = max(mean, spread, apart)
    level = _judge(worst, AMISS)
    reason = (
        f"on 95% of the rows the means are within {_clean(mean):.2g} posterior standard deviations of the exact ones, "
        f"the standard deviations within a factor of {math.exp(spread):.3g}, correlations within {_clean(apart):.2g}"
    )
    advice = "Use a guide that holds correlations, train longer, or take Exact"
    yield Finding("posterior", level, _clean(worst), AMISS[1], reason, advice if level != "good" else "")


def _mistaken(run: Fit, x: Tensor) -> Tensor:
    """The total variation between the guide's and the posterior's probabilities of every row (n,)."""
    if not hasattr(run.guide, "posterior"):
        raise ValueError(f"{type(run.guide).__name__} does not tell its probabilities")
    with torch.no_grad(), run.scope():
        ours, exact = run.guide.posterior(x), run.model.posterior(x)
        return 0.5 * (ours.probs - exact.probs).abs().sum(-1)


def _shared_out(apart: Tensor) -> Iterator[Finding]:
    """Of a mixture: responsibilities."""
    value = float(apart.quantile(0.95))
    level = _judge(value, MISTAKEN)
    reason = (
        f"on 95% of the rows the responsibilities are within {_clean(value):.2g} of the exact ones (total variation)"
    )
    advice = "Train longer, or take MeanField or Exact, which hold them in closed form" if level != "good" else ""
    yield Finding("posterior", level, _clean(value), MISTAKEN[1], reason, advice)


def _clean(value: float, size: float = 1.0) -> float:
    """A value without its rounding errors."""
    return value if abs(value) > ROUNDING * size else 0.0


def _calibrated(c: Calibration) -> Iterator[Finding]:
    level = _judge(c.p_value, FALSE, low=True)
    fresh = f"; a fresh {c.guide} was fitted to them, since this one knows its own rows only" if c.refitted else ""
    reason = f"{c.verdict} (p = {c.p_value:.2g} for uniform ranks, {c.simulations} simulations{fresh})"
    advice = "Intervals of this guide do not cover what they say" if level != "good" else ""
    yield Finding("calibration", level, c.p_value, FALSE[1], reason, advice)


def _carried(i: RateDistortion) -> Iterator[Finding]:
    gone, k = len(i.collapsed), len(i.variance)
    level: Level = "bad" if gone == k else "careful" if gone else "good"
    advice = (
        "Take fewer factors; against collapse in training, linear_warmup and free_bits of AnnealedELBO" if gone else ""
    )
    yield Finding("collapse", level, gone / k, 1.0, i.verdict, advice)


def _occupied(counts: Tensor) -> Iterator[Finding]:
    """Of a mixture: components that hold hardly a row."""
    empty = int((counts < 1).sum())
    level: Level = "careful" if empty else "good"
    reason = f"{empty} of {len(counts)} components hold less than a row; the smallest holds {float(counts.min()):.3g}"
    yield Finding("collapse", level, empty / len(counts), 1.0, reason, "Take fewer components" if empty else "")


def _floored(share: float) -> Iterator[Finding]:
    level = _judge(share, FLOORED)
    reason = f"{100 * share:.2g}% of the variances lie at their floor"
    advice = "The likelihood has no maximum there: raise floor, or take a smaller model" if level != "good" else ""
    yield Finding("floor", level, share, FLOORED[1], reason, advice)


def _listed(names: list[str]) -> str:
    """Names as in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
