"""The families in which :func:`zoo.posterior.inference_gaps.gaps` looks for the best q of every row."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from zoo.base.callables import name_of, undecorated
from zoo.base.independent import without_event_dims
from zoo.base.latent_sites import Latent
from zoo.base.protocols import HasLocalFamily, LocalFamily
from zoo.posterior.annealing import MATCHED, Place
from zoo.posterior.engine import Arguments, Reader
from zoo.posterior.rowwise import conditional, gaussian, log_volume, stretch

Numbers = tuple[Tensor, ...]
N = TypeVar("N", bound=Numbers)


class NoLocalFamily(ValueError):  # noqa: N818 - it reads as what it says
    """The family of a guide's q(z | x) is unknown, so that there is no best q in it."""


def local_family(source: Reader, latent: Latent, arguments: Arguments) -> LocalFamily:
    """The family of the guide's q(z | x) of some rows, with that q as its start.

    Raises:
        NoLocalFamily: q is neither Gaussian nor of another reparametrised family with real and positive parameters, and
            the guide has no method ``local``.
    """
    guide = undecorated(source.pair.guide)
    if isinstance(guide, HasLocalFamily):
        return guide.local(arguments[0])
    q = conditional(source, latent, arguments)
    start = gaussian(q)
    if start is not None:
        return GaussianFamily(start)
    with torch.enable_grad():
        found = ParametricFamily.of(conditional(source, latent, arguments))
    if found is None:
        raise NoLocalFamily(
            f"gaps supports guides whose q(z | x) is Gaussian, or factorises into densities with real and positive "
            f"parameters and reparametrised draws, and q(z | x) of the guide {name_of(source.pair.guide)} is a "
            f"{type(q).__name__}: use MeanField, FullRank or Amortized, give the guide a method local (see "
            "zoo.base.protocols.HasLocalFamily), or take zoo.log_evidence_bounds for the total gap"
        )
    return found


class GaussianFamily:
    """Gaussians with diagonal or full covariances, in coordinates whitened by the start.

    Args:
        start: means (b, k), and scales (b, k) or Cholesky factors (b, k, k).
    """

    def __init__(self, start: Place) -> None:
        self.start = start
        self.name = "diag" if start[1].ndim == 2 else "full"

    def free(self) -> list[Tensor]:
        """Zeros (b, k), and (b, k) or (b, k, k)."""
        return [torch.zeros_like(part, requires_grad=True) for part in self.start]

    def moved(self, free: list[Tensor]) -> Place:
        """Mean and root."""
        return moved(self.start, *free)

    def draw(self, numbers: Numbers, noise: Tensor, path: bool = False) -> tuple[Tensor, Tensor]:
        r"""Draws :math:`m + L \epsilon` and their log densities; with ``path`` without the score of log q."""
        loc, root = numbers
        z = loc + stretch(root, noise)
        if path:
            loc, root = loc.detach(), root.detach()
            offset = z - loc
            if root.ndim == 2:
                noise = offset / root
            else:
                noise = torch.linalg.solve_triangular(root, offset.movedim(0, -1), upper=False).movedim(-1, 0)
        return z, -0.5 * (noise.square().sum(-1) + loc.shape[1] * math.log(2 * math.pi)) - log_volume(root)


def moved(start: Place, shift: Tensor, change: Tensor) -> Place:
    """The Gaussian at whitened coordinates of another: its mean moved by ``shift`` (b, k), its root times a factor.

    The factor is the exponential of ``change`` (b, k), or the lower triangle of ``change`` (b, k, k) with an
    exponential diagonal.
    """
    loc, root = start
    if root.ndim == loc.ndim:
        return loc + stretch(root, shift), root * change.exp()
    factor = change.tril(-1) + torch.diag_embed(change.diagonal(dim1=-2, dim2=-1).exp())
    return loc + stretch(root, shift), root @ factor


