r"""The algebra of Gaussian mixtures: covariances of the components, and the E-step by matrix products.

Rows enter by their features :math:`\phi(x) = (1, x, x x^T)` around a common centre (squares alone where covariances are
diagonal, no second moments where one covariance serves all components), so that an E-step is two matrix products: the
log joint densities :math:`\Theta \phi` of all components, and the sums :math:`R \phi^T` of the responsibilities R.
Features are made block by block, small enough for the processor's cache.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoo.algebra.mixture_covariances import deviations, is_matrix
from zoo.base.threads import side_by_side

CACHE = 2**18  # numbers per block of features
ROWS = (64, 2048)  # the fewest and the most rows per block
LEAST = 4  # blocks per thread
SMALL = 2**14  # numbers (rows x components x columns) for which any way takes no longer than its calls
WIDEST = 4096  # features; beyond, products component by component are as fast


class WeightedRows(NamedTuple):
    """Complete rows (n, d) with weights (n,), positive and in float64."""

    rows: Tensor
    weights: Tensor


Block = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]  # of rows and their weights


class Sums(NamedTuple):
    """The result of an E-step, in float64. Where rows have weights, responsibilities r are multiplied by them.

    Attributes:
        total: the log-likelihood.
        counts: the sums of the responsibilities r (k,).
        centre: a point for every component, or one for all: (k, d) or (d,).
        first: the sums of r (x - centre) (k, d).
        second: the sums of r (x - centre)(x - centre)' (k, d, d), or their diagonals (k, d); for ``"tied"`` covariances
            the sum over the components as well (1, d, d).
    """

    total: Tensor
    counts: Tensor
    centre: Tensor
    first: Tensor
    second: Tensor


def features(x: Tensor, matrix: bool, out: Tensor | None = None) -> Tensor:
    """phi (p, b) of columns (d, b): 1, x, and the products of pairs of columns (their squares for diagonal ones)."""
    d, b = x.shape
    found = x.new_empty(width(d, matrix), b) if out is None else out
    found[0] = 1.0
    found[1 : d + 1] = x
    x = found[1 : d + 1]
    if not matrix:
        torch.mul(x, x, out=found[d + 1 :])
        return found
    end = d + 1
    for i in range(d):
        start, end = end, end + d - i
        torch.mul(x[i], x[i:], out=found[start:end])
    return found


def width(d: int, matrix: bool) -> int:
    """The number of features of d columns."""
    return 1 + d + (d * (d + 1) // 2 if matrix else d)


def normalised(logs: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Responsibilities (k, b) of log joint densities (k, b), and the sum of their log normalisers.

    The largest density over the largest responsibility is the normaliser. Both are multiplied by the weights (b,) of
    the rows, if there are any.
    """
    shares = logs.softmax(0)
    norms = logs.amax(0) - shares.amax(0).log_()
    if weights is None:
        return shares, norms.sum()
    return shares * weights.to(shares), norms @ weights.to(norms)


def expect(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, kind: str, weights: Tensor | None = None) -> Sums:
    """The E-step on complete rows (n, d), whose dtype is that of the products; sums are in float64.

    Features around one centre lose digits where components are narrow beside the spread of the rows: where that would
    show, every component is taken around its own mean.

    Args:
        x: the rows.
        weight: the proportions (k,).
        mean: the means (k, d).
        scale: as for :func:`~zoo.algebra.mixture_covariances.covariances`.
        kind: one of its ``KINDS``.
        weights: of the rows (n,); None for ones.
    """
    weight, mean, scale = weight.double(), mean.double(), scale.double()
    d, matrix = x.shape[1], kind == "full"
    if not is_matrix(kind):
        scale = deviations(scale, kind, *mean.shape)  # (k, d)
    if kind == "tied":
        return _tied(x, weight, mean, scale, weights)
    if len(x) * mean.numel() <= SMALL or (matrix and width(d, matrix) > WIDEST):
        return _apart(x, weight, mean, scale, kind, weights)
    centre = weight @ mean
    theta = _coefficients(weight, mean - centre, scale, matrix)  # (k, p)
    total, sums = _pass(x, centre, theta, matrix, weights)
    counts, first, second = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
    if matrix:
        second = _square(second, d)
    if _digits_lost(theta[:, d + 1 :], second.sum(0) / counts.sum()) > _tolerated(x):
        return _apart(x, weight, mean, scale, kind, weights)
    return Sums(total, counts, centre, first, second)


