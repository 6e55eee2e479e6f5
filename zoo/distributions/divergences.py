"""Kullback-Leibler divergences that neither torch nor Pyro registers, for ``kl_divergence``."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.kl import register_kl


@register_kl(dist.MultivariateNormal, dist.Independent)
def kl_to_independent(q: dist.MultivariateNormal, p: Any) -> Tensor:
    r"""KL of N(m, L L') to independent normal entries, such as the prior of factors (...).

    .. math:: \mathrm{KL} = \sum_j \frac{(L L^T)_{jj} + (m_j - \mu_j)^2}{2 \sigma_j^2} + \log \sigma_j - \log L_{jj}
              - \frac12

    ``TraceMeanField_ELBO`` would otherwise estimate it from the draws, without a word.

    Raises:
        NotImplementedError: ``p`` is of another family, or has another number of event dimensions.
    """
    base = p.base_dist
    if not isinstance(base, torch.distributions.Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no KL of a MultivariateNormal to {type(base).__name__} entries is known")
    root = q.scale_tril  # (..., k, k)
    squares = root.square().sum(-1) + (q.loc - base.loc).square()  # (..., k)
    logs = base.scale.log() - root.diagonal(dim1=-2, dim2=-1).log()
    total: Tensor = (squares / (2 * base.scale.square()) + logs - 0.5).sum(-1)
    return total