class ParametricFamily:
    """A factorised family whose parameters are real or positive, such as Student's t or Laplace's.

    Those that the guide learns move, and others, such as degrees of freedom that it was given, stay as they are; if it
    learns none of them, all move. Real ones move in units of the parameter ``scale``, if there is one; positive ones by
    factors.

    Args:
        kind: the class of the distributions, with a constructor that takes the parameters by name.
        start: the parameters (b, k) by name.
        real: whether each of them is real, and not positive.
        moves: whether each of them moves.
    """

    def __init__(
        self, kind: Callable[..., Distribution], start: dict[str, Tensor], real: Sequence[bool], moves: Sequence[bool]
    ) -> None:
        self.kind, self.names, self.start, self.real = kind, tuple(start), tuple(start.values()), tuple(real)
        self.moves, self.name = tuple(moves), name_of(kind)

    @classmethod
    def of(cls, q: Distribution) -> "ParametricFamily | None":
        """The family of a distribution with batch shape (b,); None if its parameters may not be moved so.

        A parameter is learned if it requires a gradient.
        """
        base = without_event_dims(q)
        kinds = {str(name): kind for name, kind in base.arg_constraints.items() if name in base.__dict__}
        known = all(kind in (constraints.real, constraints.positive) for kind in kinds.values())
        if not kinds or not known or not base.has_rsample or base.event_shape or base.support is not constraints.real:
            return None
        rows = q.batch_shape[0]
        values = {name: getattr(base, name).expand(base.batch_shape).reshape(rows, -1) for name in kinds}
        learned = [value.requires_grad for value in values.values()]
        start = {name: value.detach() for name, value in values.items()}
        moves = learned if any(learned) else [True] * len(learned)
        found = cls(type(base), start, [kind is constraints.real for kind in kinds.values()], moves)
        value = base.sample()
        try:
            rebuilt = found._at(found.start).log_prob(value.reshape(rows, -1))
        except TypeError:  # a constructor with other arguments
            return None
        return found if torch.allclose(rebuilt, base.log_prob(value).reshape(rows, -1)) else None

    def _at(self, numbers: Numbers) -> Distribution:
        return self.kind(**dict(zip(self.names, numbers, strict=True)))

    def free(self) -> list[Tensor]:
        """Zeros (b, k), one for every parameter that moves."""
        pairs = zip(self.start, self.moves, strict=True)
        return [torch.zeros_like(part, requires_grad=True) for part, moves in pairs if moves]

    def moved(self, free: list[Tensor]) -> Numbers:
        """The parameters."""
        unit = dict(zip(self.names, self.start, strict=True)).get("scale", torch.ones_like(self.start[0]))
        steps = iter(free)
        return tuple(
            value if not moves else value + unit * next(steps) if real else value * next(steps).exp()
            for value, real, moves in zip(self.start, self.real, self.moves, strict=True)
        )

    def draw(self, numbers: Numbers, noise: Tensor, path: bool = False) -> tuple[Tensor, Tensor]:
        """As many draws as there are of ``noise``, and their log densities."""
        z = self._at(numbers).rsample(noise.shape[:1])
        density = self._at(tuple(value.detach() for value in numbers) if path else numbers)
        return z, density.log_prob(z).sum(-1)


def chosen(take: Tensor, one: N, other: N) -> N:
    """The numbers of one q or of the other, for every row (b,)."""
    pairs = zip(one, other, strict=True)
    return cast(N, tuple(torch.where(take.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in pairs))


def place_of(family: LocalFamily, numbers: Numbers) -> Place:
    """Mean and root of a q of the family; of draws where it is not Gaussian."""
    if isinstance(family, GaussianFamily):
        loc, root = numbers
        return loc, root
    loc = numbers[0]
    z, _ = family.draw(numbers, loc.new_empty(MATCHED, *loc.shape).normal_())
    return z.mean(0), z.std(0)


def distribution(loc: Tensor, root: Tensor) -> dist.TorchDistribution:
    """The Gaussian with this mean and root."""
    if root.ndim == loc.ndim:
        return dist.Normal(loc, root).to_event(1)
    return dist.MultivariateNormal(loc, scale_tril=root)
