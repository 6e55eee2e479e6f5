"""Selection of the number of factors or components by AIC, BIC, held-out log p(x) and the variational bound."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import polars as pl
import torch
from torch import Tensor, nn

from zoo.alignment.symmetry import factors_of
from zoo.base.checks import ArrayLike, check_rows, check_whole, incomplete
from zoo.base.moments import Moments
from zoo.base.weights import check_weights
from zoo.diagnostics.model.candidates import Builder, Candidate, Search, mean, standard_error
from zoo.diagnostics.model.retention import Retention, factor_retention
from zoo.infer.starts import each_seed
from zoo.posterior.evaluation import check_draws

MOST_COLUMNS = 100  # whose eigenvalues are simulated
Measure = Literal["bic", "bound", "aic", "held_out"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The result of :func:`select_size`.

    Attributes:
        table: one :class:`Candidate` per value in their order, including failures.
        n: the number of fitted rows.
        how: which rows were held out, in words.
        retention: the number of factors by parallel analysis, MAP and Kaiser's rule; None for other models than PPCA
            and factor analysis, with missing entries, and beyond 100 columns.
    """

    table: tuple[Candidate, ...]
    n: int
    how: str
    retention: Retention | None = None

    def __getitem__(self, value: int) -> Candidate:
        for row in self.table:
            if row.value == value:
                return row
        raise KeyError(f"no value {value!r}: there are {', '.join(str(row.value) for row in self.table)}")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures that are available."""
        return tuple(by for by in get_args(Measure) if any(getattr(row, by) is not None for row in self.table))

    def best(self, by: Measure | None = None) -> Candidate:
        """The candidate with the lowest ``"bic"`` or ``"aic"``, or the highest ``"bound"`` or ``"held_out"``.

        Args:
            by: None takes BIC if available, then the bound on log p(X), otherwise held-out rows. Of ties the first
                candidate wins.

        Raises:
            ValueError: the measure is unknown or not available.
        """
        if by is not None and by not in get_args(Measure):
            raise ValueError(f"by must be one of {', '.join(get_args(Measure))}; got {by!r}")
        if by is None:
            by = self.measures[0]
        if by not in self.measures:
            raise ValueError(
                f"{by!r} is not available here, only {', '.join(self.measures)} (AIC and BIC require a closed-form "
                "likelihood, held_out requires folds or held-out rows)"
            )
        sign = 1 if by in ("bound", "held_out") else -1
        rows = [row for row in self.table if getattr(row, by) is not None]
        return max(rows, key=lambda row: sign * getattr(row, by))

    def below(self, value: int) -> tuple[float, float]:
        """The best held-out log p(x) minus that of a value, in nats per row, with its standard error.

        The error is that of paired differences, because all values are evaluated on the same rows, and usually much
        smaller than that of either mean. A simpler model within one or two standard errors is hardly worse.
        """
        log_p, top = self[value].log_p, self.best("held_out").log_p
        if log_p is None or top is None:
            raise ValueError(f"value {value} has no held-out log p(x): {self[value].error}")
        own = self[value].weights
        return mean(top - log_p, own), standard_error(top - log_p, own)

    def frame(self) -> pl.DataFrame:
        """One row per value; null for values that are not available."""
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
        """The best value by every measure, the numbers of factors by ``retention``, and those of values and rows."""
        chosen = {f"best_{by}": float(self.best(by).value) for by in self.measures}
        rules = {} if self.retention is None else self.retention.summary()
        return chosen | rules | {"values": float(len(self.table)), "rows": float(self.n)}

    def __repr__(self) -> str:
        chosen = ", ".join(f"best by {by}: {self.best(by).value}" for by in self.measures)
        head = f"Selection among {len(self.table)} values on {self.n} rows; {chosen}; held out: {self.how}"
        if self.retention is not None:
            head += f"\n{self.retention}"
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
    build: Builder,
    x: ArrayLike,
    values: Iterable[int],
    *,
    weights: ArrayLike | None = None,
    seeds: int | Iterable[int] = 5,
    folds: int | None = 5,
    held_out: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    report: Callable[[Candidate], None] | None = None,
    **options: Any,
) -> Selection:
    r"""Fit a model for every number of factors or components, and compare the fits.

    A conjugate model is fitted by :func:`zoo.em` from several starts and has a likelihood, AIC and BIC. If ``build``
    returns a model and a guide, both are fitted by :func:`zoo.fit`. A conditionally conjugate model is fitted by
    :func:`zoo.cavi` and has the bound on log p(X), which penalises size by itself. All are compared by log p(x) of
    held-out rows: by K-fold cross-validation with the same folds for all values, or on ``held_out`` rows with one fit
    per value and start. Held-out log p(x) is exact for a conjugate model; the predictive density
    :math:`\log \int p(x \mid \theta)\, q(\theta)\, d\theta` for a model with priors on its parameters
    (:func:`zoo.diagnostics.predictive_density`); otherwise the importance-weighted bound of ``draws`` draws.

    A value whose fits all fail (a collapsed component, more factors than columns) is a row of the table with its error.
    A value that fails in a fold has no held-out log p(x).

    BIC finds the true number if it is among the values and there are many rows. Held-out rows choose the model that
    predicts best, and rather one that is slightly too large than too small; see ``below``. AIC estimates the same
    without held-out rows, for models that are nearly correct.

    For PPCA and factor analysis of complete rows, parallel analysis and its like answer beside these measures:
    :attr:`Selection.retention`, see :func:`zoo.diagnostics.factor_retention`.

    Args:
        build: a function of a value and rows (m, d) that returns a fresh conjugate or conditionally conjugate model, or
            a fresh model and guide.
        x: the rows (n, d).
        values: the numbers of factors or components to compare.
        weights: how often every row counts (n,); None for once. Folds are made of rows, whatever their weights.
        seeds: the number of starts, with seeds 0, 1, ..., or the seeds themselves.
        folds: K of the cross-validation, at least 2; None skips it.
        held_out: rows (m, d) for the comparison, instead of folds.
        draws: for log p(x) without a closed form; at least 30.
        seed: of the folds and the draws.
        report: called with every candidate when it is ready.
        options: for :func:`zoo.em`, with at most 1000 ``steps`` by default, for :func:`zoo.fit` or :func:`zoo.cavi`.

    Raises:
        ValueError: no values or a repeated one, invalid folds or rows, no measure to compare by, a guide with
            parameters for the fitted rows only, or all values failed; the message lists the reasons.

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
    check_draws(draws)
    starts = each_seed(seeds)
    options = {"progress": False} | options
    rows = check_rows(x, _MissingAllowed(), least=4)
    new = None if held_out is None else check_rows(held_out, _MissingAllowed(), name="held_out")
    if new is not None and new.shape[1] != rows.shape[1]:
        raise ValueError(f"held_out has {new.shape[1]} columns, x {rows.shape[1]}: pass rows of the same columns")
    parts = () if new is not None or folds is None else tuple(_folds(len(rows), folds, seed))
    how = f"{len(new)} rows" if new is not None else f"{folds} folds" if parts else "none"
    own = None if weights is None else check_weights(weights, rows)
    search = Search(build, rows, new, parts, starts, draws, seed, options, own)
    table = []
    for value in chosen:
        table.append(search.candidate(value))
        if report is not None:
            report(table[-1])
    if all(row.best is None for row in table):
        listed = "\n".join(f"  {row.value}: {row.error}" for row in table)
        raise ValueError(f"no value could be fitted:\n{listed}")
    found = Selection(tuple(table), len(rows), how, _retention(rows, own, table, seed))
    if not found.measures:
        raise ValueError(
            "nothing to compare by: without a closed-form likelihood there is no AIC or BIC, so pass folds or "
            "held_out" + "".join(f"\n  {row.value}: {row.error}" for row in table if row.error)
        )
    return found


