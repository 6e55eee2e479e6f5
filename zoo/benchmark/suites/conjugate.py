"""``zoo benchmark conjugate``: how far every guide ends from EM's optimum, or from the bound of coordinate ascent.

``quick`` takes about a minute, ``cpu`` some twenty minutes on two cores; ``full`` is ``cpu`` with ten seeds.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from sklearn.decomposition import PCA
from torch import Tensor

import guides
from guides.ascent import cavi
from zoo.alignment.matching import align, posterior_difference
from zoo.base.module import Module
from zoo.base.protocols import ClosedConjugate, Conjugate, HasPosterior, Mixture
from zoo.benchmark.problems import BAYESIAN, BOTH, GUIDES, PROBLEMS, STARTS, Problem
from zoo.benchmark.suite import Case, Cell, Claim, Data, GuideMaker, Measure, Method, ModelMaker, Own, Suite
from zoo.infer.asked import Start
from zoo.infer.coordinate_ascent import VariationalBayes
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.run import Fit
from zoo.infer.starts import best_of
from zoo.posterior.evaluation import evaluate

SCIKIT, CAVI = "scikit-learn", "CAVI"
DRAWS = 2000  # of bounds that have no closed form
NEAR = 1e-6  # nats per row that count as none: L-BFGS stops there
FEW = ("iris PPCA 2", "holzinger FactorAnalysis 1", "faithful GMM 2 full", "iris BayesianPCA 2")  # at quick
BAYESIAN_STARTS = 3  # of mixtures, at most: each takes a hundred times as long
SERVED = ("FullRank", "MeanField", "Amortized linear")  # of Bayesian models
RANDOM = ", random start"
TEXT = """\
Conjugate models have a known answer: EM's optimum of the log likelihood, and the exact posterior there. `distance` is
that optimum (the best of ten starts for mixtures, to 1e-12 of a nat) minus the log likelihood that a fit reaches, and
`mean_error` the largest difference of its posterior means from EM's after alignment, in posterior standard deviations
(for mixtures, of responsibilities). Every guide is fitted by `zoo.fit` with its defaults, from the default start and
from a random one; of mixtures the best of ten starts counts, for scikit-learn too (of Bayesian ones, of three). `gap`
is the log likelihood minus the bound, KL(q || posterior).

For the Bayesian models, in which the parameters have priors, the reference is the bound of coordinate ascent (CAVI),
the best of ten starts, and `distance` is that minus the bound of the guide: below zero where a guide is closer to the
posterior than a product of conjugate factors. Such fits have no start computed from the data. Bounds without a closed
form have a Monte Carlo error, of 2,000 draws.

All in float64.
"""


@dataclass(frozen=True, eq=False)
class Trained:
    """The best of the starts, the steps of all of them, and whether the model is the problem's."""

    run: Fit
    steps: int
    ours: bool


@dataclass(frozen=True)
class Best:
    """Trains a guide with the problem's model, or a user's, from one start; for mixtures the best of several."""

    guide: GuideMaker
    start: Start
    starts: int
    model: ModelMaker | None = None

    def __call__(self, data: Data, cell: Cell) -> Trained:
        problem, x = data.extra["problem"], data.train
        model_of = self.model or problem.build

        def build() -> tuple[Module, Module]:
            model = model_of(x.shape[1]).double()
            return model, self.guide(model, x)

        build()  # refuses what it cannot serve
        count = self.starts if problem.mixture and self.model is None else 1
        count = min(count, BAYESIAN_STARTS) if problem.bayesian else count
        found = best_of(
            build, x, seeds=range(count * cell.seed, count * (cell.seed + 1)), start=self.start, progress=False
        )
        return Trained(found.best, sum(attempt.steps or 0 for attempt in found.table), self.model is None)


def scikit(data: Data, cell: Cell) -> Any:
    """scikit-learn's estimator on the same rows."""
    estimator = data.extra["problem"].scikit(cell.seed)
    if hasattr(estimator, "n_init"):
        estimator.set_params(n_init=data.extra["starts"])
    return estimator.fit(data.train.numpy())


def coordinate_ascent(data: Data, cell: Cell) -> VariationalBayes:
    """The best of ten starts by coordinate ascent."""
    return cavi(data.extra["problem"].build(data.train.shape[1]).double(), data.train, seed=10 * cell.seed)


