"""The interface to ArviZ; no other module imports it.

ArviZ 0.20 to 0.23 (Python 3.11) and 1.x (Python 3.12) differ in the container, the sign convention of their Pareto
smoothing and the class of their LOO results: :func:`assemble`, :func:`smooth` and :func:`elpd_data` handle these.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


def load() -> Any:
    """The arviz module, imported without its announcement of version 1, which this package supports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=r"\s*ArviZ is undergoing")
        import arviz
    return arviz


def major() -> int:
    """ArviZ's major version: 0 or 1."""
    return int(load().__version__.split(".")[0])


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed log weights (rows, draws), up to a constant per row, and k-hat (rows,).

    Args:
        log_weights: (rows, draws); not modified.
    """
    if major() < 1:
        smoothed, khat = load().psislw(log_weights)
    else:  # expects log-likelihoods, the negative of log weights
        from arviz_stats.base import array_stats

        smoothed, khat = array_stats.psislw(-log_weights, axis=-1)
    return np.asarray(smoothed), np.asarray(khat)


def assemble(datasets: "Mapping[str, xarray.Dataset]", attrs: Mapping[str, Any]) -> Any:
    """The ArviZ object with these groups: an ``InferenceData`` (0.x) or a ``DataTree`` (1.x).

    Args:
        datasets: the groups by name.
        attrs: the attributes of the object.
    """
    if major() < 1:
        return load().InferenceData(attrs=dict(attrs), **datasets)
    import xarray

    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attrs)), **datasets})


def elpd_data(log_density: np.ndarray) -> Any:
    """ArviZ's result object for a log density per row (n,), which ``az.compare`` takes."""
    import xarray

    n = len(log_density)
    total, error = float(log_density.sum()), float(np.sqrt(n * log_density.var()))
    each = xarray.DataArray(log_density, dims="row")
    common = {"se": error, "n_samples": 1, "n_data_points": n, "warning": False, "scale": "log", "good_k": 0.7}
    if major() < 1:
        from arviz.stats.stats_utils import ELPDData

        return ELPDData({"elpd_loo": total, "p_loo": 0.0, "loo_i": each.rename("loo_i"), **common})
    from arviz_stats.utils import ELPDData

    kind = {"kind": "loo"} if "kind" in ELPDData.__dataclass_fields__ else {}  # 1.0 to 1.2
    return ELPDData(elpd=total, p=0.0, elpd_i=each, **common, **kind)
