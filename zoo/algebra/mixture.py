r"""The algebra of Gaussian mixtures: covariances of the components, and the E-step by matrix products.

Rows enter by their features :math:`\phi(x) = (1, x, x x^T)` around a common centre (squares alone where covariances are
diagonal, no second moments where one covariance serves all components), so that an E-step is two matrix products: the
log joint densities :math:`\Theta \phi` of all components, and the sums :math:`R \phi^T` of the responsibilities R.
Features are made block by block, small enough for the processor's cache.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("full", "tied", "diag", "spherical")
CACHE = 2**16  # numbers per block of features
WIDEST = 4096  # features; beyond, products component by component are as fast


class Sums(NamedTuple):
    """The result of an E-step, in float64.

    Attributes:
        total: the log-likelihood.
        counts: the sums of the responsibilities r (k,).
        centre: a point for every component, or one for all: (k, d) or (d,).
        first: the sums of r (x - centre) (k, d).
        second: the sums of r (x - centre)(x - centre)' (k, d, d), or their diagonals (k, d); for tied covariances the
            sum over the components as well (1, d, d).
    """

    total: Tensor
    counts: Tensor
    centre: Tensor
    first: Tensor
    second: Tensor


def covariances(scale: Tensor, kind: str, components: int, width: int) -> Tensor:
    """The covariance of every component (k, d, d).

    Args:
        scale: for ``"full"`` and ``"tied"`` Cholesky factors (k, d, d) or (d, d), for ``"diag"`` and ``"spherical"``
            standard deviations (k, d) or (k,).
        kind: one of ``KINDS``.
        components: the number of components k.
        width: the number of columns d.
    """
    if kind in ("full", "tied"):
        return (scale @ scale.mT).expand(components, width, width)
    return torch.diag_embed(scale.square().reshape(components, -1).expand(components, width))


def features(x: Tensor, matrix: bool) -> Tensor:
    """phi (p, b) of columns (d, b): 1, x, and the products of pairs of columns (their squares for diagonal ones)."""
    d, b = x.shape
    found = x.new_empty(1 + d + (d * (d + 1) // 2 if matrix else d), b)
    found[0] = 1.0
    found[1 : d + 1] = x
    if not matrix:
        torch.mul(x, x, out=found[d + 1 :])
        return found
    end = d + 1
    for i in range(d):
        start, end = end, end + d - i
        torch.mul(x[i], x[i:], out=found[start:end])
    return found


def normalised(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (k, b) of log joint densities (k, b), in place, and the sum of their log normalisers."""
    top = logs.amax(0)
    shares = logs.sub_(top).exp_()
    norm = shares.sum(0)
    return shares.div_(norm), norm.log_().add_(top).sum()


def expect(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, kind: str) -> Sums:
    """The E-step on complete rows (n, d), whose dtype is that of the products; sums are in float64.

    Features around one centre lose digits where components are narrow beside the spread of the rows: where that would
    show, every component is taken around its own mean.

    Args:
        x: the rows.
        weight: the proportions (k,).
        mean: the means (k, d).
        scale: as for :func:`covariances`.
        kind: one of ``KINDS``.
    """
    weight, mean, scale = weight.double(), mean.double(), scale.double()
    d = x.shape[1]
    if kind == "tied":
        return _tied(x, weight, mean, scale)
    matrix = kind == "full"
    if matrix and d * (d + 3) // 2 >= WIDEST:
        return _apart(x, weight, mean, scale, kind)
    centre = weight @ mean
    theta = _coefficients(weight, mean - centre, scale, matrix)  # (k, p)
    total, sums = _pass(x, centre, theta, matrix)
    counts, first, second = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
    if matrix:
        second = _square(second, d)
    if _digits_lost(theta[:, d + 1 :], second.sum(0) / len(x)) > _tolerated(x):
        return _apart(x, weight, mean, scale, kind)
    return Sums(total, counts, centre, first, second)


def _coefficients(weight: Tensor, offset: Tensor, scale: Tensor, matrix: bool) -> Tensor:
    """Theta (k, p), whose products with the features are the log joint densities."""
    k, d = offset.shape
    if matrix:
        precision = torch.cholesky_inverse(scale)  # (k, d, d)
        linear = (precision @ offset.unsqueeze(-1)).squeeze(-1)
        logdet = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        upper = torch.triu_indices(d, d, device=offset.device)
        second = precision[:, upper[0], upper[1]] * torch.where(upper[0] == upper[1], -0.5, -1.0)
    else:
        sd = scale.reshape(k, -1).expand(k, d)
        precision = sd.square().reciprocal()
        linear, logdet, second = precision * offset, sd.log().sum(-1), -0.5 * precision
    constant = weight.log() - logdet - 0.5 * ((offset * linear).sum(-1) + d * math.log(2 * math.pi))
    return torch.cat([constant.unsqueeze(-1), linear, second], 1)


