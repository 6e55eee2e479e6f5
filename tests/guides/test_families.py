"""Natural-gradient steps: of length one on an exact bound they land on its optimum, whatever the start."""

import torch
from torch.distributions import Dirichlet, Gamma, MultivariateNormal, kl_divergence

from guides.families import CategoricalPart, DirichletPart, GammaPart, GaussianPart, WishartPart

X = torch.zeros(1, dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def matrix(k, seed=0):
    root = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT + torch.eye(k, dtype=torch.float64)


def test_gaussian():
    part = GaussianPart((5,), 3, X)
    part.loc = torch.randn(5, 3, dtype=torch.float64)
    mean, precision = torch.randn(3, dtype=torch.float64), matrix(3)
    q, target = part.distribution(), MultivariateNormal(mean, precision_matrix=precision)
    kl_divergence(q, target).sum().backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.loc, mean.expand(5, 3), **EXACT)
    torch.testing.assert_close(part.factor().covariance, torch.linalg.inv(precision).expand(5, 3, 3), **EXACT)


def test_gaussian_with_one_covariance():
    part = GaussianPart((5,), 3, X, common=True, local=True)
    means, precision = torch.randn(5, 3, dtype=torch.float64), matrix(3)
    kl_divergence(part.distribution(), MultivariateNormal(means, precision_matrix=precision)).sum().backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.loc, means, **EXACT)
    torch.testing.assert_close(part.factor().covariance, torch.linalg.inv(precision), **EXACT)


def test_gamma():
    part = GammaPart((3,), X)
    target = Gamma(torch.tensor([2.0, 0.5, 7.0], dtype=torch.float64), torch.tensor([1.0, 3.0, 0.2]).double())
    kl_divergence(part.distribution(), target).sum().backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.shape, target.concentration, **EXACT)
    torch.testing.assert_close(part.rate, target.rate, **EXACT)


def test_dirichlet():
    part = DirichletPart((2, 4), X)
    target = torch.tensor([[2.0, 0.5, 7.0, 1.0], [1.0, 1.0, 3.0, 0.1]], dtype=torch.float64)
    kl_divergence(part.distribution(), Dirichlet(target)).sum().backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.concentration, target, **EXACT)


def test_wishart():
    part = WishartPart((2,), 3, X)
    df, inverse = torch.tensor([5.0, 8.0], dtype=torch.float64), torch.stack([matrix(3), 2 * matrix(3, 1)])
    factor = part.factor()
    (-factor.expected_log_prior(df, inverse) - factor.entropy()).backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.df, df, **EXACT)
    torch.testing.assert_close(part.factor().inverse_scale, inverse, **EXACT)


def test_categorical():
    part = CategoricalPart(5, 3, X)
    target = torch.randn(5, 3, dtype=torch.float64).log_softmax(-1)
    factor = part.factor()
    (-(factor.mean * target).sum() - factor.entropy()).backward()
    part.natural_step(1.0)
    torch.testing.assert_close(part.logits, target, **EXACT)


def test_half_a_step_is_half_way_in_natural_parameters():
    part = GammaPart((), X)
    target = Gamma(torch.tensor(7.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64))
    kl_divergence(part.distribution(), target).backward()
    part.natural_step(0.5)
    torch.testing.assert_close(part.shape, (torch.ones(()).double() + 7) / 2, **EXACT)
    torch.testing.assert_close(part.rate, (torch.ones(()).double() + 3) / 2, **EXACT)
