"""Canonical rotations against brute force, and comparisons that do not depend on them against planted answers."""

import math

import pytest
import torch
from helpers import close, random_mixture
from pyro.nn import PyroParam
from torch.distributions import constraints

import zoo
from guides import Exact
from zoo import GMM, PPCA, VAE, FactorAnalysis
from zoo.algebra.mixture_covariances import KINDS
from zoo.alignment.canonical import canonical_transform, to_canonical
from zoo.alignment.matching import align, match_components, posterior_difference, principal_angles, procrustes
from zoo.alignment.symmetry import Alignment, covariance

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-10  # float64, well-conditioned: rounding stays far below
ROTATIONS = ["principal", "varimax"]
rotations = pytest.mark.parametrize("rotation", ROTATIONS)
linear = pytest.mark.parametrize(
    ("cls", "d", "k"), [(PPCA, 5, 2), (PPCA, 2, 1), (FactorAnalysis, 9, 4), (FactorAnalysis, 3, 5)]
)
covariances = pytest.mark.parametrize("kind", KINDS)


def random_linear(cls, d, k):
    model = cls(d, k).double()
    model.weight, model.mean = torch.randn(d, k).double(), torch.randn(d).double()
    model.scale = 0.5 + torch.rand_like(model.scale)
    return model


def orthogonal(k):
    return torch.linalg.qr(torch.randn(k, k).double()).Q


def turned(model):
    return Alignment(rotation=orthogonal(model.latent_dim)).apply(model)


def criterion(loadings):
    """Kaiser's: the variance of the squared loadings within columns, rows of length 1."""
    squares = (loadings / loadings.norm(dim=1, keepdim=True)).square()
    return squares.var(0, correction=0).sum()


# --- canonical coordinates -----------------------------------------------------------------------


@rotations
@linear
def test_likelihood_stays_and_factors_follow(cls, d, k, rotation, untouched):
    model, x = random_linear(cls, d, k), 2 * torch.randn(7, d).double()
    before = model.weight.detach().clone()
    with untouched():
        plain, change = to_canonical(model, rotation), canonical_transform(model, rotation)
    close(plain.log_marginal(x), model.log_marginal(x))
    close(change.rotation @ change.rotation.T, torch.eye(k).double())
    close(change.factors(model.posterior(x).mean), plain.posterior(x).mean)
    draws = model.posterior(x).sample((3,))
    assert change.factors(draws).shape == draws.shape
    close(draws @ model.weight.T, change.factors(draws) @ plain.weight.T)
    assert torch.equal(model.weight, before)  # the model itself is as it was


@rotations
@linear
def test_canonical_does_not_depend_on_the_rotation_it_came_from(cls, d, k, rotation):
    model = random_linear(cls, d, k)
    plain = to_canonical(model, rotation)
    close(to_canonical(plain, rotation).weight, plain.weight)
    close(to_canonical(turned(model), rotation).weight, plain.weight, 1e-9)  # the angles of close entries lose a digit
    standard = plain.weight.detach() / covariance(plain).diagonal().sqrt().unsqueeze(1)
    assert (standard.amax(0) >= standard.abs().amax(0) - 1e-6).all()  # the largest is positive


@linear
def test_principal_posterior_is_diagonal_and_ordered(cls, d, k):
    model = to_canonical(random_linear(cls, d, k))
    with torch.no_grad():
        spread = model.posterior(torch.zeros(1, d).double()).covariance_matrix[0]
    close(spread, torch.diag(spread.diagonal()))
    assert (spread.diagonal().diff() > -ALGEBRA).all()  # most signal, least variance first