def _pass(x: Tensor, centre: Tensor, theta: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    """The log-likelihood, and the responsibilities' sums of the features (k, p), block by block."""
    own, around = theta.to(x), centre.to(x)
    total, sums = theta.new_zeros(()), torch.zeros_like(theta)
    for part in x.split(max(64, CACHE // theta.shape[1])):
        phi = features((part - around).T, matrix)
        shares, norm = normalised(own @ phi)
        if sums.dtype == phi.dtype:
            sums.addmm_(shares, phi.T)
        else:
            sums += shares @ phi.T
        total += norm
    return total, sums


def _square(second: Tensor, d: int) -> Tensor:
    """Symmetric matrices (k, d, d) from their upper triangles (k, p)."""
    upper = torch.triu_indices(d, d, device=second.device)
    matrices = second.new_empty(len(second), d, d)
    matrices[:, upper[0], upper[1]] = second
    matrices[:, upper[1], upper[0]] = second
    return matrices


def _tied(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> Sums:
    """One covariance for all: whitened once, the densities differ by linear terms, and all rows share their squares."""
    d = x.shape[1]
    centre = weight @ mean
    identity = torch.eye(d, dtype=scale.dtype, device=scale.device)
    inverse = torch.linalg.solve_triangular(scale, identity, upper=False)
    white = (mean - centre) @ inverse.T  # the means, whitened (k, d)
    constant = weight.log() - 0.5 * white.square().sum(-1)
    linear = white @ inverse
    own, lift, around = linear.to(x), constant.to(x).unsqueeze(-1), centre.to(x)
    total, counts = x.new_zeros((), dtype=torch.float64), torch.zeros_like(weight)
    first, second = torch.zeros_like(mean), torch.zeros_like(scale)
    for part in x.split(max(64, CACHE // (d + len(mean)))):
        offset = part - around
        shares, norm = normalised(torch.addmm(lift, own, offset.T))
        total += norm
        counts += shares.sum(1)
        first += shares @ offset
        second += offset.T @ offset
    norm = scale.diagonal().log().sum() + 0.5 * d * math.log(2 * math.pi)
    misfit = ((inverse @ second) * inverse).sum()  # the sum of squares of the whitened rows
    if misfit / len(x) > _tolerated(x):
        return _apart(x, weight, mean, scale, "tied")
    return Sums(total - 0.5 * misfit - len(x) * norm, counts, centre, first, second.unsqueeze(0))


def _digits_lost(second: Tensor, moments: Tensor) -> float:
    """The size of the terms that cancel in log densities with coefficients (k, p), in nats, at the rows' moments."""
    if moments.ndim == 2:
        d, spread = len(moments), moments.diagonal().sqrt()
        upper = torch.triu_indices(d, d, device=moments.device)
        moments = spread[upper[0]] * spread[upper[1]]
    return float((second.abs() @ moments).max())


def _tolerated(x: Tensor) -> float:
    """The size of terms at which rounding in the dtype of ``x`` is below 4e-10 nats (7e-5 in float32)."""
    return float(torch.finfo(x.dtype).eps ** -0.4)


def _apart(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, kind: str) -> Sums:
    """The E-step with the rows taken around the mean of every component in turn."""
    k, d = mean.shape
    matrix = kind in ("full", "tied")
    whiten, constant = _whitening(weight, scale, k, d, matrix)
    whiten, lift, centres = whiten.to(x), constant.to(x).unsqueeze(-1), mean.to(x)
    total, counts = x.new_zeros((), dtype=torch.float64), torch.zeros_like(weight)
    first = torch.zeros_like(mean)
    second = mean.new_zeros((k, d, d) if matrix else (k, d))
    for part in x.split(max(64, CACHE // d)):
        logs = part.new_empty(k, len(part))
        for j, centre in enumerate(centres):
            offset = part - centre
            white = offset @ whiten[j].T if matrix else offset * whiten[j]
            logs[j] = white.square_().sum(1)
        shares, norm = normalised(torch.add(lift, logs, alpha=-0.5))
        total += norm
        counts += shares.sum(1)
        for j, centre in enumerate(centres):
            offset = part - centre
            weighted = shares[j].unsqueeze(1) * offset
            first[j] += weighted.sum(0)
            second[j] += weighted.T @ offset if matrix else (weighted * offset).sum(0)
    return Sums(total, counts, mean, first, second.sum(0, keepdim=True) if kind == "tied" else second)


def _whitening(weight: Tensor, scale: Tensor, k: int, d: int, matrix: bool) -> tuple[Tensor, Tensor]:
    """The inverses of the Cholesky factors (k, d, d), or of the standard deviations (k, d); the log normalisers (k,)."""
    if matrix:
        scale = scale.expand(k, d, d)
        identity = torch.eye(d, dtype=scale.dtype, device=scale.device).expand(k, d, d)
        whiten = torch.linalg.solve_triangular(scale, identity, upper=False)
        logdet = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        sd = scale.reshape(k, -1).expand(k, d)
        whiten, logdet = sd.reciprocal(), sd.log().sum(-1)
    return whiten, weight.log() - logdet - 0.5 * d * math.log(2 * math.pi)
