"""Loadings with intervals, from the replicates of a bootstrap or the draws of a posterior."""

import math
from dataclasses import dataclass
from typing import Literal

import polars
import torch
from torch import Tensor

from zoo.alignment.orthomax import Rotation
from zoo.base.checks import check_whole

Basis = Literal["fit", "own"]
Source = Literal["bootstrap", "posterior"]


@dataclass(frozen=True, eq=False)
class Loadings:
    """Loadings with replicates: of :func:`bootstrap_loadings`, or draws of :func:`posterior_loadings`.

    Attributes:
        estimate: the loadings of the fit in its canonical rotation (d, k), in float64; of a posterior the mean of the
            replicates.
        replicates: the loadings of the fits to the samples, or of the draws, in the same coordinates (draws, d, k).
        standardised: whether loadings are correlations of columns and factors; else in the units of the columns.
        level: the share of the replicates inside the intervals.
        rotation: the canonical rotation.
        basis: ``"fit"`` or ``"own"``: the coordinates of the replicates, see :func:`bootstrap_loadings`.
        columns: the names of the d columns.
        failed: the number of samples to which no model could be fitted; they are omitted.
        source: ``"bootstrap"``, or ``"posterior"`` of a Bayesian model.
    """

    estimate: Tensor
    replicates: Tensor
    standardised: bool
    level: float
    rotation: Rotation
    basis: Basis
    columns: tuple[str, ...]
    failed: int = 0
    source: Source = "bootstrap"

    @property
    def interval(self) -> Tensor:
        """The limits of the intervals (2, d, k), quantiles of the replicates."""
        edge = (1 - self.level) / 2
        return self.replicates.quantile(torch.tensor([edge, 1 - edge]).to(self.replicates), 0)

    @property
    def deviation(self) -> Tensor:
        """The standard deviations of the replicates (d, k): the standard errors of a bootstrap."""
        return self.replicates.std(0)

    @property
    def sure(self) -> Tensor:
        """Whether the interval of a loading excludes 0 (d, k)."""
        low, high = self.interval
        return (low > 0) | (high < 0)

    def summary(self) -> dict[str, float]:
        """The numbers of columns, factors, replicates and failed samples, and of intervals that exclude 0."""
        d, k = self.estimate.shape
        sizes = {"columns": float(d), "factors": float(k), "replicates": float(len(self.replicates))}
        return sizes | {"failed": float(self.failed), "sure": float(self.sure.sum())}

    def frame(self) -> polars.DataFrame:
        """One row per column and factor: the loading, its standard error, and the limits of its interval."""
        d, k = self.estimate.shape
        low, high = self.interval
        values = {"loading": self.estimate, "se": self.deviation, "low": low, "high": high}
        head = {"column": [name for name in self.columns for _ in range(k)], "factor": list(range(k)) * d}
        return polars.DataFrame(head | {name: value.flatten().tolist() for name, value in values.items()})

    def __repr__(self) -> str:
        d, k = self.estimate.shape
        failed = f", {self.failed} more failed" if self.failed else ""
        turned = "aligned to the fit" if self.basis == "fit" else f"each in its own {self.rotation} rotation"
        origin = (
            f"bootstrap samples {turned}" if self.source == "bootstrap" else "posterior draws aligned to their mean"
        )
        return (
            f"Loadings of {d} columns on {k} factor{'s' * (k != 1)} ({self.rotation}) by {len(self.replicates)} "
            f"{origin}{failed}: the {100 * self.level:g}% intervals of {int(self.sure.sum())} of {d * k} exclude 0"
        )


def check_level(level: float, draws: int) -> None:
    """Check the level of the intervals and the number of replicates behind them.

    Raises:
        ValueError: the level is not in (0, 1), or ``draws`` is below 2 / (1 - level).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    least = math.ceil(2 / (1 - level) - 1e-9)
    if check_whole(draws, "draws") < least:
        raise ValueError(f"draws must be at least {least} for intervals of level {100 * level:g}%, got {draws}")


def scaled(weight: Tensor, noise: Tensor, standardised: bool) -> Tensor:
    """The weight (..., d, k), divided by the columns' standard deviations under the model if ``standardised``.

    Args:
        weight: (..., d, k), of all factors.
        noise: variances (..., d).
        standardised: whether to divide.
    """
    weight = weight.detach().double()
    if not standardised:
        return weight.clone()
    return weight / (noise.detach() + weight.square().sum(-1)).sqrt().unsqueeze(-1)