@rotations
def test_units_of_the_columns_do_not_matter(rotation):
    model, unit = random_linear(FactorAnalysis, 6, 3), 10 ** torch.linspace(-3, 3, 6).double()
    other = random_linear(FactorAnalysis, 6, 3)
    other.weight, other.scale = model.weight.detach() * unit[:, None], model.scale.detach() * unit
    close(canonical_transform(other, rotation).rotation, canonical_transform(model, rotation).rotation, 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_varimax_is_the_maximum_over_all_angles(seed):
    torch.manual_seed(seed)
    model = random_linear(FactorAnalysis, 7, 2)
    found = criterion(to_canonical(model, "varimax").weight.detach())
    angles = torch.linspace(0, math.pi / 2, 2001).double()  # the criterion has period 90 degrees
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(-1, 2, 2)
    values = torch.stack([criterion(model.weight.detach() @ turn) for turn in turns])
    assert values.max() <= found + 1e-12  # none on the grid is above
    # The criterion bends by at most 16 times its amplitude (below 1): half a grid step of 4e-4 costs 8 (4e-4)^2.
    assert found - values.max() < 2e-6
    assert values.max() - values.min() > 0.01


def test_varimax_is_the_fixed_point_of_the_iteration_by_singular_values():
    """The rule of R's varimax and factanal, written down once more, from a start of its own."""
    simple = torch.block_diag(*[torch.rand(4, 1).double() + 0.5] * 3) + 0.1 * torch.randn(12, 3).double()
    model = random_linear(FactorAnalysis, 12, 3)
    model.weight = simple @ orthogonal(3)
    rows = model.weight.detach() / model.weight.detach().norm(dim=1, keepdim=True)
    turn = orthogonal(3)
    for _ in range(2000):
        z = rows @ turn
        left, _, right = torch.linalg.svd(rows.T @ (z**3 - z * z.square().mean(0)))
        turn = left @ right
    reference = model.weight.detach() @ turn
    found = to_canonical(model, "varimax").weight.detach()
    overlap = (found.T @ reference).abs() / (found.norm(dim=0).unsqueeze(1) * reference.norm(dim=0))  # cosines
    close(overlap.amax(0), torch.ones(3).double())  # the same columns, up to order and sign
    close(overlap.amax(1), torch.ones(3).double())


def test_varimax_leaves_the_minimum_it_may_start_from():
    """Two groups of columns with a common factor: the principal basis is the criterion's minimum, exactly."""
    weight = torch.tensor([[1, 0.5], [1, 0.5], [1, -0.5], [1, -0.5]]).double()
    model = random_linear(FactorAnalysis, 4, 2)
    model.weight, model.scale = weight, torch.ones(4).double()
    close(to_canonical(model).weight.abs(), weight.abs())
    close(weight.T @ (weight**3 - weight * weight.square().mean(0)), torch.zeros(2, 2).double())  # a fixed point
    found = to_canonical(model, "varimax").weight
    close(found.sort(dim=1).values, (torch.tensor([0.5, 1.5]).double() / math.sqrt(2)).expand(4, 2))
    close(found[0], found[1])
    close(found[0], found[2].flip(0))


def test_a_column_without_factors_and_a_factor_without_columns():
    model = random_linear(FactorAnalysis, 6, 3)
    weight = model.weight.detach().clone()
    weight[2], weight[:, 1] = 0, 0
    model.weight = weight @ orthogonal(3)
    plain = to_canonical(model, "varimax").weight.detach()
    assert torch.isfinite(plain).all()
    assert plain[2].abs().max() < ALGEBRA
    assert (plain.abs().amax(0) < ALGEBRA).tolist() == [False, False, True]


@covariances
def test_components_are_ordered_by_weight(kind):
    model, x = random_mixture(kind), torch.randn(9, 3).double()
    plain, change = to_canonical(model, "varimax"), canonical_transform(model)
    assert (plain.weight.diff() <= 0).all()
    close(plain.log_marginal(x), model.log_marginal(x))
    close(change.factors(model.posterior(x).probs), plain.posterior(x).probs)
    labels = model.posterior(x).sample((5,))
    close(plain.posterior(x).log_prob(change.factors(labels)), model.posterior(x).log_prob(labels))
    again = to_canonical(plain)
    assert torch.equal(again.mean, plain.mean)
    shuffled = Alignment(order=torch.randperm(4)).apply(model)
    close(to_canonical(shuffled).mean, plain.mean)
    close(covariance(shuffled), covariance(model))


def test_equal_weights_are_ordered_by_their_means():
    model = random_mixture("full", k=3)
    model.weight = torch.tensor([1 / 3 + 1e-12, 1 / 3, 1 / 3]).double()
    model.mean = torch.tensor([[1.0, 5, 0], [1, 2, 0], [0, 9, 0]]).double()
    assert canonical_transform(model).order.tolist() == [2, 1, 0]


def test_float32_and_frozen_parameters_stay_so():
    for model in (PPCA(4, 2), GMM(4, 3, "full")):
        model.mean.requires_grad_(False)
        plain = to_canonical(model)
        assert {p.dtype for p in plain.parameters()} == {torch.float32}
        kept = {name: p.requires_grad for name, p in model.named_parameters()}
        assert {name: p.requires_grad for name, p in plain.named_parameters()} == kept
        x = torch.randn(6, 4)
        close(plain.log_marginal(x), model.log_marginal(x), 1e-4)  # float32


# --- two fits of one model -----------------------------------------------------------------------


def build(name):
    return {"iris": lambda: PPCA(4, 2), "holzinger": lambda: FactorAnalysis(9, 2), "faithful": lambda: GMM(2, 2)}[
        name
    ]().double()


@pytest.mark.parametrize("name", ["iris", "holzinger", "faithful"])
def test_fits_agree_once_they_are_canonical(name):
    x = zoo.data.load(name, dtype=torch.float64).x
    first, second, third = (build(name) for _ in range(3))
    zoo.em(first, x)
    zoo.em(second, x, seed=1)
    zoo.fit(third, Exact(third), x, progress=False)
    # EM stops 1e-9 nats per row below the top, where parameters are about sqrt(1e-9) = 3e-5 off.
    for rotation in ROTATIONS:
        close(to_canonical(first, rotation).weight, to_canonical(second, rotation).weight, 1e-4)
    close(covariance(first), covariance(second), 1e-4)
    assert posterior_difference(second, first, x).abs().max() < 1e-3
    # L-BFGS stops at the same resolution; rows far out multiply the error of the map by their distance.
    difference = posterior_difference(third, first, x)
    assert difference.shape == (len(x), 2)
    assert difference.abs().max() < 2e-3


def test_align_undoes_a_rotation_and_a_shift_shows_in_posterior_deviations():
    model, x = random_linear(FactorAnalysis, 6, 3), torch.randn(5, 6).double()
    other = turned(model)
    close(align(other, model).apply(other).weight, model.weight)
    close(posterior_difference(other, model, x), torch.zeros(5, 3).double())
    before = other.posterior(x).mean
    other.mean = other.mean.detach() + 0.1
    expected = align(other, model).factors(other.posterior(x).mean - before) / model.posterior(x).stddev
    assert expected.abs().max() > 0.01
    close(posterior_difference(other, model, x), expected)


# --- comparisons that do not depend on the coordinates -------------------------------------------


def test_covariance_is_that_of_generated_rows():
    for model in (random_linear(FactorAnalysis, 3, 2), random_mixture("tied"), random_mixture("spherical")):
        n = 20_000
        with torch.no_grad():
            x = model(size=n)
        known = covariance(model)
        centred = x - x.mean(0)
        products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
        assert ((products.mean(0) - known).abs() < 5 * products.std(0) / n**0.5).all()  # five standard errors


def test_rotated_loadings_span_the_same_space():
    a = torch.randn(8, 3).double()
    angles = principal_angles(a, a @ orthogonal(3) @ torch.diag(torch.tensor([1.0, 10, 0.1]).double()))
    assert angles.shape == (3,)
    assert angles.max() < 1e-12  # rounding, 1e-16, times the condition number


@pytest.mark.parametrize("other", [0.7, 1.3])  # below 45 degrees, and above
@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-4, 0.3, 1.2, math.pi / 2 - 1e-9, math.pi / 2])
def test_planted_angles_are_found(size, other):
    frame = orthogonal(7)
    a = frame[:, :2]
    both = torch.tensor([size, other], dtype=torch.float64)
    b = a * both.cos() + frame[:, 3:5] * both.sin()
    angles = principal_angles(a @ orthogonal(2), b @ orthogonal(2))
    expected = both.sort(descending=True).values
    torch.testing.assert_close(angles, expected, rtol=1e-9, atol=1e-14)  # absolute: a few roundings of 1e-16
    torch.testing.assert_close(principal_angles(b, a), expected, rtol=1e-9, atol=1e-14)


