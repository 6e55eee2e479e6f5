"""Measures of the fit of factor analysis and PPCA: the chi-square test, RMSEA, CFI, TLI, SRMR."""

import math
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from zoo.algebra import goodness_of_fit
from zoo.alignment.symmetry import covariance, factors_of, unknown
from zoo.base.callables import PyroCallable
from zoo.base.checks import ArrayLike, check_rows, incomplete
from zoo.base.moments import Moments
from zoo.base.pairs import known_columns
from zoo.base.weights import weighted_rows
from zoo.diagnostics.model.criteria import InformationCriteria, information_criteria
from zoo.infer.run import Fit


@dataclass(frozen=True, eq=False)
class FitMeasures:
    r"""How well the model's covariance fits that of the rows; the result of :func:`fit_measures`.

    Attributes:
        chi_square: the likelihood ratio statistic against the saturated model, :math:`n F`, as lavaan's.
        df: its degrees of freedom; not above 0 if the model has as many parameters as there are variances and
            covariances, and nothing can be tested.
        p_value: of the chi-square; NaN where ``df`` is not above 0, as are all measures that divide by it.
        bartlett: the statistic of factor analysis with Bartlett's correction, as R's factanal and psych report it; NaN
            for PPCA.
        bartlett_p: its p-value.
        base: the statistic of uncorrelated columns, the baseline of CFI and TLI.
        base_df: its degrees of freedom.
        rmsea: the root mean square error of approximation, of ``chi_square``.
        rmsea_low: the lower limit of its 90% interval.
        rmsea_high: the upper limit.
        cfi: the comparative fit index.
        tli: the Tucker-Lewis index.
        srmr: the standardised root mean square residual.
        rmsr: the root mean square residual correlation, without the diagonal.
        criteria: log-likelihood, AIC and BIC, and the number of rows n.
        residuals: sample minus model covariance, in standard deviations of the columns (d, d).
        columns: the names of the columns; empty if unknown.
    """

    chi_square: float
    df: int
    p_value: float
    bartlett: float
    bartlett_p: float
    base: float
    base_df: int
    rmsea: float
    rmsea_low: float
    rmsea_high: float
    cfi: float
    tli: float
    srmr: float
    rmsr: float
    criteria: InformationCriteria
    residuals: Tensor
    columns: tuple[str, ...] = ()

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return self.criteria.aic

    @property
    def bic(self) -> float:
        """Schwarz's Bayesian information criterion."""
        return self.criteria.bic

    def summary(self) -> dict[str, float]:
        """All measures by name, with the log-likelihood, AIC, BIC and n."""
        measures = "chi_square df p_value bartlett bartlett_p base base_df rmsea rmsea_low rmsea_high cfi tli srmr rmsr"
        found = {name: float(getattr(self, name)) for name in [*measures.split(), "aic", "bic"]}
        return found | {"log_likelihood": self.criteria.log_likelihood, "n": self.criteria.n}

    def frame(self) -> pl.DataFrame:
        """A row per measure: its name and value."""
        values = self.summary()
        return pl.DataFrame({"measure": list(values), "value": list(values.values())})

    def __str__(self) -> str:
        if self.df <= 0:
            head = f"The model is not testable: {self.df} degrees of freedom (chi-square {self.chi_square:.4f})"
        else:
            head = f"chi-square {self.chi_square:.4f} on {self.df} degrees of freedom, p = {self.p_value:.4g}"
            if not math.isnan(self.bartlett):
                head += f"; with Bartlett's correction {self.bartlett:.4f}, p = {self.bartlett_p:.4g}"
            head += (
                f"\nRMSEA {self.rmsea:.4f} (90% interval {self.rmsea_low:.4f} to {self.rmsea_high:.4f}), "
                f"CFI {self.cfi:.4f}, TLI {self.tli:.4f}"
            )
        last = f"log-likelihood {self.criteria.log_likelihood:.4f}, AIC {self.aic:.4f}, BIC {self.bic:.4f}"
        return f"{head}\nSRMR {self.srmr:.4f}, RMSR {self.rmsr:.4f}; {last} (n = {self.criteria.n:g})"


