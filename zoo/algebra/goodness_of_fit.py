r"""Measures of the fit of a covariance structure, from the sample covariance S (d, d), n, and the model's Sigma (d, d).

Pure functions in float64; S has divisor n. A ``chi_square`` is a likelihood ratio statistic, ``df`` its degrees of
freedom.
"""

import math

import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor


def discrepancy(sample: Tensor, model: Tensor) -> float:
    r"""The discrepancy of maximum likelihood, :math:`F = \log|\Sigma| - \log|S| + \mathrm{tr}(S \Sigma^{-1}) - D`.

    Both matrices are scaled to the sample's correlations first, which leaves F unchanged.

    Raises:
        ValueError: S is singular.
    """
    unit = sample.diagonal().sqrt()
    sample, model = (matrix / torch.outer(unit, unit) for matrix in (sample, model))
    values = torch.linalg.eigvalsh(sample)
    if values[0] <= 1e-12 * len(values):
        raise ValueError(
            "the sample covariance is singular (collinear columns, or no more rows than columns): the saturated model "
            "has no likelihood to compare with. Leave columns out, or compare by zoo.diagnostics.information_criteria"
        )
    root = torch.linalg.cholesky(model)
    trace = torch.cholesky_solve(sample, root).diagonal().sum()
    return max(0.0, float(2 * root.diagonal().log().sum() - values.log().sum() + trace - len(values)))


def independence(sample: Tensor) -> tuple[float, int]:
    """The discrepancy of uncorrelated columns, and its degrees of freedom d (d - 1) / 2."""
    d = len(sample)
    return discrepancy(sample, torch.diag(sample.diagonal())), d * (d - 1) // 2


def bartlett(n: float, d: int, k: int) -> float:
    r"""Bartlett's factor :math:`n - 1 - (2 D + 5) / 6 - 2 K / 3` of F in place of n, for K factors; as in factanal.

    Bartlett (1950), Tests of significance in factor analysis, British Journal of Statistical Psychology 3.
    """
    return n - 1 - (2 * d + 5) / 6 - 2 * k / 3


def p_value(chi_square: float, df: int) -> float:
    """The probability of a larger chi-square; NaN without degrees of freedom."""
    return float(scipy.stats.chi2.sf(chi_square, df)) if df > 0 else math.nan


def rmsea(chi_square: float, df: int, n: float) -> float:
    r"""The root mean square error of approximation :math:`\sqrt{\max(\chi^2 - df, 0) / (df\, n)}` (Steiger 1990)."""
    return math.sqrt(max(chi_square - df, 0.0) / (df * n)) if df > 0 else math.nan


def rmsea_interval(chi_square: float, df: int, n: float, level: float = 0.9) -> tuple[float, float]:
    """Its confidence interval, by the noncentrality at which ``chi_square`` is the quantile of either tail."""
    if df <= 0:
        return math.nan, math.nan
    low, high = (_noncentrality(chi_square, df, tail) for tail in ((1 + level) / 2, (1 - level) / 2))
    return math.sqrt(low / (df * n)), math.sqrt(high / (df * n))


def _noncentrality(chi_square: float, df: int, probability: float) -> float:
    """The noncentrality at which the distribution function at ``chi_square`` is ``probability``; 0 if there is none."""

    def excess(noncentrality: float) -> float:
        return float(scipy.stats.ncx2.cdf(chi_square, df, noncentrality)) - probability

    if scipy.stats.chi2.cdf(chi_square, df) <= probability:
        return 0.0
    top = max(chi_square, 1.0)
    while excess(top) > 0:
        top *= 2
    return float(scipy.optimize.brentq(excess, 1e-12, top, xtol=1e-10))


def cfi(chi_square: float, df: int, base: float, base_df: int) -> float:
    """Bentler's comparative fit index against the independence model (Bentler 1990)."""
    excess = max(chi_square - df, 0.0)
    most = max(excess, base - base_df)
    return 1 - excess / most if most > 0 else 1.0


def tli(chi_square: float, df: int, base: float, base_df: int) -> float:
    """The Tucker-Lewis index against the independence model (Tucker and Lewis 1973); it may exceed 1."""
    if df <= 0 or base_df <= 0 or base == base_df:
        return math.nan
    return (base / base_df - chi_square / df) / (base / base_df - 1)


def residual_correlations(sample: Tensor, model: Tensor) -> Tensor:
    """S - Sigma (d, d), in standard deviations of the sample."""
    unit = sample.diagonal().sqrt()
    return (sample - model) / torch.outer(unit, unit)


def srmr(sample: Tensor, model: Tensor) -> float:
    """The standardised root mean square residual, over variances and covariances, as lavaan's srmr."""
    lower = torch.tril_indices(len(sample), len(sample))
    return float(residual_correlations(sample, model)[lower[0], lower[1]].square().mean().sqrt())


def rmsr(sample: Tensor, model: Tensor) -> float:
    """The root mean square residual correlation off the diagonal, as psych's rms."""
    lower = torch.tril_indices(len(sample), len(sample), -1)
    return float(residual_correlations(sample, model)[lower[0], lower[1]].square().mean().sqrt())
