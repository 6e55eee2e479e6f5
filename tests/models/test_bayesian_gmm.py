"""The Bayesian mixture: densities by brute force, optima of the factors, the bound, missing entries, its priors."""

import copy
import functools
import itertools
import math

import pytest
import torch
from bayesian_models import ascended, assert_every_factor_is_optimal, expected_bound, faithful, log_joint, with_holes
from pyro.distributions import Beta, Dirichlet, Gamma, MultivariateNormal, Normal, Wishart
from sklearn.datasets import load_iris

import zoo
from zoo.base.random import seeded

COVARIANCES = ("full", "tied", "diag", "spherical")
cases = pytest.mark.parametrize(
    ("covariance", "means", "proportions"),
    list(itertools.product(COVARIANCES, ("independent", "coupled"), ("dirichlet", "sticks"))),
)
covariances = pytest.mark.parametrize("covariance", COVARIANCES)
holes = pytest.mark.parametrize("holes", [False, True], ids=["whole", "missing"])


def rows_of(holes):
    x = torch.as_tensor(load_iris().data)[::2, 1:]
    return with_holes(x) if holes else x


def dropped(covariance, means):
    """Whether missing entries are left out, so that the bound is that of the model's own density."""
    return covariance in ("diag", "spherical") and means == "independent"


def values_of(model, n):
    """Values of all sites, drawn at random."""
    k, d, matrix = model.components, model.data_dim, model.matrix
    root = torch.randn(k, d, d + 3, dtype=torch.float64)
    wide = root @ root.mT / d
    precision = {"full": wide, "tied": wide[0], "diag": wide.diagonal(dim1=-2, dim2=-1)}
    found = {
        "precision": precision.get(model.covariance, wide[:, :1, 0]),
        "mean": torch.randn(k, d, dtype=torch.float64),
        "component": torch.randint(k, (n,)),
    }
    assert matrix == (model.covariance in ("full", "tied"))
    if model.proportions == "sticks":
        return found | {"sticks": torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)}
    return found | {"proportions": torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)}


@cases
@holes
def test_density_is_the_story_row_by_row(covariance, means, proportions, holes):
    x = rows_of(holes)[:7]
    k, d = 3, 3
    scale = torch.eye(d).double() + 0.5
    given = {"full": scale.tolist(), "tied": scale.tolist(), "diag": [1.0, 2.0, 3.0], "spherical": 1.5}[covariance]
    spread = {} if means == "coupled" else {"spread": [2.0, 3.0, 4.0]}
    options = {"means": means, "proportions": proportions, "concentration": 0.7, "df": 4.0, "location": 0.5}
    model = zoo.BayesianGMM(d, k, covariance, **options, inverse_scale=given, **spread).double()
    values = values_of(model, len(x))
    if proportions == "sticks":
        v = values["sticks"][:, 0]
        total = Beta(1.0, 0.7).log_prob(v).sum()
        pi = torch.stack([v[0], (1 - v[0]) * v[1], (1 - v[0]) * (1 - v[1])])
    else:
        pi = values["proportions"]
        total = Dirichlet(torch.full((k,), 0.7).double()).log_prob(pi)
    precision = values["precision"]
    if model.matrix:
        wishart = Wishart(torch.tensor(4.0).double(), precision_matrix=scale)
        total += wishart.log_prob(precision).sum()
        matrices = precision.expand(k, d, d)
    else:
        total += Gamma(2.0, torch.tensor(given, dtype=torch.float64) / 2).log_prob(precision).sum()
        matrices = torch.diag_embed(precision.expand(k, d))
    for j in range(k):
        if means == "coupled":
            prior = MultivariateNormal(torch.full((d,), 0.5).double(), precision_matrix=0.1 * matrices[j])
            total += prior.log_prob(values["mean"][j])
        else:
            total += (
                Normal(torch.tensor(0.5).double(), torch.tensor([2.0, 3.0, 4.0]).double().sqrt())
                .log_prob(values["mean"][j])
                .sum()
            )
    for n, row in enumerate(x):
        j, there = values["component"][n], ~row.isnan()
        covariance_of = torch.linalg.inv(matrices[j])[there][:, there]
        total += pi[j].log()
        if there.any():
            total += MultivariateNormal(values["mean"][j][there], covariance_of).log_prob(row[there])
    torch.testing.assert_close(log_joint(model, x, values), total)


@cases
@holes
def test_every_update_is_the_coordinate_optimum(covariance, means, proportions, holes):
    x = rows_of(holes)
    model = zoo.BayesianGMM(3, 3, covariance, means=means, proportions=proportions).double()
    ascent, bounds = ascended(model, x)
    assert (bounds.diff() > -1e-10 * bounds[1:].abs()).all()
    other, _ = ascended(copy.deepcopy(model), x, sweeps=2, seed=1)
    factors = ascent.factors(x)
    assert math.isclose(float(model.bound(x, factors)), float(bounds[-1]), rel_tol=1e-8)
    assert_every_factor_is_optimal(model, x, factors, other.factors(x))


@cases
@holes
def test_bound_is_its_expectation(covariance, means, proportions, holes):
    x = rows_of(holes)
    run = zoo.cavi(zoo.BayesianGMM(3, 2, covariance, means=means, proportions=proportions).double(), x, restarts=1)
    mean, error = expected_bound(run, x)
    if holes and not dropped(covariance, means):
        assert mean > float(run[-1]) - 5 * error  # missing entries are integrated out, without a factor of their own
    else:
        assert abs(mean - float(run[-1])) < 5 * error


