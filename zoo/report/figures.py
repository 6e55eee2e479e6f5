"""Which figures a page holds: those that the run and its diagnosis have something to say by."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from zoo import plots
from zoo.base.protocols import Conjugate
from zoo.diagnostics.diagnosis import Diagnosis
from zoo.diagnostics.model.predictive import PredictiveCheck
from zoo.infer.fitting import Fit

Drawn = tuple[str, str, Axes | Figure]


def figures(
    run: Fit,
    x: Tensor,
    found: Diagnosis,
    fits: PredictiveCheck | None,
    labels: Any,
    label_names: Sequence[str] | None,
    seed: int,
) -> Iterator[Drawn]:
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
    optimum = found.evaluation.log_marginal if isinstance(run.model, Conjugate) and found.evaluation else None
    line = "; the line is log p(x) at the fitted parameters, which the bound cannot pass" if optimum is not None else ""
    if len(run.losses):
        yield "Training", f"The bound per row at every step{line}.", plots.loss(run, optimum=optimum)
    if found.evaluation is not None:
        yield (
            "Gap of every row",
            "How far the bound is below log p(x): the Kullback-Leibler divergence of the guide from the posterior.",
            plots.row_gaps(found.evaluation),
        )
        yield (
            "k-hat of every row",
            "The Pareto shape of the importance weights. Above 0.7 the guide misses a part of the posterior; a row at "
            "the bottom has weights that are all equal: there the guide is exact.",
            plots.khat(found.evaluation),
        )
    if found.calibration is not None:
        yield (
            "Calibration",
            f"Where {found.calibration.simulations} simulated truths lie in the guide's posteriors: how far their "
            "distribution is from the uniform one. A calibrated guide stays within the band; a wave that rises first "
            "is that of one too narrow, a curve on one side of 0 that of a bias.",
            plots.ranks(found.calibration),
        )
    if found.calibration is not None and found.calibration.coverage is not None:
        yield (
            "Coverage",
            "How often the guide's central intervals hold the simulated truths, less what they promise.",
            plots.coverage(found.calibration),
        )
    if fits is not None:
        yield (
            "Replicated data",
            "Statistics of the rows beside those of tables that the model brings forth: how many of the replicates' "
            "standard deviations they are apart.",
            plots.predictive(fits),
        )
    try:
        yield (
            "Latent space",
            "Every row at the mean of its factors, or coloured by its component.",
            plots.latent(run, x, labels=labels, label_names=label_names, seed=seed),
        )
    except ValueError:  # a model whose latent sites are not a point per row
        return
