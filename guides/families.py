"""Exponential-family factors with parameters: what a mean-field guide is made of where the model is conjugate.

Each part holds the parameters of one factor, gives it as a :class:`~zoo.algebra.exponential_families.Factor`, takes one
back, and takes a natural-gradient step from the gradients that SVI leaves on its parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

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
    GammaFactor,
    GaussianFactor,
    WishartFactor,
)
from zoo.algebra.wishart import Wishart
from zoo.base.module import Module

LEAST = 1e-30  # probability below which a categorical has no usable gradient
HALVINGS = 50  # of a step that leaves the domain, at most


def _pulled(
    module: Module,
    names: Sequence[str],
    inverses: Sequence[Any],
    values: Sequence[Tensor],
    picked: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Gradients of the loss in ``values``, from those on the unconstrained parameters.

    Args:
        module: the part.
        names: its parameters.
        inverses: functions from ``values`` to the unconstrained parameters, one for each name.
        values: what the gradients are wanted in.
        picked: for each parameter the rows that ``values`` holds, None for all.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        images = [inverse(*leaves) for inverse in inverses]
    held = [module.get_parameter(name) for name in names]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
    if picked is not None:
        gradients = [g if rows is None else g[rows] for g, rows in zip(gradients, picked, strict=True)]
    found = torch.autograd.grad(images, leaves, gradients, allow_unused=True)
    return [torch.zeros_like(leaf) if own is None else own for leaf, own in zip(leaves, found, strict=True)]


def _kept_inside(moved: Callable[[Tensor], Any], inside: Callable[[Any], Tensor], rate: float, like: Tensor) -> Any:
    """What ``moved`` gives at ``rate``, halved for the members that ``inside`` rejects until it accepts all.

    Args:
        moved: from the lengths of the steps of all members to where they lead.
        inside: whether each member is in the domain there.
        rate: the length to begin with.
        like: one number per member.

    Raises:
        FloatingPointError: no step is short enough: the gradient holds NaN or inf.
    """
    rates = torch.full_like(like, rate)
    for _ in range(HALVINGS):
        found = moved(rates)
        good = inside(found)
        if good.all():
            return found
        rates = torch.where(good, rates, rates / 2)
    raise FloatingPointError(
        f"a natural-gradient step halved {HALVINGS} times still leaves the domain: the gradient holds NaN or inf, or "
        "the factor has lost its precision"
    )


def _positive_definite(matrices: Tensor) -> Tensor:
    """Whether each matrix (..., k, k) is positive definite."""
    finite = matrices.isfinite().all(-1).all(-1)
    safe = torch.where(finite[..., None, None], matrices, torch.zeros_like(matrices))
    return finite & (torch.linalg.cholesky_ex(safe)[1] == 0)


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
        self.__dict__["rows"] = None  # the rows last asked for, which a natural-gradient step moves; None for all
        self.loc = PyroParam(x.new_zeros(*batch, k))
        shape = (k, k) if common else (*batch, k, k)
        self.scale_tril = PyroParam(torch.eye(k).to(x).expand(shape).clone(), constraints.lower_cholesky)

    def _picked(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, root = self.loc, self.scale_tril
        self.__dict__["rows"] = index if self.local else None
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
        loc, root = self.loc, self.scale_tril
        if rows is not None:
            loc, root = loc[rows], root if self.common else root[rows]
        to_real = transform_to(constraints.lower_cholesky).inv
        names = ("loc", "scale_tril_unconstrained")
        inverses = (lambda m, v: m, lambda m, v: to_real(torch.linalg.cholesky(v)))
        picked = (rows, None if self.common else rows)
        in_mean, in_covariance = _pulled(self, names, inverses, (loc, root @ root.mT), picked)
        in_covariance = 0.5 * (in_covariance + in_covariance.mT)
        if self.common:
            in_covariance = in_covariance / loc[..., 0].numel()
        before = torch.cholesky_inverse(root)
        rates, precision = _kept_inside(
            lambda rates: (rates, before + 2 * rates[..., None, None] * in_covariance),
            lambda found: _positive_definite(found[1]),
            rate,
            root[..., 0, 0],
        )
        covariance = torch.linalg.inv(precision)
        covariance = 0.5 * (covariance + covariance.mT)
        moved = loc - rates.unsqueeze(-1) * (covariance @ in_mean.unsqueeze(-1)).squeeze(-1)
        if rows is None:
            self.place(GaussianFactor(moved, covariance))
            return
        self.get_parameter("loc").data[rows] = moved
        real = to_real(torch.linalg.cholesky(covariance))
        held = self.get_parameter("scale_tril_unconstrained").data
        held[... if self.common else rows] = real


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
        moved = _kept_inside(
            lambda rates: torch.stack([a - rates * first, b + rates * second]),
            lambda found: (found > 0).all(0) & found.isfinite().all(0),
            rate,
            a,
        )
        self.place(GammaFactor(*moved))


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
        change = (gradient + shift) / each
        moved = _kept_inside(
            lambda rates: a - rates.unsqueeze(-1) * change,
            lambda found: (found > 0).all(-1) & found.isfinite().all(-1),
            rate,
            a[..., 0],
        )
        self.place(DirichletFactor(moved))


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
        change = 0.5 * (change + change.mT)
        self.place(
            _kept_inside(
                lambda rates: WishartFactor(nu - rates * step, inverse - rates[..., None, None] * change),
                lambda found: (found.df > d - 1) & found.df.isfinite() & _positive_definite(found.inverse_scale),
                rate,
                nu,
            )
        )


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
        self.__dict__["rows"] = None  # the rows last asked for, which a natural-gradient step moves; None for all
        self.logits = PyroParam(x.new_zeros(n, k))

    def _picked(self, index: Tensor | None) -> Tensor:
        self.__dict__["rows"] = index
        return self.logits if index is None else self.logits[index]

    def factor(self, index: Tensor | None = None) -> CategoricalFactor:
        """The categoricals."""
        return CategoricalFactor(self._picked(index).log_softmax(-1))

    @torch.no_grad()
    def place(self, factor: CategoricalFactor) -> None:
        """Take the log probabilities."""
        self.logits = factor.logits.to(self.logits)

    def distribution(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """One categorical per row."""
        return dist.Categorical(logits=self._picked(index))

    @torch.no_grad()
    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """Log probabilities by the gradient over the probabilities, none of which falls below 1e-30.

        A probability of 0 has no gradient, so that its value could never be chosen again.
        """
        parameter = self.get_parameter("logits")
        if parameter.grad is None:
            return
        chosen = slice(None) if rows is None else rows
        logits = parameter[chosen].log_softmax(-1)
        moved = logits - rate * parameter.grad[chosen] / logits.exp().clamp_min(LEAST)
        parameter.data[chosen] = moved.log_softmax(-1).clamp_min(math.log(LEAST))


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
