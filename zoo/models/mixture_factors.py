"""The factors of a Gaussian mixture with priors on everything: their optima given the others, and their bound."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.algebra.exponential_families import (
    LOG_TWO_PI,
    CoupledFactor,
    DirichletFactor,
    GammaFactor,
    GaussianFactor,
    WishartFactor,
)

Covariance = Literal["full", "tied", "diag", "spherical"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over the rows weighted by responsibilities.

    Attributes:
        count: sum of r (k,).
        first: sum of r x (k, d).
        second: sum of r x x' (k, d, d), or of r x^2 (k, d).
        entries: sum of r over the rows that observe a column (k, d), where missing entries are left out of the sums;
            None where none is.
    """

    count: Tensor
    first: Tensor
    second: Tensor
    entries: Tensor | None = None

    @property
    def each(self) -> Tensor:
        """The count of every column (k, d)."""
        return self.count.unsqueeze(-1).expand_as(self.first) if self.entries is None else self.entries

    def around(self, centre: Tensor, spread: Tensor | float) -> Tensor:
        """Sum of r E[(x - mu)(x - mu)'] at means ``centre`` (k, d) with covariances (or variances) ``spread``."""
        if self.second.ndim == 3:
            cross = self.first.unsqueeze(-1) * centre.unsqueeze(-2)
            own = centre.unsqueeze(-1) * centre.unsqueeze(-2) + spread
            return self.second - cross - cross.mT + self.count[:, None, None] * own
        own = centre.square() + spread
        return self.second - 2 * self.first * centre + self.each * own


