"""A guide in other latent coordinates: rotated factors or renumbered components, with the right density."""

from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import _standard_normal

from zoo.base.callables import PyroCallable
from zoo.base.protocols import GaussianGuide, HasPosterior, HoldsRows, TightGuide
from zoo.posterior.rowwise import gaussian

Site = dict[str, Any]


class NewCoordinates(Messenger):
    r"""A Pyro handler that puts a latent site of a guide into other coordinates, whatever the guide is.

    Factors become :math:`z' = z R` with an orthogonal R, so that :math:`q'(z') = q(z' R^T)`; labels are renumbered. The
    guide itself continues in its own coordinates. Under the same random stream, draws of factors are those of the
    guide, rotated.

    Args:
        site: the name of the latent site.
        rotation: orthogonal R (k, k), for factors.
        order: permutation (k,), for components: the new component j is the old component ``order[j]``.

    >>> import pyro
    >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> def guide():
    ...     return pyro.sample("z", dist.Normal(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).to_event(1))
    >>> site = pyro.poutine.trace(NewCoordinates("z", rotation=turn)(guide)).get_trace().nodes["z"]
    >>> site["fn"].mean, site["fn"].stddev
    (tensor([-2.,  1.]), tensor([3., 1.]))
    """

    def __init__(self, site: str, rotation: Tensor | None = None, order: Tensor | None = None) -> None:
        super().__init__()
        self.site, self.rotation, self.order = site, rotation, order
        self._real = f"{site}_unconstrained"  # the site of which AutoNormal's z is the image, under the identity
        self._done = False

    def __call__(self, guide: PyroCallable) -> PyroCallable:
        """The guide in the new coordinates, with what it offers beside its draws."""
        placed: Any = super().__call__(guide)
        inner: Any = guide
        if isinstance(inner, HasPosterior):
            placed.posterior = partial(self._posterior, inner)
        for protocol, name in ((HoldsRows, "count"), (GaussianGuide, "gaussian"), (TightGuide, "tight")):
            if isinstance(inner, protocol):
                setattr(placed, name, getattr(inner, name))
        return placed

    def __enter__(self) -> "NewCoordinates":
        self._done = False
        entered: NewCoordinates = super().__enter__()
        return entered

    def _posterior(self, guide: HasPosterior, x: Tensor, index: Tensor | None = None) -> Any:
        return self._moved(guide.posterior(x, index))

    def _moved(self, q: Any) -> Any:
        if self.rotation is not None:
            return rotated(q, self.rotation)
        return q if self.order is None else renumbered(q, self.order)

    def _pyro_sample(self, message: Site) -> None:
        if message["name"] in (self.site, self._real) and not self._done:
            message["fn"] = self._moved(message["fn"])

    def _pyro_post_sample(self, message: Site) -> None:
        if message["name"] == self._real:
            self._done = True  # the image follows by itself
        if message["name"] != self.site or self._done:
            return
        # Handlers further out have read the new value; what the guide goes on with is the old one.
        if self.rotation is not None:
            message["value"] = turn(message["value"], self.rotation.mT)
        elif self.order is not None:
            message["value"] = self.order.to(message["value"].device)[message["value"]]


class Rotation(Transform):
    """z to z R, with an orthogonal R (k, k)."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, rotation: Tensor) -> None:
        super().__init__()
        self.rotation = rotation

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rotation) and torch.equal(self.rotation, other.rotation)

    def _call(self, x: Tensor) -> Tensor:
        return turn(x, self.rotation)

    def _inverse(self, y: Tensor) -> Tensor:
        return turn(y, self.rotation.mT)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """0: a rotation keeps volumes."""
        return x.new_zeros(x.shape[:-1])


class RotatedNormal(dist.MultivariateNormal):
    """A Gaussian whose draws are those of another one, rotated.

    Args:
        loc: mean (..., k).
        root: any root (..., k, k) of the covariance, root @ root.mT; draws are loc + root @ noise.
    """

    def __init__(self, loc: Tensor, root: Tensor) -> None:
        self.root = root
        upper = torch.linalg.qr(root.mT).R
        diagonal = upper.diagonal(dim1=-2, dim2=-1)
        sign = torch.where(diagonal < 0, -torch.ones_like(diagonal), torch.ones_like(diagonal))
        super().__init__(loc, scale_tril=upper.mT * sign.unsqueeze(-2), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "RotatedNormal":
        """The same Gaussian for a larger batch."""
        new = self._get_checked_instance(RotatedNormal, _instance)
        new.root = self.root.expand(torch.Size(batch_shape) + self.root.shape[-2:])
        expanded: RotatedNormal = super().expand(batch_shape, _instance=new)
        return expanded

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draws (*sample_shape, ..., k)."""
        noise = _standard_normal(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.root @ noise.unsqueeze(-1)).squeeze(-1)


def turn(z: Tensor, rotation: Tensor) -> Tensor:
    """z @ rotation in the precision of the rotation, with the type of z (..., k)."""
    return (z.to(rotation) @ rotation).to(z)


def rotated(q: Any, rotation: Tensor) -> Any:
    """The distribution of z R for z ~ q, with event shape (k,)."""
    if tuple(q.event_shape) != tuple(rotation.shape[:1]):
        raise ValueError(f"a rotation of {len(rotation)} factors does not fit a site of event shape {q.event_shape}")
    base = q
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, dist.Delta):  # its log_prob would not survive the rounding of a rotation back
        return dist.Delta(turn(q.mean, rotation), q.log_prob(q.mean), event_dim=1)
    if (known := gaussian(q)) is not None and len(known[0].shape) == len(q.batch_shape) + 1:
        loc, root = known
        wide = q.root if isinstance(q, RotatedNormal) else torch.diag_embed(root) if root.ndim == loc.ndim else root
        return RotatedNormal(turn(loc, rotation), turn(wide.mT, rotation).mT)
    return dist.TransformedDistribution(q, [Rotation(rotation)])


def renumbered(q: Any, order: Tensor) -> Any:
    """The distribution of the new label for a categorical q of the old one."""
    order = order.to(q.logits.device)
    return type(q)(logits=q.logits[..., order])
