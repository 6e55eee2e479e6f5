"""The suite ``aevb``: its curves on small rows, its claims on tables made for them."""

import math

import polars as pl
import pytest
import torch
from matplotlib.figure import Figure

import guides
import zoo
from zoo.benchmark.curves import Curve, bound, log_spaced
from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run
from zoo.benchmark.suite import Case, Cell, Data, Own
from zoo.benchmark.suites import aevb
from zoo.benchmark.suites.aevb_page import claims, draw


def rows(likelihood):
    """60 rows of 6 columns, 20 held out."""
    x = torch.rand(80, 6, generator=torch.Generator().manual_seed(0))
    test = x[60:] if likelihood == "gaussian" else (x[60:] > 0.5).float()
    return Data(x[:60], test, extra={"shown": test})


def case(likelihood, evidence=False):
    protocol = {"likelihood": likelihood, "latent_dim": 2, "hidden": 5, "samples": 2_000, "evidence": evidence}
    protocol["binarised"] = "dynamic" if likelihood == "bernoulli" else ""
    return Case("small", lambda seed: rows(likelihood), protocol)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(aevb, "BATCH", 50)
    effort = aevb.Effort(0, 0, 0, points=4, draws=30, rows=10, chains=2, temperatures=5)
    return lambda loss, **own: aevb.Training(loss, effort, **own)


def test_log_spaced_steps_are_whole_and_end_at_the_last():
    assert log_spaced(10, 1000, 5) == [10, 32, 100, 316, 1000]
    assert log_spaced(10, 5, 5) == [5]


def test_bound_is_log_p_under_the_exact_posterior(iris):
    model = zoo.PPCA(4, 2).double()
    run = zoo.em(model, iris)
    assert bound(run, iris) == pytest.approx(model.log_marginal(iris).mean().item(), abs=1e-9)


def test_curve_measures_when_due(iris):
    seen = []
    curve = Curve([2, 5], 150, lambda fit: seen.append(fit.steps) or {"loss": float(fit.losses[-1])})
    model = zoo.PPCA(4, 2).double()
    zoo.fit(
        model, guides.Amortized(model, iris), iris, steps=5, optim=zoo.infer.Fused(), progress=False, callbacks=[curve]
    )
    assert seen == [2, 5]
    assert [point["samples"] for point in curve.points] == [300, 750]


@pytest.mark.parametrize(
    ("likelihood", "loss"), [("bernoulli", zoo.infer.WakeSleep), ("gaussian", zoo.infer.AnnealedELBO)]
)
def test_curves_of_a_small_case(likelihood, loss, short):
    cell = Cell(case(likelihood, evidence=likelihood == "bernoulli"), seed=1)
    data = cell.case.load(1)
    points, again = (short(loss)(data, cell) for _ in range(2))
    assert points == again
    assert [point["samples"] for point in points] == (
        [500, 2000] if cell.case.protocol["evidence"] else [500, 800, 1250, 2000]
    )
    assert all(point["held_out"] == point["train"] for point in points)  # here the same rows
    if likelihood == "bernoulli":
        assert all(point["evidence"] >= point["iwae"] > point["held_out"] - 1 for point in points)
        assert [point["samples"] for point in points] == [500, 2000]
    else:
        assert [point["samples"] for point in points] == [500, 800, 1250, 2000]


def test_paper_starts_at_wide_weights_and_takes_own_parts(short):
    cell, x = Cell(case("bernoulli"), seed=0), rows("bernoulli")
    model, guide = short(zoo.infer.AnnealedELBO, paper=True)._pair(x, cell)
    weights = torch.cat([p.flatten() for p in (*model.parameters(), *guide.parameters())])
    assert weights.std().item() == pytest.approx(0.1, rel=0.15)
    assert not model.fresh
    suite = named_suite("aevb")
    own = suite.own(Own("Mine", model=lambda d: zoo.VAE(d, 1, (3,), likelihood="bernoulli")))
    model, guide = own.train._pair(x, cell)
    assert (model.latent_dim, type(guide)) == (1, guides.Amortized)
    own = suite.own(Own("Mine", guide=lambda model, x: guides.Amortized(model, x, (), covariance="full")))
    model, guide = own.train._pair(x, cell)
    assert (model.latent_dim, guide.covariance) == (2, "full")


def table(lead=5.0, slope=1.0, far=1.0):
    """A table in which the methods' curves are apart by ``lead``, and the bounds rise with N_z by ``slope``."""
    lines = []
    for name, sizes in (("MNIST", (3, 5, 10, 20, 200)), ("Frey faces", (2, 5, 10, 20))):
        for rank, k in enumerate(sizes):
            for samples in (1_000, 100_000, 200_000):
                value = -100 + samples / 1e5 + slope * min(rank, 3) + (far if k == 200 else 0)
                for method, off in (("AEVB", 0.0), ("wake-sleep", -lead if samples >= 100_000 else 1.0)):
                    lines.append((f"{name}, N_z = {k}", method, samples, value + off, value + off, math.nan))
    for few in ("1,000", "50,000"):
        lines += [(f"MNIST, {few} rows, N_z = 3", "AEVB", 9, 0.0, 0.0, -150.0 + lead)]
        lines += [(f"MNIST, {few} rows, N_z = 3", "wake-sleep", 9, 0.0, 0.0, -150.0)]
    columns = ["case", "method", "samples", "held_out", "train", "evidence"]
    found = pl.DataFrame(lines, schema=columns, orient="row")
    found = found.with_columns(evidence_train=pl.col("evidence"))
    return found.with_columns(seed=pl.lit(0), status=pl.lit("done"))


def held(found, budget="cpu"):
    return [claim.held for claim in claims(found, budget=budget)]


def test_claims():
    assert held(table()) == [True] * 6
    assert held(table(lead=-1.0)) == [True, True, False, True, False, False]
    assert held(table(slope=-1.0)) == [False, True, True, False, True, True]
    assert held(table(far=-3.0)) == [True, False, True, True, True, True]
    assert held(table(), "quick") == [None] * 6
    assert held(table().filter(pl.col("method") == "AEVB")) == [True, True, None, True, None, None]
    assert held(table().filter(pl.col("case") == "none")) == [None] * 6
    assert "1.00 nats" in claims(table(lead=1.0), budget="cpu")[2].figures
    assert "0 of 5 points before" in claims(table(), budget="cpu")[2].figures


def test_figure_has_a_panel_per_case():
    figure = draw(table())
    assert isinstance(figure, Figure)
    assert sum(ax.get_visible() for ax in figure.axes) == 11
    assert all(len(ax.get_lines()) == 4 for ax in figure.axes if ax.get_visible())


@pytest.mark.slow
def test_quick_budget(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    found = run(named_suite("aevb"), tmp_path)
    assert set(found["status"]) == {"done"}
    ends = found.group_by("case", "method", maintain_order=True).last()
    leads = ends.group_by("case", maintain_order=True).agg(pl.col("held_out").first() - pl.col("held_out").last())
    assert (leads["held_out"] > 0).all()
