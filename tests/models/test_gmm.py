"""Gaussian mixtures against scipy's densities, brute force, naive EM and published numbers."""

import math

import pyro
import pytest
import torch
from helpers import close, random_mixture
from pyro import poutine
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch.distributions import Categorical, kl_divergence

import zoo
from guides import Amortized, Exact, MeanField
from zoo import GMM
from zoo.algebra import mixture
from zoo.algebra.mixture_covariances import KINDS, MCLUST
from zoo.base.protocols import Conjugate
from zoo.base.threads import exactly
from zoo.diagnostics.model.criteria import information_criteria
from zoo.infer import UnboundedLikelihood

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64, well-conditioned covariances: rounding stays far below
COVARIANCES = KINDS
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
        "tied_diag": lambda: torch.diag(scale.square()).expand(k, d, d),
        "tied_spherical": lambda: (scale.square() * eye).expand(k, d, d),
    }[model.covariance]()


def naive_step(x, share, covariance):
    """The M-step from responsibilities (n, k), one component after the other: weights, means, covariances."""
    (n, d), k = x.shape, share.shape[1]
    weight, mean, scatter = [], [], []
    for j in range(k):
        weight.append(share[:, j].sum() / n)
        mean.append((share[:, j, None] * x).sum(0) / share[:, j].sum())
        scatter.append((share[:, j, None] * (x - mean[j])).T @ (x - mean[j]))
    if covariance.startswith("tied"):
        matrices = [sum(scatter) / n] * k
    else:
        matrices = [scatter[j] / share[:, j].sum() for j in range(k)]
    if covariance.endswith("diag"):
        matrices = [torch.diag(m.diagonal()) for m in matrices]
    if covariance.endswith("spherical"):
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


def test_the_bound_is_finite_with_an_empty_component():
    model, x = random_mixture("full"), torch.randn(9, 3).double()
    model.weight = torch.tensor([0.5, 0.3, 0.2, 0.0]).double()
    assert model.weight[3] < 1e-30
    q = pyro.distributions.Categorical(probs=model.posterior(x).probs.detach().round(decimals=12))
    close(model.elbo(x, q), model.log_marginal(x), 1e-9)


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("covariance", KINDS)
def test_threads_share_the_rows(covariance, weighted, monkeypatch):
    model = random_mixture(covariance, d=4, k=3)
    x = 2 * torch.randn(40_000, 4, dtype=torch.float64)
    weights = torch.rand(40_000, dtype=torch.float64) if weighted else None
    given = model.weight, model.mean, model.scale, covariance, weights
    counted, side_by_side = [], mixture.side_by_side
    monkeypatch.setattr(mixture, "side_by_side", lambda f, a: (counted.append(len(a)), side_by_side(f, a))[1])
    with torch.no_grad():
        alone = mixture.expect(x, *given)
        with exactly(3):
            shared = mixture.expect(x, *given)
            assert torch.get_num_threads() == 3
    assert counted == [3]
    for one, other in zip(alone, shared, strict=True):
        close(one, other)


@pytest.mark.parametrize("seed", range(3))
@covariances
def test_em_never_descends(covariance, seed, iris):
    torch.manual_seed(seed)
    model = GMM(4, 3, covariance, start="k-means++").double()
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


# Log-likelihood and degrees of freedom by R 4.2.2 and mclust 6.0.0: Mclust(x, G = k, modelNames = code, control =
# emControl(tol = c(1e-12, 1e-12), itmax = c(10000, 10000))), for faithful and iris[, 1:4].
BY_MCLUST = [
    ("faithful", 2, "EII", -1709.68137295, 6),
    ("faithful", 2, "VII", -1709.52928218, 7),
    ("faithful", 2, "EEI", -1157.68001234, 7),
    ("faithful", 2, "VVI", -1147.80635254, 9),
    ("faithful", 2, "EEE", -1140.18675944, 8),
    ("faithful", 2, "VVV", -1130.26396018, 11),
    ("faithful", 3, "EEE", -1126.31592783, 11),
    ("iris", 2, "VVV", -214.354704371, 29),
    ("iris", 3, "EII", -401.802175789, 15),
    ("iris", 3, "VII", -384.314095061, 17),
    ("iris", 3, "EEI", -361.425522043, 18),
    ("iris", 3, "VVI", -307.177571598, 26),
    ("iris", 3, "EEE", -256.354043126, 24),
    ("iris", 3, "VVV", -180.185477131, 44),
]


