"""Intervals of the loadings of Bayesian models: aligned draws, the factors in use, refusals."""

import pytest
import torch

import guides
import zoo
from zoo.algebra.exponential_families import GaussianFactor
from zoo.alignment import bootstrap_loadings, posterior_loadings
from zoo.alignment.aligned_draws import _aligned


@pytest.fixture(scope="module")
def tests():
    return zoo.data.load("holzinger", dtype=torch.float64)


@pytest.fixture(scope="module")
def run(tests):
    return zoo.cavi(zoo.BayesianFactorAnalysis(9, 5).double(), tests.x, restarts=3)


def rotations(count, k):
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(count, k, k, generator=generator, dtype=torch.float64)).Q


def test_draws_in_any_rotation_give_the_same_loadings():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    draws = mean + 0.1 * torch.randn(500, 8, 3, generator=generator, dtype=torch.float64)
    plain, turned = _aligned(draws), _aligned(draws @ rotations(500, 3))
    for one in (plain, turned):
        assert torch.allclose(one @ one.mT, draws @ draws.mT)  # only rotated
    # The two references differ by one rotation of all, so that inner products of any two draws agree.
    torch.testing.assert_close(turned[:50] @ turned[50:100].mT, plain[:50] @ plain[50:100].mT, rtol=0, atol=1e-4)
    spread = (plain - plain.mean(0)).square().sum()
    assert spread < (draws - draws.mean(0)).square().sum()  # nearer to each other than unaligned


def test_a_turned_posterior_gives_the_same_intervals(run, tests):
    one, other = (posterior_loadings(each, tests, draws=4000, factors=3) for each in (run, turned(run, tests.x)))
    error = (one.deviation.square() + other.deviation.square()).sqrt() / 4000**0.5  # of the difference of two means
    assert ((one.estimate - other.estimate).abs() < 5 * error).all()
    torch.testing.assert_close(one.deviation, other.deviation, rtol=0.1, atol=0)


def turned(run, x):
    """The run with its factors rotated, and so with the same W W' + Psi."""
    rotation, found = rotations(1, 5)[0], dict(run.factors)
    for name in ("z", "weight"):
        old = found[name]
        found[name] = GaussianFactor(old.mean @ rotation, rotation.mT @ old.covariance @ rotation)
    guide = guides.MeanField(run.model, x, family="conjugate")
    guide.place(found)
    return zoo.Fit(run.model, guide)


@pytest.mark.parametrize("rotation", ["principal", "varimax"])
def test_near_to_the_bootstrap_of_maximum_likelihood(rotation, run, tests):
    model = zoo.FactorAnalysis(9, 3).double()
    zoo.em(model, tests.x)
    expected = bootstrap_loadings(model, tests, rotation=rotation)
    kept = zoo.diagnostics.effective_size(run, tests).kept
    assert kept == 3
    found = posterior_loadings(run, tests, factors=kept, rotation=rotation)
    assert found.estimate.shape == (9, 3)
    assert found.columns == expected.columns
    assert ((found.estimate - expected.estimate).abs() < expected.deviation).all()  # within a standard error
    assert (found.deviation / expected.deviation).median() < 1  # a factorised q is too narrow


def test_all_factors_and_the_units_of_the_columns(run, tests):
    found = posterior_loadings(run, tests, standardised=False)
    assert found.estimate.shape == (9, 5)
    assert found.estimate[:, 3:].abs().max() < 0.05 * found.estimate.abs().max()  # switched off
    assert found.source == "posterior"
    assert "5 factors (principal) by 1000 posterior draws aligned to their mean" in repr(found)
    assert found.frame().columns == ["column", "factor", "loading", "se", "low", "high"]


def test_refusals(run, tests, untouched):
    point = zoo.FactorAnalysis(9, 2).double()
    mixture = zoo.BayesianGMM(9, 2).double()
    with untouched():
        for other in (zoo.Fit(point, guides.Exact(point)), zoo.Fit(mixture, guides.MeanField(mixture, tests.x))):
            with pytest.raises(TypeError, match="not linear-Gaussian with draws of weight.*bootstrap_loadings"):
                posterior_loadings(other, tests)
        with pytest.raises(ValueError, match="draws must be at least 40"):
            posterior_loadings(run, tests, draws=39)
        with pytest.raises(ValueError, match="factors=6 must be at most the 5 factors"):
            posterior_loadings(run, tests, factors=6)
        with pytest.raises(ValueError, match="rotation must be one of principal, varimax, quartimax"):
            posterior_loadings(run, tests, rotation="oblimin")
