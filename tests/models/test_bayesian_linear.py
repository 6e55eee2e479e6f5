"""Bayesian PCA and factor analysis: densities by brute force, optima of the factors, the bound, missing entries."""

import copy
import math

import pytest
import torch
from bayesian_models import (
    ascended,
    assert_every_factor_is_optimal,
    expected_bound,
    iris,
    log_joint,
    with_holes,
)
from torch.distributions import Gamma, Normal

import zoo
from zoo.models.linear_ascent import best_rotation

MODELS = [zoo.BayesianPCA, zoo.BayesianFactorAnalysis]
kinds = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
holes = pytest.mark.parametrize("holes", [False, True], ids=["whole", "missing"])
centred = pytest.mark.parametrize("mean", [False, True], ids=["centred", "mean"])


def rows_of(holes):
    x = iris()[:60]
    return with_holes(x) if holes else x


@kinds
@holes
def test_density_is_the_story_entry_by_entry(kind, holes):
    x = rows_of(holes)[:6]
    model = kind(4, 2, relevance=(2.0, 3.0), precision=(4.0, 5.0)).double()
    size = () if kind is zoo.BayesianPCA else (4,)
    values = {
        "relevance": torch.tensor([0.7, 1.3], dtype=torch.float64),
        "precision": torch.rand(size, dtype=torch.float64) + 0.5,
        "weight": torch.randn(4, 2, dtype=torch.float64),
        "mean": torch.randn(4, dtype=torch.float64),
        "z": torch.randn(6, 2, dtype=torch.float64),
    }
    one = torch.ones((), dtype=torch.float64)
    total = Gamma(2 * one, 3 * one).log_prob(values["relevance"]).sum()
    total += Gamma(4 * one, 5 * one).log_prob(values["precision"]).sum()
    total += Normal(0 * one, 10 * one).log_prob(values["mean"]).sum() + Normal(0 * one, one).log_prob(values["z"]).sum()
    for k in range(2):
        total += Normal(0.0, values["relevance"][k] ** -0.5).log_prob(values["weight"][:, k]).sum()
    for n, d in (~x.isnan()).nonzero().tolist():
        location = values["weight"][d] @ values["z"][n] + values["mean"][d]
        tau = values["precision"] if size == () else values["precision"][d]
        total += Normal(location, tau**-0.5).log_prob(x[n, d])
    torch.testing.assert_close(log_joint(model, x, values), total)


@kinds
@holes
@centred
def test_every_update_is_the_coordinate_optimum(kind, holes, mean):
    x = rows_of(holes)
    model = kind(4, 2, mean=mean).double()
    ascent, bounds = ascended(model, x)
    assert (bounds.diff() > -1e-10 * bounds[1:].abs()).all()
    other, _ = ascended(copy.deepcopy(model), x, sweeps=3, seed=1)
    factors = ascent.factors(x)
    assert math.isclose(float(model.bound(x, factors)), float(bounds[-1]), rel_tol=1e-12)
    assert_every_factor_is_optimal(model, x, factors, other.factors(x))


@kinds
@holes
@centred
def test_bound_is_its_expectation(kind, holes, mean):
    x = rows_of(holes)
    run = zoo.cavi(kind(4, 2, mean=mean).double(), x, restarts=2)
    mean_of, error = expected_bound(run, x)
    assert abs(mean_of - float(run[-1])) < 5 * error


@kinds
def test_a_row_without_entries_adds_nothing(kind):
    x = with_holes(iris()[:40])
    empty = torch.cat([x, torch.full((3, 4), torch.nan, dtype=torch.float64)])
    bounds = [float(zoo.cavi(kind(4, 1).double(), rows, restarts=1)[-1]) for rows in (x, empty)]
    assert math.isclose(*bounds, abs_tol=1e-6)


