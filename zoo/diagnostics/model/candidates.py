"""Fits of a model of one size: likelihood, AIC, BIC, variational bound, and log p(x) of held-out rows."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from guides.ascent import cavi
from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import check_rows
from zoo.base.protocols import ConditionallyConjugate, Conjugate, ConjugateGivenShared, HoldsRows
from zoo.base.random import seeded
from zoo.diagnostics.model.criteria import information_criteria, log_density
from zoo.diagnostics.model.predictive_density import predictive_density
from zoo.infer.coordinate_ascent import VariationalBayes
from zoo.infer.run import Fit
from zoo.infer.starts import best_of
from zoo.posterior.evidence import log_evidence_bounds

FAILURES = (ValueError, FloatingPointError, torch.linalg.LinAlgError)  # divergence, or a collapsed component
STEPS = 1000  # of EM: with too many factors a variance takes ten thousands to reach its floor, for a gain of 0.1 nats
Trained = Fit | PyroCallable  # a pair, or a conjugate model alone
Builder = Callable[[int, Tensor], PyroCallable | tuple[PyroCallable, PyroCallable]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One row of a :class:`Selection`. Values that are not available are None.

    Attributes:
        value: the number of factors or components.
        seconds: wall-clock time of all its fits.
        log_likelihood: log p(x) of all rows in nats, the best of the starts.
        df: the number of free parameters; see :func:`zoo.diagnostics.model.criteria.free_parameters`.
        aic: in nats; smaller is better.
        bic: in nats; smaller is better.
        bound: the bound on log p(X) that :func:`zoo.cavi` reaches, in nats over all rows; larger is better.
        log_p: log p(x) of every held-out row (m,) in nats; under priors on the parameters the predictive density, and
            without a closed form an importance-weighted lower bound in expectation.
        near: the number of starts within 0.01 nats of the best one.
        starts: the number of starts.
        weights: of the held-out rows (m,); None for ones.
        error: why the fit, or that of a fold, failed.
        best: the best model on all rows, or the :class:`zoo.Fit` if there is a guide.
    """

    value: int
    seconds: float = 0.0
    log_likelihood: float | None = None
    df: int | None = None
    aic: float | None = None
    bic: float | None = None
    bound: float | None = None
    log_p: Tensor | None = field(default=None, repr=False)
    near: int | None = None
    starts: int | None = None
    error: str | None = None
    best: Trained | None = field(default=None, repr=False)
    weights: Tensor | None = field(default=None, repr=False)

    @property
    def held_out(self) -> float | None:
        """The mean log p(x) of the held-out rows in nats per row; larger is better."""
        return None if self.log_p is None else mean(self.log_p, self.weights)

    @property
    def held_out_se(self) -> float | None:
        """Its standard error over the sampling of rows, taking folds as independent, which they nearly are."""
        return None if self.log_p is None else standard_error(self.log_p, self.weights)


