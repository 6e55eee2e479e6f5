"""Measures of fit against lavaan 0.6.14 (``efa``), psych 2.2.9 and factanal of R 4.2.2."""

import math

import pytest
import scipy
import torch
from helpers import ability, close

import zoo
from zoo.algebra import goodness_of_fit
from zoo.data import Moments
from zoo.diagnostics import fit_measures
from zoo.diagnostics.checks.check import Case
from zoo.diagnostics.checks.uniquenesses import Uniquenesses
from zoo.infer import HeywoodCase

LAVAAN = {
    2: {
        "chi_square": 130.30631536,
        "df": 19,
        "base": 918.85158929,
        "base_df": 36,
        "cfi": 0.87392409,
        "tli": 0.76111933,
        "rmsea": 0.13950824,
        "rmsea_low": 0.11740089,
        "rmsea_high": 0.16264318,
        "log_likelihood": -3760.24532342,
    },
    3: {
        "chi_square": 22.89673461,
        "df": 12,
        "p_value": 0.02861554,
        "base": 918.85158929,
        "base_df": 36,
        "cfi": 0.98765734,
        "tli": 0.96297203,
        "rmsea": 0.05492554,
        "rmsea_low": 0.01737585,
        "rmsea_high": 0.08878318,
        "log_likelihood": -3706.54053304,
        "bartlett": 22.37693057,  # of factanal
        "rmsr": 0.019245264,  # of psych
    },
}


@pytest.fixture(scope="module")
def holzinger():
    return zoo.data.load("holzinger", dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 3])
def test_measures_are_those_of_lavaan(holzinger, k):
    found = fit_measures(zoo.em(zoo.FactorAnalysis(9, k).double(), holzinger), holzinger)
    values = found.summary()
    for name, known in LAVAAN[k].items():
        assert values[name] == pytest.approx(known, abs=1e-7 * max(1.0, abs(known))), name
    assert values["srmr"] == pytest.approx({2: 0.076, 3: 0.017}[k], abs=5e-4)  # lavaan prints three digits
    # lavaan counts no means, which efa does not model
    assert found.aic == pytest.approx({2: 7572.49064684, 3: 7479.08106609}[k] + 2 * 9, abs=1e-5)


@pytest.mark.parametrize(("k", "statistic", "df"), [(1, 75.18, 9), (2, 6.107, 4)])
def test_ability_tests_are_those_of_factanal(k, statistic, df):
    found = fit_measures(zoo.em(zoo.FactorAnalysis(6, k).double(), ability()), ability())
    assert found.bartlett == pytest.approx(statistic, abs=5e-3 if k == 1 else 5e-4)
    assert found.df == df
    assert found.columns[0] == "general"
    if k == 2:
        assert found.bartlett_p == pytest.approx(0.191, abs=5e-4)


def test_rows_weights_and_moments_agree(holzinger):
    x = holzinger.x[:80]
    run = zoo.em(zoo.FactorAnalysis(9, 2).double(), x)
    rows, moments = fit_measures(run, x), fit_measures(run, Moments.of(x))
    weights = fit_measures(run.model, x[:40].repeat(2, 1), weights=torch.full((80,), 1.0))
    assert rows.summary() == pytest.approx(moments.summary(), rel=1e-10)
    doubled = fit_measures(run.model, x[:40], weights=torch.full((40,), 2.0))
    assert doubled.summary() == pytest.approx(weights.summary(), rel=1e-10)
    frame = rows.frame()
    assert dict(zip(frame["measure"], frame["value"], strict=True)) == rows.summary()


def test_chi_square_is_a_ratio_of_likelihoods(holzinger):
    """2 (log L of the saturated model - log L), for PPCA too, whose degrees of freedom are those of its covariance."""
    x = holzinger.x
    run = zoo.em(zoo.PPCA(9, 2).double(), x)
    found = fit_measures(run, x)
    moments = Moments.of(x)
    saturated = torch.distributions.MultivariateNormal(moments.mean, moments.covariance).log_prob(x).sum()
    assert found.chi_square == pytest.approx(float(2 * (saturated - run[-1])), rel=1e-9)
    assert found.df == 45 - (2 * 9 - 1 + 1)
    assert math.isnan(found.bartlett)


def test_models_without_degrees_of_freedom():
    found = fit_measures(zoo.em(zoo.FactorAnalysis(6, 3).double(), ability()), ability())
    assert found.df == 0
    assert math.isnan(found.p_value)
    assert math.isnan(found.rmsea)
    assert "not testable: 0 degrees of freedom" in str(found)


def test_interval_of_rmsea_inverts_the_distribution():
    low, high = goodness_of_fit.rmsea_interval(40.0, 20, 100.0)
    assert scipy.stats.ncx2.cdf(40.0, 20, low**2 * 2000) == pytest.approx(0.95, abs=1e-8)
    assert scipy.stats.ncx2.cdf(40.0, 20, high**2 * 2000) == pytest.approx(0.05, abs=1e-8)
    assert goodness_of_fit.rmsea_interval(5.0, 20, 100.0) == (0.0, 0.0)


def test_residuals_of_the_true_model_are_zero():
    model = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    assert goodness_of_fit.discrepancy(model, model) == pytest.approx(0.0, abs=1e-12)
    close(goodness_of_fit.residual_correlations(model, model), torch.zeros(2, 2).double(), 0.0)
    other = torch.tensor([[2.0, 0.5 + math.sqrt(2) / 10], [0.5 + math.sqrt(2) / 10, 1.0]]).double()
    assert goodness_of_fit.rmsr(other, model) == pytest.approx(0.1)
    assert goodness_of_fit.srmr(other, model) == pytest.approx(0.1 / math.sqrt(3))


def test_refusals(holzinger):
    run = zoo.em(zoo.FactorAnalysis(9, 2).double(), holzinger)
    gaps = holzinger.x.clone()
    gaps[0, 0] = math.nan
    with pytest.raises(ValueError, match="missing entries"):
        fit_measures(run, gaps)
    with pytest.raises(ValueError, match="sample covariance is singular"):
        fit_measures(run, holzinger.x[:8])
    with pytest.raises(ValueError, match="fit it first"):
        fit_measures(zoo.FactorAnalysis(9, 2).double(), holzinger)
    with pytest.raises(TypeError, match="symmetries of GMM are unknown"):
        fit_measures(zoo.GMM(9, 2), holzinger)


def test_diagnosis_names_heywood_cases_and_factors_in_excess(iris, holzinger):
    with pytest.warns(HeywoodCase, match="uniqueness of column"):
        run = zoo.em(zoo.FactorAnalysis(4, 1).double(), iris)
    finding = Uniquenesses().judge(Uniquenesses().measure(Case(run, iris, 100, None, 0)))
    assert finding.level == "careful"
    assert "Heywood case: the uniqueness of 'x2' is at its floor" in finding.reason
    good = zoo.diagnose(zoo.em(zoo.FactorAnalysis(9, 3).double(), holzinger), holzinger.x)["uniquenesses"]
    assert good.level == "good"
    assert "uniquenesses" not in zoo.diagnose(zoo.em(zoo.PPCA(4, 1).double(), iris), iris).summary()
