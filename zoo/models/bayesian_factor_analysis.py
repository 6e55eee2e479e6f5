from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from zoo.algebra.exponential_families import GaussianFactor
from zoo.algebra.linear_gaussian import refuse_constant_columns
from zoo.base.checks import check_whole
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.observed import seen
from zoo.models.linear_ascent import LinearAscent, Rows, best_row_factor, linear_bound, linear_factors
from zoo.models.linear_priors import (
    LinearPriors,
    check_gamma,
    check_rows_of,
    linear_families,
    linear_log_marginal_given,
    linear_mean,
    place_mean,
)


class BayesianFactorAnalysis(Module):
    r"""Factor analysis with priors on everything: relevances of the factors, a noise precision for every column.

    .. math:: \alpha_k \sim \mathrm{Gamma}(a_\alpha, b_\alpha), \quad \tau_d \sim \mathrm{Gamma}(a_\tau, b_\tau), \quad
              w_d \sim N(0, \mathrm{diag}(\alpha)^{-1}), \quad \mu_d \sim N(m_d, v_d)

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim N(W z_n + \mu, \mathrm{diag}(\tau)^{-1})

    There are no parameters: every quantity is a latent site. A factor that the data do not need has a large relevance
    :math:`\alpha_k` (automatic relevance determination), and its loadings vanish.

    The prior of the mean is placed on the data (:meth:`initialize`): the column's mean, with 100 times the column's
    variance; before that it is N(0, 100). The Gamma priors are broad in the data's own units.

    The bound has several maxima, at some of which a factor that the data need is switched off. Training from one start
    may end at any of them, and :func:`zoo.diagnose` judges the one that was reached; take several starts
    (``zoo.cavi(..., restarts=)``, :func:`zoo.best_of`) and compare their bounds.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: the most factors K that can be used.
        relevance: shape and rate of the prior on the relevances.
        precision: shape and rate of the prior on the noise precisions.
        mean: whether the model has a mean; without one the columns should be centred.

    Raises:
        ValueError: a dimension is no whole number of at least 1, or a hyperparameter is not positive.

    References:
        Ghahramani and Beal (2000), Variational inference for Bayesian mixtures of factor analysers, NIPS; Beal (2003),
        Variational algorithms for approximate Bayesian inference, ch. 4; Luttinen and Ilin (2010), Transformations in
        variational Bayesian factor analysis to speed up learning, Neurocomputing 73.
    """

    location: Tensor
    spread: Tensor

    missing = True  # NaN is an entry missing at random
    weighted = True  # initialize, coordinate_ascent and bound accept weights of the rows

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        *,
        relevance: Sequence[float] = (1e-3, 1e-3),
        precision: Sequence[float] = (1e-3, 1e-3),
        mean: bool = True,
    ) -> None:
        super().__init__()
        self.data_dim = check_whole(data_dim, "data_dim")
        self.latent_dim = check_whole(latent_dim, "latent_dim")
        self.relevance = check_gamma(relevance, "relevance")
        self.precision = check_gamma(precision, "precision")
        self.centred = not mean
        self.register_buffer("location", torch.zeros(data_dim))  # of the prior of mu (d,)
        self.register_buffer("spread", torch.full((data_dim,), 100.0))  # its variance (d,)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generate or score rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        one = self.location.new_ones(())
        gamma = dist.Gamma(self.relevance[0] * one, self.relevance[1] * one)
        relevance = pyro.sample("relevance", gamma.expand([self.latent_dim]).to_event(1))  # (k,)
        gamma = dist.Gamma(self.precision[0] * one, self.precision[1] * one)
        precision = pyro.sample("precision", gamma.expand([self.data_dim]).to_event(1))  # (d,)
        deviation = relevance.rsqrt().unsqueeze(-2).expand(*relevance.shape[:-1], self.data_dim, self.latent_dim)
        weight = pyro.sample("weight", dist.Normal(0.0 * one, deviation).to_event(2))  # (d, k)
        mean = self.location * 0.0
        if not self.centred:
            mean = pyro.sample("mean", dist.Normal(self.location, self.spread.sqrt()).to_event(1))  # (d,)
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.location.new_zeros(self.latent_dim), 1.0).to_event(1))  # (..., n, k)
            noise = dist.Normal(linear_mean(z, weight, mean), precision.rsqrt()).to_event(1)
            return pyro.sample("x", seen(noise, x), obs=x)  # (..., n, d)

    def check(self, x: Tensor) -> None:
        """Refuse data that the model cannot explain.

        Raises:
            ValueError: a column with fewer than two observed values or with one value alone, or at least as many
                factors as rows.
        """
        check_rows_of(x, self.latent_dim, "BayesianFactorAnalysis")
        refuse_constant_columns(
            x,
            "BayesianFactorAnalysis",
            "the precision of their noise would be that of its prior alone. Leave them out, or take BayesianPCA, whose "
            "columns share one precision",
        )

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Place the prior of the mean on the columns of ``x`` (n, d)."""
        self.location, self.spread = place_mean(like(x, self), weights)

    @property
    def families(self) -> dict[str, str]:
        """The family of q of every site."""
        return linear_families(mean=not self.centred)

    def _priors(self) -> LinearPriors:
        mean = None if self.centred else (self.location.double(), 1 / self.spread.double())
        return LinearPriors(self.relevance, self.precision, mean, columns=True)

    def coordinate_ascent(self, x: Tensor, generator: torch.Generator, weights: Tensor | None = None) -> LinearAscent:
        """The factors of q, at a random start, and their sweeps: what :func:`zoo.cavi` takes."""
        return LinearAscent(like(x, self), self.latent_dim, self._priors(), generator, weights)

    def bound(self, x: Tensor, factors: Mapping[str, Any], scale: float = 1.0, weights: Tensor | None = None) -> Tensor:
        """The evidence lower bound of factors by site; the rows' terms count ``scale`` times."""
        return linear_bound(Rows.of(x, weights), linear_factors(factors), self._priors(), scale)

    def row_factor(self, x: Tensor, factors: Mapping[str, Any]) -> GaussianFactor:
        """q(z) of rows (n, d), new ones as well, at its optimum given the factors of the shared sites."""
        return best_row_factor(x, linear_factors(factors))

    def log_marginal_given(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x | theta) of every row (draws, n); see :func:`zoo.models.linear_priors.linear_log_marginal_given`."""
        return linear_log_marginal_given(like(x, self), values)
