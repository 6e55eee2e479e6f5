"""The number of factors by eigenvalues, against psych 2.2.9 (R 4.2.2): ``vss(...)$map`` and ``fa.parallel``."""

import math

import numpy as np
import pytest
import torch

import zoo
from zoo.diagnostics import factor_retention
from zoo.diagnostics.model.retention import _simulated

MAP = [0.080226137, 0.063415229, 0.068227061, 0.120052297, 0.206652421, 0.342536173, 0.442664262]  # of 1 to 7
COMPONENTS = [3.21634418, 1.63871322, 1.36515935, 0.69891845, 0.58434753, 0.4996872, 0.47310206, 0.28600236, 0.23772565]
FACTORS = [2.712013510, 1.071983615, 0.660480008, -0.025032626, -0.057347823]  # the first five


@pytest.fixture(scope="module")
def holzinger():
    return zoo.data.load("holzinger", dtype=torch.float64).x


def test_holzinger_is_that_of_psych(holzinger):
    found = factor_retention(holzinger)
    assert np.allclose(found.components, COMPONENTS, atol=1e-8)
    assert np.allclose(found.factors[:5], FACTORS, atol=1e-8)
    assert np.allclose(found.partial[1:], MAP, atol=1e-8)
    # the mean eigenvalues of psych's simulations, 200 tables
    assert found.summary() == {"parallel": 3.0, "parallel_factors": 3.0, "map": 2.0, "kaiser": 3.0}
    half = factor_retention(holzinger, quantile=0.5)
    assert np.allclose(half.components_limit[:3], [1.27871718, 1.18126252, 1.10980024], atol=0.02)
    assert np.allclose(half.factors_limit[:3], [0.31405934, 0.21087176, 0.13512814], atol=0.03)
    assert found.frame()["partial_before"].to_list()[-1] is None


def test_simulated_correlations_are_those_of_rows():
    """Bartlett's decomposition against simulated rows: the same mean largest eigenvalue."""
    n, d, draws = 20, 5, 2000
    quick = np.linalg.eigvalsh(_simulated(n, d, draws, 0))[:, -1]
    rows = np.random.default_rng(1).standard_normal((draws, n, d))
    slow = np.array([np.linalg.eigvalsh(np.corrcoef(own.T))[-1] for own in rows])
    error = math.hypot(quick.std(), slow.std()) / math.sqrt(draws)
    assert abs(quick.mean() - slow.mean()) < 5 * error
    assert abs(quick.std() / slow.std() - 1) < 5 / math.sqrt(draws)


def test_planted_factors_are_found():
    rng = np.random.default_rng(0)
    z, weight = rng.standard_normal((500, 2)), np.kron(np.eye(2), np.full((5, 1), 0.8))
    x = z @ weight.T + 0.6 * rng.standard_normal((500, 10))
    assert factor_retention(x).summary() == {"parallel": 2.0, "parallel_factors": 2.0, "map": 2.0, "kaiser": 2.0}
    noise = factor_retention(rng.standard_normal((500, 10)))
    assert (noise.parallel, noise.map) == (0, 0)


def test_select_size_answers_by_them_too(holzinger):
    found = zoo.select_size(lambda k, rows: zoo.FactorAnalysis(9, k).double(), holzinger, [1, 3], seeds=1, folds=None)
    assert found.retention.parallel == 3
    assert found.summary()["map"] == 2.0
    assert "Parallel analysis (95% quantile): 3 components" in repr(found)
    labels = [line.get_label() for line in zoo.plots.selection(found).lines]
    assert "parallel analysis: 3" in labels
    weighted = factor_retention(zoo.data.Moments.of(holzinger, torch.full((301,), 2.0).double()))
    assert weighted.n == 602
    gaps = holzinger.clone()
    gaps[0, 0] = math.nan
    for x, build in ((gaps, zoo.PPCA), (holzinger, zoo.GMM)):
        other = zoo.select_size(lambda k, rows, b=build: b(9, k).double(), x, [1], seeds=1, folds=None, tol=1e-3)
        assert other.retention is None


def test_refusals(holzinger):
    gaps = holzinger.clone()
    gaps[0, 0] = math.nan
    with pytest.raises(ValueError, match="holds nan in row 0, column 0: drop or fill these rows"):
        factor_retention(gaps)
    with pytest.raises(ValueError, match="more rows than columns; x has 9 rows and 9 columns"):
        factor_retention(holzinger[:9])
    with pytest.raises(ValueError, match="1 of them constant"):
        factor_retention(torch.cat([holzinger, torch.ones(301, 1).double()], 1))
    with pytest.raises(ValueError, match="quantile must be in"):
        factor_retention(holzinger, quantile=1.0)
