"""Covariances that a factorised guide leaves out, from how its optimum responds to a change of the model."""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.algebra.curvature import Curvature
from zoo.base.callables import modules, name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import Latent
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import HoldsFactors, Pair
from zoo.base.random import seeded
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.guide.moments import flat, units_of
from zoo.infer.losses.closed_form import ClosedFormELBO, closed_form
from zoo.infer.losses.fixed_draws import FixedDraws, check_fixed_draws
from zoo.infer.pairing import noiseless
from zoo.posterior.engine import Reader, reader, reading

Quantity = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class LinearResponse:
    r"""Moments of p numbers under a guide, with the covariance that its optimum's response to the model implies.

    Attributes:
        units: what the numbers are: site and place, as ``"weight[0, 1]"``, or the place alone in a quantity.
        mean: their mean under the guide (p,).
        covariance: the linear-response covariance (p, p).
        own_covariance: the guide's own covariance (p, p), from its draws.
        left: nats that a Newton step on the bound would still gain: how far the guide is from its optimum.
        parameters: the number of the guide's parameters.
        draws: draws of the guide behind the means and the guide's own covariance.
        loss: the name of the bound.
    """

    units: tuple[str, ...]
    mean: Tensor
    covariance: Tensor
    own_covariance: Tensor
    left: float
    parameters: int
    draws: int
    loss: str

    @property
    def deviation(self) -> Tensor:
        """The corrected standard deviations (p,)."""
        return self.covariance.diagonal().clamp_min(0.0).sqrt()

    @property
    def own_deviation(self) -> Tensor:
        """The guide's own standard deviations (p,)."""
        return self.own_covariance.diagonal().sqrt()

    def summary(self) -> dict[str, float]:
        """The least, median and largest ratio of corrected to own standard deviations, and the nats left to gain."""
        ratio = self.deviation / self.own_deviation
        found = {"least": ratio.min(), "median": ratio.median(), "largest": ratio.max()}
        return {f"{name}_ratio": float(value) for name, value in found.items()} | {"left": self.left}

    def frame(self) -> pl.DataFrame:
        """A row per number: its mean, the corrected and the guide's own standard deviation, and their ratio."""
        columns = {"mean": self.mean, "deviation": self.deviation, "own_deviation": self.own_deviation}
        table = {name: value.tolist() for name, value in columns.items()}
        return pl.DataFrame({"unit": list(self.units), **table}).with_columns(
            ratio=pl.col("deviation") / pl.col("own_deviation")
        )

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"Linear response of {len(self.units)} numbers: standard deviations {s['median_ratio']:.3g} times the "
            f"guide's own (from {s['least_ratio']:.3g} to {s['largest_ratio']:.3g}), {self.left:.2g} nats from the "
            f"optimum of {self.loss}"
        )

    __repr__ = __str__


