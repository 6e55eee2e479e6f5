"""Conjugate models x guides x data x seeds, beside scikit-learn on the same rows in the same run."""

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
from torch import Tensor

import guides
from zoo import data
from zoo.alignment.matching import align, posterior_difference
from zoo.benchmark.rows import Rows
from zoo.infer.starts import best_of
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA

STARTS = 10  # of a mixture, for EM, for SVI and for scikit-learn alike


@dataclass(frozen=True)
class Case:
    """A model on a data set.

    Attributes:
        name: what the table calls it.
        rows: gives the data (n, d) in float64.
        build: gives a fresh model for d columns.
        scikit: gives scikit-learn's estimator for a seed.
        mixture: whether the bound has several maxima, so that the best of several starts counts.
    """

    name: str
    rows: Callable[[], Tensor]
    build: Callable[[int], Any]
    scikit: Callable[[int], Any]
    mixture: bool = False


def simulated() -> Tensor:
    """1000 rows x 20 columns from 5 factors, noise variances between 0.25 and 2.25; always the same."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    scale = 0.5 + torch.rand(20, generator=generator, dtype=torch.float64)
    return z @ weight.T + scale * torch.randn(1000, 20, generator=generator, dtype=torch.float64)


def digits() -> Tensor:
    """scikit-learn's digits without the columns that are constant: 1797 rows x 61 columns."""
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

GUIDES: dict[str, Callable[[Any, Tensor], Any]] = {
    "Exact": lambda model, x: guides.Exact(model),
    "FullRank": lambda model, x: guides.FullRank(model, x),
    "MeanField": lambda model, x: guides.MeanField(model, x),
    "Amortized linear": lambda model, x: guides.Amortized(model, x, hidden=()),
    "Amortized 64-64": lambda model, x: guides.Amortized(model, x, hidden=(64, 64)),
}