def measure(fitted: Any, data: Data, cell: Cell) -> dict[str, float]:
    """Distance from the optimum, error of the posterior means, gap and bound."""
    problem, x = data.extra["problem"], data.train
    found = dict.fromkeys(("log_marginal", "elbo", "gap", "mean_error"), math.nan)
    optimum, reference = data.extra["optimum"], data.extra["reference"]
    if isinstance(fitted, Trained):
        found |= _of_pair(fitted.run, x, problem.bayesian)
        found["mean_error"] = _mean_error(fitted.run, reference, x) if fitted.ours else math.nan
        steps = fitted.steps
    elif isinstance(fitted, VariationalBayes):
        found["elbo"], steps = float(fitted[-1]) / len(x), len(fitted)
    else:
        found["log_marginal"], steps = _scikit_score(fitted, x), int(getattr(fitted, "n_iter_", 0) or 0)
    reached = found["elbo" if problem.bayesian or math.isnan(found["log_marginal"]) else "log_marginal"]
    return {**found, "distance": optimum - reached, "steps": steps}


@torch.no_grad()
def _of_pair(run: Fit, x: Tensor, bayesian: bool) -> dict[str, float]:
    """Log likelihood, bound and gap per row, in closed form where there is one."""
    model, guide = run.model, run.guide
    if isinstance(model, ClosedConjugate) and isinstance(guide, HasPosterior):
        log_marginal = float(model.log_marginal(x).mean())
        bound = float(model.elbo(x, guide.posterior(x)).mean())
        return {"log_marginal": log_marginal, "elbo": bound, "gap": log_marginal - bound}
    if bayesian and run.training is not None and run.training.loss == ClosedFormELBO.__name__:
        return {"elbo": -float(ClosedFormELBO().loss(model, guide, x)) / len(x)}
    found = evaluate(run, x, draws=DRAWS)
    bound = found.total / len(x)
    if bayesian or found.estimator != "exact":
        return {"elbo": bound}
    log_marginal = float(found.log_marginal.mean())
    return {"log_marginal": log_marginal, "elbo": bound, "gap": log_marginal - bound}


@torch.no_grad()
def _mean_error(run: Fit, reference: Any, x: Tensor) -> float:
    """The largest difference of posterior means from the reference's, in its posterior standard deviations."""
    guide = run.guide
    if reference is None or not isinstance(guide, HasPosterior):
        return math.nan
    mixture = isinstance(reference, Mixture)
    if mixture:
        return float(posterior_difference(run.model, reference, x).abs().max())
    truth, found = reference.posterior(x), guide.posterior(x)
    aligned = align(run.model, reference).factors(found.mean)
    return float(((aligned - truth.mean) / truth.stddev).abs().max())


def _scikit_score(estimator: Any, x: Tensor) -> float:
    """scikit-learn's log likelihood per row, of PCA with covariances divided by n and not by n - 1.

    Scaling S by c changes it by -(d log c + d / c - d) / 2 per row: with S the maximum-likelihood covariance, the
    estimator has the model covariance C(c S) = c C(S).
    """
    score = float(estimator.score(x.numpy()))
    if not isinstance(estimator, PCA):
        return score
    d, c = x.shape[1], len(x) / (len(x) - 1)
    return score + 0.5 * (d * math.log(c) + d / c - d)


@functools.cache
def reference(name: str, starts: int) -> tuple[float, Any]:
    """The optimum per row of a problem in nats, and EM's model (of Bayesian models None)."""
    problem = PROBLEMS[name]
    x = problem.rows()
    if problem.bayesian:
        return float(cavi(problem.build(x.shape[1]).double(), x)[-1]) / len(x), None
    found = best_of(lambda: problem.build(x.shape[1]).double(), x, seeds=starts if problem.mixture else 1, tol=1e-12)
    with torch.no_grad():
        return float(found.best.log_marginal(x).mean()), found.best


def _case(problem: Problem, starts: int) -> Case:
    name = problem.name

    def load(seed: int) -> Data:
        x = PROBLEMS[name].rows()
        optimum, model = reference(name, starts)  # once in a process
        extra = {"problem": PROBLEMS[name], "optimum": optimum, "reference": model, "starts": starts}
        return Data(train=x, test=x, extra=extra)

    protocol = {"data": problem.data, "model": problem.model.__name__, **problem.sizes, "dtype": "float64"}
    protocol["reference"] = "CAVI, best of 10 starts" if problem.bayesian else "EM, tol 1e-12"
    if problem.mixture:
        protocol["starts"] = starts
    if problem.data == "digits":
        protocol["columns"] = "those that are not constant"
    if problem.data == "simulated":
        protocol["rows"] = "1000 x 20 from 5 factors, noise variances 0.25 to 2.25, torch's generator with seed 0"
    own = () if problem.data == "simulated" else (problem.data,)
    return Case(name, load, protocol, data=own)


def _methods(bayesian: frozenset[str], starts: int, quick: bool) -> list[Method]:
    """scikit-learn, coordinate ascent, and every guide from both starts."""
    found = [
        Method(SCIKIT, scikit, {"start": "its own"}, lambda c: c.name not in bayesian, ("scikit-learn",), True),
        Method(CAVI, coordinate_ascent, {"starts": 10}, lambda c: c.name in bayesian, ("cavi",)),
    ]
    for start in reversed(BOTH):
        for name, guide in GUIDES.items():
            found.append(
                Method(
                    name + RANDOM * (start == "random"),
                    Best(guide, start, starts),
                    {"fit": "defaults of zoo.fit", "start": start},
                    _serves(name, start, bayesian, ("MeanField",) if quick else SERVED),
                    (name.split()[0],),
                )
            )
    return found


