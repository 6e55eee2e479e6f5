"""Gaussian mixtures against scipy's densities, brute force, naive EM and published numbers."""

import pyro
import pytest
import torch
from helpers import close, random_mixture
from pyro import poutine
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch.distributions import Categorical, kl_divergence

import zoo
from zoo import GMM
from zoo.base.protocols import Conjugate

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64, well-conditioned covariances: rounding stays far below
COVARIANCES = ["full", "tied", "diag", "spherical"]
covariances = pytest.mark.parametrize("covariance", COVARIANCES)


def dense(model):
    """The covariance matrix of every component (k, d, d), by the letter of the docstring."""
    k, d = model.mean.shape
    scale = model.scale.detach()
    eye = torch.eye(d).double()
    return {
        "full": lambda: scale @ scale.mT,
        "tied": lambda: (scale @ scale.T).expand(k, d, d),
        "diag": lambda: torch.diag_embed(scale.square()),
        "spherical": lambda: scale.square().reshape(k, 1, 1) * eye,
    }[model.covariance]()


def naive_step(x, share, covariance):
    """The M-step from responsibilities (n, k), one component after the other: weights, means, covariances."""
    (n, d), k = x.shape, share.shape[1]
    weight, mean, scatter = [], [], []
    for j in range(k):
        weight.append(share[:, j].sum() / n)
        mean.append((share[:, j, None] * x).sum(0) / share[:, j].sum())
        scatter.append((share[:, j, None] * (x - mean[j])).T @ (x - mean[j]))
    if covariance == "tied":
        matrices = [sum(scatter) / n] * k
    else:
        matrices = [scatter[j] / share[:, j].sum() for j in range(k)]
    if covariance == "diag":
        matrices = [torch.diag(m.diagonal()) for m in matrices]
    if covariance == "spherical":
        matrices = [m.trace() / d * torch.eye(d).to(x) for m in matrices]
    return torch.stack(weight), torch.stack(mean), torch.stack(matrices)


# --- the model -----------------------------------------------------------------------------------


@covariances
def test_densities_are_scipys(covariance):
    model, x = random_mixture(covariance), 3 * torch.randn(9, 3).double()
    assert isinstance(model, Conjugate)
    joint = torch.stack(
        [
            torch.as_tensor(multivariate_normal(m.numpy(), c.numpy()).logpdf(x.numpy())) + w.log()
            for w, m, c in zip(model.weight.detach(), model.mean.detach(), dense(model), strict=True)
        ],
        -1,
    )
    close(model.log_joint(x).detach(), joint)
    close(model.log_marginal(x).detach(), torch.as_tensor(logsumexp(joint.numpy(), axis=1)))
    close(model.posterior(x).probs.detach(), joint.softmax(-1))


@covariances
def test_joint_over_posterior_is_the_marginal_for_every_component(covariance):
    model, x = random_mixture(covariance), 3 * torch.randn(9, 3).double()
    for j in range(4):
        component = torch.full((9,), j)
        trace = poutine.trace(poutine.condition(model, {"component": component})).get_trace(x)
        trace.compute_log_prob()
        joint = trace.nodes["component"]["log_prob"] + trace.nodes["x"]["log_prob"]  # (n,)
        close(joint - model.posterior(x).log_prob(component), model.log_marginal(x))


@covariances
def test_the_bound_is_the_marginal_less_the_divergence(covariance):
    model, x = random_mixture(covariance), 3 * torch.randn(9, 3).double()
    q = pyro.distributions.Categorical(logits=torch.randn(9, 4).double())
    divergence = kl_divergence(Categorical(logits=q.logits), Categorical(logits=model.posterior(x).logits))
    assert (divergence > 1e-3).all()  # else the next line would show nothing
    close(model.elbo(x, q), model.log_marginal(x) - divergence)
    close(model.elbo(x, model.posterior(x)), model.log_marginal(x))


def test_the_closed_bound_wants_a_categorical():
    with pytest.raises(TypeError, match="holds for a Categorical q, got Normal"):
        random_mixture("full").elbo(torch.zeros(2, 3), pyro.distributions.Normal(torch.zeros(2), 1.0))


@covariances
def test_generated_rows_follow_the_mixture(covariance):
    model, n = random_mixture(covariance), 20_000
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(size=n)
    x, component = trace.nodes["x"]["value"], trace.nodes["component"]["value"]
    matrices = dense(model)
    for j in range(4):
        own, c, p = x[component == j], matrices[j], model.weight[j].detach()
        assert abs(len(own) / n - p) < 5 * (p * (1 - p) / n).sqrt()
        assert ((own.mean(0) - model.mean[j]).abs() < 5 * (c.diagonal() / len(own)).sqrt()).all()
        error = ((torch.outer(c.diagonal(), c.diagonal()) + c.square()) / len(own)).sqrt()  # of a sample covariance
        centred = own - model.mean[j].detach()
        assert ((centred.T @ centred / len(own) - c).abs() < 5 * error).all()


# --- one step of EM ------------------------------------------------------------------------------


