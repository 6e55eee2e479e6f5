"""Tables of the rows and of the components of a fit."""

import polars
import torch

from zoo import data
from zoo.alignment.canonical import canonical_transform
from zoo.alignment.rotated import RotatedFactors
from zoo.alignment.symmetry import mixture_of
from zoo.base.latent_sites import layout
from zoo.factors.classification import classify
from zoo.factors.decoding import factor_site
from zoo.factors.row_scores import posterior_scores
from zoo.infer.run import Fit


def scores_of(
    run: Fit, table: data.Dataset, rotated: RotatedFactors | None = None, *, seed: int = 0
) -> polars.DataFrame:
    """A line per row with its name or number, and its label if the table has labels.

    Of a mixture the most probable component, the uncertainty and the responsibilities; of a model with factors their
    posterior means and standard deviations.
    """
    if has_components(run, table):
        found = classify(run, table, seed=seed).frame()
        return _labelled(found, table, "given label")
    scores = posterior_scores(run, table, transform=None if rotated is None else rotated.transform, seed=seed)
    return _labelled(scores.frame(), table, "label")


def without_scores(run: Fit, table: data.Dataset) -> str | None:
    """Why the rows have no scores, such as under a model whose sites are all shared; None if they have."""
    if has_components(run, table):
        return None
    try:
        factor_site(run, "a table of scores", decoding=False)
    except ValueError as error:
        return str(error)
    return None


def _labelled(frame: polars.DataFrame, table: data.Dataset, title: str) -> polars.DataFrame:
    """The table with the names of the rows' labels as its last column, if there are any."""
    if table.labels is None:
        return frame
    return frame.with_columns(polars.Series(title, [str(table.label_names[code]) for code in table.labels.tolist()]))


def has_components(run: Fit, table: data.Dataset) -> bool:
    """Whether every row belongs to a component."""
    with run.scope():
        return any(site.name == "component" and site.cardinality for site in layout(run.model, table.x).local)


def components_of(run: Fit, columns: tuple[str, ...]) -> polars.DataFrame | None:
    """A line per component and column of a Gaussian mixture; None for another model.

    With the component's proportion, the mean of the column, and its covariances with all columns. Components are
    numbered as by :func:`zoo.factors.classify`.
    """
    mixture = mixture_of(run.model)
    if mixture is None:
        return None
    order = canonical_transform(run.model).order
    assert order is not None
    order = order.cpu()
    weight, mean, covariance = (part.cpu()[order] for part in (mixture.weight, mixture.mean, mixture.covariance))
    k, d = mean.shape
    names = columns or tuple(f"x{j}" for j in range(d))
    across = covariance.reshape(k * d, d)
    return polars.DataFrame(
        {
            "component": torch.arange(k).repeat_interleave(d).tolist(),
            "proportion": weight.repeat_interleave(d).tolist(),
            "column": list(names) * k,
            "mean": mean.flatten().tolist(),
            **{f"covariance with {name}": across[:, j].tolist() for j, name in enumerate(names)},
        }
    )
