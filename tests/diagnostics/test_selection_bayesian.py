"""Choosing the size of a Bayesian model by its bound on log p(X)."""

import pytest
import torch
from bayesian_models import faithful, iris

import guides
import zoo
from zoo.diagnostics import predictive_density


def test_ranks_by_the_bound():
    found = zoo.select_size(
        lambda k, rows: zoo.BayesianPCA(4, k, mean=False).double(), iris(), [1, 2, 3], seeds=6, folds=None
    )
    assert found.measures == ("bound",)
    assert [row.bound for row in found.table] == pytest.approx([-502.2193962, -456.3283516, -451.599825], abs=1e-4)
    assert found.best().value == 3
    assert found.summary()["best_bound"] == 3
    assert "best by bound: 3" in str(found)
    assert found.frame()["bound"].null_count() == 0


def test_bound_prefers_two_components():
    found = zoo.select_size(lambda k, rows: zoo.BayesianGMM(2, k).double(), faithful(), [1, 2, 3], folds=None)
    assert found.best("bound").value == 2


def test_held_out_rows_have_their_predictive_density():
    x = faithful()
    new, rows = x[::4], torch.cat([x[1::4], x[2::4], x[3::4]])
    found = zoo.select_size(
        lambda k, rows: zoo.BayesianGMM(2, k, means="coupled").double(), rows, [1, 2], seeds=2, held_out=new
    )
    assert found.measures == ("bound", "held_out")
    for row in found.table:
        expected = predictive_density(row.best, new).log_density  # Student's t, in closed form
        torch.testing.assert_close(row.log_p, expected)
    assert found.best("held_out").value == 2
    assert "held out: 68 rows" in str(found)


def test_folds_serve_every_guide_of_a_bayesian_model():
    x = iris()

    def pair(k, rows):
        model = zoo.BayesianPCA(4, k).double()
        return model, guides.MeanField(model, rows)

    by_guide = zoo.select_size(pair, x, [1, 3], seeds=1, folds=2, progress=False)
    by_ascent = zoo.select_size(lambda k, rows: zoo.BayesianPCA(4, k).double(), x, [1, 3], seeds=1, folds=2)
    assert by_guide.measures == ("held_out",)
    for one, other in zip(by_guide.table, by_ascent.table, strict=True):
        assert abs(one.held_out - other.held_out) < 0.01
        assert one.log_p.shape == other.log_p.shape == (150,)
    assert by_ascent.best("held_out").value == by_guide.best("held_out").value == 3
    assert by_ascent.how == "2 folds"
