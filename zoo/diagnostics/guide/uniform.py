"""Tests of uniformity and of calibrated probabilities, for :func:`zoo.diagnostics.sbc`."""

import math

import numpy as np
import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor

from zoo.base.memory import rows_at_once

REPLICATES = 9999  # of a Monte Carlo test, at least; resolves p-values down to 1e-4


def smooth_test(u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Neyman's smooth test of uniformity on [0, 1], column by column.

    .. math:: b_j = S^{-1/2} \sum_s \pi_j(u_s), \qquad \sum_{j=1}^4 b_j^2 \sim \chi^2_4

    with :math:`\pi_j` the orthonormal Legendre polynomials. Under uniformity each component is standard normal. The
    first detects a shift, the second a wrong spread, the third skewness, the fourth wrong tails. Against such smooth
    alternatives the test has more power than Kolmogorov's or a chi-squared test on a histogram.

    Args:
        u: values in [0, 1] (S, k).

    Returns:
        the components b (4, k) and the p-values (k,), in float64.

    References:
        Neyman (1937), Smooth test for goodness of fit, Skandinavisk Aktuarietidskrift 20; Rayner, Thas and Best (2009),
        Smooth Tests of Goodness of Fit.
    """
    t = 2 * u.double() - 1
    terms = torch.stack(
        [
            3**0.5 * t,
            5**0.5 * (3 * t**2 - 1) / 2,
            7**0.5 * (5 * t**3 - 3 * t) / 2,
            3 * (35 * t**4 - 30 * t**2 + 3) / 8,
        ]
    )
    b = terms.sum(1) / len(u) ** 0.5
    return b, torch.special.gammaincc(torch.tensor(2.0).to(b), b.square().sum(0) / 2)


def symmetry_test(u: Tensor) -> Tensor:
    """P-values (k,) of Wilcoxon's signed-rank test that every column of u (S, k) is symmetric about 1/2.

    A guide that is too narrow or too wide still passes if its means are right.
    """
    p = scipy.stats.wilcoxon(u.detach().cpu().double().numpy() - 0.5, method="asymptotic", axis=0).pvalue
    return torch.as_tensor(np.asarray(p)).to(u.device)


def score_test(hit: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The score test of Cox's recalibration of event probabilities, with its exact null distribution.

    In :math:`\mathrm{logit}\, p' = \mathrm{logit}\, p + a + b\, (\mathrm{logit}\, p - c)` the scores at a = b = 0 are
    :math:`\sum_s (y_s - p_s)` and :math:`\sum_s (y_s - p_s)(\mathrm{logit}\, p_s - c)`, with c such that they are
    uncorrelated. Standardised, the first detects probabilities that are too high or too low, the second those that are
    overconfident (negative) or underconfident (positive). The null distribution of their sum of squares is simulated
    from events with the given probabilities, so that the p-value is valid even if most probabilities are near 0 or 1.

    Args:
        hit: whether the event occurred (S, k).
        share: its probability (S, k).

    Returns:
        the two scores (2, k), p-values of both jointly (k,), and of the first alone (k,), in float64. Uses the global
        random state.

    References:
        Cox (1958), Two further applications of a model for binary regression, Biometrika 45; Bröcker and Smith (2007),
        Increasing the reliability of reliability diagrams, Weather and Forecasting 22 (consistency resampling).
    """
    share = share.double().clamp(1e-15, 1 - 1e-15)
    v = share * (1 - share)
    odds = share.logit()
    odds = odds - (v * odds).sum(0) / v.sum(0)
    weights = torch.stack(
        [v.sum(0).rsqrt().expand_as(odds), odds * (v * odds.square()).sum(0).clamp_min(1e-30).rsqrt()]
    )
    scores = (weights * (hit.double() - share)).sum(1)  # (2, k)
    observed = torch.stack([scores.square().sum(0), scores[0].square()])  # (2, k)
    p = [
        _simulated(observed[:, j], share[:, j], weights[:, :, j], 2000 * share.shape[1]) for j in range(share.shape[1])
    ]
    both, first = torch.stack(p, 1)
    return scores, both, first


def _simulated(observed: Tensor, share: Tensor, weights: Tensor, most: int) -> Tensor:
    """Monte Carlo p-values (2,) of one column: of both squared scores summed, and of the first.

    If no draw exceeds the observed value, there are ``most`` draws, enough for a correction for many columns.
    """
    above, count = torch.ones(2, dtype=torch.float64, device=share.device), 1  # the observed value counts as one draw
    while count <= REPLICATES or (count <= most and bool((above == 1).any())):
        size = min(rows_at_once(len(share)), REPLICATES)
        drawn = torch.rand(size, len(share), dtype=torch.float64, device=share.device) < share
        scores = ((drawn.to(share) - share) @ weights.T).square()  # (size, 2); expanding the difference would cancel
        values = torch.stack([scores.sum(1), scores[:, 0]])  # (2, size)
        above += (values >= observed.unsqueeze(1) * (1 - 1e-9) - 1e-9).sum(1)  # equal up to the order of summation
        count += size
    return above / count


def ecdf_band(count: int, level: float = 0.95, points: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A simultaneous confidence band for the ECDF of ``count`` uniform values.

    Args:
        count: the number of values.
        level: the coverage of the whole band.
        points: the number of evaluation points, evenly spaced in (0, 1).

    Returns:
        the points, and the lower and upper limits of the ECDF minus its expectation, each (points,).

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness
        of fit evaluation and multiple sample comparison, Statistics and Computing 32 (the method by simulation).
    """
    at = np.arange(1, points + 1) / (points + 1)
    random = np.random.default_rng(0)  # a reproducible band
    cells = random.multinomial(count, np.full(points + 1, 1 / (points + 1)), 2000).cumsum(1)[:, :-1]
    binom = scipy.stats.binom
    depth = 2 * np.minimum(binom.cdf(cells, count, at), binom.sf(cells - 1, count, at)).min(1)
    tail = np.quantile(depth, 1 - level) / 2
    return at, binom.ppf(tail, count, at) / count - at, binom.ppf(1 - tail, count, at) / count - at


def normal_score(u: Tensor, edge: float) -> Tensor:
    """Standard normal quantiles of u, clamped to [edge, 1 - edge]."""
    return torch.special.ndtri(u.double().clamp(edge, 1 - edge))


def corrected(p_values: Tensor) -> float:
    """Bonferroni's p-value of several tests, valid under any dependence; NaN is no test."""
    p = p_values[~p_values.isnan()]
    return min(1.0, float(p.min()) * len(p)) if len(p) else math.nan
