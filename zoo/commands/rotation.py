"""The rotation of a run's factors: one for its tables, figures and draws, which ``zoo transform`` uses again."""

from dataclasses import dataclass, replace
from typing import Any

import polars
import torch
from torch import Tensor

from zoo.alignment.canonical import canonical_rotation
from zoo.alignment.coordinates import NewCoordinates
from zoo.alignment.loadings import scaled
from zoo.alignment.symmetry import Factors, factors_of
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike
from zoo.base.pairs import known_columns, rows_of
from zoo.base.protocols import ConjugateGivenShared
from zoo.factors.decoding import factor_site
from zoo.infer.run import Fit
from zoo.posterior.engine import reader, reading

DRAWS = 500  # of the loadings of a Bayesian model, for their mean


@dataclass(frozen=True, eq=False)
class Rotated:
    """The factors of a linear-Gaussian model in a rotation.

    Attributes:
        rotation: its name.
        transform: T (k, k); the factors of a row become ``z @ T``.
        pattern: loadings of the standardised columns (d, k).
        uniqueness: the share of every column's variance that is noise (d,).
        columns: the names of the d columns.
    """

    rotation: str
    transform: Tensor
    pattern: Tensor
    uniqueness: Tensor
    columns: tuple[str, ...]

    def loadings(self) -> polars.DataFrame:
        """A line per column: its name, its loadings, communality and uniqueness."""
        factors = {f"factor {j}": self.pattern[:, j].tolist() for j in range(self.pattern.shape[1])}
        rest = {"communality": (1 - self.uniqueness).tolist(), "uniqueness": self.uniqueness.tolist()}
        return polars.DataFrame({"column": list(self.columns), **factors, **rest})

    def variance(self) -> polars.DataFrame:
        """A line per factor: the variance it explains in columns, its share of all variance, and the cumulative one."""
        squares = self.pattern.square().sum(0)
        share = squares / len(self.pattern)
        values = {"sum_of_squares": squares, "proportion": share, "cumulative": share.cumsum(0)}
        names = {"factor": [f"factor {j}" for j in range(len(squares))]}
        return polars.DataFrame(names | {name: value.tolist() for name, value in values.items()})


def rotate(run: Fit, x: ArrayLike, rotation: str) -> Rotated | None:
    """The factors of a run in a rotation; None where the model is not linear-Gaussian, so that it has none.

    Those of a Bayesian model are at the means of loadings and noise variances under the guide.
    """
    factors = factors_of(run) or _mean_factors(run, x)
    if factors is None:
        return None
    factors = Factors(factors.weight.cpu(), factors.noise.cpu())
    turn = canonical_rotation(factors, rotation)  # type: ignore[arg-type]
    pattern = scaled(factors.weight @ turn, factors.noise, True)
    uniqueness = factors.noise / (factors.noise + factors.weight.square().sum(1))
    columns = known_columns(run, x) or tuple(f"x{j}" for j in range(len(pattern)))
    return Rotated(rotation, turn, pattern, uniqueness, columns)


def check_rotated(run: Fit, found: Rotated | None, rotation: str | None) -> None:
    """Refuse a rotation that was asked for a model without one.

    Raises:
        ValueError: the model is not linear-Gaussian.
    """
    if found is None and rotation is not None:
        raise ValueError(
            f"--rotation is for linear models (PPCA, FactorAnalysis, and their Bayesian kinds): the likelihood of "
            f"{name_of(run.model)} does change when its factors are rotated"
        )


def in_coordinates(run: Fit, found: Rotated | None) -> Fit:
    """The run with its guide in the rotated coordinates, for pictures of the factors; its model is as it was."""
    if found is None:
        return run
    turn = found.transform.to(next((p for p in _parameters(run)), found.transform))
    site = factor_site(run, "rotate", decoding=False).name
    return replace(run, guide=NewCoordinates(site, turn)(run.guide))


def _parameters(run: Fit) -> Any:
    inner: Any = undecorated(run.model)
    return inner.parameters() if isinstance(inner, torch.nn.Module) else iter(())


def _mean_factors(run: Fit, x: ArrayLike) -> Factors | None:
    """The posterior means of weight (d, k) and noise variances (d,) of a Bayesian linear model; None for others."""
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
    d = data.shape[1]
    if weight.shape[1] != d or precision.shape not in ((DRAWS,), (DRAWS, d)):
        return None
    noise = (1 / precision).reshape(DRAWS, -1).expand(DRAWS, d)
    return Factors(weight.mean(0), noise.log().mean(0).exp())
