r"""The best q of a family for a linear-Gaussian model, and the bound there, in closed form.

With :math:`P = I + W^T \Psi^{-1} W` the best Gaussian q(z) has the posterior's mean
:math:`P^{-1} W^T \Psi^{-1} (x - \mu)`; its covariance is :math:`P^{-1}` in the family of all Gaussians, and
:math:`\mathrm{diag}(1 / P_{jj})` in that of the factorised ones.
"""

import torch
from torch import Tensor

from zoo.algebra import linear_gaussian
from zoo.algebra.mixture_covariances import deviations
from zoo.base.moments import Moments


def mean_field_gap(precision: Tensor) -> Tensor:
    r"""KL(q || p) of the best factorised q for Gaussian posteriors of precision P (..., k, k), in nats (...).

    .. math:: \tfrac12 \Big(\sum_j \log P_{jj} - \log |P|\Big)
    """
    root = torch.linalg.cholesky(precision)
    return 0.5 * precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def best_bound(moments: Moments, weight: Tensor, mean: Tensor, noise: Tensor, *, factorised: bool) -> Tensor:
    """The evidence lower bound of all rows at the best Gaussian q (``factorised`` or not), from their moments.

    Its cost does not depend on the number of rows. In float64, as are the moments.
    """
    weight, mean, noise = weight.to(moments.mean), mean.to(moments.mean), noise.to(moments.mean)
    bound = linear_gaussian.log_likelihood(moments, weight, mean, noise)
    if not factorised:
        return bound
    root, _, _ = linear_gaussian.posterior_root(weight, noise)
    precision = 1 + (weight.square() / noise.unsqueeze(1)).sum(0)  # the diagonal of P
    return bound - moments.count * (0.5 * precision.log().sum() + root.diagonal().log().sum())


def posterior_map(weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The map A (k, d) from x - mu to the posterior's mean, and the posterior's covariance (k, k)."""
    root, whiten, _ = linear_gaussian.posterior_root(weight, noise)
    return root @ whiten.T, root @ root.T


def principal_rotation(weight: Tensor, noise: Tensor) -> Tensor:
    r"""The rotation R (k, k) under which :math:`R^T W^T \Psi^{-1} W R`, and so the posterior's precision, is diagonal.

    Precisions fall from the first factor to the last.
    """
    rotation = torch.linalg.eigh((weight.T / noise) @ weight).eigenvectors.flip(-1)
    return rotation * torch.where(rotation.diagonal() < 0, -1.0, 1.0)


def discriminant(weight: Tensor, mean: Tensor, covariance: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    r"""The map (K, d) and offset (K,) from x less the origin to the logits of a mixture with one covariance (d, d).

    .. math:: \log \pi_j - \tfrac12 \mu_j^T \Sigma^{-1} \mu_j + \mu_j^T \Sigma^{-1} x

    They are those of its responsibilities; with several covariances, an approximation at their mean.
    """
    centred = mean - origin  # (K, d)
    slope = torch.linalg.solve(covariance, centred.T).T
    return slope, weight.log() - 0.5 * (slope * centred).sum(-1)


def common_covariance(weight: Tensor, scale: Tensor, form: str, dim: int) -> Tensor:
    """The mean covariance (d, d) of the components of a :class:`~zoo.base.protocols.GaussianMixture`.

    Args:
        weight: the mixing proportions (K,).
        scale: in the form of the mixture.
        form: one of :data:`zoo.algebra.mixture_covariances.KINDS`.
        dim: the number of columns d.
    """
    if form == "tied":
        return scale @ scale.mT
    if form == "full":
        return torch.einsum("j,jab,jcb->ac", weight, scale, scale)
    return torch.diag(weight @ deviations(scale, form, len(weight), dim).square())