def test_a_space_within_another_has_no_angle_to_it():
    a = torch.randn(6, 3).double()
    assert principal_angles(a, a[:, :1] + a[:, 1:2]).tolist() == pytest.approx([0], abs=1e-13)
    repeated = torch.cat([a, a[:, :1]], 1)  # rank 3 in four columns
    assert principal_angles(repeated, a).shape == (3,)
    with pytest.raises(ValueError, match="b is zero"):
        principal_angles(a, torch.zeros(6, 2))
    with pytest.raises(ValueError, match="a has 6 rows, b has 5"):
        principal_angles(a, torch.ones(5, 2))


def test_procrustes_recovers_a_planted_rotation():
    a, rotation = torch.randn(9, 4).double(), orthogonal(4)
    found, aligned = procrustes(a, a @ rotation)
    close(found, rotation)
    close(aligned, a @ rotation)
    noisy = a @ rotation + 0.1 * torch.randn(9, 4).double()
    best = (procrustes(a, noisy)[1] - noisy).norm()
    assert all(best <= (a @ other - noisy).norm() for other in [rotation, *(orthogonal(4) for _ in range(200))])
    with pytest.raises(ValueError, match="matrices of one shape"):
        procrustes(a, a[:, :2])


@covariances
@pytest.mark.parametrize("with_rows", [False, True])
def test_match_components_recovers_a_planted_order(kind, with_rows):
    model, order = random_mixture(kind, k=6), torch.randperm(6)
    shuffled = Alignment(order=order).apply(model)
    x = model(size=300).detach() if with_rows else None
    assert torch.equal(match_components(model, shuffled, x), order)
    shuffled.mean = shuffled.mean.detach() + 0.01
    assert torch.equal(match_components(model, shuffled, x), order)


