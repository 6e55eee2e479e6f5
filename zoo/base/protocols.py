"""The hooks of models and guides: everything that the package looks for beyond the Pyro story itself.

Every hook is optional. Whether a model or guide has one is found by ``isinstance`` on
:func:`zoo.base.callables.undecorated`, so that closed forms are not used under a handler that changes the density.
"""

import functools
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from zoo.base.callables import PyroCallable, undecorated

if TYPE_CHECKING:
    from abc import ABCMeta as ProtocolMeta
else:
    ProtocolMeta = type(Protocol)


class ByAttribute(ProtocolMeta):
    """``isinstance`` of a protocol by ``hasattr``.

    From Python 3.12 on, ``isinstance`` looks up the members of a runtime protocol without ``__getattr__``, through
    which modules give access to parameters, buffers and submodules.
    """

    def __instancecheck__(self, instance: object) -> bool:
        if not getattr(self, "_is_protocol", False):  # a class that inherits from a protocol
            return bool(super().__instancecheck__(instance))
        return all(hasattr(instance, name) for name in members(self))


class Hook(Protocol, metaclass=ByAttribute):
    """Base class of all hooks: an object has a hook where it has all members by name."""


@functools.cache
def members(hook: type) -> frozenset[str]:
    """The names that a hook requires.

    >>> sorted(members(LinearGaussian))
    ['mean', 'noise', 'weight']
    """
    owners = [owner for owner in hook.__mro__ if issubclass(type(owner), ByAttribute)]
    names = {name for owner in owners for name in (*inspect.get_annotations(owner), *vars(owner))}
    return frozenset(name for name in names if not name.startswith("_"))


@runtime_checkable
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
class HasWidth(Hook, Protocol):
    """A model that was built for a number of columns."""

    data_dim: int


@runtime_checkable
class AcceptsMissing(Hook, Protocol):
    """A model that declares whether rows may have missing entries (NaN)."""

    missing: bool


@runtime_checkable
class AcceptsWeights(Hook, Protocol):
    """A model that declares whether its rows may have weights.

    With the class attribute ``weighted = True`` the methods ``initialize``, ``estimate``, ``summarize``,
    ``coordinate_ascent`` and ``bound``, as far as the model has them, accept the keyword ``weights``: how often every
    row counts (n,), positive, in float64; None for once.
    """

    weighted: bool


@runtime_checkable
class AcceptsMoments(Hook, Protocol):
    """A model that declares whether it can be fitted to the mean and the covariance of rows.

    With the class attribute ``from_moments = True`` the methods ``check``, ``estimate``, ``initialize``, ``summarize``
    and ``em_step`` accept :class:`zoo.data.Moments` in place of rows, in float64.
    """

    from_moments: bool


@runtime_checkable
class Conjugate(Hook, Protocol):
    """A model whose posterior and marginal likelihood have closed forms.

    With the class attribute ``missing = True`` all its methods, ``forward`` included, accept rows with missing entries
    (NaN); see :mod:`zoo.algebra.missing`.
    """

    def posterior(self, x: Tensor) -> Distribution:
        """p(z | x), a distribution with batch shape (n,): one per row."""
        ...

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (n,)."""
        ...

    def em_step(self, data: Any, /) -> Tensor:
        """One step of EM on rows (n, d) or their summary, in place. Returns the total log-likelihood before it."""
        ...


@runtime_checkable
class ClosedLikelihood(Hook, Protocol):
    """A model whose marginal likelihood has a closed form."""

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (n,)."""
        ...


@runtime_checkable
class ConjugateGivenShared(Hook, Protocol):
    """A model with shared sites, conjugate given them."""

    def log_marginal_given(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x | theta) (draws, n) at values of the shared sites by name, (draws, ...) each."""
        ...


@runtime_checkable
class ClosedPredictive(Hook, Protocol):
    """A model whose predictive density under factors of conjugate families has a closed form."""

    def log_predictive(self, x: Tensor, factors: Mapping[str, Any]) -> Tensor | None:
        """The log density of new rows under the factors of q by site (n,); None without a closed form."""
        ...


class CoordinateAscent(Protocol):
    """The factors of q(Z) q(theta) of a conditionally conjugate model, and the sweeps that increase the bound."""

    def sweep(self) -> None:
        """Set every factor once to its optimum given the others."""
        ...

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows in nats, with all constants."""
        ...

    def factors(self, x: Tensor) -> Mapping[str, Any]:
        """The factor of every site by name; of local sites for the rows ``x`` (n, d)."""
        ...


