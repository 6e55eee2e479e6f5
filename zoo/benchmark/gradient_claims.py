"""What theory says of the noise of gradients, checked on the table of the benchmark."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from zoo.benchmark.estimators import (
    ANALYTIC,
    BASELINE,
    DOUBLY,
    DRAWS,
    ESTIMATORS,
    IMPORTANCE,
    LEAVE_ONE_OUT,
    PATH,
    REPARAMETRISED,
    SCORE,
    SEVERAL,
    SUMS,
)
from zoo.benchmark.gradient_cells import TRAINING
from zoo.benchmark.suite import Claim

ERRORS = 5.0  # standard errors by which a mean may be off
NOTHING = 1e-12  # of the noisiest estimator's variance: rounding
VANISHED = 1e-5  # of a variance, at an optimum found to some digits, with a baseline that nearly forgot its start
ENOUGH = 8  # points for a mean with an error
OURS = ("MeanField", "FullRank", "Amortized", "Exact")
KEYS = ["case", "method", "seed", "at"]
EXACT = [one.name for one in ESTIMATORS if one.exact]


def claims(table: pl.DataFrame) -> Sequence[Claim]:
    """The statements about the methods of the suite itself, each with the figures that it rests on."""
    if not {"estimator", "at"} <= set(table.columns):
        return ()
    done = table.filter(pl.col("status") == "done", pl.col("method").is_in(OURS))
    noise = done.filter(pl.col("at") != TRAINING)
    before = noise.filter(pl.col("at") != "optimum")
    optimum = noise.filter(pl.col("at") == "optimum")
    factors = optimum.filter(pl.col("case").str.starts_with("FA "))
    guided = noise.filter(pl.col("method") != "Exact")
    return (
        _unbiased(noise),
        _without_noise(noise, EXACT, "Enumeration, quadrature and closed forms have no noise"),
        _without_noise(
            noise.filter(pl.col("method") == "Exact"),
            [REPARAMETRISED, SEVERAL],
            "Under `Exact` the reparametrised gradient has no noise, at any point",
        ),
        _ratio_is(guided, "guide_variance", [SEVERAL], 1 / DRAWS, f"{DRAWS} draws have 1/{DRAWS} of the variance"),
        _ratio_is(
            guided,
            "model_variance",
            [PATH, ANALYTIC, SCORE],
            1.0,
            "For the model's parameters path derivative, analytic KL and score function are as noisy as reparametrised",
        ),
        _ordered(
            noise, (REPARAMETRISED, SCORE), "The score function without a baseline is noisier than reparametrised"
        ),
        _ordered(
            before,
            (PATH, BASELINE, SCORE),
            "Before the optimum: score function > less a baseline > path derivative",
        ),
        _ordered(
            optimum,
            (PATH, REPARAMETRISED),
            "At the optimum the path derivative is less noisy than reparametrised (Roeder et al. 2017)",
        ),
        _vanishes(
            factors,
            [PATH, BASELINE, LEAVE_ONE_OUT],
            "Where q is the posterior (factor analysis at its optimum), path derivative and score function less a "
            "baseline vanish",
        ),
        _analytic(noise, factors),
        _ordered(
            optimum,
            (DOUBLY, IMPORTANCE),
            f"At the optimum {DOUBLY} is less noisy than {IMPORTANCE} (Tucker et al. 2019)",
        ),
        _trained(done.filter(pl.col("at") == TRAINING)),
    )


def _side_by_side(noise: pl.DataFrame, column: str, names: Sequence[str]) -> pl.DataFrame:
    """The values of a column for every point at which all the estimators have one."""
    found = noise.select(*KEYS).unique(maintain_order=True)
    for name in names:
        own = noise.filter(pl.col("estimator") == name, pl.col(column).is_not_nan())
        found = found.join(own.select(*KEYS, pl.col(column).alias(name)), on=KEYS, how="inner", maintain_order="left")
    return found


def _range(values: Sequence[float]) -> str:
    """The least and the greatest of some numbers."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _unbiased(noise: pl.DataFrame) -> Claim:
    columns = ["guide_deviation", "model_deviation"]
    values = [v for c in columns for v in noise[c].to_list() if v is not None and not math.isnan(v)]
    if not values:
        return Claim("Every estimator is unbiased", None, "no points")
    worst = max(values)
    return Claim(
        "Every estimator is unbiased",
        worst <= ERRORS,
        f"{len(values)} means; the farthest is {worst:.2g} standard errors from the gradient ({ERRORS:g} allowed)",
    )