@on_suited_threads
def linear_response(
    run: Trained,
    x: ArrayLike,
    quantity: Quantity | None = None,
    *,
    loss: ELBO | None = None,
    draws: int = 1000,
    seed: int = 0,
    tol: float = 1e-3,
    dense: int = 2000,
) -> LinearResponse:
    r"""Correct the covariances of a mean-field guide by linear response.

    .. math:: \Sigma = J^T H^{-1} J, \qquad J = \nabla_\phi\, E_{q_\phi}[g], \qquad H = -\nabla^2_\phi L(\phi)

    with L the evidence lower bound, :math:`\phi` the guide's unconstrained parameters at its maximum, and g the
    quantity. :math:`\Sigma` is how the mean of g moves when the log posterior is tilted by g; under the posterior
    itself that is the covariance of g, so that it is exact wherever the guide's means are, whatever its variances:
    for every Gaussian posterior. Parameters of the model are held.

    L must have no noise: the closed form of a conditionally conjugate model, or
    :class:`~zoo.infer.FixedDraws` for any guide of reparametrised sites, fitted with the very same loss. H is inverted
    as a whole up to ``dense`` parameters, and by conjugate gradients, one solve per number of g, beyond. A direction
    along which L is flat (a rotation of the factors under a symmetric prior) makes H singular: it is left out, and g
    refused if it moves along it.

    Args:
        run: the fitted pair.
        x: the rows that it was fitted to (n, d).
        quantity: maps draws of the sites by name, (draws, ...) shared and (draws, n, ...) of the rows, to g (draws,
            ...) by differentiable operations. Discrete sites are not among them. None: the numbers of all shared sites.
        loss: the bound; None takes :class:`~zoo.infer.losses.closed_form.ClosedFormELBO` where the pair has one, else
            ``FixedDraws()``.
        draws: of the guide, for the means of g and their gradients (mirrored in pairs where q is Gaussian). Under
            ``FixedDraws`` its own draws are taken instead.
        seed: of the draws.
        tol: the most nats that a Newton step may still gain.
        dense: the most parameters whose Hessian is held as a whole.

    Returns:
        mean, corrected covariance and the guide's own of every number of g.

    Raises:
        ValueError: the loss is noisy; there are too few fixed draws for the numbers that the guide couples; the guide
            is not at the maximum of L (it has not converged, or to a saddle); g moves along a flat direction, or does
            not depend on the guide.

    References:
        Giordano, Broderick and Jordan (2018), Covariances, robustness, and variational Bayes, JMLR 19; Giordano, Ingram
        and Broderick (2024), Black box variational inference with a deterministic objective, JMLR 25.
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    check_whole(dense, "dense", 0)
    x = rows_of(run, x, least=1)
    bound = loss if loss is not None else ClosedFormELBO() if closed_form(run.model, run.guide) else FixedDraws()
    if not noiseless(run.model, run.guide, bound):
        raise ValueError(
            f"linear_response needs the Hessian of a bound without noise, and {type(bound).__name__} draws at random: "
            "fit with loss=zoo.infer.FixedDraws(30), and pass the same loss here"
        )
    with reading(run, seed):
        source = reader(run, x)
        if isinstance(bound, FixedDraws):
            check_fixed_draws(run.guide, source.layout, bound.draws, (x,))
        with torch.enable_grad():
            params = _parameters(run, x)
            value = bound.differentiable_loss(run.model, run.guide, x)
            curvature = Curvature.of(value, params, dense)
            means, values, units = _expectations(run, source, quantity, bound, draws, seed)
            rows = [curvature.flat(torch.autograd.grad(m, params, retain_graph=True, allow_unused=True)) for m in means]
    jacobian = torch.stack(rows)  # (p, parameters)
    if not jacobian.any(1).all():
        lost = units[int((~jacobian.any(1)).nonzero()[0])]
        raise ValueError(f"the mean of {lost} does not depend on the guide's parameters: leave it out of quantity")
    left = _check_optimum(run, curvature, bound, tol)
    solved = curvature.solve(jacobian, units)
    covariance = jacobian @ solved.mT
    centred = values - values.mean(0)
    return LinearResponse(
        units=units,
        mean=means.detach(),
        covariance=0.5 * (covariance + covariance.mT),
        own_covariance=centred.mT @ centred / (len(values) - 1),
        left=left,
        parameters=jacobian.shape[1],
        draws=len(values),
        loss=type(bound).__name__,
    )


def _check_optimum(run: Pair, curvature: Curvature, bound: ELBO, tol: float) -> float:
    """The nats that a Newton step would still gain.

    Raises:
        ValueError: they are more than ``tol``.
    """
    left = curvature.decrement()
    if left <= tol:
        return left
    gains = "there is no maximum nearby" if math.isinf(left) else f"a Newton step would still gain {left:.2g} nats"
    raise ValueError(
        f"{name_of(run.guide)} is not at the maximum of {type(bound).__name__}: {gains} (tol={tol:g}). Fit it further "
        f"with the same loss, as zoo.fit(model, guide, x, loss=...), in float64"
    )


def _parameters(run: Pair, x: Tensor) -> list[Tensor]:
    """The unconstrained parameters of the guide alone.

    Raises:
        ValueError: it has none.
    """
    with poutine.block(), poutine.trace(param_only=True) as capture:
        run.guide(x)
    owned = {id(p) for module in modules(run.model) for p in module.parameters()}
    found = {id(p): p for site in capture.trace.nodes.values() if (p := _real(site["value"])) is not None}
    kept = [p for key, p in found.items() if key not in owned and p.requires_grad]
    if not kept:
        raise ValueError(f"the guide {name_of(run.guide)} has no parameters of its own to respond")
    return kept


def _real(value: Any) -> Tensor | None:
    """The unconstrained parameter behind a value of Pyro's store."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


