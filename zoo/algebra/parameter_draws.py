r"""log p(x | theta) of every row at many draws of theta: the latent variable of the rows integrated or summed out.

What a Bayesian model needs for its evidence, its predictive density and leave-one-out. Memory is bounded: rows and
draws come in chunks.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zoo.algebra.exponential_families import LOG_TWO_PI
from zoo.base.checks import incomplete
from zoo.base.memory import rows_at_once


def linear_log_marginal(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    r""":math:`\log N(x_o \mid \mu_o, W_o W_o^T + \Psi_o)` of the observed entries o, (s, n); 0 where there are none.

    Args:
        x: rows (n, d); NaN where an entry is missing.
        weight: draws of W (s, d, k).
        mean: draws of mu (s, d).
        noise: draws of the noise variances psi (s, d).
    """
    d, k = weight.shape[1:]
    whole = not incomplete(x)

    def some(part: Tensor, chosen: Tensor) -> Tensor:
        return _linear(part, weight[chosen], mean[chosen], noise[chosen], whole)

    return _in_chunks(some, x, len(weight), max(d, k if whole else k * k))


def _linear(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor, whole: bool) -> Tensor:
    """As :func:`linear_log_marginal`, at once."""
    offset = x - mean.unsqueeze(1)  # (s, n, d)
    k = weight.shape[2]
    scaled = weight / noise.unsqueeze(2)  # (s, d, k)
    identity = torch.eye(k, dtype=weight.dtype, device=weight.device)
    if whole:
        root = torch.linalg.cholesky(identity + weight.mT @ scaled)  # (s, k, k)
        white = torch.linalg.solve_triangular(root, (offset @ scaled).mT, upper=False)  # (s, k, n)
        explained = white.square().sum(1)
        count: Tensor | float = float(x.shape[1])
        log_noise = noise.log().sum(1, keepdim=True)  # (s, 1)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    else:
        observed = (~x.isnan()).to(weight)  # (n, d)
        offset = torch.where(x.isnan(), 0.0, offset)
        outer = (weight.unsqueeze(3) * scaled.unsqueeze(2)).flatten(2)  # (s, d, k * k)
        root = torch.linalg.cholesky(identity + (observed @ outer).unflatten(2, (k, k)))  # (s, n, k, k)
        pull = (offset @ scaled).unsqueeze(-1)
        explained = torch.linalg.solve_triangular(root, pull, upper=False).square().sum((-2, -1))
        count = observed.sum(1)
        log_noise = noise.log() @ observed.mT  # (s, n)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    misfit = (offset.square() / noise.unsqueeze(1)).sum(2) - explained
    return -0.5 * (count * LOG_TWO_PI + log_noise + 2 * log_det + misfit)


def mixture_log_marginal(x: Tensor, log_weight: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    r""":math:`\log \sum_j \pi_j N(x_o \mid \mu_{jo}, (\Lambda_j^{-1})_{oo})` of the observed entries o, (s, n).

    Args:
        x: rows (n, d); NaN where an entry is missing.
        log_weight: draws of log pi (s, k).
        mean: draws of mu (s, k, d).
        precision: draws of Lambda: matrices (s, k, d, d), or diagonals (s, k, d).
    """
    s, k, d = mean.shape

    def some(part: Tensor, chosen: Tensor) -> Tensor:
        return _mixture(part, log_weight[chosen], mean[chosen], precision[chosen])

    return _in_chunks(some, x, s, k * d)


def _mixture(x: Tensor, log_weight: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """As :func:`mixture_log_marginal`, at once."""
    if incomplete(x):
        return (log_weight.unsqueeze(2) + _observed(x, mean, precision)).logsumexp(1)
    offset = x - mean.unsqueeze(2)  # (s, k, n, d)
    if precision.ndim == 4:
        root = torch.linalg.cholesky(precision)  # Lambda = R R'
        square = (offset @ root).square().sum(-1)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (s, k)
    else:
        square = (offset.square() * precision.unsqueeze(2)).sum(-1)
        log_det = precision.log().sum(-1)
    constant = log_weight + 0.5 * (log_det - x.shape[1] * LOG_TWO_PI)
    return (constant.unsqueeze(2) - 0.5 * square).logsumexp(1)


def _observed(x: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """log N of the observed entries of every row under every component (s, k, n)."""
    there = ~x.isnan()  # (n, d)
    if precision.ndim == 3:
        offset = torch.where(there, x - mean.unsqueeze(2), 0.0)  # (s, k, n, d)
        log_det = precision.log() @ there.to(precision).mT  # (s, k, n)
        square = (offset.square() * precision.unsqueeze(2)).sum(-1)
        return 0.5 * (log_det - there.sum(1).to(mean) * LOG_TWO_PI - square)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    found = x.new_zeros(*mean.shape[:2], len(x))
    for rows, seen in patterns(x):
        root = torch.linalg.cholesky(covariance[..., seen, :][..., seen])  # (s, k, o, o)
        offset = x[rows][:, seen] - mean[..., seen].unsqueeze(2)  # (s, k, b, o)
        square = torch.linalg.solve_triangular(root, offset.mT, upper=False).square().sum(-2)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        found[..., rows] = -0.5 * (square + log_det.unsqueeze(2) + int(seen.sum()) * LOG_TWO_PI)
    return found


def patterns(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For every pattern of missing entries: the numbers of its rows (b,), and which columns they observe (d,)."""
    found, which = (~x.isnan()).unique(dim=0, return_inverse=True)
    for number, seen in enumerate(found):
        yield (which == number).nonzero().squeeze(1), seen


def _in_chunks(some: Callable[[Tensor, Tensor], Tensor], x: Tensor, draws: int, numbers: int) -> Tensor:
    """``some`` of rows and of numbers of draws, (s, n), where a row at a draw takes ``numbers`` numbers."""
    rows = rows_at_once(numbers)
    each = rows_at_once(numbers * min(rows, len(x)))
    every = torch.arange(draws, device=x.device)
    return torch.cat([torch.cat([some(part, own) for own in every.split(each)]) for part in x.split(rows)], 1)
