r"""Coordinate ascent for Gaussian mixtures with priors on everything.

Rows enter by their features :math:`\phi(x) = (1, x, x x^T)` (squares alone where precisions are diagonal), so that a
sweep is two matrix products: the expected log densities :math:`\phi \Theta` of all components, and the statistics
:math:`R^T \phi` of the responsibilities R.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from zoo.algebra.exponential_families import (
    LOG_TWO_PI,
    CategoricalFactor,
    DirichletFactor,
    GammaFactor,
    GaussianFactor,
    WishartFactor,
)

Covariance = Literal["full", "tied", "diag", "spherical"]
BLOCK = 2**16  # rows at a time


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over the rows weighted by responsibilities.

    Attributes:
        count: sum of r (k,).
        first: sum of r x (k, d).
        second: sum of r x x' (k, d, d), or of r x^2 (k, d).
    """

    count: Tensor
    first: Tensor
    second: Tensor

    def around(self, centre: Tensor, spread: Tensor) -> Tensor:
        """Sum of r E[(x - mu)(x - mu)'] at means ``centre`` (k, d) with covariances (or variances) ``spread``."""
        if self.second.ndim == 3:
            cross = self.first.unsqueeze(-1) * centre.unsqueeze(-2)
            own = centre.unsqueeze(-1) * centre.unsqueeze(-2) + spread
            return self.second - cross - cross.mT + self.count[:, None, None] * own
        own = centre.square() + spread
        return self.second - 2 * self.first * centre + self.count.unsqueeze(-1) * own


@dataclass(frozen=True)
class MixturePriors:
    """Hyperparameters of a Bayesian mixture.

    Attributes:
        concentration: of the Dirichlet prior on the proportions, or of the stick-breaking (``sticks``).
        sticks: whether the proportions are broken from a stick, v_k ~ Beta(1, concentration), truncated at K.
        location: m0 of the means (d,).
        strength: independent means: their prior covariance is ``spread``; coupled ones: the beta of
            N(m0, (beta Lambda)^-1).
        spread: prior covariance of independent means (d, d), or variances (d,); None where means are coupled.
        df: degrees of freedom of the Wishart prior, twice the shape of the Gamma priors.
        inverse_scale: of the Wishart prior (d, d), twice the rate of the Gamma priors (d,) or ().
        covariance: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
    """

    concentration: float
    sticks: bool
    location: Tensor
    strength: float
    spread: Tensor | None
    df: float
    inverse_scale: Tensor
    covariance: Covariance


class Precisions(Protocol):
    """q of the precisions of K components, of one kind of covariance."""

    @property
    def mean(self) -> Tensor:
        """E[Lambda], matrices (k, d, d) or columns (k, d)."""
        ...

    @property
    def log_det(self) -> Tensor:
        """E[log |Lambda|] (k,)."""
        ...

    @property
    def factor(self) -> Any:
        """The factor."""
        ...

    def gain(self) -> Tensor:
        """E[log p(Lambda)] plus the entropy of q."""
        ...


class MatrixPrecisions:
    """Wishart precisions, one for every component or one for all."""

    def __init__(self, priors: MixturePriors, count: Tensor, scatter: Tensor) -> None:
        self.priors, self.components = priors, len(count)
        if priors.covariance == "tied":
            count, scatter = count.sum(), scatter.sum(0)
        self.factor = WishartFactor(priors.df + count, priors.inverse_scale + scatter)

    @property
    def mean(self) -> Tensor:
        """E[Lambda] (k, d, d)."""
        mean = self.factor.mean
        return mean.expand(self.components, *mean.shape[-2:])

    @property
    def log_det(self) -> Tensor:
        """E[log |Lambda|] (k,)."""
        return self.factor.log_det_mean.expand(self.components)

    def gain(self) -> Tensor:
        """E[log p(Lambda)] plus the entropy of q."""
        df = self.factor.df.new_tensor(self.priors.df)
        return self.factor.expected_log_prior(df, self.priors.inverse_scale) + self.factor.entropy()


class ColumnPrecisions:
    """Gamma precisions, one for every component and column, or one for every component."""

    def __init__(self, priors: MixturePriors, count: Tensor, scatter: Tensor) -> None:
        self.priors, self.columns = priors, scatter.shape[1]
        each = count.unsqueeze(-1).expand_as(scatter)
        if priors.covariance == "spherical":
            each, scatter = each.sum(1, keepdim=True), scatter.sum(1, keepdim=True)
        self.factor = GammaFactor((priors.df + each) / 2, (priors.inverse_scale + scatter) / 2)

    @property
    def mean(self) -> Tensor:
        """E[Lambda] (k, d)."""
        mean = self.factor.mean
        return mean.expand(len(mean), self.columns)

    @property
    def log_det(self) -> Tensor:
        """E[log |Lambda|] (k,)."""
        log_mean = self.factor.log_mean
        return log_mean.expand(len(log_mean), self.columns).sum(-1)

    def gain(self) -> Tensor:
        """E[log p(Lambda)] plus the entropy of q."""
        shape = self.factor.rate.new_tensor(self.priors.df / 2)
        rate = (self.priors.inverse_scale / 2).expand_as(self.factor.rate)
        return self.factor.expected_log_prior(shape.expand_as(rate), rate) + self.factor.entropy()


