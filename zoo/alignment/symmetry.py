"""The symmetries of the likelihood: rotations of factors and numberings of components."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.algebra import linear_gaussian
from zoo.base.protocols import Conjugate


@dataclass(frozen=True, eq=False)
class Alignment:
    """A change of latent coordinates that the likelihood does not see: a rotation of factors, or a renumbering.

    Attributes:
        rotation: orthogonal (k, k); the new factors are ``z @ rotation`` and the new weight ``weight @ rotation``.
            None for a mixture.
        order: permutation (k,); the new component j is the old component ``order[j]``. None for factors.
    """

    rotation: Tensor | None = None
    order: Tensor | None = None

    def factors(self, z: Tensor) -> Tensor:
        """What a guide says of the old latent variable, said of the new one.

        Args:
            z: factors (..., k): draws, posterior means; for a mixture labels (...) of an integer type, or
                responsibilities (..., k).
        """
        if self.rotation is not None:
            return (z.to(self.rotation) @ self.rotation).to(z)
        assert self.order is not None
        order = self.order.to(z.device)
        return z[..., order] if z.is_floating_point() else order.argsort()[z]

    def apply(self, model: Any) -> Any:
        """A copy of ``model`` in the new coordinates; its likelihood is the same.

        Raises:
            TypeError: a model without this kind of gauge.
            ValueError: a model with another number of factors or components.
        """
        factors, mixture = factors_of(model), mixture_of(model)
        if factors is None and mixture is None:
            raise unknown(model)
        gauge = self.order if self.rotation is None else self.rotation
        if gauge is None or (factors is None) != (self.rotation is None):
            raise TypeError(
                f"this gauge does not go with {type(model).__name__}: factors turn, components change places"
            )
        number = len(mixture.weight) if mixture is not None else model.weight.shape[1]
        if len(gauge) != number:
            raise ValueError(f"the gauge is one of {len(gauge)} factors or components, the model has {number}")
        changed = copy.deepcopy(model)
        with torch.no_grad():
            if self.rotation is not None:
                changed.weight = (model.weight.to(self.rotation) @ self.rotation).to(model.weight)
            else:
                for name in ("weight", "mean") if model.covariance == "tied" else ("weight", "mean", "scale"):
                    setattr(changed, name, getattr(model, name)[self.order])
        return changed


# --- comparisons free of the gauge ---------------------------------------------------------------


def covariance(model: Any) -> Tensor:
    r"""The covariance (d, d) of a row under the model, in float64.

    :math:`W W^T + \Psi`; for a mixture the spread of the means plus the mean of the spreads.

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


# --- what a model is -----------------------------------------------------------------------------


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


def factors_of(model: Any) -> Factors | None:
    """What a linear-Gaussian model consists of; None for any other."""
    if not (isinstance(model, nn.Module) and isinstance(model, Conjugate)):
        return None
    parts = [getattr(model, name, None) for name in ("weight", "mean", "noise")]
    if not all(isinstance(part, Tensor) for part in parts) or [p.ndim for p in parts if p is not None] != [2, 1, 1]:
        return None
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        weight, mean, noise = model.weight.clone(), model.mean, model.noise.clone()
        if not len(weight) == len(mean) == len(noise):
            return None
        # Names alone do not make z ~ N(0, I): the model's own density must be the one that rotations leave alone.
        probes = mean + torch.cat([torch.zeros_like(mean).unsqueeze(0), weight.T])
        known = linear_gaussian.log_marginal(probes, weight, mean, noise)
        if not torch.allclose(model.log_marginal(probes), known, rtol=1e-6, atol=1e-6):
            return None
    return Factors(weight, noise)


def mixture_of(model: Any) -> Mixture | None:
    """What a Gaussian mixture consists of; None for any other model."""
    k, kind = getattr(model, "components", None), getattr(model, "covariance", None)
    if not (isinstance(model, nn.Module) and isinstance(k, int) and isinstance(kind, str)):
        return None
    names = {name.removesuffix("_unconstrained") for name, _ in model.named_parameters()}
    if names != {"weight", "mean", "scale"}:  # another parameter would have to be renumbered too
        return None
    with torch.no_grad():
        weight, mean, scale = (getattr(model, name).double().clone() for name in ("weight", "mean", "scale"))
    if weight.shape != (k,) or mean.ndim != 2 or len(mean) != k:
        return None
    d = mean.shape[1]
    if kind in ("full", "tied"):
        return Mixture(weight, mean, (scale @ scale.mT).expand(k, d, d))
    if kind in ("diag", "spherical"):
        return Mixture(weight, mean, torch.diag_embed(scale.square().reshape(k, -1).expand(k, d)))
    return None


def unknown(model: Any) -> TypeError:
    return TypeError(
        f"{type(model).__name__} has no gauge that is known here: it is neither linear-Gaussian (weight, mean, noise), "
        "whose factors may be turned, nor a Gaussian mixture, whose components may be renumbered. Compare such models "
        "by their bounds (zoo.evaluate) or their predictions"
    )


def check_same_shape(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{what} and columns must agree in number: the shapes are {tuple(a.shape)}, {tuple(b.shape)}")
