"""How many factors, how many components: one fit for every number, by likelihood, criteria and held-out rows."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import polars as pl
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import ConditionallyConjugate, Conjugate, HoldsRows
from zoo.base.random import seeded
from zoo.diagnostics.model.criteria import information_criteria, log_density
from zoo.infer.coordinate_ascent import VariationalBayes, cavi
from zoo.infer.run import Fit
from zoo.infer.starts import best_of, each_seed
from zoo.posterior.evaluation import LEAST_DRAWS
from zoo.posterior.evidence import log_evidence_bounds

Measure = Literal["bic", "bound", "aic", "held_out"]
FAILURES = (
    ValueError,
    FloatingPointError,
    torch.linalg.LinAlgError,
)  # a bound that diverges, a component that collapses
STEPS = 1000  # of EM: with a factor too many a variance creeps to its floor for ten thousands, for a tenth of a nat


@dataclass(frozen=True, eq=False)
class Candidate:
    """One row of a :class:`Selection`. What could not be had is None.

    Attributes:
        value: the number of factors or components.
        seconds: wall-clock time of all its fits.
        log_likelihood: log p(x) of all rows, in nats, the best of the starts.
        df: the number of free parameters, see :func:`zoo.diagnostics.model.criteria.free_parameters`.
        aic: in nats, less is better.
        bic: in nats, less is better.
        bound: of a model with priors on everything, the bound on log p(X) that :func:`zoo.cavi` reaches: in nats over
            all rows, more is better.
        log_p: log p(x) of every row that was held out (m,), in nats; by importance weighting where there is no closed
            form, so that its expectation is a bound from below.
        near: the number of starts within 0.01 nats of the best one.
        starts: the number of starts.
        error: why the fit failed, or that to the rows of a fold.
        best: the best model (of a fit with a guide, the :class:`zoo.Fit`) on all rows.
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
    best: Any = field(default=None, repr=False)

    @property
    def held_out(self) -> float | None:
        """The mean log p(x) of the held-out rows, in nats per row: more is better."""
        return None if self.log_p is None else float(self.log_p.mean())

    @property
    def held_out_se(self) -> float | None:
        """Its standard error for rows like these (it takes the folds for independent, which they nearly are)."""
        return None if self.log_p is None else _error(self.log_p)


