"""Symmetries of the likelihood, rotations of factors and numberings of components, and the models that have them."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from zoo.algebra import linear_gaussian
from zoo.algebra.mixture_covariances import KINDS, covariances, is_tied
from zoo.alignment.coordinates import NewCoordinates, turn
from zoo.base.callables import PyroCallable, handlers, name_of, undecorated
from zoo.base.latent_sites import Latent, latents
from zoo.base.protocols import Conjugate, GaussianMixture, LinearGaussian, TightGuide
from zoo.infer.run import Fit

Fitted = TypeVar("Fitted", bound=PyroCallable | Fit)  # a model, or a run


@dataclass(frozen=True, eq=False)
class Alignment:
    """A change of latent coordinates under which the likelihood is invariant: rotated factors or renumbered labels.

    Attributes:
        rotation: orthogonal (k, k); the new factors are ``z @ rotation`` and the new weight ``weight @ rotation``.
            None for a mixture.
        order: permutation (k,); new component j is old component ``order[j]``. None for factors.
    """

    rotation: Tensor | None = None
    order: Tensor | None = None

    def factors(self, z: Tensor) -> Tensor:
        """Transforms draws or posterior means into the new coordinates.

        Args:
            z: factors (..., k): draws, posterior means; for a mixture labels (...) of an integer type, or
                responsibilities (..., k).
        """
        if self.rotation is not None:
            return turn(z, self.rotation)
        assert self.order is not None
        order = self.order.to(z.device)
        return z[..., order] if z.is_floating_point() else order.argsort()[z]

    def apply(self, fitted: Fitted) -> Fitted:
        """A copy of a model, or of a run, in the new coordinates; likelihood and bound are unchanged.

        Of a run, both model and guide are copied: the model's parameters are transformed, and the guide is wrapped in a
        handler (:class:`zoo.alignment.coordinates.NewCoordinates`) that transforms its draws and its density, whatever
        the guide is. A guide that is the model's own posterior, such as ``Exact``, becomes the new model's posterior.
        The copy cannot be saved: save the original run, and transform it again after ``zoo.load``.

        Args:
            fitted: a linear-Gaussian model or a Gaussian mixture.

        Raises:
            TypeError: the symmetries of the model are unknown, or of the other kind.
            ValueError: the model has another number of factors or components.
        """
        if isinstance(fitted, Fit):
            changed: Any = self._of_run(fitted)
            return changed
        model = fitted
        factors, mixture = factors_of(model), mixture_of(model)
        if factors is None and mixture is None:
            raise unknown(model)
        change = self.order if self.rotation is None else self.rotation
        if change is None or (factors is None) != (self.rotation is None):
            raise TypeError(
                f"the alignment is of the wrong kind for {name_of(model)}: factors are rotated, components renumbered"
            )
        found, inner = handlers(model)
        changed = copy.deepcopy(inner)
        number = len(mixture.weight) if mixture is not None else changed.weight.shape[1]
        if len(change) != number:
            raise ValueError(f"the alignment is of {len(change)} factors or components, but the model has {number}")
        with torch.no_grad():
            if self.rotation is not None:
                changed.weight = turn(changed.weight, self.rotation)
            else:
                for name in ("weight", "mean") if is_tied(changed.covariance) else ("weight", "mean", "scale"):
                    setattr(changed, name, getattr(changed, name)[self.order])
        for handler in reversed(found):
            changed = handler(changed)
        return changed

    def _of_run(self, run: Fit) -> Fit:
        with run.scope():
            model = self.apply(run.model)
            old, site = undecorated(run.model), concerned_site(self, latents(run.model))
        guide = run.guide
        if isinstance(guide, TightGuide) and guide.tight and vars(guide).get("model") is old:
            return dataclasses.replace(run, model=model, guide=copy.deepcopy(guide, {id(old): undecorated(model)}))
        if isinstance(guide, nn.Module):
            guide = copy.deepcopy(guide)
        return dataclasses.replace(run, model=model, guide=NewCoordinates(site, self.rotation, self.order)(guide))


def concerned_site(change: Alignment, found: Sequence[Latent]) -> str:
    """The name of the latent site that an alignment transforms.

    Raises:
        TypeError: no site, or more than one, fits the alignment.
    """
    local = [site for site in found if site.local]
    if change.rotation is not None:
        meant = [s.name for s in local if s.cardinality is None and s.shape == change.rotation.shape[:1]]
    else:
        assert change.order is not None
        meant = [s.name for s in local if s.cardinality == len(change.order)]
    if len(meant) != 1:
        raise TypeError(f"an alignment transforms one latent site, but {len(meant)} sites of the model fit it")
    return meant[0]


# --- comparisons that do not depend on the coordinates -------------------------------------------


def covariance(model: PyroCallable | Fit) -> Tensor:
    r"""The covariance (d, d) of a row under the model, in float64.

    :math:`W W^T + \Psi`; for a mixture the covariance of the means plus the mean of the covariances.

    Raises:
        TypeError: the model is neither linear-Gaussian nor a Gaussian mixture.
    """
    if (factors := factors_of(model)) is not None:
        return factors.weight @ factors.weight.T + torch.diag(factors.noise)
    mixture = mixture_of(model)
    if mixture is None:
        raise unknown(model)
    centred = mixture.mean - mixture.weight @ mixture.mean
    within = torch.einsum("k,kij->ij", mixture.weight, mixture.covariance)
    return (mixture.weight * centred.T) @ centred + within


# --- recognising models --------------------------------------------------------------------------


class LinearModule(Protocol):
    """What a linear-Gaussian model offers once it has been recognised as one."""

    weight: Tensor  # (d, k)
    mean: Tensor  # (d,)

    @property
    def noise(self) -> Tensor:
        """The noise variances (d,)."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x) (n,)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its state, as of any module."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Sets the state, as of any module."""
        ...


@dataclass(frozen=True, eq=False)
class Factors:
    """A linear-Gaussian model in float64: weight (d, k), noise variances (d,)."""

    weight: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture in float64: weight (k,), mean (k, d), covariance (k, d, d)."""

    weight: Tensor
    mean: Tensor
    covariance: Tensor