@runtime_checkable
class Rotating(Hook, Protocol):
    """A coordinate ascent that can move several factors together along a symmetry of the likelihood."""

    def rotate(self) -> None:
        """Move them to the highest bound."""
        ...


@runtime_checkable
class ConditionallyConjugate(Hook, Protocol):
    """A model with priors on all parameters, in which the optimal factor of q given the others has a closed form."""

    @property
    def families(self) -> Mapping[str, str]:
        """The family of q of every site: gaussian, normal, gamma, dirichlet, wishart, coupled or categorical."""
        ...

    def coordinate_ascent(self, x: Tensor, generator: torch.Generator) -> CoordinateAscent:
        """The factors at a random start, for the rows ``x`` (n, d)."""
        ...

    def bound(self, x: Tensor, factors: Mapping[str, Any], scale: float = 1.0) -> Tensor:
        """The evidence lower bound for factors of these families; the rows' terms are multiplied by ``scale``."""
        ...


@runtime_checkable
class ClosedBound(Hook, Protocol):
    """A model with the bound for a Gaussian (or categorical) q in closed form."""

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        """The evidence lower bound of every row (n,)."""
        ...


@runtime_checkable
class ClosedConjugate(Conjugate, ClosedBound, Protocol):
    """A conjugate model with the bound in closed form."""


@runtime_checkable
class Placed(Hook, Protocol):
    """A model or guide with a random initialisation on the data, which :func:`zoo.fit` and :func:`zoo.em` call."""

    @property
    def fresh(self) -> bool:
        """Whether the parameters are still those that the constructor drew."""
        ...

    def initialize(self, x: Tensor) -> None:
        """Initialise the parameters on the rows (n, d), with the current random stream."""
        ...


@runtime_checkable
class Estimating(Hook, Protocol):
    """A model with a start that is computed from the data, where :func:`zoo.fit` is not asked for a random one."""

    def estimate(self, x: Tensor) -> None:
        """Set the parameters to a first estimate from the rows (n, d), in place, such as by their moments."""
        ...


@runtime_checkable
class Checked(Hook, Protocol):
    """A model that refuses data for which its likelihood has no maximum."""

    def check(self, x: Tensor) -> None:
        """Raise a ValueError that names the row or column and a remedy."""
        ...


@runtime_checkable
class Collapsing(Hook, Protocol):
    """A model with a floor under its variances, where a component may end that has collapsed."""

    floor: float  # as a fraction of the columns' variances; 0 for none
    met_floor: bool  # whether the last step of EM met it

    def collapse(self, x: Tensor) -> str | None:
        """What has collapsed at the current parameters, in words with its rows and columns; None if nothing has."""
        ...

    def raise_to_floor(self) -> None:
        """Raise variances below the floor to it, in place."""
        ...


@runtime_checkable
class Summarized(Hook, Protocol):
    """A conjugate model whose EM step accepts sufficient statistics in place of rows."""

    def summarize(self, x: Tensor) -> Any:
        """Sufficient statistics of the rows (n, d), for ``em_step``."""
        ...


@runtime_checkable
class Maximized(Hook, Protocol):
    """A conjugate model whose maximum-likelihood estimate has a closed form."""

    def maximize(self, moments: Any) -> Any:
        """Set the parameters to the maximum, in place, given the moments of the rows."""
        ...


