"""The rotation of a run's factors: one for its tables, figures and draws, which ``zoo transform`` uses again."""

from dataclasses import replace
from typing import Any

import torch

from zoo.alignment.coordinates import NewCoordinates
from zoo.alignment.correlated import in_oblique_coordinates
from zoo.alignment.rotated import RotatedFactors, rotate
from zoo.alignment.symmetry import Alignment, factors_of
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike
from zoo.base.pairs import known_columns, rows_of
from zoo.base.protocols import ConjugateGivenShared
from zoo.factors.decoding import factor_site
from zoo.infer.run import Fit
from zoo.models.factor_analysis import FactorAnalysis
from zoo.posterior.engine import reader, reading

DRAWS = 500  # of the loadings of a Bayesian model, for their mean


def rotate_run(run: Fit, x: ArrayLike, rotation: str | None) -> RotatedFactors | None:
    """The factors of a run in a rotation, by default principal; None where the model is not linear-Gaussian.

    Those of a Bayesian model are at the means of loadings and noise variances under the guide.

    Raises:
        ValueError: a rotation is given, and the model has none.
    """
    fitted = run if factors_of(run) is not None else _mean_model(run, x)
    if fitted is None and rotation is not None:
        raise ValueError(
            f"--rotation is for linear models (PPCA, FactorAnalysis, and their Bayesian kinds): the likelihood of "
            f"{name_of(run.model)} does change when its factors are rotated"
        )
    if fitted is None:
        return None
    found = rotate(fitted, rotation or "principal")  # type: ignore[arg-type]
    return replace(found, columns=known_columns(run, x) or found.columns)


def with_turned_guide(run: Fit, found: RotatedFactors | None) -> Fit:
    """The run with its guide in the rotated coordinates, for pictures of the factors; its model is as it was."""
    if found is None:
        return run
    inner: Any = undecorated(run.model)
    like = next(iter(inner.parameters()), None) if isinstance(inner, torch.nn.Module) else None
    turn = found.transform if like is None else found.transform.to(like)
    return replace(run, guide=NewCoordinates(factor_site(run, "rotate", decoding=False).name, turn)(run.guide))


def in_coordinates(run: Fit, found: RotatedFactors | None) -> Fit:
    """The run with its factors rotated, in model and guide, for its draws; as it is where loadings are sites."""
    if found is None or (factors := factors_of(run)) is None:
        return run
    if found.oblique:
        return in_oblique_coordinates(run, found.transform)
    return Alignment(rotation=found.transform.to(factors.weight)).apply(run)


def _mean_model(run: Fit, x: ArrayLike) -> FactorAnalysis | None:
    """Factor analysis at the posterior means of weight (d, k) and noise (d,) of a Bayesian linear model; else None."""
    model, data = undecorated(run.model), rows_of(run, x)
    if not isinstance(model, ConjugateGivenShared):
        return None
    with reading(run, 0):
        source = reader(run, data)
        _, arguments = next(source.chunks(1))  # the shared sites do not need the other rows
        values = source.draw(arguments, DRAWS, points=True).values
    if not {"weight", "precision"} <= set(values) or values["weight"].ndim != 3:
        return None
    weight, precision = values["weight"].double(), values["precision"].double()
    d, k = weight.shape[1:]
    if d != data.shape[1] or precision.shape not in ((DRAWS,), (DRAWS, d)):
        return None
    noise = (1 / precision).reshape(DRAWS, -1).expand(DRAWS, d)
    found = FactorAnalysis(d, k, floor=0.0).double()
    with torch.no_grad():
        found.weight = weight.mean(0).cpu()
        found.scale = noise.log().mean(0).exp().sqrt().cpu()
    found.requires_grad_(False)
    return found
