r"""The algebra of :mod:`zoo.algebra.linear_gaussian` for rows with missing entries.

.. math:: P_n = I + W_o^T \Psi_o^{-1} W_o, \quad
          p(z_n \mid x_{n,o}) = N(P_n^{-1} W_o^T \Psi_o^{-1} (x_o - \mu_o), P_n^{-1})

where o, the observed columns of a row of the data, selects rows of W and entries of Psi.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.missing import Imputation, Incomplete, Part
from zoo.base.memory import rows_at_once

CANCELLED = 1e-4  # relative size of a difference below which more than four digits are lost


def _precision(observed: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """P_n of every row (n, k, k), given its observed entries (n, d)."""
    k = weight.shape[1]
    outer = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1) / noise.unsqueeze(1)  # (d, k * k)
    gram = (observed.to(weight) @ outer).unflatten(1, (k, k))
    return torch.eye(k, dtype=weight.dtype, device=weight.device) + gram


def _infer(data: Incomplete, weight: Tensor, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The offset x - mu (n, d), 0 where missing, the root of P_n (n, k, k), and W' Psi^-1 (x - mu) (n, k)."""
    offset = torch.where(data.observed, data.filled.to(weight) - mean, 0.0)
    root = torch.linalg.cholesky(_precision(data.observed, weight, noise))
    return offset, root, (offset / noise) @ weight


def _covariance(root: Tensor) -> Tensor:
    """P^-1 (n, k, k)."""
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
    return inverse.mT @ inverse


def posterior(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> dist.MultivariateNormal:
    """p(z | observed entries), batch (n,), event (k,); the prior for rows without any."""
    _, root, projection = _infer(Incomplete.of(x), weight, mean, noise)
    covariance = _covariance(root)
    loc = (covariance @ projection.unsqueeze(-1)).squeeze(-1)
    return dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance))


