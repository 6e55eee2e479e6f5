"""A guide in other latent coordinates: rotated factors or renumbered components, with the transformed density."""

from functools import partial
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.distributions.transforms import Transform
from torch.distributions.utils import _standard_normal

from zoo.base.callables import PyroCallable
from zoo.base.independent import without_event_dims
from zoo.base.protocols import GaussianGuide, HasPosterior, HoldsRows, TightGuide
from zoo.posterior.rowwise import gaussian

Site = dict[str, Any]
Labels = TypeVar("Labels", bound=Categorical)


class NewCoordinates(Messenger):
    r"""A Pyro handler that transforms a latent site of any guide to other coordinates.

    Factors become :math:`z' = z R`, so that :math:`q'(z') = q(z' R^{-1})\, |\det R|^{-1}`; labels are renumbered. The
    body of the guide keeps working in its own coordinates. Under the same random stream, draws of factors are the
    guide's draws, rotated.

    Args:
        site: the name of the latent site.
        rotation: R (k, k), for factors: orthogonal, or the transform of an oblique rotation.
        order: permutation (k,), for components: new component j is old component ``order[j]``.

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
        self._real = f"{site}_unconstrained"  # AutoNormal draws this site and maps it to z by the identity
        self._done = False

    def __call__(self, guide: PyroCallable) -> PyroCallable:
        """The guide in the new coordinates, with its hooks."""
        placed: Any = super().__call__(guide)
        inner: Any = guide
        if isinstance(inner, HasPosterior):
            placed.posterior = partial(self._posterior, inner)
        if isinstance(inner, HoldsRows):
            placed.count = inner.count
        if isinstance(inner, GaussianGuide):
            placed.gaussian = inner.gaussian
        if isinstance(inner, TightGuide):
            placed.tight = inner.tight
        return placed

    def __enter__(self) -> "NewCoordinates":
        self._done = False
        entered: NewCoordinates = super().__enter__()
        return entered

    def _posterior(self, guide: HasPosterior, x: Tensor, index: Tensor | None = None) -> Distribution:
        return self._moved(guide.posterior(x, index))

    def _moved(self, q: Distribution) -> Distribution:
        if self.rotation is not None:
            return rotated(q, self.rotation)
        if self.order is None:
            return q
        assert isinstance(q, Categorical)
        return renumbered(q, self.order)

    def _pyro_sample(self, message: Site) -> None:
        if message["name"] in (self.site, self._real) and not self._done:
            message["fn"] = self._moved(message["fn"])

    def _pyro_post_sample(self, message: Site) -> None:
        if message["name"] == self._real:
            self._done = True  # z is computed from it, in the new coordinates already
        if message["name"] != self.site or self._done:
            return
        # Outer handlers have recorded the new value; the body of the guide continues with the old one.
        if self.rotation is not None:
            message["value"] = turn(message["value"], inverse(self.rotation))
        elif self.order is not None:
            message["value"] = self.order.to(message["value"].device)[message["value"]]


class Rotation(Transform):
    """z to z R, with an invertible R (k, k)."""

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
        return turn(y, inverse(self.rotation))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det R|; 0 of an orthogonal R."""
        return torch.linalg.slogdet(self.rotation).logabsdet.to(x).expand(x.shape[:-1])


class RotatedNormal(dist.MultivariateNormal):
    """A Gaussian whose draws are the rotated draws of another Gaussian.

    Args:
        loc: mean (..., k).
        root: a root (..., k, k) of the covariance, root @ root.mT; draws are loc + root @ noise.
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
    """z @ rotation (..., k), computed in the precision of the rotation, in the dtype of z."""
    return (z.to(rotation) @ rotation).to(z)


def inverse(rotation: Tensor) -> Tensor:
    """R^-1 (k, k), which is R' to the last bit where R is orthogonal."""
    eye = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    close = 100 * torch.finfo(rotation.dtype).eps
    return rotation.mT if torch.allclose(rotation.mT @ rotation, eye, atol=close) else torch.linalg.inv(rotation)


def rotated(q: Distribution, rotation: Tensor) -> Distribution:
    """The distribution of z R for z ~ q, with event shape (k,)."""
    if tuple(q.event_shape) != tuple(rotation.shape[:1]):
        raise ValueError(f"a rotation of {len(rotation)} factors does not fit a site of event shape {q.event_shape}")
    if isinstance(without_event_dims(q), dist.Delta):  # its log_prob is -inf at a value rotated back with rounding
        return dist.Delta(turn(q.mean, rotation), q.log_prob(q.mean), event_dim=1)
    if (known := gaussian(q)) is not None and len(known[0].shape) == len(q.batch_shape) + 1:
        loc, root = known
        wide = q.root if isinstance(q, RotatedNormal) else torch.diag_embed(root) if root.ndim == loc.ndim else root
        return RotatedNormal(turn(loc, rotation), turn(wide.mT, rotation).mT)
    return dist.TransformedDistribution(q, [Rotation(rotation)])


def renumbered(q: Labels, order: Tensor) -> Labels:
    """The distribution of the new label, given a categorical q of the old label."""
    order = order.to(q.logits.device)
    return type(q)(logits=q.logits[..., order])
