"""Exponential-family factors with parameters: what a mean-field guide is made of where the model is conjugate.

Each part holds the parameters of one factor, gives it as a :class:`~zoo.algebra.exponential_families.Factor`, takes one
back, and takes a natural-gradient step from the gradients that SVI leaves on its parameters.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.special import polygamma

from zoo.algebra.exponential_families import (
    CategoricalFactor,
    CoupledFactor,
    DirichletFactor,
    Factor,
    GammaFactor,
    GaussianFactor,
    WishartFactor,
)
from zoo.algebra.wishart import Wishart
from zoo.base.module import Module

LEAST = 1e-30  # probability below which a categorical's gradient says nothing


class FactorPart(Protocol):
    """The parameters of one factor of a guide."""

    def factor(self, index: Tensor | None = None) -> Factor:
        """The factor, of the rows ``index`` where it has members per row."""
        ...

    def place(self, factor: Any) -> None:
        """Take the values of a factor."""
        ...

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One member per batch index, those of the rows ``index`` where members are rows."""
        ...

    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        r"""Move by ``rate`` along the natural gradient of the loss whose gradients the parameters hold.

        :math:`\eta \leftarrow \eta - \rho F^{-1} \nabla_\eta \mathrm{loss}`, with F the Fisher information; a step of
        length one on the exact bound of a conditionally conjugate model is the update of coordinate ascent.
        """
        ...


def _unconstrained(module: Module, name: str) -> Tensor:
    return module.get_parameter(f"{name}_unconstrained")


