"""The deep benchmark: its rows, its files, and that it resumes."""

import dataclasses
import math

import polars as pl
import pytest

import zoo
from zoo.benchmark import deep
from zoo.benchmark.deep import DEEP, Budget


@pytest.fixture
def short(monkeypatch):
    """The protocol of a table, for two epochs."""
    protocol = next(p for p in DEEP if "breast_cancer" in p.name)
    budgets = {"quick": Budget(epochs=2, patience=None, draws=30, rows=30)}
    monkeypatch.setattr(deep, "DEEP", (dataclasses.replace(protocol, budgets=budgets),))
    return protocol


@pytest.mark.filterwarnings("ignore::zoo.infer.UnboundedLikelihood")
def test_rows_files_and_resuming(short, tmp_path):
    seen = []
    table = deep.benchmark_deep(tmp_path, seeds=[0, 1], report=seen.append)
    assert [row["seed"] for row in seen] == [0, 1]
    assert table["budget"].to_list() == ["quick"] * 2
    assert (table["elbo"] < table["iwae"]).all()
    assert table["iwae"].is_finite().all()
    assert table["factor_analysis"].is_finite().all()
    assert math.isnan(table["published"][0])
    assert table["epochs"].to_list() == [2.0, 2.0]
    assert table["floor"].to_list() == [0.01, 0.01]
    assert pl.read_csv(tmp_path / "table.csv")["case"].to_list() == [short.name] * 2
    assert f"| {short.name} | quick | 0 |" in (tmp_path / "table.md").read_text()
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["breast-cancer-30-32-5-quick-0", "breast-cancer-30-32-5-quick-1"]
    assert (runs[0] / "curve.png").stat().st_size > 1000
    assert zoo.load(runs[0]).settings["steps"] == len(zoo.load(runs[0]).losses)

    again = []
    deep.benchmark_deep(tmp_path, seeds=[0, 1, 2], report=again.append)
    assert [row["seed"] for row in again] == [2]


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="budget must be one of quick, cpu, full; got 'long'"):
        deep.benchmark_deep(tmp_path, budget="long")
    with pytest.raises(ValueError, match="no protocol has 'cifar' in its name: choose from MNIST"):
        deep.benchmark_deep(tmp_path, only="cifar")


def test_every_protocol_has_every_budget_and_a_source():
    for protocol in DEEP:
        assert tuple(protocol.budgets) == deep.BUDGETS
        assert (protocol.published is None) == (protocol.source == "")