@runtime_checkable
class Decoding(Hook, Protocol):
    """A model with p(x | z) as a distribution."""

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z) for factors (..., k): a distribution with event (d,)."""
        ...


@runtime_checkable
class Imputing(Hook, Protocol):
    """A model with the conditional moments of missing entries in closed form."""

    def impute(self, x: Tensor) -> Any:
        """Mean and variance of the missing entries (NaN) of rows (n, d)."""
        ...


@runtime_checkable
class Floored(Hook, Protocol):
    """A model with a lower bound on its variances."""

    floor: float

    def at_floor(self, z: Tensor) -> Tensor | None:
        """The share (...) of variances at the lower bound for factors (..., k)."""
        ...


@runtime_checkable
class Delaying(Hook, Protocol):
    """A model some of whose parameters are better trained only after the others."""

    @property
    def delays(self) -> bool:
        """Whether there are such parameters."""
        ...

    def hold(self, held: bool) -> None:
        """Hold them fixed, or release them; the density does not change."""
        ...


@runtime_checkable
class LinearGaussian(Hook, Protocol):
    """A linear-Gaussian model: x ~ N(W z + mu, diag(noise)), z ~ N(0, I)."""

    weight: Tensor  # (d, k)
    mean: Tensor  # (d,)

    @property
    def noise(self) -> Tensor:
        """The noise variance of every column (d,)."""
        ...


@runtime_checkable
class BoundedNoise(LinearGaussian, Protocol):
    """A linear-Gaussian model whose noise variances have lower bounds."""

    least: Tensor  # (d,)


@runtime_checkable
class LinearForm(Hook, Protocol):
    """A model that is linear-Gaussian for some of its options, with its parameters under other names."""

    def linear_form(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """W (d, k), mu (d,) and noise variances (d,) as of :class:`LinearGaussian`, differentiable; None otherwise."""
        ...

    def loadings(self) -> nn.Parameter | None:
        """The parameter A (d, k) of W = D A, with D a diagonal matrix; None if there is no such parameter."""
        ...


@runtime_checkable
class Mixture(Hook, Protocol):
    """A mixture model with the local site ``component``."""

    components: int


@runtime_checkable
class GaussianMixture(Mixture, Protocol):
    """A Gaussian mixture."""

    covariance: str  # one of zoo.algebra.mixture_covariances.KINDS: the form of scale
    weight: Tensor  # (k,)
    mean: Tensor  # (k, d)
    scale: Tensor  # Cholesky factors (k, d, d) or (d, d), or standard deviations (k, d), (d,), (k,) or ()


@runtime_checkable
class Quadratic(Hook, Protocol):
    """A model that declares whether log p(x, z) is quadratic in its continuous sites, for any value of the discrete."""

    @property
    def quadratic(self) -> bool:
        """Whether it is."""
        ...


# Guides.


@runtime_checkable
class HasPosterior(Hook, Protocol):
    """A guide whose q(z | x) of its single local site is available as a distribution."""

    def posterior(self, x: Tensor, index: Tensor | None = None) -> Distribution:
        """q(z | x), a distribution with batch shape (n,)."""
        ...


class LocalFamily(Protocol):
    """A family of densities in which every row of b may have a q of its own, with k coordinates.

    Attributes:
        name: in a word.
        start: the numbers of the q from which a search starts, each (b, ...); the first of them (b, k).
    """

    @property
    def name(self) -> str:
        """In a word."""
        ...

    @property
    def start(self) -> tuple[Tensor, ...]:
        """Of the search."""
        ...

    def free(self) -> list[Tensor]:
        """Coordinates of the search, zeros that require gradients; a change of 0.05 is a small step in each."""
        ...

    def moved(self, free: list[Tensor]) -> tuple[Tensor, ...]:
        """The numbers of the q at some coordinates, in the shapes of ``start``."""
        ...

    def draw(self, numbers: tuple[Tensor, ...], noise: Tensor, path: bool = False) -> tuple[Tensor, Tensor]:
        """Draws (draws, b, k) of the q with these numbers, and their log densities (draws, b).

        Args:
            numbers: of q.
            noise: standard normal numbers (draws, b, k), which a family may use.
            path: whether the score of log q may be left out of its gradient, as its expectation is 0.
        """
        ...


@runtime_checkable
class HasLocalFamily(Hook, Protocol):
    """A guide with its own :class:`LocalFamily`, for :func:`zoo.posterior.gaps`."""

    def local(self, x: Tensor) -> LocalFamily:
        """The family of q(z | x), which starts at the guide's q for the rows ``x`` (b, d)."""
        ...


@runtime_checkable
class HoldsRows(Hook, Protocol):
    """A guide with separate parameters for every row of the data that it was built for."""

    count: int


@runtime_checkable
class HoldsFactors(Hook, Protocol):
    """A guide made of exponential-family factors (:mod:`zoo.algebra.exponential_families`)."""

    def factors(self, index: Tensor | None = None) -> Mapping[str, Any]:
        """The factor of every site by name; of local sites those of the rows ``index`` (all by default)."""
        ...