def _pulled(module: Module, names: Sequence[str], inverses: Sequence[Any], values: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the loss in ``values``, from those on the unconstrained parameters.

    Args:
        module: the part.
        names: its parameters.
        inverses: functions from ``values`` to the unconstrained parameters, one for each name.
        values: what the gradients are wanted in.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        images = [inverse(*leaves) for inverse in inverses]
    held = [module.get_parameter(name) for name in names]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    found = torch.autograd.grad(images, leaves, gradients, allow_unused=True)
    return [torch.zeros_like(leaf) if own is None else own for leaf, own in zip(leaves, found, strict=True)]


class GaussianPart(Module):
    """Gaussians over the last dimension.

    Args:
        batch: the shape of the members; the first of them are rows where ``local``.
        k: the length of a member.
        common: whether all members have one covariance.
        local: whether the members are rows.
        x: a tensor of the dtype and device to take.
    """

    def __init__(self, batch: Sequence[int], k: int, x: Tensor, *, common: bool = False, local: bool = False) -> None:
        super().__init__()
        self.common, self.local = common, local
        self.loc = PyroParam(x.new_zeros(*batch, k))
        shape = (k, k) if common else (*batch, k, k)
        self.scale_tril = PyroParam(torch.eye(k).to(x).expand(shape).clone(), constraints.lower_cholesky)

    def _picked(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, root = self.loc, self.scale_tril
        if index is None or not self.local:
            return loc, root
        return loc[index], root if self.common else root[index]

    def factor(self, index: Tensor | None = None) -> GaussianFactor:
        """The Gaussians."""
        loc, root = self._picked(index)
        return GaussianFactor(loc, root @ root.mT)

    @torch.no_grad()
    def place(self, factor: GaussianFactor) -> None:
        """Take means and covariances."""
        self.loc = factor.mean.to(self.loc)
        root = torch.linalg.cholesky(factor.covariance.to(self.loc))
        self.scale_tril = root.expand(self.scale_tril.shape).clone()

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One Gaussian for every member."""
        loc, root = self._picked(index)
        return dist.MultivariateNormal(loc, scale_tril=root.expand(*loc.shape, -1))

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """The precision moves by the gradient in the covariance; the mean by the new covariance times its own."""
        root = self.scale_tril
        covariance = root @ root.mT
        to_real = transform_to(constraints.lower_cholesky).inv
        names = ("loc", "scale_tril_unconstrained")
        inverses = (lambda m, v: m, lambda m, v: to_real(torch.linalg.cholesky(v)))
        in_mean, in_covariance = _pulled(self, names, inverses, (self.loc, covariance))
        in_covariance = 0.5 * (in_covariance + in_covariance.mT)
        if self.common:
            members = self.loc[..., 0].numel() if rows is None else len(rows)
            in_covariance = in_covariance / members
        precision = torch.cholesky_inverse(root) + 2 * rate * in_covariance
        covariance = torch.linalg.inv(precision)
        moved = self.loc - rate * (covariance @ in_mean.unsqueeze(-1)).squeeze(-1)
        self.place(GaussianFactor(moved, 0.5 * (covariance + covariance.mT)))


class GammaPart(Module):
    """Gammas.

    Args:
        batch: the shape of the members.
        x: a tensor of the dtype and device to take.
    """

    def __init__(self, batch: Sequence[int], x: Tensor) -> None:
        super().__init__()
        self.shape = PyroParam(x.new_ones(tuple(batch)), constraints.positive)
        self.rate = PyroParam(x.new_ones(tuple(batch)), constraints.positive)

    def factor(self, index: Tensor | None = None) -> GammaFactor:
        """The Gammas."""
        return GammaFactor(self.shape, self.rate)

    @torch.no_grad()
    def place(self, factor: GammaFactor) -> None:
        """Take shapes and rates."""
        old = self.shape
        self.shape = factor.shape.to(old).reshape(old.shape)
        self.rate = factor.rate.to(old).reshape(old.shape)

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One Gamma for every member."""
        return dist.Gamma(self.shape, self.rate)

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """Shape and rate by the inverse of the Fisher information in (shape - 1, -rate)."""
        a, b = self.shape, self.rate
        names = ("shape_unconstrained", "rate_unconstrained")
        in_a, in_b = _pulled(self, names, (lambda s, r: s.log(), lambda s, r: r.log()), (a, b))
        trigamma = polygamma(1, a)
        determinant = (trigamma * a - 1) / b.square()
        first = (a / b.square() * in_a + in_b / b) / determinant
        second = (-in_a / b - trigamma * in_b) / determinant
        self.place(GammaFactor(a - rate * first, b + rate * second))


class DirichletPart(Module):
    """Dirichlets over the last dimension.

    Args:
        shape: the members' shape and their length.
        x: a tensor of the dtype and device to take.
    """

    def __init__(self, shape: Sequence[int], x: Tensor) -> None:
        super().__init__()
        self.concentration = PyroParam(x.new_ones(*shape), constraints.positive)

    def factor(self, index: Tensor | None = None) -> DirichletFactor:
        """The Dirichlets."""
        return DirichletFactor(self.concentration)

    @torch.no_grad()
    def place(self, factor: DirichletFactor) -> None:
        """Take the concentrations."""
        self.concentration = factor.concentration.to(self.concentration)

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One Dirichlet for every member."""
        return dist.Dirichlet(self.concentration)

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """By the inverse of diag(trigamma(a)) - trigamma(sum a), after Sherman and Morrison."""
        a = self.concentration
        (gradient,) = _pulled(self, ("concentration_unconstrained",), (lambda value: value.log(),), (a,))
        each, whole = polygamma(1, a), polygamma(1, a.sum(-1, keepdim=True))
        shift = (gradient / each).sum(-1, keepdim=True) / (1 / whole - (1 / each).sum(-1, keepdim=True))
        self.place(DirichletFactor(a - rate * (gradient + shift) / each))


class WishartPart(Module):
    """Wisharts.

    Args:
        batch: the shape of the members.
        d: rows of a member.
        x: a tensor of the dtype and device to take.
    """

    def __init__(self, batch: Sequence[int], d: int, x: Tensor) -> None:
        super().__init__()
        self.df = PyroParam(x.new_full(tuple(batch), d + 1.0), constraints.greater_than(d - 1.0))
        root = torch.eye(d).to(x).expand(*batch, d, d).clone()
        self.inverse_root = PyroParam(root, constraints.lower_cholesky)  # of V^-1

    def factor(self, index: Tensor | None = None) -> WishartFactor:
        """The Wisharts."""
        root = self.inverse_root
        return WishartFactor(self.df, root @ root.mT)

    @torch.no_grad()
    def place(self, factor: WishartFactor) -> None:
        """Take degrees of freedom and inverse scales."""
        self.df = factor.df.to(self.df).reshape(self.df.shape)
        self.inverse_root = torch.linalg.cholesky(factor.inverse_scale.to(self.inverse_root))

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One Wishart for every member."""
        root = self.inverse_root
        return Wishart(self.df, precision_matrix=root @ root.mT)

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """By the inverse Fisher information in (df, inverse scale), in closed form."""
        root = self.inverse_root
        nu, inverse = self.df, root @ root.mT
        d = inverse.shape[-1]
        to_real = transform_to(constraints.lower_cholesky).inv
        lower = transform_to(constraints.greater_than(d - 1.0)).inv
        names = ("df_unconstrained", "inverse_root_unconstrained")
        inverses = (lambda n, b: lower(n), lambda n, b: to_real(torch.linalg.cholesky(b)))
        in_df, in_inverse = _pulled(self, names, inverses, (nu, inverse))
        in_inverse = 0.5 * (in_inverse + in_inverse.mT)
        halves = (nu.unsqueeze(-1) - torch.arange(d).to(nu)) / 2
        curvature = 0.25 * polygamma(1, halves).sum(-1) - d / (2 * nu)
        step = (in_df + (inverse * in_inverse).sum((-2, -1)) / nu) / curvature
        change = (2 * inverse @ in_inverse @ inverse + step[..., None, None] * inverse) / nu[..., None, None]
        moved = inverse - rate * change
        self.place(WishartFactor(nu - rate * step, 0.5 * (moved + moved.mT)))


class CategoricalPart(Module):
    """Categoricals, one per row.

    Args:
        n: the number of rows.
        k: the number of values.
        x: a tensor of the dtype and device to take.
    """

    local = True

    def __init__(self, n: int, k: int, x: Tensor) -> None:
        super().__init__()
        self.logits = PyroParam(x.new_zeros(n, k))

    def factor(self, index: Tensor | None = None) -> CategoricalFactor:
        """The categoricals."""
        logits = self.logits if index is None else self.logits[index]
        return CategoricalFactor(logits.log_softmax(-1))

    @torch.no_grad()
    def place(self, factor: CategoricalFactor) -> None:
        """Take the log probabilities."""
        self.logits = factor.logits.to(self.logits)

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One categorical per row."""
        return dist.Categorical(logits=self.logits if index is None else self.logits[index])

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """Log probabilities by the gradient over the probabilities."""
        gradient = self.logits.grad
        if gradient is None:
            return
        logits = self.logits.log_softmax(-1)
        moved = logits - rate * gradient / logits.exp().clamp_min(LEAST)
        self.place(CategoricalFactor(moved.log_softmax(-1)))


class CoupledPart(Module):
    """Gaussians given precisions that another part draws, N(loc, (beta Lambda)^-1): the other half of a normal-Wishart.

    Args:
        k: the number of members.
        d: the length of a member.
        x: a tensor of the dtype and device to take.
    """

    def __init__(self, k: int, d: int, x: Tensor) -> None:
        super().__init__()
        self.loc = PyroParam(x.new_zeros(k, d))
        self.beta = PyroParam(x.new_ones(k), constraints.positive)

    def factor(self, index: Tensor | None = None) -> CoupledFactor:
        """The Gaussians."""
        return CoupledFactor(self.loc, self.beta)

    @torch.no_grad()
    def place(self, factor: CoupledFactor) -> None:
        """Take means and strengths."""
        self.loc, self.beta = factor.mean.to(self.loc), factor.beta.to(self.loc)

    def given(self, precision: Tensor, matrix: bool) -> dist.TorchDistribution:
        """One Gaussian for every member, at precisions (..., k, d, d) or (..., d, d), or columns (..., k, d)."""
        beta = self.beta
        if not matrix:
            return dist.Normal(self.loc, (beta.unsqueeze(-1) * precision).rsqrt()).to_event(1)
        tied = precision.shape[-3:-2] != beta.shape
        precision = precision.unsqueeze(-3) if tied else precision
        return dist.MultivariateNormal(self.loc, precision_matrix=beta[:, None, None] * precision)
