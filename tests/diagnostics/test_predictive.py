"""Replicated tables beside the rows."""

import dataclasses
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import guides
import zoo
from zoo.base.plates import rows
from zoo.data import Dataset
from zoo.diagnostics.model import predictive
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.diagnostics.model.statistics import column_quantiles, correlation


@pytest.fixture(scope="module")
def factors():
    """A PPCA (three columns, one factor) at parameters of its own, its exact guide, and rows from it (80, 3)."""
    generator = torch.Generator().manual_seed(0)
    model = zoo.PPCA(3, 1).double()
    with torch.no_grad():
        model.weight = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
        model.mean = torch.tensor([5.0, 0.0, -1.0], dtype=torch.float64)
        model.scale = torch.tensor(0.7, dtype=torch.float64)
        z = torch.randn(80, 1, generator=generator, dtype=torch.float64)
        noise = torch.randn(80, 3, generator=generator, dtype=torch.float64)
        x = z @ model.weight.T + model.mean + model.scale * noise
    return zoo.Fit(model, guides.Exact(model)), x


def test_statistics_of_a_table():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64).exp()
    x[::5, 1] = torch.nan
    x[3, 0] = torch.nan
    chosen = predictive._all_statistics({}, 3)
    found = {name: statistic(x).numpy() for name, statistic in chosen.items()}
    values = x.numpy()
    np.testing.assert_allclose(found["mean"], np.nanmean(values, 0), rtol=1e-10)
    np.testing.assert_allclose(found["standard deviation"], np.nanstd(values, 0), rtol=1e-10)
    np.testing.assert_allclose(found["skewness"], scipy.stats.skew(values, 0, nan_policy="omit"), rtol=1e-10)
    kurtosis = scipy.stats.kurtosis(values, 0, nan_policy="omit")
    np.testing.assert_allclose(found["excess kurtosis"], kurtosis, rtol=1e-10)
    for name, point in (("quantile 5%", 0.05), ("median", 0.5), ("quantile 95%", 0.95)):
        np.testing.assert_allclose(found[name], np.nanquantile(values, point, axis=0), rtol=1e-10)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = ~np.isnan(values[:, i]) & ~np.isnan(values[:, j])
        known = np.corrcoef(values[both, i], values[both, j])[0, 1]
        assert found["correlation"][i, j] == pytest.approx(known, abs=1e-10)
    assert np.isnan(found["correlation"][np.tril_indices(3)]).all()


