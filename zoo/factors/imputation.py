"""Missing entries of rows, by any guide that takes rows with missing entries."""

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from zoo.algebra.missing import Imputation, marginal_root
from zoo.base.checks import check_rows, check_whole
from zoo.factors.generation import BUDGET, given_draws, guide_traces, total
from zoo.infer.run import Fit
from zoo.posterior.engine import reader, reading
from zoo.posterior.rowwise import row_weights


def impute(run: Fit, x: Any, *, draws: int = 1000, seed: int = 0, weighted: bool = False) -> Imputation:
    r"""The missing entries (NaN) of rows: mean and variance given the observed ones, over draws from the guide.

    .. math:: E[x_m \mid x_o] = E_q\, E[x_m \mid x_o, z], \qquad
              \mathrm{Var}[x_m \mid x_o] = E_q \mathrm{Var}[x_m \mid x_o, z] + \mathrm{Var}_q\, E[x_m \mid x_o, z]

    where q(z | x_o) is the guide's. Where the columns are correlated given z, the observed ones tell of the missing
    ones beyond z; a Gaussian's conditional moments are used. A guide that is not the posterior gives another answer
    than the model's: ``weighted`` corrects it by self-normalised importance weights
    :math:`p(x_o, z) / q(z \mid x_o)`, and the k-hat of :func:`zoo.evaluate` tells whether they can.

    Args:
        run: from :func:`zoo.fit`; any model that accepts missing entries.
        x: rows (n, d) or a :class:`zoo.data.Dataset`; a guide with parameters for every row takes those it was fitted
            to.
        draws: per row, at least 2.
        seed: of the draws; the caller's random stream is left alone.
        weighted: by importance.

    Returns:
        mean and variance (n, d): observed entries as they are, with variance 0.

    Raises:
        ValueError: too few draws, or rows that are not fit for model or guide.
        TypeError: the columns depend on each other given z, and not as a Gaussian.

    References:
        Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, ICML.
    """
    check_whole(draws, "draws", 2)
    x = check_rows(x, run.model)
    mean, variance, missing = x.clone(), torch.zeros_like(x), x.isnan()
    needed = missing.any(1).nonzero().squeeze(1)
    if not len(needed):
        return Imputation(mean, variance)
    with reading(run, seed):
        for index, arguments, trace in guide_traces(run, x, draws, needed):
            weights = None
            if weighted:  # of the very same draws
                same = replace(run, guide=poutine.replay(run.guide, trace=trace))
                weights = row_weights(reader(same, x), arguments, draws, "impute").softmax(0)  # (s, b)
            density = given_draws(run, trace, len(arguments[0]))
            found = total(*conditional_moments(density, arguments[0]), weights)
            mean[index] = torch.where(missing[index], found[0], x[index])
            variance[index] = torch.where(missing[index], found[1], 0.0)
    return Imputation(mean, variance)


def conditional_moments(density: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of every missing entry of ``x`` given the observed ones; what stands for the others is void.

    .. math:: E[x_m \mid x_o] = \mu_m + \Sigma_{mo} \Sigma_{oo}^{-1} (x_o - \mu_o), \qquad
              \mathrm{Var}[x_m \mid x_o] = \mathrm{diag}(\Sigma_{mm} - \Sigma_{mo} \Sigma_{oo}^{-1} \Sigma_{om})

    Args:
        density: of whole rows, batch (s, n), event (d,): independent entries, or a Gaussian.
        x: the rows (n, d).

    Returns:
        both (s, n, d).

    Raises:
        TypeError: another distribution.
    """
    if isinstance(density, torch.distributions.Independent) and density.reinterpreted_batch_ndims == 1:
        return density.mean, density.variance
    observed = ~x.isnan()
    offset = torch.where(observed, x - density.mean, 0.0)  # (s, n, d)
    if isinstance(density, dist.LowRankMultivariateNormal):
        shift, variance = _low_rank(density, observed, offset)
    elif isinstance(density, dist.MultivariateNormal):
        shift, variance = _full(density, observed, offset)
    else:
        raise TypeError(
            f"impute knows independent columns and Gaussians given z, got {type(density).__name__}: its conditional "
            "moments need a rule of their own"
        )
    return density.mean + shift, variance


def _low_rank(density: Any, observed: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance F F' + D: the columns are independent given a standard normal u (r,), so go by its posterior."""
    factor, diagonal = density.cov_factor, density.cov_diag  # (s, n, d, r), (s, n, d)
    scaled = torch.where(observed.unsqueeze(-1), factor / diagonal.unsqueeze(-1), 0.0)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(identity + scaled.mT @ factor)  # of the precision of u given x_o
    centre = torch.cholesky_solve(scaled.mT @ offset.unsqueeze(-1), root)  # (s, n, r, 1)
    white = torch.linalg.solve_triangular(root, factor.mT, upper=False)  # (s, n, r, d)
    return (factor @ centre).squeeze(-1), diagonal + white.square().sum(-2)


def _full(density: Any, observed: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    n, d = observed.shape
    both = ~observed.unsqueeze(-2) & observed.unsqueeze(-1)  # rows observed, columns missing (n, d, d)
    tril = density.scale_tril.expand(*offset.shape[:-1], d, d)
    shifts, variances = [], []
    count = max(1, BUDGET // (n * d * d))  # draws at a time
    for some, residual in zip(tril.split(count), offset.split(count), strict=True):
        covariance = some @ some.mT
        root = marginal_root(covariance, observed)
        white = torch.linalg.solve_triangular(root, torch.where(both, covariance, 0.0), upper=False)
        centre = torch.linalg.solve_triangular(root, residual.unsqueeze(-1), upper=False)
        shifts.append((white.mT @ centre).squeeze(-1))
        variances.append(covariance.diagonal(dim1=-2, dim2=-1) - white.square().sum(-2))
    return torch.cat(shifts), torch.cat(variances)