class MixtureAscent:
    """The factors of q and the sweeps over them.

    Args:
        x: rows (n, d), none missing.
        responsibilities: to start from (n, k).
        priors: of the model.
    """

    def __init__(self, x: Tensor, responsibilities: Tensor, priors: MixturePriors) -> None:
        self.x = x.double()
        self.priors = priors
        self.matrix = priors.covariance in ("full", "tied")
        d = x.shape[1]
        self.upper = torch.triu_indices(d, d, device=x.device)
        self._features = self.features(self.x) if len(x) <= BLOCK else None
        self.statistics = self._statistics(self._sums(responsibilities))
        self.entropy = -torch.xlogy(responsibilities, responsibilities).sum()
        k = responsibilities.shape[1]
        centre = self.statistics.first / self.statistics.count.clamp_min(1e-10).unsqueeze(-1)
        none = self.statistics.second.new_zeros(k, d, d) if self.matrix else centre.new_zeros(k, d)
        self.mean = GaussianFactor(centre, none if self.matrix else torch.diag_embed(none))
        self._update_parameters()

    def features(self, x: Tensor) -> Tensor:
        """phi (b, p): 1, the columns, and the products of pairs of columns (their squares for diagonal precisions)."""
        second = x[:, self.upper[0]] * x[:, self.upper[1]] if self.matrix else x.square()
        return torch.cat([x.new_ones(len(x), 1), x, second], 1)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        if self._features is not None:
            yield slice(None), self._features
            return
        for start in range(0, len(self.x), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, self.features(self.x[part])

    def _sums(self, responsibilities: Tensor) -> Tensor:
        total = 0.0
        for part, features in self._blocks():
            total = total + responsibilities[part].mT @ features
        return torch.as_tensor(total)

    def _statistics(self, sums: Tensor) -> Statistics:
        d = self.x.shape[1]
        count, first, second = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
        if not self.matrix:
            return Statistics(count, first, second)
        matrices = second.new_empty(len(sums), d, d)
        matrices[:, self.upper[0], self.upper[1]] = second
        matrices[:, self.upper[1], self.upper[0]] = second
        return Statistics(count, first, matrices)

    # Factors.

    def _update_proportions(self) -> None:
        count, a = self.statistics.count, self.priors.concentration
        if not self.priors.sticks:
            self.proportions = DirichletFactor(a + count)
            return
        beyond = count.flip(0).cumsum(0).flip(0) - count
        self.proportions = DirichletFactor(torch.stack([1 + count, a + beyond], -1)[:-1])

    @property
    def log_proportions(self) -> Tensor:
        """E[log pi] (k,)."""
        if not self.priors.sticks:
            return self.proportions.log_mean
        taken, left = self.proportions.log_mean.unbind(-1)  # E log v, E log (1 - v)
        zero = taken.new_zeros(1)
        return torch.cat([taken, zero]) + torch.cat([zero, left.cumsum(0)])

    @property
    def _variances(self) -> Tensor:
        """The covariances of q(mu), or variances, in the form of the second moments."""
        covariance = self.mean.covariance
        return covariance if self.matrix else covariance.diagonal(dim1=-2, dim2=-1)

    def _update_parameters(self) -> None:
        """The proportions, precisions and means, each at its optimum given the others."""
        self._update_proportions()
        kind = MatrixPrecisions if self.matrix else ColumnPrecisions
        s, p = self.statistics, self.priors
        if p.spread is None:  # means and precisions together
            self.beta = p.strength + s.count
            centre = (p.strength * p.location + s.first) / self.beta.unsqueeze(-1)
            scatter = s.around(centre, torch.zeros_like(self._variances))
            offset = centre - p.location
            pull = offset.unsqueeze(-1) * offset.unsqueeze(-2) if self.matrix else offset.square()
            scatter = scatter + p.strength * pull
            self.precisions: Precisions = kind(p, s.count, scatter)
            covariance = torch.linalg.inv(self._matrices()) / self.beta[:, None, None]
            self.mean = GaussianFactor(centre, covariance)
            return
        self.precisions = kind(p, s.count, s.around(self.mean.mean, self._variances))
        prior = torch.linalg.inv(p.spread) if p.spread.ndim == 2 else torch.diag(1 / p.spread)
        precision = prior + s.count[:, None, None] * self._matrices()
        covariance = torch.linalg.inv(precision)
        pull = prior @ p.location + (self._matrices() @ s.first.unsqueeze(-1)).squeeze(-1)
        self.mean = GaussianFactor((covariance @ pull.unsqueeze(-1)).squeeze(-1), covariance)

    def _matrices(self) -> Tensor:
        """E[Lambda] as matrices (k, d, d)."""
        return self.precisions.mean if self.matrix else torch.diag_embed(self.precisions.mean)

    def coefficients(self) -> Tensor:
        """Theta (p, k): the expected log joint density of a row and its component is phi Theta."""
        d = self.x.shape[1]
        precision, mean = self._matrices(), self.mean.mean
        linear = (precision @ mean.unsqueeze(-1)).squeeze(-1)  # (k, d)
        extra = d / self.beta if self.priors.spread is None else (precision * self.mean.covariance).sum((-2, -1))
        constant = self.log_proportions + 0.5 * (
            self.precisions.log_det - d * LOG_TWO_PI - (mean * linear).sum(-1) - extra
        )
        if self.matrix:
            halves = -0.5 * precision[:, self.upper[0], self.upper[1]]
            second = torch.where(self.upper[0] == self.upper[1], halves, 2 * halves)
        else:
            second = -0.5 * self.precisions.mean
        return torch.cat([constant.unsqueeze(-1), linear, second], 1).mT

    def responsibilities(self) -> CategoricalFactor:
        """q(component) at its optimum given the other factors."""
        theta = self.coefficients()
        return CategoricalFactor(torch.cat([f @ theta for _, f in self._blocks()]).log_softmax(-1))

    def sweep(self) -> None:
        """Every factor once: the components first, then proportions, precisions and means."""
        theta = self.coefficients()
        sums: Tensor | float = 0.0
        total: Tensor | float = 0.0
        for _, features in self._blocks():
            logs = features @ theta  # (b, k)
            top = logs.logsumexp(-1, keepdim=True)
            sums = sums + (logs - top).exp_().mT @ features
            total = total + top.sum()
        sums = torch.as_tensor(sums)
        self.entropy = total - (sums.mT * theta).sum()
        self.statistics = self._statistics(sums)
        self._update_parameters()

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows, every constant kept."""
        expected = (self._flat().mT * self.coefficients()).sum() + self.entropy
        return expected + self._gain_of_proportions() + self.precisions.gain() + self._gain_of_means()

    def _flat(self) -> Tensor:
        s = self.statistics
        second = s.second[:, self.upper[0], self.upper[1]] if self.matrix else s.second
        return torch.cat([s.count.unsqueeze(-1), s.first, second], 1)

    def _gain_of_proportions(self) -> Tensor:
        a = self.priors.concentration
        concentration = self.proportions.concentration
        prior = torch.full_like(concentration, a)
        if self.priors.sticks:
            prior = concentration.new_tensor([1.0, a]).expand_as(concentration)
        return self.proportions.expected_log_prior(prior) + self.proportions.entropy()

    def _gain_of_means(self) -> Tensor:
        """E[log p(mu)] plus the entropy of q(mu), given the precisions where both are coupled."""
        p, mean = self.priors, self.mean
        k, d = mean.mean.shape
        offset = mean.mean - p.location
        if p.spread is None:
            quadratic = (offset.unsqueeze(-2) @ self._matrices() @ offset.unsqueeze(-1)).flatten()
            each = d * (math.log(p.strength) - self.beta.log()) - p.strength * (quadratic + d / self.beta) + d
            return 0.5 * each.sum()
        prior = p.spread if p.spread.ndim == 2 else torch.diag(p.spread)
        inverse = torch.linalg.inv(prior)
        second = mean.covariance + offset.unsqueeze(-1) * offset.unsqueeze(-2)
        log_prior = -0.5 * (k * (d * LOG_TWO_PI + torch.linalg.slogdet(prior)[1]) + (inverse * second).sum())
        return log_prior + mean.entropy()


def plus_plus(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Responsibilities (n, k) of 0 and 1 by the nearest of k rows chosen by k-means++.

    References:
        Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
    """
    first = torch.randint(len(x), (1,), generator=generator).item()
    centres = [x[int(first)]]
    nearest = (x - centres[0]).square().sum(-1)
    for _ in range(components - 1):
        weights = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        chosen = torch.multinomial(weights.cpu(), 1, generator=generator).item()
        centres.append(x[int(chosen)])
        nearest = torch.minimum(nearest, (x - centres[-1]).square().sum(-1))
    distance = torch.cdist(x, torch.stack(centres))
    return torch.nn.functional.one_hot(distance.argmin(1), components).double()
