"""What a model or a guide may offer beyond its story: every hook that the package asks for, written down.

A model or guide is a plain Pyro callable and has none of these by duty. What it has is found by ``isinstance`` on
:func:`zoo.base.callables.undecorated`, so that a handler which changes the density is not credited with closed forms.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.base.callables import PyroCallable, undecorated


class Pair(Protocol):
    """A trained model and guide with the parameters of both: all that is needed to judge them. See :class:`zoo.Fit`."""

    @property
    def model(self) -> PyroCallable:
        """The model."""
        ...

    @property
    def guide(self) -> PyroCallable:
        """The guide."""
        ...

    def scope(self) -> AbstractContextManager[None]:
        """Pyro's parameter store with the pair's parameters in it."""
        ...


# Models.


@runtime_checkable
class Conjugate(Protocol):
    """A model whose posterior and marginal likelihood have closed forms.

    One with the class attribute ``missing = True`` accepts rows with missing entries (NaN) throughout, ``forward``
    included; see :mod:`zoo.algebra.missing`.
    """

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), a distribution with batch shape (n,): one per row."""
        ...

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (n,)."""
        ...

    def em_step(self, x: Any) -> Tensor:
        """One step of EM, in place. Returns the total log-likelihood of the parameters it started from."""
        ...


@runtime_checkable
class ConjugateGivenShared(Protocol):
    """A model with shared sites, conjugate given them."""

    def log_marginal_given(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x | theta) (draws, n) at values of the shared sites by name, (draws, ...) each."""
        ...


class CoordinateAscent(Protocol):
    """The factors of q(Z) q(theta) of a conditionally conjugate model, and the sweeps that raise the bound."""

    def sweep(self) -> None:
        """Every factor once, at its optimum given the others."""
        ...

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows in nats, every constant kept."""
        ...

    def factors(self, x: Tensor) -> Mapping[str, Any]:
        """The factor of every site by name, of local sites for the rows ``x`` (n, d)."""
        ...


@runtime_checkable
class Rotating(Protocol):
    """A coordinate ascent that can move several factors together along a symmetry of the likelihood."""

    def rotate(self) -> None:
        """Move them to where the bound is highest."""
        ...


@runtime_checkable
class ConditionallyConjugate(Protocol):
    """A model with priors on everything whose factors of q have their optimum in closed form, given the others."""

    @property
    def families(self) -> Mapping[str, str]:
        """The family of q of every site: gaussian, normal, gamma, dirichlet, wishart, coupled or categorical."""
        ...

    def coordinate_ascent(self, x: Tensor, generator: torch.Generator) -> CoordinateAscent:
        """The factors at a random start, for the rows ``x`` (n, d)."""
        ...

    def bound(self, x: Tensor, factors: Mapping[str, Any], scale: float = 1.0) -> Tensor:
        """The evidence lower bound of factors of these families; the rows' terms count ``scale`` times."""
        ...


@runtime_checkable
class ClosedBound(Protocol):
    """A model with the bound of a Gaussian (or categorical) q in closed form."""

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        """The evidence lower bound of every row (n,)."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A model or guide that takes a random start on the data; :func:`zoo.fit` and :func:`zoo.em` place fresh ones."""

    @property
    def fresh(self) -> bool:
        """Whether the parameters are still those that the constructor drew."""
        ...

    def initialize(self, x: Tensor) -> None:
        """Place the parameters on the rows (n, d), from the running random stream."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A model that refuses data under which its likelihood has no maximum."""

    def check(self, x: Tensor) -> None:
        """Raise a ValueError that names the row or column and the way out."""
        ...


@runtime_checkable
class Summarized(Protocol):
    """A conjugate model whose EM step takes sufficient statistics in place of rows."""

    def summarize(self, x: Tensor) -> Any:
        """What ``em_step`` takes in place of the rows (n, d)."""
        ...


@runtime_checkable
class Maximized(Protocol):
    """A conjugate model with a direct maximum of its likelihood."""

    def maximize(self, moments: Any) -> Any:
        """Go to the maximum, in place, given the moments of the rows."""
        ...


@runtime_checkable
class Decoding(Protocol):
    """A model with p(x | z) as a distribution."""

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z) for factors (..., k): a distribution with event (d,)."""
        ...


@runtime_checkable
class Imputing(Protocol):
    """A model that fills missing entries in closed form."""

    def impute(self, x: Tensor) -> Any:
        """Mean and variance of the missing entries (NaN) of rows (n, d)."""
        ...


@runtime_checkable
class Floored(Protocol):
    """A model with a floor on its variances."""

    floor: float

    def at_floor(self, z: Tensor) -> Tensor | None:
        """The share (...) of variances at the floor for factors (..., k)."""
        ...


@runtime_checkable
class LinearGaussian(Protocol):
    """A linear-Gaussian model: x ~ N(W z + mu, diag(noise)), z ~ N(0, I)."""

    weight: Tensor  # (d, k)
    mean: Tensor  # (d,)

    @property
    def noise(self) -> Tensor:
        """The noise variance of every column (d,)."""
        ...


@runtime_checkable
class Mixture(Protocol):
    """A mixture of components, with the site ``component`` per row."""

    components: int


@runtime_checkable
class Quadratic(Protocol):
    """A model that declares whether log p(x, z) is quadratic in its continuous sites, for any value of the discrete."""

    @property
    def quadratic(self) -> bool:
        """Whether it is."""
        ...


# Guides.


@runtime_checkable
class HasPosterior(Protocol):
    """A guide with q(z | x) of its one local site as a distribution."""

    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """q(z | x), a distribution with batch shape (n,)."""
        ...


@runtime_checkable
class HoldsRows(Protocol):
    """A guide with parameters of its own for every row of the data that it was built for."""

    count: int


@runtime_checkable
class HoldsFactors(Protocol):
    """A guide made of exponential-family factors (:mod:`zoo.algebra.exponential_families`)."""

    def factors(self, index: Tensor | None = None) -> Mapping[str, Any]:
        """The factor of every site by name, of local sites those of the rows ``index`` (all by default)."""
        ...


@runtime_checkable
class HoldsFactor(Protocol):
    """A part of a guide: the parameters of one exponential-family factor; see :mod:`guides.families`."""

    def factor(self, index: Tensor | None = None) -> Any:
        """The factor, of the rows ``index`` where it has members per row."""
        ...


@runtime_checkable
class NaturalStep(Protocol):
    """A part of a guide that takes natural-gradient steps."""

    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        """Move by ``rate`` along the natural gradient, of the members ``rows`` where members are rows."""
        ...


@runtime_checkable
class GaussianGuide(Protocol):
    """A guide that declares whether all its sites are Gaussian (in unconstrained coordinates) or categorical."""

    @property
    def gaussian(self) -> bool:
        """Whether they are."""
        ...


@runtime_checkable
class TightGuide(Protocol):
    """A guide that declares whether it is the posterior itself, so that every draw gives log p(x)."""

    @property
    def tight(self) -> bool:
        """Whether it is."""
        ...


def declares(function: PyroCallable, name: str) -> bool:
    """Whether a model or guide declares a property of its density: ``quadratic``, ``gaussian`` or ``tight``.

    A subclass with a ``forward`` of its own has another density: what its parent declares does not hold for it, and it
    declares the property anew where it has it.
    """
    inner = undecorated(function)
    if name in vars(inner):
        return bool(vars(inner)[name])
    for owner in type(inner).__mro__:
        if name in vars(owner):
            return bool(getattr(inner, name))
        if "forward" in vars(owner):
            return False
    return False
