r"""Factors of a mean-field posterior in the exponential family: natural parameters, expectations, entropies.

A factor is a batch of independent members of one family, :math:`q(\theta) \propto h(\theta) e^{\eta \cdot t(\theta)}`.
Coordinate ascent sets :math:`\eta` to its optimum given the other factors; a natural-gradient step moves it there in
part, :math:`\eta \leftarrow (1 - \rho)\, \eta + \rho\, \eta^*` (Hoffman, Blei, Wang and Paisley 2013, Stochastic
variational inference, JMLR 14). Densities, expectations and entropies are those of Bishop (2006), Pattern Recognition
and Machine Learning, appendix B.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.special import digamma

from zoo.algebra.wishart import Wishart

F = TypeVar("F", bound="Factor")
LOG_TWO_PI = math.log(2 * math.pi)
STIRLING = 1e3  # shape from which the series of the entropy is more precise than its terms


class Factor(Protocol):
    """A batch of independent members of an exponential family."""

    @property
    def natural(self) -> tuple[Tensor, ...]:
        """The natural parameters."""
        ...

    @classmethod
    def of(cls, *natural: Tensor) -> Any:
        """The factor with these natural parameters."""
        ...

    def entropy(self) -> Tensor:
        """The entropy of all members together, in nats."""
        ...

    def distribution(self) -> dist.TorchDistribution:
        """The batch as a distribution, one member per batch index."""
        ...


def blend(old: F, new: F, rate: float) -> F:
    """The factor with the natural parameters (1 - rate) of ``old`` plus rate of ``new``."""
    pairs = zip(old.natural, new.natural, strict=True)
    return type(old).of(*(torch.lerp(a, b, rate) for a, b in pairs))


@dataclass(frozen=True, eq=False)
class GaussianFactor:
    """Gaussians N(mean, covariance); natural parameters P m and -P / 2 with the precision P.

    Attributes:
        mean: (..., k).
        covariance: (..., k, k), or one (k, k) that all members share.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def natural(self) -> tuple[Tensor, Tensor]:
        """P m (..., k) and -P / 2 (..., k, k)."""
        precision = torch.linalg.inv(self.covariance)
        return (precision @ self.mean.unsqueeze(-1)).squeeze(-1), -0.5 * precision

    @classmethod
    def of(cls, *natural: Tensor) -> "GaussianFactor":
        """The Gaussians with these natural parameters."""
        linear, quadratic = natural
        covariance = torch.linalg.inv(-2 * quadratic)
        return cls((covariance @ linear.unsqueeze(-1)).squeeze(-1), covariance)

    @property
    def second(self) -> Tensor:
        """E[z z'] (..., k, k)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)

    def entropy(self, weights: Tensor | None = None) -> Tensor:
        """The entropy of all members together, in nats; each times its weight (n, 1)."""
        k = self.mean.shape[-1]
        count = self.mean.numel() // k if weights is None else weights.sum()
        log_det = torch.linalg.slogdet(self.covariance)[1]
        each = log_det if weights is None else log_det * weights.flatten()
        total = each.sum() if self.covariance.ndim > 2 else count * log_det
        return 0.5 * (count * k * (1 + LOG_TWO_PI) + total)

    def distribution(self) -> dist.TorchDistribution:
        """One Gaussian per batch index."""
        root = torch.linalg.cholesky(self.covariance)
        return dist.MultivariateNormal(self.mean, scale_tril=root.expand(*self.mean.shape, -1))


def _gamma_entropy(shape: Tensor) -> Tensor:
    r"""The entropy of Gamma(a, 1), :math:`a + \log \Gamma(a) + (1 - a) \psi(a)`, for every shape a (...).

    For large a the terms nearly cancel, and Stirling's series takes their place.
    """
    large = shape.clamp_min(STIRLING)
    series = 0.5 * (2 * math.pi * large).log() + 0.5 - (1 / 3 + (1 / 12 + 1 / (90 * large)) / large) / large
    small = shape.clamp_max(STIRLING)
    exact = small + torch.lgamma(small) + (1 - small) * digamma(small)
    return torch.where(shape > STIRLING, series, exact)


@dataclass(frozen=True, eq=False)
class GammaFactor:
    """Gamma(shape, rate), density proportional to x^(shape - 1) e^(-rate x); natural parameters shape - 1 and -rate.

    Attributes:
        shape: (...,).
        rate: (...,), in the inverse of the units of x.
    """

    shape: Tensor
    rate: Tensor

    @property
    def natural(self) -> tuple[Tensor, Tensor]:
        """Shape - 1 and -rate."""
        return self.shape - 1, -self.rate

    @classmethod
    def of(cls, *natural: Tensor) -> "GammaFactor":
        """The Gammas with these natural parameters."""
        return cls(natural[0] + 1, -natural[1])

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self.shape / self.rate

    @property
    def log_mean(self) -> Tensor:
        """E[log x]."""
        return digamma(self.shape) - self.rate.log()

    def entropy(self) -> Tensor:
        """The entropy of all members together, in nats."""
        return (_gamma_entropy(self.shape) - self.rate.log()).sum()

    def expected_log_prior(self, shape: Tensor, rate: Tensor) -> Tensor:
        """E[log Gamma(x; shape, rate)] under this factor, over all members."""
        constant = shape * rate.log() - torch.lgamma(shape)
        return (constant + (shape - 1) * self.log_mean - rate * self.mean).sum()

    def distribution(self) -> dist.TorchDistribution:
        """One Gamma per batch index."""
        return dist.Gamma(self.shape, self.rate)


@dataclass(frozen=True, eq=False)
class DirichletFactor:
    """Dirichlet(concentration) over the last dimension; natural parameters concentration - 1.

    Attributes:
        concentration: (..., k).
    """

    concentration: Tensor

    @property
    def natural(self) -> tuple[Tensor]:
        """Concentration - 1."""
        return (self.concentration - 1,)

    @classmethod
    def of(cls, *natural: Tensor) -> "DirichletFactor":
        """The Dirichlet with these natural parameters."""
        return cls(natural[0] + 1)

    @property
    def mean(self) -> Tensor:
        """E[pi]."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    @property
    def log_mean(self) -> Tensor:
        """E[log pi]."""
        return digamma(self.concentration) - digamma(self.concentration.sum(-1, keepdim=True))

    def entropy(self) -> Tensor:
        """The entropy of all members together, in nats: of the Gammas that it is made of, less that of their sum."""
        total, k = self.concentration.sum(-1), self.concentration.shape[-1]
        return (_gamma_entropy(self.concentration).sum(-1) - _gamma_entropy(total) + (1 - k) * digamma(total)).sum()

    def expected_log_prior(self, concentration: Tensor) -> Tensor:
        """E[log Dir(pi; concentration)] under this factor, over all members."""
        constant = torch.lgamma(concentration.sum(-1)) - torch.lgamma(concentration).sum(-1)
        return (constant + ((concentration - 1) * self.log_mean).sum(-1)).sum()

    def distribution(self) -> dist.TorchDistribution:
        """One Dirichlet per batch index."""
        return dist.Dirichlet(self.concentration)


