"""Choosing the size of a Bayesian model by its bound on log p(X)."""

import pytest
from bayesian_models import faithful, iris

import zoo


def test_ranks_by_the_bound():
    found = zoo.select_size(lambda k, rows: zoo.BayesianPCA(4, k, mean=False).double(), iris(), [1, 2, 3], seeds=6)
    assert found.measures == ("bound",)
    assert [row.bound for row in found.table] == pytest.approx([-502.2193962, -456.3283516, -451.599825], abs=1e-4)
    assert found.best().value == 3
    assert found.summary()["best_bound"] == 3
    assert "best by bound: 3" in str(found)
    assert found.frame()["bound"].null_count() == 0


def test_bound_prefers_two_components():
    found = zoo.select_size(lambda k, rows: zoo.BayesianGMM(2, k).double(), faithful(), [1, 2, 3])
    assert found.best("bound").value == 2