def _coefficients(weight: Tensor, offset: Tensor, scale: Tensor, matrix: bool) -> Tensor:
    """Theta (k, p), whose products with the features are the log joint densities."""
    d = offset.shape[1]
    if matrix:
        precision = torch.cholesky_inverse(scale)  # (k, d, d)
        linear = (precision @ offset.unsqueeze(-1)).squeeze(-1)
        logdet = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        pairs, factor, _ = _pairs(d, offset.device)
        second = precision.flatten(1).index_select(1, pairs) * factor
    else:
        precision = scale.square().reciprocal()
        linear, logdet, second = precision * offset, scale.log().sum(-1), -0.5 * precision
    constant = weight.log() - logdet - 0.5 * ((offset * linear).sum(-1) + d * math.log(2 * math.pi))
    return torch.cat([constant.unsqueeze(-1), linear, second], 1)


def _pass(x: Tensor, centre: Tensor, theta: Tensor, matrix: bool, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log-likelihood, and the responsibilities' sums of the features (k, p), block by block."""
    own, around, size = theta.to(x), centre.to(x), _rows(theta.shape[1])

    def share(rows: Tensor, some: Tensor | None) -> tuple[Tensor, ...]:
        total, sums = theta.new_zeros(()), torch.zeros_like(theta)
        buffer = x.new_empty(theta.shape[1], min(size, len(rows)))
        for part, own_weights in _blocks(rows, some, size):
            out = buffer if len(part) == buffer.shape[1] else buffer[:, : len(part)].contiguous()
            phi = features((part - around).T, matrix, out)
            shares, norm = normalised(own @ phi, own_weights)
            if sums.dtype == phi.dtype:
                sums.addmm_(shares, phi.T)
            else:
                sums += shares @ phi.T
            total += norm
        return total, sums

    total, sums = _shared_out(share, x, weights, size)
    return total, sums


def _shared_out(share: Block, x: Tensor, weights: Tensor | None, size: int) -> tuple[Tensor, ...]:
    """The sums of what ``share`` returns for parts of the rows, one per thread, if they are many blocks of ``size``."""
    threads = min(len(x) // (LEAST * size), torch.get_num_threads())
    if threads < 2 or x.device.type != "cpu":
        return share(x, weights)
    parts = list(_blocks(x, weights, -(-len(x) // threads)))
    return tuple(torch.stack(each).sum(0) for each in zip(*side_by_side(share, parts), strict=True))


def _blocks(x: Tensor, weights: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows (n, d) and their weights (n,), if any, in blocks."""
    if len(x) <= size:
        return iter([(x, weights)])
    return zip(x.split(size), itertools.repeat(None) if weights is None else weights.split(size), strict=False)


def _rows(width: int) -> int:
    """The number of rows per block of ``width`` numbers each."""
    return min(max(ROWS[0], CACHE // width), ROWS[1])


@functools.lru_cache(maxsize=16)
def _pairs(d: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The upper triangle of a d x d matrix: where it lies, -1/2 on the diagonal and -1 elsewhere, and the way back."""
    row, column = torch.triu_indices(d, d, device=device)
    back = torch.empty(d, d, dtype=torch.long, device=device)
    back[row, column] = back[column, row] = torch.arange(len(row), device=device)
    return row * d + column, torch.where(row == column, -0.5, -1.0).double(), back.flatten()


def _square(second: Tensor, d: int) -> Tensor:
    """Symmetric matrices (k, d, d) from their upper triangles (k, p)."""
    return second.index_select(1, _pairs(d, second.device)[2]).unflatten(1, (d, d))


def _tied(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, weights: Tensor | None) -> Sums:
    """One covariance for all: whitened once, the densities differ by linear terms, and all rows share their squares."""
    d, centre = x.shape[1], weight @ mean
    identity = torch.eye(d, dtype=scale.dtype, device=scale.device)
    inverse = torch.linalg.solve_triangular(scale, identity, upper=False)
    white = (mean - centre) @ inverse.T  # the means, whitened (k, d)
    constant = torch.sub(weight.log(), white.square().sum(-1), alpha=0.5)
    theta, around = torch.cat([constant.unsqueeze(-1), white @ inverse], 1).to(x), centre.to(x)

    def block(part: Tensor, some: Tensor | None) -> tuple[Tensor, ...]:
        phi = pad(part - around, (1, 0), value=1.0)  # 1 and the offsets (b, 1 + d)
        shares, norm = normalised(theta @ phi.T, some)
        return norm, shares @ phi, (phi.T if some is None else phi.T * some.to(phi)) @ phi

    norm, sums, squares = _added(block, x, weights, _rows(d + len(mean)))
    total = len(x) if weights is None else weights.sum().item()
    second = squares[1:, 1:]
    misfit = ((inverse @ second) * inverse).sum().item()  # the sum of squares of the whitened rows
    if misfit > total * _tolerated(x):
        return _apart(x, weight, mean, scale, "tied", weights)
    level = scale.diagonal().log().sum().item() + 0.5 * d * math.log(2 * math.pi)
    return Sums(norm - (0.5 * misfit + total * level), sums[:, 0], centre, sums[:, 1:], second.unsqueeze(0))


def _added(block: Block, x: Tensor, weights: Tensor | None, size: int) -> tuple[Tensor, ...]:
    """The sums of what ``block`` returns for ``size`` rows at a time and their weights, in float64."""

    def share(rows: Tensor, some: Tensor | None) -> tuple[Tensor, ...]:
        total: tuple[Tensor, ...] = ()
        for part, own in _blocks(rows, some, size):
            found = tuple(one.double() for one in block(part, own))
            total = tuple(map(torch.add, total, found)) if total else found
        return total

    return _shared_out(share, x, weights, size)


def _digits_lost(second: Tensor, moments: Tensor) -> float:
    """The size of the terms that cancel in log densities with coefficients (k, p), in nats, at the rows' moments."""
    if moments.ndim == 2:
        spread = moments.diagonal().sqrt()
        moments = torch.outer(spread, spread).flatten().index_select(0, _pairs(len(spread), moments.device)[0])
    return float((second.abs() @ moments).max())


def _tolerated(x: Tensor) -> float:
    """The size of terms at which rounding in the dtype of ``x`` is below 4e-10 nats (7e-5 in float32)."""
    return float(torch.finfo(x.dtype).eps ** -0.4)


def _apart(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, kind: str, weights: Tensor | None) -> Sums:
    """The E-step with the rows taken around the mean of every component: exact, and the least work for few rows."""
    k, d = mean.shape
    matrix = is_matrix(kind)
    whiten, constant = _whitening(weight, scale, k, d, matrix)
    whiten, lift, centres = whiten.to(x), constant.to(x).unsqueeze(-1), mean.to(x).unsqueeze(1)

    def block(part: Tensor, some: Tensor | None) -> tuple[Tensor, ...]:
        offset = part - centres  # (k, b, d)
        white = offset @ whiten if matrix else offset * whiten
        shares, norm = normalised(torch.add(lift, white.square_().sum(-1), alpha=-0.5), some)  # (k, b)
        weighted = shares.unsqueeze(-1) * offset
        own = weighted.mT @ offset if matrix else weighted.mul(offset).sum(1)
        return norm, shares.sum(1), weighted.sum(1), own

    norm, counts, first, second = _added(block, x, weights, _rows(k * d))
    return Sums(norm, counts, mean, first, second.sum(0, keepdim=True) if kind == "tied" else second)


def _whitening(weight: Tensor, scale: Tensor, k: int, d: int, matrix: bool) -> tuple[Tensor, Tensor]:
    """What whitens rows: matrices (k, d, d) or factors (k, 1, d); the log normalisers (k,)."""
    if matrix:
        identity = torch.eye(d, dtype=scale.dtype, device=scale.device)
        whiten = torch.linalg.solve_triangular(scale.expand(k, d, d), identity, upper=False).mT
        logdet = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        whiten, logdet = scale.reciprocal().unsqueeze(1), scale.log().sum(-1)
    return whiten, weight.log() - logdet - 0.5 * d * math.log(2 * math.pi)
