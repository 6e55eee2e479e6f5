"""PPCA with a fixed noise variance: its maximum is known, and the noise stays as it was set."""

import math
from itertools import pairwise

import pytest
import torch

import guides
import zoo
from zoo.base.moments import Moments
from zoo.diagnostics.model.criteria import free_parameters
from zoo.posterior.rates import rate_distortion

NOISES = (0.3, 0.75, 1.7, 8.0)  # none near an eigenvalue of the rows below


@pytest.fixture(scope="module")
def wine():
    x = zoo.data.load("wine", dtype=torch.float64).x
    return (x - x.mean(0)) / x.std(0, correction=0)


def best(x, k, noise):
    """The highest log-likelihood per row: eigenvalues below the noise are left to it."""
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    variance = torch.full_like(values, noise)
    variance[:k] = values[:k].clamp_min(noise)
    return -0.5 * float((variance.log() + values / variance + math.log(2 * math.pi)).sum()), values


@pytest.mark.parametrize("noise", NOISES)
def test_the_maximum_by_eigenvectors_and_by_em(wine, noise):
    top, values = best(wine, 5, noise)
    model = zoo.PPCA(13, 5, noise=noise).double()
    found = zoo.em(model, wine)
    assert found.converged
    with torch.no_grad():
        assert float(model.log_marginal(wine).mean()) == pytest.approx(top, abs=1e-6)  # the noise is a float32
    assert int((model.weight.norm(dim=0) < 1e-6).sum()) == int((values[:5] < noise).sum())
    assert float(model.noise[0]) == pytest.approx(noise, rel=1e-6)
    stepped = zoo.PPCA(13, 5, noise=noise).double()
    before = [float(stepped.em_step(wine)) for _ in range(400)]
    assert all(b >= a - 1e-9 for a, b in pairwise(before))
    assert before[-1] / len(wine) == pytest.approx(top, abs=2e-3)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("guide", [lambda m, x: guides.Amortized(m, x, hidden=()), guides.MeanField, guides.FullRank])
def test_svi_ends_there(wine, noise, guide):
    torch.manual_seed(0)
    model = zoo.PPCA(13, 5, noise=noise).double()
    run = zoo.fit(model, guide(model, wine), wine, start="random", progress=False)
    top, values = best(wine, 5, noise)
    with torch.no_grad():
        assert float(model.log_marginal(wine).mean()) == pytest.approx(top, abs=1e-5)
    if guide is not guides.FullRank:  # whose factors may have any rotation, so that no unit need collapse
        assert len(rate_distortion(run, wine).collapsed) == int((values[:5] < noise).sum())
    assert float(model.noise[0]) == pytest.approx(noise, rel=1e-6)


def test_missing_entries(wine):
    x = wine.clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.1] = math.nan
    model = zoo.PPCA(13, 2, noise=0.5).double()
    climb = zoo.em(model, x, steps=50)
    assert (climb.log_likelihood.diff() > -1e-9).all()
    assert float(model.noise[0]) == pytest.approx(0.5, rel=1e-6)


def test_a_fixed_noise_is_not_counted_and_is_saved(wine, tmp_path):
    model = zoo.PPCA(13, 2, noise=0.5).double()
    assert free_parameters(model) == free_parameters(zoo.PPCA(13, 2)) - 1
    run = zoo.fit(model, guides.Exact(model), wine, progress=False)
    back = zoo.load(run.save(tmp_path / "run"))
    assert back.model.settings["noise"] == 0.5
    torch.testing.assert_close(back.model.log_marginal(wine), model.log_marginal(wine), rtol=0, atol=0)


def test_rows_of_low_rank_have_a_maximum():
    x = torch.randn(20, 1, dtype=torch.float64) @ torch.randn(1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="unbounded"):
        zoo.em(zoo.PPCA(4, 2).double(), x)
    model = zoo.PPCA(4, 2, noise=0.1).double()
    zoo.em(model, x)
    covariance = model.weight @ model.weight.T + torch.diag(model.noise)
    top = torch.linalg.eigvalsh(Moments.of(x).covariance)[-1]
    torch.testing.assert_close(torch.linalg.eigvalsh(covariance)[-1], top, rtol=1e-6, atol=0)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_a_noise_that_is_no_variance_is_refused(noise):
    with pytest.raises(ValueError, match="noise must be a positive variance"):
        zoo.PPCA(4, 2, noise=noise)
