r"""The algebra of linear-Gaussian models: PPCA and factor analysis.

.. math:: z \sim N(0, I_K), \quad x \mid z \sim N(W z + \mu, \Psi), \quad \Psi = \mathrm{diag}(\psi)

The functions take ``weight`` W (d, k), ``mean`` mu (d,) and ``noise`` psi (d,), the noise variances. Rows with missing
entries (NaN) are handled by :mod:`zoo.algebra.missing_linear`.
"""

import math
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor
from torch.distributions import Distribution

from zoo.algebra import missing_linear
from zoo.algebra.missing import Imputation, Incomplete, column_moments
from zoo.base.checks import incomplete
from zoo.base.entries import numbers_of
from zoo.base.independent import without_event_dims
from zoo.base.moments import Moments


class PosteriorRoot(NamedTuple):
    """What the posterior of every row has in common; see :func:`posterior_root`.

    Attributes:
        root: the lower triangular root L (k, k) of its covariance.
        whiten: :math:`\\Psi^{-1} W L` (d, k).
        far: whether the signal is far above the noise.
    """

    root: Tensor
    whiten: Tensor
    far: bool


def posterior_root(weight: Tensor, noise: Tensor) -> PosteriorRoot:
    r"""The root of the posterior's covariance, and the map to its means.

    .. math:: P^{-1} = L L^T, \quad E[z \mid x] = L \, (\Psi^{-1} W L)^T (x - \mu)

    Both come from the Cholesky factor of P, or where the signal is far above the noise, from a QR decomposition of
    :math:`(\Psi^{-1/2} W; I)`, whose condition number is the square root of that of P.

    Raises:
        FloatingPointError: the signal is so far above the noise that the precision of the numbers cannot hold both.
    """
    scaled = (weight / noise.sqrt().unsqueeze(1)).flip(1)  # from the last factor, so that L is lower triangular
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    if not missing_linear.far_above(scaled):
        root = missing_linear.inverse_root(torch.linalg.cholesky(identity + scaled.T @ scaled, upper=True))
        return PosteriorRoot(root, (weight / noise.unsqueeze(1)) @ root, far=False)
    basis, triangle = torch.linalg.qr(torch.cat([scaled, identity]))
    whiten = (basis[: len(weight)] * triangle.diagonal().sign()).flip(1) / noise.sqrt().unsqueeze(1)
    return PosteriorRoot(missing_linear.inverse_root(triangle), whiten, far=True)