@kinds
def test_sweeps_with_and_without_a_mask_agree(kind):
    x = iris()
    model = kind(4, 2).double()
    model.initialize(x)
    plain, masked = (model.coordinate_ascent(x, torch.Generator().manual_seed(0)) for _ in range(2))
    hidden = torch.cat([x, torch.full((1, 4), torch.nan, dtype=torch.float64)])  # the general code, the same entries
    masked = model.coordinate_ascent(hidden, torch.Generator().manual_seed(0))
    for _ in range(25):
        plain.sweep()
        masked.sweep()
    torch.testing.assert_close(plain.q.weight.mean, masked.q.weight.mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(plain.bound(), masked.bound(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("degrees", [140, -6], ids=["many rows", "few rows"])
@pytest.mark.parametrize("rate", [1e-3, 50.0])
def test_rotation_is_the_best_of_all(degrees, rate):
    generator = torch.Generator().manual_seed(0)
    d, k, prior = 10, 4, (0.5, rate)
    whole, energy = (one @ one.mT for one in torch.randn(2, k, 9, generator=generator, dtype=torch.float64))
    energy = energy * torch.logspace(-1, 1, k, dtype=torch.float64)[:, None]
    energy = energy @ energy.mT

    def gain(rotation):
        inverse = torch.linalg.inv(rotation)
        left = rate + 0.5 * (inverse.mT @ energy @ inverse).diagonal()
        moved = degrees * torch.linalg.slogdet(rotation)[1] - 0.5 * (rotation @ whole @ rotation.mT).trace()
        return moved - (prior[0] + d / 2) * left.log().sum()

    found = best_rotation(whole, energy, degrees, d, prior)
    best = gain(found)
    torch.testing.assert_close(torch.func.grad(gain)(found) @ found.mT, torch.zeros(k, k).double(), atol=1e-6, rtol=0)
    for _ in range(50):
        step = torch.randn(k, k, generator=generator, dtype=torch.float64)
        assert gain(torch.linalg.matrix_exp(0.1 * step) @ found) < best
        assert gain(torch.linalg.qr(step)[0] @ found) < best + 1e-9


@kinds
def test_a_rotation_raises_the_bound_and_keeps_the_fit(kind):
    x = rows_of(holes=True)
    ascent, bounds = ascended(kind(4, 3).double(), x, sweeps=30)
    fitted = ascent.q.z.mean @ ascent.q.weight.mean.mT
    ascent.rotate()
    assert ascent.bound() >= bounds[-1]
    torch.testing.assert_close(ascent.q.z.mean @ ascent.q.weight.mean.mT, fitted)
    before = ascent.bound()
    ascent.rotate()
    torch.testing.assert_close(ascent.bound(), before, rtol=1e-12, atol=1e-9)


@kinds
def test_refusals(kind):
    with pytest.raises(ValueError, match="relevance must be the shape and the rate.*two positive.*-1"):
        kind(4, 2, relevance=(-1.0, 1.0))
    for bad in ((1.0, 0.0), (1.0, math.nan), (math.inf, 1.0), (1.0,), 1.0, "ab", (None, 1.0)):
        with pytest.raises(ValueError, match="precision must be the shape and the rate.*improper prior"):
            kind(4, 2, precision=bad)
    with pytest.raises(ValueError, match="every column of x is constant"):
        zoo.cavi(kind(4, 2), torch.ones(20, 4))
    x = iris()[:5]
    with pytest.raises(ValueError, match="latent_dim=5 must be below the 5 rows of x: take fewer factors"):
        zoo.cavi(kind(4, 5), x)
    x = iris()
    x[:, 2] = torch.nan
    with pytest.raises(ValueError, match="column 2 of x has only NaN.*omit it"):
        zoo.cavi(kind(4, 1), x)
    x[3, 1] = torch.inf
    with pytest.raises(ValueError, match="row 3, column 1"):
        zoo.cavi(kind(4, 1), x)


def test_a_constant_column_has_no_noise_of_its_own():
    x = iris()
    x[:, 1] = 2.0
    with pytest.raises(ValueError, match="1 constant column.*or take BayesianPCA"):
        zoo.cavi(zoo.BayesianFactorAnalysis(4, 1).double(), x)
    assert zoo.cavi(zoo.BayesianPCA(4, 1).double(), x, restarts=1).converged  # all columns share one noise