def _retention(x: Tensor, weights: Tensor | None, table: Sequence[Candidate], seed: int) -> Retention | None:
    """The number of factors by the eigenvalues of the rows, where the models are linear-Gaussian."""
    models = [row.best for row in table if row.best is not None]
    if incomplete(x) or x.shape[1] > MOST_COLUMNS or not models or factors_of(models[0]) is None:
        return None
    try:
        return factor_retention(Moments.of(x, weights), seed=seed)
    except ValueError:  # constant columns, or too few rows
        return None


class _MissingAllowed(nn.Module):
    """Stands in for a model that accepts missing entries: the models themselves check the rows when they are fitted."""

    missing = True


def _folds(n: int, folds: int, seed: int) -> Iterator[Tensor]:
    """The sorted row indices of every fold, assigned at random."""
    if check_whole(folds, "folds", 2) > n // 2:
        raise ValueError(f"folds={folds} leaves fewer than two of {n} rows in a fold: take at most {n // 2}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return (index.sort().values for index in order.tensor_split(folds))


def _values(values: Iterable[int]) -> tuple[int, ...]:
    """The values to compare.

    Raises:
        ValueError: none, a repeated one, or one that is not a whole number of at least 1.
    """
    chosen = tuple(check_whole(value, "values") for value in values)
    if not chosen:
        raise ValueError("values is empty: pass the numbers of factors or components to try")
    if twice := [value for i, value in enumerate(chosen) if value in chosen[:i]]:
        raise ValueError(f"values holds {twice[0]} twice")
    return chosen
