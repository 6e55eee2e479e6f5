"""The suite of inference gaps: its linear models against the algebra, its claims against tables."""

import math
from dataclasses import replace

import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroParam
from torch.distributions import constraints

import guides
import zoo
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.protocols import ClosedBound, Conjugate
from zoo.benchmark.frozen import Undisclosed, held, known_gaps
from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run
from zoo.benchmark.suite import Cell, Data, DoesNotApply, Own
from zoo.benchmark.suites.gaps import EFFORTS, Look, measure
from zoo.benchmark.suites.gaps_page import FACTORISED, FLOW, FULL, SEMI, claims
from zoo.posterior.annealing import AIS
from zoo.posterior.inference_gaps import gaps

TINY = replace(EFFORTS["quick"], linear=Look(10, 300, 300, AIS(30, chains=8, leapfrog=3)), steps=60)


@pytest.fixture(scope="module")
def iris():
    return zoo.data.load("iris", dtype=torch.float64).x


def test_a_rotated_model_at_its_maximum(iris):
    """Iris, two factors, rotated by pi / 8: the best factorised q loses 80.7568 nats in all."""
    model = held(zoo.PPCA, 2, iris)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert float(model.log_marginal(iris).sum()) == pytest.approx(-404.96278, abs=1e-4)
    guide = guides.MeanField(model, iris)
    guide.initialize(iris)
    approximation, amortization = known_gaps(model, guide, iris)
    assert 150 * approximation == pytest.approx(80.7568, abs=1e-3)
    assert abs(amortization) < 1e-8
    full = guides.FullRank(model, iris)
    full.initialize(iris)
    assert known_gaps(model, full, iris) == pytest.approx((0.0, 0.0), abs=1e-8)
    assert all(math.isnan(gap) for gap in known_gaps(model, guides.Flow(model, iris), iris))


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_known_gaps_are_those_of_the_search(iris, covariance):
    model = held(zoo.FactorAnalysis, 1 if covariance == "full" else 2, iris)
    guide = guides.Amortized(model, iris, (4,), covariance, skip=False)
    found = gaps(zoo.Fit(model, guide), iris).summary()
    expected = known_gaps(model, guide, iris)
    assert (found["approximation"], found["amortization"]) == pytest.approx(expected, abs=1e-6)


def test_an_undisclosed_model_has_no_closed_form(iris):
    inner = held(zoo.PPCA, 2, iris)
    model = Undisclosed(inner)
    assert isinstance(inner, Conjugate)
    assert not isinstance(model, Conjugate)
    assert not isinstance(model, ClosedBound)


def test_a_linear_case_is_measured_as_the_closed_form_has_it():
    suite = named_suite("gaps", "quick")
    case = suite.cases[0]
    found = []
    for method in suite.methods[:2]:
        data, cell = case.load(0), Cell(case, 0)
        trained = replace(method.train, effort=TINY)(data, cell)
        found.append({"case": case.name, "method": method.name, "status": "done", **measure(TINY, trained, data, cell)})
    table = pl.DataFrame(found)
    assert [claim.held for claim in claims(table, brief=True)[:2]] == [True, True]
    assert table["closed_approximation"].to_list() == pytest.approx([80.7568 / 150, 0.0], abs=1e-4)
    assert (table["amortization"] > 0.5).all()
    wrong = table.with_columns(pl.col("approximation", "amortization") + 1.0)
    assert [claim.held for claim in claims(wrong, brief=True)[:2]] == [False, False]


def mnist(factorised, flow, semi):
    """A table of approximation and amortization gaps on MNIST."""
    values = {FACTORISED: factorised, FULL: factorised, FLOW: flow, SEMI: semi}
    names = ("approximation", "amortization")
    head = {"case": "mnist", "status": "done", "closed_approximation": math.nan}
    return pl.DataFrame([head | {"method": key, **dict(zip(names, gap, strict=True))} for key, gap in values.items()])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (((1.4, 1.3), (1.3, 1.4), (1.4, 0.1)), [True, True, True]),
        (((1.4, 9.9), (1.5, 1.4), (1.4, 9.9)), [False, False, False]),
        (((1.4, 0.1), (math.nan, math.nan), (1.4, 0.01)), [False, None, True]),
        (((0.0, 1.0), (-0.1, 1.0), (0.0, 1.0)), [False, True, False]),
    ],
)
def test_claims_follow_the_table(values, expected):
    table = mnist(*values)
    assert [claim.held for claim in claims(table, brief=False)] == [None, None, *expected]
    assert {claim.held for claim in claims(table, brief=True)} == {None}


class Bimodal(Module):
    """A guide of two Gaussians, whose best q nobody looks for."""

    def __init__(self, x):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(1, 2, dtype=x.dtype))

    def forward(self, x=None, index=None, size=None):
        loc = self.loc.expand(len(x), 2)
        mixture = dist.MixtureOfDiagNormalsSharedCovariance(
            torch.stack([loc - 1, loc + 1], -2), torch.ones_like(loc), torch.zeros_like(loc)
        )
        with rows(x, index, size):
            pyro.sample("z", mixture)


def test_own_models_and_guides():
    suite = named_suite("gaps", "quick")
    with pytest.raises(ValueError, match="--guide or --model"):
        suite.own(Own("Nothing"))
    case = suite.cases[0]
    data, cell = case.load(0), Cell(case, 0)
    own = suite.own(Own("Bimodal", guide=lambda model, x: Bimodal(x)))
    found = measure(TINY, replace(own.train, effort=TINY)(data, cell), data, cell)
    assert found["elbo"] < found["log_marginal"] < 0
    assert math.isnan(found["approximation"])
    alone = suite.own(Own("Mine", model=lambda d: zoo.FactorAnalysis(d, 1)))
    trained = replace(alone.train, effort=TINY)(data, cell)
    found = measure(TINY, trained, data, cell)
    assert found["log_marginal"] == pytest.approx(float(trained.model.log_marginal(data.train[:10]).detach().mean()))
    assert math.isnan(found["closed_approximation"])


class PerRow(Module):
    """A factorised Gaussian with parameters for every row, as a user writes it."""

    def __init__(self, x):
        super().__init__()
        self.loc = PyroParam(x.new_zeros(len(x), 2))
        self.scale = PyroParam(x.new_ones(len(x), 2), constraints.positive)

    def forward(self, x=None, index=None, size=None):
        loc, scale = (self.loc, self.scale) if index is None else (self.loc[index], self.scale[index])
        with rows(x, index, size):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def test_a_guide_with_parameters_for_every_row():
    """It is measured on all its rows, and refused where rows are held out."""
    suite = named_suite("gaps", "quick")
    own = suite.own(Own("PerRow", guide=lambda model, x: PerRow(x)))
    case = suite.cases[0]
    data, cell = case.load(0), Cell(case, 0)
    found = measure(TINY, replace(own.train, effort=TINY)(data, cell), data, cell)
    assert found["approximation"] == pytest.approx(80.7568 / 150, abs=0.1)
    x = torch.rand(20, 6).round()
    held_out = Data(x, x[:5], x[5:9], {"hidden": (4,), "latent_dim": 2, "epochs": 1, "batch": 20})
    with pytest.raises(DoesNotApply, match="PerRow has parameters for the training rows alone"):
        own.train(held_out, cell)


@pytest.mark.slow
def test_the_quick_budget(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    suite = named_suite("gaps", "quick")
    table = run(suite, tmp_path)
    assert (table["status"] == "done").all()
    assert all(claim.held for claim in suite.claims(table)[:4])
