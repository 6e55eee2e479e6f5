"""The figures of a page: those of the checks, of the predictive check, and of the latent space."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from zoo import plots
from zoo.alignment.aligned_draws import posterior_loadings
from zoo.base.callables import undecorated
from zoo.base.pairs import known_columns
from zoo.base.protocols import HoldsRows
from zoo.data.dataset import Dataset
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, pictures
from zoo.diagnostics.guide.relevance import EffectiveSize
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.factors.decoding import factor_site
from zoo.factors.generation import generate, reconstruct
from zoo.factors.traversal import traverse
from zoo.infer.run import Fit
from zoo.plots.images import image_size
from zoo.posterior.rates import RateDistortion

COLUMNS = 60  # the most whose loadings are drawn
SAMPLES = 40  # images
SHOWN = 10  # reconstructed
TRAVERSED = 6  # factors


def figures_of(
    run: Fit,
    x: Tensor | Dataset,
    diagnosis: Diagnosis,
    predictive: PredictiveCheck | None,
    labels: Any,
    label_names: Sequence[str] | None,
    seed: int,
) -> Iterator[Picture]:
    """Yields every figure with its title and caption.

    Args:
        run: the run.
        x: its rows (n, d); the columns of a data set are named.
        diagnosis: of the run.
        predictive: its predictive check, or None.
        labels: of the rows (n,), or None.
        label_names: names of the label codes, or None.
        seed: of the draws.
    """
    yield from pictures(diagnosis, plots)
    if predictive is not None:
        yield Picture(
            "Replicated data",
            "Statistics of the data minus their mean over replicated data, in standard deviations of the replicates.",
            plots.predictive(predictive),
        )
    yield from _images(run, x, diagnosis, seed)
    yield from _loadings(run, x, diagnosis, seed)
    found = diagnosis.measured.get("collapse")
    k = len(found.variance) if isinstance(found, RateDistortion) else 0
    first, second = sorted(_relevant(diagnosis, k)[:2]) if k > 1 else (0, 1)
    try:
        axes = plots.latent(run, x, labels=labels, label_names=label_names, factors=(first, second), seed=seed)
    except ValueError:  # no latent site with a point per row
        return
    yield Picture(
        "Latent space",
        "The posterior means of two factors of every row, those that tell the rows apart most; for a mixture the rows "
        "coloured by component.",
        axes,
    )


def _images(run: Fit, x: Tensor | Dataset, diagnosis: Diagnosis, seed: int) -> Iterator[Picture]:
    """Samples, reconstructions and traversals of a model of images, as known by the names of the columns."""
    names = known_columns(run, x)
    size = image_size(names)
    if size is None:
        return
    try:
        k = factor_site(run, "draw").shape.numel()
    except (ValueError, TypeError):  # a mixture, or a model without a decoder
        return
    rows = x.x if isinstance(x, Dataset) else x
    yield Picture(
        "Samples",
        "New images from the model: the mean of every image given its factors, which are drawn from the prior.",
        plots.samples(generate(run, SAMPLES, x=rows, seed=seed), mean=True, across=10, columns=names),
    )
    few = rows if isinstance(undecorated(run.guide), HoldsRows) else rows[:SHOWN]
    yield Picture(
        "Reconstructions",
        "The first images of the data, and their means under the model given what the guide infers from them.",
        plots.reconstruction(few, reconstruct(run, few, seed=seed), image=size),
    )
    factors = _relevant(diagnosis, k)
    yield Picture(
        "Traversals",
        "The mean image as one factor goes from -3 to 3 and the others stay at 0: "
        + (
            "all factors."
            if len(factors) == k
            else f"the {len(factors)} factors on which q differs most from the prior."
        ),
        plots.traversal([traverse(run, factor, seed=seed) for factor in factors], image=size),
    )


def _relevant(diagnosis: Diagnosis, k: int) -> list[int]:
    """The numbers of the factors to traverse: those with the largest KL(q || p) or variance, or the first ones."""
    found = diagnosis.measured.get("collapse")
    if not isinstance(found, RateDistortion) or len(found.variance) != k:
        return list(range(min(k, TRAVERSED)))
    weight = found.variance if found.unit_kl is None else found.unit_kl
    return weight.argsort(descending=True, stable=True)[:TRAVERSED].tolist()


def _loadings(run: Fit, x: Tensor | Dataset, diagnosis: Diagnosis, seed: int) -> Iterator[Picture]:
    """The loadings of a Bayesian linear-Gaussian model on the factors that its relevances keep."""
    size = diagnosis.measured.get("collapse")
    if not isinstance(size, EffectiveSize) or size.unit != "factors" or not size.kept:
        return
    if (x.x if isinstance(x, Dataset) else x).shape[1] > COLUMNS:
        return
    try:
        found = posterior_loadings(run, x, factors=size.kept, seed=seed)
    except TypeError:  # the factors of another model
        return
    yield Picture(
        "Loadings",
        "Correlations of columns and factors with their intervals under the guide, in principal axes, on the "
        f"{size.kept} factors in use. Open markers: the interval contains 0. A mean-field guide makes them too narrow.",
        plots.loadings(found),
    )
