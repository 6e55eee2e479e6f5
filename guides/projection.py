"""The best q of a guide's family as a function of the model's parameters, where it has a closed form."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.algebra import linear_gaussian
from zoo.algebra.projected import best_bound, mean_field_gap, principal_rotation
from zoo.base.callables import PyroCallable, undecorated
from zoo.base.checks import incomplete
from zoo.base.moments import Moments
from zoo.base.protocols import Conjugate, Projection, linear_form, loadings

Result = TypeVar("Result")
Rowwise = Callable[[Tensor], Tensor]
Solve = Callable[[], None]


class MomentProjection:
    r"""That of a Gaussian q for a linear-Gaussian model on complete rows: the bound depends on their moments only.

    The likelihood does not depend on the rotation of the factors, but the bound of a factorised q does. It is highest,
    and equal to the log-likelihood, where :math:`W^T \Psi^{-1} W` is diagonal: so ``solve`` rotates loadings that are
    free, and ``bound`` is the maximum over rotations as well (parameter expansion; Luttinen and Ilin 2010).

    Args:
        model: a model with a :func:`~zoo.base.protocols.linear_form`.
        x: the rows (n, d).
        solve: sets the guide's parameters to the best q.
        factorised: whether q is factorised.
    """

    def __init__(self, model: PyroCallable, x: Tensor, solve: Solve, *, factorised: bool) -> None:
        self.model, self.x, self.factorised = model, x, factorised
        self._solve = solve
        self._moments: Moments | None = None

    def bound(self) -> Tensor:
        """The bound at the best q over all rows."""
        if self._moments is None:
            self._moments = Moments.of(self.x)
        coupled = self.factorised and self._loadings is None
        return best_bound(self._moments, *_form(self.model), factorised=coupled)

    @torch.no_grad()
    def solve(self) -> None:
        """Set the guide to the best q, and free loadings to the rotation under which a factorised q is exact."""
        if self.factorised and self._loadings is not None:
            weight, _, noise = _form(self.model)
            self._loadings.copy_(self._loadings @ principal_rotation(weight, noise))
        self._solve()

    @property
    def _loadings(self) -> nn.Parameter | None:
        """The parameter with the loadings, if they may be rotated."""
        found = loadings(self.model)
        return found if found is not None and found.requires_grad else None


class RowProjection:
    """That of a model with closed posteriors, row by row.

    Args:
        log_marginal: log p(x) of rows (n, d): (n,).
        posterior: their posterior, a multivariate normal distribution where ``factorised``.
        x: the rows (n, d).
        solve: sets the guide's parameters to the best q.
        factorised: whether q is a factorised Gaussian, else it is the posterior itself.
    """

    def __init__(
        self,
        log_marginal: Rowwise,
        posterior: Callable[[Tensor], Distribution],
        x: Tensor,
        solve: Solve,
        *,
        factorised: bool,
    ) -> None:
        self.log_marginal, self.posterior = log_marginal, posterior
        self.x, self.solve, self.factorised = x, solve, factorised

    def bound(self) -> Tensor:
        """The bound at the best q over all rows."""
        total = self.log_marginal(self.x).sum()
        if not self.factorised:
            return total
        found = self.posterior(self.x)
        assert isinstance(found, dist.MultivariateNormal)
        return total - mean_field_gap(found.precision_matrix).sum()


def gaussian_projection(model: PyroCallable, x: Tensor, solve: Solve, *, factorised: bool) -> Projection | None:
    """The projection of a Gaussian q for one local site; None where the model's posterior is not a closed Gaussian."""
    form = linear_form(model)
    if form is not None and not incomplete(x):
        return MomentProjection(model, x, solve, factorised=factorised)
    if form is not None:
        return RowProjection(
            partial(_of_form, linear_gaussian.log_marginal, model),
            partial(_of_form, linear_gaussian.posterior, model),
            x,
            solve,
            factorised=factorised,
        )
    found = row_posterior(model, x)
    return _projection(model, x, solve, factorised) if isinstance(found, dist.MultivariateNormal) else None


def posterior_projection(model: PyroCallable, x: Tensor, solve: Solve) -> Projection | None:
    """The projection of a q whose family contains the posterior of a conjugate model; None for another model."""
    return None if row_posterior(model, x) is None else _projection(model, x, solve, factorised=False)


def _projection(model: PyroCallable, x: Tensor, solve: Solve, factorised: bool) -> RowProjection:
    """That of a conjugate model, by its closed forms."""
    inner = undecorated(model)
    assert isinstance(inner, Conjugate)
    return RowProjection(inner.log_marginal, inner.posterior, x, solve, factorised=factorised)


def row_posterior(model: PyroCallable, x: Tensor) -> Distribution | None:
    """The posterior of the first row; None for a model that is not conjugate, or whose posterior needs covariates."""
    inner = undecorated(model)
    if not isinstance(inner, Conjugate) or "index" in inspect.signature(inner.posterior).parameters:
        return None
    with torch.no_grad():
        return inner.posterior(x[:1])


def _of_form(function: Callable[..., Result], model: PyroCallable, x: Tensor) -> Result:
    return function(x, *_form(model))


def _form(model: PyroCallable) -> tuple[Tensor, Tensor, Tensor]:
    found = linear_form(model)
    assert found is not None
    return found
