"""The suite ``clustering``: its rows, its measures beside numbers known, and users' own pairs."""

import math

import numpy as np
import pytest
import torch

import guides
import zoo
from zoo.benchmark.labelled import Labelled, dequantised
from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run
from zoo.benchmark.suite import Case, Cell, Data, Own
from zoo.benchmark.suites.clustering import best_mixture


@pytest.fixture(scope="module")
def suite():
    return named_suite("clustering", "quick")


@pytest.fixture(scope="module")
def apart():
    """Two groups of rows far from each other, with their classes."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=stream, dtype=torch.float64)
    labels = torch.arange(60) % 2
    x = x + 20.0 * labels.unsqueeze(1)
    data = Data(
        x[:40], x[40:], extra={"labels": labels[:40].numpy(), "classes": 2, "factors": 1, "floor": 1e-6, "starts": 9}
    )
    return data, Cell(Case("apart", lambda seed: data), seed=0)


def measured(suite, name, data, cell):
    method = {method.name: method for method in suite.methods}[name]
    return suite.measure(method.train(data, cell), data, cell)


@pytest.mark.parametrize("name", ["k-means", "GMM, full", "GMM, spherical", "Bayesian GMM, full", "PPCA, then GMM"])
def test_clusters_far_apart_are_found(suite, apart, name):
    found = measured(suite, name, *apart)
    assert found["ari"] == found["nmi"] == 1.0
    assert found["clusters"] == 2
    assert math.isnan(found["log_density"]) == (name in ("k-means", "PPCA, then GMM"))


def test_the_density_is_that_of_held_out_rows(suite, apart):
    """Two spherical components far from each other: half the density of the nearer one."""
    data, _ = apart
    found = measured(suite, "GMM, spherical", *apart)
    total = 0.0
    for group in (0, 1):
        rows = data.train[torch.from_numpy(data.extra["labels"] == group)]
        centre, sd = rows.mean(0), (rows - rows.mean(0)).square().mean().sqrt()
        near = torch.distributions.Normal(centre, sd).log_prob(data.test[torch.arange(40, 60) % 2 == group])
        total += float((near.sum(1) - math.log(2)).sum())
    assert found["log_density"] == pytest.approx(total / 20, abs=1e-4)


def test_a_collapsed_mixture_is_kept_only_where_all_are():
    """Ten rows twice and one apart, as three components: the one alone has no variance from any start."""
    x = torch.cat([torch.randn(10, 2, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64) + 50])
    x = torch.cat([x, torch.tensor([[500.0, 500.0]], dtype=torch.float64)])
    with pytest.warns(UserWarning, match="from all 2 starts a component collapsed"):
        model = best_mixture(x, 3, "full", starts=2, seed=0, floor=0.01)
    assert sorted(torch.bincount(model.log_joint(x).argmax(1)).tolist()) == [1, 10, 10]


def test_starts_are_chosen_without_labels(suite, apart):
    """With other classes the clusters are the same."""
    data, cell = apart
    mixed = Data(data.train, data.test, extra=data.extra | {"labels": np.roll(data.extra["labels"], 7)})
    method = {method.name: method for method in suite.methods}["GMM, diag"]
    np.testing.assert_array_equal(method.train(data, cell).labels, method.train(mixed, cell).labels)


def test_rows_are_split_and_scaled_by_the_training_rows():
    data = Labelled("wine", 3, standardised=True).load(seed=1)
    assert (len(data.train), len(data.test)) == (142, 36)
    assert data.extra["classes"] == 3
    assert len(data.extra["labels"]) == 142
    torch.testing.assert_close(data.train.mean(0), torch.zeros(13, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(13, dtype=torch.float64))


def test_pixels_are_continuous_within_their_level():
    x, labels = Labelled("digits", 10, levels=17).rows()
    counts = zoo.data.load("digits", dtype=torch.float64).x
    assert torch.equal((x * 17).floor(), counts)
    assert len(labels) == len(x) == 1797
    noise = x * 17 - counts
    assert float(noise.mean()) == pytest.approx(0.5, abs=5 / (12 * noise.numel()) ** 0.5)
    assert torch.equal(dequantised(counts[:3], 17), dequantised(counts[:3], 17))


def test_a_users_mixture_and_a_users_factors_are_methods(suite, apart):
    data, cell = apart
    mixture = Own("mine", lambda d: zoo.GMM(d, 2), lambda model, x: guides.Exact(model))
    found = suite.measure(suite.own(mixture).train(data, cell), data, cell)
    assert found["ari"] == 1.0
    assert math.isfinite(found["log_density"])
    factors = Own("mine", lambda d: zoo.PPCA(d, 1), lambda model, x: guides.FullRank(model, x))
    found = suite.measure(suite.own(factors).train(data, cell), data, cell)
    assert found["ari"] == 1.0
    assert math.isnan(found["log_density"])


def test_the_claim_compares_likelihoods_run_by_run(suite, tmp_path):
    table = run(suite, tmp_path, only="wine", methods=["GMM, full", "scikit-learn, full"], seeds=1)
    (claim,) = suite.claims(table)
    assert claim.held is True
    assert "in 1 runs" in claim.figures


@pytest.mark.slow
def test_the_quick_budget_runs_whole(suite, tmp_path):
    table = run(suite, tmp_path)
    assert (table["status"] == "done").all()
    assert [claim.held for claim in suite.claims(table)] == [True]
