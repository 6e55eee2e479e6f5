"""The names of a frame's columns in the runs and messages of estimators."""

import numpy as np
import pandas
import pytest

import guides
import zoo
from zoo import estimators
from zoo.alignment import rotate

NAMES = ["height", "weight, kg", "age", "score"]


@pytest.fixture(scope="module")
def frame():
    rows = np.random.default_rng(0).normal(size=(60, 4))
    rows[::7, 1] = np.nan
    return pandas.DataFrame(rows, columns=NAMES)


def test_runs_know_the_columns(frame):
    for kind in (estimators.PPCA(1), estimators.FactorAnalysis(1), estimators.GaussianMixture(1)):
        assert kind.fit(frame).run_.training.columns == tuple(NAMES)
    bayesian = estimators.BayesianPCA(1, n_init=1, tol=1e-4, random_state=0)
    assert bayesian.fit(frame).run_.training.columns == tuple(NAMES)
    assert "weight, kg" in str(rotate(estimators.FactorAnalysis(1).fit(frame).run_, "varimax").table(cutoff=0))


def test_without_names_there_are_none(frame):
    assert estimators.PPCA(1).fit(frame.to_numpy()).run_.training.columns == ()


@pytest.mark.parametrize("fitted", [lambda x: zoo.em(zoo.FactorAnalysis(4, 1), x), estimators.FactorAnalysis(1).fit])
def test_errors_name_the_column(frame, fitted):
    with pytest.raises(ValueError, match=r"column 2 \('age'\) of x has only NaN"):
        fitted(frame.assign(age=np.nan))
    with pytest.raises(ValueError, match=r"1 constant column \(2 \('age'\)\)"):
        fitted(frame.assign(age=3.0))


def test_read_only_and_reversed_rows(frame):
    rows = frame.fillna(0.0).to_numpy().copy()
    rows.flags.writeable = False
    forwards, backwards = estimators.FactorAnalysis(1).fit(rows), estimators.FactorAnalysis(1).fit(rows[::-1])
    assert forwards.score(rows) == pytest.approx(backwards.score(rows[::-1]), abs=1e-7)


def test_errors_of_svi_name_the_column(frame):
    model = zoo.FactorAnalysis(4, 1)
    with pytest.raises(ValueError, match=r"column 2 \('age'\) of x has only NaN"):
        zoo.fit(model, guides.Exact(model), frame.assign(age=np.nan), progress=False)