@dataclass(frozen=True, eq=False)
class WishartFactor:
    r"""Wishart(df, inverse scale) of precision matrices; natural parameters (df - d - 1) / 2 and -inverse scale / 2.

    .. math:: p(\Lambda) \propto |\Lambda|^{(\nu - d - 1) / 2} \exp(-\tfrac12 \mathrm{tr}\, V^{-1} \Lambda), \qquad
              E \Lambda = \nu V

    Attributes:
        df: degrees of freedom nu (...,), above d - 1.
        inverse_scale: V^-1 (..., d, d).
    """

    df: Tensor
    inverse_scale: Tensor

    @property
    def natural(self) -> tuple[Tensor, Tensor]:
        """(df - d - 1) / 2 and -inverse scale / 2."""
        return (self.df - self.inverse_scale.shape[-1] - 1) / 2, -0.5 * self.inverse_scale

    @classmethod
    def of(cls, *natural: Tensor) -> "WishartFactor":
        """The Wisharts with these natural parameters."""
        return cls(2 * natural[0] + natural[1].shape[-1] + 1, -2 * natural[1])

    @property
    def scale(self) -> Tensor:
        """V (..., d, d)."""
        return torch.linalg.inv(self.inverse_scale)

    @property
    def mean(self) -> Tensor:
        """E[Lambda] (..., d, d)."""
        return self.df[..., None, None] * self.scale

    @property
    def log_det_mean(self) -> Tensor:
        """E[log |Lambda|] (...,)."""
        d = self.inverse_scale.shape[-1]
        return digamma(self._halves).sum(-1) + d * math.log(2) - torch.linalg.slogdet(self.inverse_scale)[1]

    def entropy(self) -> Tensor:
        r"""The entropy of all members together, in nats.

        With :math:`a_i = (\nu - i) / 2`, those of the squared diagonal of Bartlett's decomposition, and h(a) the
        entropy of Gamma(a, 1),

        .. math:: \tfrac{d + 1}{2} (d \log 2 + \log |V|) + \tfrac{d (d - 1)}{4} \log \pi
                  + \sum_{i=0}^{d-1} \Big( h(a_i) + \tfrac i2 + \tfrac{d - 1 - i}{2} \psi(a_i) \Big)
        """
        d = self.inverse_scale.shape[-1]
        i = torch.arange(d).to(self.df)
        each = _gamma_entropy(self._halves) + i / 2 + (d - 1 - i) / 2 * digamma(self._halves)
        scale = d * math.log(2) - torch.linalg.slogdet(self.inverse_scale)[1]
        return ((d + 1) / 2 * scale + d * (d - 1) / 4 * math.log(math.pi) + each.sum(-1)).sum()

    @property
    def _halves(self) -> Tensor:
        """(nu - i) / 2 of every dimension i (..., d)."""
        return (self.df.unsqueeze(-1) - torch.arange(self.inverse_scale.shape[-1]).to(self.df)) / 2

    def expected_log_prior(self, df: Tensor, inverse_scale: Tensor) -> Tensor:
        """E[log Wishart(Lambda; df, inverse_scale)] under this factor, over all members."""
        d = inverse_scale.shape[-1]
        log_norm = 0.5 * df * (d * math.log(2) - torch.linalg.slogdet(inverse_scale)[1]) + torch.mvlgamma(df / 2, d)
        trace = (inverse_scale * self.mean).sum((-2, -1))
        return ((df - d - 1) / 2 * self.log_det_mean - trace / 2 - log_norm).sum()

    def distribution(self) -> dist.TorchDistribution:
        """One Wishart per batch index."""
        return Wishart(self.df, precision_matrix=self.inverse_scale)


