"""The figures of a page: those of the checks, of the predictive check, and of the latent space."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from zoo import plots
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, pictures
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.infer.run import Fit


def figures_of(
    run: Fit,
    x: Tensor,
    diagnosis: Diagnosis,
    predictive: PredictiveCheck | None,
    labels: Any,
    label_names: Sequence[str] | None,
    seed: int,
) -> Iterator[Picture]:
    """Yields every figure with its title and caption.

    Args:
        run: the run.
        x: its rows (n, d).
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
    try:
        axes = plots.latent(run, x, labels=labels, label_names=label_names, seed=seed)
    except ValueError:  # no latent site with a point per row
        return
    yield Picture(
        "Latent space",
        "The posterior mean of the factors of every row; for a mixture the rows coloured by component.",
        axes,
    )
