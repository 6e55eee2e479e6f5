r"""Gaussian mixtures of rows with missing entries: densities, the E-step and imputation, by missingness pattern.

.. math:: E[x_m \mid x_o] = \mu_m + \Sigma_{mo} \Sigma_{oo}^{-1} (x_o - \mu_o), \quad
          \mathrm{Cov}[x_m \mid x_o] = \Sigma_{mm} - \Sigma_{mo} \Sigma_{oo}^{-1} \Sigma_{om}

Ghahramani and Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
"""

import math

import torch
from torch import Tensor

from zoo.algebra.missing import Imputation, Incomplete, Part, Sorted, log_density, marginal_root
from zoo.algebra.mixture import Sums
from zoo.base.memory import rows_at_once


def joint(x: Tensor, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log p(observed entries, c = j) (n, k), for means (k, d) and covariances (k, d, d)."""
    data = Incomplete.of(x).sorted()
    parts = []
    for part in data.parts(rows_at_once(covariance.numel())):
        root = marginal_root(covariance, part.patterns.unsqueeze(1))  # (p, k, d, d)
        parts.append(log_density(_offset(part, mean), part.observed.unsqueeze(1), root[part.which]))
    return log_weight + torch.cat(parts)[data.order.argsort()]


def _offset(part: Part, mean: Tensor) -> Tensor:
    """x - mu for every component (b, k, d), 0 where missing."""
    return torch.where(part.observed.unsqueeze(1), part.filled.to(mean).unsqueeze(1) - mean, 0.0)


def _complete(part: Part, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Density and conditional moments of some rows under every component.

    Args:
        part: b rows with p patterns.
        mean: the means of the components (k, d).
        covariance: matrices (k, d, d), or variances (k, d).

    Returns:
        the log density of the observed entries (b, k), :math:`E[x | x_o, c] - \\mu` (b, k, d), and for every pattern
        the conditional covariance (p, k, d, d) or variance (p, k, d), 0 where observed.
    """
    there = part.observed.unsqueeze(1)  # (b, 1, d)
    offset = _offset(part, mean)
    keep = part.patterns.unsqueeze(1)  # (p, 1, d)
    if covariance.ndim == 2:
        terms = math.log(2 * math.pi) + covariance.log() + offset.square() / covariance
        return -0.5 * torch.where(there, terms, 0.0).sum(-1), offset, torch.where(keep, 0.0, covariance)
    root = marginal_root(covariance, keep)  # (p, k, d, d)
    known = torch.where(keep.unsqueeze(-1), covariance, 0.0)  # the rows o of Sigma
    half = torch.linalg.solve_triangular(root, known, upper=False)
    slope = torch.linalg.solve_triangular(root.mT, half, upper=True)  # Sigma_oo^-1 Sigma_o.
    both = ~keep.unsqueeze(-1) & ~keep.unsqueeze(-2)
    spread = torch.where(both, covariance - half.mT @ half, 0.0)
    if (counts := part.segments()) is None:
        density = log_density(offset, there, root[part.which])
        guess = (offset.unsqueeze(-2) @ slope[part.which]).squeeze(-2)
    else:  # no matrix per row
        segments = list(zip(offset.split(counts), root, slope, strict=True))
        white = torch.cat([_solve(own, some) for some, own, _ in segments])
        logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (p, k)
        density = -0.5 * (there.to(white).sum(-1) * math.log(2 * math.pi) + white.square().sum(-1)) - logdet[part.which]
        guess = torch.cat([(some.transpose(0, 1) @ own).transpose(0, 1) for some, _, own in segments])
    return density, torch.where(there, offset, guess), spread


def _solve(root: Tensor, offset: Tensor) -> Tensor:
    """Rows (b, k, d), whitened by the components' factors (k, d, d)."""
    return torch.linalg.solve_triangular(root, offset.permute(1, 2, 0), upper=False).permute(2, 0, 1)


def expect(data: Sorted, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> Sums:
    """The E-step, around the components' means and in float64; see :func:`statistics`."""
    total, counts, first, second = statistics(data, log_weight, mean, covariance)
    return Sums(total.double(), counts.double(), mean.double(), first.double(), second.double())


def statistics(
    data: Sorted, log_weight: Tensor, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The E-step.

    Returns:
        the total log-likelihood, the sums of the responsibilities r (k,), times the rows' weights where they have any,
        and the expected sums of
        :math:`r\,(x - \mu)` (k, d) and of :math:`r\,(x - \mu)(x - \mu)^T` (k, d, d), or its diagonal (k, d) where
        ``covariance`` holds variances.
    """
    matrix = covariance.ndim == 3
    total, counts = mean.new_zeros(()), mean.new_zeros(len(mean))
    first, second = torch.zeros_like(mean), torch.zeros_like(covariance, memory_format=torch.contiguous_format)
    for part in data.parts(rows_at_once(covariance.numel())):
        density, offset, spread = _complete(part, mean, covariance)
        score = log_weight + density
        norm = score.logsumexp(-1, keepdim=True)
        share = part.weighted((score - norm).exp())  # (b, k)
        weighted = share.unsqueeze(-1) * offset
        pooled = share.new_zeros(len(part.patterns), share.shape[1]).index_add_(0, part.which, share)  # (p, k)
        total += part.weighted(norm).sum()
        counts += share.sum(0)
        first += weighted.sum(0)
        if matrix:
            second += torch.einsum("bki,bkj->kij", weighted, offset) + torch.einsum("pk,pkij->kij", pooled, spread)
        else:
            second += (weighted * offset).sum(0) + torch.einsum("pk,pki->ki", pooled, spread)
    return total, counts, first, second


def impute(x: Tensor, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> Imputation:
    """Mean and variance of the missing entries under the mixture of the components' conditional Gaussians."""
    data = Incomplete.of(x).sorted()
    filled, variance = data.data.filled.clone(), torch.zeros_like(data.data.filled)
    for part in data.parts(rows_at_once(covariance.numel())):
        density, offset, spread = _complete(part, mean, covariance)
        share = (log_weight + density).softmax(-1).unsqueeze(-1)  # (b, k, 1)
        own = spread.diagonal(dim1=-2, dim2=-1) if spread.ndim == 4 else spread
        guess = mean + offset  # (b, k, d)
        centre = (share * guess).sum(1)
        within = (share * (own[part.which] + (guess - centre.unsqueeze(1)).square())).sum(1)
        filled[part.rows] = torch.where(part.observed, part.filled, centre)
        variance[part.rows] = torch.where(part.observed, 0.0, within)
    return Imputation(filled, variance)