def _without_noise(noise: pl.DataFrame, names: Sequence[str], text: str) -> Claim:
    """Their variance is nothing beside that of the noisiest estimator at the same point."""
    found = []
    for column in ("guide_variance", "model_variance"):
        some = noise.filter(pl.col(column).is_not_nan())
        most = some.group_by(KEYS).agg(pl.col(column).max().alias("most"))
        own = some.filter(pl.col("estimator").is_in(names)).join(most, on=KEYS).filter(pl.col("most") > 0)
        found += (own[column] / own["most"]).to_list()
    worst = max(found, default=math.nan)
    if not found:
        return Claim(text, None, "no points")
    return Claim(text, worst <= NOTHING, f"{len(found)} points; at most {worst:.1g} of the noisiest one's variance")


def _ratio_is(noise: pl.DataFrame, column: str, names: Sequence[str], factor: float, text: str) -> Claim:
    """Variances relative to the reparametrised one, in the geometric mean over the points."""
    figures, held = [], list[bool]()
    for name in names:
        pairs = _side_by_side(noise, column, [REPARAMETRISED, name])
        if len(pairs) < ENOUGH:
            continue
        logs = np.log((pairs[name] / pairs[REPARAMETRISED]).to_numpy())
        mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
        figures.append(f"{name}: {math.exp(mean):.3g} (within {100 * ERRORS * error:.0f}%, {len(logs)} points)")
        held.append(abs(mean - math.log(factor)) <= ERRORS * error)
    return Claim(text, all(held) if held else None, "; ".join(figures))


def _ordered(noise: pl.DataFrame, names: Sequence[str], text: str) -> Claim:
    """Variances for the guide's parameters, from the least noisy estimator to the noisiest."""
    found = _side_by_side(noise, "guide_variance", names)
    if not len(found):
        return Claim(text, None, "no points")
    figures, wrong = [], 0
    for lower, upper in pairwise(names):
        ratios = (found[upper] / found[lower]).to_list()
        finite = [ratio for ratio in ratios if math.isfinite(ratio)]
        wrong += sum(not ratio > 1 for ratio in ratios)
        figures.append(f"{upper} is {_range(finite)} times {lower}" if finite else f"{lower} is 0")
    return Claim(text, wrong == 0, "; ".join([*figures, f"{len(found)} points"]))


def _vanishes(noise: pl.DataFrame, names: Sequence[str], text: str) -> Claim:
    """Variances for the guide's parameters are nothing beside that of the reparametrised estimator."""
    figures, held = [], list[bool]()
    for name in names:
        pairs = _side_by_side(noise, "guide_variance", [REPARAMETRISED, name])
        ratios = (pairs[name] / pairs[REPARAMETRISED]).to_list()
        if ratios:
            figures.append(f"{name}: at most {max(ratios):.1g} of the reparametrised variance")
            held.append(max(ratios) <= VANISHED)
    return Claim(text, all(held) if held else None, "; ".join(figures))


def _analytic(noise: pl.DataFrame, factors: pl.DataFrame) -> Claim:
    """Closed forms at the optimum of factor analysis give a factor below 1; elsewhere either may be noisier."""
    at, all_over = (
        (pairs[ANALYTIC] / pairs[REPARAMETRISED]).to_list()
        for pairs in (_side_by_side(part, "guide_variance", [REPARAMETRISED, ANALYTIC]) for part in (factors, noise))
    )
    figures = f"{_range(at)} there; {_range(all_over)} over all points" if at else ""
    return Claim(
        "At the optimum of factor analysis the analytic KL is less noisy than the KL by Monte Carlo",
        max(at) < 1 if at else None,
        figures,
    )


def _trained(curves: pl.DataFrame) -> Claim:
    """The bound after the last step of the score function, beside that of the reparametrised gradient or of sums."""
    figures, held = [], list[bool]()
    last = curves.group_by("case", "method", "seed", "estimator", maintain_order=True).agg(pl.col("bound").last())
    for (case, method, _), part in last.group_by("case", "method", "seed", maintain_order=True):
        bounds = dict(zip(part["estimator"], part["bound"], strict=True))
        other = bounds.get(REPARAMETRISED, bounds.get(SUMS))
        if SCORE not in bounds or other is None:
            continue
        held.append(math.isnan(bounds[SCORE]) or bounds[SCORE] < other)
        figures.append(f"{case} with {method}: {other - bounds[SCORE]:.2f} nats per row")
    text = (
        "After the same steps, the score function without a baseline ends below the reparametrised gradient, or below "
        "the sum over a discrete site"
    )
    return Claim(text, all(held) if held else None, "; ".join(figures))
