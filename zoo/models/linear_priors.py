"""What Bayesian PCA and factor analysis share: hyperparameters, checks, and the density of rows given the rest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.algebra.missing import column_moments, refuse_unobserved_columns
from zoo.algebra.parameter_draws import linear_log_marginal

WIDTH = 100.0  # variance of the prior of a column's mean, in variances of the column


@dataclass(frozen=True)
class LinearPriors:
    """Hyperparameters of a Bayesian linear-Gaussian model.

    Attributes:
        relevance: shape and rate of the Gamma prior on every alpha_k.
        precision: shape and rate of the Gamma prior on every tau.
        mean: location (d,) and precision (d,) of the Gaussian prior on mu; None for a model without mean.
        columns: whether every column has a noise precision of its own.
    """

    relevance: tuple[float, float]
    precision: tuple[float, float]
    mean: tuple[Tensor, Tensor] | None
    columns: bool


def check_gamma(prior: Sequence[float], name: str) -> tuple[float, float]:
    """Shape and rate of a Gamma prior.

    Raises:
        ValueError: they are not two positive numbers; an improper prior has no evidence.
    """
    values = tuple(prior) if isinstance(prior, Sequence) else ()
    numbers = all(isinstance(value, int | float) for value in values)
    if len(values) != 2 or not numbers or not all(0 < value < math.inf for value in values):
        raise ValueError(
            f"{name} must be the shape and the rate of a Gamma prior, two positive numbers such as (1e-3, 1e-3), "
            f"got {prior!r}: an improper prior has no evidence"
        )
    return float(values[0]), float(values[1])


def check_rows_of(x: Tensor, latent_dim: int, model: str) -> None:
    """Refuse data that a Bayesian linear model cannot explain.

    Raises:
        ValueError: a column with fewer than two observed values, at least as many factors as rows, or every column is
            constant.
    """
    refuse_unobserved_columns(x, model)
    if not (column_moments(x)[0] > 0).any():
        raise ValueError(f"every column of x is constant: {model} has nothing to explain, so check the data")
    if latent_dim >= len(x):
        raise ValueError(f"latent_dim={latent_dim} must be below the {len(x)} rows of x: take fewer factors")


def linear_mean(z: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """W z + mu of every row (..., n, d), for factors (..., n, k) and shared draws (..., 1, d, k) and (..., 1, d)."""
    weight = weight.squeeze(-3) if weight.ndim > 2 else weight
    return z @ weight.mT + mean


def place_mean(x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Location and variance (d,) of a broad prior of the columns' means: a hundred times the columns' variances."""
    variance, mean = column_moments(x, weights)
    return mean.to(x), WIDTH * torch.where(variance > 0, variance, torch.ones_like(variance)).to(x)


def linear_families(mean: bool) -> dict[str, str]:
    """The family of q of every site, for a model with or without a mean."""
    found = {"z": "gaussian", "weight": "gaussian", "relevance": "gamma", "precision": "gamma"}
    return {**found, "mean": "normal"} if mean else found


def linear_log_marginal_given(x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    r""":math:`\log p(x_n \mid \theta)` of the observed entries, the factors integrated out, (draws, n).

    Args:
        x: rows (n, d).
        values: draws of ``weight`` (draws, d, k), ``mean`` (draws, d), absent for a model without mean, and
            ``precision`` (draws, d), or (draws,) for one of all columns.
    """
    weight, precision = values["weight"], values["precision"]
    mean = values.get("mean", weight.new_zeros(weight.shape[:2]))
    noise = (1 / precision).reshape(len(weight), -1).expand(weight.shape[:2])
    return linear_log_marginal(x.to(weight), weight, mean, noise)