@covariances
def test_one_step_is_the_naive_one(covariance, faithful):
    model = GMM(2, 3, covariance).double()
    model.initialize(faithful)
    share, before = model.posterior(faithful).probs.detach(), model.log_marginal(faithful).sum().detach()
    weight, mean, matrices = naive_step(faithful, share, covariance)
    close(model.em_step(faithful), before)
    close(model.weight.detach(), weight)
    close(model.mean.detach(), mean)
    close(dense(model), matrices)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_many_rows_are_taken_in_chunks(covariance):
    n, k, d = 40_000, 64, 2
    assert n * k * d > 2**22  # the largest chunk
    x = torch.randn(n, d).double() * torch.tensor([1.0, 30.0]) + 100
    model = GMM(d, k, covariance).double()
    model.initialize(x)
    with torch.no_grad():
        share, before = model.posterior(x).probs, model.log_marginal(x).sum()
    weight, mean, matrices = naive_step(x, share, covariance)
    close(model.em_step(x), before)
    close(model.weight.detach(), weight)
    close(model.mean.detach(), mean)
    close(dense(model), matrices)


@pytest.mark.parametrize("seed", range(3))
@covariances
def test_em_never_descends(covariance, seed, iris):
    torch.manual_seed(seed)
    model = GMM(4, 3, covariance).double()
    model.initialize(iris)
    climb = torch.stack([model.em_step(iris) for _ in range(60)])
    assert (climb.diff() > -1e-9).all()
    assert climb[-1] - climb[0] > 10


# --- maximum likelihood --------------------------------------------------------------------------


REFERENCES = [
    ("faithful", 2, "full", -1130.26396),
    ("faithful", 3, "tied", -1126.31593),
    ("iris", 2, "full", -214.3547),
]


@pytest.mark.parametrize(("name", "k", "covariance", "total"), REFERENCES)
def test_published_likelihoods(name, k, covariance, total):
    x = zoo.data.load(name, dtype=torch.float64).x
    fits = [GMM(x.shape[1], k, covariance).double() for _ in range(4)]
    ends = [zoo.em(model, x, seed=seed, steps=300)[-1].item() for seed, model in enumerate(fits)]
    best = max(range(4), key=ends.__getitem__)
    assert ends[best] == pytest.approx(total, abs=1e-3)  # the digits that were printed
    assert fits[best].log_marginal(x).sum().item() == pytest.approx(ends[best], abs=ALGEBRA)


@covariances
def test_a_start_is_reproducible_and_lies_on_the_data(covariance, iris):
    a, b, c = (GMM(4, 3, covariance).double() for _ in range(3))
    for model, seed in ((a, 0), (b, 0), (c, 1)):
        torch.manual_seed(seed)
        model.initialize(iris)
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.mean, c.mean)
    assert all((mean == iris).all(-1).any() for mean in a.mean)  # k-means++ chooses rows
    assert len(a.mean.unique(dim=0)) == 3
    close(a.weight, torch.full((3,), 1 / 3, dtype=torch.float64))
    spread = iris.var(0, correction=0)
    expected = spread.mean().expand(4) if covariance == "spherical" else spread
    close(dense(a).diagonal(dim1=-2, dim2=-1), expected.expand(3, 4), 2e-6)  # the ridge is 1e-6 of the variance


# --- what has no answer --------------------------------------------------------------------------


def test_the_covariance_is_one_of_four():
    with pytest.raises(ValueError, match="covariance must be one of full, tied, diag, spherical; got 'ful'"):
        GMM(2, 2, "ful")


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2"])
def test_dimensions_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="components must be a whole number of at least 1"):
        GMM(2, wrong)
    with pytest.raises(ValueError, match="data_dim must be a whole number of at least 1"):
        GMM(wrong, 2)


def test_components_are_at_most_the_rows(faithful):
    with pytest.raises(ValueError, match="components=3 exceeds the 2 rows"):
        zoo.em(GMM(2, 3).double(), faithful[:2])


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
def test_constant_columns_are_named(covariance, faithful):
    x = faithful.clone()
    x[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"1 constant column \(1\).*GMM\(covariance='" + covariance):
        zoo.em(GMM(2, 2, covariance).double(), x)


def test_a_constant_column_is_no_harm_to_spheres(faithful):
    x = faithful.clone()
    x[:, 1] = 0.1
    assert torch.isfinite(zoo.em(GMM(2, 2, "spherical").double(), x).log_likelihood).all()


@covariances
def test_a_collapse_names_the_component(covariance):
    x = torch.randn(4, 2).double().repeat(10, 1)  # four places, ten rows at each, a component for every place
    where = "the common covariance" if covariance == "tied" else r"component \d"
    model = GMM(2, 4, covariance).double()
    before = model.mean.detach().clone()
    with pytest.raises(FloatingPointError, match=where + r" has collapsed.*(seed|components)"):
        zoo.em(model, x)
    assert torch.equal(model.mean, before)


def test_a_component_that_loses_its_rows_is_named(faithful):
    model = GMM(2, 2).double()
    model.initialize(faithful)
    model.mean = torch.stack([faithful.mean(0), faithful.mean(0) + 1e6])
    with pytest.raises(FloatingPointError, match="component 1 has lost all its rows"):
        model.em_step(faithful)