def test_concentric_components_are_told_apart_by_their_spread():
    model = random_mixture("spherical", k=3)
    model.mean, model.scale = torch.zeros(3, 3).double(), torch.tensor([1.0, 5.0, 0.2]).double()
    assert match_components(model, Alignment(order=torch.tensor([2, 0, 1])).apply(model)).tolist() == [2, 0, 1]


# --- models without known symmetries -------------------------------------------------------------


class Stretched(PPCA):
    """Factors of variances of their own: turning them changes the likelihood."""

    def log_marginal(self, x):
        weight = self.weight * torch.tensor([1.0, 2.0]).to(self.weight)
        return zoo.algebra.linear_gaussian.log_marginal(x, weight, self.mean, self.noise)


class Extended(GMM):
    """One parameter more than a renumbering knows of."""

    def __init__(self):
        super().__init__(3, 2)
        self.degrees = PyroParam(torch.ones(2), constraints.positive)


@pytest.mark.parametrize("model", [VAE(3, 2), Stretched(3, 2), Extended(), torch.nn.Linear(2, 2)], ids=repr)
def test_models_without_known_symmetries_are_refused(model):
    for call in (
        to_canonical,
        canonical_transform,
        covariance,
        lambda m: align(m, m),
        lambda m: Alignment(torch.eye(2)).apply(m),
    ):
        with pytest.raises(TypeError, match=f"the symmetries of {type(model).__name__} are unknown"):
            call(model)


def test_what_does_not_go_together_is_named():
    factors, mixture = random_linear(PPCA, 3, 2), random_mixture("full")
    with pytest.raises(ValueError, match="rotation must be one of principal, varimax, quartimax; got 'promax'"):
        to_canonical(factors, "promax")
    with pytest.raises(TypeError, match="PPCA and GMM have different symmetries"):
        align(factors, mixture)
    with pytest.raises(ValueError, match="numbers of factors or columns"):
        align(factors, random_linear(PPCA, 3, 1))
    with pytest.raises(ValueError, match="numbers of components or columns"):
        align(mixture, random_mixture("full", k=2))
    with pytest.raises(TypeError, match="PPCA has no components to match"):
        match_components(factors, mixture)
    with pytest.raises(TypeError, match="of the wrong kind for GMM"):
        canonical_transform(factors).apply(mixture)
    with pytest.raises(ValueError, match="the alignment is of 2 factors or components, but the model has 1"):
        canonical_transform(factors).apply(random_linear(PPCA, 3, 1))