def conjugate(
    folder: str | Path,
    *,
    seeds: Sequence[int] = range(5),
    only: str | None = None,
    guide_names: Sequence[str] = tuple(GUIDES),
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pl.DataFrame:
    """How near SVI comes to EM's optimum: every conjugate model with every guide that serves it, from random starts.

    Every finished cell is appended to ``rows.jsonl`` in the folder; cells found there are not run again, so an
    interrupted benchmark resumes where it was. At the end ``table.csv``, ``table.md`` and ``table.nc`` are written.

    Args:
        folder: where the rows are kept; made if it is not there.
        seeds: one run of every cell per seed; the best of ten starts where the model is a mixture.
        only: part of a case's name, to run a few of them.
        guide_names: which guides, by their names in the table.
        report: called with every new row.

    Returns:
        one row per case, method and seed: log marginal, bound and gap per row in nats; ``distance``, EM's optimum minus
        the log marginal; ``mean_error``, the largest difference of the guide's posterior means from EM's after
        alignment, in posterior standard deviations (of responsibilities: in probability); steps and seconds. NaN where
        every start failed.

    Raises:
        ValueError: no case or guide of that name.
    """
    cases = [case for case in CONJUGATE if only is None or only.lower() in case.name.lower()]
    if not cases:
        raise ValueError(f"no case has {only!r} in its name: there are {', '.join(case.name for case in CONJUGATE)}")
    if unknown := [name for name in guide_names if name not in GUIDES]:
        raise ValueError(f"unknown guide {unknown[0]!r}: there are {', '.join(GUIDES)}")
    rows = Rows(folder)
    done = {(row["case"], row["method"], row["seed"]) for row in rows}
    for row in _run(cases, seeds, guide_names, done):
        rows.append(row)
        report(row)
    return rows.write(markdown)


def _run(
    cases: Sequence[Case], seeds: Sequence[int], guide_names: Sequence[str], done: set[tuple[str, str, int]]
) -> Iterator[dict[str, Any]]:
    for case in cases:
        methods = ["scikit-learn", *guide_names]
        wanted = [(m, s) for m in methods for s in seeds if (case.name, m, s) not in done]
        if not wanted:
            continue
        x = case.rows()
        n, d = x.shape
        reference = best_of(lambda: case.build(d).double(), x, seeds=STARTS if case.mixture else 1, tol=1e-12).best  # noqa: B023
        with torch.no_grad():
            optimum = float(reference.log_marginal(x).mean())
        for method, seed in wanted:
            head = {"case": case.name, "method": method, "seed": seed, "rows": n, "columns": d, "optimum": optimum}
            run = _scikit(case, x, seed) if method == "scikit-learn" else _svi(case, x, method, seed, reference)
            if run is not None:
                yield {**head, **run, "distance": optimum - run["log_marginal"]}


def _svi(case: Case, x: Tensor, method: str, seed: int, reference: Any) -> dict[str, Any] | None:
    """One run of SVI with its defaults; None where the guide cannot serve the model."""

    def build() -> tuple[Any, Any]:
        model = case.build(x.shape[1]).double()
        return model, GUIDES[method](model, x)

    try:
        build()
    except guides.CannotServe:
        return None
    starts = range(STARTS * seed, STARTS * (seed + 1)) if case.mixture else [seed]
    started = time.perf_counter()
    try:
        result = best_of(build, x, seeds=starts, progress=False)
    except FloatingPointError:  # every start failed: a row of the table, not the end of it
        seconds = time.perf_counter() - started
        return dict.fromkeys(("log_marginal", "elbo", "gap", "mean_error"), math.nan) | {"steps": 0, "seconds": seconds}
    seconds = time.perf_counter() - started
    run = result.best
    with torch.no_grad():
        log_marginal = float(run.model.log_marginal(x).mean())
        bound = float(run.model.elbo(x, run.guide.posterior(x)).mean())
        error = _mean_error(run, reference, x)
    return {
        "log_marginal": log_marginal,
        "elbo": bound,
        "gap": log_marginal - bound,
        "mean_error": error,
        "steps": sum(start.steps or 0 for start in result.table),
        "seconds": seconds,
    }


def _mean_error(run: Any, reference: Any, x: Tensor) -> float:
    """The largest difference of posterior means from the reference's, in its posterior standard deviations."""
    if hasattr(reference, "components"):
        return float(posterior_difference(run.model, reference, x).abs().max())
    truth = reference.posterior(x)
    aligned = align(run.model, reference).factors(run.guide.posterior(x).mean)
    return float(((aligned - truth.mean) / truth.stddev).abs().max())


def _scikit(case: Case, x: Tensor, seed: int) -> dict[str, Any]:
    """scikit-learn's estimator on the same rows."""
    rows = x.numpy()
    estimator = case.scikit(seed)
    started = time.perf_counter()
    estimator.fit(rows)
    seconds = time.perf_counter() - started
    score = float(estimator.score(rows))
    if isinstance(estimator, PCA):  # its noise variance divides by n - 1; the model's is the maximum-likelihood one
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
    """The score under covariances that divide by n: scaling S by c adds -(d log c + d / c - d) / 2 per row."""
    d, c = estimator.n_features_in_, n / (n - 1)
    # the sample's own covariance is S, the estimator's model covariance C(S n / (n - 1)) = c C(S)
    return score + 0.5 * (d * math.log(c) + d / c - d)


def markdown(table: pl.DataFrame) -> str:
    """Three tables: the worst distance and the worst posterior means over the seeds, and the median seconds."""
    methods = [name for name in ("scikit-learn", *GUIDES) if name in table["method"].unique().to_list()]
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
        f"EM's optimum minus the log marginal reached, nats per row, worst of {count} seeds:",
        lambda cell: worst(cell, "distance"),
    )
    means = block(
        f"Posterior means against EM's after alignment, in posterior standard deviations (mixtures: responsibilities), "
        f"the worst entry of all rows, worst of {count} seeds:",
        lambda cell: "-" if cell["method"][0] == "scikit-learn" else worst(cell, "mean_error"),
    )
    seconds = block(
        f"Seconds, median of {count} seeds (mixtures: {STARTS} starts each):",
        lambda cell: f"{statistics.median(cell['seconds'].to_list()):.2f}",
    )
    return "\n".join([*distances, *means, *seconds])