@pytest.mark.parametrize(("name", "k", "code", "total", "df"), BY_MCLUST)
def test_every_form_of_covariance_has_the_likelihood_and_bic_of_mclust(name, k, code, total, df):
    x = zoo.data.load(name, dtype=torch.float64).x
    model = GMM(x.shape[1], k, code).double()
    assert model.covariance == MCLUST[code]
    assert zoo.em(model, x)[-1].item() == pytest.approx(total, abs=1e-7)
    found = information_criteria(model, x)
    assert found.df == df
    assert found.bic == pytest.approx(df * math.log(len(x)) - 2 * total, abs=1e-6)  # mclust's has the other sign


@pytest.mark.parametrize("code", ["EII", "EEI"])
def test_fits_reach_the_maximum_of_em(code, faithful):
    best = zoo.em(GMM(2, 2, code).double(), faithful)[-1].item()
    for guide in (lambda model: Exact(model), lambda model: MeanField(model, faithful)):
        model = GMM(2, 2, code).double()
        run = zoo.fit(model, guide(model), faithful, progress=False)
        assert run.converged
        assert model.log_marginal(faithful).sum().item() == pytest.approx(best, abs=1e-4)
    model = GMM(2, 2, code).double()
    learned = zoo.fit(model, Amortized(model, faithful), faithful, steps=60, progress=False)
    assert learned.losses[-1] < learned.losses[0]


@covariances
def test_a_start_is_reproducible_and_lies_on_the_data(covariance, iris):
    a, b, c = (GMM(4, 3, covariance, start="k-means++").double() for _ in range(3))
    for model, seed in ((a, 0), (b, 0), (c, 1)):
        torch.manual_seed(seed)
        model.initialize(iris)
    assert torch.equal(a.mean, b.mean)
    assert not torch.equal(a.mean, c.mean)
    assert all((mean == iris).all(-1).any() for mean in a.mean)  # k-means++ chooses rows
    assert len(a.mean.unique(dim=0)) == 3
    close(a.weight, torch.full((3,), 1 / 3, dtype=torch.float64))
    spread = iris.var(0, correction=0)
    expected = spread.mean().expand(4) if covariance.endswith("spherical") else spread
    close(dense(a).diagonal(dim1=-2, dim2=-1), expected.expand(3, 4), 2e-6)  # the ridge is 1e-6 of the variance


# --- what has no answer --------------------------------------------------------------------------


def test_options_are_those_known():
    with pytest.raises(ValueError, match=r"covariance must be one of full \(VVV\), tied \(EEE\).*; got 'ful'"):
        GMM(2, 2, "ful")
    with pytest.raises(ValueError, match="start must be one of kmeans"):
        GMM(2, 2, start="means")
    with pytest.raises(ValueError, match="floor must be a fraction of the variance"):
        GMM(2, 2, floor=1.0)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2"])
def test_dimensions_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="components must be a whole number of at least 1"):
        GMM(2, wrong)
    with pytest.raises(ValueError, match="data_dim must be a whole number of at least 1"):
        GMM(wrong, 2)


def test_components_are_at_most_the_rows(faithful):
    with pytest.raises(ValueError, match="components=3 exceeds the 2 rows"):
        zoo.em(GMM(2, 3).double(), faithful[:2])


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "tied_diag"])
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
def test_a_collapse_without_a_floor_names_the_component(covariance):
    x = torch.randn(4, 2).double().repeat(10, 1)  # four places, ten rows at each, a component for every place
    where = "the common covariance" if covariance.startswith("tied") else r"component \d"
    model = GMM(2, 4, covariance, floor=0, start="k-means++").double()
    before = model.mean.detach().clone()
    with pytest.raises(FloatingPointError, match=where + r" has collapsed.*(seed|components)"):
        zoo.em(model, x)
    assert torch.equal(model.mean, before)


# --- the floor -----------------------------------------------------------------------------------


