"""Means and covariances of latent sites, from weighted draws or in closed form."""

import torch
from torch import Tensor
from torch.distributions import Categorical

from zoo.base.latent_sites import Latent
from zoo.posterior.engine import Arguments, Reader
from zoo.posterior.rowwise import conditional, gaussian


def units_of(found: tuple[Latent, ...]) -> tuple[str, ...]:
    """The names of the coordinates of sites: ``"z[0]"``, ``"z[1]"``, ...; for a discrete site one per value."""
    counts = [(latent.name, latent.cardinality or latent.shape.numel()) for latent in found]
    return tuple(f"{name}[{j}]" for name, count in counts for j in range(count))


def flat(value: Tensor, latent: Latent) -> Tensor:
    """Values of a site as vectors, (draws, b, k) local and (draws, k) shared; indicators of a discrete site."""
    kept = 2 if latent.local else 1
    if latent.cardinality is not None:
        return torch.nn.functional.one_hot(value.long(), latent.cardinality).flatten(kept).double()
    return value.flatten(kept) if latent.shape else value.unsqueeze(-1)


def weighted_moments(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (b, k) and covariance (b, k, k) of draws (draws, b, k) with normalised weights (draws, b)."""
    mean = (weight.unsqueeze(-1) * z).sum(0)
    offset = (z - mean) * weight.sqrt().unsqueeze(-1)
    offset = offset.transpose(0, 1)  # (b, draws, k)
    return mean, offset.mT @ offset


def own_moments(source: Reader, found: tuple[Latent, ...], arguments: Arguments) -> tuple[Tensor, Tensor] | None:
    """The guide's mean (b, k) and covariance (b, k, k) in closed form, for one local Gaussian or categorical site.

    None for anything else, including a site with constrained support: a Gaussian in unconstrained space has other
    moments in constrained space.
    """
    if len(found) != 1 or not found[0].local or (found[0].cardinality is None and found[0].transform is not None):
        return None
    try:
        q = conditional(source, found[0], arguments)
    except ValueError:  # not a distribution per row
        return None
    if isinstance(q, Categorical):
        share = q.probs.double()
        return share, torch.diag_embed(share) - share.unsqueeze(-1) * share.unsqueeze(-2)
    known = gaussian(q)
    if known is None:
        return None
    loc, root = (part.double() for part in known)
    return loc, torch.diag_embed(root.square()) if root.ndim == 2 else root @ root.mT
