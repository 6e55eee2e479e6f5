"""The part of a guide for the sites shared by all rows."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from guides.gaussian import sample_joint, width
from zoo.base.latent_sites import Latent
from zoo.base.module import Module

Shared = Literal["mean_field", "full_rank"]
START = 0.1  # initial scale, of the means around 0, which breaks the symmetry, and of q around them
AUXILIARY = "_shared_latent"  # all shared sites in real coordinates


class SharedPart(Module):
    r"""A Gaussian over the sites shared by all rows, in real coordinates.

    .. math:: q(\theta) = N(T^{-1}(\theta) \mid m, S)\, |\det \partial T^{-1} / \partial \theta|

    with T the map from the real line to the sites' supports (``biject_to``) and S diagonal (``"mean_field"``) or full
    (``"full_rank"``). A site is sampled inside the plates that it has in the model. With a full covariance across a
    plate, the sites are deterministic functions of one auxiliary site, with the log density of T, as in Pyro's joint
    autoguides.

    Args:
        latents: the shared sites.
        x: a tensor with the dtype and device to use.
        covariance: ``"mean_field"`` or ``"full_rank"``.
    """

    def __init__(self, latents: Sequence[Latent], x: Tensor, covariance: Shared) -> None:
        super().__init__()
        self.latents = tuple(latents)
        self.covariance = covariance
        self.__dict__["_resolved"] = {"latents": [latent.name for latent in latents]}  # recorded in ``settings``
        k = width(latents)
        self.loc = PyroParam(x.new_zeros(k))  # (k,)
        if covariance == "mean_field":
            self.scale = PyroParam(x.new_full((k,), START), constraints.positive)  # (k,)
        else:
            self.scale_tril = PyroParam(START * torch.eye(k).to(x), constraints.lower_cholesky)  # (k, k)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A new random start: means near 0, scales of 0.1."""
        self.loc.normal_(0.0, START)
        if self.covariance == "mean_field":
            self.scale = torch.full_like(self.scale, START)
        else:
            self.scale_tril = START * torch.eye(len(self.loc)).to(self.loc)

    def forward(self) -> None:
        """Sample every shared site."""
        if self.covariance == "mean_field":
            self._sample_factorised()
        elif any(latent.plates for latent in self.latents):
            self._sample_through_auxiliary()
        else:
            sample_joint(self.latents, self.loc, self.scale_tril)

    def centre(self) -> dict[str, Tensor]:
        """The values of the sites at the means m, the median of each coordinate, shaped as in the model."""
        return {latent.name: _image(real, latent)[0] for latent, real in self._split(self.loc)}

    def _split(self, real: Tensor) -> list[tuple[Latent, Tensor]]:
        """The sites with their coordinates among (..., k)."""
        sizes = [latent.width for latent in self.latents]
        return list(zip(self.latents, real.split(sizes, -1), strict=True))

    def _sample_factorised(self) -> None:
        plates: dict[str, pyro.plate] = {}
        for (latent, loc), (_, scale) in zip(self._split(self.loc), self._split(self.scale), strict=True):
            q: dist.TorchDistribution = dist.Normal(_laid_out(loc, latent), _laid_out(scale, latent))
            transform = latent.transform
            inner = latent.event_dim if transform is None else transform.domain.event_dim
            q = q.to_event(inner)
            if transform is not None:
                q = dist.TransformedDistribution(q, [transform])
            with inside(latent, plates):
                pyro.sample(latent.name, q.to_event(latent.event_dim - q.event_dim))

    def _sample_through_auxiliary(self) -> None:
        q = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        real = pyro.sample(AUXILIARY, q, infer={"is_auxiliary": True})  # (..., k)
        plates: dict[str, pyro.plate] = {}
        for latent, own in self._split(real):
            value, volume = _image(own, latent)
            with inside(latent, plates):
                pyro.sample(latent.name, dist.Delta(value, log_density=-volume, event_dim=latent.event_dim))


def shared_part(latents: Sequence[Latent], x: Tensor, covariance: Shared) -> SharedPart | None:
    """The part of a guide for these sites; None if there are none.

    Raises:
        ValueError: ``covariance`` is neither of the two.
    """
    if covariance not in get_args(Shared):
        raise ValueError(f"shared must be one of {', '.join(get_args(Shared))}; got {covariance!r}")
    return SharedPart(latents, x, covariance) if latents else None


def inside(latent: Latent, plates: dict[str, pyro.plate]) -> ExitStack:
    """The plates of a site, entered; each is made once and kept in ``plates``, as Pyro requires."""
    stack = ExitStack()
    for own in latent.plates:
        if own.name not in plates:
            plates[own.name] = pyro.plate(own.name, own.size, dim=own.dim)
        stack.enter_context(plates[own.name])
    return stack


def _laid_out(real: Tensor, latent: Latent) -> Tensor:
    """Coordinates (..., w) of a site as (..., *batch, *event), with a batch dimension for every plate, 1 between them.

    The leading dimensions are those of particles, to the left of all plates; the dimensions of the plates, which are 1
    before, are dropped.
    """
    depth = max((-own.dim for own in latent.plates), default=0)
    sizes = [1] * depth
    for own in latent.plates:
        sizes[own.dim] = own.size
    transform = latent.transform
    inner = latent.shape if transform is None else torch.Size(transform.inverse_shape(latent.shape))
    lead = real.shape[:-1][: max(real.ndim - 1 - depth, 0)]
    return real.reshape((*lead, *sizes, *inner[len(latent.plates) :]))


def _image(real: Tensor, latent: Latent) -> tuple[Tensor, Tensor]:
    """Values of a site at coordinates (..., w), and the log determinant of the map, by batch element."""
    laid = _laid_out(real, latent)
    transform = latent.transform
    if transform is None:
        return laid, laid.new_zeros(laid.shape[: laid.ndim - latent.event_dim])
    value = transform(laid)
    volume = transform.log_abs_det_jacobian(laid, value)
    extra = volume.ndim - (value.ndim - latent.event_dim)
    return value, volume.sum(tuple(range(-extra, 0))) if extra else volume
