import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
from zoo import plots
from zoo.data import Dataset


@pytest.fixture(scope="module")
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    x = torch.randn(60, 3, generator=generator) + 4.0 * labels.unsqueeze(-1)
    return Dataset(x, labels, ("low", "high"), ("a", "b", "c"), "toy", "simulated", "CC0")


@pytest.fixture(scope="module")
def run(data):
    model = zoo.FactorAnalysis(3, 2)
    guide = guides.Amortized(model, data.x, hidden=())
    return zoo.fit(model, guide, data.x, steps=60, loss=Trace_ELBO(), validation=data.x, progress=False)


def mixture(data, covariance="full", guide=guides.Exact):
    model = zoo.GMM(3, 2, covariance)
    built = guide(model) if guide is guides.Exact else guide(model, data.x)
    return zoo.fit(model, built, data.x, steps=10, progress=False)


def words(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_loss(run, data):
    best = run.model.log_marginal(data.x)
    ax = plots.loss(run, optimum=best)
    assert words(ax) == ["training", "validation", "log marginal"]
    line = next(line for line in ax.lines if line.get_label() == "log marginal")
    assert line.get_ydata()[0] == pytest.approx(best.mean().item(), rel=1e-6)
    assert ax.get_ylim()[0] < best.mean() < ax.get_ylim()[1]
    assert ax.get_xscale() == "log"
    assert "nats per row" in ax.get_ylabel()


def test_loss_shows_the_running_mean(run):
    line = next(line for line in plots.loss(run).lines if line.get_label() == "training")
    tail = -run.losses[-6:].mean().item()  # the last tenth of 60 steps
    assert line.get_ydata()[-1] == pytest.approx(tail, rel=1e-9)


def test_loss_refuses(run):
    with pytest.raises(ValueError, match="optimum must be finite"):
        plots.loss(run, optimum=float("nan"))


def test_latent_means_and_labels(run, data):
    ax = plots.latent(run, data)
    assert words(ax) == ["low", "high"]
    drawn = np.concatenate([points.get_offsets() for points in ax.collections])
    mean = run.guide.posterior(data.x).mean.detach().numpy()
    expected = np.concatenate([mean[data.labels == 0], mean[data.labels == 1]])
    np.testing.assert_allclose(drawn, expected, rtol=1e-5)
    assert not words(plots.latent(run, data.x))
    assert words(plots.latent(run, data.x, labels=["u", "v"] * 30)) == ["u", "v"]


def test_latent_of_an_autoguide_takes_draws(data):
    model = zoo.PPCA(3, 1)
    run = zoo.fit(model, AutoNormal(model), data.x, steps=20, progress=False)
    before = torch.get_rng_state()
    plots.latent(run, data.x)  # against the row
    ax = plots.latent(run, data)  # a histogram
    assert torch.equal(before, torch.get_rng_state())
    assert sum(bar.get_height() for bar in ax.patches) == 60
    assert words(ax) == ["low", "high"]


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_mixture_has_its_ellipses(covariance, data):
    run = mixture(data, covariance)
    ax = plots.latent(run, data)
    drawn = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    assert len(drawn) == 4  # two components, 1 and 2 sd
    assert words(ax) == ["component 0", "component 1", "low", "high"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    scale = run.model.scale.detach()
    covariances = {
        "full": lambda: scale @ scale.mT,
        "tied": lambda: (scale @ scale.T).expand(2, 3, 3),
        "diag": lambda: torch.diag_embed(scale**2),
        "spherical": lambda: scale[:, None, None] ** 2 * torch.eye(3),
    }[covariance]()
    for j in range(2):
        inner = drawn[2 * j]
        turn = np.radians(inner.angle)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        rebuilt = rotation @ np.diag([(inner.width / 2) ** 2, (inner.height / 2) ** 2]) @ rotation.T
        np.testing.assert_allclose(rebuilt, covariances[j, :2, :2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(inner.center, run.model.mean[j, :2].detach(), rtol=1e-6)


def test_mixture_without_closed_guide(data):
    run = mixture(data, guide=guides.MeanField)
    ax = plots.latent(run, data.x)
    assert words(ax) == ["component 0", "component 1"]
    assert ax.get_xlabel() == "x0"


def test_ellipses_in_other_columns(data):
    model = mixture(data, "diag").model
    ax = plots.ellipses(model, Figure().subplots(), dims=(2, 1), sds=(1,))
    np.testing.assert_allclose(ax.patches[0].center, model.mean[0, [2, 1]].detach(), rtol=1e-6)
    with pytest.raises(ValueError, match="the model has 3 columns"):
        plots.ellipses(model, ax, dims=(0, 3))
    with pytest.raises(ValueError, match="PPCA is no Gaussian mixture"):
        plots.ellipses(zoo.PPCA(3, 1), ax)


def test_gap():
    ax = plots.gap({"MeanField": torch.tensor([0.1, 0.3]), "Exact": torch.zeros(2)})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["MeanField", "Exact"]
    assert "nats per row" in ax.get_xlabel()
    wide = plots.gap({"MeanField": torch.tensor([0.1, 0.3]), "FullRank": torch.tensor([1e-5, -1e-6])})
    assert wide.get_xscale() == "symlog"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "rows is empty"),
        ({"q": torch.zeros(0)}, "gaps of 'q' have shape (0,)"),
        ({"q": torch.tensor([0.0, torch.nan])}, "gap of 'q' in row 1"),
    ],
)
def test_gap_refuses(rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.gap(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1]}, "labels has shape (2,), and x 60 rows"),
        ({"labels": np.arange(60)}, "more than a legend holds"),
        ({"labels": np.arange(60) % 3, "label_names": ["u", "v"]}, "from 0 to 1"),
    ],
)
def test_latent_refuses(arguments, message, run, data):
    with pytest.raises(ValueError, match=re.escape(message)):
        plots.latent(run, data.x, **arguments)


def test_leaves_no_trace(run, data, tmp_path):
    settings = dict(matplotlib.rcParams)
    for _ in range(25):  # pyplot would warn at 21
        ax = plots.loss(run)
    assert dict(matplotlib.rcParams) == settings
    given = Figure().subplots()
    assert plots.latent(run, data, ax=given) is given
    assert plots.gap({"q": torch.ones(3)}, ax=given) is given
    path = plots.save(ax, tmp_path / "new" / "loss.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert plots.save(ax.figure, tmp_path / "loss.pdf").stat().st_size > 1000
    with pytest.raises(ValueError, match="known format"):
        plots.save(ax, tmp_path / "loss.txt")