def test_quantiles_of_little():
    points = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    x = torch.tensor([[2.0, torch.nan], [torch.nan, torch.nan], [4.0, torch.nan]])
    found = column_quantiles(x, points)
    torch.testing.assert_close(found[:, 0], torch.tensor([2.0, 2.6, 4.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert found[:, 1].isnan().all()
    assert correlation(torch.ones(5, 2)).isnan().all()  # nothing varies


def moments(run, x, given, draws):
    """Mean and variance (n, d) of every entry over replicates, from a statistic that is the table itself."""
    found = predictive_check(run, x, draws=draws, statistics={"rows": lambda table: table}, given=given)
    own = [i for i, name in enumerate(found.statistics) if name == "rows"]
    values = found.replicates[:, own].reshape(draws, *x.shape)
    return values.mean(0), values.var(0), values


def test_new_rows_are_draws_of_the_marginal(factors):
    run, x = factors
    draws = 400
    mean, _, values = moments(run, x, "prior", draws)
    covariance = run.model.weight @ run.model.weight.T + 0.49 * torch.eye(3, dtype=torch.float64)
    count = values[..., 0].numel()
    flat = values.reshape(count, 3)
    error = (covariance.diagonal() / count).sqrt()
    assert ((flat.mean(0) - run.model.mean).abs() < 5 * error).all()
    spread = ((covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / count).sqrt()
    assert ((torch.cov(flat.T) - covariance).abs() < 5 * spread).all()
    assert (mean.std(0) < 5 * (covariance.diagonal() / draws).sqrt()).all()  # no row keeps to itself


def test_rows_given_themselves_follow_their_posterior(factors):
    run, x = factors
    draws = 400
    mean, variance, _ = moments(run, x, "rows", draws)
    q = run.model.posterior(x)
    centre = q.mean @ run.model.weight.T + run.model.mean
    spread = run.model.weight.square() @ q.variance.T + 0.49  # (d, n)
    error = (spread.T / draws).sqrt()
    assert ((mean - centre).abs() < 6 * error).all()  # 240 entries, so six standard errors for the largest
    assert ((variance / spread.T - 1).abs() < 6 * (2 / draws) ** 0.5).all()


def test_missing_entries_are_missing_in_the_replicates(factors):
    run, x = factors
    gaps = x.clone()
    gaps[::3, 0] = torch.nan
    gaps[1, 2] = torch.nan
    found = predictive_check(run, gaps, draws=20, statistics={"missing": lambda t: t.isnan().double()})
    own = [i for i, name in enumerate(found.statistics) if name == "missing"]
    assert (found.replicates[:, own] == found.observed[own]).all()
    assert found.observed[own].sum() == gaps.isnan().sum()
    assert found.observed[0] == pytest.approx(float(gaps[:, 0].nanmean()), abs=1e-12)
    assert not found.replicates.isnan().any()


def check(observed, replicates, **given):
    s = len(observed)
    parts = {
        "statistics": ("mean",) * s,
        "where": tuple(f"c{j}" for j in range(s)) if s > 8 else tuple("abcdefgh"[:s]),
        "observed": torch.tensor(observed, dtype=torch.float64),
        "replicates": torch.tensor(replicates, dtype=torch.float64),
        "level": 0.9,
        "given": "prior",
        "columns": ("a",),
        "points": torch.zeros(1),
        "marginal": torch.zeros(1, 1),
        "band": torch.zeros(2, 1, 1),
    }
    return PredictiveCheck(**(parts | given))


def test_tails_intervals_and_verdict_by_hand():
    nine = [float(v) for v in range(1, 10)]
    table = [[v, v, v, np.nan] for v in nine]
    found = check([0.0, 5.0, 9.0, 1.0], table)
    assert found.tail[:3].tolist() == pytest.approx([0.2, 1.0, 0.4])  # 2 (1 + 0) / 10, capped, 2 (1 + 1) / 10
    assert found.tail[3].isnan()
    assert found.interval[:, 0].tolist() == pytest.approx([1.4, 8.6])
    assert found.distance[0] == pytest.approx(-5 / np.std(nine, ddof=1))
    assert found.outside == (0, 2)
    assert found.verdict.startswith("2 of 4 statistics lie outside the central 90%")
    assert "mean of a 0, replicates 1.4 to 8.6" in found.verdict
    inside = check([5.0], [[v] for v in nine])
    assert inside.verdict == "none of 1 statistics lies outside the central 90% of the replicates"


@pytest.mark.parametrize(
    ("outside", "far", "grade"),
    [(0, 0, "good"), (4, 2.5, "good"), (12, 2.5, "careful"), (1, 5.0, "careful"), (25, 2.5, "bad")],
)
def test_grade_weighs_how_many_are_outside_and_how_far(outside, far, grade):
    rng = np.random.default_rng(0)
    replicates = rng.normal(size=(400, 100))
    observed = np.zeros(100)
    observed[:outside] = far  # standard deviations
    found = check(observed.tolist(), replicates.tolist(), level=0.95)
    assert len(found.outside) == outside
    assert found.limit == pytest.approx(scipy.stats.norm.isf(0.005 / 100))  # 3.9
    assert found.grade == grade


def test_far_statistic_alone_rejects_the_model():
    found = check([20.0, 0.0], np.random.default_rng(0).normal(size=(400, 2)).tolist())
    assert found.grade == "bad"
    assert "the farthest by" in found.headline


def test_undefined_replicates_are_left_out():
    found = check([3.0], [[1.0], [np.nan], [2.0], [4.0]])
    assert found.tail[0] == pytest.approx(2 * (1 + 1) / 4)
    assert found.distance[0] == pytest.approx((3 - 7 / 3) / np.std([1.0, 2.0, 4.0], ddof=1))


def test_two_lumps_are_no_gaussian(faithful):
    data = Dataset(faithful, None, (), ("eruptions", "waiting"), "faithful", "", "")
    model = zoo.GMM(2, 1).double()
    zoo.em(model, faithful)
    wrong = predictive_check(zoo.Fit(model, guides.Exact(model)), data, draws=100)
    assert {"excess kurtosis of eruptions", "excess kurtosis of waiting"} <= {wrong.names[i] for i in wrong.outside}
    assert not {"mean of waiting", "correlation of eruptions, waiting"} & {wrong.names[i] for i in wrong.outside}
    middle = (wrong.points > 0.4) & (wrong.points < 0.5)
    assert (wrong.marginal[middle] > wrong.band[1][middle]).all()  # the gap between the lumps
    better = zoo.GMM(2, 2).double()
    zoo.em(better, faithful)
    right = predictive_check(zoo.Fit(better, guides.Exact(better)), data, draws=100)
    assert "excess kurtosis of eruptions" not in {right.names[i] for i in right.outside}
    assert (right.tail > 0.05).double().mean() > 0.9


def level_guide(x, index=None, size=None):
    pyro.sample("theta", dist.Normal(torch.tensor(2.0).double(), 0.5))


def level_model(x=None, index=None, size=None):
    theta = pyro.sample("theta", dist.Normal(torch.tensor(0.0).double(), 10.0))
    with rows(x, index, size):
        return pyro.sample("x", dist.Normal(theta.reshape(1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("given", ["prior", "rows"])
def test_shared_sites_come_from_the_guide(given):
    """The mean of a replicate varies with theta ~ q = N(2, 1/4) and the noise of its 30 rows, not with the prior."""
    x = torch.full((30, 1), 2.0, dtype=torch.float64) + torch.linspace(-1, 1, 30).double().unsqueeze(1)
    found = predictive_check(zoo.Fit(level_model, level_guide), x, draws=200, given=given)
    means = found.replicates[:, found.statistics.index("mean")]
    sd = (0.25 + 1 / 30) ** 0.5
    assert abs(means.mean() - 2.0) < 5 * sd / 200**0.5
    assert abs(means.std() / sd - 1) < 5 / (2 * 200) ** 0.5


def test_own_statistics_are_named_by_columns(factors):
    run, x = factors
    own = {
        "range": lambda t: t.amax(0) - t.amin(0),
        "rows": lambda t: len(t),
        "cross": lambda t: t.T @ t,
        "first": lambda t: t[:2, 0],
    }
    found = predictive_check(run, Dataset(x, None, (), ("a", "b", "c"), "", "", ""), draws=20, statistics=own)
    names = set(found.names)
    assert {"range of a", "range of c", "rows", "cross of a, b", "cross of b, b", "first of entry 1"} <= names
    assert "correlation of a, c" in names
    assert "correlation of c, a" not in names
    assert found.columns == ("a", "b", "c")
    assert predictive_check(run, x, draws=20).columns == ("x0", "x1", "x2")


def test_chunks_and_streams(factors, monkeypatch, untouched):
    run, x = factors
    with untouched():
        first = predictive_check(run, x, draws=30, seed=4)
        again = predictive_check(run, x, draws=30, seed=4)
    assert torch.equal(first.replicates, again.replicates)
    monkeypatch.setattr("zoo.base.memory.NUMBERS", 1000)  # three replicates at a time
    pieces = predictive_check(run, x, draws=30, seed=4)
    assert pieces.replicates.shape == first.replicates.shape
    assert len(pieces.replicates.unique(dim=0)) == 30
    assert torch.equal(pieces.observed, first.observed)


def test_any_model_and_guide(iris):
    x = iris[:50].float()
    vae = zoo.VAE(4, 1, hidden=(4,))
    run = zoo.fit(vae, guides.Amortized(vae, x, hidden=(4,)), x, steps=20, progress=False)
    for given in ("prior", "rows"):
        found = predictive_check(run, x, draws=20, given=given)
        assert found.replicates.isfinite().all()
        assert given == found.given
    assert "latent variables given the rows" in repr(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": 5}, "draws must be at least 20"),
        ({"given": "posterior"}, "given must be one of prior, rows"),
        ({"level": 1.0}, "level must be in (0, 1)"),
        ({"statistics": {"mean": torch.mean}}, "statistics has 'mean'"),
        ({"statistics": {"name": lambda t: "high"}}, "statistic 'name' is not a number"),
        ({"statistics": {"part": lambda t: t[t[:, 0] > 5.0, 0]}}, "statistic 'part' has shape"),
    ],
)
def test_refusals(factors, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        predictive_check(*factors, **({"draws": 20} | given))


def test_the_result_is_frozen(factors):
    found = predictive_check(*factors, draws=20)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.level = 0.5