@runtime_checkable
class HoldsFactor(Hook, Protocol):
    """The parameters of one factor of a guide."""

    def factor(self, index: Tensor | None = None) -> Any:
        """The factor; of the rows ``index`` where it has one member per row."""
        ...

    def place(self, factor: Any) -> None:
        """Set the parameters to those of a factor."""
        ...


@runtime_checkable
class FactorPart(HoldsFactor, Protocol):
    """The parameters of one factor of a guide that does not depend on the draws of other factors."""

    def distribution(self, index: Tensor | None = None) -> Distribution:
        """One member per batch index; those of the rows ``index`` where members are rows."""
        ...

    def natural_step(self, rate: float, rows: Tensor | None = None) -> None:
        r"""Move by ``rate`` along the natural gradient of the loss whose gradients the parameters hold.

        :math:`\eta \leftarrow \eta - \rho F^{-1} \nabla_\eta \mathrm{loss}`, with F the Fisher information. A step of
        length one on the exact bound of a conditionally conjugate model is the update of coordinate ascent. The step
        of a member that would leave the domain is halved until it does not.

        Args:
            rate: the length of the step.
            rows: the members that move, where members are rows; None for all.
        """
        ...


@runtime_checkable
class GaussianGuide(Hook, Protocol):
    """A guide that declares whether all its sites are Gaussian (in unconstrained coordinates) or categorical."""

    @property
    def gaussian(self) -> bool:
        """Whether they are."""
        ...


class Projection(Protocol):
    r"""The best q of a guide's family as a function of the model's parameters (variable projection).

    .. math:: F(\theta) = \max_{q \in Q} L(\theta, q), \qquad
              \nabla F(\theta) = \nabla_\theta L(\theta, q)|_{q = q^*(\theta)}
    """

    def bound(self) -> Tensor:
        """The bound at the best q over all rows in nats, a scalar, differentiable in the model's parameters."""
        ...

    def solve(self) -> None:
        """Set the guide's parameters to the best q for the model's current parameters, in place.

        The model's own may move along a symmetry that ``bound`` is a maximum over, which does not change it.
        """
        ...


@runtime_checkable
class Projecting(Hook, Protocol):
    """A guide whose best q given the model's parameters has a closed form for some models.

    :func:`zoo.fit` then searches the model's parameters alone. A subclass with its own ``forward`` repeats the method.
    """

    def projection(self, model: PyroCallable, x: Tensor) -> Projection | None:
        """The best q for the rows (n, d); None where it has no closed form. It does not run model or guide."""
        ...


@runtime_checkable
class TightGuide(Hook, Protocol):
    """A guide that declares whether it is the exact posterior, so that every draw gives log p(x)."""

    @property
    def tight(self) -> bool:
        """Whether it is."""
        ...


@runtime_checkable
class Smooth(Hook, Protocol):
    """A guide that declares whether its gradients are those of the loss, as a line search requires."""

    smooth: bool


@runtime_checkable
class Carrying(Hook, Protocol):
    """A distribution that wraps the transformed distribution it equals, such as that of a flow."""

    carried: Distribution


def linear_form(model: PyroCallable) -> tuple[Tensor, Tensor, Tensor] | None:
    """W (d, k), mu (d,) and the noise variances (d,) of a linear-Gaussian model; None for another model.

    It is a :class:`LinearGaussian` or :class:`LinearForm` that declares ``quadratic``.
    """
    inner = undecorated(model)
    if not declares(model, "quadratic"):
        return None
    if isinstance(inner, LinearForm):
        return inner.linear_form()
    return (inner.weight, inner.mean, inner.noise) if isinstance(inner, LinearGaussian) else None


def loadings(model: PyroCallable) -> nn.Parameter | None:
    """The parameter with the loadings of a model with a :func:`linear_form`, up to units of the columns, or None."""
    inner = undecorated(model)
    found = inner.loadings() if isinstance(inner, LinearForm) else getattr(inner, "weight", None)
    return found if isinstance(found, nn.Parameter) else None


def declares(function: PyroCallable, name: str) -> bool:
    """Whether a model or guide declares a property of its density, such as ``quadratic``, ``gaussian`` or ``tight``.

    A subclass with its own ``forward`` has another density, to which the declarations of its parent do not apply; it
    repeats those that hold.
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
