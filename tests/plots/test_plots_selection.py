"""Figures of model choice and model checks: what is drawn is what the numbers say."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import guides
import zoo
from zoo import plots
from zoo.alignment import Loadings
from zoo.diagnostics import Candidate, PredictiveCheck, Selection
from zoo.posterior.evidence import Bound, Bounds
from zoo.posterior.rates import RateDistortion

GALLERY = Path(__file__).parents[2] / "notebooks" / "04_gallery.ipynb"


def words(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax, label):
    """What was drawn under a label, as (points, 2)."""
    found = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    assert found, f"nothing is labelled {label!r}: {[line.get_label() for line in ax.lines]}"
    return np.concatenate([np.stack(line.get_data(), 1).astype(float) for line in found])


@pytest.fixture
def scanned():
    log_p = torch.tensor([-2.0, -3.0, -4.0, -3.0]).double()
    rows = (
        Candidate(1, log_likelihood=-14.0, df=2, aic=32.0, bic=36.0, log_p=log_p, best=object()),
        Candidate(2, log_likelihood=-10.0, df=4, aic=28.0, bic=38.0, log_p=log_p + 1.0, best=object()),
        Candidate(3, error="a component has collapsed"),
        Candidate(4, log_likelihood=-9.0, df=6, aic=30.0, bic=40.0, error="fold 1: collapsed", best=object()),
    )
    return Selection(rows, 4, "2 folds")


def test_scan(scanned):
    ax = plots.selection(scanned)
    bars = {str(bar.get_label()): np.stack(bar.lines[0].get_data(), 1) for bar in ax.containers}
    np.testing.assert_allclose(bars["held out: best 2"], [[1, -3.0], [2, -2.0]])
    np.testing.assert_allclose(bars["AIC: best 2"], [[1, -4.0], [2, -3.5], [4, -3.75]])
    np.testing.assert_allclose(bars["BIC: best 1"], [[1, -4.5], [2, -4.75], [4, -5.0]])
    rings = [tuple(line.get_data()) for line in ax.lines if line.get_markersize() == 9]
    assert [(int(x[0]), float(y[0])) for x, y in rings] == [(2, -2.0), (2, -3.5), (1, -4.5)]
    assert lines(ax, "failed")[:, 0].tolist() == [3, 4]
    assert {"failed", "failed, held out"} <= set(words(ax))


def test_bars_of_a_scan_are_errors_of_differences(scanned):
    """The rows differ by 1 each, without spread: no error, though the rows themselves spread."""
    ax = plots.selection(scanned)
    held_out = next(bar for bar in ax.containers if str(bar.get_label()).startswith("held out"))
    heights = [segment[1, 1] - segment[0, 1] for segment in held_out.lines[2][0].get_segments()]
    np.testing.assert_allclose(heights, 0.0, atol=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_bounds(exact):
    one, zero = torch.full((2,), -3.0), torch.zeros(2)
    rungs = [Bound("ELBO", one, zero), Bound("IWAE-10", one + 0.5, zero), Bound("AIS", one + 0.75, zero)]
    if exact:
        rungs.append(Bound("exact", one + 1.0, zero))
    ax = plots.bounds(Bounds(tuple(rungs), torch.full((2,), 5.0), 10))
    drawn = ax.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, [-3.0, -2.5, -2.25])
    said = [text.get_text() for text in ax.texts]
    assert said == (["-1", "-0.5", "-0.25"] if exact else ["-0.75", "-0.25"])
    assert ("log p(x)" in words(ax)) == exact


@pytest.fixture
def known():
    return RateDistortion(
        rate=1.0,
        distortion=2.0,
        mutual_information=0.5,
        marginal_kl=0.5,
        rate_se=0.0,
        distortion_se=0.0,
        mutual_information_se=0.0,
        marginal_kl_se=0.0,
        unit_kl=torch.tensor([0.001, 0.7, 0.2]),
        variance=torch.tensor([1e-4, 0.9, 0.5]),
        threshold=0.01,
        draws=10,
        count=100,
    )


def test_relevance(known):
    ax = plots.relevance(known)
    ends = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    np.testing.assert_allclose(ends, [(0, 0.01, 0.9), (1, 0.01, 0.5), (2, 0.01, 1e-4)], rtol=1e-6, atol=1e-9)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "0"]
    assert words(ax) == ["threshold 0.01", "2 active", "1 collapsed"]
    ax = plots.relevance(known, by="kl")
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.7, 0.2, 0.001], rtol=1e-6)
    with pytest.raises(ValueError, match="by must be one of variance, kl"):
        plots.relevance(known, by="rate")


@pytest.fixture
def replicated():
    generator = torch.Generator().manual_seed(0)
    replicates = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    points = torch.linspace(0.1, 0.9, 5).double()
    band = torch.stack([points - 0.1, points + 0.1]).unsqueeze(-1).expand(2, 5, 2)
    marginal = torch.stack([points, points + torch.tensor([0, 0, 0.5, 0.5, 0])], 1)
    return PredictiveCheck(
        statistics=("mean", "mean", "correlation"),
        where=("a", "b", "a, b"),
        observed=torch.tensor([0.0, 5.0, -4.0]).double(),
        replicates=replicates,
        level=0.95,
        given="prior",
        columns=("a", "b"),
        points=points,
        marginal=marginal,
        band=band,
    )


def test_predictive(replicated):
    ax = plots.predictive(replicated)
    outside, inside = lines(ax, "outside: 2 of 3"), lines(ax, "inside: 1")
    far = replicated.distance.tolist()
    np.testing.assert_allclose(outside[:, 0], [far[1], far[2]])  # the farthest first
    np.testing.assert_allclose(inside[:, 0], [far[0]])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["mean b", "corr. a, b", "mean a"]
    ax = plots.predictive(replicated, most=1)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["mean b"]
    with pytest.raises(ValueError, match="most must be a whole number"):
        plots.predictive(replicated, most=0)


def test_marginals(replicated):
    ax = plots.marginals(replicated, "b")
    assert lines(ax, "outside: 2")[:, 0].tolist() == pytest.approx([0.5, 0.7])
    assert ax.get_xlabel() == "b: quantiles of the replicates"
    assert "inside: 5 of 5 quantiles" in words(plots.marginals(replicated, 0))
    with pytest.raises(ValueError, match="no column 'c', only a, b"):
        plots.marginals(replicated, "c")
    with pytest.raises(ValueError, match="column=2, but the rows have 2 columns"):
        plots.marginals(replicated, 2)


def test_scree(iris):
    """At the maximum the bars end at the eigenvalues; for PPCA these are the covariance's own."""
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, iris)
    ax = plots.scree(model, iris)
    values = np.linalg.eigvalsh(np.cov(iris.numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(lines(ax, "rows")[:, 1], values, rtol=1e-6)
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(tops, values[:2], rtol=1e-4)
    np.testing.assert_allclose(lines(ax, "noise")[0, 1], values[2:].mean(), rtol=1e-4)
    with pytest.raises(TypeError, match="GMM has components, not factors"):
        plots.scree(zoo.GMM(4, 2).double(), iris)
    holes = iris.clone()
    holes[0, 0] = torch.nan
    with pytest.raises(ValueError, match="missing entries"):
        plots.scree(model, holes)


def test_loadings():
    estimate = torch.tensor([[0.9, 0.1], [0.2, -0.8]], dtype=torch.float64)
    shift = torch.linspace(-0.15, 0.15, 41).double().reshape(-1, 1, 1)
    found = Loadings(estimate, estimate + shift, True, 0.95, "varimax", "fit", ("a", "b"), 0)
    ax = plots.loadings(found)
    open_marks = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [float(value) for line in open_marks for value in line.get_xdata()] == [0.1]  # its interval holds 0
    spans = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in ax.collections])
    np.testing.assert_allclose(spans.mean(1), estimate.T.flatten(), atol=1e-12)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert words(plots.loadings(found, factors=[1])) == ["factor 1", "0 inside"]
    for wrong in ([2], [], [0, 0]):
        with pytest.raises(ValueError, match="factors must be different numbers of the 2 factors"):
            plots.loadings(found, factors=wrong)


