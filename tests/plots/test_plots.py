import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import guides
import zoo
import zoo.infer.run
from zoo import plots
from zoo.algebra.mixture_covariances import KINDS
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


def standard_factors(n, k=2):
    """A run whose posterior means are wherever the rows are, and n rows."""
    model = zoo.PPCA(k + 1, k).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(k + 1, k))
    generator = torch.Generator().manual_seed(0)
    return zoo.Fit(model, guides.Exact(model)), torch.randn(n, k + 1, generator=generator, dtype=torch.float64)


def inside(ax: Axes) -> bool:
    """Whether nothing that the axes draw, legend and ticks included, leaves the figure."""
    figure = ax.get_figure(root=True)
    figure.canvas.draw()
    whole, drawn = figure.bbox, ax.get_tightbbox()
    return drawn.x0 >= -1 and drawn.y0 >= -1 and drawn.x1 <= whole.x1 + 1 and drawn.y1 <= whole.y1 + 1


@pytest.mark.parametrize("classes", [2, 10, 20])
def test_latent_map_tells_every_label_apart(classes):
    run, x = standard_factors(400)
    labels = torch.arange(400) % classes
    names = [f"a long name {j}" for j in range(classes)]
    ax = plots.latent(run, x, labels=labels, label_names=names)
    assert words(ax) == names
    handles = ax.get_legend_handles_labels()[0]
    colours = {tuple(handle.get_facecolor()[0][:3]) for handle in handles}
    assert len(colours) == classes
    assert inside(ax)
    drawn = np.concatenate([part.get_offsets() for part in ax.collections if len(part.get_offsets())])
    assert len(drawn) == 400


def test_latent_map_of_many_rows_says_what_it_leaves_out():
    run, x = standard_factors(60_000)
    ax = plots.latent(run, x, labels=torch.arange(60_000) % 3)
    assert "5,000 of 60,000 rows" in ax.get_xlabel()
    assert sum(len(part.get_offsets()) for part in ax.collections) == 5_000
    ax = plots.latent(run, x)
    assert "density of 60,000 rows" in ax.get_xlabel()
    (cells,) = ax.collections
    assert cells.get_array().sum() == 60_000
    assert inside(ax)


def test_images_are_known_by_the_names_of_their_pixels():
    model = zoo.PPCA(6, 2).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    names = tuple(f"pixel_{i}_{j}" for i in range(2) for j in range(3))
    table = Dataset(x, None, (), names, "toy", "simulated", "CC0")
    run = zoo.em(model, table)
    drawn = [
        plots.traversal(zoo.traverse(run, 0)),  # by the columns that the run remembers
        plots.interpolation(zoo.factors.interpolate(run, 0, 1, x=x)),
        plots.intervention(zoo.factors.intervene(run, x, {0: 1.0})),
        plots.reconstruction(x, zoo.reconstruct(run, x)),
        plots.samples(zoo.generate(run, 8)),
        plots.manifold(run, steps=3),
    ]
    assert all(ax.images and not ax.lines for ax in drawn)
    assert plots.samples(zoo.generate(run, 8), image=False).lines
    other = zoo.em(zoo.PPCA(6, 2).double(), x)
    assert plots.samples(zoo.generate(other, 8)).lines


def test_intervention_shows_before_and_after(run, data):
    found = zoo.factors.intervene(run, data, {0: 2.0})
    ax = plots.intervention(found, rows=[3, 4])
    assert words(ax) == ["row 3", "row 4", "before", "after"]
    assert ax.get_xlabel() == "column, with factor 0 set"
    drawn = np.stack([line.get_ydata() for line in ax.lines])
    expected = torch.stack([found.before[3], found.mean[3], found.before[4], found.mean[4]]).numpy()
    np.testing.assert_allclose(drawn, expected)
    ax = plots.intervention(found, image=(1, 3))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["before", "after"]
    assert ax.get_xlabel() == "row, with factor 0 set"
    assert inside(ax)


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
    mean = run.guide.posterior(data.x).mean.detach().numpy()
    for label in (0, 1):
        shade = to_rgb(plots.PALETTE[label])
        own = [part.get_offsets().data for part in ax.collections if tuple(part.get_facecolor()[0][:3]) == shade]
        drawn = np.concatenate([part for part in own if len(part)])
        expected = mean[data.labels == label]
        np.testing.assert_allclose(drawn[drawn[:, 0].argsort()], expected[expected[:, 0].argsort()], rtol=1e-5)
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