def _expectations(
    run: Pair, source: Reader, quantity: Quantity | None, bound: ELBO, draws: int, seed: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The means of g (p,), differentiable; its values at draws (draws, p); and their names."""
    fixed = isinstance(bound, FixedDraws)
    count = bound.draws if isinstance(bound, FixedDraws) else 2 * ((draws + 1) // 2)
    source.draw((source.x,), 2, points=True)  # the reader looks at the guide, by draws of its own
    mirrored: Any = nullcontext() if fixed else _Mirrored(count, -1 - source.layout.nesting)
    with seeded(bound.seed if isinstance(bound, FixedDraws) else seed), mirrored:
        drawn = source.draw((source.x,), count, points=True).values
    smooth = {
        own.name: drawn[own.name] for own in source.layout.latents if own.name in drawn and own.cardinality is None
    }
    if quantity is None:
        shared = source.layout.shared
        if not shared:
            raise ValueError("the model has no shared site: pass quantity, a function of the sites' draws")
        values = torch.cat([flat(smooth[own.name], own) for own in shared], -1)
        means = values.mean(0) if fixed else _closed_means(run, shared, values)
        return means, values.detach(), units_of(shared)
    found = quantity(smooth)
    if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != count:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"quantity must return a tensor (draws, ...) with {count} draws, got {got}")
    if not found.requires_grad:
        raise ValueError(
            "quantity must return a tensor made from the draws by differentiable operations (no detach, item or numpy)"
        )
    values = found.reshape(count, -1)
    return values.mean(0), values.detach(), _places(found.shape[1:])


def _places(shape: torch.Size) -> tuple[str, ...]:
    """The names of the numbers of a quantity: ``"[0, 1]"``; of a scalar ``"quantity"``."""
    if not shape:
        return ("quantity",)
    return tuple(str(list(place)) for place in itertools.product(*map(range, shape)))


def _closed_means(run: Pair, shared: tuple[Latent, ...], values: Tensor) -> Tensor:
    """The means of the shared sites: in closed form where the guide holds factors, else those of mirrored draws."""
    guide = undecorated(run.guide)
    if not closed_form(run.model, guide) or not isinstance(guide, HoldsFactors):
        return values.mean(0)
    factors = guide.factors()
    return torch.cat([factors[own.name].mean.reshape(-1) for own in shared])


class _Mirrored(Messenger):
    """Makes the second half of the draws the mirror image of the first, site by site, where q is Gaussian.

    The means of odd functions of a Gaussian are then free of noise, those of linear ones exact.
    """

    def __init__(self, draws: int, dim: int) -> None:
        super().__init__()
        self.draws, self.dim = draws, dim

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        free = msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg)
        if free and len(msg["fn"].batch_shape) == -self.dim and msg["fn"].batch_shape[0] == self.draws:
            msg["value"] = self._drawn(msg["fn"])

    def _drawn(self, function: Any) -> Tensor | None:
        """Mirrored draws of a distribution; None for one that is not Gaussian."""
        if isinstance(function, dist.TransformedDistribution):
            value = self._drawn(function.base_dist)
            for transform in function.transforms if value is not None else ():
                value = transform(value)
            return value
        if isinstance(function, torch.distributions.Independent):
            return self._drawn(function.base_dist)
        if not isinstance(function, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
            return None
        half = self.draws // 2
        first = function.rsample()[:half]
        return torch.cat([first, 2 * function.mean[:half] - first])
