"""The suite ``imputation``: its cases, its measures beside numbers known, and users' own pairs."""

import math

import pytest
import torch
from user_models import MixtureOfFactorAnalysers

import guides
import zoo
from zoo.benchmark.named import named_suite
from zoo.benchmark.removed import FIXED, of_mask
from zoo.benchmark.running import run
from zoo.benchmark.suite import Case, Cell, DoesNotApply, Own
from zoo.data import random_mask

NAMES = {"mse", "log_density", "log_density_se"}


@pytest.fixture(scope="module")
def suite():
    return named_suite("imputation", "quick")


@pytest.fixture(scope="module")
def small():
    """40 rows of iris, standardised, of which a quarter of the entries is removed."""
    x = zoo.data.load("iris", dtype=torch.float32).x[::4]
    x = (x - x.mean(0)) / x.std(0)
    data = of_mask(x, random_mask(*x.shape, 0.25, seed=0))
    return data, Cell(Case("small", lambda seed: data), seed=0)


def measured(suite, name, small):
    data, cell = small
    method = {method.name: method for method in suite.methods}[name]
    return suite.measure(method.train(data, cell), data, cell)


def test_the_fixed_mask_is_the_published_one(suite):
    case = {case.name: case for case in suite.cases}[FIXED]
    first, second = case.load(0), case.load(1)
    assert torch.equal(first.extra["mask"], second.extra["mask"])
    assert int(first.extra["mask"].sum()) == 8535
    assert first.extra["mask"].flatten()[[14853, 7252, 7817]].all()
    assert case.published["MIWAE", "mse"].value == 0.28673
    assert measured(suite, "observed means", (first, Cell(case, 0)))["mse"] == pytest.approx(1.0275, abs=5e-5)


def test_every_seed_of_the_other_cases_has_a_mask_of_its_own(suite):
    case = {case.name: case for case in suite.cases}["wine"]
    assert not torch.equal(case.load(0).extra["mask"], case.load(1).extra["mask"])


def test_a_linear_model_is_measured_by_its_conditional_gaussian(suite, small):
    data, _ = small
    found = measured(suite, "PPCA", small)
    model = zoo.PPCA(4, 1).double()
    zoo.em(model, data.train)
    mask, complete = data.extra["mask"], data.extra["complete"].double()
    error = (model.impute(data.train).mean - complete)[mask].square().mean()
    with torch.no_grad():
        density = (model.log_marginal(complete) - model.log_marginal(data.train)).sum() / mask.sum()
    assert found["mse"] == pytest.approx(float(error), abs=1e-4)
    assert found["log_density"] == pytest.approx(float(density), abs=1e-4)
    assert found["log_density_se"] == 0


def test_rivals_without_a_density_have_none(suite, small):
    found = measured(suite, "KNN-5", small)
    assert math.isfinite(found["mse"])
    assert math.isnan(found["log_density"])


def test_miwae_is_measured_by_importance_sampling(suite, small):
    found = measured(suite, "MIWAE", small)
    assert set(found) == NAMES
    assert all(math.isfinite(value) for value in found.values())
    assert found["log_density_se"] > 0


def test_a_users_pair_is_a_method(suite, small):
    data, cell = small
    own = Own("mine", lambda d: zoo.PPCA(d, 1), lambda model, x: guides.FullRank(model, x))
    method = suite.own(own)
    found = suite.measure(method.train(data, cell), data, cell)
    assert found == pytest.approx(measured(suite, "PPCA", small), abs=0.02)


def test_a_model_without_missing_entries_is_refused(suite, small):
    data, cell = small
    own = suite.own(Own("mine", lambda d: MixtureOfFactorAnalysers(d)))
    with pytest.raises(DoesNotApply, match="MixtureOfFactorAnalysers takes no missing entries.* missing = True"):
        own.train(data, cell)


def test_a_model_that_only_says_that_it_takes_missing_entries(suite, small):
    class Says(MixtureOfFactorAnalysers):
        missing = True

    data, cell = small
    own = suite.own(Own("mine", lambda d: Says(d)))
    with pytest.raises(ValueError, match=r"Says says missing = True, but has no density at 'x'"):
        own.train(data, cell)


def test_a_pair_without_weights_per_row_says_so(suite, small):
    data, cell = small
    own = Own("mine", lambda d: zoo.BayesianPCA(d, 1), lambda model, x: guides.MeanField(model, x))
    with pytest.warns(UserWarning, match="without importance weights"):
        fitted = suite.own(own).train(data, cell)
    assert math.isfinite(suite.measure(fitted, data, cell)["log_density"])


def test_a_mask_of_another_shape_is_refused(small):
    with pytest.raises(ValueError, match=r"mask has shape \(4, 38\) and x \(38, 4\)"):
        of_mask(small[0].extra["complete"], small[0].extra["mask"].T)


def test_the_claims_need_their_rows(suite, tmp_path):
    table = run(suite, tmp_path, only=FIXED, methods=["observed means"])
    assert [claim.held for claim in suite.claims(table)] == [None, None]


@pytest.mark.slow
def test_the_quick_budget_runs_whole(suite, tmp_path):
    table = run(suite, tmp_path)
    assert (table["status"] == "done").all()
    held = [claim.held for claim in suite.claims(table)]
    assert held == [True, None]
