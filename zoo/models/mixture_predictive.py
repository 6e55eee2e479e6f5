"""The predictive density of a Bayesian mixture: a new row with the parameters integrated out under q."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.exponential_families import CoupledFactor, DirichletFactor, GammaFactor, WishartFactor


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
    Gamma precision for all columns, a spherical one.

    Args:
        x: rows (n, d).
        factors: of q by site: ``proportions`` or ``sticks``, ``mean`` (coupled) and ``precision``.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, 10.2.3.
    """
    mean: CoupledFactor = factors["mean"]
    proportions: DirichletFactor = factors["sticks" if "sticks" in factors else "proportions"]
    weight = broken(proportions.mean) if "sticks" in factors else proportions.mean
    precision: WishartFactor | GammaFactor = factors["precision"]
    stretch = (1 + mean.beta) / mean.beta  # (k,)
    rows = x.unsqueeze(1)  # (n, 1, d)
    d = x.shape[1]
    if isinstance(precision, WishartFactor):
        df = precision.df + 1 - d
        shape = precision.inverse_scale / df[..., None, None] * stretch[:, None, None]
        each = dist.MultivariateStudentT(df, mean.mean, torch.linalg.cholesky(shape)).log_prob(rows)  # (n, k)
    elif precision.rate.shape[-1] == 1 and d > 1:
        scale = (precision.rate / precision.shape * stretch.unsqueeze(1)).sqrt()  # (k, 1)
        root = torch.diag_embed(scale.expand(-1, d))
        each = dist.MultivariateStudentT(2 * precision.shape.squeeze(-1), mean.mean, root).log_prob(rows)
    else:
        scale = (precision.rate / precision.shape * stretch.unsqueeze(1)).sqrt()  # (k, d)
        each = dist.StudentT(2 * precision.shape, mean.mean, scale).log_prob(rows).sum(-1)
    return (weight.log() + each).logsumexp(1)
