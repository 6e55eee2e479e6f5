"""AIC and BIC, and the number of free parameters."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroParam
from torch import nn
from torch.distributions import constraints

import zoo
from zoo.algebra.mixture_covariances import KINDS
from zoo.base.module import Module
from zoo.diagnostics.model.criteria import free_parameters, information_criteria


@pytest.fixture(scope="module")
def holzinger():
    return zoo.data.load("holzinger", dtype=torch.float64).x


def test_counts_of_mclust():
    """mclust's nMclustParams for 5 columns: with 1, 2 and 3 components."""
    known = {
        "full": [20, 41, 62],
        "tied": [20, 26, 32],
        "diag": [10, 21, 32],
        "tied_diag": [10, 16, 22],
        "spherical": [6, 13, 20],
        "tied_spherical": [6, 12, 18],
    }
    for kind in KINDS:
        assert [free_parameters(zoo.GMM(5, k, kind)) for k in (1, 2, 3)] == known[kind]
    assert free_parameters(zoo.GMM(2, 2)) == 11


def rank(model, seed=0):
    """The dimension of the means and covariances that a linear-Gaussian model can give: the rank of a Jacobian."""
    d, k = model.weight.shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(d * k + model.scale.numel(), generator=generator, dtype=torch.float64)

    def covariance(free):
        weight, scale = free[: d * k].reshape(d, k), free[d * k :]
        return (weight @ weight.T + torch.diag((scale**2).expand(d))).flatten()

    return d + int(torch.linalg.matrix_rank(torch.autograd.functional.jacobian(covariance, start)))


@pytest.mark.parametrize("d", [2, 4, 6])
def test_factors_count_what_the_covariance_can_be(d):
    for k in range(1, d + 3):
        if k < d:
            assert free_parameters(zoo.PPCA(d, k)) == rank(zoo.PPCA(d, k))
        assert free_parameters(zoo.FactorAnalysis(d, k)) == rank(zoo.FactorAnalysis(d, k))


def test_what_is_held_fixed_does_not_count():
    model = zoo.FactorAnalysis(9, 2)
    assert free_parameters(model) == 9 * 2 - 1 + 9 + 9
    model.mean_unconstrained.requires_grad_(False)
    assert free_parameters(model) == 9 * 2 - 1 + 9
    model.weight_unconstrained.requires_grad_(False)  # then nothing turns
    assert free_parameters(model) == 9
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of this FactorAnalysis is free"):
        free_parameters(model)


class Odd(Module):
    """A density of one's own: parameters under every kind of constraint, and a network's."""

    def __init__(self):
        super().__init__()
        self.shares = PyroParam(torch.full((3, 4), 0.25), constraints.simplex)  # 9
        self.root = PyroParam(torch.eye(3).repeat(2, 1, 1), constraints.lower_cholesky)  # 12
        self.correlation = PyroParam(torch.eye(4), constraints.corr_cholesky)  # 6
        self.level = PyroParam(torch.ones(5), constraints.positive)  # 5
        self.net = nn.Linear(2, 3)  # 9

    def forward(self, x=None, index=None, size=None):
        return pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    def log_marginal(self, x):
        return -x.square().sum(1)


def test_constraints_take_their_share():
    assert free_parameters(Odd()) == 9 + 12 + 6 + 5 + 9


def test_old_faithful_as_in_mclust(faithful):
    model = zoo.best_of(lambda: zoo.GMM(2, 2), faithful, seeds=2).best
    found = information_criteria(model, faithful)
    assert found.df == 11
    assert found.log_likelihood == pytest.approx(-1130.26396, abs=1e-4)
    # mclust stops 1.1e-4 nats short of the maximum, and its BIC is the negative: -2322.192
    assert found.bic == pytest.approx(2322.192 - 2 * (1130.26407 - 1130.26396), abs=1e-3)
    assert found.aic == pytest.approx(2 * 11 + 2 * 1130.26396, abs=1e-3)


def test_by_hand(holzinger):
    model = zoo.FactorAnalysis(9, 2)
    zoo.em(model, holzinger)
    found = information_criteria(model, holzinger)
    assert found.log_likelihood == pytest.approx(-3760.2453, abs=1e-3)  # factanal
    assert (found.df, found.n) == (35, 301)
    assert found.bic == pytest.approx(found.aic - 70 + 35 * math.log(301), abs=1e-9)
    assert "35 free parameters" in repr(found)


def test_the_same_in_float32(faithful):
    model = zoo.GMM(2, 1).double()
    zoo.em(model, faithful)
    single = zoo.GMM(2, 1)
    single.load_state_dict(model.state_dict())
    mean, covariance = faithful.mean(0), torch.cov(faithful.T, correction=0)
    direct = torch.distributions.MultivariateNormal(mean, covariance).log_prob(faithful).sum()
    assert information_criteria(model, faithful).log_likelihood == pytest.approx(float(direct), abs=1e-8)
    assert information_criteria(single, faithful).log_likelihood == pytest.approx(float(direct), abs=1e-3)
    assert single.mean.dtype == torch.float32


def test_missing_entries_count_rows_with_something_observed(iris):
    x = iris[:40].clone()
    x[0] = torch.nan
    x[1:5, 2] = torch.nan
    model = zoo.PPCA(4, 1).double()
    zoo.em(model, x, steps=200)
    found = information_criteria(model, x)
    assert found.n == 39
    assert found.log_likelihood == pytest.approx(model.log_marginal(x[1:]).sum().item(), abs=1e-8)


def test_refusals(iris, untouched):
    deep, plain = zoo.VAE(4, 2), zoo.PPCA(4, 2)
    with untouched():
        with pytest.raises(TypeError, match=r"VAE has no closed-form log p\(x\).*of a bound.*held-out"):
            information_criteria(deep, iris)
        with pytest.raises(TypeError, match="<lambda> has no closed-form"):
            information_criteria(lambda x=None, index=None, size=None: None, iris)
        with pytest.raises(TypeError, match="PPCA has no closed-form .*as a Pyro handler changes its density"):
            information_criteria(poutine.scale(plain, 0.5), iris)
        with pytest.raises(ValueError, match="fit it first"):
            information_criteria(plain, iris)


def test_handlers_that_leave_the_density_unchanged_do_not_matter(iris):
    model = zoo.GMM(4, 2).double()
    wrapped = config_enumerate(model)
    with pytest.raises(ValueError, match="this GMM has its initial parameters"):
        information_criteria(wrapped, iris)
    zoo.em(model, iris, steps=20)
    assert information_criteria(wrapped, iris) == information_criteria(model, iris)
