"""The suite of gradient estimators: which serve a pair, what it measures on small rows, and its claims."""

from dataclasses import replace

import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from zoo.base.plates import rows
from zoo.benchmark import estimators
from zoo.benchmark.estimators import ESTIMATORS, Traced, serving
from zoo.benchmark.gradient_cells import TRAINING, Problem
from zoo.benchmark.gradient_claims import claims
from zoo.benchmark.running import run
from zoo.benchmark.suite import Own
from zoo.benchmark.suites import gradients

SMOOTH = {
    "reparametrised",
    "reparametrised, 10 draws",
    "path derivative",
    "score function",
    "score function, baseline",
    "score function, leave one out, 10 draws",
}
IWAE = {"IWAE-10", "IWAE-10, doubly"}
SCORE = {name for name in SMOOTH if name.startswith("score")}


def names(model, guide, x):
    with pyro.get_param_store().scope():
        return {estimator.name for estimator in serving(Traced.of(model, guide, (x,)))}


def test_which_estimators_serve_a_pair(some, faithful):
    fa = zoo.FactorAnalysis(4, 1).double()
    found = names(fa, guides.MeanField(fa, some), some)
    assert found == SMOOTH | IWAE | {"analytic KL", "quadrature", "30 fixed draws"}
    mixture = zoo.GMM(2, 2).double()
    mixture.initialize(faithful)
    discrete = SCORE | {"enumeration", "summed out", "quadrature"}
    assert names(mixture, guides.MeanField(mixture, faithful, closed_form=False), faithful) == discrete
    exact = discrete | {"reparametrised", "reparametrised, 10 draws"}
    assert names(mixture, guides.Exact(mixture), faithful) == exact
    bayesian = zoo.BayesianPCA(4, 1).double()
    assert names(bayesian, guides.MeanField(bayesian, some), some) == SMOOTH | {"closed form"}
    deep = zoo.VAE(4, 2, (8,)).double()
    assert names(deep, guides.Flow(deep, some), some) == SMOOTH | IWAE | {"30 fixed draws"}
    assert {estimator.name for estimator in ESTIMATORS} >= found | exact


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Few rows, draws and steps; a user's guide is trained, and refuses the mixture."""
    made = gradients.suite("quick")
    iris = Problem(lambda d: zoo.FactorAnalysis(d, 1), 20, 0.05, 20)
    mixture = Problem(lambda d: zoo.GMM(d, 2), 20, 0.05, 20)
    source = gradients.Rows("iris", "every other", lambda x: x[::2])
    cases = [
        gradients._case("FA iris", source, iris, ("MeanField",)),
        gradients._case("GMM faithful", gradients.Rows("faithful"), mixture, ()),
        gradients._training("FA iris, training", source, iris, 3, ("MeanField",)),
    ]
    heavy = replace(made.own(Own("heavy tails", guide=HeavyTails)), cases=lambda case: case.name != "FA iris")
    short = replace(made, cases=cases, methods=[*made.methods, heavy])
    return short, run(short, tmp_path_factory.mktemp("gradients"))


class HeavyTails(zoo.base.Module):
    """A user's guide, of one continuous site."""

    def __init__(self, model, x):
        super().__init__()
        if isinstance(model, zoo.GMM):
            raise guides.CannotServe("HeavyTails", model, "component", "is discrete", "Use MeanField.")
        self.loc = pyro.nn.PyroParam(x.new_zeros(len(x), 1))

    def forward(self, x=None, index=None, size=None):
        loc = self.loc
        with rows(x, index, size):
            pyro.sample("z", dist.StudentT(10.0, loc, 0.5).to_event(1))


def test_small_rows(small):
    _, table = small
    status = {(row["case"], row["method"]): row["status"] for row in table.iter_rows(named=True)}
    assert status == {
        ("FA iris", "MeanField"): "done",
        ("GMM faithful", "heavy tails"): "refused",
        ("FA iris, training", "MeanField"): "done",
        ("FA iris, training", "heavy tails"): "done",
    }
    point = {row["estimator"]: row for row in table.iter_rows(named=True) if row["at"] == "optimum"}
    assert point["path derivative"]["guide_factor"] < 1e-20
    assert point["reparametrised"]["guide_factor"] == point["reparametrised"]["model_factor"] == 1
    assert point["quadrature"]["guide_variance"] == 0
    assert point["score function"]["guide_factor"] > 1
    curve = table.filter(pl.col("at") == TRAINING)
    for method in ("MeanField", "heavy tails"):
        own = curve.filter(pl.col("method") == method)
        assert own.filter(pl.col("steps") == 0)["bound"].n_unique() == 1  # all estimators have the same start
        assert set(own["steps"]) == {0, 1, 2, 3}
        assert set(own["estimator"]) >= SMOOTH


def test_claims_and_figure(small):
    suite, table = small
    found = list(suite.claims(table))
    assert not [claim for claim in found if claim.held is False]
    assert sum(claim.held is True for claim in found) >= 7
    assert len(suite.draw(table).axes) == 3  # one pair: variances, bounds against steps, bounds against seconds
    assert all(claim.held is None for claim in claims(table.clear()))


def test_claims_are_read_off_the_table(small):
    """A table of other numbers fails them."""
    suite, table = small
    far = table.with_columns(guide_deviation=20 * table["guide_deviation"].fill_nan(1.0))
    assert next(iter(suite.claims(far))).held is False
    noisy = table.with_columns(guide_variance=table["guide_variance"].fill_nan(0.0) + 1e3, bound=-table["steps"])
    assert sum(claim.held is False for claim in suite.claims(noisy)) >= 3


def test_own_needs_a_model_or_a_guide():
    with pytest.raises(ValueError, match="nobody has neither model nor guide: give at least one"):
        gradients.suite("quick").own(Own("nobody"))


def test_a_models_rows_are_written_down():
    for budget in ("quick", "cpu", "full"):
        for case in gradients.suite(budget).cases:
            assert {"rows", "preparation", "guides", "steps", "rate", "draws"} <= set(case.protocol)
    case = gradients.suite("quick").cases[0]
    assert torch.equal(case.load(0).train, zoo.data.load("iris", dtype=torch.float64).x)


def test_pixels_become_zeros_and_ones(shared_data, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    for name, share in (("digits", 0.29), ("mnist", 0.13)):
        x = gradients._binary(name, 400, "400 rows")()
        assert x.unique().tolist() == [0, 1]
        assert x.mean().item() == pytest.approx(share, abs=0.03)


@pytest.mark.slow
def test_quick_budget_holds_its_claims(tmp_path):
    suite = gradients.suite("quick")
    table = run(suite, tmp_path)
    assert set(table["status"]) == {"done"}
    assert all(claim.held for claim in suite.claims(table)), suite.claims(table)
    assert estimators.PATH in set(table["estimator"])
