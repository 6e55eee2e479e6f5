"""The figures of a page: those of the checks, of the predictive check, and of the latent space."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from zoo import plots
from zoo.alignment.aligned_draws import posterior_loadings
from zoo.data.dataset import Dataset
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, pictures
from zoo.diagnostics.guide.relevance import EffectiveSize
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.infer.run import Fit

COLUMNS = 60  # the most whose loadings are drawn


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
    yield from _loadings(run, x, diagnosis, seed)
    try:
        axes = plots.latent(run, x, labels=labels, label_names=label_names, seed=seed)
    except ValueError:  # no latent site with a point per row
        return
    yield Picture(
        "Latent space",
        "The posterior mean of the factors of every row; for a mixture the rows coloured by component.",
        axes,
    )


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
