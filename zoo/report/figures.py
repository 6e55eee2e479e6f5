"""Which figures a page holds: those of the checks, of the replicated data, and the latent space."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from zoo import plots
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, pictures
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.infer.run import Fit


def figures(
    run: Fit,
    x: Tensor,
    found: Diagnosis,
    fits: PredictiveCheck | None,
    labels: Any,
    label_names: Sequence[str] | None,
    seed: int,
) -> Iterator[Picture]:
    """Title, caption and figure, one after the other.

    Args:
        run: the run.
        x: its rows (n, d).
        found: its diagnosis.
        fits: the check of the model by replicated tables, or None.
        labels: of the rows, or None.
        label_names: of the labels' codes, or None.
        seed: of the draws.
    """
    yield from pictures(found, plots)
    if fits is not None:
        yield Picture(
            "Replicated data",
            "Statistics of the rows beside those of replicated data: how many of the replicates' standard deviations "
            "they are apart.",
            plots.predictive(fits),
        )
    try:
        axes = plots.latent(run, x, labels=labels, label_names=label_names, seed=seed)
    except ValueError:  # a model whose latent sites are not a point per row
        return
    yield Picture("Latent space", "Every row at the mean of its factors, or coloured by its component.", axes)