def log_marginal(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    """The log density of the observed entries of every row (n,); 0 for rows without any."""
    parts = []
    for part in x.split(_rows(weight)):
        data = Incomplete.of(part)
        parts.append(_log_density(data, *_infer(data, weight, mean, noise), noise))
    return torch.cat(parts)


def _log_density(data: Incomplete, offset: Tensor, root: Tensor, projection: Tensor, noise: Tensor) -> Tensor:
    """The log density of the observed entries (n,), from the results of :func:`_infer`."""
    white = torch.linalg.solve_triangular(root, projection.unsqueeze(-1), upper=False).squeeze(-1)
    observed = data.observed.to(offset)
    logdet = observed @ noise.log() + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    misfit = (offset.square() / noise).sum(-1) - white.square().sum(-1)
    return -0.5 * (observed.sum(-1) * math.log(2 * math.pi) + logdet + misfit)


def elbo(x: Tensor, loc: Tensor, covariance: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    """The evidence lower bound of Gaussians with mean (n, k) and covariance (n, k, k), in closed form: (n,)."""
    data = Incomplete.of(x)
    residual = torch.where(data.observed, data.filled - mean - loc @ weight.T, 0.0)  # (n, d)
    k = weight.shape[1]
    gram = _precision(data.observed, weight, noise) - torch.eye(k, dtype=weight.dtype, device=weight.device)
    logdet = data.observed.to(weight) @ (2 * math.pi * noise).log()
    fit = logdet + (residual.square() / noise).sum(-1) + (gram * covariance).sum((-2, -1))
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    prior = trace + loc.square().sum(-1) - k - torch.linalg.slogdet(covariance).logabsdet
    return -0.5 * (fit + prior)


def em_update(
    data: Incomplete, weight: Tensor, mean: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""One step of EM with the missing entries integrated out, where every column is a regression on the factors.

    With :math:`\tilde z = (z, 1)` and sums over the rows in which column j is observed,
    :math:`(w_j, \mu_j) \leftarrow (\sum E[\tilde z \tilde z^T])^{-1} \sum x_{nj} E[\tilde z]`.

    Sums over rows are weighted by the rows' weights where they have any.

    Returns:
        the total log-likelihood before the step, the new weight (d, k) and mean (d,), the sums of the expected squared
        residuals (d,), and the numbers of observed entries (d,).
    """
    d, k = weight.shape
    total = weight.new_zeros(())
    gram, cross = weight.new_zeros(d, (k + 1) ** 2), weight.new_zeros(d, k + 1)
    square, count = weight.new_zeros(d), weight.new_zeros(d)
    for part in data.grouped.parts(_rows(weight)):
        offset, loc, covariance, value = _expect(part, weight, mean, noise)
        total += value
        there, shared = part.patterns.to(weight), part.counts().to(weight)
        heavy = part.weighted(offset)
        ahead = torch.cat([loc, loc.new_ones(len(loc), 1)], 1)  # E (z, 1)
        gram += there.T @ _seconds(part, covariance * shared[:, None, None], ahead).flatten(1)
        cross += heavy.T @ ahead
        square += (heavy * offset).sum(0)
        count += shared @ there
    found = torch.linalg.solve(gram.unflatten(1, (k + 1, k + 1)), cross)  # (d, k + 1)
    residual = square - (found * cross).sum(1)
    if bool((residual < CANCELLED * square).any()):
        residual = _residual(data, weight, mean, noise, found)
    residual = torch.maximum(residual, 1e-30 * square)
    return total, found[:, :k].contiguous(), mean + found[:, k], residual, count


def _expect(part: Part, weight: Tensor, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The E-step of some rows: x - mu (b, d), E z (b, k), the covariance of every pattern (p, k, k), log p(x) in all.

    Where the noise is small, the misfit is a small difference of large numbers, and is computed from the residuals of
    the rows, after a step of iterative refinement.
    """
    offset = torch.where(part.observed, part.filled.to(weight) - mean, 0.0)  # (b, d)
    projection = (offset / noise) @ weight  # (b, k)
    root = _root(part.patterns, weight, noise)  # (p, k, k)
    covariance = _covariance(root)
    loc = _means(part, covariance, projection)
    there, shared = part.patterns.to(weight), part.counts().to(weight)
    logdet = there @ (2 * math.pi * noise).log() + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (p,)
    whole = (part.weighted(offset) * offset / noise).sum()
    misfit = whole - (part.weighted(projection) * loc).sum()
    if float(misfit) < CANCELLED * float(whole):
        left = torch.where(part.observed, offset - loc @ weight.T, 0.0)
        loc = loc + _means(part, covariance, (left / noise) @ weight - loc)
        left = torch.where(part.observed, offset - loc @ weight.T, 0.0)
        misfit = (part.weighted(left) * left / noise).sum() + (part.weighted(loc) * loc).sum()
    return offset, loc, covariance, -0.5 * (shared @ logdet + misfit)


def _root(observed: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """The root of P of every pattern (p, k, k): of the matrix itself, or where it is large, from a QR decomposition."""
    precision = _precision(observed, weight, noise)
    if float(precision.diagonal(dim1=-2, dim2=-1).amax()) * CANCELLED < 1:
        return torch.linalg.cholesky(precision)
    scaled = observed.to(weight).unsqueeze(-1) * (weight / noise.sqrt().unsqueeze(1))  # (p, d, k)
    identity = torch.eye(weight.shape[1]).to(weight).expand_as(precision)
    triangle = torch.linalg.qr(torch.cat([scaled, identity], 1), mode="r").R
    return (triangle * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT


def _residual(data: Incomplete, weight: Tensor, mean: Tensor, noise: Tensor, found: Tensor) -> Tensor:
    """The sums of the expected squared residuals (d,) under new parameters (d, k + 1), as sums of squares."""
    k = weight.shape[1]
    slope, shift = found[:, :k], found[:, k]
    outer = (slope.unsqueeze(2) * slope.unsqueeze(1)).flatten(1)  # (d, k * k)
    total = torch.zeros_like(shift)
    for part in data.grouped.parts(_rows(weight)):
        offset, loc, covariance, _ = _expect(part, weight, mean, noise)
        left = torch.where(part.observed, offset - shift - loc @ slope.T, 0.0)
        there, shared = part.patterns.to(weight), part.counts().to(weight)
        spread = (covariance * shared[:, None, None]).flatten(1) @ outer.T  # (p, d)
        total += (part.weighted(left) * left).sum(0) + (there * spread).sum(0)
    return total


def _means(part: Part, covariance: Tensor, projection: Tensor) -> Tensor:
    """E z (b, k) of rows in the order of their patterns, with covariances (p, k, k)."""
    if (counts := part.segments()) is None:
        return (covariance[part.which] @ projection.unsqueeze(-1)).squeeze(-1)
    return torch.cat([some @ own for some, own in zip(projection.split(counts), covariance, strict=True)])


def _seconds(part: Part, covariance: Tensor, ahead: Tensor) -> Tensor:
    """The sums over the rows of every pattern of E (z, 1)(z, 1)' (p, k + 1, k + 1), given their covariances' sums."""
    heavy = part.weighted(ahead)
    if (counts := part.segments()) is None:
        outer = heavy.unsqueeze(2) * ahead.unsqueeze(1)
        found = outer.new_zeros(len(covariance), *outer.shape[1:]).index_add_(0, part.which, outer)
    else:
        pairs = zip(heavy.split(counts), ahead.split(counts), strict=True)
        found = torch.stack([weighted.T @ some for weighted, some in pairs])
    found[:, :-1, :-1] += covariance
    return found


def impute(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Imputation:
    r"""Conditional mean :math:`w_j^T m_n + \mu_j` and variance :math:`w_j^T V_n w_j + \psi_j` of missing entries."""
    outer = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1)  # (d, k * k)
    means, variances = [], []
    for part in x.split(_rows(weight)):
        data = Incomplete.of(part)
        _, root, projection = _infer(data, weight, mean, noise)
        covariance = _covariance(root)
        loc = (covariance @ projection.unsqueeze(-1)).squeeze(-1)
        means.append(torch.where(data.observed, data.filled, loc @ weight.T + mean))
        variances.append(torch.where(data.observed, 0.0, covariance.flatten(1) @ outer.T + noise))
    return Imputation(torch.cat(means), torch.cat(variances))


def _rows(weight: Tensor) -> int:
    """The number of rows per chunk."""
    d, k = weight.shape
    return rows_at_once(max(d, (k + 1) ** 2))