def factors_of(model: PyroCallable | Fit) -> Factors | None:
    """The parameters of a linear-Gaussian model (or that of a run); None for any other model."""
    own = model_of(model)
    if not (isinstance(own, nn.Module) and isinstance(own, Conjugate) and isinstance(own, LinearGaussian)):
        return None
    parts: list[object] = [own.weight, own.mean, own.noise]  # by name only: they may be networks
    if [part.ndim for part in parts if isinstance(part, Tensor)] != [2, 1, 1]:
        return None
    precise: Any = copy.deepcopy(own).double()
    with torch.no_grad():
        weight, mean, noise = precise.weight.clone(), precise.mean, precise.noise.clone()
        if not len(weight) == len(mean) == len(noise):
            return None
        # Names alone do not imply z ~ N(0, I): the model's own density must be the one invariant under rotations.
        probes = mean + torch.cat([torch.zeros_like(mean).unsqueeze(0), weight.T])
        known = linear_gaussian.log_marginal(probes, weight, mean, noise)
        if not torch.allclose(precise.log_marginal(probes), known, rtol=1e-6, atol=1e-6):
            return None
    return Factors(weight, noise)


def mixture_of(model: PyroCallable | Fit) -> Mixture | None:
    """The parameters of a Gaussian mixture (or that of a run); None for any other model."""
    own = model_of(model)
    if not (isinstance(own, nn.Module) and isinstance(own, GaussianMixture)):
        return None
    k, kind = own.components, own.covariance
    names = {name.removesuffix("_unconstrained") for name, _ in own.named_parameters()}
    if names != {"weight", "mean", "scale"}:  # another parameter would have to be renumbered too
        return None
    with torch.no_grad():
        weight, mean, scale = (part.double().clone() for part in (own.weight, own.mean, own.scale))
    if weight.shape != (k,) or mean.ndim != 2 or len(mean) != k:
        return None
    return Mixture(weight, mean, covariances(scale, kind, k, mean.shape[1])) if kind in KINDS else None


def model_of(fitted: PyroCallable | Fit) -> Any:
    """The model of a run, or the model itself, without handlers that leave the density unchanged."""
    return undecorated(fitted.model if isinstance(fitted, Fit) else fitted)


def unknown(fitted: PyroCallable | Fit) -> TypeError:
    """The error for a model without known symmetries."""
    return TypeError(
        f"the symmetries of {name_of(model_of(fitted))} are unknown: it is neither linear-Gaussian (weight, mean, "
        "noise), whose factors can be rotated, nor a Gaussian mixture, whose components can be renumbered. Compare "
        "such models by their bounds (zoo.evaluate) or their predictions"
    )


def check_same_shape(a: Tensor, b: Tensor, what: str) -> None:
    """Raises a ValueError where the parameters of two models differ in shape."""
    if a.shape != b.shape:
        raise ValueError(f"the models differ in their numbers of {what} or columns: {tuple(a.shape)}, {tuple(b.shape)}")