def _serves(guide: str, start: Start, bayesian: frozenset[str], served: tuple[str, ...]) -> Callable[[Case], bool]:
    """Bayesian models have no exact guide, and no start from the data but the default one."""
    return lambda case: case.name not in bayesian or (start == "data" and guide in served)


def _own(own: Own, cases: Sequence[Case], starts: int) -> Method:
    """A user's guide with the models of all cases; or a user's model, on the first case of every data set."""
    guide = own.guide or _some_guide
    once = {case.protocol["data"]: case.name for case in reversed(cases)}
    return Method(
        own.name,
        Best(guide, "data", starts, own.model),
        {"fit": "defaults of zoo.fit", "start": "data"},
        (lambda case: True) if own.model is None else (lambda case: case.name in once.values()),
    )


def _some_guide(model: Module, x: Tensor) -> Module:
    """The exact posterior where the model has it, else a linear encoder."""
    return guides.Exact(model) if isinstance(model, Conjugate) else guides.Amortized(model, x, hidden=())


def claims(table: pl.DataFrame) -> list[Claim]:
    """SVI reaches EM's optimum and posterior; exact guides have no gap; mean field reaches CAVI's bound."""
    done = table.filter(pl.col("status") == "done")
    bayesian = pl.col("case").is_in([problem.name for problem in BAYESIAN])
    svi = done.filter(~bayesian & (pl.col("method").str.replace(RANDOM, "", literal=True).is_in(list(GUIDES))))
    linear = svi.filter(~pl.col("case").str.contains("GMM"))
    start = pl.col("method").str.ends_with(RANDOM)
    exact = linear.filter(pl.col("method").str.contains("^(Exact|FullRank)"))
    field = done.filter(bayesian & (pl.col("method") == "MeanField"))
    return [
        _below("From the default start every guide reaches EM's optimum", svi.filter(~start), "distance", NEAR),
        _below("So it does from random starts", svi.filter(start), "distance", NEAR),
        _below("Posterior means are EM's, to 0.001 of a standard deviation", svi, "mean_error", 1e-3),
        _below("On linear models Exact and FullRank have no gap", exact, "gap", 1e-8, both=True),
        _below(
            "On Bayesian models SVI with MeanField reaches the bound of CAVI, and no other",
            field,
            "distance",
            NEAR,
            both=True,
        ),
    ]


def _below(text: str, rows: pl.DataFrame, measure: str, most: float, *, both: bool = False) -> Claim:
    """Whether a measure stays below a limit in every row; ``both`` limits negative values too."""
    rows = rows.filter(pl.col(measure).is_not_nan())
    if both:
        rows = rows.with_columns(pl.col(measure).abs())
    if rows.is_empty():
        return Claim(text, None, "no such rows")
    worst = rows.sort(measure, descending=True).row(0, named=True)
    where = f"{worst['case']}, {worst['method']}, seed {worst['seed']}"
    figures = f"largest {measure} of {len(rows)} runs {worst[measure]:.1e}, of {where}; the limit is {most:.0e}"
    return Claim(text, worst[measure] <= most, figures)


def suite(budget: str) -> Suite:
    """The benchmark ``conjugate``."""
    quick = budget == "quick"
    starts = 2 if quick else STARTS
    problems = [problem for problem in PROBLEMS.values() if not quick or problem.name in FEW]
    cases = [_case(problem, starts) for problem in problems]
    bayesian = frozenset(problem.name for problem in BAYESIAN)
    return Suite(
        name="conjugate",
        question="How far does each guide end from the known optimum?",
        cases=cases,
        methods=_methods(bayesian, starts, quick),
        measures=[
            Measure("distance", "nats per row", "lower", 1, "the optimum minus what was reached", True, NEAR),
            Measure("mean_error", "sd", "lower", 1, "largest error of posterior means", True, 1e-3),
            Measure("gap", "nats per row", None, 1, "log likelihood minus bound", True),
            Measure("elbo", "nats per row", None, 4, "the evidence lower bound"),
            Measure("log_marginal", "nats per row", None, 4, "the log likelihood", shown=False),
            Measure("steps", "", None, 0, "steps of all starts (scikit-learn: iterations)"),
        ],
        measure=measure,
        seeds={"quick": 1, "cpu": 5, "full": 10}[budget],
        budget=budget,
        own=lambda own: _own(own, cases, starts),
        claims=claims,
        text=TEXT,
    )
