"""Conjugate models x guides x starts x data x seeds, against scikit-learn on the same rows in the same run."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

import guides
from zoo import data
from zoo.alignment.matching import align, posterior_difference
from zoo.base.callables import name_of
from zoo.base.module import Module
from zoo.base.protocols import HasPosterior, Mixture
from zoo.base.threads import suited_to
from zoo.benchmark.rows import Rows
from zoo.infer.asked import Start
from zoo.infer.run import Fit
from zoo.infer.starts import best_of
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA

SCIKIT: tuple[str, Start] = ("scikit-learn", "random")
BOTH: tuple[Start, ...] = ("random", "data")
STARTS = 10  # random starts of a mixture, for EM, SVI and scikit-learn


@dataclass(frozen=True)
class Case:
    """A model on a data set.

    Attributes:
        name: its name in the table.
        rows: returns the data (n, d) in float64.
        build: returns a fresh model for d columns.
        scikit: returns scikit-learn's estimator for a seed.
        mixture: whether the likelihood has several maxima, so that the best of several starts is taken.
    """

    name: str
    rows: Callable[[], Tensor]
    build: Callable[[int], Module]
    scikit: Callable[[int], Any]
    mixture: bool = False


def simulated() -> Tensor:
    """1000 rows x 20 columns from 5 factors with noise variances between 0.25 and 2.25, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    scale = 0.5 + torch.rand(20, generator=generator, dtype=torch.float64)
    return z @ weight.T + scale * torch.randn(1000, 20, generator=generator, dtype=torch.float64)


def digits() -> Tensor:
    """scikit-learn's digits without constant columns: 1797 rows x 61 columns."""
    x = data.load("digits", dtype=torch.float64).x
    return x[:, x.amax(0) > x.amin(0)]


def _named(name: str) -> Callable[[], Tensor]:
    return lambda: data.load(name, dtype=torch.float64).x


def _factors(name: str, rows: Callable[[], Tensor], cls: type, k: int) -> Case:
    def scikit(seed: int) -> Any:
        if cls is PPCA:
            return PCA(k, svd_solver="full")
        return ScikitFactorAnalysis(k, svd_method="lapack", tol=1e-8, max_iter=100_000)

    return Case(f"{name} {cls.__name__} {k}", rows, lambda d: cls(d, k), scikit)


def _mixture(name: str, k: int, covariance: Any) -> Case:
    def scikit(seed: int) -> Any:
        return GaussianMixture(
            k, covariance_type=covariance, tol=1e-10, max_iter=10_000, n_init=STARTS, random_state=seed
        )

    return Case(f"{name} GMM {k} {covariance}", _named(name), lambda d: GMM(d, k, covariance), scikit, mixture=True)


CONJUGATE = (
    *(_factors("iris", _named("iris"), PPCA, k) for k in (1, 2, 3)),
    *(_factors("holzinger", _named("holzinger"), cls, k) for cls in (PPCA, FactorAnalysis) for k in (1, 2)),
    *(_factors("simulated", simulated, cls, 5) for cls in (PPCA, FactorAnalysis)),
    _mixture("faithful", 2, "full"),
    _mixture("faithful", 3, "tied"),
    _mixture("iris", 2, "full"),
    *(_factors("digits", digits, cls, 10) for cls in (PPCA, FactorAnalysis)),
)

GUIDES: dict[str, Callable[[Module, Tensor], Module]] = {
    "Exact": lambda model, x: guides.Exact(model),
    "FullRank": lambda model, x: guides.FullRank(model, x),
    "MeanField": lambda model, x: guides.MeanField(model, x),
    "Amortized linear": lambda model, x: guides.Amortized(model, x, hidden=()),
    "Amortized 64-64": lambda model, x: guides.Amortized(model, x, hidden=(64, 64)),
}


