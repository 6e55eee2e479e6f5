"""Posterior collapse of the linear VAE: the suite's numbers against the algebra of PPCA."""

import math

import polars as pl
import pytest
import torch

import guides
from zoo.benchmark.cells import run_cell
from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run, table_of, tasks_of
from zoo.benchmark.spectra import eigenvalues, optimum, simulated
from zoo.benchmark.suite import Own
from zoo.benchmark.suites.linear_vae import CLOSED, DEFAULT
from zoo.models.ppca import PPCA


@pytest.fixture(scope="module")
def quick():
    return named_suite("linear-vae", "quick")


def cells(suite, methods, case, seed=0):
    """The table of some methods on a case."""
    tasks = tasks_of(suite, [seed], case.name, methods, "cpu")
    rows = [run_cell(task) for task in tasks if task.cell.case is case]
    assert [row["status"] for row in rows] == ["done"] * len(methods), rows
    return table_of(suite, iter(rows))


def test_the_simulated_eigenvalues_are_as_stated():
    torch.testing.assert_close(
        eigenvalues(simulated()), 16 * 0.75 ** torch.arange(20, dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("noise", [math.nan, 0.6, 5.0, 40.0])
def test_the_optimum_is_that_of_the_model(noise):
    """Log p(x) and the units' KL, by the model itself at its maximum."""
    x = simulated()
    level, top, unit_kl = optimum(eigenvalues(x), 6, noise)
    model = PPCA(20, 6, noise=level).double()
    model.estimate(x)
    with torch.no_grad():
        assert float(model.log_marginal(x).mean()) == pytest.approx(top, abs=1e-5)
        posterior = model.posterior(x)
        variance = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1)
        kl = 0.5 * (variance + posterior.mean.square() - 1 - variance.log()).mean(0)
    torch.testing.assert_close(kl.sort().values, unit_kl.sort().values, rtol=0, atol=1e-6)
    learned = PPCA(20, 6).double()
    learned.estimate(x)
    if math.isnan(noise):
        assert float(learned.noise[0].detach()) == pytest.approx(level, rel=1e-9)


def test_as_many_units_collapse_as_eigenvalues_are_below_the_noise(quick):
    for case in (quick.cases[2], quick.cases[4]):  # 6 eigenvalues above the noise, and a learned noise
        table = cells(quick, (CLOSED, DEFAULT), case)
        assert table["collapsed"].to_list() == table["expected"].to_list()
        assert table["distance"].abs().max() < 1e-5
        assert table["unit_kl_error"].max() < 1e-3
        assert (table["noise"] / table["expected_noise"] - 1).abs().max() < 1e-4
        assert all(claim.held is not False for claim in quick.claims(table))


def test_claims_follow_the_table(quick):
    table = cells(quick, (CLOSED, DEFAULT), quick.cases[2])
    fixed, learned, tight = quick.claims(table)
    assert (fixed.held, learned.held, tight.held) == (True, None, True)
    wrong = quick.claims(table.with_columns(pl.col("collapsed") + 1, pl.col("distance") + 1))
    assert (wrong[0].held, wrong[2].held) == (False, False)
    assert "6 eigenvalues above the noise" in wrong[0].figures


def test_a_users_guide(quick):
    method = quick.own(Own("Mine", guide=lambda model, x: guides.Amortized(model, x, hidden=())))
    assert all(method.cases(case) for case in quick.cases)
    both = quick.own(Own("Mine", model=lambda d: PPCA(d, 3), guide=lambda model, x: guides.MeanField(model, x)))
    assert all(both.cases(case) == ("learned" in case.name) for case in quick.cases)
    with pytest.raises(ValueError, match="--guide"):
        quick.own(Own("Nothing"))


@pytest.mark.slow
def test_the_quick_budget(quick, tmp_path):
    table = run(quick, tmp_path)
    assert (table["status"] == "done").all()
    assert all(claim.held for claim in quick.claims(table))
    assert quick.draw(table) is not None
