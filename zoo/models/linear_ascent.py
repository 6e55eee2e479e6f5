r"""Coordinate ascent for linear-Gaussian models with priors on everything: shared by Bayesian PCA and factor analysis.

.. math:: x_{nd} \sim N(w_d \cdot z_n + \mu_d, \tau_d^{-1}), \quad z_n \sim N(0, I_K), \quad
          w_d \sim N(0, \mathrm{diag}(\alpha)^{-1}), \quad \mu_d \sim N(m_0, \beta^{-1})

with Gamma priors on :math:`\alpha_k` and :math:`\tau_d`, and
:math:`q = q(Z)\, q(W)\, q(\mu)\, q(\alpha)\, q(\tau)`, the first two with a full covariance per row. The updates are
those of Bishop (1999), Variational principal components, with a mean and a precision per column (Beal 2003, ch. 4).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zoo.algebra.exponential_families import LOG_TWO_PI, Factor, GammaFactor, GaussianFactor
from zoo.models.linear_priors import LinearPriors


@dataclass(frozen=True, eq=False)
class Rows:
    """The data in the form that the sweeps use, in float64.

    Attributes:
        filled: rows (n, d), 0 where missing.
        observed: 1 where an entry is there (n, d); None where none is missing.
        count: observed entries of every column (d,).
        mean: their mean (d,).
        scatter: sum of (x - mean)(x - mean)' (d, d), where nothing is missing.
        n: the number of rows.
        weights: how often every row counts in ``count``, ``mean``, ``scatter`` and ``n``, (n, 1); None for once.
    """

    filled: Tensor
    observed: Tensor | None
    count: Tensor
    mean: Tensor
    scatter: Tensor | None
    n: float
    weights: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None = None) -> "Rows":
        """The rows ``x`` (n, d), NaN where missing, with weights (n,)."""
        x = x.double()
        missing = x.isnan()
        n: float = len(x)
        if weights is not None:
            weights, n = weights.to(x).unsqueeze(1), float(weights.sum())
        if not missing.any():
            mean = _heavy(x, weights).sum(0) / n
            centred = x - mean
            return cls(x, None, mean.new_full(mean.shape, n), mean, _heavy(centred, weights).mT @ centred, n, weights)
        observed = (~missing).double()
        filled = x.nan_to_num(0.0)
        count = _heavy(observed, weights).sum(0)
        return cls(filled, observed, count, _heavy(filled, weights).sum(0) / count, None, n, weights)

    def heavy(self, values: Tensor) -> Tensor:
        """Values of the rows (n, p) times their weights."""
        return _heavy(values, self.weights)


def _heavy(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else values * weights


@dataclass(frozen=True, eq=False)
class Inner:
    """The expectations under q(Z) that the other factors need, summed over the rows.

    Attributes:
        first: sum of E[z] over the rows that observe a column (d, k).
        second: sum of E[z z'] over the rows that observe a column: (d, k, k), or (k, k) where nothing is missing.
        cross: sum of (x - E[mu]) E[z]' over the observed entries (d, k).
        whole: sum of E[z z'] over all rows (k, k).
        entropy: of q(Z).
    """

    first: Tensor
    second: Tensor
    cross: Tensor
    whole: Tensor
    entropy: Tensor


@dataclass(frozen=True, eq=False)
class LinearFactors:
    """The factors of q.

    Attributes:
        z: q(Z), of every row, or as a map from the rows.
        weight: q(W), one Gaussian (k,) for every column.
        mean: q(mu), one Gaussian (1,) for every column; None for a model without mean.
        relevance: q(alpha) (k,).
        precision: q(tau) (d,), or (1,) for one of all columns.
    """

    z: "GaussianFactor | LinearMap"
    weight: GaussianFactor
    mean: GaussianFactor | None
    relevance: GammaFactor
    precision: GammaFactor

    @property
    def tau(self) -> Tensor:
        """E[tau] of every column (d,)."""
        return self.precision.mean.expand(len(self.weight.mean))

    @property
    def centre(self) -> Tensor:
        """E[mu] (d,); 0 for a model without mean."""
        zero = self.weight.mean.new_zeros(len(self.weight.mean))
        return zero if self.mean is None else self.mean.mean.squeeze(-1)

    @property
    def spread(self) -> Tensor:
        """Var[mu] (d,)."""
        zero = self.weight.mean.new_zeros(len(self.weight.mean))
        return zero if self.mean is None else self.mean.covariance.reshape(-1).expand_as(zero)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """q(Z) where nothing is missing: E[z] = A'(x - centre), and one covariance for all rows.

    Attributes:
        pull: A (d, k).
        covariance: V (k, k).
        centre: the E[mu] at which it was the optimum (d,).
    """

    pull: Tensor
    covariance: Tensor
    centre: Tensor

    def turned(self, rotation: Tensor) -> "LinearMap":
        """q of R z."""
        return LinearMap(self.pull @ rotation.mT, rotation @ self.covariance @ rotation.mT, self.centre)

    def factor(self, x: Tensor) -> GaussianFactor:
        """q of the factors of the rows ``x`` (n, d)."""
        return GaussianFactor((x - self.centre) @ self.pull, self.covariance)


def linear_factors(factors: Mapping[str, Any]) -> LinearFactors:
    """The factors of q by site name, with the members of q(mu) and q(tau) laid out as the sweeps have them."""
    mean, precision = factors.get("mean"), factors["precision"]
    if mean is not None and mean.mean.shape[-1] != 1:
        raise ValueError("q of the site 'mean' must have one Gaussian for every column")
    if precision.shape.ndim == 0:
        precision = GammaFactor(precision.shape.unsqueeze(0), precision.rate.unsqueeze(0))
    return LinearFactors(factors["z"], factors["weight"], mean, factors["relevance"], precision)


# Each factor at its optimum given the others.


def best_z(rows: Rows, q: LinearFactors) -> GaussianFactor | LinearMap:
    """q(Z): one map and one covariance for all rows where nothing is missing, else a Gaussian of every row's own."""
    tau, second, centre = q.tau, q.weight.second, q.centre
    k = second.shape[-1]
    identity = torch.eye(k).to(second)
    if rows.observed is None:
        covariance = torch.linalg.inv(identity + torch.einsum("d,dij->ij", tau, second))
        return LinearMap((tau.unsqueeze(-1) * q.weight.mean) @ covariance, covariance, centre)
    precision = identity + (rows.observed @ (tau[:, None, None] * second).flatten(1)).unflatten(1, (k, k))
    covariance = torch.linalg.inv(precision)
    pull = (rows.observed * (rows.filled - centre) * tau) @ q.weight.mean
    return GaussianFactor((covariance @ pull.unsqueeze(-1)).squeeze(-1), covariance)


def best_row_factor(x: Tensor, q: LinearFactors) -> GaussianFactor:
    """q(Z) of rows (n, d), NaN where missing, at its optimum given the other factors."""
    found = best_z(Rows.of(x), q)
    return found.factor(x.double()) if isinstance(found, LinearMap) else found


def best_weight(inner: Inner, q: LinearFactors, priors: LinearPriors) -> GaussianFactor:
    """q(W): one Gaussian for every column; all have the same covariance with equal noise and no missing entries."""
    tau, prior = q.tau, torch.diag(q.relevance.mean)
    alike = inner.second.ndim == 2 and not priors.columns
    covariance = torch.linalg.inv(prior + (tau[0] * inner.second if alike else tau[:, None, None] * inner.second))
    mean = (covariance @ (tau.unsqueeze(-1) * inner.cross).unsqueeze(-1)).squeeze(-1)
    return GaussianFactor(mean, covariance)


def best_mean(rows: Rows, inner: Inner, q: LinearFactors, priors: LinearPriors) -> GaussianFactor | None:
    """q(mu); None for a model without mean."""
    if priors.mean is None:
        return None
    location, beta = priors.mean
    total = rows.count * rows.mean - (q.weight.mean * inner.first).sum(-1)  # of x - w'z
    precision = beta + rows.count * q.tau
    mean = (beta * location + q.tau * total) / precision
    return GaussianFactor(mean.unsqueeze(-1), (1 / precision)[:, None, None])


def best_relevance(q: LinearFactors, priors: LinearPriors) -> GammaFactor:
    """q(alpha)."""
    shape, rate = priors.relevance
    energy = q.weight.second.diagonal(dim1=-2, dim2=-1).sum(0)
    return GammaFactor(torch.full_like(energy, shape + len(q.weight.mean) / 2), rate + energy / 2)


def best_precision(rows: Rows, inner: Inner, q: LinearFactors, priors: LinearPriors) -> GammaFactor:
    """q(tau)."""
    shape, rate = priors.precision
    residual, count = residuals(rows, inner, q), rows.count
    if not priors.columns:
        residual, count = residual.sum(0, keepdim=True), count.sum(0, keepdim=True)
    return GammaFactor(shape + count / 2, rate + residual / 2)


def inner_of(rows: Rows, q: LinearFactors) -> Inner:
    """The sums over the rows that the other factors need of q(Z)."""
    centre, z = q.centre, q.z
    if isinstance(z, LinearMap):
        assert rows.scatter is not None
        shift = rows.mean - z.centre
        cross = (rows.scatter + rows.n * (rows.mean - centre).unsqueeze(-1) * shift) @ z.pull
        around = rows.scatter + rows.n * shift.unsqueeze(-1) * shift
        whole = rows.n * z.covariance + z.pull.mT @ around @ z.pull
        k = len(z.covariance)
        entropy = 0.5 * rows.n * (k * (1 + LOG_TWO_PI) + torch.linalg.slogdet(z.covariance)[1])
        first = (rows.n * z.pull.mT @ shift).expand(len(shift), k)
        return Inner(first, whole, cross, whole, entropy)
    second = z.covariance + z.mean.unsqueeze(-1) * z.mean.unsqueeze(-2)  # (n, k, k)
    mean = rows.heavy(z.mean)
    weighted = rows.heavy(second.flatten(1))
    whole = weighted.sum(0).unflatten(0, second.shape[1:])
    entropy = z.entropy(rows.weights)
    if rows.observed is None:
        first = mean.sum(0).expand(len(centre), mean.shape[1])
        return Inner(first, whole, (rows.filled - centre).mT @ mean, whole, entropy)
    each = (rows.observed.mT @ weighted).unflatten(1, second.shape[1:])
    cross = (rows.observed * (rows.filled - centre)).mT @ mean
    return Inner(rows.observed.mT @ mean, each, cross, whole, entropy)


def squares(rows: Rows, centre: Tensor) -> Tensor:
    """The sum of squares of every column around ``centre`` (d,), over the observed entries."""
    if rows.scatter is not None:
        return rows.scatter.diagonal() + rows.n * (rows.mean - centre).square()
    assert rows.observed is not None
    return (rows.heavy(rows.observed) * (rows.filled - centre).square()).sum(0)


def residuals(rows: Rows, inner: Inner, q: LinearFactors) -> Tensor:
    """E of the sum of squared residuals of every column over its observed entries (d,)."""
    fitted = (q.weight.second * inner.second).sum((-2, -1))
    crossed = 2 * (q.weight.mean * inner.cross).sum(-1)
    return squares(rows, q.centre) + rows.count * q.spread - crossed + fitted


def linear_bound(rows: Rows, q: LinearFactors, priors: LinearPriors, scale: float = 1.0) -> Tensor:
    """The evidence lower bound, every constant kept; the rows' terms count ``scale`` times, as those of a minibatch."""
    inner = inner_of(rows, q)
    d, k = q.weight.mean.shape
    log_tau = q.precision.log_mean.expand(d)
    local = 0.5 * (rows.count * (log_tau - LOG_TWO_PI) - q.tau * residuals(rows, inner, q)).sum()
    local = local - 0.5 * (rows.n * k * LOG_TWO_PI + inner.whole.trace()) + inner.entropy
    energy = q.weight.second.diagonal(dim1=-2, dim2=-1).sum(0)
    log_alpha, alpha = q.relevance.log_mean, q.relevance.mean
    bound = scale * local + 0.5 * (d * (log_alpha - LOG_TWO_PI) - alpha * energy).sum() + q.weight.entropy()
    for factor, prior in ((q.relevance, priors.relevance), (q.precision, priors.precision)):
        shape, rate = (factor.rate.new_tensor(value) for value in prior)
        bound = bound + factor.expected_log_prior(shape, rate) + factor.entropy()
    if q.mean is not None and priors.mean is not None:
        location, beta = priors.mean
        offset = (q.centre - location).square() + q.spread
        bound = bound + 0.5 * (beta.log() - LOG_TWO_PI - beta * offset).sum() + q.mean.entropy()
    return bound


class LinearAscent:
    """The factors of q and the sweeps over them.

    Args:
        x: rows (n, d); NaN where an entry is missing at random.
        latent_dim: K.
        priors: of the model.
        generator: of the random start of W. q(Z) is updated first, so it needs no start: updating W first, with z at
            the prior's mean, would set W to 0, where it stays.
        weights: how often every row counts (n,); None for once.
    """

    def __init__(
        self,
        x: Tensor,
        latent_dim: int,
        priors: LinearPriors,
        generator: torch.Generator,
        weights: Tensor | None = None,
    ) -> None:
        self.rows = Rows.of(x, weights)
        self.priors = priors
        like = self.rows.mean
        d, k = len(like), latent_dim
        variance = (squares(self.rows, like).sum() / self.rows.count.sum()).clamp_min(1e-300)
        start = torch.randn(d, k, generator=generator, dtype=torch.float64).to(like) * variance.sqrt()
        size = d if priors.columns else 1
        weight = GaussianFactor(start, torch.zeros(k, k).to(like))
        mean = None if priors.mean is None else GaussianFactor(like.unsqueeze(-1).clone(), like.new_zeros(d, 1, 1))
        relevance = GammaFactor(like.new_ones(k), variance.expand(k))
        precision = GammaFactor(like.new_ones(size), variance.expand(size))
        none = GaussianFactor(like.new_zeros(0, k), torch.eye(k).to(like))
        self.q = LinearFactors(none, weight, mean, relevance, precision)
        self.q = replace(self.q, z=best_z(self.rows, self.q))

    def sweep(self) -> None:
        """Every factor once, at its optimum given the others: q(Z) first."""
        rows, priors = self.rows, self.priors
        q = replace(self.q, z=best_z(rows, self.q))
        q = replace(q, weight=best_weight(inner_of(rows, q), q, priors))
        q = replace(q, mean=best_mean(rows, inner_of(rows, q), q, priors))
        q = replace(q, relevance=best_relevance(q, priors))
        self.q = replace(q, precision=best_precision(rows, inner_of(rows, q), q, priors))

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows, every constant kept."""
        return linear_bound(self.rows, self.q, self.priors)

    def rotate(self) -> None:
        r"""Transform z and W together by the matrix R that maximises the bound, with alpha at its optimum.

        With :math:`z \to R z` and :math:`W \to W R^{-1}` the data's term stays and the bound changes by

        .. math:: (N - D) \log |R| - \tfrac12 \mathrm{tr}(R\, E[Z^T Z]\, R^T) -
                  (a + D/2) \sum_k \log(b + \tfrac12 [R^{-T} E[W^T W] R^{-1}]_{kk}).

        References:
            Luttinen and Ilin (2010), Transformations in variational Bayesian factor analysis to speed up learning,
            Neurocomputing 73.
        """
        q, d = self.q, len(self.q.weight.mean)
        whole, energy = inner_of(self.rows, q).whole, q.weight.second.sum(0)
        rotation = best_rotation(whole, energy, self.rows.n - d, d, self.priors.relevance)
        inverse = torch.linalg.inv(rotation)
        if isinstance(q.z, LinearMap):
            z: GaussianFactor | LinearMap = q.z.turned(rotation)
        else:
            z = GaussianFactor(q.z.mean @ rotation.mT, rotation @ q.z.covariance @ rotation.mT)
        weight = GaussianFactor(q.weight.mean @ inverse, inverse.mT @ q.weight.covariance @ inverse)
        q = replace(q, z=z, weight=weight)
        self.q = replace(q, relevance=best_relevance(q, self.priors))

    def factors(self, x: Tensor) -> dict[str, Factor]:
        """q of every site by name, of z for the rows ``x`` (n, d): those of the sweeps, or others, at their optimum."""
        q = self.q
        z = q.z if len(x) == len(self.rows.filled) or isinstance(q.z, LinearMap) else best_z(Rows.of(x), q)
        z = z.factor(x.double()) if isinstance(z, LinearMap) else z
        found: dict[str, Factor] = {"z": z, "weight": q.weight, "relevance": q.relevance, "precision": q.precision}
        return found if q.mean is None else {**found, "mean": q.mean}


def best_rotation(whole: Tensor, energy: Tensor, degrees: float, d: int, prior: tuple[float, float]) -> Tensor:
    r"""R (k, k) at which the bound is highest, in closed form; see :meth:`LinearAscent.rotate`.

    With :math:`V = R^{-T} E[W^T W] R^{-1}` and :math:`c_k = (2a + D) / (2b + V_{kk})` the stationary points have
    :math:`R\, E[Z^T Z]\, R^T = (N - D) I + V \mathrm{diag}(c)`; the left side is symmetric, so V is diagonal, and so is
    the left side. Hence :math:`R = \mathrm{diag}(t)^{1/2}\, U^T L^{-1}` with :math:`L L^T = E[Z^T Z]` and
    :math:`L^T E[W^T W] L = U \mathrm{diag}(\lambda) U^T`, and every :math:`t_k` is the positive root of
    :math:`2 b t^2 + (\lambda_k - 2 b (N - D))\, t - \lambda_k (N + 2a) = 0`. Any order of the factors is as good; they
    come in decreasing :math:`\lambda`, so that those that are switched off are last.

    Args:
        whole: E[Z'Z] (k, k).
        energy: E[W'W] (k, k).
        degrees: N - D.
        d: D.
        prior: a and b, shape and rate of the prior on the relevances.
    """
    shape, rate = prior
    root = torch.linalg.cholesky(whole)
    values, vectors = torch.linalg.eigh(root.mT @ energy @ root)
    values, vectors = values.flip(-1).clamp_min(torch.finfo(values.dtype).tiny), vectors.flip(-1)
    linear, constant = values - 2 * rate * degrees, values * (degrees + d + 2 * shape)
    size = (linear.square() + 8 * rate * constant).sqrt()
    positive = 2 * constant / (linear + size)  # each of the two forms of the root loses no digits where it is taken
    square = torch.where(linear > 0, positive, (size - linear) / (4 * rate))
    inverse_root = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=False)
    return square.sqrt().unsqueeze(-1) * (vectors.mT @ inverse_root)