def fit_measures(
    fitted: PyroCallable | Fit, x: ArrayLike | Moments, *, weights: ArrayLike | None = None
) -> FitMeasures:
    r"""The chi-square test of factor analysis or PPCA, and the measures of fit of structural equation modelling.

    The test compares the model with an unrestricted covariance matrix:
    :math:`\chi^2 = n F`, :math:`F = \log|\Sigma| - \log|S| + \mathrm{tr}(S \Sigma^{-1}) - D`, with
    :math:`D (D + 1) / 2` minus the model's free parameters (without its means) as degrees of freedom. RMSEA, CFI and
    TLI are of this statistic, as in lavaan; psych computes them of Bartlett's. All hold at the maximum of the
    likelihood: fit the model to the same rows first, by :func:`zoo.em`.

    Args:
        fitted: a fitted FactorAnalysis or PPCA, a run, or the result of :func:`zoo.em`.
        x: the complete rows (n, d) that it was fitted to, or their moments.
        weights: how often every row counts (n,); None for once.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: it has not been fitted, entries are missing, or the sample covariance is singular.

    References:
        Bartlett (1950), British Journal of Statistical Psychology 3; Steiger (1990), Structural model evaluation and
        modification, Multivariate Behavioral Research 25; Bentler (1990), Comparative fit indexes in structural models,
        Psychological Bulletin 107; Tucker and Lewis (1973), Psychometrika 38; Hu and Bentler (1999), Cutoff criteria
        for fit indexes, Structural Equation Modeling 6.

    >>> import torch, zoo
    >>> x = zoo.data.load("holzinger", dtype=torch.float64)
    >>> found = fit_measures(zoo.em(zoo.FactorAnalysis(9, 3).double(), x), x)
    >>> round(found.chi_square, 2), found.df, round(found.cfi, 3), round(found.rmsea, 3)
    (22.9, 12, 0.988, 0.055)
    """
    factors = factors_of(fitted)
    if factors is None:
        raise unknown(fitted)
    model = fitted.model if isinstance(fitted, Fit) else fitted
    criteria = information_criteria(model, x, weights=weights)
    moments = _moments(model, x, weights)
    sample, implied, n = moments.covariance.cpu(), covariance(model).cpu(), moments.count
    d, k = factors.weight.shape
    df = d + d * (d + 1) // 2 - criteria.df
    discrepancy = goodness_of_fit.discrepancy(sample, implied)
    baseline, base_df = goodness_of_fit.independence(sample)
    chi_square, base = n * discrepancy, n * baseline
    corrected = math.nan
    if df == ((d - k) ** 2 - d - k) // 2:  # those of factor analysis, for which the correction holds
        corrected = goodness_of_fit.bartlett(n, d, k) * discrepancy
    low, high = goodness_of_fit.rmsea_interval(chi_square, df, n)
    return FitMeasures(
        chi_square=chi_square,
        df=df,
        p_value=goodness_of_fit.p_value(chi_square, df),
        bartlett=corrected,
        bartlett_p=goodness_of_fit.p_value(corrected, df),
        base=base,
        base_df=base_df,
        rmsea=goodness_of_fit.rmsea(chi_square, df, n),
        rmsea_low=low,
        rmsea_high=high,
        cfi=goodness_of_fit.cfi(chi_square, df, base, base_df),
        tli=goodness_of_fit.tli(chi_square, df, base, base_df),
        srmr=goodness_of_fit.srmr(sample, implied),
        rmsr=goodness_of_fit.rmsr(sample, implied),
        criteria=criteria,
        residuals=goodness_of_fit.residual_correlations(sample, implied),
        columns=moments.columns or known_columns(fitted, None if isinstance(x, Moments) else x),
    )


def _moments(model: PyroCallable, x: ArrayLike | Moments, weights: ArrayLike | None) -> Moments:
    """The moments of the rows in float64.

    Raises:
        ValueError: entries are missing.
    """
    if isinstance(x, Moments):
        return x.to(torch.zeros((), dtype=torch.float64))
    rows, own = weighted_rows(check_rows(x, model, exact=True), weights)
    if incomplete(rows):
        raise ValueError(
            "x has missing entries, and measures of fit compare with the covariance of complete rows: leave these rows "
            "out, or compare sizes by zoo.select_size"
        )
    return Moments.of(rows, own)