def posterior(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> dist.MultivariateNormal:
    r""":math:`p(z \mid x) = N(P^{-1} W^T \Psi^{-1} (x - \mu), P^{-1})`, batch (n,), event (k,).

    Rubin and Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
    """
    if incomplete(x):
        return missing_linear.posterior(x, weight, mean, noise)
    root, whiten, _ = posterior_root(weight, noise)
    return dist.MultivariateNormal((x - mean) @ whiten @ root.T, scale_tril=root)


def log_marginal(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    r""":math:`\log N(x \mid \mu, W W^T + \Psi)`, one per row (n,)."""
    if incomplete(x):
        return missing_linear.log_marginal(x, weight, mean, noise)
    found = posterior_root(weight, noise)
    logdet = noise.log().sum() - 2 * found.root.diagonal().log().sum()
    return -0.5 * (len(mean) * math.log(2 * math.pi) + logdet + _misfit(x - mean, weight, noise, found))


def _misfit(offset: Tensor, weight: Tensor, noise: Tensor, found: PosteriorRoot) -> Tensor:
    r""":math:`r^T (W W^T + \Psi)^{-1} r` of every row r of ``offset`` (n, d).

    It is the difference of two sums of squares, or where they nearly cancel, the squares of what the posterior's mean
    m leaves: :math:`(r - W m)^T \Psi^{-1} (r - W m) + m^T m`.
    """
    white = offset @ found.whiten  # (n, k)
    if not found.far:
        return (offset.square() / noise).sum(-1) - white.square().sum(-1)
    loc = white @ found.root.T
    return ((offset - loc @ weight.T).square() / noise).sum(-1) + loc.square().sum(-1)


def elbo(x: Tensor, q: Distribution, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    r"""The evidence lower bound of a Gaussian q(z) = N(m, V) in closed form, one per row (n,).

    .. math:: -\tfrac12 (D \log 2\pi + \log|\Psi| + r^T \Psi^{-1} r + \mathrm{tr}(W^T \Psi^{-1} W V))
              -\tfrac12 (\mathrm{tr} V + m^T m - K) + \tfrac12 \log|V|, \quad r = x - \mu - W m
    """
    loc, covariance = gaussian_moments(q)
    if incomplete(x):
        return missing_linear.elbo(x, loc, covariance, weight, mean, noise)
    residual = x - mean - loc @ weight.T  # (n, d)
    gram = (weight.T / noise) @ weight  # (k, k)
    spread = (gram * covariance).sum((-2, -1))
    fit = len(mean) * math.log(2 * math.pi) + noise.log().sum() + (residual.square() / noise).sum(-1) + spread
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    prior = trace + loc.square().sum(-1) - loc.shape[-1] - torch.linalg.slogdet(covariance).logabsdet
    return -0.5 * (fit + prior)


def gaussian_moments(q: Distribution) -> tuple[Tensor, Tensor]:
    """Mean (n, k) and covariance (n, k, k) of a Gaussian, whatever its parametrisation.

    Raises:
        TypeError: ``q`` is not a Gaussian.
    """
    base = without_event_dims(q)
    if isinstance(base, torch.distributions.Normal):
        return q.mean, torch.diag_embed(q.variance)
    if isinstance(base, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        return q.mean, base.covariance_matrix.expand(*q.batch_shape, -1, -1)
    raise TypeError(f"the closed-form bound holds for a Gaussian q, got {type(base).__name__}")


def log_likelihood(moments: Moments, weight: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    """The total log-likelihood of all rows, from their moments: a scalar.

    Where a noise variance is small, two large numbers nearly cancel in :math:`x^T \\Sigma^{-1} x` by way of P, and the
    columns of a root of the covariance (d, d) take the place of rows.
    """
    offset = moments.mean - mean
    scatter = moments.covariance + torch.outer(offset, offset)  # (d, d)
    found = posterior_root(weight, noise)
    total = (scatter.diagonal() / noise).sum()
    misfit = total - ((found.whiten.T @ scatter) * found.whiten.T).sum()
    if float(misfit.detach()) <= missing_linear.CANCELLED * float(total.detach()):
        rows = torch.cat([moments.square_root().T, offset.unsqueeze(0)])
        misfit = _misfit(rows, weight, noise, found).sum()
    logdet = noise.log().sum() - 2 * found.root.diagonal().log().sum()
    return -0.5 * moments.count * (len(mean) * math.log(2 * math.pi) + logdet + misfit)


def em_update(moments: Moments, weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""The M-step after the exact E-step: new weight (d, k) and the residual variances (d,).

    With :math:`\beta = P^{-1} W^T \Psi^{-1}` and S the covariance,
    :math:`W \leftarrow S \beta^T (P^{-1} + \beta S \beta^T)^{-1}` and the residuals
    :math:`\mathrm{diag}(S - W \beta S)`: factor analysis uses them, PPCA their mean.
    """
    root, whiten, _ = posterior_root(weight, noise)
    beta = root @ whiten.T  # (k, d)
    cross = beta @ moments.covariance  # (k, d)
    second = root @ root.T + cross @ beta.T
    weight = torch.linalg.solve(second, cross).T
    variance = moments.covariance.diagonal()
    residual = variance - (weight * cross.T).sum(1)
    if bool((residual < missing_linear.CANCELLED * variance).any()):
        square = moments.square_root()  # the same as a sum of squares: diag((I - W beta) S (I - W beta)' + W P^-1 W')
        residual = (square - weight @ (beta @ square)).square().sum(1) + (weight @ root).square().sum(1)
    return weight, torch.maximum(residual, 1e-30 * variance)  # a perfect fit may be negative by rounding


def refuse_low_rank(x: Tensor | Moments, latent_dim: int) -> None:
    """Refuses rows (n, d), or their moments, in a subspace of the factors' dimension: no noise is left.

    Rows with missing entries are in it if their observed entries agree with the subspace of the complete rows.

    Raises:
        ValueError: the rank of the centred rows is too low; the message states it.
    """
    whole = x
    if not isinstance(x, Moments) and incomplete(x):
        whole = x[~x.isnan().any(1)]
        if len(whole) <= latent_dim + 1:
            return  # any so few rows are in such a subspace
    for some in (whole,) if isinstance(whole, Moments) else (whole[: 4 * whole.shape[1] + 4], whole):  # few suffice
        rank = _rank(some if isinstance(some, Moments) else Moments.of(some))
        if rank > latent_dim:
            return
    if isinstance(x, Tensor) and isinstance(whole, Tensor) and whole is not x and not _agree(x, whole, rank):
        return
    if rank == 0:
        raise ValueError("all rows of x are equal: the likelihood of PPCA is unbounded")
    raise ValueError(
        f"the rows of x span {rank} dimensions, no more than latent_dim={latent_dim}: no variance is left for the "
        "noise, and the likelihood of PPCA is unbounded. Use fewer factors, or more rows"
    )


def _rank(moments: Moments) -> int:
    """The rank of the covariance in units of the columns, beyond the rounding of rows that are far from the origin."""
    deviation, level = moments.covariance.diagonal().sqrt(), moments.mean.abs()
    rounding = 4 * torch.finfo(level.dtype).eps * level
    varies = deviation > rounding
    if not varies.any():
        return 0
    unit = deviation[varies]
    offset = (rounding[varies] / unit).square().sum()
    if moments.root is not None:
        values = torch.linalg.svdvals(moments.root[varies] / unit.unsqueeze(1)).square()
        return int((values > 1e-28 * len(unit) + offset).sum())
    values = torch.linalg.eigvalsh(moments.covariance[varies][:, varies] / torch.outer(unit, unit))
    return int((values > 1e-14 * len(unit) + offset).sum())


def _agree(x: Tensor, whole: Tensor, rank: int) -> bool:
    """Whether the observed entries of all rows (n, d) are in the subspace of this rank of the complete ones (m, d)."""
    moments = Moments.of(whole)
    deviation = moments.covariance.diagonal().sqrt()
    unit = torch.where(deviation > 0, deviation, 1.0)
    basis = torch.linalg.eigh(moments.covariance / torch.outer(unit, unit)).eigenvectors[:, len(unit) - rank :]
    for some in x.split(10_000):
        observed = ~some.isnan()
        offset = torch.where(observed, (some.double() - moments.mean) / unit, 0.0)  # (b, d)
        part = observed.unsqueeze(-1) * basis  # (b, d, rank)
        loc = torch.linalg.pinv(part) @ offset.unsqueeze(-1)
        if bool(((offset - (part @ loc).squeeze(-1)).abs() > 1e-6 * offset.abs().amax(1, keepdim=True)).any()):
            return False
    return True


def best_weight(moments: Moments, noise: Tensor, latent_dim: int) -> Tensor:
    r"""The loadings (d, k) that maximise the likelihood for given noise variances, in closed form.

    With :math:`\lambda_j, u_j` the leading eigenpairs of :math:`\Psi^{-1/2} S \Psi^{-1/2}`, column j is
    :math:`\Psi^{1/2} u_j \sqrt{\max(\lambda_j - 1, 0)}` (Joereskog 1967, Psychometrika 32).
    """
    root = noise.sqrt()
    if moments.root is None:
        values, vectors = torch.linalg.eigh(moments.covariance / torch.outer(root, root))
    else:
        vectors, deviations, _ = torch.linalg.svd(moments.root / root.unsqueeze(1))
        values, vectors = deviations.square().flip(0), vectors.flip(1)
    leading = (values[-latent_dim:] - 1).clamp_min(0).sqrt()
    weight = root.unsqueeze(1) * vectors[:, -latent_dim:] * leading
    return torch.nn.functional.pad(weight, (0, latent_dim - weight.shape[1])).contiguous()  # zeros for surplus factors


def best_noise(moments: Moments, noise: Tensor, least: Tensor, latent_dim: int, steps: int = 10_000) -> Tensor:
    r"""The noise variances (d,) at a maximum of the likelihood reached from ``noise``, bounded below by ``least``.

    With :math:`\lambda` the eigenvalues of :math:`\Psi^{-1/2} S \Psi^{-1/2}` and :math:`\lambda^+ = \max(\lambda, 1)`,
    the log-likelihood at the best loadings is, up to a constant,

    .. math:: -\tfrac n2 \Big(\sum_j \log \psi_j + \sum_{j \le K} (\log \lambda_j^+ + \lambda_j / \lambda_j^+)
              + \sum_{j > K} \lambda_j\Big)

    and its derivative by :math:`\psi_j` is :math:`-\tfrac n2 (W W^T + \Psi - S)_{jj} / \psi_j^2`. It is maximised
    by L-BFGS-B in float64 over the logarithms, as in R's factanal (Joereskog 1967, Psychometrika 32).

    Raises:
        FloatingPointError: the search ended without a maximum.
    """
    covariance = moments.covariance.double().cpu().numpy()

    def climb(logs: np.ndarray) -> tuple[float, np.ndarray]:
        psi = np.exp(logs)
        root = np.sqrt(psi)
        values, vectors = np.linalg.eigh(covariance / np.outer(root, root))
        top, rest = values[-latent_dim:], values[:-latent_dim]
        raised = np.maximum(top, 1.0)
        value = logs.sum() + (np.log(raised) + top / raised).sum() + rest.sum()
        explained = (vectors[:, -latent_dim:] ** 2) @ (raised - 1.0)  # the diagonal of W W', in units of the noise
        slope = explained + 1.0 - covariance.diagonal() / psi
        return 0.5 * moments.count * float(value), 0.5 * moments.count * slope

    lower = np.log(np.maximum(least.double().cpu().numpy(), 1e-8 * covariance.diagonal()))
    found = scipy.optimize.minimize(
        climb,
        np.maximum(np.log(noise.double().cpu().numpy()), lower),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-10, "gtol": 1e-3},
        bounds=[(low, None) for low in lower],
    )
    if not found.success:
        raise FloatingPointError(f"no maximum of the likelihood was found: {found.message}")
    return torch.from_numpy(np.exp(found.x)).to(noise.device)


def cloud(x: Tensor | Moments, latent_dim: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A random start on the scale of the data: loadings (d, k), column means (d,), noise variances (d,).

    Half of every column's variance is noise, the other half is explained by loadings of random direction.
    """
    if isinstance(x, Moments):
        variance, mean = x.covariance.diagonal(), x.mean
    else:
        variance, mean = column_moments(x, weights)
    usual = variance[variance > 0].mean() if (variance > 0).any() else variance.new_ones(())
    half = torch.where(variance > 0, variance, usual) / 2
    draw = torch.randn(len(mean), latent_dim, dtype=mean.dtype, device=mean.device)
    return draw * (half / latent_dim).sqrt().unsqueeze(1), mean, half


def impute(x: Tensor, weight: Tensor, mean: Tensor, noise: Tensor) -> Imputation:
    """The conditional mean and variance of the missing entries of ``x`` (n, d)."""
    if incomplete(x):
        return missing_linear.impute(x, weight, mean, noise)
    return Imputation(x.clone(), torch.zeros_like(x))


def summarize(x: Tensor | Moments, weights: Tensor | None = None) -> Moments | Incomplete:
    """The data that EM needs of rows (n, d): their moments, or all rows if entries are missing; weighted by (n,)."""
    if isinstance(x, Moments):
        return x
    return Incomplete.of(x, weights) if incomplete(x) else Moments.of(x, weights)


def filled_moments(x: Tensor | Moments, weights: Tensor | None = None) -> Moments:
    """The moments of rows (n, d) with missing entries at their column's mean, for a start."""
    if isinstance(x, Moments):
        return x
    if not incomplete(x):
        return Moments.of(x, weights)
    _, mean = column_moments(x, weights)
    return Moments.of(torch.where(x.isnan(), mean, x), weights)


def remainder(moments: Moments, latent_dim: int) -> Tensor:
    """The noise variance of PPCA: the mean of the D - K smallest eigenvalues of the covariance, a scalar.

    It is the mean square of the smallest singular values of a root of the covariance: the eigenvalues have an error
    relative to the largest one.
    """
    values = torch.linalg.svdvals(moments.square_root())
    return values[latent_dim:].square().mean()


def uniqueness(moments: Moments, latent_dim: int) -> Tensor:
    r"""The noise variances (d,) at which factor analysis starts: :math:`(1 - K / 2D) / (S^{-1})_{jj}`.

    With S regularised by a thousandth of its diagonal, as it may be singular.

    References:
        Joereskog (1963), Statistical Estimation in Factor Analysis; R's ``factanal``.
    """
    covariance = moments.covariance
    ridged = covariance + torch.diag(1e-3 * covariance.diagonal())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged))
    return max(1 - 0.5 * latent_dim / len(covariance), 0.1) / inverse.diagonal()


def refuse_constant_columns(x: Tensor | Moments, model: str, why: str | None = None) -> None:
    """Refuses columns with constant observed entries, for which a noise variance of 0 gives an infinite likelihood.

    Args:
        x: the rows (n, d), or their moments.
        model: its name.
        why: the problem with such a column and a remedy; None: an unbounded likelihood.

    Raises:
        ValueError: columns are constant; the message names them, counted from 0.
    """
    if isinstance(x, Moments):
        spread, level = x.covariance.diagonal().sqrt(), x.mean.abs()
    else:
        low = high = x
        if incomplete(x):
            low, high = x.nan_to_num(math.inf, math.inf, -math.inf), x.nan_to_num(-math.inf, math.inf, -math.inf)
        low, high = low.amin(0), high.amax(0)
        spread, level = high - low, torch.maximum(low.abs(), high.abs())
    constant = (spread <= 1e-12 * level).nonzero().flatten().tolist()
    if constant:
        why = why or (
            f"the likelihood of {model} is unbounded. Omit them, or use PPCA, whose columns share one noise variance"
        )
        raise ValueError(
            f"x has {len(constant)} constant column{'s' * (len(constant) > 1)} ({numbers_of(constant)}): {why}"
        )
