"""How many factors the eigenvalues of the correlations suggest: parallel analysis, Velicer's MAP, Kaiser's rule."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.moments import Moments

DRAWS = 200  # simulated tables


@dataclass(frozen=True, eq=False)
class Retention:
    """Numbers of factors by the eigenvalues of the correlation matrix; the result of :func:`factor_retention`.

    Attributes:
        components: the eigenvalues of the correlation matrix, in decreasing order (d,).
        components_limit: their quantiles in simulated tables of independent columns (d,).
        factors: the eigenvalues of the correlation matrix with squared multiple correlations on its diagonal (d,).
        factors_limit: their quantiles (d,).
        partial: the mean squared partial correlation with the leading 0, 1, ..., d - 2 components removed (d - 1,).
        quantile: the level of the quantiles.
        n: the number of rows.
    """

    components: np.ndarray
    components_limit: np.ndarray
    factors: np.ndarray
    factors_limit: np.ndarray
    partial: np.ndarray
    quantile: float
    n: float

    @property
    def parallel(self) -> int:
        """Horn's parallel analysis of principal components: leading eigenvalues above the quantile."""
        return _leading(self.components > self.components_limit)

    @property
    def parallel_factors(self) -> int:
        """Parallel analysis of common factors."""
        return _leading(self.factors > self.factors_limit)

    @property
    def map(self) -> int:
        """Velicer's minimum average partial: the number of components that leaves the smallest partial correlations."""
        return int(np.nanargmin(self.partial))

    @property
    def kaiser(self) -> int:
        """The number of eigenvalues above 1. It keeps too many factors of many columns."""
        return int((self.components > 1).sum())

    def summary(self) -> dict[str, float]:
        """The number of factors by every rule."""
        return {name: float(getattr(self, name)) for name in ("parallel", "parallel_factors", "map", "kaiser")}

    def frame(self) -> pl.DataFrame:
        """A row per eigenvalue, counted from 1, with its quantile, and the partial correlations with one fewer."""
        return pl.DataFrame(
            {
                "number": range(1, len(self.components) + 1),
                "component": self.components,
                "component_limit": self.components_limit,
                "factor": self.factors,
                "factor_limit": self.factors_limit,
                "partial_before": [*self.partial.tolist(), None],
            }
        )

    def __repr__(self) -> str:
        return (
            f"Parallel analysis ({100 * self.quantile:g}% quantile): {self.parallel} components, "
            f"{self.parallel_factors} common factors; Velicer's MAP: {self.map}; eigenvalues above 1: {self.kaiser}"
        )


def factor_retention(x: ArrayLike | Moments, *, draws: int = DRAWS, quantile: float = 0.95, seed: int = 0) -> Retention:
    r"""The number of factors by parallel analysis, by Velicer's minimum average partial, and by eigenvalues above 1.

    Parallel analysis compares the eigenvalues of the correlation matrix with those of simulated tables of n rows of
    independent normal columns, and keeps the leading ones that exceed a quantile. Common factors are taken from the
    correlation matrix with squared multiple correlations on its diagonal, in the data and in the simulations.

    Args:
        x: complete rows (n, d), or their moments.
        draws: the number of simulated tables.
        quantile: in (0, 1).
        seed: of the simulation; the caller's random stream is left unchanged.

    Raises:
        ValueError: entries are missing, a column is constant, there is one column only or too few rows, or an argument
            is out of range.

    References:
        Horn (1965), A rationale and test for the number of factors in factor analysis, Psychometrika 30; Humphreys and
        Montanelli (1975), An investigation of the parallel analysis criterion, Multivariate Behavioral Research 10;
        Velicer (1976), Determining the number of components from the matrix of partial correlations, Psychometrika 41.

    >>> import torch, zoo
    >>> factor_retention(zoo.data.load("holzinger", dtype=torch.float64).x)
    Parallel analysis (95% quantile): 3 components, 3 common factors; Velicer's MAP: 2; eigenvalues above 1: 3
    """
    check_whole(draws, "draws", 20)
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be in (0, 1), got {quantile!r}")
    covariance, n = _covariance(x)
    d = len(covariance)
    spread = np.sqrt(covariance.diagonal())
    if d < 2 or n <= d or not (spread > 0).all():
        raise ValueError(
            f"the number of factors by eigenvalues needs at least two columns that vary, and more rows than columns; x "
            f"has {n:g} rows and {d} columns, {int((spread <= 0).sum())} of them constant"
        )
    correlation = covariance / np.outer(spread, spread)
    simulated = _simulated(int(n), d, draws, seed)
    return Retention(
        components=_eigenvalues(correlation),
        components_limit=np.quantile(_eigenvalues(simulated), quantile, axis=0),
        factors=_eigenvalues(_reduced(correlation)),
        factors_limit=np.quantile(_eigenvalues(_reduced(simulated)), quantile, axis=0),
        partial=_partial(correlation),
        quantile=float(quantile),
        n=n,
    )


def _covariance(x: ArrayLike | Moments) -> tuple[np.ndarray, float]:
    """The covariance (d, d) of the rows, and their number."""
    if not isinstance(x, Moments):
        x = Moments.of(check_rows(x, least=3, exact=True))
    return x.covariance.double().cpu().numpy(), x.count


def _simulated(n: int, d: int, draws: int, seed: int) -> np.ndarray:
    """Correlation matrices (draws, d, d) of n rows of independent normal columns, by Bartlett's decomposition."""
    generator = np.random.default_rng(seed)
    root = np.tril(generator.standard_normal((draws, d, d)), -1)
    diagonal = np.sqrt(generator.chisquare(n - 1 - np.arange(d), (draws, d)))
    root[:, np.arange(d), np.arange(d)] = diagonal
    root /= np.sqrt((root**2).sum(-1, keepdims=True))  # of rows of length 1
    simulated: np.ndarray = root @ root.swapaxes(-1, -2)
    return simulated


def _reduced(correlation: np.ndarray) -> np.ndarray:
    """Correlation matrices (..., d, d) with squared multiple correlations on their diagonals."""
    d = correlation.shape[-1]
    ridged = correlation + 1e-10 * np.eye(d)
    unique = 1 / np.linalg.inv(ridged).diagonal(axis1=-2, axis2=-1)  # (..., d)
    reduced: np.ndarray = correlation - unique[..., None] * np.eye(d)
    return reduced


def _eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """The eigenvalues of symmetric matrices (..., d, d), in decreasing order (..., d)."""
    return np.linalg.eigvalsh(matrices)[..., ::-1]


def _partial(correlation: np.ndarray) -> np.ndarray:
    """The mean squared partial correlation with the leading 0, ..., d - 2 components removed (d - 1,)."""
    values, vectors = np.linalg.eigh(correlation)
    loadings = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1]  # (d, d)
    d, found = len(correlation), []
    for m in range(d - 1):
        rest = correlation - loadings[:, :m] @ loadings[:, :m].T
        variance = rest.diagonal()
        if (variance <= 1e-10).any():
            found.append(math.nan)
            continue
        partial = rest / np.sqrt(np.outer(variance, variance))
        found.append(float(((partial**2).sum() - d) / (d * (d - 1))))
    return np.array(found)


def _leading(above: np.ndarray) -> int:
    """The number of leading True values."""
    return len(above) if above.all() else int(above.argmin())