def two_lines(covariance="full"):
    """Rows of which the first thirty lie on a line: a component of their own would collapse onto it."""
    line = torch.linspace(0, 1, 30).double()
    x = torch.cat([torch.stack([line, 2 * line + 9], 1), torch.randn(60, 2).double() * 3])
    return x, GMM(2, 2, covariance).double(), (torch.arange(90) >= 30).long()


def test_a_component_ends_at_its_floor_and_is_named_with_its_rows_and_columns():
    x, model, label = two_lines()
    model.start_from(x, labels=label)
    with pytest.warns(UnboundedLikelihood, match=r"component 0 has collapsed onto 30 of the rows \(rows 0, 1, 2"):
        found = zoo.em(model, x)
    assert not found.converged
    assert "a combination of all columns" in found.stopped
    assert (found.log_likelihood.diff() > -1e-6).all()
    unit = x.var(0, correction=0).sqrt()
    ratio = torch.linalg.eigvalsh(dense(model)[0] / torch.outer(unit, unit))
    assert ratio[0].item() == pytest.approx(1e-6, rel=1e-5)
    assert ratio[1].item() > 1e-3  # the other direction is free


@covariances
def test_the_step_at_the_floor_is_the_best_above_it(covariance):
    x, model, label = two_lines(covariance)
    model.floor = 0.9
    model.start_from(x, labels=label)
    share = torch.nn.functional.one_hot(label, 2).double()
    _, mean, matrices = naive_step(x, share, covariance)
    least = 0.9 * torch.diag(x.var(0, correction=0))
    if covariance.endswith("spherical"):
        least = least.trace() / 2 * torch.eye(2).double()

    def expected(candidate):  # the expected log-likelihood, but for constants
        each = torch.linalg.slogdet(candidate).logabsdet + (torch.linalg.inv(candidate) * matrices).sum((-2, -1))
        return -(share.sum(0) * each).sum()

    found = dense(model)
    assert (torch.linalg.eigvalsh(found - least) > -1e-12).all()
    close(model.mean.detach(), mean)
    assert (found - matrices).abs().max() > 1e-3  # else the floor had no effect
    for weight in (0.01, 0.1, 0.5):  # on every segment to a point above the floor
        for other in (matrices + least, least.expand(2, 2, 2), found + 0.1 * least):
            assert expected((1 - weight) * found + weight * other) < expected(found) + 1e-9


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_the_floor_holds_with_missing_entries(covariance):
    x = torch.cat([torch.full((20, 3), 9.0).double(), torch.randn(60, 3).double()])
    x[torch.rand(x.shape) < 0.15] = math.nan
    x[0] = 9.0
    model = GMM(3, 2, covariance).double()
    with pytest.warns(UnboundedLikelihood, match=r"component \d has collapsed onto 20 of the rows \(rows 0, 1, 2"):
        found = zoo.em(model, x)
    assert not found.converged
    assert (found.log_likelihood.diff() > -1e-5).all()
    unit = model.least.sqrt()
    assert torch.linalg.eigvalsh(dense(model) / torch.outer(unit, unit)).min() > 1 - 1e-6


def test_the_floor_follows_the_units_of_the_columns():
    x, model, label = two_lines()
    unit = torch.tensor([1e-6, 1e6]).double()
    other = GMM(2, 2).double()
    ends = []
    for own, rows in ((model, x), (other, x * unit)):
        own.start_from(rows, labels=label)
        with pytest.warns(UnboundedLikelihood):
            ends.append(zoo.em(own, rows, steps=30)[-1].item())
    assert ends[0] - len(x) * unit.log().sum().item() == pytest.approx(ends[1], rel=1e-8)


def test_a_fit_that_collapses_ends_at_the_floor_and_says_so():
    x = torch.cat([torch.randn(100, 1).double(), torch.full((10, 1), 10.0).double()])
    model = GMM(1, 2).double()
    with pytest.warns(UnboundedLikelihood, match=r"collapsed onto 10 of the rows \(rows 100, 101"):
        run = zoo.fit(model, Exact(model), x, progress=False)
    assert not run.converged
    assert "has collapsed" in run.training.stopped
    assert model.log_marginal(x).isfinite().all()