@dataclass(frozen=True)
class MixturePriors:
    """Hyperparameters of a Bayesian mixture.

    Attributes:
        concentration: of the Dirichlet prior on the proportions, or of the stick-breaking (``sticks``).
        sticks: whether the proportions are broken from a stick, v_k ~ Beta(1, concentration), truncated at K.
        location: m0 of the means (d,).
        strength: independent means: their prior covariance is ``spread``; coupled ones: the beta of
            N(m0, (beta Lambda)^-1).
        spread: prior covariance of independent means (d, d); None where means are coupled.
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


@dataclass(frozen=True, eq=False)
class MixtureFactors:
    """The factors of q but for that of the components.

    Attributes:
        proportions: q(pi) (k,), or q of the sticks (k - 1, 2).
        precision: q(Lambda): Wishart of every component or of all, Gamma (k, d) or (k, 1).
        mean: q(mu), one Gaussian for every component; of coupled means its covariance at E[Lambda].
        beta: of coupled means, q(mu | Lambda) = N(mean, (beta Lambda)^-1), (k,); None for independent ones.
    """

    proportions: DirichletFactor
    precision: WishartFactor | GammaFactor
    mean: GaussianFactor
    beta: Tensor | None = None

    @property
    def components(self) -> int:
        """The number of components K."""
        return len(self.mean.mean)

    @property
    def matrix(self) -> bool:
        """Whether precisions are matrices."""
        return isinstance(self.precision, WishartFactor)

    def precisions(self) -> Tensor:
        """E[Lambda] as matrices (k, d, d)."""
        k, d = self.mean.mean.shape
        mean = self.precision.mean
        return mean.expand(k, d, d) if self.matrix else torch.diag_embed(mean.expand(k, d))

    def log_det(self) -> Tensor:
        """E[log |Lambda|] (k,)."""
        if isinstance(self.precision, WishartFactor):
            return self.precision.log_det_mean.expand(self.components)
        return self.log_precision().sum(-1)

    def log_precision(self) -> Tensor:
        """E[log Lambda] of every column of Gamma factors (k, d)."""
        assert isinstance(self.precision, GammaFactor)
        return self.precision.log_mean.expand_as(self.mean.mean)

    def log_proportions(self, sticks: bool) -> Tensor:
        """E[log pi] (k,)."""
        if not sticks:
            return self.proportions.log_mean
        taken, left = self.proportions.log_mean.unbind(-1)  # E log v, E log (1 - v)
        zero = taken.new_zeros(1)
        return torch.cat([taken, zero]) + torch.cat([zero, left.cumsum(0)])


def mixture_factors(factors: Mapping[str, Any]) -> MixtureFactors:
    """The factors of q by site name, but for that of the components."""
    proportions = factors["sticks"] if "sticks" in factors else factors["proportions"]
    precision, mean = factors["precision"], factors["mean"]
    if not isinstance(mean, CoupledFactor):
        return MixtureFactors(proportions, precision, mean)
    d = mean.mean.shape[1]
    found = MixtureFactors(proportions, precision, GaussianFactor(mean.mean, mean.mean.new_zeros(d, d)), mean.beta)
    spread = torch.linalg.inv(found.precisions()) / mean.beta[:, None, None]
    return replace(found, mean=GaussianFactor(mean.mean, spread))


def best_proportions(count: Tensor, priors: MixturePriors) -> DirichletFactor:
    """q(pi), or q of the sticks, at the optimum."""
    if not priors.sticks:
        return DirichletFactor(priors.concentration + count)
    beyond = count.flip(0).cumsum(0).flip(0) - count
    return DirichletFactor(torch.stack([1 + count, priors.concentration + beyond], -1)[:-1])


def best_precision(priors: MixturePriors, s: Statistics, scatter: Tensor) -> WishartFactor | GammaFactor:
    """q(Lambda) at the optimum, given the scatter around the means (k, d, d) or (k, d)."""
    count = s.count if scatter.ndim == 3 else s.each
    if priors.covariance in ("full", "tied"):
        if priors.covariance == "tied":
            count, scatter = count.sum(), scatter.sum(0)
        return WishartFactor(priors.df + count, priors.inverse_scale + scatter)
    each = count
    if priors.covariance == "spherical":
        each, scatter = each.sum(1, keepdim=True), scatter.sum(1, keepdim=True)
    return GammaFactor((priors.df + each) / 2, (priors.inverse_scale + scatter) / 2)


def best_parameters(s: Statistics, q: MixtureFactors | None, priors: MixturePriors) -> MixtureFactors:
    """Proportions, precisions and means, each at its optimum given the others (at the means of ``q``)."""
    proportions = best_proportions(s.count, priors)
    matrix = s.second.ndim == 3
    d = s.first.shape[1]
    if priors.spread is None:  # means and precisions together
        beta = priors.strength + s.count
        centre = (priors.strength * priors.location + s.first) / beta.unsqueeze(-1)
        offset = centre - priors.location
        pull = offset.unsqueeze(-1) * offset.unsqueeze(-2) if matrix else offset.square()
        precision = best_precision(priors, s, s.around(centre, 0.0) + priors.strength * pull)
        found = MixtureFactors(proportions, precision, GaussianFactor(centre, centre.new_zeros(d, d)), beta)
        return replace(found, mean=GaussianFactor(centre, torch.linalg.inv(found.precisions()) / beta[:, None, None]))
    if q is None:
        centre = s.first / s.each.clamp_min(1e-10)
        mean = GaussianFactor(centre, centre.new_zeros(len(centre), d, d))
    else:
        mean = q.mean
    spread = mean.covariance if matrix else mean.covariance.diagonal(dim1=-2, dim2=-1)
    found = MixtureFactors(proportions, best_precision(priors, s, s.around(mean.mean, spread)), mean)
    prior, matrices = torch.linalg.inv(priors.spread), found.precisions()
    covariance = torch.linalg.inv(prior + s.each.unsqueeze(-1) * matrices)  # diagonal where the counts differ
    pull = prior @ priors.location + (matrices @ s.first.unsqueeze(-1)).squeeze(-1)
    return replace(found, mean=GaussianFactor((covariance @ pull.unsqueeze(-1)).squeeze(-1), covariance))


def gain(q: MixtureFactors, priors: MixturePriors) -> Tensor:
    """E[log p] of proportions, precisions and means, plus the entropies of their factors."""
    concentration = q.proportions.concentration
    prior = torch.full_like(concentration, priors.concentration)
    if priors.sticks:
        prior = concentration.new_tensor([1.0, priors.concentration]).expand_as(concentration)
    total = q.proportions.expected_log_prior(prior) + q.proportions.entropy()
    if isinstance(q.precision, WishartFactor):
        df = q.precision.df.new_tensor(priors.df)
        total = total + q.precision.expected_log_prior(df, priors.inverse_scale) + q.precision.entropy()
    else:
        rate = (priors.inverse_scale / 2).expand_as(q.precision.rate)
        total = total + q.precision.expected_log_prior(torch.full_like(rate, priors.df / 2), rate)
        total = total + q.precision.entropy()
    k, d = q.mean.mean.shape
    offset = q.mean.mean - priors.location
    if q.beta is not None:
        quadratic = (offset.unsqueeze(-2) @ q.precisions() @ offset.unsqueeze(-1)).flatten()
        each = d * (math.log(priors.strength) - q.beta.log() + 1) - priors.strength * (quadratic + d / q.beta)
        return total + 0.5 * each.sum()
    assert priors.spread is not None
    second = q.mean.covariance + offset.unsqueeze(-1) * offset.unsqueeze(-2)
    log_det, trace = torch.linalg.slogdet(priors.spread)[1], (torch.linalg.inv(priors.spread) * second).sum()
    return total - 0.5 * (k * (d * LOG_TWO_PI + log_det) + trace) + q.mean.entropy()
