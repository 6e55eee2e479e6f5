import copy
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import Distribution, constraints

from zoo.algebra import missing_mixture, mixture
from zoo.algebra.linear_gaussian import refuse_constant_columns
from zoo.algebra.missing import Imputation, Incomplete, Sorted, refuse_unobserved_columns
from zoo.algebra.mixture import WeightedRows
from zoo.algebra.mixture_covariances import (
    SINGULAR,
    SLACK,
    Covariance,
    bounded,
    column_variances,
    deviations,
    is_matrix,
    is_tied,
    kind_of,
    scale_shape,
    scatter,
    scatter_of,
    vanished,
)
from zoo.base.checks import ArrayLike, check_rows, check_whole, incomplete
from zoo.base.module import Module, like
from zoo.base.plates import rows
from zoo.base.weights import check_weights
from zoo.distributions.observed import seen
from zoo.models.mixture_checks import collapsed, describe, refuse_dependent_columns, refuse_few_places, refuse_singular
from zoo.models.mixture_starts import Placement, Start, drawn, given


class GMM(Module):
    r"""Gaussian mixture: every row is drawn from one of K components.

    .. math:: c_n \sim \mathrm{Cat}(\pi), \quad x_n \mid c_n = j \sim N(\mu_j, \Sigma_j)

    The covariances have one of six forms, named as here or as in R's mclust:

    =====================  ========  =====================================================  =====================
    ``covariance``         mclust    :math:`\Sigma_j`                                       shape of ``scale``
    =====================  ========  =====================================================  =====================
    ``"full"``             ``VVV``   a matrix per component                                 (K, D, D), Cholesky
    ``"tied"``             ``EEE``   one matrix for all                                     (D, D), Cholesky
    ``"diag"``             ``VVI``   a variance per component and column                    (K, D), sd
    ``"tied_diag"``        ``EEI``   a variance per column                                  (D,), sd
    ``"spherical"``        ``VII``   a variance per component                               (K,), sd
    ``"tied_spherical"``   ``EII``   one variance                                           (), sd
    =====================  ========  =====================================================  =====================

    The likelihood is unbounded where a component may shrink onto equal rows. It is therefore maximised under a floor:
    no component's covariance is below ``floor`` times the diagonal matrix of the columns' variances (spherical ones:
    their mean) in any direction, so that the columns' units do not matter. Elsewhere the floor has no effect. A
    component that ends there has collapsed: :func:`zoo.em` and :func:`zoo.fit` name it, its rows and columns, and do
    not report convergence. The columns' variances are those of the data on which the model was started
    (:meth:`initialize`, :meth:`start_from`); before, there is no floor.

    Missing entries (NaN) are assumed missing at random: every row contributes the density of its observed entries.

    Args:
        data_dim: number of columns D of the data.
        components: number of components K.
        covariance: the form of the covariances.
        floor: the smallest variance in any direction, as a fraction of the columns' variances; 0 for none.
        start: where a fresh model starts on the data: ``"kmeans"`` (the clusters of k-means), ``"k-means++"`` (rows
            that are far from each other) or ``"random"`` (any rows). :meth:`start_from` takes a start of your own, and
            :func:`zoo.best_of` the best of several: ``zoo.best_of(lambda: zoo.GMM(4, 3), x, seeds=10).best``.

    Raises:
        ValueError: a dimension is not a whole number of at least 1, ``floor`` is not in [0, 1), or ``covariance`` or
            ``start`` is not one of those above.

    References:
        McLachlan and Peel (2000), Finite Mixture Models; Bishop (2006), Pattern Recognition and Machine Learning, 9.2;
        Hathaway (1985), Annals of Statistics 13, for the floor; Scrucca, Fop, Murphy and Raftery (2016), mclust 5, The
        R Journal 8, for the forms of covariances; with missing entries Ghahramani and Jordan (1994), Supervised
        learning from incomplete data via an EM approach.
    """

    least: Tensor
    absent: ClassVar[Mapping[str, Any]] = {"floor": 0.0, "start": "k-means++"}

    missing = True  # accepts NaN, as entries missing at random
    weighted = True  # initialize and summarize accept weights of the rows
    quadratic = True  # no continuous latent variable: QuadratureELBO is exact

    def __init__(
        self,
        data_dim: int,
        components: int,
        covariance: Covariance | str = "full",
        *,
        floor: float = 1e-6,
        start: Start = "kmeans",
    ) -> None:
        super().__init__()
        self.data_dim = d = check_whole(data_dim, "data_dim")
        self.components = k = check_whole(components, "components")
        self.covariance = kind = kind_of(covariance)
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be a fraction of the variance in [0, 1), got {floor!r}")
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(get_args(Start))}; got {start!r}")
        self.floor, self.start = float(floor), start
        self.met_floor = False  # in the last step of EM
        matrix, shape = is_matrix(kind), scale_shape(kind, k, d)
        scale = torch.eye(d).expand(shape).clone() if matrix else torch.ones(shape)
        least = torch.zeros(1 if kind.endswith("spherical") else d)  # the floor of variances (d,) or (1,)
        self.register_buffer("least", least, persistent=floor > 0)
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
            chosen = scale if is_tied(self.covariance) else scale[component]
            return pyro.sample("x", seen(self._density(mean[component], chosen), x), obs=x)  # (..., n, d)

    def _density(self, mean: Tensor, scale: Tensor) -> dist.TorchDistribution:
        """N(mean, Sigma) for means (..., d) and scales in the form of ``covariance``."""
        if is_matrix(self.covariance):
            return dist.MultivariateNormal(mean, scale_tril=scale)
        return dist.Normal(mean, scale.unsqueeze(-1) if self.covariance == "spherical" else scale).to_event(1)

    def log_joint(self, x: Tensor) -> Tensor:
        r""":math:`\log p(x, c = j)` for every row and component (n, k)."""
        x = like(x, self)
        if incomplete(x) and is_matrix(self.covariance):
            return missing_mixture.joint(x, self.weight.log(), self.mean, self._covariances())
        x = x.unsqueeze(-2)  # (n, 1, d)
        return self.weight.log() + seen(self._density(self.mean, self.scale), x).log_prob(x)

    def _covariances(self) -> Tensor:
        """Sigma of every component: matrices (k, d, d), or variances (k, d)."""
        scale, (k, d) = self.scale, self.mean.shape
        if is_matrix(self.covariance):
            return (scale @ scale.mT).expand(k, d, d)
        return deviations(scale, self.covariance, k, d).square()

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
        gain = torch.where(q.probs > 0, self.log_joint(x) - q.logits, 0.0)  # of an empty component both may be -inf
        return (q.probs * gain).sum(-1)

    @torch.no_grad()
    def impute(self, x: ArrayLike) -> Imputation:
        r"""Conditional mean :math:`E[x_m \mid x_o]` and variance of the missing entries (NaN) of rows (n, d)."""
        rows = check_rows(x, self)
        if not incomplete(rows):
            return Imputation(rows.clone(), torch.zeros_like(rows)).named(x)
        found = missing_mixture.impute(rows, self.weight.log(), self.mean, self._covariances())
        return found.named(x)

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
            FloatingPointError: a component has lost all its rows; without a floor, one has collapsed onto so few that
                its covariance is singular and the likelihood unbounded; or the covariances before the step are below
                the floor.
        """
        data = self.summarize(x) if isinstance(x, Tensor) else x
        weight, mean, scale = self.weight, self.mean, self.scale
        if isinstance(data, Sorted):
            found = missing_mixture.expect(data, weight.log(), mean, self._covariances())
        else:
            rows, weights = data if isinstance(data, WeightedRows) else (data, None)
            found = mixture.expect(rows, weight, mean, scale, self.covariance, weights)
        counts = found.counts
        if not counts.min().item() >= 1e-8:
            lost = int((~(counts >= 1e-8)).nonzero()[0])
            raise FloatingPointError(f"component {lost} has lost all its rows: use fewer components or another seed")
        shift = found.first / counts.unsqueeze(-1)  # (k, d)
        new, share = found.centre + shift, counts / counts.sum()
        self.scale = self._scale(scatter(counts, found.second, shift, self.covariance), new, share).to(scale)
        self.mean, self.weight = new.to(mean), share.to(weight)
        return found.total

    def _scale(self, covariance: Tensor, mean: Tensor, share: Tensor) -> Tensor:
        """The M-step of ``scale``, from the components' scatter (c, d, d) or (c, d), with c = 1 where tied."""
        least = self.least.to(covariance)
        root, found = bounded(covariance, least)
        met = self.floor > 0 and bool(found)
        if met != self.met_floor:  # a module sets its attributes more slowly than it reads them
            self.met_floor = met
        if met and (low := bounded(scatter_of(self.scale, self.covariance), (1 - SLACK) * least)[1]):
            raise FloatingPointError(f"the covariance of component {low[0]} was below its floor")
        if not least[0].item() > 0:
            spread = column_variances(covariance, mean, share, self.covariance)
            refuse_singular(root, spread, tied=is_tied(self.covariance))
        return self._shaped(root)

    def _shaped(self, root: Tensor) -> Tensor:
        """Factors or deviations, (c, d, d), (c, d) or (c, 1), in the shape of ``scale``."""
        return root.reshape(scale_shape(self.covariance, self.components, self.data_dim))

    @torch.no_grad()
    def collapse(self, x: Tensor) -> str | None:
        """The first component whose covariance is at its floor, or singular, in words with its rows; None if none."""
        covariance = scatter_of(self.scale, self.covariance)
        spread = column_variances(covariance, self.mean.double(), self.weight.double(), self.covariance)
        least = torch.maximum(self.least.double(), SINGULAR * spread)
        if (j := collapsed(covariance, least)) is None:
            return None
        rows = None
        if not is_tied(self.covariance):
            exact = copy.deepcopy(self).double()
            rows = (exact.log_joint(x.double()).argmax(1) == j).nonzero().flatten().tolist()
        return describe(j, vanished(covariance[j], least), rows, self.floor if self.least.any() else 0.0, self.data_dim)

    @torch.no_grad()
    def raise_to_floor(self) -> None:
        """Raises covariances below the floor to it, in place."""
        self.scale = self._shaped(bounded(scatter_of(self.scale, self.covariance), self.least.double())[0]).to(
            self.scale
        )

    def check(self, x: Tensor) -> None:
        """Refuses data under which the likelihood has no maximum.

        Raises:
            ValueError: there are more components than distinct rows, constant columns, a column with fewer than two
                observed values or, for matrices, one that is a linear combination of others.
        """
        model = f"GMM(covariance={self.covariance!r})"
        if self.components > len(x):
            raise ValueError(f"components={self.components} exceeds the {len(x)} rows of x: use far fewer")
        refuse_unobserved_columns(x, model)
        if not self.covariance.endswith("spherical"):
            refuse_constant_columns(x, model)
        refuse_few_places(x, self.components)
        if is_matrix(self.covariance):
            refuse_dependent_columns(x, model)

    @torch.no_grad()
    def initialize(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Draws a random start on the data ``x`` (n, d): means as ``start`` says, with torch's global generator.

        Means and weights are those of the clusters of k-means, with the covariance within clusters for all components;
        or rows of the data, with equal weights and the covariance of all rows.
        """
        self._place(drawn(like(x, self), weights, self.components, self.covariance, self.start))

    @torch.no_grad()
    def start_from(
        self,
        x: Tensor,
        *,
        means: Tensor | None = None,
        responsibilities: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Sets a start of your own, from which :func:`zoo.em` and :func:`zoo.fit` continue.

        Args:
            x: the rows (n, d); missing entries count as the mean of their column.
            means: of the components (k, d), with equal weights and the covariance of all rows.
            responsibilities: of the components for every row (n, k): one M-step from these.
            labels: the component of every row (n,), 0 to k - 1, as responsibilities of 0 and 1.
            weights: how often every row counts (n,); None for once.

        Raises:
            ValueError: not exactly one of the three is given; or its shape or range is wrong.

        >>> import torch, zoo
        >>> x = zoo.data.load("faithful", dtype=torch.float64).x
        >>> model = zoo.GMM(2, 2).double()
        >>> model.start_from(x, labels=(x[:, 0] > 3).long())
        >>> round(zoo.em(model, x)[-1].item(), 5)
        -1130.26396
        """
        x = check_rows(x, self)
        own = None if weights is None else check_weights(weights, x)
        self._place(given(x, own, self.components, self.covariance, means, responsibilities, labels))

    def _place(self, start: Placement) -> None:
        """Sets parameters and floor."""
        spread = start.spread.mean(0, keepdim=True) if self.covariance.endswith("spherical") else start.spread
        self.least.copy_(self.floor * spread)
        root = bounded(start.covariance, self.least.double())[0]
        count = 1 if is_tied(self.covariance) else self.components
        self.weight, self.mean = start.weight.to(self.weight), start.mean.to(self.mean)
        self.scale = self._shaped(root.expand(count, *root.shape[1:]).clone()).to(self.scale)
