"""Gaussian proposals for rows' own sites, if a guide has no density of them given the shared sites."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.base.latent_sites import Latent

WIDER = 2.0  # standard deviations of the proposal over those of the draws: it must be wider than its target


@dataclass(frozen=True, eq=False)
class Proposal:
    """Independent Gaussians in unconstrained space for the continuous local sites.

    Attributes:
        sites: the sites.
        loc: means by site (b, ...).
        scale: standard deviations by site (b, ...).
    """

    sites: tuple[Latent, ...]
    loc: dict[str, Tensor]
    scale: dict[str, Tensor]

    def draw(self, draws: int) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values by site (draws, b, ...), and their log densities (draws, b)."""
        values, total = {}, torch.zeros(())
        for latent in self.sites:
            loc, scale = self.loc[latent.name], self.scale[latent.name]
            noise = torch.randn(draws, *loc.shape).to(loc)
            real = loc + scale * noise
            density = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)
            log_q = density.flatten(2).sum(-1) if density.ndim > 2 else density
            transform = latent.transform
            if transform is None:
                values[latent.name] = real
            else:
                values[latent.name] = transform(real)
                jacobian = transform.log_abs_det_jacobian(real, values[latent.name])
                log_q = log_q - (jacobian.flatten(2).sum(-1) if jacobian.ndim > 2 else jacobian)
            total = total + log_q
        return values, total


def moments_of_draws(sites: tuple[Latent, ...], values: Mapping[str, Tensor]) -> Proposal:
    """The proposal with the means of the draws (draws, b, ...) and twice their standard deviations.

    Discrete sites are left out, because the model marginalises them.
    """
    smooth = tuple(latent for latent in sites if latent.cardinality is None)
    loc, scale = {}, {}
    for latent in smooth:
        value = values[latent.name]
        real = value if latent.transform is None else latent.transform.inv(value)
        loc[latent.name], scale[latent.name] = real.mean(0), WIDER * real.std(0)
    return Proposal(smooth, loc, scale)
