r"""The rows in coordinate ascent for Gaussian mixtures: expected log densities, and sufficient statistics.

Rows enter by their features :math:`\phi(x) = (1, x, x x^T)` (squares alone where precisions are diagonal), so that a
sweep is two matrix products: the expected log densities :math:`\Theta \phi` of all components, and the statistics
:math:`R \phi^T` of the responsibilities R. Features are made block by block, small enough for the processor's cache.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from zoo.algebra import missing_mixture
from zoo.algebra.exponential_families import LOG_TWO_PI
from zoo.algebra.missing import Incomplete
from zoo.algebra.mixture import features, normalised
from zoo.base.checks import incomplete
from zoo.models.mixture_factors import MixtureFactors, MixturePriors, Statistics

BLOCK = 2048  # rows at a time


class MixtureRows(Protocol):
    """Rows in the form that the sweeps use."""

    def logs(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """The expected log joint density of every row and component (n, k); its softmax is the best q(component)."""
        ...

    def expect(self, q: MixtureFactors, priors: MixturePriors) -> tuple[Tensor, Tensor]:
        """The optimal q of the rows' own sites: the sums of its responsibilities (k, p), and its entropy."""
        ...

    def start(self, responsibilities: Tensor) -> Tensor:
        """The sums of given responsibilities (n, k)."""
        ...

    def coefficients(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """Theta (k, p): their inner product with the sums is the rows' expected log joint density."""
        ...

    def statistics(self, sums: Tensor) -> Statistics:
        """The statistics that the other factors need, from sums (k, p)."""
        ...


def mixture_rows(x: Tensor, priors: MixturePriors, weights: Tensor | None = None) -> MixtureRows:
    """The rows ``x`` (n, d), NaN where missing: left out where columns are independent, latent otherwise.

    Every row counts as often as its weight (n,) in the sums of :meth:`MixtureRows.expect`.
    """
    matrix = priors.covariance in ("full", "tied")
    if not incomplete(x):
        return Whole(x, matrix, weights)
    if matrix or priors.spread is None:
        return Latent(x, matrix, weights)
    return Dropped(x, weights)


def statistics(sums: Tensor, d: int, matrix: bool) -> Statistics:
    """The statistics of the sums of features (k, p)."""
    count, first, second = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
    if not matrix:
        return Statistics(count, first, second)
    upper = torch.triu_indices(d, d, device=sums.device)
    matrices = second.new_empty(len(sums), d, d)
    matrices[:, upper[0], upper[1]] = second
    matrices[:, upper[1], upper[0]] = second
    return Statistics(count, first, matrices)


def coefficients(q: MixtureFactors, priors: MixturePriors) -> Tensor:
    """Theta (k, p): the expected log joint density of a row and its component is Theta phi."""
    precision, mean = q.precisions(), q.mean.mean
    d = mean.shape[1]
    linear = (precision @ mean.unsqueeze(-1)).squeeze(-1)  # (k, d)
    norm = q.log_det() - d * LOG_TWO_PI - (mean * linear).sum(-1) - uncertainty(q)
    constant = q.log_proportions(priors.sticks) + 0.5 * norm
    if q.matrix:
        upper = torch.triu_indices(d, d, device=mean.device)
        second = -precision[:, upper[0], upper[1]] * torch.where(upper[0] == upper[1], 0.5, 1.0)
    else:
        second = -0.5 * precision.diagonal(dim1=-2, dim2=-1)
    return torch.cat([constant.unsqueeze(-1), linear, second], 1)


def uncertainty(q: MixtureFactors) -> Tensor:
    """The expected square of a component's mean around E[mu], by its precision (k,)."""
    if q.beta is not None:
        return q.mean.mean.shape[1] / q.beta
    return (q.precisions() * q.mean.covariance).sum((-2, -1))


class Whole:
    """Rows (n, d) in which nothing is missing.

    Args:
        x: the rows.
        matrix: whether precisions are matrices.
        weights: of the rows (n,); None for ones.
    """

    def __init__(self, x: Tensor, matrix: bool, weights: Tensor | None = None) -> None:
        self.columns, self.matrix, self.weights = x.mT.contiguous(), matrix, weights

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows and their features (p, b)."""
        for start in range(0, self.columns.shape[1], BLOCK):
            part = slice(start, start + BLOCK)
            yield part, features(self.columns[:, part], self.matrix)

    def logs(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """The expected log joint density of every row and component (n, k)."""
        theta = self.coefficients(q, priors)
        return torch.cat([theta @ own for _, own in self.blocks()], 1).mT

    def expect(self, q: MixtureFactors, priors: MixturePriors) -> tuple[Tensor, Tensor]:
        """The sums of the best responsibilities (k, p) and their entropy."""
        theta = self.coefficients(q, priors)
        sums, total = torch.zeros_like(theta), theta.new_zeros(())
        for part, own in self.blocks():
            shares, norm = normalised(theta @ own, None if self.weights is None else self.weights[part])
            sums.addmm_(shares, own.mT)
            total += norm
        return sums, total - (sums * theta).sum()

    def start(self, responsibilities: Tensor) -> Tensor:
        """The sums of given responsibilities (n, k)."""
        return sum(
            (responsibilities[part].mT @ own.mT for part, own in self.blocks()), torch.zeros(()).to(self.columns)
        )

    def coefficients(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """Theta (k, p)."""
        return coefficients(q, priors)

    def statistics(self, sums: Tensor) -> Statistics:
        """The statistics that the other factors need, from sums (k, p)."""
        return statistics(sums, len(self.columns), self.matrix)


class Dropped(Whole):
    """Rows with missing entries and independent columns: a row's density is that of its observed entries.

    The features are 1, x, its squares, and which entries are there, 0 where missing.

    Args:
        x: the rows (n, d), NaN where missing.
        weights: of the rows (n,); None for ones.
    """

    def __init__(self, x: Tensor, weights: Tensor | None = None) -> None:
        observed = (~x.isnan()).to(x)
        super().__init__(x.nan_to_num(0.0), False, weights)
        self.observed = observed.mT.contiguous()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows and their features (p, b)."""
        for part, own in super().blocks():
            yield part, torch.cat([own, self.observed[:, part]])

    def coefficients(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """Theta (k, p)."""
        d = len(self.columns)
        mean, precision = q.mean.mean, q.precision.mean.expand_as(q.mean.mean)
        second = mean.square() + q.mean.covariance.diagonal(dim1=-2, dim2=-1)
        each = 0.5 * (q.log_precision() - LOG_TWO_PI - precision * second)
        theta = coefficients(q, priors)[:, 1 : 2 * d + 1]
        return torch.cat([q.log_proportions(priors.sticks).unsqueeze(-1), theta, each], 1)

    def statistics(self, sums: Tensor) -> Statistics:
        """The statistics that the other factors need, from sums (k, p)."""
        d = len(self.columns)
        found = statistics(sums[:, : 2 * d + 1], d, matrix=False)
        return Statistics(found.count, found.first, found.second, sums[:, 2 * d + 1 :])


class Latent:
    r"""Rows with missing entries that are latent given the component, with a factor :math:`q(x_m \mid c)`.

    That factor is at its optimum throughout, the conditional Gaussian at E[mu] and E[Lambda]; with
    :math:`\Sigma = E[\Lambda]^{-1}` the expected log joint density of a row is

    .. math:: \log N(x_o; E \mu_o, \Sigma_{oo}) + \tfrac12 (E \log |\Lambda| - \log |E \Lambda|) -
              \tfrac12 E (\mu - E \mu)^T \Lambda (\mu - E \mu) + E \log \pi.

    Args:
        x: the rows (n, d), NaN where missing.
        matrix: whether precisions are matrices.
        weights: of the rows (n,); None for ones.
    """

    def __init__(self, x: Tensor, matrix: bool, weights: Tensor | None = None) -> None:
        self.x, self.matrix = x, matrix
        self.data = Incomplete.of(x, weights).sorted()

    def _components(self, q: MixtureFactors, priors: MixturePriors) -> tuple[Tensor, Tensor]:
        """The constant (k,), and the covariances (k, d, d)."""
        precision = q.precisions()
        slack = q.log_det() - torch.linalg.slogdet(precision)[1] - uncertainty(q)
        return q.log_proportions(priors.sticks) + 0.5 * slack, torch.linalg.inv(precision)

    def logs(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """The expected log joint density of every row and component (n, k), that of its missing entries at its best."""
        constant, covariance = self._components(q, priors)
        return missing_mixture.joint(self.x, constant, q.mean.mean, covariance)

    def expect(self, q: MixtureFactors, priors: MixturePriors) -> tuple[Tensor, Tensor]:
        """The sums of the best responsibilities (k, p), and the entropy of components and missing entries."""
        constant, covariance = self._components(q, priors)
        mean = q.mean.mean
        own = covariance if self.matrix else covariance.diagonal(dim1=-2, dim2=-1)
        total, count, around, second = missing_mixture.statistics(self.data, constant, mean, own)
        first = around + count.unsqueeze(-1) * mean
        if self.matrix:
            cross = around.unsqueeze(-1) * mean.unsqueeze(-2)
            second = second + cross + cross.mT + count[:, None, None] * mean.unsqueeze(-1) * mean.unsqueeze(-2)
            upper = torch.triu_indices(*second.shape[1:], device=second.device)
            second = second[:, upper[0], upper[1]]
        else:
            second = second + 2 * around * mean + count.unsqueeze(-1) * mean.square()
        sums = torch.cat([count.unsqueeze(-1), first, second], 1)
        return sums, total - (sums * coefficients(q, priors)).sum()

    def start(self, responsibilities: Tensor) -> Tensor:
        """The sums of given responsibilities (n, k), with missing entries at 0, the mean of their columns."""
        return Whole(self.data.data.filled, self.matrix).start(responsibilities)

    def coefficients(self, q: MixtureFactors, priors: MixturePriors) -> Tensor:
        """Theta (k, p)."""
        return coefficients(q, priors)

    def statistics(self, sums: Tensor) -> Statistics:
        """The statistics that the other factors need, from sums (k, p)."""
        return statistics(sums, self.x.shape[1], self.matrix)
