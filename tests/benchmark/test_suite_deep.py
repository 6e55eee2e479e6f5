"""The suites ``deep`` and ``iwae``: small cases through their own methods, and their claims."""

import dataclasses
import math

import polars as pl
import pytest
import torch

import guides
import zoo
from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run
from zoo.benchmark.suite import BUDGETS, Case, Cell, Data, Own
from zoo.benchmark.suites import deep, iwae


@pytest.fixture
def short(monkeypatch):
    """The protocol of a table, for two epochs."""
    protocol = next(own for own in deep.DEEP if "breast_cancer" in own.name)
    effort = deep.Effort(epochs=2, patience=None, draws=30, rows=30)
    short = dataclasses.replace(protocol, efforts={"quick": effort})
    monkeypatch.setattr(deep, "DEEP", (short,))
    return short


@pytest.mark.filterwarnings("ignore::zoo.infer.UnboundedLikelihood")
def test_deep_beside_the_linear_model(short, tmp_path):
    suite = named_suite("deep")
    own = Own("Mine", guide=lambda model, x: guides.Amortized(model, x, (4,)))
    found = run(suite.with_own(own), tmp_path)
    assert found["method"].to_list() == ["VAE", "factor analysis", "Mine"]
    assert set(found["status"]) == {"done"}
    ours, linear, mine = found.iter_rows(named=True)
    assert ours["epochs"] == 2
    assert -ours["nll"] > ours["elbo"]
    assert ours["nll"] != mine["nll"]
    assert linear["nll"] == pytest.approx(-linear["elbo"])
    model = zoo.FactorAnalysis(30, 5).double()
    data = suite.cases[0].load(0)
    zoo.em(model, data.train.double())
    assert -linear["nll"] == pytest.approx(model.log_marginal(data.test.double()).mean().item())
    assert len(data.test) <= 30
    again = run(suite, tmp_path / "again", methods=["VAE"])
    assert again["nll"].to_list() == found["nll"].to_list()[:1]


def test_every_protocol_has_every_budget_and_every_case_its_settings():
    for protocol in deep.DEEP:
        assert tuple(protocol.efforts) == BUDGETS
    for budget in BUDGETS:
        for case in named_suite("deep", budget).cases:
            assert case.protocol["epochs"] > 0
            assert ("nll" in case.published) == (case.data == ("mnist",))


def test_deep_claims():
    names = [own.name for own in deep.DEEP if own.binarised is None]
    table = pl.DataFrame({"case": names * 2, "method": ["VAE"] * 2 + ["factor analysis"] * 2, "nll": [1.0, 9, 2, 2]})
    assert [claim.held for claim in deep.claims(table, "cpu")] == [True, False]
    assert [claim.held for claim in deep.claims(table, "quick")] == [None, None]
    assert [claim.held for claim in deep.claims(table.head(2), "cpu")] == [None, None]


def test_schedule_of_3280_epochs():
    rate = iwae.staircase(10)
    starts = [10 * (3**i - 1) // 2 for i in range(8)]
    for i, start in enumerate(starts):
        assert rate(start) == pytest.approx(10 ** (-i / 7))
        if start:
            assert rate(start - 1) == pytest.approx(10 ** (-(i - 1) / 7))
    assert rate(10 * 3280 - 1) == rate(10**6) == pytest.approx(0.1)


def test_iwae_methods_on_small_rows(monkeypatch):
    monkeypatch.setattr(iwae, "LATENT", 2)
    monkeypatch.setattr(iwae, "HIDDEN", (4,))
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    data = Data(x, x.round())
    effort = iwae.Effort(10, 40, 40, 30)
    cell = Cell(Case("small", lambda seed: data), 0)
    found = {}
    for method in named_suite("iwae").methods:
        training = dataclasses.replace(method.train, effort=effort)
        run = training(data, cell)
        assert run.steps == 20
        found[method.name] = iwae.measured(run, data, effort)
    assert len(found) == 5
    assert all(-point["nll"] >= point["bound"] and 0 <= point["active"] <= 2 for point in found.values())
    assert len({point["nll"] for point in found.values()}) == 5
    assert type(named_suite("iwae").methods[-1].train.loss(50)) is zoo.infer.IWAE


def test_iwae_claims_and_published_values():
    names = ["VAE, k = 1", "IWAE, k = 5", "IWAE, k = 50"]
    table = pl.DataFrame({"method": names, "nll": [90.0, 89.0, 88.0]})
    assert [claim.held for claim in iwae.claims(table, "cpu")] == [True]
    assert [claim.held for claim in iwae.claims(table, "quick")] == [None]
    assert [claim.held for claim in iwae.claims(table.head(2), "cpu")] == [None]
    assert [claim.held for claim in iwae.claims(table.with_columns(-pl.col("nll")), "cpu")] == [False]
    published = named_suite("iwae", "full").cases[0].published
    assert [published[name, "nll"].value for name in names] == [86.76, 85.54, 84.78]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "iwae"])
@pytest.mark.filterwarnings("ignore::zoo.infer.UnboundedLikelihood")
def test_quick_budget(name, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    found = run(named_suite(name), tmp_path)
    assert set(found["status"]) == {"done"}
    assert all(math.isfinite(value) for value in found["nll"])
