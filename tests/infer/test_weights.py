"""Weights of rows: equal to repeating rows, to leaving them out where 0, and to scaling the log-likelihood."""

import copy

import pytest
import torch
from helpers import close

import zoo
from zoo import GMM, PPCA, FactorAnalysis
from zoo.algebra.mixture_covariances import KINDS

pytestmark = pytest.mark.usefixtures("own_store")

MODELS = {
    "PPCA": lambda: PPCA(4, 2),
    "FactorAnalysis": lambda: FactorAnalysis(4, 1),
    **{f"GMM {kind}": lambda kind=kind: GMM(4, 2, kind) for kind in KINDS},
}


def counts(n):
    """Whole weights of n rows, zeros among them."""
    return torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(1))


def holes(x):
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    return torch.where(missing & (torch.arange(len(x)) % 2 == 0).unsqueeze(1), torch.nan, x)


def started(name, x):
    """A model in float64 with parameters that are not those of its construction."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    model.initialize(x)
    return model


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("incomplete", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_em_on_weighted_rows_is_one_on_repeated_rows(name, incomplete, iris):
    x, weights = holes(iris) if incomplete else iris, counts(len(iris))
    repeated = x.repeat_interleave(weights, dim=0)
    one = started(name, repeated)
    other = copy.deepcopy(one)
    for _ in range(3):
        kept = weights > 0
        found = one.em_step(one.summarize(x[kept], weights[kept].double()))
        close(found, other.em_step(repeated), 1e-10)
        close(parameters(one), parameters(other), 1e-10)


@pytest.mark.parametrize("incomplete", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_em_on_weighted_rows_is_em_on_repeated_rows(name, incomplete, iris):
    x, weights = holes(iris) if incomplete else iris, counts(len(iris))
    repeated = x.repeat_interleave(weights, dim=0)
    one = started(name, repeated)
    other, third = copy.deepcopy(one), copy.deepcopy(one)
    found = zoo.em(one, x, weights=weights, tol=1e-11)
    again = zoo.em(other, repeated, tol=1e-11)
    close(found[-1], again[-1], 1e-10)
    close(parameters(one), parameters(other), 1e-5)  # the climbs may stop a step apart
    halved = zoo.em(third, x, weights=weights / 2, tol=1e-11)
    close(2 * halved[-1], again[-1], 1e-10)


@pytest.mark.parametrize("name", ["PPCA", "FactorAnalysis"])
def test_random_starts_on_weighted_rows_are_those_on_repeated_rows(name, iris):
    weights = counts(len(iris))
    one, other = MODELS[name]().double(), MODELS[name]().double()
    x = holes(iris)
    zoo.em(one, x, weights=weights, steps=1, accelerate=False)
    zoo.em(other, x.repeat_interleave(weights, dim=0), steps=1, accelerate=False)
    close(parameters(one), parameters(other), 1e-10)


def test_weights_of_many_rows_go_block_by_block(iris):
    """The E-step by features and the one by components, over several blocks."""
    x = iris.repeat(60, 1) + 0.01 * torch.randn(9000, 4, generator=torch.Generator().manual_seed(0)).double()
    weights = counts(len(x))
    repeated = x.repeat_interleave(weights, dim=0)
    for kind in KINDS:
        one = GMM(4, 3, kind).double()
        torch.manual_seed(0)
        one.initialize(x)
        other = copy.deepcopy(one)
        kept = weights > 0
        found = one.em_step(one.summarize(x[kept], weights[kept].double()))
        close(found, other.em_step(repeated), 1e-11)
        close(parameters(one), parameters(other), 1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 149, "weights has shape .149,.: pass one number per row of x, .150,."),
        ([1.0] * 149 + [-2.0], "holds -2 in row 149:"),
        ([float("nan")] + [1.0] * 149, "holds nan in row 0:"),
        ([1.0, float("inf"), float("inf")] + [1.0] * 147, r"holds inf in row 1 \(and 1 more"),
        ([0.0] * 150, "all weights are 0"),
        ([1.0] + [0.0] * 149, "1 row of x has a positive weight: at least 2 are needed"),
    ],
)
def test_wrong_weights_are_named(weights, message, iris):
    with pytest.raises(ValueError, match=message):
        zoo.em(PPCA(4, 2), iris, weights=weights)
    with pytest.raises(TypeError, match="weights holds something other than numbers"):
        zoo.em(PPCA(4, 2), iris, weights=["many"] * 150)


def test_a_model_that_takes_no_weights_says_so(iris):
    class Own(PPCA):
        weighted = False

    with pytest.raises(TypeError, match=r"Own accepts no weights .* repeat the rows"):
        zoo.em(Own(4, 2), iris, weights=torch.ones(150))


BAYESIAN = {
    "BayesianPCA": lambda: zoo.BayesianPCA(4, 2),
    "BayesianFactorAnalysis": lambda: zoo.BayesianFactorAnalysis(4, 2),
    **{f"BayesianGMM {kind}": lambda kind=kind: zoo.BayesianGMM(4, 2, kind) for kind in ("full", "tied", "diag")},
    "BayesianGMM coupled": lambda: zoo.BayesianGMM(4, 2, "spherical", means="coupled", proportions="sticks"),
}


@pytest.mark.parametrize("incomplete", [False, True], ids=["complete", "holes"])
@pytest.mark.parametrize("name", BAYESIAN)
def test_coordinate_ascent_on_weighted_rows_is_that_on_repeated_rows(name, incomplete, iris):
    x, weights = holes(iris) if incomplete else iris, counts(len(iris))
    repeated = x.repeat_interleave(weights, dim=0)
    one, other = BAYESIAN[name]().double(), BAYESIAN[name]().double()
    # Linear models start alike; mixtures at rows, so they are compared at the best maximum.
    options = {"restarts": 3, "tol": 1e-12} if "GMM" in name else {"restarts": 1, "sweeps": 25}
    found, again = zoo.cavi(one, x, weights=weights, **options), zoo.cavi(other, repeated, **options)
    close(found[-1], again[-1], 1e-10)
    assert found.guide.count == len(iris)  # rows of weight 0 have a factor too
    factors = {site: factor for site, factor in found.factors.items() if site not in ("z", "component")}
    kept = weights > 0
    local = {site: type(factor)(*(_rows(v, kept) for v in vars(factor).values())) for site, factor in _local(found)}
    bound = one.bound(x[kept], {**factors, **local}, weights=weights[kept].double())
    assert bound >= found[-1] - 1e-8  # the local factors are at their optimum, before a sweep moves the others


def _local(found):
    return [(site, factor) for site, factor in found.factors.items() if site in ("z", "component")]


def _rows(value, kept):
    return value[kept] if len(value) == len(kept) else value
