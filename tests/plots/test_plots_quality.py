"""Figures of the quality of q: what is drawn is what was measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo import plots
from zoo.diagnostics.guide.calibration import Calibration
from zoo.diagnostics.guide.importance import ImportanceMoments
from zoo.posterior.evaluation import Evaluation, SharedTerm


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture
def evaluation() -> Evaluation:
    gap, zero = torch.tensor([0.1, 0.4, 0.2]), torch.zeros(3)
    khat = torch.tensor([0.2, 0.9, -math.inf])
    return Evaluation(-gap, zero, zero, zero, "exact", khat, 500)


@pytest.fixture
def calibration() -> Calibration:
    simulations, units = 200, 2
    u = (torch.arange(simulations).double() + 0.5) / simulations
    pit = torch.stack([u, 0.5 * u], 1)
    held = torch.tensor([[0.5, 1.0], [0.8, 1.0], [0.9, 1.0], [0.95, 1.0]], dtype=torch.float64)
    half = torch.full((units,), 0.5)
    return Calibration(
        units=("z[0]", "z[1]"),
        pit=pit,
        p_values=half,
        symmetry=half,
        likelihood_pit=u,
        likelihood_p_value=0.5,
        bias=torch.zeros(units),
        spread=torch.ones(units),
        levels=(0.5, 0.8, 0.9, 0.95),
        coverage=held,
        coverage_se=torch.full((4, 2), 0.01).double(),
        simulations=simulations,
        draws=99,
        exact=True,
        refitted=False,
        guide="Exact",
    )


def test_row_gaps(evaluation):
    ax = plots.row_gaps(evaluation)
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    np.testing.assert_allclose(sorted(drawn[:, 1]), [0.1, 0.2, 0.4], rtol=1e-6)
    far = next(points for points in ax.collections if points.get_label() == "k-hat above 0.7")
    np.testing.assert_allclose(far.get_offsets(), [[0, 0.4]], rtol=1e-6)
    assert words(ax) == ["k-hat up to 0.7", "k-hat above 0.7", "mean 0.233"]
    assert ax.texts[0].get_text() == "rows 1, 2, 0"
    assert ax.get_ylabel() == "gap, nats"


def test_row_gaps_with_errors(evaluation):
    estimated = replace(evaluation, estimator="IWAE-500", elbo_se=torch.full((3,), 0.01))
    ax = plots.row_gaps(estimated)
    assert "IWAE-500" in ax.get_ylabel()
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose(bars[0], [[0, 0.38], [0, 0.42]], rtol=1e-5)
    with pytest.raises(ValueError, match="the gap of row 1 is nan"):
        plots.row_gaps(replace(evaluation, elbo=torch.tensor([0.0, math.nan, 0.0])))


@pytest.fixture
def together(evaluation):
    """The same rows, which share two sites."""
    shared = SharedTerm(("weight", "scale"), -2.0, 0.1, -10.0, 0.3, -8.5, 0.4, 0.31)
    return replace(evaluation, estimator="IS-500", shared=shared)


def test_row_gaps_given_what_rows_share(together):
    ax = plots.row_gaps(together)
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    np.testing.assert_allclose(sorted(drawn[:, 1]), [0.1, 0.2, 0.4], rtol=1e-6)
    assert words(ax)[-1] == "all rows: 1.5 (se 0.5)"
    assert ax.get_ylabel() == "gap, nats\n(given weight, scale)"


def test_row_gaps_refuses_rows_without_gaps(together):
    unknown = replace(together, khat=torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="there are no gaps per row.*found.shared.gap, is 1.5 nats"):
        plots.row_gaps(unknown)
    ax = plots.khat(unknown)
    assert not ax.collections  # and nothing at the floor
    assert words(ax)[-1] == "weight, scale: 0.31"


def test_khat_of_what_rows_share(together):
    ax = plots.khat(together)
    assert words(ax)[-1] == "weight, scale: 0.31"
    assert ax.lines[-1].get_ydata()[0] == pytest.approx(0.31)


def test_khat(evaluation):
    ax = plots.khat(evaluation)
    assert words(ax) == ["1 of 3 rows above", "1 at the floor", "0.5: finite variance", "0.7: reliable"]
    lines = [line.get_ydata()[0] for line in ax.lines]
    assert lines == [0.5, 0.7]
    floor = next(points for points in ax.collections if points.get_label() == "1 at the floor")
    (row, height), label = floor.get_offsets()[0], ax.get_yticklabels()[0].get_text()
    assert row == 2
    assert height == pytest.approx(ax.get_yticks()[0])
    assert label == "$-\\infty$"
    assert ax.get_ylim()[0] < height


def test_khat_with_the_limit_of_few_draws(evaluation):
    blank = torch.zeros(3, 1)
    parts = (torch.ones(3), blank, blank.unsqueeze(-1), blank, blank, blank.unsqueeze(-1))
    for limit, draws, heights in ((0.5, 100, [0.5]), (2 / 3, 1000, [0.5, 2 / 3]), (0.7, 5000, [0.5, 0.7])):
        ax = plots.khat(ImportanceMoments(evaluation.khat, *parts, limit=limit, draws=draws, units=("z[0]",)))
        assert [line.get_ydata()[0] for line in ax.lines] == heights


def test_khat_of_an_exact_guide(evaluation):
    ax = plots.khat(replace(evaluation, khat=torch.full((3,), -math.inf)))
    assert "3 at the floor" in words(ax)


def test_ranks(calibration):
    ax = plots.ranks(calibration)
    assert words(ax) == ["95% of curves", "z[0]", "z[1]", "likelihood"]
    curves = {line.get_label(): line for line in ax.lines}
    assert np.abs(curves["z[0]"].get_ydata()).max() < 1 / 200 + 1e-9  # evenly spread
    x, y = curves["z[1]"].get_data()
    assert y[np.argmin(np.abs(x - 0.5))] == pytest.approx(0.5)  # all truths in the lower half
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() < -0.05  # a curve of 200 strays by 1.36 / 200 ** 0.5 = 0.096 at most
    assert band[:, 1].min() > -0.11
    with pytest.raises(ValueError, match="level must be a probability"):
        plots.ranks(calibration, level=1.0)


def test_ranks_of_many_units(calibration):
    many = replace(calibration, units=tuple(f"z[{j}]" for j in range(20)), pit=calibration.pit[:, :1].expand(200, 20))
    ax = plots.ranks(many)
    assert words(ax) == ["95% of curves", "20 units", "likelihood"]
    assert len(ax.lines) == 22


def test_coverage(calibration):
    ax = plots.coverage(calibration)
    assert words(ax) == ["nominal", "z[0]", "z[1]"]
    kept = {bar.get_label(): bar for bar in ax.containers}
    np.testing.assert_allclose(kept["z[0]"].lines[0].get_ydata(), 0, atol=1e-9)
    np.testing.assert_allclose(kept["z[1]"].lines[0].get_ydata(), [50, 20, 10, 5])
    bar = kept["z[1]"].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 1], [48, 52])
    with pytest.raises(ValueError, match="is discrete and has no intervals"):
        plots.coverage(replace(calibration, coverage=None, coverage_se=None, units=("component = 0",)))


def test_axes_that_are_given(evaluation, calibration):
    for draw, found in (
        (plots.row_gaps, evaluation),
        (plots.khat, evaluation),
        (plots.ranks, calibration),
        (plots.coverage, calibration),
    ):
        given = Figure().subplots()
        assert draw(found, ax=given) is given