@dataclass(frozen=True, eq=False)
class CategoricalFactor:
    """Categoricals; the natural parameters are their log probabilities, up to a constant per member.

    Attributes:
        logits: normalised log probabilities (n, k).
    """

    logits: Tensor

    @property
    def natural(self) -> tuple[Tensor]:
        """The log probabilities."""
        return (self.logits,)

    @classmethod
    def of(cls, *natural: Tensor) -> "CategoricalFactor":
        """The categoricals with these natural parameters."""
        return cls(natural[0].log_softmax(-1))

    @property
    def mean(self) -> Tensor:
        """The probabilities (n, k)."""
        return self.logits.exp()

    def entropy(self, weights: Tensor | None = None) -> Tensor:
        """The entropy of all members together, in nats; each times its weight (n, 1)."""
        finite = self.logits.clamp_min(torch.finfo(self.logits.dtype).min)  # 0 log 0 = 0, and its gradient too
        share = self.mean if weights is None else self.mean * weights
        return -(share * finite).sum()

    def distribution(self) -> dist.TorchDistribution:
        """One categorical per batch index."""
        return dist.Categorical(logits=self.logits)


@dataclass(frozen=True, eq=False)
class CoupledFactor:
    """Gaussians given the precisions, N(mean, (beta Lambda)^-1): the other half of a normal-Wishart.

    Attributes:
        mean: (k, d).
        beta: (k,).
    """

    mean: Tensor
    beta: Tensor