def test_responsibilities():
    data = zoo.data.load("faithful", dtype=torch.float64)
    model = zoo.GMM(2, 2).double()
    run = zoo.fit(model, guides.Exact(model), data, progress=False)
    ax = plots.responsibilities(run, data)
    shares = model.posterior(data.x).probs.detach()
    heights = [patch.get_data() for patch in ax.patches]
    np.testing.assert_allclose(sum((step.values - step.baseline).sum() for step in heights), len(data), rtol=1e-9)
    for j, step in enumerate(heights):
        np.testing.assert_allclose((step.values - step.baseline).sum(), float(shares[:, j].sum()), rtol=1e-6)
    assert sorted(int(text.get_text()) for text in ax.texts) == sorted(shares.argmax(1).bincount().tolist())
    linear = zoo.PPCA(2, 1).double()
    with pytest.raises(ValueError, match="PPCA has no discrete component per row"):
        plots.responsibilities(zoo.fit(linear, guides.Exact(linear), data, steps=2, progress=False), data)


def test_gaps_at_rounding_are_drawn_as_none(iris):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(model, guides.Exact(model), iris, progress=False)
    ax = plots.row_gaps(zoo.evaluate(run, iris, draws=30))
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() == ""
    drawn = np.concatenate([points.get_offsets()[:, 1] for points in ax.collections])
    assert np.abs(drawn).max() == 0


def test_every_plot_is_in_the_gallery():
    cells = nbformat.read(GALLERY, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    names = [name for name in plots.__all__ if callable(getattr(plots, name))]
    assert [name for name in names if f"plots.{name}(" not in code] == []
    shown = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert shown >= len(names) - 1
