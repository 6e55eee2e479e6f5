r"""Coordinate ascent for linear-Gaussian models with priors on everything: what the Bayesian PCA and FA share.

.. math:: x_{nd} \sim N(w_d \cdot z_n + \mu_d, \tau_d^{-1}), \quad z_n \sim N(0, I_K), \quad
          w_d \sim N(0, \mathrm{diag}(\alpha)^{-1}), \quad \mu_d \sim N(m_0, \beta^{-1})

with Gamma priors on :math:`\alpha_k` and :math:`\tau_d`, and
:math:`q = q(Z)\, q(W)\, q(\mu)\, q(\alpha)\, q(\tau)`, the first two with a full covariance per row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.algebra.exponential_families import LOG_TWO_PI, GammaFactor, GaussianFactor
from zoo.algebra.missing import column_moments, refuse_unobserved_columns

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
    values = tuple(prior)
    if len(values) != 2 or not all(0 < value < math.inf for value in values):
        raise ValueError(f"{name} must be the shape and the rate of a Gamma prior, both positive, got {prior!r}")
    return float(values[0]), float(values[1])


def check_rows_of(x: Tensor, latent_dim: int, model: str) -> None:
    """Refuse data that a Bayesian linear model cannot explain.

    Raises:
        ValueError: a column with fewer than two observed values, or at least as many factors as rows.
    """
    refuse_unobserved_columns(x, model)
    if latent_dim >= len(x):
        raise ValueError(f"latent_dim={latent_dim} must be below the {len(x)} rows of x: take fewer factors")


def linear_mean(z: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """W z + mu of every row (..., n, d), for factors (..., n, k) and shared draws (..., 1, d, k) and (..., 1, d)."""
    weight = weight.squeeze(-3) if weight.ndim > 2 else weight
    return z @ weight.mT + mean


def place_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Location and variance (d,) of a broad prior of the columns' means: a hundred times the columns' variances."""
    variance, mean = column_moments(x)
    return mean.to(x), WIDTH * torch.where(variance > 0, variance, torch.ones_like(variance)).to(x)


@dataclass(frozen=True, eq=False)
class Rows:
    """The data as the sweeps see them, in float64.

    Attributes:
        filled: rows (n, d), 0 where missing; None where ``scatter`` says all.
        observed: 1 where an entry is there (n, d); None where none is missing.
        count: observed entries of every column (d,).
        mean: their mean (d,).
        scatter: sum of (x - mean)(x - mean)' (d, d), where nothing is missing.
        n: the number of rows.
    """

    filled: Tensor
    observed: Tensor | None
    count: Tensor
    mean: Tensor
    scatter: Tensor | None
    n: int

    @classmethod
    def of(cls, x: Tensor) -> "Rows":
        """The rows ``x`` (n, d), NaN where missing."""
        x = x.double()
        missing = x.isnan()
        n = len(x)
        if not missing.any():
            mean = x.mean(0)
            centred = x - mean
            return cls(x, None, mean.new_full(mean.shape, n), mean, centred.mT @ centred, n)
        observed = (~missing).double()
        filled = x.nan_to_num(0.0)
        count = observed.sum(0)
        return cls(filled, observed, count, filled.sum(0) / count, None, n)


@dataclass(frozen=True, eq=False)
class Inner:
    """What the other factors need of q(Z), summed over the rows.

    Attributes:
        first: sum of E[z] over the rows that observe a column (d, k).
        second: sum of E[z z'] over the rows that observe a column: (d, k, k), or (k, k) where nothing is missing.
        cross: sum of (x - E[mu]) E[z]' over the observed entries (d, k).
        whole: sum of E[z z'] over all rows (k, k).
        entropy: of q(Z).
    """

    first: Tensor
    second: Tensor
    cross: Tensor
    whole: Tensor
    entropy: Tensor


@dataclass(frozen=True, eq=False)
class LinearMap:
    """q(Z) where nothing is missing: E[z] = A'(x - centre), and one covariance for all rows.

    Attributes:
        pull: A (d, k).
        covariance: V (k, k).
        centre: the E[mu] at which it was the optimum (d,).
    """

    pull: Tensor
    covariance: Tensor
    centre: Tensor

    def turned(self, rotation: Tensor) -> "LinearMap":
        """q of R z."""
        return LinearMap(self.pull @ rotation.mT, rotation @ self.covariance @ rotation.mT, self.centre)

    def factor(self, x: Tensor) -> GaussianFactor:
        """q of the factors of the rows ``x`` (n, d)."""
        return GaussianFactor((x - self.centre) @ self.pull, self.covariance)


