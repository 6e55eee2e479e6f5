"""PPCA and factor analysis against dense algebra, brute force and published numbers; and EM."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import close
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import MultivariateNormal, kl_divergence

import zoo
from guides import Exact, FullRank, MeanField
from zoo import PPCA, VAE, FactorAnalysis
from zoo.algebra import linear_gaussian
from zoo.base.moments import Moments
from zoo.base.protocols import Conjugate

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64, well-conditioned matrices: rounding stays far below
CASES = [(PPCA, 5, 2), (PPCA, 2, 1), (FactorAnalysis, 5, 2), (FactorAnalysis, 3, 4)]
cases = pytest.mark.parametrize(("cls", "d", "k"), CASES)
models = pytest.mark.parametrize("cls", [PPCA, FactorAnalysis])


def random_model(cls, d, k):
    """A model at random parameters, with nothing at its default."""
    model = cls(d, k).double()
    model.weight, model.mean = torch.randn(d, k).double(), torch.randn(d).double()
    model.scale = 0.5 + torch.rand_like(model.scale)
    if cls is FactorAnalysis:
        model.least.uniform_(0.1, 0.5)
    return model


def rows_of(d, n=7):
    return 2 * torch.randn(n, d).double()


def dense(model):
    """The marginal of one row, by way of its covariance matrix."""
    return MultivariateNormal(model.mean, model.weight @ model.weight.T + torch.diag(model.noise))


def random_guide(kind, model, x):
    """A guide at random parameters; Exact takes those of another model."""
    d, k = model.weight.shape
    if kind is Exact:
        return Exact(random_model(type(model), d, k))
    guide = kind(model, x)
    guide.loc = torch.randn_like(guide.loc)
    if kind is MeanField:
        guide.scale = 0.3 + torch.rand_like(guide.scale)
    else:
        guide.scale_tril = torch.randn_like(guide.scale_tril).tril(-1) + torch.diag_embed(
            0.3 + torch.rand_like(guide.loc)
        )
    return guide


# --- the model -----------------------------------------------------------------------------------


@cases
def test_the_marginal_is_the_dense_gaussian(cls, d, k):
    model, x = random_model(cls, d, k), rows_of(d)
    assert isinstance(model, Conjugate)
    close(model.log_marginal(x), dense(model).log_prob(x))


@cases
def test_joint_over_posterior_is_the_marginal_for_every_z(cls, d, k):
    model, x = random_model(cls, d, k), rows_of(d)
    for _ in range(3):
        z = torch.randn(len(x), k).double()
        trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
        trace.compute_log_prob()
        joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]  # (n,)
        close(joint - model.posterior(x).log_prob(z), model.log_marginal(x))


@cases
def test_generated_rows_have_the_marginal_covariance(cls, d, k):
    model, n = random_model(cls, d, k), 20_000
    with torch.no_grad():
        x, marginal = model(size=n), dense(model)
    covariance, variance = marginal.covariance_matrix, marginal.variance
    assert ((x.mean(0) - model.mean).abs() < 5 * (variance / n).sqrt()).all()
    error = ((torch.outer(variance, variance) + covariance.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((Moments.of(x).covariance - covariance).abs() < 5 * error).all()


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MeanField, FullRank, Exact])
@cases
def test_the_bound_is_the_marginal_less_the_divergence(cls, d, k, kind):
    model, x = random_model(cls, d, k), rows_of(d)
    q = random_guide(kind, model, x).posterior(x)
    covariance = torch.diag_embed(q.variance) if kind is MeanField else q.covariance_matrix
    divergence = kl_divergence(MultivariateNormal(q.mean, covariance), model.posterior(x))
    assert (divergence > 1e-3).all()  # else the next line would show nothing
    close(model.elbo(x, q), model.log_marginal(x) - divergence)


@cases
def test_the_bound_of_the_exact_posterior_is_the_marginal(cls, d, k):
    model, x = random_model(cls, d, k), rows_of(d)
    close(model.elbo(x, Exact(model).posterior(x)), model.log_marginal(x))


@pytest.mark.parametrize("kind", [MeanField, FullRank, Exact])
@models
def test_monte_carlo_agrees_with_the_closed_bound(cls, kind):
    model, x = random_model(cls, 5, 2), rows_of(5)
    guide, loss = random_guide(kind, model, x), Trace_ELBO(10, vectorize_particles=True, max_plate_nesting=1)
    draws = torch.tensor([loss.loss(model, guide, x) for _ in range(100)]).double()
    expected = -model.elbo(x, guide.posterior(x)).sum()
    assert abs(draws.mean() - expected) < 5 * draws.std() / math.sqrt(len(draws))


@models
def test_the_closed_bound_wants_a_gaussian(cls):
    model, x = random_model(cls, 5, 2), rows_of(5)
    q = torch.distributions.Laplace(torch.zeros(7, 2).double(), 1.0)
    with pytest.raises(TypeError, match="holds for a Gaussian q"):
        model.elbo(x, torch.distributions.Independent(q, 1))


# --- one step of EM ------------------------------------------------------------------------------


@models
def test_one_step_is_rubin_and_thayers(cls):
    model, x = random_model(cls, 5, 2), rows_of(5, 30)
    if cls is FactorAnalysis:
        model.least.zero_()
    with torch.no_grad():
        model.mean = x.mean(0)  # the step is taken around the sample mean
        if cls is FactorAnalysis:  # whose step first puts the loadings where they are best
            model.weight = linear_gaussian.best_weight(Moments.of(x), model.noise, 2)
        q = model.posterior(x)
    second = sum(q.covariance_matrix[i] + torch.outer(q.mean[i], q.mean[i]) for i in range(len(x)))
    centred = x - x.mean(0)
    weight = sum(torch.outer(centred[i], q.mean[i]) for i in range(len(x))) @ second.inverse()
    residual = torch.diag(centred.T @ centred - weight @ q.mean.T @ centred) / len(x)
    before = dense(model).log_prob(x).sum().detach()
    close(model.em_step(x), before)
    close(model.weight.detach(), weight)
    close(model.noise.detach(), residual if cls is FactorAnalysis else residual.mean().expand(5))


@pytest.mark.parametrize("seed", range(3))
@models
def test_em_never_descends(cls, seed, iris):
    torch.manual_seed(seed)
    model = cls(4, 2).double()
    model.initialize(iris)
    climb = torch.stack([model.em_step(iris) for _ in range(100)])
    assert (climb.diff() > -1e-9).all()
    assert climb[-1] - climb[0] > 10


def test_moments_take_float32_to_float64_in_chunks():
    x = 1000 + torch.randn(1000, 3) @ torch.randn(3, 3)  # float32, far from zero: a float32 covariance would be noise
    wide = x.double().numpy()
    for chunk in (65536, 97, 1):
        moments = Moments.of(x, chunk=chunk)
        assert moments.count == 1000
        assert moments.covariance.dtype == torch.float64
        np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(wide.T, bias=True), rtol=1e-8, atol=1e-8)


# --- maximum likelihood --------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ppca_reaches_tipping_and_bishops_optimum(iris, k):
    model = PPCA(4, k).double()
    climb = zoo.em(model, iris, tol=0.0)
    values, vectors = np.linalg.eigh(np.cov(iris.T.numpy(), bias=True))
    noise = values[: 4 - k].mean()
    axes = vectors[:, 4 - k :]
    covariance = axes * (values[4 - k :] - noise) @ axes.T + noise * np.eye(4)
    # A likelihood flat to its rounding (1e-14) leaves its square root, times the curvature, in the parameters.
    np.testing.assert_allclose(dense(model).covariance_matrix.detach(), covariance, atol=1e-5)
    optimum = -75 * (4 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1] + 4)
    assert climb[-1].item() == pytest.approx(optimum, abs=1e-8)


REFERENCES = [
    (PPCA, "iris", 1, -470.66946),
    (PPCA, "iris", 2, -404.96278),
    (PPCA, "iris", 3, -379.91463),
    (PPCA, "holzinger", 1, -3933.5399),
    (PPCA, "holzinger", 2, -3846.6416),
    (FactorAnalysis, "holzinger", 1, -3851.2242),
    (FactorAnalysis, "holzinger", 2, -3760.2453),
]


@pytest.mark.parametrize(("cls", "name", "k", "total"), REFERENCES)
def test_published_likelihoods(cls, name, k, total):
    x = zoo.data.load(name, dtype=torch.float64).x
    model = cls(x.shape[1], k).double()
    climb = zoo.em(model, x)
    assert climb[-1].item() == pytest.approx(total, abs=1e-3)  # the digits that were printed
    close(model.log_marginal(x).sum().detach(), climb[-1])


def test_a_heywood_case_stops_at_the_floor(iris):
    model = FactorAnalysis(4, 2).double()
    climb = zoo.em(model, iris, steps=20_000)
    assert len(climb) < 20_000
    uniqueness = model.noise.detach() / iris.var(0, correction=0)
    assert (uniqueness > 0.005 * (1 - ALGEBRA)).all()
    assert uniqueness.min() < 0.005 * (1 + 1e-6)  # it is a Heywood case: one column lies on the floor


# --- data and dimensions that have no answer -----------------------------------------------------


def test_constant_columns_are_named(iris):
    x = iris.clone()
    x[:, 2] = 0.1  # no float: its column mean is not itself
    model = FactorAnalysis(4, 1).double()
    with pytest.raises(ValueError, match=r"1 constant column \(2\).*factor analysis"):
        zoo.em(model, x)
    with pytest.raises(ValueError, match=r"1 constant column \(2\)"):
        model.em_step(x)
    assert torch.isfinite(zoo.em(PPCA(4, 1).double(), x)[-1])  # one noise for all columns: no harm


def test_ppca_refuses_rows_that_are_all_alike():
    with pytest.raises(ValueError, match="all rows of x are equal"):
        zoo.em(PPCA(4, 1).double(), torch.tensor([[0.1, 0.2, 0.3, 0.7]]).double().repeat(50, 1))


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2", None])
@models
def test_dimensions_are_whole_numbers(cls, wrong):
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1"):
        cls(4, wrong)
    with pytest.raises(ValueError, match="data_dim must be a whole number of at least 1"):
        cls(wrong, 1)


@pytest.mark.parametrize("k", [4, 5])
def test_ppca_wants_fewer_factors_than_columns(k):
    with pytest.raises(ValueError, match=f"latent_dim must be below data_dim=4, got {k}"):
        PPCA(4, k)


@pytest.mark.parametrize("floor", [-0.1, 1.0, math.nan])
def test_the_floor_is_a_fraction(floor):
    with pytest.raises(ValueError, match="floor must be a fraction"):
        FactorAnalysis(4, 1, floor=floor)


# --- zoo.em --------------------------------------------------------------------------------------


class Falling(PPCA):
    """A step that undoes more than it wins."""

    def em_step(self, x):
        before = super().em_step(x)
        self.scale = self.scale * 10
        return before


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_falling_likelihood_raises_and_leaves_the_model_alone(iris, accelerate):
    model = Falling(4, 2).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match=r"fell from .* at step [12]"):
        zoo.em(model, iris, accelerate=accelerate)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.fresh


def test_em_wants_closed_forms(iris):
    with pytest.raises(TypeError, match=r"VAE has no closed-form EM.*zoo\.fit"):
        zoo.em(VAE(4, 2).double(), iris)


@models
def test_em_goes_on_from_where_the_model_is(cls, iris):
    whole, halves = cls(4, 2).double(), cls(4, 2).double()
    plain = {"accelerate": False}
    once = zoo.em(whole, iris, steps=20, **plain).log_likelihood
    first, second = (zoo.em(halves, iris, steps=10, seed=seed, **plain).log_likelihood for seed in (0, 1))
    twice = torch.cat([first, second])
    close(twice, once)
    assert (once.diff() > 1e-6).all()  # still climbing: a restart would show


def test_the_best_loadings_are(iris):
    """Against climbing: with the noise held, no step from a random start gets past the closed form."""
    model = FactorAnalysis(4, 2).double()
    model.initialize(iris)
    moments, noise = Moments.of(iris), model.noise.detach()
    best = linear_gaussian.best_weight(moments, noise, 2)
    top = linear_gaussian.log_likelihood(moments, best, moments.mean, noise)
    weight = model.weight.detach()
    for _ in range(2000):
        weight, _ = linear_gaussian.em_update(moments, weight, noise)
    close(linear_gaussian.log_likelihood(moments, weight, moments.mean, noise), top, 1e-6)
    more = linear_gaussian.best_weight(moments, noise, 6)  # more factors than columns
    assert more.shape == (4, 6)


def test_em_starts_at_random_by_seed_alone(iris, untouched):
    a, b, c = (PPCA(4, 2).double() for _ in range(3))
    with untouched():
        runs = ((a, 0), (b, 0), (c, 1))
        first, second, third = (zoo.em(m, iris, steps=3, seed=s, accelerate=False).log_likelihood for m, s in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@models
def test_em_in_float32_has_the_answer_of_float64(cls, iris):
    single, double = cls(4, 2), cls(4, 2).double()
    x = iris.float()
    climb = zoo.em(single, x, steps=200, accelerate=False).log_likelihood
    assert climb.dtype == torch.float64
    assert single.weight.dtype == torch.float32
    # The start is rounded to float32, whose resolution is 1e-7; the work from there on is not.
    close(climb, zoo.em(double, x.double(), steps=200, accelerate=False).log_likelihood, 1e-6)
    for mine, theirs in zip(single.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.noise, double.noise.float(), rtol=1e-6, atol=1e-6)


def test_em_takes_the_steps_and_the_precision_it_is_given(iris):
    rough, fine, few = (PPCA(4, 2).double() for _ in range(3))
    optimum = -404.96278
    short, long = (zoo.em(m, iris, tol=tol, accelerate=False) for m, tol in ((rough, 1e-5), (fine, 1e-8)))
    assert len(short) < len(long)
    assert 1e-5 < optimum - short[-1].item() < 2 * 1e-5 * len(iris)  # Aitken's limit is an estimate: a factor 2
    assert long[-1].item() == pytest.approx(optimum, abs=1e-5)
    assert len(zoo.em(few, iris, steps=3, accelerate=False)) == 3
    assert len(zoo.em(few, iris, steps=1, accelerate=False)) == 1
    with pytest.raises(ValueError, match="tol must not be negative"):
        zoo.em(few, iris, tol=-1.0)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        zoo.em(few, iris, steps=0)


@pytest.mark.parametrize("case", ["same", "few", "twins"])
def test_ppca_refuses_rows_without_room_for_noise(iris, case):
    x = {"same": torch.ones(10, 4).double(), "few": iris[:2], "twins": iris[:, [0, 0, 1, 1]]}[case]
    model = PPCA(4, 2).double()
    for train in (lambda: zoo.em(model, x), lambda: zoo.fit(model, Exact(model), x, progress=False)):
        with pytest.raises(ValueError, match="unbounded"):
            train()


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            torch.randn(40, 1, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1.0, 5.0),
            "span 1 dim",
        ),
        (
            torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double() @ torch.eye(2, 4).double(),
            "span 2 dim",
        ),
        (torch.ones(40, 4).double(), "all rows of x are equal"),
    ],
)
def test_ranks_are_checked_with_and_without_missing_entries(x, words, holes):
    x = x.clone() + 100
    if holes:
        x[::3, 1] = x[1::5, 3] = float("nan")
    with pytest.raises(ValueError, match=words):
        PPCA(4, 2).double().check(x)
    x[0, 0], x[1, 2], x[2, 3] = 107, 93, 109  # noise after all
    PPCA(4, 1).double().check(x)
