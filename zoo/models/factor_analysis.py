import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import linear

from zoo.algebra import linear_gaussian, missing_linear
from zoo.algebra.missing import Imputation, Incomplete, refuse_unobserved_columns
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.module import Module, like
from zoo.base.moments import Moments
from zoo.base.plates import rows
from zoo.distributions.diagonal import DiagonalNormal
from zoo.distributions.observed import seen


class FactorAnalysis(Module):
    r"""Linear factors under Gaussian noise with a separate variance for every column.

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim N(W z_n + \mu, \Psi), \quad \Psi = \mathrm{diag}(\psi)

    The noise variance (uniqueness) of column j is :math:`\psi_j = \epsilon\, v_j + \sigma_j^2`, with :math:`v_j` its
    variance in the data that the model was initialised on (:meth:`initialize`; 0 before). The floor stops Heywood
    cases, columns that the factors explain entirely, from converging slowly to :math:`\psi_j = 0`. Missing entries
    (NaN) are assumed missing at random: every row contributes the density of its observed entries.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: number of factors K.
        floor: the smallest uniqueness :math:`\epsilon`, as a fraction of the column's variance (R's factanal: 0.005).

    Raises:
        ValueError: a dimension is not a whole number of at least 1, or ``floor`` is not in [0, 1).

    References:
        Rubin and Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47(1); Zhao, Yu and Jiang (2008),
        ML estimation for factor analysis: EM or non-EM?, Statistics and Computing 18.
    """

    least: Tensor

    missing = True  # accepts NaN, as entries missing at random
    weighted = True  # initialize, estimate and summarize accept weights of the rows
    from_moments = True  # and, like check and em_step, the moments of rows in their place
    quadratic = True  # log p(x, z) is quadratic in z: QuadratureELBO is exact

    def __init__(self, data_dim: int, latent_dim: int, floor: float = 0.005) -> None:
        super().__init__()
        self.data_dim = check_whole(data_dim, "data_dim")
        self.latent_dim = check_whole(latent_dim, "latent_dim")
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be a fraction of the variance in [0, 1), got {floor!r}")
        self.floor = float(floor)
        self.weight = PyroParam(torch.randn(data_dim, latent_dim))  # W (d, k)
        self.mean = PyroParam(torch.zeros(data_dim))  # mu (d,)
        self.scale = PyroParam(torch.ones(data_dim), constraints.positive)  # sigma (d,)
        self.register_buffer("least", torch.zeros(data_dim))  # the floor in squared units of the columns (d,)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generates or scores rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        weight, mean, noise = self.weight, self.mean, self.noise
        prior = dist.Normal(mean.new_zeros(self.latent_dim), 1.0).to_event(1)
        with rows(x, index, size):
            z = pyro.sample("z", prior)  # (..., n, k)
            density = DiagonalNormal(linear(z, weight, mean), noise.sqrt())
            return pyro.sample("x", seen(density, x), obs=x)  # (..., n, d)

    @property
    def noise(self) -> Tensor:
        """The noise variance of every column (d,)."""
        return self.least + self.scale.square()

    def posterior(self, x: Tensor) -> Distribution:
        r""":math:`N(P^{-1} W^T \Psi^{-1} (x - \mu), P^{-1})` with :math:`P = I + W^T \Psi^{-1} W`.

        Batch (n,), event (k,).
        """
        return linear_gaussian.posterior(like(x, self), self.weight, self.mean, self.noise)

    def log_marginal(self, x: Tensor) -> Tensor:
        r""":math:`\log N(x \mid \mu, W W^T + \Psi)`, one per row (n,)."""
        return linear_gaussian.log_marginal(like(x, self), self.weight, self.mean, self.noise)

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        """The evidence lower bound of a Gaussian q(z) with batch (n,), event (k,), in closed form: (n,)."""
        return linear_gaussian.elbo(like(x, self), q, self.weight, self.mean, self.noise)

    @torch.no_grad()
    def impute(self, x: ArrayLike) -> Imputation:
        r"""Conditional mean :math:`E[x_m \mid x_o]` and variance of the missing entries (NaN) of rows (n, d)."""
        found = linear_gaussian.impute(check_rows(x, self), self.weight, self.mean, self.noise)
        return found.named(x)

    def summarize(self, x: Tensor | Moments, weights: Tensor | None = None) -> Moments | Incomplete:
        """The input of :meth:`em_step` for rows (n, d): their sufficient statistics, if no entry is missing.

        Weights (n,), positive, say how often every row counts.

        Raises:
            ValueError: a column is constant, so that the likelihood is unbounded, or has fewer than two observed
            values.
        """
        self.check(x)
        return linear_gaussian.summarize(x, weights)

    @torch.no_grad()
    def em_step(self, x: Tensor | Moments | Incomplete) -> Tensor:
        """One step of EM, in place; returns the total log-likelihood of the parameters before the step.

        On complete rows this is a step of ECME (Liu and Rubin 1994, Biometrika 81): the loadings are first set to their
        optimum for the current noise variances. The cost of that does not depend on the number of rows, and it saves
        hundreds of steps.
        """
        data = x if isinstance(x, Moments | Incomplete) else self.summarize(x)
        if isinstance(data, Incomplete):
            found = missing_linear.em_update(data, self.weight, self.mean, self.noise)
            before, weight, mean, residual, count = found
            residual = residual / count
        else:
            moments = data.to(self.weight)
            mean = moments.mean
            before = linear_gaussian.log_likelihood(moments, self.weight, self.mean, self.noise)
            weight = linear_gaussian.best_weight(moments, self.noise, self.latent_dim)
            weight, residual = linear_gaussian.em_update(moments, weight, self.noise)
        above = torch.maximum(residual - self.least, 1e-12 * residual)  # the constrained maximum
        self.weight, self.mean, self.scale = weight, mean, above.sqrt()
        return before

    @torch.no_grad()
    def maximize(self, moments: Moments) -> None:
        """Maximises the likelihood of complete rows, from the current noise variances, by L-BFGS-B on their moments.

        It takes tens of steps where EM takes thousands: see :func:`zoo.algebra.linear_gaussian.best_noise`.

        Raises:
            FloatingPointError: the search ended without a maximum; the parameters are unchanged.
        """
        moments = moments.to(self.weight)
        noise = linear_gaussian.best_noise(moments, self.noise, self.least, self.latent_dim).to(self.weight)
        self.weight, self.mean = linear_gaussian.best_weight(moments, noise, self.latent_dim), moments.mean
        self.scale = torch.maximum(noise - self.least, 1e-12 * noise).sqrt()  # not 0, whose logarithm is infinite

    def check(self, x: Tensor | Moments) -> None:
        """Refuses data under which the likelihood has no maximum.

        Raises:
            ValueError: columns are constant, or one has fewer than two observed values; the message names them.
        """
        if not isinstance(x, Moments):
            refuse_unobserved_columns(x, "factor analysis")
        linear_gaussian.refuse_constant_columns(x, "factor analysis")

    @torch.no_grad()
    def estimate(self, x: Tensor | Moments, weights: Tensor | None = None) -> None:
        r"""Sets the parameters to an estimate from the moments of the rows ``x`` (n, d), by eigenvectors.

        The uniquenesses are :math:`\psi_j = (1 - K / 2D) / (S^{-1})_{jj}` (Joereskog 1963; R's factanal starts there),
        the loadings the best for them. Missing entries count as their column's mean.
        """
        moments = linear_gaussian.filled_moments(x.to(self.mean), weights)
        noise = linear_gaussian.uniqueness(moments, self.latent_dim)
        self.least.copy_(self.floor * moments.covariance.diagonal())
        above = torch.maximum(noise - self.least, 1e-3 * moments.covariance.diagonal())
        self.weight = linear_gaussian.best_weight(moments, self.least + above, self.latent_dim).to(self.weight)
        self.mean, self.scale = moments.mean.to(self.mean), above.sqrt().to(self.scale)

    @torch.no_grad()
    def initialize(self, x: Tensor | Moments, weights: Tensor | None = None) -> None:
        """Draws a random start on the scale of the data ``x`` (n, d), with torch's global generator."""
        weight, mean, variance = linear_gaussian.cloud(x.to(self.mean), self.latent_dim, weights)
        self.least.copy_(self.floor * 2 * variance)
        self.weight, self.mean, self.scale = (
            weight,
            mean,
            (variance - self.least).clamp_min(1e-3 * variance).sqrt(),
        )
