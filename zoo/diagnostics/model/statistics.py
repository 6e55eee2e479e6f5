"""Column statistics of a table with missing entries (NaN), in float64."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor


def _of_columns(function: Callable[[np.ndarray], Any]) -> Callable[[Tensor], Tensor]:
    """A statistic of a tensor (n, d) from one of an array; NaN without a warning if it is undefined."""

    def statistic(table: Tensor) -> Tensor:
        values = table.detach().cpu().double().numpy()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # empty or constant columns
            return torch.as_tensor(np.asarray(function(values), dtype=float)).to(table.device)

    return statistic


def _quantiles(values: np.ndarray, points: Any) -> np.ndarray:
    """Quantiles over the first dimension, ignoring NaN; by the faster function if there is no NaN."""
    quantile = np.nanquantile if np.isnan(values).any() else np.quantile
    return np.asarray(quantile(values, points, axis=0))


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _of_columns(lambda values: np.nanmean(values, 0)),
    "standard deviation": _of_columns(lambda values: np.nanstd(values, 0)),
    "skewness": _of_columns(lambda values: scipy.stats.skew(values, 0, nan_policy="omit")),
    "excess kurtosis": _of_columns(lambda values: scipy.stats.kurtosis(values, 0, nan_policy="omit")),
    "quantile 5%": _of_columns(lambda values: _quantiles(values, 0.05)),
    "median": _of_columns(lambda values: _quantiles(values, 0.5)),
    "quantile 95%": _of_columns(lambda values: _quantiles(values, 0.95)),
}


def column_quantiles(table: Tensor, points: Tensor) -> Tensor:
    """Quantiles of every column (q, d), ignoring missing entries; NaN for empty columns."""
    return _of_columns(lambda values: _quantiles(values, points.cpu().numpy()))(table)


def nan_quantile(values: Tensor, point: float) -> Tensor:
    """A quantile over the first dimension, ignoring NaN."""
    return _of_columns(lambda array: _quantiles(array, point))(values)


def correlation(table: Tensor) -> Tensor:
    """Correlations of all pairs i < j (d, d), from complete pairs; NaN elsewhere."""
    table = table.double()
    seen = ~table.isnan()
    present = seen.double()
    centred = torch.where(seen, table - table.nansum(0) / present.sum(0), 0.0)
    count = present.T @ present
    mean = centred.T @ present / count  # of column i over rows in which j is observed
    cross = centred.T @ centred / count - mean * mean.T
    variance = centred.square().T @ present / count - mean.square()
    found = cross / (variance * variance.T).clamp_min(0.0).sqrt()
    return torch.where(torch.ones_like(found).triu(1).bool() & found.isfinite(), found, torch.nan)