class LinearAscent:
    """The factors of q and the sweeps over them.

    Args:
        x: rows (n, d); NaN where an entry is missing at random.
        latent_dim: K.
        priors: of the model.
        generator: of the random start of W; q(Z) is updated first, so that it needs none. (A start of z at the prior's
            mean would kill W for good.)
    """

    order = ("z", "weight", "mean", "relevance", "precision")

    def __init__(self, x: Tensor, latent_dim: int, priors: LinearPriors, generator: torch.Generator) -> None:
        self.rows = Rows.of(x)
        self.priors = priors
        d, k = self.rows.filled.shape[1], latent_dim
        like = self.rows.mean
        variance = self._squares(like).sum() / self.rows.count.sum()
        unit = variance.sqrt()
        start = torch.randn(d, k, generator=generator, dtype=torch.float64).to(like) * unit
        self.weight = GaussianFactor(start, torch.zeros(k, k).to(like))
        self.relevance = GammaFactor(like.new_ones(k), variance.expand(k))
        size = d if priors.columns else 1
        self.precision = GammaFactor(like.new_ones(size), variance.expand(size))
        self.mean: GaussianFactor | None = None
        if priors.mean is not None:
            self.mean = GaussianFactor(like.unsqueeze(-1).clone(), like.new_zeros(d, 1, 1))
        self.z: GaussianFactor | LinearMap = self._z()

    # Expectations.

    @property
    def tau(self) -> Tensor:
        """E[tau] of every column (d,)."""
        return self.precision.mean.expand(self.rows.filled.shape[1])

    @property
    def centre(self) -> Tensor:
        """E[mu] (d,); 0 for a model without mean."""
        return torch.zeros_like(self.rows.mean) if self.mean is None else self.mean.mean.squeeze(-1)

    @property
    def spread(self) -> Tensor:
        """Var[mu] (d,)."""
        zero = torch.zeros_like(self.rows.mean)
        return zero if self.mean is None else self.mean.covariance.reshape(-1).expand_as(zero)

    def _squares(self, centre: Tensor) -> Tensor:
        """The sum of squares of every column around ``centre`` (d,), over the observed entries."""
        rows = self.rows
        if rows.scatter is not None:
            return rows.scatter.diagonal() + rows.n * (rows.mean - centre).square()
        assert rows.observed is not None
        return (rows.observed * (rows.filled - centre).square()).sum(0)

    # One factor after the other, each at its optimum given the others.

    def _z(self) -> GaussianFactor | LinearMap:
        tau, second, centre = self.tau, self.weight.second, self.centre
        k = second.shape[-1]
        identity = torch.eye(k).to(second)
        if self.rows.observed is None:
            covariance = torch.linalg.inv(identity + torch.einsum("d,dij->ij", tau, second))
            return LinearMap((tau.unsqueeze(-1) * self.weight.mean) @ covariance, covariance, centre)
        observed = self.rows.observed
        precision = identity + (observed @ (tau[:, None, None] * second).flatten(1)).unflatten(1, (k, k))
        covariance = torch.linalg.inv(precision)
        pull = (observed * (self.rows.filled - centre) * tau) @ self.weight.mean
        return GaussianFactor((covariance @ pull.unsqueeze(-1)).squeeze(-1), covariance)

    def inner(self) -> Inner:
        """The sums over the rows that the other factors need."""
        rows, centre = self.rows, self.centre
        if isinstance(self.z, LinearMap):
            assert rows.scatter is not None
            pull, covariance = self.z.pull, self.z.covariance
            shift = rows.mean - self.z.centre
            cross = (rows.scatter + rows.n * (rows.mean - centre).unsqueeze(-1) * shift) @ pull
            around = rows.scatter + rows.n * shift.unsqueeze(-1) * shift
            whole = rows.n * covariance + pull.mT @ around @ pull
            k = len(covariance)
            entropy = 0.5 * rows.n * (k * (1 + LOG_TWO_PI) + torch.linalg.slogdet(covariance)[1])
            first = (rows.n * pull.mT @ shift).expand(len(shift), k)
            return Inner(first, whole, cross, whole, entropy)
        assert rows.observed is not None
        second = self.z.second
        each = (rows.observed.mT @ second.flatten(1)).unflatten(1, second.shape[1:])
        cross = (rows.observed * (rows.filled - centre)).mT @ self.z.mean
        return Inner(rows.observed.mT @ self.z.mean, each, cross, second.sum(0), self.z.entropy())

    def _weight(self, inner: Inner) -> GaussianFactor:
        tau = self.tau
        prior = torch.diag(self.relevance.mean)
        shared = inner.second.ndim == 2 and not self.priors.columns
        precision = prior + (tau[0] * inner.second if shared else tau[:, None, None] * inner.second)
        covariance = torch.linalg.inv(precision)
        mean = (covariance @ (tau.unsqueeze(-1) * inner.cross).unsqueeze(-1)).squeeze(-1)
        return GaussianFactor(mean, covariance)

    def _mean(self, inner: Inner) -> GaussianFactor | None:
        if self.priors.mean is None:
            return None
        location, beta = self.priors.mean
        tau, count = self.tau, self.rows.count
        total = count * self.rows.mean - (self.weight.mean * inner.first).sum(-1)  # of x - w'z
        precision = beta + count * tau
        mean = (beta * location.to(total) + tau * total) / precision
        return GaussianFactor(mean.unsqueeze(-1), (1 / precision)[:, None, None])

    def _relevance(self) -> GammaFactor:
        shape, rate = self.priors.relevance
        d = len(self.weight.mean)
        energy = self.weight.second.diagonal(dim1=-2, dim2=-1).sum(0)
        return GammaFactor(torch.full_like(energy, shape + d / 2), rate + energy / 2)

    def residual(self, inner: Inner) -> Tensor:
        """E of the sum of squared residuals of every column over its observed entries (d,)."""
        second = self.weight.second
        fitted = (second * inner.second).sum((-2, -1))
        crossed = 2 * (self.weight.mean * inner.cross).sum(-1)
        return self._squares(self.centre) + self.rows.count * self.spread - crossed + fitted

    def _precision(self, inner: Inner) -> GammaFactor:
        shape, rate = self.priors.precision
        residual, count = self.residual(inner), self.rows.count
        if not self.priors.columns:
            residual, count = residual.sum(0, keepdim=True), count.sum(0, keepdim=True)
        return GammaFactor(shape + count / 2, rate + residual / 2)

    def sweep(self) -> None:
        """Every factor once, at its optimum given the others."""
        self.z = self._z()
        self.weight = self._weight(self.inner())
        self.mean = self._mean(self.inner())
        self.relevance = self._relevance()
        self.precision = self._precision(self.inner())

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows, every constant kept."""
        inner, rows = self.inner(), self.rows
        d, k = self.weight.mean.shape
        log_tau = self.precision.log_mean.expand(d)
        bound = 0.5 * (rows.count * (log_tau - LOG_TWO_PI) - self.tau * self.residual(inner)).sum()
        bound = bound - 0.5 * (rows.n * k * LOG_TWO_PI + inner.whole.trace()) + inner.entropy
        energy = self.weight.second.diagonal(dim1=-2, dim2=-1).sum(0)
        log_alpha, alpha = self.relevance.log_mean, self.relevance.mean
        bound = bound + 0.5 * (d * (log_alpha - LOG_TWO_PI) - alpha * energy).sum() + self.weight.entropy()
        for factor, prior in ((self.relevance, self.priors.relevance), (self.precision, self.priors.precision)):
            shape, rate = (torch.tensor(value).to(factor.rate) for value in prior)
            bound = bound + factor.expected_log_prior(shape, rate) + factor.entropy()
        if self.mean is not None and self.priors.mean is not None:
            location, beta = self.priors.mean
            offset = (self.centre - location.to(self.centre)).square() + self.spread
            bound = bound + 0.5 * (beta.log() - LOG_TWO_PI - beta * offset).sum() + self.mean.entropy()
        return bound

    def rotate(self) -> None:
        r"""Turn z and W together to the rotation R at which the bound is highest, alpha at its optimum.

        With :math:`z \to R z` and :math:`W \to W R^{-1}` the data's term stays and the bound changes by

        .. math:: (N - D) \log |R| - \tfrac12 \mathrm{tr}(R\, E[Z^T Z]\, R^T) -
                  (a + D/2) \sum_k \log(b + \tfrac12 [R^{-T} E[W^T W] R^{-1}]_{kk}).

        References:
            Luttinen and Ilin (2010), Transformations in variational Bayesian factor analysis to speed up learning,
            Neurocomputing 73.
        """
        inner = self.inner()
        d = len(self.weight.mean)
        rotation = _best_rotation(inner.whole, self.weight.second.sum(0), self.rows.n - d, d, self.priors.relevance)
        inverse = torch.linalg.inv(rotation)
        if isinstance(self.z, LinearMap):
            self.z = self.z.turned(rotation)
        else:
            self.z = GaussianFactor(self.z.mean @ rotation.mT, rotation @ self.z.covariance @ rotation.mT)
        self.weight = GaussianFactor(self.weight.mean @ inverse, inverse.mT @ self.weight.covariance @ inverse)
        self.relevance = self._relevance()

    def factors(self, x: Tensor) -> dict[str, Any]:
        """q of every site by name, of z for the rows ``x`` (n, d) that the sweeps saw."""
        z = self.z.factor(x.double()) if isinstance(self.z, LinearMap) else self.z
        found = {"z": z, "weight": self.weight, "mean": self.mean}
        found |= {"relevance": self.relevance, "precision": self.precision}
        return {name: factor for name, factor in found.items() if factor is not None}


def _best_rotation(whole: Tensor, energy: Tensor, degrees: int, d: int, prior: tuple[float, float]) -> Tensor:
    """R (k, k) by L-BFGS from the identity; see :meth:`LinearAscent.rotate`."""
    shape, rate = prior
    rotation = torch.eye(len(whole)).to(whole).requires_grad_()
    optim = torch.optim.LBFGS(
        [rotation], max_iter=30, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-14
    )

    def loss() -> Tensor:
        with torch.enable_grad():
            inverse = torch.linalg.inv(rotation)
            weights = rate + 0.5 * ((inverse.mT @ energy) * inverse.mT).sum(1)
            gain = degrees * torch.linalg.slogdet(rotation)[1] - 0.5 * ((rotation @ whole) * rotation).sum()
            value = (shape + d / 2) * weights.log().sum() - gain
            (rotation.grad,) = torch.autograd.grad(value, [rotation])
        return value.detach()

    optim.step(loss)
    found = rotation.detach()
    return found if found.isfinite().all() else torch.eye(len(whole)).to(whole)