def benchmark_conjugate(
    folder: str | Path,
    *,
    seeds: Sequence[int] = range(5),
    only: str | None = None,
    guide_names: Sequence[str] = tuple(GUIDES),
    starts: Sequence[Start] = BOTH,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pl.DataFrame:
    """Compare SVI with EM's optimum: every conjugate model with every guide, from random and from default starts.

    Finished rows are appended to ``rows.jsonl`` in the folder and not run again, so that an interrupted benchmark
    resumes. At the end ``table.csv``, ``table.md`` and ``table.nc`` are written.

    Args:
        folder: for the rows and tables; created if necessary.
        seeds: one run per case, method and seed; for a mixture the best of ten starts.
        only: run only cases with this text in their names.
        guide_names: the guides, by their names in the table.
        starts: where the models start, ``"random"`` or ``"data"`` (the default of :func:`zoo.fit`), or both.
        report: called with every new row.

    Returns:
        one row per case, start, method and seed: log marginal, ELBO and gap per row in nats; ``distance``, EM's optimum
        minus the log marginal; ``mean_error``, the largest difference between the guide's posterior means and EM's
        after alignment, in posterior standard deviations (for a mixture: of responsibilities); steps and seconds. NaN
        if all starts failed.

    Raises:
        ValueError: there is no such case or guide.
    """
    cases = [case for case in CONJUGATE if only is None or only.lower() in case.name.lower()]
    if not cases:
        raise ValueError(f"no case has {only!r} in its name: choose from {', '.join(case.name for case in CONJUGATE)}")
    if unknown := [name for name in guide_names if name not in GUIDES]:
        raise ValueError(f"unknown guide {unknown[0]!r}: choose from {', '.join(GUIDES)}")
    if odd := [start for start in starts if start not in BOTH]:
        raise ValueError(f"unknown start {odd[0]!r}: choose from {', '.join(BOTH)}")
    rows = Rows(folder)
    done = {(row["case"], row["method"], row.get("start", "random"), row["seed"]) for row in rows}
    methods = [SCIKIT, *((name, start) for start in starts for name in guide_names)]
    for row in _run(cases, seeds, methods, done):
        rows.append(row)
        report(row)
    return rows.write(markdown)


def _run(
    cases: Sequence[Case],
    seeds: Sequence[int],
    methods: Sequence[tuple[str, Start]],
    done: set[tuple[str, str, str, int]],
) -> Iterator[dict[str, Any]]:
    for case in cases:
        wanted = [(method, seed) for method in methods for seed in seeds if (case.name, *method, seed) not in done]
        if not wanted:
            continue
        x = case.rows()
        n, d = x.shape
        reference = best_of(lambda: case.build(d).double(), x, seeds=STARTS if case.mixture else 1, tol=1e-12).best  # noqa: B023
        with torch.no_grad():
            optimum = float(reference.log_marginal(x).mean())
        for (name, start), seed in wanted:
            head = {"case": case.name, "method": name, "start": start, "seed": seed}
            head |= {"rows": n, "columns": d, "optimum": optimum}
            with suited_to(x.shape, reference):
                if (name, start) == SCIKIT:
                    run: dict[str, Any] | None = _scikit(case, x, seed)
                else:
                    run = _svi(case, x, name, start, seed, reference)
            if run is not None:
                yield {**head, **run, "distance": optimum - run["log_marginal"]}


def _svi(case: Case, x: Tensor, method: str, start: Start, seed: int, reference: Any) -> dict[str, Any] | None:
    """One run of SVI with its defaults but the start; None if the guide is not available for the model."""

    def build() -> tuple[Module, Module]:
        model = case.build(x.shape[1]).double()
        return model, GUIDES[method](model, x)

    try:
        build()
    except guides.CannotServe:
        return None
    starts = range(STARTS * seed, STARTS * (seed + 1)) if case.mixture else [seed]
    started = time.perf_counter()
    try:
        result = best_of(build, x, seeds=starts, start=start, progress=False)
    except FloatingPointError:  # all starts failed
        seconds = time.perf_counter() - started
        return dict.fromkeys(("log_marginal", "elbo", "gap", "mean_error"), math.nan) | {"steps": 0, "seconds": seconds}
    seconds = time.perf_counter() - started
    model, guide = result.best.model, result.best.guide
    with torch.no_grad():
        log_marginal = float(model.log_marginal(x).mean())
        bound = float(model.elbo(x, guide.posterior(x)).mean())
        error = _mean_error(result.best, reference, x)
    return {
        "log_marginal": log_marginal,
        "elbo": bound,
        "gap": log_marginal - bound,
        "mean_error": error,
        "steps": sum(start.steps or 0 for start in result.table),
        "seconds": seconds,
    }


def _mean_error(run: Fit, reference: Any, x: Tensor) -> float:
    """The largest difference of posterior means from the reference's, in its posterior standard deviations."""
    mixture = isinstance(reference, Mixture)
    if mixture:
        return float(posterior_difference(run.model, reference, x).abs().max())
    if not isinstance(run.guide, HasPosterior):
        raise TypeError(f"{name_of(run.guide)} has no method posterior")
    truth = reference.posterior(x)
    aligned = align(run.model, reference).factors(run.guide.posterior(x).mean)
    return float(((aligned - truth.mean) / truth.stddev).abs().max())


def _scikit(case: Case, x: Tensor, seed: int) -> dict[str, Any]:
    """scikit-learn's estimator on the same rows and as many threads."""
    rows = x.numpy()
    estimator = case.scikit(seed)
    with threadpool_limits(torch.get_num_threads()):
        started = time.perf_counter()
        estimator.fit(rows)
        seconds = time.perf_counter() - started
    score = float(estimator.score(rows))
    if isinstance(estimator, PCA):  # its covariance divides by n - 1, the maximum-likelihood estimate by n
        score = _pca_likelihood(estimator, len(x), score)
    return {
        "log_marginal": score,
        "elbo": math.nan,
        "gap": math.nan,
        "mean_error": math.nan,
        "steps": int(getattr(estimator, "n_iter_", 0) or 0),
        "seconds": seconds,
    }


def _pca_likelihood(estimator: PCA, n: int, score: float) -> float:
    """The score with covariances divided by n: scaling S by c changes it by -(d log c + d / c - d) / 2 per row."""
    d, c = estimator.n_features_in_, n / (n - 1)
    # with S the maximum-likelihood covariance, the estimator has the model covariance C(c S) = c C(S)
    return score + 0.5 * (d * math.log(c) + d / c - d)


def markdown(table: pl.DataFrame) -> str:
    """Markdown tables of the largest distance and mean error over the seeds, and of median seconds, by start."""
    kinds = [start for start in BOTH if start in table["start"].unique().to_list()]
    return "\n".join(_of_start(table, start) for start in kinds)


def _of_start(table: pl.DataFrame, start: str) -> str:
    """Three Markdown tables of the runs from one kind of start, with scikit-learn's."""
    table = table.filter((pl.col("start") == start) | (pl.col("method") == SCIKIT[0]))
    origin = {"random": "from random starts", "data": "from the default starts"}[start]
    methods = [name for name in (SCIKIT[0], *GUIDES) if name in table["method"].unique().to_list()]
    cases = [case.name for case in CONJUGATE if case.name in table["case"].to_list()]

    def block(title: str, value: Callable[[pl.DataFrame], str]) -> list[str]:
        lines = [title, "", "| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
        for case in cases:
            cells = [table.filter((pl.col("case") == case) & (pl.col("method") == method)) for method in methods]
            lines.append(f"| {case} | " + " | ".join(value(cell) if len(cell) else "-" for cell in cells) + " |")
        return [*lines, ""]

    count = table["seed"].n_unique()

    def worst(cell: pl.DataFrame, column: str) -> str:
        values = cell[column]
        return "failed" if values.is_nan().any() else f"{max(0.0, max(values.to_list())):.1e}"

    distances = block(
        f"EM's optimum minus the log marginal of the fit, nats per row, {origin}, largest of {count} seeds:",
        lambda cell: worst(cell, "distance"),
    )
    means = block(
        "Posterior means minus EM's after alignment, in posterior standard deviations (mixtures: responsibilities), "
        f"{origin}, largest of all rows and {count} seeds:",
        lambda cell: "-" if cell["method"][0] == SCIKIT[0] else worst(cell, "mean_error"),
    )
    seconds = block(
        f"Seconds, {origin}, median of {count} seeds (mixtures: {STARTS} starts each):",
        lambda cell: f"{statistics.median(cell['seconds'].to_list()):.2f}",
    )
    return "\n".join([*distances, *means, *seconds])
