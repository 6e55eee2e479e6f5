"""The tables of a factor analysis: loadings, explained variance, and the fit of the model."""

from collections.abc import Iterator

import polars as pl
from torch import Tensor

from zoo.alignment.rotated import Rotations, rotate
from zoo.alignment.symmetry import factors_of
from zoo.alignment.table import by_factor
from zoo.data.dataset import Dataset
from zoo.diagnostics.model.goodness import fit_measures
from zoo.infer.run import Fit

COLUMNS = 200  # the most whose loadings are listed


def factor_tables(run: Fit, x: Tensor | Dataset, rotation: Rotations) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and tables of a linear-Gaussian model; none of other models.

    Args:
        run: the run.
        x: its rows (n, d).
        rotation: of the factors.
    """
    with run.scope():
        linear = factors_of(run) is not None
    if not linear or (x.x if isinstance(x, Dataset) else x).shape[1] > COLUMNS:
        return
    with run.scope():
        found = rotate(run, rotation, columns=x.columns if isinstance(x, Dataset) else None)
        order = pl.Series(by_factor(found))
        yield f"Loadings ({rotation}, standardised)", found.frame()[order]
        if found.oblique:
            yield "Correlations of the factors", found.correlation_frame()
        yield "Variance that the factors explain", found.variance()
        try:
            measures = fit_measures(run, x)
        except ValueError:  # missing entries, or a singular covariance
            return
    yield "Fit of the model's covariance", measures.frame().filter(pl.col("value").is_not_nan())