@pytest.mark.parametrize("covariance", KINDS)
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
        "tied_diag": lambda: torch.diag(scale**2).expand(2, 3, 3),
        "tied_spherical": lambda: (scale**2 * torch.eye(3)).expand(2, 3, 3),
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
    with pytest.raises(ValueError, match="but the model has 3 columns"):
        plots.ellipses(model, ax, dims=(0, 3))
    with pytest.raises(ValueError, match="PPCA is not a Gaussian mixture"):
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
        ({"labels": [0, 1]}, "labels has shape (2,), but x has 60 rows"),
        ({"labels": np.arange(60)}, "more than a legend can show"),
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
    with pytest.raises(ValueError, match="known suffix"):
        plots.save(ax, tmp_path / "loss.txt")


# What the model makes of factors.

SIDE = 3
PIXELS = SIDE * SIDE


@pytest.fixture(scope="module")
def pictures():
    """Rows of nine columns and a run on them that nobody has trained."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, PIXELS, generator=generator)
    model = zoo.PPCA(PIXELS, 2)
    with torch.no_grad():
        model.weight = torch.randn(PIXELS, 2, generator=generator)
    return zoo.infer.run.Fit(model, guides.Exact(model)), x


def tiles(ax: Axes, r: int, c: int) -> np.ndarray:
    """The grey of the images of a mosaic (r, c, 3, 3): white is 1."""
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape == (r * (SIDE + 1) - 1, c * (SIDE + 1) - 1, 4)
    return np.array([[canvas[4 * i : 4 * i + 3, 4 * j : 4 * j + 3, 0] for j in range(c)] for i in range(r)])


def grey(values, low, high) -> np.ndarray:
    return np.asarray((values - low) / (high - low))


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


LEVEL = 1 / 255  # of grey


def test_traversal_as_images_is_the_mean(pictures):
    run, x = pictures
    several = [zoo.traverse(run, factor, values=[-1.0, 0.0, 2.0], x=x, rows=[4]) for factor in (0, 1)]
    ax = plots.traversal(several, image=(3, 3))
    means = torch.cat([t.mean for t in several])
    expected = grey(means.reshape(2, 3, 3, 3), means.min(), means.max())
    np.testing.assert_allclose(tiles(ax, 2, 3), expected, atol=LEVEL)
    assert (ticks(ax.yaxis), ticks(ax.xaxis)) == (["factor 0", "factor 1"], ["-1", "0", "2"])
    rows = plots.traversal(zoo.traverse(run, 1, x=x, rows=[4, 7], steps=2), image=True)
    assert ticks(rows.yaxis) == ["row 4", "row 7"]
    assert rows.get_xlabel() == "value of factor 1"
    clipped = plots.traversal(several[0], image=True, limits=(100, 101))
    assert (tiles(clipped, 1, 3) == 0).all()


def test_traversal_as_profiles(run, data):
    found = zoo.traverse(run, 1, x=data, rows=[3], steps=4)
    ax = plots.traversal(found, unit="cm")
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], found.mean[0], rtol=1e-6)
    assert (ticks(ax.xaxis), ax.get_ylabel()) == (["a", "b", "c"], "cm")
    standard = plots.traversal(found, standard=data)
    expected = (found.mean[0] - data.x.mean(0)) / data.x.std(0, correction=0)
    np.testing.assert_allclose([line.get_ydata() for line in standard.lines], expected, rtol=1e-4, atol=1e-5)
    assert standard.get_ylabel() == "deviations from the mean"


def test_interpolation(pictures):
    run, x = pictures
    found = zoo.factors.interpolate(run, 0, 1, steps=3, x=x)
    ax = plots.interpolation(found, image=True)
    expected = grey(found.mean.reshape(1, 3, 3, 3), found.mean.min(), found.mean.max())
    np.testing.assert_allclose(tiles(ax, 1, 3), expected, atol=LEVEL)
    assert ticks(ax.xaxis) == ["0", "0.5", "1"]
    np.testing.assert_allclose([line.get_ydata() for line in plots.interpolation(found).lines], found.mean, rtol=1e-6)


def test_samples(pictures):
    run, _ = pictures
    found = zoo.generate(run, 7)
    ax = plots.samples(found, image=True, across=3)
    shown = found.x[:6]
    expected = grey(shown.reshape(2, 3, 3, 3), shown.min(), shown.max())
    np.testing.assert_allclose(tiles(ax, 2, 3), expected, atol=LEVEL)
    assert tiles(plots.samples(found, image=True), 1, 7).shape == (1, 7, 3, 3)
    lines = [line.get_ydata() for line in plots.samples(found, mean=True).lines]
    np.testing.assert_allclose(lines, found.mean, rtol=1e-6)


def test_reconstruction(pictures):
    run, x = pictures
    found = zoo.reconstruct(run, x)
    ax = plots.reconstruction(x, found, rows=[2, 5], image=True)
    shown = torch.stack([x[[2, 5]], found.mean[[2, 5]]])
    expected = grey(shown.reshape(2, 2, 3, 3), shown.min(), shown.max())
    np.testing.assert_allclose(tiles(ax, 2, 2), expected, atol=LEVEL)
    assert (ticks(ax.yaxis), ticks(ax.xaxis)) == (["data", "mean"], ["2", "5"])
    ax = plots.reconstruction(x, found)
    assert words(ax) == ["row 0", "row 1", "row 2", "data", "mean, sd"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.mean[0], rtol=1e-6)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), x[0], rtol=1e-6)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(float((found.mean[0] + found.variance[0].sqrt()).max()), rel=1e-6)


def test_imputation(pictures):
    run, x = pictures
    gaps = x.clone()
    gaps[3:5, 4] = torch.nan
    found = zoo.impute(run, gaps)
    ax = plots.imputation(gaps, found, truth=x, image=True)
    assert ticks(ax.yaxis) == ["observed", "mean", "sd", "truth"]
    assert ticks(ax.xaxis) == ["3", "4"]
    canvas = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(canvas[1, 1], matplotlib.colors.to_rgba(plots.PALETTE[1]))
    ax = plots.imputation(gaps, found)
    assert words(ax) == ["row 3", "row 4", "observed", "imputed, sd"]
    assert plots.imputation(gaps, found, rows=[0]).lines[1].get_ydata() == pytest.approx(x[0].numpy())
    ax = plots.imputation(gaps, found, truth=x)
    points = next(line for line in ax.lines if line.get_marker() == plots.MARKERS[0])
    np.testing.assert_allclose(points.get_data(), [x[3:5, 4], found.mean[3:5, 4]], rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("true value", "imputed value and sd")


def test_manifold_has_the_quantiles_of_its_factors(pictures):
    run, _ = pictures
    ax = plots.manifold(run, image=True, steps=3)
    place = torch.special.ndtri(torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)).float()
    z = torch.stack([place.repeat(3, 1), place.flip(0).unsqueeze(1).repeat(1, 3)], -1)  # up is more
    mean = (z @ run.model.weight.T + run.model.mean).detach()
    np.testing.assert_allclose(tiles(ax, 3, 3), grey(mean.reshape(3, 3, 3, 3), mean.min(), mean.max()), atol=LEVEL)
    assert ticks(ax.yaxis) == ["1.0", "0.0", "-1.0"]
    ax = plots.manifold(run, column=4, steps=3, factors=(1, 0))
    drawn = np.asarray(ax.collections[0].get_array()).reshape(3, 3)
    swapped = torch.stack([place.unsqueeze(1).repeat(1, 3), place.repeat(3, 1)], -1)
    np.testing.assert_allclose(drawn, (swapped @ run.model.weight.T + run.model.mean)[..., 4].detach(), atol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("factor 1", "factor 0")


def test_probe(run, data):
    found = zoo.factors.probe(run, data, sizes=(20, 4), repeats=3)
    ax = plots.probe(found)
    assert words(ax) == ["on factors z", "on rows x", "most common label"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.z.mean(0).flip(0), rtol=1e-9)
    assert ticks(ax.xaxis) == ["4", "20"]


def test_latent_of_chosen_factors(pictures):
    run, x = pictures
    mean = run.model.posterior(x).mean.detach()
    ax = plots.latent(run, x, factors=(1, 0))
    np.testing.assert_allclose(ax.collections[0].get_offsets(), mean[:, [1, 0]], rtol=1e-5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("factor 1 (posterior mean)", "factor 0 (posterior mean)")
    ax = plots.latent(run, x, factors=1)
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], mean[:, 1], rtol=1e-5)
    for factors, message in (
        ((0, 2), "factors: 2 is out of range, as the model has 2"),
        ((1, 1), "two different numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.latent(run, x, factors=factors)


def test_twenty_labels_differ_in_colour_or_marker():
    from zoo.plots.style import colour, marker

    assert len({(colour(i), marker(i)) for i in range(20)}) == 20
    assert len({marker(i) for i in range(8)}) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda r, x: plots.samples(zoo.generate(r, 3), image=(2, 4)),
            "image=(2, 4) has 8 pixels, but the rows",
        ),
        (lambda r, x: plots.samples(zoo.generate(r, 3), image=(9,)), "image must be (height, width)"),
        (lambda r, x: plots.samples(zoo.generate(r, 3), image=True, limits=(1, 0)), "limits must be two increasing"),
        (lambda r, x: plots.traversal([], image=True), "result is empty"),
        (
            lambda r, x: plots.traversal([zoo.traverse(r, 0), zoo.traverse(r, 1, steps=3)], image=True),
            "traversals with different values or positions",
        ),
        (
            lambda r, x: plots.traversal([zoo.traverse(r, f, x=x) for f in (0, 1)], image=True),
            "several factors from 20 rows each",
        ),
        (lambda r, x: plots.traversal(zoo.traverse(r, 0, x=x)), "20 lines, but profiles show one"),
        (lambda r, x: plots.traversal(zoo.traverse(r, 0), standard=x[:, :2]), "standard has shape (20, 2)"),
        (lambda r, x: plots.traversal(zoo.traverse(r, 0), standard=0 * x), "column 0 of standard is constant"),
        (lambda r, x: plots.reconstruction(x[:5], zoo.reconstruct(r, x)), "result has shape (20, 9), but x has (5, 9)"),
        (
            lambda r, x: plots.reconstruction(x, zoo.reconstruct(r, x), rows=[20]),
            "rows: 20 is out of range, as x has 20",
        ),
        (lambda r, x: plots.imputation(x, zoo.impute(r, x)), "x has no missing entries"),
        (lambda r, x: plots.manifold(r), "pass either image"),
        (
            lambda r, x: plots.manifold(r, image=True, column=1),
            "pass either image, for rows that are images, or column",
        ),
        (lambda r, x: plots.manifold(r, column=9), "column=9, but the rows have 9 columns"),
        (lambda r, x: plots.manifold(r, image=True, factors=(0, 2)), "factors: 2 is out of range, as the model has 2"),
        (lambda r, x: plots.manifold(r, image=True, factors=(1, 1)), "two different numbers"),
    ],
)
def test_decoded_refuses(call, message, pictures):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*pictures)


def test_a_square_is_refused_where_there_is_none(run):
    with pytest.raises(ValueError, match="image=True needs a square image, and 3 is not a square"):
        plots.samples(zoo.generate(run, 2), image=True)


def test_a_mixture_has_no_manifold(data):
    with pytest.raises(ValueError, match="manifold needs factors.*GMM has none"):
        plots.manifold(mixture(data), column=0)


def test_a_pair_without_a_record_of_its_training_has_no_losses(run):
    with pytest.raises(ValueError, match="no record of its training and thus no losses to draw"):
        plots.loss(zoo.Fit(run.model, run.guide))
    ax = plots.latent(zoo.Fit(run.model, run.guide, store=run.store), torch.zeros(5, run.model.data_dim).double())
    assert ax.collections
