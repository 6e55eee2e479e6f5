"""Gaussian distributions over latent sites, used by all guides for continuous sites."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform
from torch.distributions.transforms import ReshapeTransform

from zoo.base.latent_sites import Latent


def width(latents: Sequence[Latent]) -> int:
    """The number of unconstrained coordinates of one draw of all sites."""
    return sum(latent.width for latent in latents)


def sample_factorised(latents: Sequence[Latent], loc: Tensor, scale: Tensor) -> None:
    """Sample every site from independent Gaussians; ``loc`` and ``scale`` are (..., k), k the sites' width."""
    sizes = [latent.width for latent in latents]
    for latent, m, s in zip(latents, loc.split(sizes, -1), scale.split(sizes, -1), strict=True):
        pyro.sample(latent.name, shaped(dist.Normal(m, s).to_event(1), latent))


def sample_joint(latents: Sequence[Latent], loc: Tensor, scale_tril: Tensor) -> None:
    r"""Sample all sites from one Gaussian N(loc, L L'), one after the other, each given the previous ones.

    With the block rows of L, site b is :math:`N(m_b + \sum_{a<b} L_{ba} \epsilon_a, L_{bb} L_{bb}^T)`, where
    :math:`\epsilon_a` is the whitened draw of site a, which gives the joint density without auxiliary sites.
    """
    start, whitened = 0, loc[..., :0]
    for latent in latents:
        end = start + latent.width
        shift = (scale_tril[..., start:end, :start] @ whitened.unsqueeze(-1)).squeeze(-1) if start else 0.0
        own = scale_tril[..., start:end, start:end]
        mean = loc[..., start:end] + shift
        value = pyro.sample(latent.name, shaped(dist.MultivariateNormal(mean, scale_tril=own), latent))
        if end < loc.shape[-1]:
            real = unshaped(value, latent)
            step = torch.linalg.solve_triangular(own, (real - mean).unsqueeze(-1), upper=False).squeeze(-1)
            whitened = torch.cat([whitened.expand(*step.shape[:-1], start), step], -1)
        start = end


def _transforms(latent: Latent) -> list[Transform]:
    """The maps from real vectors to the site's event shape and support."""
    steps: list[Transform] = []
    event = latent.shape
    if latent.transform is not None:
        event = torch.Size(latent.transform.inverse_shape(latent.shape))
    if len(event) != 1:
        steps.append(ReshapeTransform(torch.Size([event.numel()]), event))
    if latent.transform is not None:
        steps.append(latent.transform)
    return steps


def shaped(base: dist.TorchDistribution, latent: Latent) -> dist.TorchDistribution:
    """The distribution ``base`` of real vectors, mapped to the shape and the support of the site."""
    steps = _transforms(latent)
    return dist.TransformedDistribution(base, steps) if steps else base


def unshaped(value: Tensor, latent: Latent) -> Tensor:
    """The draws of a site as real vectors (..., k): the inverse of :func:`shaped`."""
    for step in reversed(_transforms(latent)):
        value = step.inv(value)
    return value
