"""Imputation of missing entries, with any guide that takes rows with missing entries."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.missing import Imputation, marginal_root
from zoo.base.callables import name_of
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, known_columns, pair_of, rows_of
from zoo.base.threads import on_suited_threads
from zoo.factors.drawing import likelihoods
from zoo.factors.generation import guide_draws, total
from zoo.posterior.engine import reader, reading
from zoo.posterior.rowwise import row_draws


@on_suited_threads
def impute(run: Trained, x: ArrayLike, *, draws: int = 1000, seed: int = 0, weighted: bool = False) -> Imputation:
    r"""Mean and variance of missing entries (NaN) given the observed ones, over draws from the guide.

    .. math:: E[x_m \mid x_o] = E_q\, E[x_m \mid x_o, z], \qquad
              \mathrm{Var}[x_m \mid x_o] = E_q \mathrm{Var}[x_m \mid x_o, z] + \mathrm{Var}_q\, E[x_m \mid x_o, z]

    where q is the guide; shared sites are averaged over together with z. Where the columns are correlated given z, the
    observed ones are informative about the missing ones beyond z, and the conditional moments of a Gaussian are used.
    With a guide that differs from the posterior, the result differs from the model's conditional moments: ``weighted``
    corrects for it by self-normalised importance weights :math:`p(x_o, z) / q(z \mid x_o)`, which are reliable where
    the k-hat of :func:`zoo.evaluate` is small.

    Args:
        run: a trained pair, of any model with one data site that accepts missing entries.
        x: rows (n, d) or a :class:`zoo.data.Dataset`; for a guide with parameters per row, the rows it was fitted to.
        draws: number of draws per row, at least 2.
        seed: seed of the draws.
        weighted: whether to use importance weights.

    Returns:
        mean and variance (n, d): observed entries unchanged, with variance 0.

    Raises:
        ValueError: too few draws, rows that model or guide cannot take, several data sites, or ``weighted`` where there
            are no weights per row (shared sites, a guide that draws all rows jointly, a point mass).
        TypeError: the columns are dependent given z, and not Gaussian.

    References:
        Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, ICML.
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    names, data = known_columns(run, x), rows_of(run, x)
    mean, variance, missing = data.clone(), torch.zeros_like(data), data.isnan()
    needed = missing.any(1).nonzero().squeeze(1)
    if not len(needed):
        return Imputation(mean, variance).named(x, names)
    with reading(run, seed):
        source = reader(run, data)
        if len(source.layout.data) != 1:
            sites = ", ".join(f"'{name}'" for name in source.layout.data)
            raise ValueError(f"impute needs a model with one data site, {name_of(run.model)} has {sites}")
        held: dict[str, Tensor] = {}
        for index, arguments in source.chunks(rows_at_once(draws * data.shape[1]), needed):
            if weighted:
                drawn, log_weights = row_draws(source, arguments, draws, "impute(weighted=True)")
                values, weights = source.complete(arguments, drawn, draws), log_weights.softmax(0)  # (s, b)
            else:
                values, weights = guide_draws(source, arguments, draws, held), None
            _, densities = likelihoods(source, arguments, values, draws)
            parts = [_moments(part, arguments[0]) for part in densities[source.layout.data[0]]]
            means, variances = (torch.cat(each) for each in zip(*parts, strict=True))
            found = total(means, variances, weights)
            mean[index] = torch.where(missing[index], found[0], data[index])
            variance[index] = torch.where(missing[index], found[1], 0.0)
    return Imputation(mean, variance).named(x, names)


def _moments(density: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The :func:`conditional_moments` (s, b, d), for a distribution with or without leading draws."""
    if len(density.batch_shape) == 1:
        density = density.expand((1, *density.batch_shape))
    return tuple(each.reshape(-1, *x.shape) for each in conditional_moments(density, x))  # type: ignore[return-value]


def conditional_moments(density: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of every missing entry of ``x`` given the observed ones; other entries are meaningless.

    .. math:: E[x_m \mid x_o] = \mu_m + \Sigma_{mo} \Sigma_{oo}^{-1} (x_o - \mu_o), \qquad
              \mathrm{Var}[x_m \mid x_o] = \mathrm{diag}(\Sigma_{mm} - \Sigma_{mo} \Sigma_{oo}^{-1} \Sigma_{om})

    Args:
        density: the distribution of whole rows, batch (s, n), event (d,): independent entries, or a Gaussian.
        x: the rows (n, d).

    Returns:
        mean and variance (s, n, d).

    Raises:
        TypeError: the distribution is of another kind.
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
            f"impute supports independent columns and Gaussians given z, got {type(density).__name__}: its conditional "
            "moments are unknown"
        )
    return density.mean + shift, variance


def _low_rank(density: Any, observed: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance F F' + D: by the posterior of a standard normal u (r,) given which the columns are independent."""
    factor, diagonal = density.cov_factor, density.cov_diag  # (s, n, d, r), (s, n, d)
    scaled = torch.where(observed.unsqueeze(-1), factor / diagonal.unsqueeze(-1), 0.0)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(identity + scaled.mT @ factor)  # of the precision of u given x_o
    centre = torch.cholesky_solve(scaled.mT @ offset.unsqueeze(-1), root)  # (s, n, r, 1)
    white = torch.linalg.solve_triangular(root, factor.mT, upper=False)  # (s, n, r, d)
    return (factor @ centre).squeeze(-1), diagonal + white.square().sum(-2)


def _full(density: Any, observed: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """A full covariance: by the Cholesky factor of its observed block."""
    n, d = observed.shape
    both = ~observed.unsqueeze(-2) & observed.unsqueeze(-1)  # rows observed, columns missing (n, d, d)
    tril = density.scale_tril.expand(*offset.shape[:-1], d, d)
    shifts, variances = [], []
    count = rows_at_once(n * d * d)  # draws at a time
    for some, residual in zip(tril.split(count), offset.split(count), strict=True):
        covariance = some @ some.mT
        root = marginal_root(covariance, observed)
        white = torch.linalg.solve_triangular(root, torch.where(both, covariance, 0.0), upper=False)
        centre = torch.linalg.solve_triangular(root, residual.unsqueeze(-1), upper=False)
        shifts.append((white.mT @ centre).squeeze(-1))
        variances.append(covariance.diagonal(dim1=-2, dim2=-1) - white.square().sum(-2))
    return torch.cat(shifts), torch.cat(variances)
