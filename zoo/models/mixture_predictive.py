"""The predictive density of a Bayesian mixture: a new row with the parameters integrated out under q."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.exponential_families import CoupledFactor, DirichletFactor, GammaFactor, WishartFactor
from zoo.algebra.parameter_draws import patterns


def broken(sticks: Tensor) -> Tensor:
    """Proportions (..., k) from sticks v and 1 - v (..., k - 1, 2)."""
    taken, left = sticks.unbind(-1)
    ones = torch.ones_like(taken[..., :1])
    return torch.cat([taken, ones], -1) * torch.cat([ones, left.cumprod(-1)], -1)


def log_predictive(x: Tensor, factors: Mapping[str, Any]) -> Tensor:
    r"""The density of new rows with means and precisions integrated out under q, coupled as in a normal-Wishart, (n,).

    .. math:: p(x \mid \text{data}) \approx \sum_j E[\pi_j]\, \mathrm{St}\Big(x \,\Big|\, m_j, \frac{1 + \beta_j}
              {\beta_j (\nu_j + 1 - D)} V_j^{-1}, \nu_j + 1 - D\Big)

    for precisions :math:`\mathrm{Wishart}(\nu_j, V_j)`. Of Gamma(a, b) precisions of single columns, a product of
    univariate Student's t with 2 a degrees of freedom and squared scale :math:`(1 + \beta_j) b / (\beta_j a)`; of one
    Gamma precision for all columns, a spherical one. A row with missing entries has the density of its observed ones,
    which are Student's t with the same degrees of freedom.

    Args:
        x: rows (n, d); NaN where an entry is missing.
        factors: of q by site: ``proportions`` or ``sticks``, ``mean`` (coupled) and ``precision``.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, 10.2.3.
    """
    mean: CoupledFactor = factors["mean"]
    proportions: DirichletFactor = factors["sticks" if "sticks" in factors else "proportions"]
    weight = broken(proportions.mean) if "sticks" in factors else proportions.mean
    precision: WishartFactor | GammaFactor = factors["precision"]
    stretch = (1 + mean.beta) / mean.beta  # (k,)
    d = x.shape[1]
    if isinstance(precision, WishartFactor):
        df = precision.df + 1 - d
        each = _student(x, df, mean.mean, precision.inverse_scale / df[..., None, None] * stretch[:, None, None])
    elif precision.rate.shape[-1] == 1 and d > 1:
        square = (precision.rate / precision.shape * stretch.unsqueeze(1)).expand(-1, d)  # (k, d)
        each = _student(x, 2 * precision.shape.squeeze(-1), mean.mean, torch.diag_embed(square))
    else:
        scale = (precision.rate / precision.shape * stretch.unsqueeze(1)).sqrt()  # (k, d)
        columns = dist.StudentT(2 * precision.shape, mean.mean, scale).log_prob(x.nan_to_num(0.0).unsqueeze(1))
        each = torch.where(x.isnan().unsqueeze(1), 0.0, columns).sum(-1)
    return (weight.log() + each).logsumexp(1)


def _student(x: Tensor, df: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """log densities of the observed entries under every component (n, k), for shape matrices (k, d, d)."""
    found = x.new_zeros(len(x), len(mean))
    for rows, seen in patterns(x):
        if seen.any():
            root = torch.linalg.cholesky(shape[:, seen, :][..., seen])
            found[rows] = dist.MultivariateStudentT(df, mean[:, seen], root).log_prob(x[rows][:, seen].unsqueeze(1))
    return found