@pytest.mark.parametrize("means", ["independent", "coupled"])
@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_bound_with_latent_entries_is_its_expectation(covariance, means):
    """Missing entries drawn from q(x_m | c), the Gaussian at E[mu] and E[Lambda], and scored under the whole model."""
    x = rows_of(holes=True)
    model = zoo.BayesianGMM(3, 2, covariance, means=means).double()
    run = zoo.cavi(model, x, restarts=1)
    missing = x.isnan()
    centre = run.factors["mean"].mean
    precision = run.factors["precision"].mean.expand(2, 3, 3)
    totals = []

    @functools.cache
    def conditional(n, j):
        m, own = missing[n], precision[j]
        pull = own[m][:, ~m] @ (x[n, ~m] - centre[j, ~m])
        return MultivariateNormal(centre[j, m] - torch.linalg.solve(own[m][:, m], pull), precision_matrix=own[m][:, m])

    with seeded(1), run.scope(), torch.no_grad():
        for values in (run.sample(x, draws=1) for _ in range(60)):
            drawn = {name: value[0] for name, value in values.items()}
            score = torch.zeros(()).double()
            whole = x.clone()
            for n in missing.any(1).nonzero().flatten().tolist():
                q = conditional(n, int(drawn["component"][n]))
                whole[n, missing[n]] = q.sample()
                score -= q.log_prob(whole[n, missing[n]])
            score += log_joint(model, whole, drawn) - log_joint(run.guide, x, drawn)
            totals.append(score)
    found = torch.stack(totals)
    assert abs(found.mean() - float(run[-1])) < 5 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("covariance", ["diag", "spherical"])
def test_one_component_with_missing_entries_is_each_column_without_them(covariance):
    x = rows_of(holes=True)
    options = {"location": 0.0, "spread": 10.0, "inverse_scale": 1.0}
    both = float(zoo.cavi(zoo.BayesianGMM(3, 1, "diag", **options).double(), x, restarts=1, tol=1e-12)[-1])
    each = 0.0
    for column in x.unbind(1):
        rows = column[~column.isnan()].unsqueeze(1)
        each += float(zoo.cavi(zoo.BayesianGMM(1, 1, covariance, **options).double(), rows, restarts=1, tol=1e-12)[-1])
    assert math.isclose(both, each, abs_tol=1e-7)


@covariances
@pytest.mark.parametrize("means", ["independent", "coupled"])
def test_the_bound_holds_far_from_the_origin(covariance, means):
    x = rows_of(holes=False)
    near, far = (
        zoo.cavi(zoo.BayesianGMM(3, 3, covariance, means=means).double(), x + shift, restarts=1, sweeps=30)
        for shift in (0.0, 1e6)
    )
    torch.testing.assert_close(near.bound, far.bound, rtol=1e-6, atol=0)


def test_given_hyperparameters_stay_and_can_be_saved(tmp_path):
    x = faithful()
    options = {"location": [0.1, 0.2], "spread": 5.0, "inverse_scale": [[2.0, 0.5], [0.5, 1.0]]}
    model = zoo.BayesianGMM(2, 2, **options).double()
    run = zoo.cavi(model, x, restarts=1)
    assert model.location.tolist() == pytest.approx([0.1, 0.2])
    assert model.spread.tolist() == [5.0, 5.0]
    assert model.inverse_scale.tolist() == [[2.0, 0.5], [0.5, 1.0]]
    assert {name: model.settings[name] for name in options} == {**options, "location": pytest.approx([0.1, 0.2])}
    run.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run")
    factors = again.guide.factors()
    torch.testing.assert_close(again.model.bound(x, factors), run.model.bound(x, run.factors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concentration": -1.0}, "concentration must be positive, got -1.0"),
        ({"concentration": math.inf}, "concentration must be positive"),
        ({"strength": 0.0}, "strength must be positive, got 0.0"),
        ({"df": 1.0}, "df must be above 1, got 1.0: the prior of the precisions is improper"),
        ({"df": math.nan}, "df must be above 1"),
        ({"spread": -2.0}, "spread must be finite and positive"),
        ({"location": math.nan}, "location must be finite"),
        ({"location": [1.0, 2.0, 3.0]}, "location must be one number or 2"),
        ({"inverse_scale": [[1.0, 2.0], [2.0, 1.0]]}, "inverse_scale must be .* positive definite"),
        ({"inverse_scale": 0.0}, "inverse_scale must be finite and positive"),
        ({"spread": 1.0, "means": "coupled"}, "spread is that of independent means: give strength"),
        ({"covariance": "round"}, "covariance must be one of full, tied, diag, spherical"),
    ],
)
def test_refuses_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.BayesianGMM(2, 2, **options)


def test_refuses_data():
    x = faithful()
    with pytest.raises(ValueError, match="components=5 must be below the 5 rows of x: take fewer"):
        zoo.cavi(zoo.BayesianGMM(2, 5), x[:5])
    with pytest.raises(ValueError, match=r"1 constant column \(0\): .*or take covariance='spherical'"):
        zoo.cavi(zoo.BayesianGMM(2, 2), torch.stack([torch.ones(272).double(), x[:, 1]], 1))
    with pytest.raises(ValueError, match="column 1 of x has only NaN"):
        zoo.cavi(zoo.BayesianGMM(2, 2), torch.stack([x[:, 0], torch.full((272,), torch.nan).double()], 1))


@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random"])
def test_every_start_finds_the_two_clusters(start):
    x = zoo.data.load("faithful", dtype=torch.float64).x
    model = zoo.BayesianGMM(2, 2, "VVV", start=start).double()
    assert model.covariance == "full"
    counts = zoo.cavi(model, x, restarts=2).factors["component"].mean.sum(0).sort().values
    assert (counts - torch.tensor([97.0, 175.0])).abs().max() < 2


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"start must be one of kmeans, k-means\+\+, random; got 'means'"):
        zoo.BayesianGMM(2, 2, start="means")