@dataclass(frozen=True, eq=False)
class Search:
    """How candidates are fitted and compared.

    Attributes:
        build: a function of a value and rows that returns a fresh conjugate model, or a fresh model and guide.
        x: the rows (n, d).
        held_out: rows (m, d) for the comparison, or None; they count once.
        folds: row indices of every fold of a cross-validation; empty without one.
        seeds: of the starts.
        draws: for log p(x) without a closed form.
        seed: of these draws.
        options: for :func:`zoo.em`, :func:`zoo.fit` or :func:`zoo.cavi`.
        weights: of the rows (n,), float64; None for ones.
    """

    build: Builder
    x: Tensor
    held_out: Tensor | None
    folds: tuple[Tensor, ...]
    seeds: tuple[int, ...]
    draws: int
    seed: int
    options: dict[str, Any]
    weights: Tensor | None = None

    def candidate(self, value: int) -> Candidate:
        """Fit the model of one size, and evaluate it."""
        started = time.perf_counter()
        row = Candidate(value)
        try:
            row = self._on_all_rows(row)
        except FAILURES as error:
            return replace(row, error=_brief(error), seconds=time.perf_counter() - started)
        if row.best is not None and self.held_out is not None:
            try:
                row = replace(row, log_p=self._score(row.best, self.held_out))
            except FAILURES as error:
                row = replace(row, error=f"held-out rows: {_brief(error)}")
        elif self.folds:
            row = self._on_folds(row)
        return replace(row, seconds=time.perf_counter() - started)

    def _on_all_rows(self, row: Candidate) -> Candidate:
        """The row with the fit to all rows, and its criteria if the model is conjugate."""
        compared = bool(self.folds) or self.held_out is not None
        best, near, starts = self._fit(row.value, self.x, self.weights, new_rows=compared)
        row = replace(row, best=best, near=near, starts=starts)
        if isinstance(best, VariationalBayes):
            return replace(row, bound=float(best[-1]))
        if not isinstance(_model(best), Conjugate):
            return row
        found = information_criteria(_model(best), self.x, weights=self.weights)
        return replace(row, log_likelihood=found.log_likelihood, df=found.df, aic=found.aic, bic=found.bic)

    def _on_folds(self, row: Candidate) -> Candidate:
        """The row with log p(x) of every row under the fit to the other folds."""
        log_p = self.x.new_empty(len(self.x), dtype=torch.float64, device="cpu")
        for number, index in enumerate(self.folds):
            keep = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
            keep[index] = False
            try:
                own = None if self.weights is None else self.weights[keep]
                best, _, _ = self._fit(row.value, self.x[keep], own, new_rows=True)
                log_p[index.cpu()] = self._score(best, self.x[index])
            except FAILURES as error:
                return replace(row, error=f"fold {number}: {_brief(error)}")
        return replace(row, log_p=log_p, weights=None if self.weights is None else self.weights.cpu())

    def _fit(self, value: int, x: Tensor, weights: Tensor | None, *, new_rows: bool) -> tuple[Trained, int, int]:
        """The best of several starts, the number of starts near it, and the number of all.

        Raises:
            TypeError: the guide has parameters for the fitted rows only, and will be evaluated on new rows.
        """
        options = self.options if weights is None else self.options | {"weights": weights}
        with seeded(0):
            made = self.build(value, x)
        if isinstance(made, tuple):
            if new_rows and not isinstance(undecorated(made[0]), ConjugateGivenShared):
                _refuse_bound_to_rows(made[1])
        elif isinstance(undecorated(made), ConditionallyConjugate):
            given = {name: value for name, value in options.items() if name != "progress"}
            found = cavi(made, x, restarts=len(self.seeds), seed=self.seeds[0], **given)
            return found, len(found.near()), len(found.attempts)
        else:
            options = {"steps": STEPS} | {name: given for name, given in options.items() if name != "progress"}
        best = best_of(lambda: self.build(value, x), x, seeds=self.seeds, **options)
        return best.best, len(best.near()), len(best.table)

    def _score(self, best: Trained, x: Tensor) -> Tensor:
        """log p(x) of new rows (m,), in float64 on the CPU.

        Raises:
            ValueError: it is not finite for some row.
        """
        x = check_rows(x, _model(best))
        if isinstance(best, Fit) and isinstance(undecorated(best.model), ConjugateGivenShared):
            log_p = predictive_density(best, x, draws=self.draws, seed=self.seed).log_density.double().cpu()
        elif isinstance(best, Fit) and not isinstance(best.model, Conjugate):
            bounds = log_evidence_bounds(best, x, draws=(self.draws,), seed=self.seed)
            log_p = bounds[f"IWAE-{self.draws}"].values.double().cpu()
        else:
            log_p = log_density(_model(best), x)
        wrong = (~log_p.isfinite()).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"log p(x) of held-out row {wrong[0]} is {log_p[wrong[0]].item()} (and of {len(wrong) - 1} more)"
            )
        return log_p


def mean(values: Tensor, weights: Tensor | None = None) -> float:
    """The mean of values (m,), weighted."""
    return float(values.mean() if weights is None else values @ weights / weights.sum())


def standard_error(values: Tensor, weights: Tensor | None = None) -> float:
    """The standard error of a mean; of values that count as often as their weights, as if they were repeated."""
    if weights is not None:
        size = float(weights.sum())
        spread = float((values - mean(values, weights)).square() @ weights)
        return (spread / (size - 1) / size) ** 0.5 if size > 1 else math.nan
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def _model(best: Trained) -> PyroCallable:
    return best.model if isinstance(best, Fit) else best


def _refuse_bound_to_rows(guide: PyroCallable) -> None:
    """Refuse a guide with parameters for every row, which has none for new rows.

    Raises:
        TypeError: this is one.
    """
    if isinstance(undecorated(guide), HoldsRows) or isinstance(unwrapped(guide), AutoGuide):
        raise TypeError(
            f"{name_of(guide)} has parameters only for the rows it is fitted to, not for held-out rows: build "
            "Amortized or Exact, or a guide that computes q(z | x) from the row"
        )


def _brief(error: BaseException) -> str:
    """The first line of an error, and the first reason that it lists."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[1].strip()}"