@dataclass(frozen=True, eq=False)
class Selection:
    """What :func:`select_size` returns.

    Attributes:
        table: one :class:`Candidate` per value, in the order of the values, failures included.
        n: the number of rows fitted.
        how: which rows were held out, in words.
    """

    table: tuple[Candidate, ...]
    n: int
    how: str

    def __getitem__(self, value: int) -> Candidate:
        for row in self.table:
            if row.value == value:
                return row
        raise KeyError(f"no value {value!r}: there are {', '.join(str(row.value) for row in self.table)}")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the rows can be ranked by here."""
        return tuple(by for by in get_args(Measure) if any(getattr(row, by) is not None for row in self.table))

    def best(self, by: Measure | None = None) -> Candidate:
        """The row of lowest ``"bic"`` or ``"aic"``, of highest ``"bound"`` or ``"held_out"`` log p(x); ties: the first.

        Args:
            by: None takes BIC where the models have one, then the bound on log p(X), and held-out rows otherwise.

        Raises:
            ValueError: there is no such measure, or no row has it.
        """
        if by is not None and by not in get_args(Measure):
            raise ValueError(f"by must be one of {', '.join(get_args(Measure))}; got {by!r}")
        if by is None:
            by = self.measures[0]
        if by not in self.measures:
            raise ValueError(
                f"no row has {by!r} here: there is {', '.join(self.measures)} (AIC and BIC need a closed-form "
                "likelihood, held_out needs folds or held-out rows)"
            )
        sign = 1 if by in ("bound", "held_out") else -1
        rows = [row for row in self.table if getattr(row, by) is not None]
        return max(rows, key=lambda row: sign * getattr(row, by))

    def below(self, value: int) -> tuple[float, float]:
        """How far the held-out log p(x) of a value is below the best one, in nats per row, with its standard error.

        The error is that of the rows' differences, as all values are evaluated on the same rows: most often much
        smaller than that of either. A simpler model within one or two of them is hardly worse.
        """
        log_p, top = self[value].log_p, self.best("held_out").log_p
        if log_p is None or top is None:
            raise ValueError(f"value {value} has no held-out log p(x): {self[value].error}")
        return float((top - log_p).mean()), _error(top - log_p)

    def frame(self) -> pl.DataFrame:
        """The table, one line per value; null for what could not be had."""
        kinds = {
            "value": pl.Int64,
            "log_likelihood": pl.Float64,
            "df": pl.Int64,
            "aic": pl.Float64,
            "bic": pl.Float64,
            "bound": pl.Float64,
            "held_out": pl.Float64,
            "held_out_se": pl.Float64,
            "below": pl.Float64,
            "below_se": pl.Float64,
            "near": pl.Int64,
            "starts": pl.Int64,
            "seconds": pl.Float64,
            "error": pl.String,
        }
        lines = []
        for row in self.table:
            line = {name: getattr(row, name, None) for name in kinds}
            if row.log_p is not None:
                line["below"], line["below_se"] = self.below(row.value)
            lines.append(line)
        return pl.DataFrame(lines, schema=kinds)

    def summary(self) -> dict[str, float]:
        """The value that every measure chooses, and the number of rows and values."""
        chosen = {f"best_{by}": float(self.best(by).value) for by in self.measures}
        return chosen | {"values": float(len(self.table)), "rows": float(self.n)}

    def __repr__(self) -> str:
        chosen = ", ".join(f"{by} chooses {self.best(by).value}" for by in self.measures)
        head = f"Selection among {len(self.table)} values on {self.n} rows: {chosen}; held out: {self.how}"
        table = self.frame()
        table = table.select(own for own in table.columns if table[own].null_count() < len(table))
        style: dict[str, Any] = {
            "tbl_hide_dataframe_shape": True,
            "tbl_hide_column_data_types": True,
            "float_precision": 4,
        }
        with pl.Config(**style, tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=120):
            return f"{head}\n{table}"


def select_size(
    build: Callable[[int, Tensor], Any],
    x: Any,
    values: Iterable[int],
    *,
    seeds: int | Iterable[int] = 5,
    folds: int | None = 5,
    held_out: Any = None,
    draws: int = 1000,
    seed: int = 0,
    report: Callable[[Candidate], None] | None = None,
    **options: Any,
) -> Selection:
    r"""Fit a model for every number of factors or components, and compare them.

    A conjugate model is fitted by :func:`zoo.em` from several starts, and has likelihood, AIC and BIC. Where ``build``
    returns a model with a guide, both are fitted by :func:`zoo.fit`. A conditionally conjugate model with priors on
    everything is fitted by :func:`zoo.cavi` from as many starts, and has the bound on log p(X), which weighs fit
    against size by itself; it is not evaluated on held-out rows. Any other is evaluated on rows that it has not seen:
    by K-fold cross-validation, where every row is held out once and the models are fitted anew without it (all values
    with the same folds), or on ``held_out`` rows. Their log p(x) is exact for a conjugate model, and the
    importance-weighted bound of ``draws`` draws from the guide for any other.

    A value whose fits all fail (a component that collapses, more factors than columns) is a row of the table with its
    error, and the others go on. One that fails in a fold has no held-out log p(x).

    Which to believe? BIC finds the true number where it is among the values and the rows are many; held-out rows choose
    what predicts best, and rather too large a model than too small a one, by hardly a difference: see ``below``. AIC is
    an estimate of the same without holding anything out, for models that are nearly right.

    Args:
        build: given a value and the rows (m, d) to fit, returns a fresh conjugate model, or a fresh model and guide.
        x: the data (n, d).
        values: the numbers to try.
        seeds: the number of starts (then 0, 1, ...), or their seeds.
        folds: K of the cross-validation, at least 2; None leaves it out.
        held_out: rows (m, d) to compare on, in place of the folds: one fit per value and start.
        draws: for log p(x) where it has no closed form; at least 25.
        seed: of the folds and the draws; the caller's random streams are left alone.
        report: called with every row as it is ready.
        options: for :func:`zoo.cavi`, :func:`zoo.fit`, or :func:`zoo.em`, which takes 1000 steps at most here unless
            ``steps`` says otherwise.

    Raises:
        ValueError: no values or one of them twice, unusable folds or rows, nothing to compare by, a guide that has
            parameters for the rows it was fitted to alone, or every value failed; the message lists why.

    References:
        Stone (1974), Cross-validatory choice and assessment of statistical predictions, JRSS B 36; Smyth (2000), Model
        selection for probabilistic clustering using cross-validated likelihood, Statistics and Computing 10; Bengio
        and Grandvalet (2004), No unbiased estimator of the variance of K-fold cross-validation, JMLR 5.

    >>> import torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64).x
    >>> found = select_size(lambda k, rows: zoo.PPCA(4, k).double(), x, [1, 2, 3], seeds=1, folds=None, tol=1e-6)
    >>> [round(row.log_likelihood, 2) for row in found.table]
    [-470.67, -404.96, -379.91]
    >>> found.best("bic").value
    3
    """
    chosen = _values(values)
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    starts = each_seed(seeds)
    options = {"progress": False} | options
    x = check_rows(x, _Lenient(), least=4)
    apart = None if held_out is None else check_rows(held_out, _Lenient(), name="held_out")
    if apart is not None and apart.shape[1] != x.shape[1]:
        raise ValueError(f"held_out has {apart.shape[1]} columns, x {x.shape[1]}: pass rows of the same columns")
    parts = [] if apart is not None or folds is None else list(_folds(len(x), folds, seed))
    how = f"{len(apart)} rows" if apart is not None else f"{folds} folds" if parts else "none"
    table = []
    for value in chosen:
        row = _candidate(build, x, value, starts, parts, apart, draws, seed, options)
        table.append(row)
        if report is not None:
            report(row)
    if all(row.best is None for row in table):
        listed = "\n".join(f"  {row.value}: {row.error}" for row in table)
        raise ValueError(f"no value could be fitted:\n{listed}")
    found = Selection(tuple(table), len(x), how)
    if not found.measures:
        raise ValueError(
            "nothing to compare by: without a closed-form likelihood there is no AIC and no BIC, so pass folds or "
            "held_out" + "".join(f"\n  {row.value}: {row.error}" for row in table if row.error)
        )
    return found


class _Lenient:
    """Lets missing entries pass: every model checks them itself when it is fitted."""

    missing = True


def _candidate(
    build: Callable[[int, Tensor], Any],
    x: Tensor,
    value: int,
    seeds: tuple[int, ...],
    parts: list[Tensor],
    apart: Tensor | None,
    draws: int,
    seed: int,
    options: dict[str, Any],
) -> Candidate:
    started = time.perf_counter()
    row = Candidate(value)
    try:
        best, near, count = _fitted(build, value, x, seeds, options, bool(parts) or apart is not None)
        row = replace(row, best=best, near=near, starts=count)
        if isinstance(best, VariationalBayes):
            return replace(row, bound=float(best[-1]), seconds=time.perf_counter() - started)
        model: Any = best.model if isinstance(best, Fit) else best
        if isinstance(model, Conjugate):
            found = information_criteria(best.model if isinstance(best, Fit) else best, x)
            likelihood = found.log_likelihood
            row = replace(row, log_likelihood=likelihood, df=found.df, aic=found.aic, bic=found.bic)
    except FAILURES as error:
        return replace(row, best=None, error=_brief(error), seconds=time.perf_counter() - started)
    where = ""
    try:
        if apart is not None:
            where = "held-out rows: "
            row = replace(row, log_p=_score(best, apart, draws, seed))
        elif parts:
            log_p = x.new_empty(len(x), dtype=torch.float64, device="cpu")
            for number, index in enumerate(parts):
                where = f"fold {number}: "
                keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
                keep[index] = False
                fold, _, _ = _fitted(build, value, x[keep], seeds, options, True)
                log_p[index.cpu()] = _score(fold, x[index], draws, seed)
            row = replace(row, log_p=log_p)
    except FAILURES as error:
        row = replace(row, error=where + _brief(error))
    return replace(row, seconds=time.perf_counter() - started)


def _fitted(
    build: Callable[[int, Tensor], Any],
    value: int,
    x: Tensor,
    seeds: tuple[int, ...],
    options: dict[str, Any],
    others: bool,
) -> tuple[Any, int, int]:
    """The best of several starts, the number of those near it, and of all."""
    with seeded(0):
        made = build(value, x)
    if isinstance(made, ConditionallyConjugate):
        given = {name: value for name, value in options.items() if name != "progress"}
        found = cavi(made, x, restarts=len(seeds), seed=seeds[0], **given)
        return found, len(found.near()), len(found.attempts)
    if isinstance(made, tuple):
        if others:
            _refuse_bound_to_rows(made[1])
    else:
        options = {"steps": STEPS} | {name: given for name, given in options.items() if name != "progress"}
    report = best_of(lambda: build(value, x), x, seeds=seeds, **options)
    return report.best, len(report.near()), len(report.table)


def _score(best: Any, x: Tensor, draws: int, seed: int) -> Tensor:
    """log p(x) of rows that the fit has not seen (m,), in float64 on the CPU.

    Raises:
        ValueError: a row without a finite one; a mean over it would compare nothing.
    """
    model: Any = best.model if isinstance(best, Fit) else best
    x = check_rows(x, model)
    if isinstance(model, Conjugate):
        log_p = log_density(best.model if isinstance(best, Fit) else best, x)
    else:
        log_p = log_evidence_bounds(best, x, draws=(draws,), seed=seed)[f"IWAE-{draws}"].values.double().cpu()
    wrong = (~log_p.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"log p(x) of held-out row {wrong[0]} is {log_p[wrong[0]].item()} (and of {len(wrong) - 1} more)"
        )
    return log_p


def _refuse_bound_to_rows(guide: PyroCallable) -> None:
    """Refuse a guide with parameters for every row: it has none for others.

    Raises:
        TypeError: this is one.
    """
    if isinstance(undecorated(guide), HoldsRows) or isinstance(unwrapped(guide), AutoGuide):
        raise TypeError(
            f"{name_of(guide)} has parameters for the rows it is fitted to alone, none for those held out: build "
            "Amortized or Exact, or any guide that computes q(z | x) from the row"
        )


def _folds(n: int, folds: int, seed: int) -> Iterator[Tensor]:
    """The numbers of the rows of every fold, in a random order of their own."""
    if check_whole(folds, "folds", 2) > n // 2:
        raise ValueError(f"folds={folds} of {n} rows leave less than two rows in a fold: take at most {n // 2}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return (index.sort().values for index in order.tensor_split(folds))


def _values(values: Iterable[int]) -> tuple[int, ...]:
    chosen = tuple(check_whole(value, "values") for value in values)
    if not chosen:
        raise ValueError("values is empty: pass the numbers of factors or components to try")
    if twice := [value for i, value in enumerate(chosen) if value in chosen[:i]]:
        raise ValueError(f"values holds {twice[0]} twice")
    return chosen


def _error(values: Tensor) -> float:
    """The standard error of a mean."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def _brief(error: BaseException) -> str:
    """The first line of an error, and the first of the reasons it lists."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[1].strip()}"
