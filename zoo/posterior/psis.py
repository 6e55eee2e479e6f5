"""Pareto-smoothed importance sampling, row by row."""

import torch
from torch import Tensor

from zoo.compat.container import smooth

LEAST = 30  # draws: with fewer, the tail has too few values for a Pareto fit, and ArviZ 1.x returns NaN


def psis_khat(log_weights: Tensor) -> Tensor:
    r"""The Pareto shape k-hat of the importance weights of every row, by ArviZ's Pareto smoothing.

    Below 0.5 the weights have a finite variance, below 0.7 importance sampling from the guide is reliable,
    above 1 their mean is infinite and the guide misses a tail of the posterior.

    A row whose largest weight occurs in five draws or more has bounded weights and no tail to fit, and k-hat is
    :math:`-\infty`. This is the case where the guide is exact, so that all weights are equal up to rounding, and
    mostly where a discrete site has few values.

    Args:
        log_weights: log p(x, z) - log q(z) of every draw and row (draws, n), up to a constant per row; -inf
            is a weight of 0.

    Returns:
        k-hat (n,), with the dtype and device of ``log_weights``.

    Raises:
        ValueError: not of shape (draws, n), fewer than 30 draws, or a row with NaN, +inf or nothing but -inf.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).

    >>> psis_khat(torch.zeros(100, 2))
    tensor([-inf, -inf])
    """
    return psis_weights(log_weights)[1]


def psis_weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Importance weights of every row, with the largest ones smoothed, and k-hat.

    The largest :math:`\min(S / 5, 3 \sqrt S)` of S weights are replaced by the expected order statistics of the
    generalised Pareto distribution fitted to them, truncated at the largest raw weight, which reduces the variance at
    the price of a small bias. Where :func:`psis_khat` finds no tail to fit, the weights are unchanged.

    Args:
        log_weights: log p(x, z) - log q(z) of every draw and row (draws, n), up to a constant per row; -inf
            is a weight of 0.

    Returns:
        the smoothed log weights (draws, n), normalised: their exponentials sum to 1 over the draws of a row; and
        k-hat (n,). Both with the dtype and device of ``log_weights``.

    Raises:
        ValueError: not of shape (draws, n), fewer than 30 draws, or a row with NaN, +inf or nothing but -inf.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).

    >>> weights, khat = psis_weights(torch.zeros(100, 2))
    >>> weights.exp().sum(0)
    tensor([1.0000, 1.0000])
    """
    if log_weights.ndim != 2:
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}: pass (draws, n)")
    if len(log_weights) < LEAST:
        raise ValueError(f"log_weights has {len(log_weights)} draws, too few to fit their tail: use at least {LEAST}")
    values = log_weights.detach()
    top = values.amax(0)
    wrong = (values.isnan().any(0) | ~top.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"the log weights of row {wrong[0]} (and {len(wrong) - 1} more) contain NaN or inf, or are all -inf: look "
            "for draws outside the model's support"
        )
    finite = values.masked_fill(values.isinf(), 0.0)
    rounding = 1e3 * torch.finfo(values.dtype).eps * finite.abs().amax(0).clamp_min(1.0)
    equal = top - values.amin(0) <= rounding
    bounded = equal | ((values == top).sum(0) >= 5)
    khat = torch.full_like(top, -torch.inf)
    weights = (values - top).double()
    if not bounded.all():
        tailed = ~bounded
        smoothed, shape = smooth(weights[:, tailed].T.contiguous().cpu().numpy())  # (rows, draws), (rows,)
        weights[:, tailed] = torch.as_tensor(smoothed).T.to(weights)
        khat[tailed] = torch.as_tensor(shape).to(khat)
    return weights.log_softmax(0).to(values), khat
