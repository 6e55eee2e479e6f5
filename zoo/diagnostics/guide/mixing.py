"""Convergence diagnostics of Markov chains, by ArviZ."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.compat.container import load


def chain_diagnostics(values: Tensor) -> dict[str, Tensor]:
    """R-hat, effective sample sizes and Monte Carlo standard errors of every coordinate.

    Args:
        values: (chains, draws, ...), at least two chains and four draws.

    Returns:
        ``rhat`` (rank-normalised), ``ess_bulk``, ``ess_tail``, and the standard errors ``mean_se`` and
        ``deviation_se`` of mean and standard deviation over all draws; each (...), in float64.

    Raises:
        ValueError: too few chains or draws.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization: an
        improved R-hat for assessing convergence of MCMC, Bayesian Analysis 16(2).
    """
    if values.ndim < 2 or values.shape[0] < 2 or values.shape[1] < 4:
        raise ValueError(f"values has shape {tuple(values.shape)}: pass at least two chains of four draws")
    import xarray  # imported here, as it takes half a second

    shape = values.shape[2:]
    array = values.detach().double().flatten(2) if shape else values.detach().double().unsqueeze(-1)
    dataset = xarray.Dataset({"z": (("chain", "draw", "number"), array.cpu().numpy())})
    arviz: Any = load()
    with np.errstate(divide="ignore", invalid="ignore"):  # a chain that never moved has an infinite R-hat
        found = {
            "rhat": arviz.rhat(dataset),
            "ess_bulk": arviz.ess(dataset, method="bulk"),
            "ess_tail": arviz.ess(dataset, method="tail"),
            "mean_se": arviz.mcse(dataset, method="mean"),
            "deviation_se": arviz.mcse(dataset, method="sd"),
        }
    return {name: torch.tensor(np.asarray(part["z"])).reshape(shape) for name, part in found.items()}
