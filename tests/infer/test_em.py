"""Accelerated EM: as high as plain EM, never descending, and saying what it did."""

import copy
import itertools

import pytest
import torch
from helpers import close

import zoo
from zoo import GMM, PPCA, FactorAnalysis
from zoo.algebra.mixture_covariances import KINDS
from zoo.infer.acceleration import Anderson, Ascent

pytestmark = pytest.mark.usefixtures("own_store")


def test_anderson_solves_a_linear_map():
    """On an affine map of p coordinates, p + 1 differences determine the fixed point."""
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(4, 4).double())[0]
    slope = 0.99 * rotation * torch.tensor([1.0, 0.9, 0.5, 0.1]).double()
    fixed = torch.randn(4).double()

    def step(point):
        return fixed + slope @ (point - fixed)

    anderson, point = Anderson(), torch.zeros(4).double()
    assert anderson.propose() is None
    for _ in range(7):
        anderson.see(point, step(point))
        proposal = anderson.propose()
        point = step(point) if proposal is None else proposal
    close(point, fixed, 1e-6)


def test_a_proposal_downhill_is_rejected():
    """The likelihood is minus the distance from 0, and F halves: any point visited is at least as high as the last."""

    def evaluate(point):
        if point.abs().max() > 5:
            raise FloatingPointError
        return -float(point.abs().sum()), point / 2 + 0.3 * point.sin().roll(1) * point.abs()

    ascent = Ascent(evaluate, torch.tensor([1.0, 0.4, -0.2], dtype=torch.float64))
    values = [ascent.value] + [ascent.step() for _ in range(30)]
    assert all(after >= before for before, after in itertools.pairwise(values))
    assert ascent.evaluations >= 31


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("covariance", KINDS)
def test_a_climb_ends_at_a_maximum_in_fewer_evaluations(covariance, seed, iris):
    model = GMM(4, 2, covariance).double()
    found = zoo.em(model, iris, seed=seed)
    assert found.converged
    assert (found.log_likelihood.diff() >= -1e-9).all()
    again = zoo.em(copy.deepcopy(model), iris, accelerate=False, tol=1e-12)
    assert 0 <= again[-1] - found[-1] + 1e-10 < 150e-9  # the tolerance
    plain = zoo.em(GMM(4, 2, covariance).double(), iris, seed=seed, accelerate=False)
    assert found.evaluations <= plain.evaluations + 10


def test_old_faithful(faithful):
    found = zoo.em(GMM(2, 3, "tied").double(), faithful)
    plain = zoo.em(GMM(2, 3, "tied").double(), faithful, accelerate=False)
    close(found[-1], plain[-1], 272e-9)
    assert found.evaluations < plain.evaluations / 4


@pytest.mark.parametrize("cls", [PPCA, FactorAnalysis])
def test_complete_rows_start_from_the_models_maximum(cls, iris):
    found, plain = (zoo.em(cls(4, 1).double(), iris, accelerate=accelerate) for accelerate in (True, False))
    close(found[-1], plain[-1], 150e-8)
    assert found.evaluations < 30


def test_a_failed_search_leaves_the_climb_to_em(iris):
    class Lost(FactorAnalysis):
        def maximize(self, moments):
            super().maximize(moments)
            self.mean = self.mean + 1
            raise FloatingPointError("no maximum")

    close(zoo.em(Lost(4, 1).double(), iris)[-1], zoo.em(FactorAnalysis(4, 1).double(), iris)[-1], 150e-9)


def test_the_result_says_what_happened(iris):
    model = GMM(4, 3).double()
    found = zoo.em(model, iris, steps=4)
    assert (found.steps, len(found), found.converged) == (4, 4, False)
    assert found.stopped == "all 4 steps are used up"
    assert found.summary()["evaluations"] == found.evaluations >= 5
    assert found.frame()["step"].to_list() == [1, 2, 3, 4]
    assert "not converged" in repr(found)
    close(model.log_marginal(iris).sum(), found[-1])
    plain = zoo.em(GMM(4, 3).double(), iris, steps=4, accelerate=False)
    assert plain.evaluations == 5
    ended = zoo.em(PPCA(4, 2).double(), iris)
    assert ended.converged
    assert ended.stopped == "the log-likelihood has settled"


@pytest.mark.parametrize("covariance", KINDS)
def test_narrow_components_far_apart_keep_their_digits(covariance):
    """Features around one centre would cancel here: every component is taken around its own mean."""
    generator = torch.Generator().manual_seed(0)
    x = 1e-3 * torch.randn(6000, 3, generator=generator).double()
    x[3000:] += 10
    model = GMM(3, 2, covariance).double()
    model.mean = torch.stack([x[:3000].mean(0), x[3000:].mean(0)]) + 1e-4
    model.scale = model.scale.detach() * 2e-3
    with torch.no_grad():
        before = model.log_marginal(x).sum()
    close(model.em_step(x) / len(x), before / len(x), 1e-9)
    wide = (x[:3000].var(0, correction=0) + x[3000:].var(0, correction=0)) / 2
    own = model._covariances().detach()
    own = own.diagonal(dim1=-2, dim2=-1) if own.ndim == 3 else own
    expected = wide.mean() if covariance.endswith("spherical") else wide
    assert ((own.mean(0) / expected - 1).abs() < 1e-8).all()


@pytest.mark.parametrize("covariance", KINDS)
def test_float32_rows_sum_in_float64(covariance, iris):
    single, double = GMM(4, 3, covariance), GMM(4, 3, covariance).double()
    torch.manual_seed(0)
    single.initialize(iris.float())
    double.load_state_dict({name: value.double() for name, value in single.state_dict().items()})
    many = iris.repeat(200, 1)
    found = single.em_step(many.float())
    assert found.dtype == torch.float64
    close(found / len(many), double.em_step(many) / len(many), 1e-5)
    assert single.mean.dtype == torch.float32
    close(single.mean.double(), double.mean, 1e-4)


def test_where_float64_ends_em_says_so_and_keeps_the_best_point():
    """One noise variance for columns of 1e-6 and 1e6: the likelihood is right as far as it goes, and never fell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=generator).double() @ torch.randn(2, 6, generator=generator).double()
    x = (x + torch.randn(100, 6, generator=generator)) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6, 1]).double()
    complete = zoo.em(PPCA(6, 2).double(), x)
    assert complete.converged
    x[torch.rand(100, 6, generator=generator) < 0.2] = float("nan")
    model = PPCA(6, 2).double()
    found = zoo.em(model, x)
    assert not found.converged
    assert found.stopped.startswith("float64 resolves the likelihood no further: noise is ")
    assert (found.log_likelihood.diff() > -1e-6).all()
    covariance = model.weight @ model.weight.T + torch.diag(model.noise)
    total = torch.zeros(())
    for row in x:
        seen = ~row.isnan()
        if seen.any():
            own = torch.distributions.MultivariateNormal(model.mean[seen], covariance[seen][:, seen])
            total = total + own.log_prob(row[seen])
    assert float(total.detach()) == pytest.approx(float(found[-1]), rel=1e-5)
