"""Construction of likelihoods from their names and settings."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from zoo.base.checks import check_whole
from zoo.likelihoods.gaussian import Covariance, Gaussian
from zoo.likelihoods.kinds import LIKELIHOODS
from zoo.likelihoods.mixed import Mixed

Noise = Literal["network", "constant"]


def build(
    kind: str | Sequence[str],
    data_dim: int,
    floor: float = 1e-3,
    covariance: Covariance = "diag",
    rank: int = 1,
) -> nn.Module:
    """The likelihood with the given name, or with d names, one per column.

    Args:
        kind: one of ``LIKELIHOODS``, or a sequence of them.
        data_dim: number of columns d.
        floor: the smallest variance, as a fraction of the variance in the data.
        covariance: covariance of the columns given z; only ``"gaussian"`` supports others than ``"diag"``.
        rank: columns of the factor of ``"low_rank"``.

    Raises:
        ValueError: an argument is invalid; the message names it, and the column.
    """
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be a positive fraction of the variance, got {floor!r}")
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance must be one of {', '.join(get_args(Covariance))}; got {covariance!r}")
    rank = check_whole(rank, "rank")
    known = ", ".join(LIKELIHOODS)
    if isinstance(kind, str):
        if kind not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {known}, or a sequence of them; got {kind!r}")
        if kind == "gaussian":
            return Gaussian(data_dim, floor, covariance, rank)
    if covariance != "diag":
        what = repr(kind) if isinstance(kind, str) else "several kinds of columns"
        raise ValueError(
            f"covariance={covariance!r} is for likelihood='gaussian' only: given z, the columns of {what} are "
            "independent; use covariance='diag'"
        )
    if isinstance(kind, str):
        return LIKELIHOODS[kind](data_dim, floor)
    names = list(kind)
    if len(names) != data_dim:
        raise ValueError(
            f"likelihood has {len(names)} names for {data_dim} columns: pass one per column, or a single name"
        )
    for column, name in enumerate(names):
        if not isinstance(name, str) or name not in LIKELIHOODS:
            raise ValueError(f"likelihood of column {column} must be one of {known}; got {name!r}")
    return Mixed(names, floor)
