r"""Coordinate ascent for Gaussian mixtures with priors on everything.

Rows enter by their features :math:`\phi(x) = (1, x, x x^T)` (squares alone where precisions are diagonal), so that a
sweep is two matrix products: the expected log densities :math:`\phi \Theta` of all components, and the statistics
:math:`R^T \phi` of the responsibilities R.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.algebra.exponential_families import (
    LOG_TWO_PI,
    CategoricalFactor,
    CoupledFactor,
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

    def around(self, centre: Tensor, spread: Tensor | float) -> Tensor:
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
        k, d = self.mean.mean.shape
        if isinstance(self.precision, WishartFactor):
            return self.precision.log_det_mean.expand(k)
        return self.precision.log_mean.expand(k, d).sum(-1)

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


# Features of the rows, and what the factors make of them.


def features(x: Tensor, matrix: bool) -> Tensor:
    """phi (b, p): 1, the columns, and the products of pairs of columns (their squares for diagonal precisions)."""
    upper = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    second = x[:, upper[0]] * x[:, upper[1]] if matrix else x.square()
    return torch.cat([x.new_ones(len(x), 1), x, second], 1)


def coefficients(q: MixtureFactors, priors: MixturePriors) -> Tensor:
    """Theta (p, k): the expected log joint density of a row and its component is phi Theta."""
    precision, mean = q.precisions(), q.mean.mean
    d = mean.shape[1]
    linear = (precision @ mean.unsqueeze(-1)).squeeze(-1)  # (k, d)
    extra = (precision * q.mean.covariance).sum((-2, -1)) if q.beta is None else d / q.beta
    constant = q.log_proportions(priors.sticks) + 0.5 * (q.log_det() - d * LOG_TWO_PI - (mean * linear).sum(-1) - extra)
    if q.matrix:
        upper = torch.triu_indices(d, d, device=mean.device)
        second = -precision[:, upper[0], upper[1]] * torch.where(upper[0] == upper[1], 0.5, 1.0)
    else:
        second = -0.5 * precision.diagonal(dim1=-2, dim2=-1)
    return torch.cat([constant.unsqueeze(-1), linear, second], 1).mT


def statistics(sums: Tensor, d: int, matrix: bool) -> Statistics:
    """The statistics of R' phi (k, p)."""
    count, first, second = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
    if not matrix:
        return Statistics(count, first, second)
    upper = torch.triu_indices(d, d, device=sums.device)
    matrices = second.new_empty(len(sums), d, d)
    matrices[:, upper[0], upper[1]] = second
    matrices[:, upper[1], upper[0]] = second
    return Statistics(count, first, matrices)


def best_proportions(count: Tensor, priors: MixturePriors) -> DirichletFactor:
    """q(pi), or q of the sticks, at the optimum."""
    if not priors.sticks:
        return DirichletFactor(priors.concentration + count)
    beyond = count.flip(0).cumsum(0).flip(0) - count
    return DirichletFactor(torch.stack([1 + count, priors.concentration + beyond], -1)[:-1])


def best_precision(priors: MixturePriors, count: Tensor, scatter: Tensor) -> WishartFactor | GammaFactor:
    """q(Lambda) at the optimum, given the scatter around the means (k, d, d) or (k, d)."""
    if priors.covariance in ("full", "tied"):
        if priors.covariance == "tied":
            count, scatter = count.sum(), scatter.sum(0)
        return WishartFactor(priors.df + count, priors.inverse_scale + scatter)
    each = count.unsqueeze(-1).expand_as(scatter)
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
        precision = best_precision(priors, s.count, s.around(centre, 0.0) + priors.strength * pull)
        found = MixtureFactors(proportions, precision, GaussianFactor(centre, centre.new_zeros(d, d)), beta)
        return replace(found, mean=GaussianFactor(centre, torch.linalg.inv(found.precisions()) / beta[:, None, None]))
    if q is None:
        centre = s.first / s.count.clamp_min(1e-10).unsqueeze(-1)
        mean = GaussianFactor(centre, centre.new_zeros(len(centre), d, d))
    else:
        mean = q.mean
    spread = mean.covariance if matrix else mean.covariance.diagonal(dim1=-2, dim2=-1)
    found = MixtureFactors(proportions, best_precision(priors, s.count, s.around(mean.mean, spread)), mean)
    prior, matrices = torch.linalg.inv(priors.spread), found.precisions()
    covariance = torch.linalg.inv(prior + s.count[:, None, None] * matrices)
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


def mixture_bound(
    x: Tensor, component: CategoricalFactor, q: MixtureFactors, priors: MixturePriors, scale: float = 1.0
) -> Tensor:
    """The evidence lower bound, every constant kept; the rows' terms count ``scale`` times, as those of a minibatch."""
    expected = (component.mean * (features(x, q.matrix) @ coefficients(q, priors))).sum()
    return scale * (expected + component.entropy()) + gain(q, priors)


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
        self._features = features(self.x, self.matrix) if len(x) <= BLOCK else None
        self.sums = torch.zeros(())
        for part, own in self._blocks():
            self.sums = self.sums + responsibilities[part].mT @ own
        self.entropy = -torch.xlogy(responsibilities, responsibilities).sum()
        self.q = best_parameters(self.statistics, None, priors)

    @property
    def statistics(self) -> Statistics:
        """Those of the current responsibilities."""
        return statistics(self.sums, self.x.shape[1], self.matrix)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        if self._features is not None:
            yield slice(None), self._features
            return
        for start in range(0, len(self.x), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, features(self.x[part], self.matrix)

    def sweep(self) -> None:
        """Every factor once, at its optimum given the others: the components first."""
        theta = coefficients(self.q, self.priors)
        sums, total = torch.zeros_like(theta.mT), theta.new_zeros(())
        for _, own in self._blocks():
            logs = own @ theta  # (b, k)
            top = logs.logsumexp(-1, keepdim=True)
            sums.addmm_((logs - top).exp_().mT, own)
            total += top.sum()
        self.sums, self.entropy = sums, total - (sums.mT * theta).sum()
        self.q = best_parameters(self.statistics, self.q, self.priors)

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows, every constant kept."""
        return (self.sums.mT * coefficients(self.q, self.priors)).sum() + self.entropy + gain(self.q, self.priors)

    def factors(self, x: Tensor) -> dict[str, Any]:
        """q of every site by name; the components' of the rows ``x`` (n, d), at its optimum given the others."""
        theta = coefficients(self.q, self.priors)
        logs = torch.cat([features(part.double(), self.matrix) @ theta for part in x.split(BLOCK)])
        name = "sticks" if self.priors.sticks else "proportions"
        found: dict[str, Any] = {name: self.q.proportions, "precision": self.q.precision, "mean": self.q.mean}
        if self.q.beta is not None:
            found["mean"] = CoupledFactor(self.q.mean.mean, self.q.beta)
        return {**found, "component": CategoricalFactor(logs.log_softmax(-1))}


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
