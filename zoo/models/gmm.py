import math
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints

from zoo.algebra import missing_mixture, mixture
from zoo.algebra.linear_gaussian import refuse_constant_columns
from zoo.algebra.missing import Imputation, Incomplete, Sorted, column_moments, refuse_unobserved_columns
from zoo.algebra.mixture import WeightedRows
from zoo.base.checks import check_rows, check_whole, incomplete
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.distributions.observed import seen

Covariance = Literal["full", "tied", "diag", "spherical"]


class GMM(Module):
    r"""Gaussian mixture: every row is drawn from one of K components.

    .. math:: c_n \sim \mathrm{Cat}(\pi), \quad x_n \mid c_n = j \sim N(\mu_j, \Sigma_j)

    Args:
        data_dim: number of columns D of the data.
        components: number of components K.
        covariance: ``"full"`` (a matrix per component), ``"tied"`` (one matrix for all), ``"diag"`` (a variance per
            component and column) or ``"spherical"`` (a variance per component).

    The parameter ``scale`` is a Cholesky factor (K, D, D) for ``"full"``, (D, D) for ``"tied"``, and standard
    deviations (K, D) for ``"diag"``, (K,) for ``"spherical"``. Missing entries (NaN) are assumed missing at random:
    every row contributes the density of its observed entries.

    Raises:
        ValueError: a dimension is not a whole number of at least 1, or ``covariance`` is not one of the four.

    References:
        McLachlan and Peel (2000), Finite Mixture Models; Bishop (2006), Pattern Recognition and Machine Learning, 9.2;
        with missing entries Ghahramani and Jordan (1994), Supervised learning from incomplete data via an EM approach.
    """

    missing = True  # accepts NaN, as entries missing at random
    weighted = True  # initialize and summarize accept weights of the rows
    quadratic = True  # no continuous latent variable: QuadratureELBO is exact

    def __init__(self, data_dim: int, components: int, covariance: Covariance = "full") -> None:
        super().__init__()
        self.data_dim = d = check_whole(data_dim, "data_dim")
        self.components = k = check_whole(components, "components")
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance must be one of {', '.join(get_args(Covariance))}; got {covariance!r}")
        self.covariance = covariance
        shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[covariance]
        matrix = covariance in ("full", "tied")
        scale = torch.eye(d).expand(shape).clone() if matrix else torch.ones(shape)
        self.weight = PyroParam(torch.full((k,), 1 / k), constraints.simplex)  # pi (k,)
        self.mean = PyroParam(torch.randn(k, d))  # mu (k, d)
        self.scale = PyroParam(scale, constraints.lower_cholesky if matrix else constraints.positive)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generates or scores rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        weight, mean, scale = self.weight, self.mean, self.scale
        with rows(x, index, size):
            component = pyro.sample(
                "component", dist.Categorical(weight), infer={"enumerate": "parallel"}
            )  # (..., n); Trace_ELBO ignores the mark, TraceEnum_ELBO sums over the components
            chosen = scale if self.covariance == "tied" else scale[component]
            return pyro.sample("x", seen(self._density(mean[component], chosen), x), obs=x)  # (..., n, d)

    def _density(self, mean: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """N(mean, Sigma) for means (..., d) and scales in the form of ``covariance``."""
        if self.covariance in ("full", "tied"):
            return dist.MultivariateNormal(mean, scale_tril=scale)
        return dist.Normal(mean, scale if self.covariance == "diag" else scale.unsqueeze(-1)).to_event(1)

    def log_joint(self, x: Tensor) -> Tensor:
        r""":math:`\log p(x, c = j)` for every row and component (n, k)."""
        x = like(x, self)
        if incomplete(x) and self.covariance in ("full", "tied"):
            return missing_mixture.joint(x, self.weight.log(), self.mean, self._covariances())
        x = x.unsqueeze(-2)  # (n, 1, d)
        return self.weight.log() + seen(self._density(self.mean, self.scale), x).log_prob(x)

    def _covariances(self) -> Tensor:
        """Sigma of every component: matrices (k, d, d), or variances (k, d)."""
        scale, (k, d) = self.scale, self.mean.shape
        if self.covariance in ("full", "tied"):
            return (scale @ scale.mT).expand(k, d, d)
        return scale.square().reshape(k, -1).expand(k, d)

    def posterior(self, x: Tensor) -> Distribution:
        """The responsibilities p(c | x): a Categorical with batch (n,)."""
        return dist.Categorical(logits=self.log_joint(x))

    def log_marginal(self, x: Tensor) -> Tensor:
        r""":math:`\log \sum_j \pi_j N(x \mid \mu_j, \Sigma_j)`, one per row (n,)."""
        return self.log_joint(x).logsumexp(-1)

    def elbo(self, x: Tensor, q: Distribution) -> Tensor:
        r""":math:`\sum_j q_j (\log p(x, c = j) - \log q_j)` of a Categorical q with batch (n,): (n,)."""
        if not isinstance(q, torch.distributions.Categorical):
            raise TypeError(f"the closed-form bound holds for a Categorical q, got {type(q).__name__}")
        return (q.probs * (self.log_joint(x) - q.logits)).sum(-1)

    @torch.no_grad()
    def impute(self, x: Tensor) -> Imputation:
        r"""Conditional mean :math:`E[x_m \mid x_o]` and variance of the missing entries (NaN) of rows (n, d)."""
        x = check_rows(x, self)
        if not incomplete(x):
            return Imputation(x.clone(), torch.zeros_like(x))
        return missing_mixture.impute(x, self.weight.log(), self.mean, self._covariances())

    def summarize(self, x: Tensor, weights: Tensor | None = None) -> Tensor | WeightedRows | Sorted:
        """The input of :meth:`em_step` for rows (n, d): the rows, sorted by pattern if entries are missing.

        Weights (n,) of the rows, positive, make them :class:`~zoo.algebra.mixture.WeightedRows`.
        """
        x = like(x, self)
        if incomplete(x):
            return Incomplete.of(x, weights).sorted()
        return x if weights is None else WeightedRows(x, weights)

    @torch.no_grad()
    def em_step(self, x: Tensor | WeightedRows | Sorted) -> Tensor:
        """One step of EM, in place, on rows (n, d) or on the result of :meth:`summarize`.

        Returns:
            the total log-likelihood of the parameters before the step, in float64.

        Raises:
            FloatingPointError: a component has lost all its rows, or has collapsed onto so few that its covariance is
                singular and the likelihood unbounded.
        """
        data = self.summarize(x) if isinstance(x, Tensor) else x
        weight, mean, scale = self.weight, self.mean, self.scale
        if isinstance(data, Sorted):
            found = missing_mixture.expect(data, weight.log(), mean, self._covariances())
        else:
            rows, weights = data if isinstance(data, WeightedRows) else (data, None)
            found = mixture.expect(rows, weight, mean, scale, self.covariance, weights)
        counts = found.counts
        if not counts.min() >= 1e-8:
            lost = int((~(counts >= 1e-8)).nonzero()[0])
            raise FloatingPointError(f"component {lost} has lost all its rows: use fewer components or another seed")
        shift = found.first / counts.unsqueeze(-1)  # (k, d)
        new, share = found.centre + shift, counts / counts.sum()
        self.scale = self._scale(found, shift, new, share).to(scale)
        self.mean, self.weight = new.to(mean), share.to(weight)
        return found.total

    def _scale(self, found: mixture.Sums, shift: Tensor, mean: Tensor, share: Tensor) -> Tensor:
        """The M-step of ``scale``, with the components' shifts from the centre of the sums to the new means (k, d)."""
        counts, second = found.counts, found.second
        matrix, tied = second.ndim == 3, self.covariance == "tied"
        heavy = counts.unsqueeze(-1) * shift  # (k, d)
        if tied:  # the scatter around the new means, over the rows
            covariance = (second.sum(0, keepdim=True) - heavy.T @ shift) / counts.sum()
        elif matrix:
            covariance = (second - heavy.unsqueeze(-1) * shift.unsqueeze(-2)) / counts[:, None, None]
        else:
            covariance = (second - heavy * shift) / counts.unsqueeze(-1)
        own = covariance.diagonal(dim1=-2, dim2=-1) if matrix else covariance  # (k, d), (1, d) if tied
        spread = share @ (mean - share @ mean).square() + (own[0] if tied else share @ own)  # of the columns (d,)
        if matrix:
            scale, failed = torch.linalg.cholesky_ex(covariance)
            pivots = scale.diagonal(dim1=-2, dim2=-1).square()
        else:
            pivots, failed = covariance, counts.new_zeros(len(covariance))
            if self.covariance == "spherical":
                pivots, spread = covariance.mean(1, keepdim=True), spread.mean()
            scale = pivots.sqrt()
        if failed.any() or not (pivots > 1e-10 * spread).all():
            bad = (failed > 0) | ~(pivots > 1e-10 * spread).all(-1)
            where = "the common covariance" if tied else f"component {bad.nonzero()[0].item()}"
            raise FloatingPointError(
                f"{where} has collapsed, its covariance is singular and the likelihood unbounded: use another seed, "
                "fewer components, or a simpler covariance ('tied', 'diag', 'spherical')"
            )
        return scale.squeeze(0) if tied else scale.squeeze(-1) if self.covariance == "spherical" else scale

    def check(self, x: Tensor) -> None:
        """Refuses data under which the likelihood has no maximum.

        Raises:
            ValueError: there are more components than rows or constant columns, or a column has fewer than two observed
                values.
        """
        if self.components > len(x):
            raise ValueError(f"components={self.components} exceeds the {len(x)} rows of x: use far fewer")
        refuse_unobserved_columns(x, f"GMM(covariance={self.covariance!r})")
        if self.covariance != "spherical":
            refuse_constant_columns(x, f"GMM(covariance={self.covariance!r})")

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Draws a random start on the data ``x`` (n, d): k-means++ centres, equal weights, the covariance of all rows.

        Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, SODA.
        """
        x = like(x, self)
        order = torch.randperm(len(x), device=x.device)[:10_000]  # enough for seeding
        some, own = x[order], None if weights is None else weights[order].cpu().numpy()
        unit = some.std(0, correction=0)
        if incomplete(x) or weights is not None:
            variance, mean = column_moments(x, weights)
            unit = variance.sqrt()
        if incomplete(x):  # missing entries are set to the column's mean, and the scale is corrected
            some = torch.where(some.isnan(), mean, some)
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        from sklearn.cluster import kmeans_plusplus  # imported here, as it takes half a second

        seed = int(torch.randint(2**31 - 1, ()))
        chosen = kmeans_plusplus((some / unit).cpu().numpy(), self.components, sample_weight=own, random_state=seed)[1]
        variance = unit.square()
        self.mean = some[torch.as_tensor(chosen, device=x.device)]
        self.weight = torch.full_like(self.weight, 1 / self.components)
        if self.covariance in ("full", "tied"):
            centred = some - (some.mean(0) if weights is None else mean)
            if incomplete(x) or weights is not None:
                narrow = centred.square().mean(0).sqrt()
                centred = centred * torch.where(narrow > 0, unit / narrow, 1.0)
            covariance = centred.T @ centred / len(some)
            ridge = torch.diag(1e-6 * variance)
            self.scale = torch.linalg.cholesky(covariance + ridge).expand(self.scale.shape).clone()
        else:
            level = variance.sqrt() if self.covariance == "diag" else math.sqrt(variance.mean())
            self.scale = torch.ones_like(self.scale) * level
