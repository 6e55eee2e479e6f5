"""Models on data sets with a known optimum: conjugate ones by EM, Bayesian ones by coordinate ascent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis
from sklearn.mixture import GaussianMixture
from torch import Tensor

import guides
from zoo import data
from zoo.base.module import Module
from zoo.infer.asked import Start
from zoo.models.bayesian_factor_analysis import BayesianFactorAnalysis
from zoo.models.bayesian_gmm import BayesianGMM
from zoo.models.bayesian_pca import BayesianPCA
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.gmm import GMM
from zoo.models.ppca import PPCA

BOTH: tuple[Start, ...] = ("random", "data")
STARTS = 10  # random starts of a mixture, for EM, SVI and scikit-learn


@dataclass(frozen=True, eq=False)
class Problem:
    """A model on a data set.

    Attributes:
        data: the name of the data set.
        rows: returns the data (n, d) in float64.
        model: the class of the model.
        sizes: its arguments by name beside the number of columns.
        scikit: returns scikit-learn's estimator for a seed; None if there is none.
    """

    data: str
    rows: Callable[[], Tensor]
    model: type[Any]
    sizes: Mapping[str, Any]
    scikit: Callable[[int], Any] | None = None

    @property
    def name(self) -> str:
        """Data set, model and sizes."""
        return " ".join([self.data, self.model.__name__, *map(str, self.sizes.values())])

    @property
    def mixture(self) -> bool:
        """Whether the likelihood has several maxima, so that the best of several starts is taken."""
        return "components" in self.sizes

    @property
    def bayesian(self) -> bool:
        """Whether the parameters have priors, so that the reference is coordinate ascent and not EM."""
        return self.model in (BayesianPCA, BayesianFactorAnalysis, BayesianGMM)

    def build(self, columns: int) -> Module:
        """A fresh model."""
        built: Module = self.model(columns, **self.sizes)
        return built


def simulated() -> Tensor:
    """1000 rows x 20 columns from 5 factors with noise variances between 0.25 and 2.25, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    scale = 0.5 + torch.rand(20, generator=generator, dtype=torch.float64)
    return z @ weight.T + scale * torch.randn(1000, 20, generator=generator, dtype=torch.float64)


def digits() -> Tensor:
    """scikit-learn's digits without constant columns: 1797 rows x 61 columns."""
    x = data.load("digits", dtype=torch.float64).x
    return x[:, x.amax(0) > x.amin(0)]


def _rows(name: str) -> Callable[[], Tensor]:
    known = {"simulated": simulated, "digits": digits}
    return known.get(name, lambda: data.load(name, dtype=torch.float64).x)


def _factors(name: str, cls: type[Any], k: int) -> Problem:
    def scikit(seed: int) -> Any:
        if cls is PPCA:
            return PCA(k, svd_solver="full")
        return ScikitFactorAnalysis(k, svd_method="lapack", tol=1e-8, max_iter=100_000)

    return Problem(name, _rows(name), cls, {"latent_dim": k}, scikit)


def _mixture(name: str, k: int, covariance: Any) -> Problem:
    def scikit(seed: int) -> Any:
        return GaussianMixture(
            k, covariance_type=covariance, tol=1e-10, max_iter=10_000, n_init=STARTS, random_state=seed
        )

    return Problem(name, _rows(name), GMM, {"components": k, "covariance": covariance}, scikit)


CONJUGATE = (
    *(_factors("iris", PPCA, k) for k in (1, 2, 3)),
    *(_factors("holzinger", cls, k) for cls in (PPCA, FactorAnalysis) for k in (1, 2)),
    *(_factors("simulated", cls, 5) for cls in (PPCA, FactorAnalysis)),
    _mixture("faithful", 2, "full"),
    _mixture("faithful", 3, "tied"),
    _mixture("iris", 2, "full"),
    *(_factors("digits", cls, 10) for cls in (PPCA, FactorAnalysis)),
)
BAYESIAN = (
    Problem("iris", _rows("iris"), BayesianPCA, {"latent_dim": 2}),
    Problem("iris", _rows("iris"), BayesianFactorAnalysis, {"latent_dim": 1}),
    Problem("faithful", _rows("faithful"), BayesianGMM, {"components": 3}),
)

PROBLEMS = {problem.name: problem for problem in (*CONJUGATE, *BAYESIAN)}

GUIDES: dict[str, Callable[[Module, Tensor], Module]] = {
    "Exact": lambda model, x: guides.Exact(model),
    "FullRank": lambda model, x: guides.FullRank(model, x),
    "MeanField": lambda model, x: guides.MeanField(model, x),
    "Amortized linear": lambda model, x: guides.Amortized(model, x, hidden=()),
    "Amortized 64-64": lambda model, x: guides.Amortized(model, x, hidden=(64, 64)),
}