def test_the_best_of_several_starts_is_none_that_collapsed():
    x = torch.randn(25, 2).double()

    def build():
        return GMM(2, 3, start="random").double()

    found = zoo.best_of(build, x, seeds=8)
    assert any("collapsed" in (row.error or "") for row in found.table)
    assert found.best.collapse(x) is None


@pytest.mark.parametrize("hidden", [False, True])
def test_dependent_columns_are_named(hidden, faithful):
    x = torch.cat([faithful, faithful.sum(1, keepdim=True)], 1)
    if hidden:
        x[torch.rand(x.shape) < 0.1] = math.nan
    for covariance in ("full", "tied"):
        with pytest.raises(ValueError, match="column 2 of x is a linear combination of columns 0, 1"):
            zoo.em(GMM(3, 2, covariance).double(), x)
    assert zoo.em(GMM(3, 2, "diag").double(), x).converged


@pytest.mark.parametrize("hidden", [False, True])
def test_fewer_places_than_components_are_named(hidden):
    x = torch.randn(3, 2).double().repeat(10, 1)
    if hidden:
        x[0, 0] = math.nan
    with pytest.raises(ValueError, match=rf"x has {3 + hidden} distinct rows, fewer than components=5 \(rows "):
        zoo.em(GMM(2, 5).double(), x)


# --- starts --------------------------------------------------------------------------------------


@covariances
def test_a_start_by_labels_is_the_naive_step(covariance, iris):
    label = torch.arange(150) // 50
    share = torch.nn.functional.one_hot(label, 3).double()
    weight, mean, matrices = naive_step(iris, share, covariance)
    for given in ({"labels": label}, {"responsibilities": share}):
        model = GMM(4, 3, covariance).double()
        model.start_from(iris, **given)
        assert not model.fresh
        close(model.weight.detach(), weight)
        close(model.mean.detach(), mean)
        close(dense(model), matrices)


@covariances
def test_a_start_by_weighted_labels_is_that_of_repeated_rows(covariance, iris):
    label, times = torch.arange(150) // 50, torch.arange(150) % 3
    weighted, repeated = GMM(4, 3, covariance).double(), GMM(4, 3, covariance).double()
    weighted.start_from(iris, labels=label, weights=times)
    repeated.start_from(iris.repeat_interleave(times, 0), labels=label.repeat_interleave(times))
    for name, value in repeated.state_dict().items():
        close(weighted.state_dict()[name], value)


@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random"])
@covariances
def test_every_start_suits_missing_entries(covariance, start, iris):
    x = iris.clone()
    x[torch.rand(x.shape) < 0.1] = math.nan
    model = GMM(4, 3, covariance, start=start).double()
    model.initialize(x)
    assert model.collapse(x) is None
    before = model.log_marginal(x).sum().item()
    assert zoo.em(model, x, steps=5)[-1].item() > before
    own = GMM(4, 3, covariance).double()
    own.start_from(x, means=model.mean.detach())
    assert own.log_marginal(x).isfinite().all()


def test_a_start_that_does_not_fit_is_refused(iris):
    model = GMM(4, 3).double()
    with pytest.raises(ValueError, match="exactly one of means, responsibilities and labels"):
        model.start_from(iris)
    with pytest.raises(ValueError, match="label of row 2 is 3: labels are whole numbers from 0 to 2"):
        model.start_from(iris, labels=torch.arange(150) + 1)
    with pytest.raises(ValueError, match="component 2 is given no rows"):
        model.start_from(iris, labels=torch.arange(150) % 2)
    with pytest.raises(ValueError, match="responsibilities of row 0 are no probabilities"):
        model.start_from(iris, responsibilities=torch.ones(150, 3))
    with pytest.raises(ValueError, match=r"means has shape \(2, 4\)"):
        model.start_from(iris, means=iris[:2])


def test_a_component_that_loses_its_rows_is_named(faithful):
    model = GMM(2, 2).double()
    model.initialize(faithful)
    model.mean = torch.stack([faithful.mean(0), faithful.mean(0) + 1e6])
    with pytest.raises(FloatingPointError, match="component 1 has lost all its rows"):
        model.em_step(faithful)
