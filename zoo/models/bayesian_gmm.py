import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.exponential_families import CategoricalFactor
from zoo.algebra.linear_gaussian import refuse_constant_columns
from zoo.algebra.missing import column_moments, refuse_unobserved_columns
from zoo.algebra.mixture_covariances import MCLUST
from zoo.algebra.parameter_draws import mixture_log_marginal
from zoo.algebra.wishart import Wishart
from zoo.base.checks import check_whole
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.observed import seen
from zoo.models.mixture_ascent import MixtureAscent, mixture_bound
from zoo.models.mixture_factors import Covariance, MixturePriors, mixture_factors
from zoo.models.mixture_predictive import broken, log_predictive
from zoo.models.mixture_rows import mixture_rows
from zoo.models.mixture_starts import Start, filled, hard_responsibilities

Proportions = Literal["dirichlet", "sticks"]
Means = Literal["independent", "coupled"]
Values = float | Sequence[float] | Sequence[Sequence[float]]


class BayesianGMM(Module):
    r"""Gaussian mixture with priors on everything; components that the data do not need empty.

    .. math:: \pi \sim \mathrm{Dir}(a, \dots, a), \quad \Lambda_j \sim \mathrm{Wishart}(\nu, V), \quad
              \mu_j \sim N(m, S) \text{ or } N(m, (\beta \Lambda_j)^{-1})

    .. math:: c_n \sim \mathrm{Cat}(\pi), \quad x_n \mid c_n = j \sim N(\mu_j, \Lambda_j^{-1})

    There are no parameters: every quantity is a latent site. With ``proportions="sticks"`` the proportions are broken
    from a stick, :math:`v_j \sim \mathrm{Beta}(1, a)`, :math:`\pi_j = v_j \prod_{i < j} (1 - v_i)`, truncated at K: a
    Dirichlet process in the limit. ``"diag"`` and ``"spherical"`` precisions have Gamma(nu / 2, v / 2) priors, and
    ``"tied"`` ones are one matrix for all components.

    Hyperparameters that are not given are placed on the data (:meth:`initialize`): m on the column means, S on ten
    times the columns' variances, and V such that E[Lambda]^-1 holds the columns' variances. nu is the number of
    columns (1 for Gamma priors), and :math:`\beta` = 0.1.

    The bound has several maxima, with other components in use. Training from one start may end at any of them, and
    :func:`zoo.diagnose` judges the one that was reached; take several starts (``zoo.cavi(..., restarts=)``,
    :func:`zoo.best_of`) and compare their bounds.

    Missing entries (NaN) are missing at random. In coordinate ascent they are left out where columns are independent
    ("diag" or "spherical", with independent means). Elsewhere they are latent with a factor :math:`q(x_m \mid c)` of
    their own, and the bound of :func:`zoo.cavi` is one on :math:`\log p(x_o)` that this factor loosens:

    .. math:: E_q[\log p(x_o, x_m, c, \theta) - \log q(x_m \mid c) - \log q(c) - \log q(\theta)].

    :func:`zoo.evaluate` integrates them out given the parameters, as ``forward`` does, so that its bound is a little
    higher.

    Args:
        data_dim: number of columns D of the data.
        components: the most components K that can be used.
        covariance: ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``; or by mclust's names VVV, EEE, VVI, VII.
        concentration: a, of the prior on the proportions; small values let superfluous components empty.
        proportions: ``"dirichlet"`` or ``"sticks"``.
        means: ``"independent"`` of the precisions, or ``"coupled"`` to them (normal-Wishart).
        strength: beta of coupled means.
        df: degrees of freedom nu; None takes D, or 1 for diagonal and spherical precisions.
        location: m, one number or one per column; None places it on the data.
        spread: variances of independent means, the diagonal of S, one number or one per column; None places them.
        inverse_scale: V^-1 as one number (times the identity), a number per column (its diagonal) or a matrix; v of
            diagonal precisions, one number or one per column; v of spherical ones, one number. None places it.
        start: where coordinate ascent starts: every row in the component of the nearest of K rows that are far from
            each other (``"k-means++"``), of K rows at random (``"random"``), or of the means of k-means (``"kmeans"``).

    Raises:
        ValueError: a dimension is no whole number of at least 1, an option is none of those above, or a hyperparameter
            is not in its range.

    References:
        Attias (2000), A variational Bayesian framework for graphical models, NIPS; Bishop (2006), Pattern Recognition
        and Machine Learning, 10.2; Blei and Jordan (2006), Variational inference for Dirichlet process mixtures,
        Bayesian Analysis 1.
    """

    location: Tensor
    spread: Tensor
    inverse_scale: Tensor

    missing = True  # NaN is an entry missing at random
    weighted = True  # initialize, coordinate_ascent and bound accept weights of the rows

    def __init__(
        self,
        data_dim: int,
        components: int,
        covariance: Covariance | str = "full",
        *,
        concentration: float = 1.0,
        proportions: Proportions = "dirichlet",
        means: Means = "independent",
        strength: float = 0.1,
        df: float | None = None,
        location: float | Sequence[float] | None = None,
        spread: float | Sequence[float] | None = None,
        inverse_scale: Values | None = None,
        start: Start = "k-means++",
    ) -> None:
        super().__init__()
        self.data_dim = d = check_whole(data_dim, "data_dim")
        self.components = check_whole(components, "components")
        kind: Any = MCLUST.get(covariance, covariance)
        known = (
            ("covariance", kind, Covariance),
            ("proportions", proportions, Proportions),
            ("means", means, Means),
            ("start", start, Start),
        )
        for name, value, options in known:
            if value not in get_args(options):
                raise ValueError(f"{name} must be one of {', '.join(get_args(options))}; got {value!r}")
        for name, number in (("concentration", concentration), ("strength", strength)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive, got {number!r}: an improper prior has no evidence")
        if spread is not None and means == "coupled":
            raise ValueError("spread is that of independent means: give strength for coupled ones")
        self.matrix = kind in ("full", "tied")
        least = d - 1 if self.matrix else 0
        self.df = float(df if df is not None else d if self.matrix else 1)
        if not least < self.df < math.inf:
            raise ValueError(f"df must be above {least}, got {df!r}: the prior of the precisions is improper there")
        self.covariance, self.proportions, self.means, self.start = kind, proportions, means, start
        self.concentration, self.strength = float(concentration), float(strength)
        given = {"location": location, "spread": spread, "inverse_scale": inverse_scale}
        self.given = tuple(name for name, value in given.items() if value is not None)
        self.register_buffer("location", _columns(location, "location", d, 0.0, positive=False))  # m (d,)
        self.register_buffer("spread", _columns(spread, "spread", d, 10.0))  # variances of S (d,)
        if self.matrix:
            scale = _matrix(inverse_scale, d, self.df)  # V^-1 (d, d)
        else:
            scale = _columns(inverse_scale, "inverse_scale", d if kind == "diag" else 1, self.df)  # v (d,), (1,)
        self.register_buffer("inverse_scale", scale)
        listed = {name: torch.as_tensor(value).tolist() for name, value in given.items() if value is not None}
        self.__dict__["_resolved"] = listed  # of any sequence: JSON-able settings

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generate or score rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        proportions = self._proportions()  # (k,)
        precision = self._precision()  # matrices (k, d, d) or (d, d); columns (k, d)
        mean = self._mean(precision)  # (k, d)
        with rows(x, index, size):
            logits = proportions.log()
            component = pyro.sample("component", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            own = precision if self.covariance == "tied" else _chosen(precision, component, 2 if self.matrix else 1)
            density = self._density(_chosen(mean, component, 1), own)
            return pyro.sample("x", seen(density, x), obs=x)  # (..., n, d)

    def _proportions(self) -> Tensor:
        one, k = self.location.new_ones(()), self.components
        if self.proportions == "dirichlet":
            return pyro.sample("proportions", dist.Dirichlet(self.concentration * one.expand(k)))
        beta = dist.Dirichlet(torch.stack([one, self.concentration * one]).expand(k - 1, 2)).to_event(1)
        sticks = pyro.sample("sticks", beta)  # v and 1 - v (k - 1, 2)
        return broken(sticks)

    def _precision(self) -> Tensor:
        k = self.components
        if self.matrix:
            wishart = Wishart(self.location.new_tensor(self.df), precision_matrix=self.inverse_scale)
            prior = wishart if self.covariance == "tied" else wishart.expand([k]).to_event(1)
            return pyro.sample("precision", prior)
        width = len(self.inverse_scale)
        gamma = dist.Gamma(self.location.new_tensor(self.df / 2), self.inverse_scale / 2)
        return pyro.sample("precision", gamma.expand([k, width]).to_event(2))

    def _mean(self, precision: Tensor) -> Tensor:
        k, d = self.components, self.data_dim
        if self.means == "independent":
            prior = dist.Normal(self.location, self.spread.sqrt()).expand([k, d]).to_event(2)
        elif self.matrix:
            matrices = (
                precision.unsqueeze(-3).expand(*precision.shape[:-2], k, d, d)
                if self.covariance == "tied"
                else precision
            )
            prior = dist.MultivariateNormal(self.location, precision_matrix=self.strength * matrices).to_event(1)
        else:
            prior = dist.Normal(self.location, (self.strength * precision).rsqrt().expand(*precision.shape[:-1], d))
            prior = prior.to_event(2)
        return pyro.sample("mean", prior)

    def _density(self, mean: Tensor, precision: Tensor) -> dist.TorchDistribution:
        if self.matrix:
            return dist.MultivariateNormal(mean, precision_matrix=precision)
        return dist.Normal(mean, precision.rsqrt()).to_event(1)

    def check(self, x: Tensor) -> None:
        """Refuse data that the model cannot explain.

        Raises:
            ValueError: a column with fewer than two observed values or, unless precisions are spherical, with one value
                alone; or at least as many components as rows.
        """
        refuse_unobserved_columns(x, "BayesianGMM")
        if self.covariance != "spherical":
            refuse_constant_columns(
                x,
                "BayesianGMM",
                "their precision would be that of its prior alone. Leave them out, or take covariance='spherical'",
            )
        if self.components >= len(x):
            raise ValueError(f"components={self.components} must be below the {len(x)} rows of x: take fewer")

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Place the priors on the columns of ``x`` (n, d), but for hyperparameters that were given."""
        variance, mean = column_moments(like(x, self), weights)
        variance = torch.where(variance > 0, variance, torch.ones_like(variance)).to(self.spread)
        if "location" not in self.given:
            self.location = mean.to(self.location)
        if "spread" not in self.given:
            self.spread = 10.0 * variance
        if "inverse_scale" not in self.given:
            scale = torch.diag(variance) if self.matrix else variance if self.covariance == "diag" else variance.mean()
            self.inverse_scale = (self.df * scale).reshape(self.inverse_scale.shape)

    @property
    def families(self) -> dict[str, str]:
        """The family of q of every site."""
        proportions = "sticks" if self.proportions == "sticks" else "proportions"
        return {
            proportions: "dirichlet",
            "precision": "wishart" if self.matrix else "gamma",
            "mean": "gaussian" if self.means == "independent" else "coupled",
            "component": "categorical",
        }

    def _priors(self) -> MixturePriors:
        spread = torch.diag(self.spread.double()) if self.means == "independent" else None
        sticks, location = self.proportions == "sticks", self.location.double()
        inverse = self.inverse_scale.double()
        return MixturePriors(
            self.concentration, sticks, location, self.strength, spread, self.df, inverse, self.covariance
        )

    def coordinate_ascent(self, x: Tensor, generator: torch.Generator, weights: Tensor | None = None) -> MixtureAscent:
        """The factors of q, started as ``start`` says, and their sweeps: what :func:`zoo.cavi` takes."""
        x = like(x, self).double()
        whole = filled(x, column_moments(x, weights)[1])
        share = hard_responsibilities(whole, self.components, self.start, generator, weights)
        return MixtureAscent(x, share, self._priors(), weights)

    def bound(self, x: Tensor, factors: Mapping[str, Any], scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
        """The evidence lower bound of factors by site; the rows' terms count ``scale`` times."""
        q = mixture_factors(factors)
        return mixture_bound(x.double(), factors["component"], q, self._priors(), scale, weights)

    def log_marginal_given(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\log p(x_n \mid \theta)`, the components summed out, (draws, n).

        Args:
            x: rows (n, d).
            values: draws of ``proportions`` (draws, k) (or ``sticks``), ``mean`` (draws, k, d) and ``precision``, by
                site.
        """
        mean, precision = values["mean"], values["precision"]
        proportions = broken(values["sticks"]) if "sticks" in values else values["proportions"]
        if self.covariance == "tied":
            precision = precision.unsqueeze(1).expand(*mean.shape, -1)
        elif not self.matrix:
            precision = precision.expand_as(mean)
        return mixture_log_marginal(like(x, self).to(mean), proportions.log(), mean, precision)

    def row_factor(self, x: Tensor, factors: Mapping[str, Any]) -> CategoricalFactor:
        """q(component) of rows (n, d), new ones as well, at its optimum given the factors of the shared sites."""
        q = mixture_factors(factors)
        return CategoricalFactor(mixture_rows(x.double(), self._priors()).logs(q, self._priors()).log_softmax(-1))

    def log_predictive(self, x: Tensor, factors: Mapping[str, Any]) -> Tensor | None:
        """log p(x | data) under q, a mixture of Student's t, (n,); None for independent means, where none is closed.

        Args:
            x: rows (n, d).
            factors: of q by site.
        """
        if self.means == "independent":
            return None
        return log_predictive(like(x, self).double(), factors)


def _chosen(values: Tensor, component: Tensor, event: int) -> Tensor:
    """The value of every row's component (..., n, *event) of shared draws (..., 1, k, *event)."""
    if values.ndim == 1 + event:
        return values[component]
    shared = values.squeeze(-2 - event)  # (..., k, *event)
    index = component.reshape(*component.shape, *(1,) * event).expand(*component.shape, *shared.shape[-event:])
    return shared.expand(*component.shape[:-1], *shared.shape[-1 - event :]).gather(-1 - event, index)


def _columns(value: Values | None, name: str, width: int, default: float, *, positive: bool = True) -> Tensor:
    """A hyperparameter as one number per column (width,).

    Raises:
        ValueError: another shape, or a number that is not finite (or not positive).
    """
    found = torch.as_tensor(default if value is None else value, dtype=torch.get_default_dtype())
    if found.shape not in ((), (width,)):
        raise ValueError(f"{name} must be one number or {width}, one per column; got shape {tuple(found.shape)}")
    if not found.isfinite().all() or (positive and not (found > 0).all()):
        raise ValueError(f"{name} must be finite{' and positive' * positive}, got {value!r}")
    return found.expand(width).clone()


def _matrix(value: Values | None, width: int, default: float) -> Tensor:
    """The inverse scale of a Wishart prior (width, width), from one number, one per column, or a matrix.

    Raises:
        ValueError: another shape, or a matrix that is not symmetric and positive definite.
    """
    found = torch.as_tensor(default if value is None else value, dtype=torch.get_default_dtype())
    if found.ndim < 2:
        return torch.diag(_columns(value, "inverse_scale", width, default))
    definite = found.shape == (width, width) and bool((found == found.mT).all())
    if not definite or torch.linalg.cholesky_ex(found)[1] > 0:
        raise ValueError(
            f"inverse_scale must be one number, one per column, or a symmetric positive definite matrix "
            f"({width}, {width}); got shape {tuple(found.shape)}"
        )
    return found.clone()
