"""Factors in the exponential family against their distributions: expectations, entropies, natural parameters."""

import warnings

import mpmath as mp
import pytest
import torch
from torch.distributions import kl_divergence

from zoo.algebra.exponential_families import (
    CategoricalFactor,
    DirichletFactor,
    GammaFactor,
    GaussianFactor,
    WishartFactor,
    blend,
)

F64 = torch.float64
ALGEBRA = {"rtol": 1e-10, "atol": 1e-10}


def matrix(k, seed):
    root = torch.randn(k, k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT + torch.eye(k, dtype=F64)


def factors():
    return {
        "gaussian": GaussianFactor(torch.randn(4, 3, dtype=F64), torch.stack([matrix(3, s) for s in range(4)])),
        "gaussian, one covariance": GaussianFactor(torch.randn(4, 3, dtype=F64), matrix(3, 7)),
        "gamma": GammaFactor(torch.tensor([0.5, 3.0], dtype=F64), torch.tensor([2.0, 0.1], dtype=F64)),
        "dirichlet": DirichletFactor(torch.tensor([[0.5, 3.0, 1.0], [2.0, 2.0, 7.0]], dtype=F64)),
        "wishart": WishartFactor(torch.tensor([4.0, 9.5], dtype=F64), torch.stack([matrix(3, 1), matrix(3, 2)])),
        "categorical": CategoricalFactor(torch.randn(5, 3, dtype=F64).log_softmax(-1)),
    }


@pytest.mark.parametrize("size", [0.3, 900.0, 1100.0, 1e8, 1e17, 1e40])
def test_entropies_keep_their_digits_however_large_the_parameters(size):
    """Against 80 digits; the bound of a factor that runs off must not be rounding."""
    with mp.workdps(80):

        def gamma(a):
            return a + mp.loggamma(a) + (1 - a) * mp.digamma(a)

        a, b, d = mp.mpf(size), mp.mpf(2.5), 3
        total, df = a + b, 2 * a + d
        dirichlet = gamma(a) + gamma(b) - gamma(total) - mp.digamma(total)
        halves = [(df - i) / 2 for i in range(d)]
        norm = df / 2 * d * mp.log(2) + mp.mpf(d * (d - 1)) / 4 * mp.log(mp.pi) + sum(mp.loggamma(h) for h in halves)
        log_det = sum(mp.digamma(h) for h in halves) + d * mp.log(2)
        wishart = norm - (df - d - 1) / 2 * log_det + df * d / 2
        want = [float(gamma(a)), float(dirichlet), float(wishart)]
    one = torch.ones((), dtype=torch.float64)
    found = [
        GammaFactor(size * one, one).entropy(),
        DirichletFactor(torch.tensor([size, 2.5], dtype=torch.float64)).entropy(),
        WishartFactor((2 * size + 3) * one, torch.eye(3, dtype=torch.float64)).entropy(),
    ]
    torch.testing.assert_close(torch.stack(found), torch.tensor(want, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", factors())
def test_entropy_is_that_of_the_distribution(name):
    factor = factors()[name]
    torch.testing.assert_close(factor.entropy(), factor.distribution().entropy().sum(), **ALGEBRA)


@pytest.mark.parametrize("name", factors())
def test_natural_parameters_and_back(name):
    factor = factors()[name]
    again = type(factor).of(*factor.natural)
    for one, other in zip(again.natural, factor.natural, strict=True):
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-8, atol=1e-8)
    half = blend(factor, factor, 0.3)
    for one, other in zip(half.natural, factor.natural, strict=True):
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-8, atol=1e-8)


def test_expectations():
    found = factors()
    gamma, dirichlet, wishart = found["gamma"], found["dirichlet"], found["wishart"]
    draws = 400_000
    x = gamma.distribution().sample((draws,))
    torch.testing.assert_close(gamma.mean, x.mean(0), rtol=0.02, atol=0.01)
    torch.testing.assert_close(gamma.log_mean, x.log().mean(0), rtol=0.02, atol=0.02)
    pi = dirichlet.distribution().sample((draws,))
    torch.testing.assert_close(dirichlet.log_mean, pi.log().mean(0), rtol=0.02, atol=0.02)
    precision = wishart.distribution().sample((20_000,))
    torch.testing.assert_close(wishart.mean, precision.mean(0), rtol=0.05, atol=0.05)
    torch.testing.assert_close(wishart.log_det_mean, torch.linalg.slogdet(precision)[1].mean(0), rtol=0.02, atol=0.03)


def test_expected_log_priors_give_the_divergence():
    """KL(q || p) = -E_q log p - H(q)."""
    found = factors()
    gamma, dirichlet, wishart = found["gamma"], found["dirichlet"], found["wishart"]
    shape, rate = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    ours = -gamma.expected_log_prior(shape, rate) - gamma.entropy()
    theirs = kl_divergence(gamma.distribution(), torch.distributions.Gamma(shape, rate)).sum()
    torch.testing.assert_close(ours, theirs, **ALGEBRA)
    prior = torch.tensor([1.0, 0.4, 2.0], dtype=F64)
    ours = -dirichlet.expected_log_prior(prior) - dirichlet.entropy()
    theirs = kl_divergence(dirichlet.distribution(), torch.distributions.Dirichlet(prior)).sum()
    torch.testing.assert_close(ours, theirs, **ALGEBRA)
    df, inverse = torch.tensor(5.0, dtype=F64), matrix(3, 9)
    prior, q = torch.distributions.Wishart(df, precision_matrix=inverse), wishart.distribution()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular draws
        x = q.sample((20_000,))
    each = prior.log_prob(x).sum(-1)
    error = float(each.std()) / len(each) ** 0.5
    assert abs(float(wishart.expected_log_prior(df, inverse) - each.mean())) < 5 * error
