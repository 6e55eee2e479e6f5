"""Factor scores by Thurstone's regression and by Bartlett's method, in rotated coordinates."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor

from zoo.alignment.rotated import RotatedFactors, Rotations, rotate
from zoo.alignment.symmetry import model_of
from zoo.base.callables import PyroCallable
from zoo.base.checks import ArrayLike, check_rows
from zoo.base.memory import rows_at_once
from zoo.base.pairs import known_columns
from zoo.base.tables import row_names
from zoo.infer.run import Fit

Method = Literal["regression", "bartlett"]
UNSEEN = 1e-10  # information on a factor, in units of its prior, below which the observed columns do not determine it


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of rows on rotated factors; the result of :func:`scores`.

    Attributes:
        values: the scores (n, k), in float64 on the CPU; NaN where the observed columns of a row do not determine them.
        method: ``"regression"`` or ``"bartlett"``.
        rotated: the factors.
        index: the names of the rows, or None.
    """

    values: Tensor
    method: Method
    rotated: RotatedFactors
    index: np.ndarray | None = None

    def summary(self) -> dict[str, float]:
        """The numbers of rows and factors, and of rows without scores."""
        n, k = self.values.shape
        return {"rows": float(n), "factors": float(k), "missing": float(self.values.isnan().any(1).sum())}

    def frame(self) -> pl.DataFrame:
        """A line per row: its name or number, and its score on every factor."""
        names = range(len(self.values)) if self.index is None else self.index
        columns = {name: self.values[:, j].numpy() for j, name in enumerate(self.rotated.factors)}
        return pl.DataFrame({"row": names, **columns})

    def __repr__(self) -> str:
        n, k = self.values.shape
        return f"Scores of {n} rows on {k} factor{'s' * (k != 1)} ({self.rotated.rotation}), by {self.method}"


@torch.no_grad()
def scores(
    fitted: PyroCallable | Fit,
    x: ArrayLike,
    *,
    rotation: Rotations | RotatedFactors = "principal",
    method: Method = "regression",
) -> Scores:
    r"""Scores of rows on the factors of PPCA or factor analysis, in any rotation.

    With the posterior mean m and covariance V of a row's factors: ``"regression"`` (Thurstone) are the posterior means
    themselves, whose variance is below 1; ``"bartlett"`` the estimates of maximum likelihood given the loadings,
    :math:`(W^T \Psi^{-1} W)^{-1} W^T \Psi^{-1} (x - \mu) = (I - V)^{-1} m`, which are unbiased given the factors. Both
    are then rotated. They are computed from the model, whatever the guide, and from the observed entries of each row.

    Args:
        fitted: a fitted PPCA or FactorAnalysis, a run, or the result of :func:`zoo.em`.
        x: rows (n, d); the index of a data frame is kept.
        rotation: a rotation by name, or the result of :func:`zoo.alignment.rotate` for this model.
        method: ``"regression"`` or ``"bartlett"``.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: an unknown method or rotation, factors of another model, or unfit rows.

    References:
        Thomson (1951), The Factorial Analysis of Human Ability; Bartlett (1937), The statistical conception of mental
        factors, British Journal of Psychology 28.

    >>> import torch, zoo
    >>> x = zoo.data.load("holzinger", dtype=torch.float64)
    >>> run = zoo.em(zoo.FactorAnalysis(9, 3).double(), x)
    >>> scores(run, x, rotation="oblimin", method="bartlett")
    Scores of 301 rows on 3 factors (oblimin), by bartlett
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be 'regression' or 'bartlett', got {method!r}")
    rotated = rotation if isinstance(rotation, RotatedFactors) else rotate(fitted, rotation)
    known_columns(fitted, x)
    model: Any = model_of(fitted)
    rows = check_rows(x, model, exact=True)
    exact = copy.deepcopy(model).double()
    k = rotated.transform.shape[0]
    if exact.weight.shape != rotated.pattern.shape:
        raise ValueError(
            f"rotation is of {len(rotated.pattern)} columns and {k} factors, the model has {tuple(exact.weight.shape)}"
        )
    parts = []
    for part in rows.split(rows_at_once(rows.shape[1] * k)):
        q = exact.posterior(part)
        found = q.mean if method == "regression" else _unshrunk(q.mean, q.covariance_matrix)
        parts.append(found.cpu() @ rotated.transform)
    return Scores(torch.cat(parts), method, rotated, row_names(x))


def _unshrunk(mean: Tensor, covariance: Tensor) -> Tensor:
    """Bartlett's scores (n, k) from posterior means (n, k) and covariances (n, k, k); NaN where there are none."""
    values, vectors = torch.linalg.eigh(covariance)  # of the posterior; 1 where nothing is known
    known = 1 - values
    scale = torch.where(known > UNSEEN, 1 / known, torch.full_like(known, torch.nan))
    along = (vectors.mT @ mean.unsqueeze(-1)).squeeze(-1) * scale  # (n, k)
    return (vectors @ along.unsqueeze(-1)).squeeze(-1)
