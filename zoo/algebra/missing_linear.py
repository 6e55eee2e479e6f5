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
from zoo.base.checks import is_recording
from zoo.base.memory import rows_at_once

CANCELLED = 1e-4  # relative size of a difference below which more than four digits are lost
FAR = {torch.float64: 1e4, torch.float32: 1e3}  # signal over noise, in variances, from which Cholesky factors lose
LEFT = 1e-3  # of a standard deviation of the noise: the largest rounding of a signal


def far_above(scaled: Tensor) -> bool:
    r"""Whether the signal is so far above the noise that P is no longer factorised itself.

    Args:
        scaled: the loadings in units of the noise, :math:`\Psi^{-1/2} W` (..., d, k).

    Raises:
        FloatingPointError: the signal is so far above the noise that the precision of the numbers cannot hold both.
    """
    if is_recording():
        return True  # in a recorded graph, which cannot branch
    signal = float(scaled.detach().square().sum(-2).amax())
    kind = torch.finfo(scaled.dtype)
    if signal**0.5 * kind.eps > LEFT:
        raise FloatingPointError(
            f"a factor's loadings are {signal**0.5:.3g} standard deviations of the noise, beyond the precision of "
            f"{str(scaled.dtype).removeprefix('torch.')}: "
            + ("use fewer factors, or keep the noise away from 0" if kind.bits == 64 else "make the model float64")
        )
    return signal > FAR.get(scaled.dtype, 1e3)


def inverse_root(triangle: Tensor) -> Tensor:
    r"""The lower triangular root L of :math:`P^{-1} = L L^T` (..., k, k), with a positive diagonal.

    Args:
        triangle: upper triangular R (..., k, k), where :math:`R^T R` is P with the factors in reverse order.
    """
    sign = torch.diag_embed(triangle.diagonal(dim1=-2, dim2=-1).sign())
    return torch.linalg.solve_triangular(triangle, sign, upper=True).flip(-2, -1)


def _precision(observed: Tensor, weight: Tensor, noise: Tensor) -> Tensor:
    """P_n of every row (n, k, k), given its observed entries (n, d)."""
    k = weight.shape[1]
    outer = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1) / noise.unsqueeze(1)  # (d, k * k)
    gram = (observed.to(weight) @ outer).unflatten(1, (k, k))
    return torch.eye(k, dtype=weight.dtype, device=weight.device) + gram


def _infer(data: Incomplete, weight: Tensor, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""E z (n, k), the root of its covariance (n, k, k), the misfit :math:`r^T (W_o W_o^T + \Psi_o)^{-1} r` (n,)."""
    offset = torch.where(data.observed, data.filled.to(weight) - mean, 0.0)
    projection = (offset / noise) @ weight
    far = far_above(weight / noise.sqrt().unsqueeze(1))
    root = _root(data.observed, weight, noise, far)
    white = (root.mT @ projection.unsqueeze(-1)).squeeze(-1)
    loc = (root @ white.unsqueeze(-1)).squeeze(-1)
    if not far:
        return loc, root, (offset.square() / noise).sum(-1) - white.square().sum(-1)
    left = torch.where(data.observed, offset - loc @ weight.T, 0.0)  # a step of iterative refinement
    slope = ((left / noise) @ weight - loc).unsqueeze(-1)
    loc = loc + (root @ (root.mT @ slope)).squeeze(-1)
    left = torch.where(data.observed, offset - loc @ weight.T, 0.0)
    return loc, root, (left.square() / noise).sum(-1) + loc.square().sum(-1)


def posterior(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> dist.MultivariateNormal:
    """p(z | observed entries), batch (n,), event (k,); the prior for rows without any."""
    loc, root, _ = _infer(Incomplete.of(x), weight, mean, noise)
    return dist.MultivariateNormal(loc, scale_tril=root)


def log_marginal(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    """The log density of the observed entries of every row (n,); 0 for rows without any."""
    parts = []
    for part in x.split(_rows(weight)):
        data = Incomplete.of(part)
        _, root, misfit = _infer(data, weight, mean, noise)
        logdet = data.observed.to(weight) @ (2 * math.pi * noise).log() - 2 * _log_det(root)
        parts.append(-0.5 * (logdet + misfit))
    return torch.cat(parts)


def _log_det(root: Tensor) -> Tensor:
    """The logarithm of the determinant of triangular matrices (..., k, k)."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


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
    root = _root(part.patterns, weight, noise, far_above(weight / noise.sqrt().unsqueeze(1)))  # (p, k, k)
    covariance = root @ root.mT
    loc = _means(part, covariance, projection)
    there, shared = part.patterns.to(weight), part.counts().to(weight)
    logdet = there @ (2 * math.pi * noise).log() - 2 * _log_det(root)  # (p,)
    whole = (part.weighted(offset) * offset / noise).sum()
    misfit = whole - (part.weighted(projection) * loc).sum()
    if float(misfit) < CANCELLED * float(whole):
        left = torch.where(part.observed, offset - loc @ weight.T, 0.0)
        loc = loc + _means(part, covariance, (left / noise) @ weight - loc)
        left = torch.where(part.observed, offset - loc @ weight.T, 0.0)
        misfit = (part.weighted(left) * left / noise).sum() + (part.weighted(loc) * loc).sum()
    return offset, loc, covariance, -0.5 * (shared @ logdet + misfit)


def _root(observed: Tensor, weight: Tensor, noise: Tensor, far: bool) -> Tensor:
    r"""The lower triangular root L of every :math:`P^{-1} = L L^T` (p, k, k), given the observed entries (p, d).

    As in :func:`zoo.algebra.linear_gaussian.posterior_root`, from the Cholesky factor of P, or where the signal is
    ``far`` above the noise, from a QR decomposition.
    """
    weight = weight.flip(1)  # from the last factor, so that L is lower triangular
    if not far:
        return inverse_root(torch.linalg.cholesky(_precision(observed, weight, noise), upper=True))
    scaled = observed.to(weight).unsqueeze(-1) * (weight / noise.sqrt().unsqueeze(1))  # (p, d, k)
    identity = torch.eye(weight.shape[1]).to(weight).expand(len(observed), -1, -1)
    return inverse_root(torch.linalg.qr(torch.cat([scaled, identity], 1), mode="r").R)


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
        loc, root, _ = _infer(data, weight, mean, noise)
        means.append(torch.where(data.observed, data.filled, loc @ weight.T + mean))
        variances.append(torch.where(data.observed, 0.0, (root @ root.mT).flatten(1) @ outer.T + noise))
    return Imputation(torch.cat(means), torch.cat(variances))


def _rows(weight: Tensor) -> int:
    """The number of rows per chunk."""
    d, k = weight.shape
    return rows_at_once(max(d, (k + 1) ** 2))
