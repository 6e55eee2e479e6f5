import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import linear

from zoo.algebra import linear_gaussian, missing_linear
from zoo.algebra.missing import Imputation, Incomplete, column_moments, refuse_unobserved_columns
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.module import Module, like
from zoo.base.moments import Moments
from zoo.base.plates import rows
from zoo.distributions.diagonal import DiagonalNormal
from zoo.distributions.observed import seen


class PPCA(Module):
    r"""Probabilistic principal component analysis: linear factors under isotropic Gaussian noise.

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim N(W z_n + \mu, \sigma^2 I_D)

    At the maximum of the likelihood, W spans the space of the leading principal axes; the rotation of the factors is
    not identified. Missing entries (NaN) are assumed missing at random: every row contributes the density of its
    observed entries.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: number of factors K < D.
        noise: a fixed noise variance :math:`\sigma^2`, in squared units of the data; None learns it. At the maximum of
            the likelihood a fixed one leaves as many columns of W at 0 as there are eigenvalues of the data's
            covariance, among the K largest, that do not exceed it.

    Raises:
        ValueError: a dimension is not a whole number of at least 1, ``latent_dim >= data_dim``, or ``noise`` is not a
            positive number.

    References:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61(3); with missing entries
        Ilin and Raiko (2010), Practical Approaches to Principal Component Analysis in the Presence of Missing Values,
        JMLR 11.
    """

    missing = True  # accepts NaN, as entries missing at random
    weighted = True  # initialize, estimate and summarize accept weights of the rows
    from_moments = True  # and, like check and em_step, the moments of rows in their place
    quadratic = True  # log p(x, z) is quadratic in z: QuadratureELBO is exact

    scale: Tensor
    absent: ClassVar[Mapping[str, Any]] = {"noise": None}  # runs saved before the noise could be fixed

    def __init__(self, data_dim: int, latent_dim: int, noise: float | None = None) -> None:
        super().__init__()
        self.data_dim = check_whole(data_dim, "data_dim")
        self.latent_dim = check_whole(latent_dim, "latent_dim")
        if latent_dim >= data_dim:
            raise ValueError(
                f"latent_dim must be below data_dim={data_dim}, got {latent_dim}: with as many factors as columns, no "
                "variance is left for the noise"
            )
        self.weight = PyroParam(torch.randn(data_dim, latent_dim))  # W (d, k)
        self.mean = PyroParam(torch.zeros(data_dim))  # mu (d,)
        self.fixed = noise is not None
        if noise is None:
            self.scale = PyroParam(torch.ones(()), constraints.positive)  # sigma
            return
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be a positive variance, or None to learn it; got {noise!r}")
        self.register_buffer("scale", torch.tensor(math.sqrt(noise)))

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generates or scores rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        weight, mean, scale = self.weight, self.mean, self.scale
        prior = dist.Normal(mean.new_zeros(self.latent_dim), 1.0).to_event(1)
        with rows(x, index, size):
            z = pyro.sample("z", prior)  # (..., n, k)
            noise = DiagonalNormal(linear(z, weight, mean), scale)
            return pyro.sample("x", seen(noise, x), obs=x)  # (..., n, d)

    @property
    def noise(self) -> Tensor:
        """The noise variance of every column (d,)."""
        return self.scale.square().expand(self.data_dim)

    def posterior(self, x: Tensor) -> Distribution:
        r""":math:`N(M^{-1} W^T (x - \mu), \sigma^2 M^{-1})` with :math:`M = W^T W + \sigma^2 I`.

        Batch (n,), event (k,).
        """
        return linear_gaussian.posterior(like(x, self), self.weight, self.mean, self.noise)

    def log_marginal(self, x: Tensor) -> Tensor:
        r""":math:`\log N(x \mid \mu, W W^T + \sigma^2 I)`, one per row (n,)."""
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
            ValueError: all rows are equal, so that the likelihood is unbounded (unless the noise is fixed), or a column
                has fewer than two observed values.
        """
        self.check(x)
        moments = linear_gaussian.summarize(x, weights)
        if isinstance(moments, Moments):
            variance, mean = moments.covariance.diagonal(), moments.mean
        else:
            assert isinstance(x, Tensor)
            variance, mean = column_moments(x, weights)
        if not self.fixed and variance.sum() <= 1e-20 * mean.square().sum():
            raise ValueError("all rows of x are equal: the likelihood of PPCA is unbounded")
        return moments

    @torch.no_grad()
    def em_step(self, x: Tensor | Moments | Incomplete) -> Tensor:
        """One step of EM, in place; returns the total log-likelihood of the parameters before the step."""
        data = x if isinstance(x, Moments | Incomplete) else self.summarize(x)
        if isinstance(data, Incomplete):
            found = missing_linear.em_update(data, self.weight, self.mean, self.noise)
            before, self.weight, self.mean, residual, count = found
            self._learn(residual.sum() / count.sum())
            return before
        moments = data.to(self.weight)
        before = linear_gaussian.log_likelihood(moments, self.weight, self.mean, self.noise)
        weight, residual = linear_gaussian.em_update(moments, self.weight, self.noise)
        self.weight, self.mean = weight, moments.mean
        self._learn(residual.mean())
        return before

    @torch.no_grad()
    def maximize(self, moments: Moments) -> None:
        r"""Maximises the likelihood of complete rows in closed form, given their moments.

        :math:`\sigma^2`, unless it is fixed, is the mean of the D - K smallest eigenvalues of the covariance
        (Tipping and Bishop 1999).
        """
        moments = moments.to(self.weight)
        self._learn(linear_gaussian.remainder(moments, self.latent_dim))
        self.weight, self.mean = linear_gaussian.best_weight(moments, self.noise, self.latent_dim), moments.mean

    def _learn(self, noise: Tensor) -> None:
        """Sets the noise variance, unless it is fixed."""
        if not self.fixed:
            self.scale = noise.sqrt()

    def check(self, x: Tensor | Moments) -> None:
        """Refuses data under which the likelihood has no maximum.

        Raises:
            ValueError: a column has fewer than two observed values (the message names it), or, where the noise is
                learned, the rows are all equal or span no more dimensions than there are factors.
        """
        if not isinstance(x, Moments):
            refuse_unobserved_columns(x, "PPCA")
        if not self.fixed:
            linear_gaussian.refuse_low_rank(x, self.latent_dim)

    @torch.no_grad()
    def estimate(self, x: Tensor | Moments, weights: Tensor | None = None) -> None:
        """Sets the parameters to the maximum of the likelihood of complete rows ``x`` (n, d), by their eigenvectors.

        Missing entries count as their column's mean, which is a start for EM or SVI and not the maximum.
        """
        self.maximize(linear_gaussian.filled_moments(x.to(self.mean), weights))

    @torch.no_grad()
    def initialize(self, x: Tensor | Moments, weights: Tensor | None = None) -> None:
        """Draws a random start on the scale of the data ``x`` (n, d), with torch's global generator."""
        weight, mean, variance = linear_gaussian.cloud(x.to(self.mean), self.latent_dim, weights)
        self.weight, self.mean = weight, mean
        self._learn(variance.mean())
