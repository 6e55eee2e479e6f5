"""Moments of the posterior by importance-weighted draws from the guide."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from zoo.base.checks import ArrayLike
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.tables import row_names
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.guide.moments import flat, own_moments, units_of, weighted_moments
from zoo.diagnostics.guide.shared_moments import LIMIT, SharedMoments, of_all_rows
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.evaluation import check_draws
from zoo.posterior.psis import psis_weights
from zoo.posterior.rowwise import row_draws

COLUMNS = ("khat", "ess", "guide_mean", "guide_covariance", "mean", "mean_se", "covariance")


@dataclass(frozen=True, eq=False)
class ImportanceMoments:
    r"""Moments of p(z | x) by Pareto-smoothed importance weights: the result of :func:`importance_moments`.

    .. math:: E[z \mid x] \approx \sum_s w_s z_s, \qquad w_s \propto p(x, z_s) / q(z_s \mid x), \qquad
              z_s \sim q(z \mid x)

    The corrected moments of rows with k-hat above ``limit`` are NaN. For models with shared sites, see
    :func:`importance_moments`; if k-hat of the shared sites is above the limit, the moments of all rows are NaN.

    Attributes:
        khat: k-hat of the weights of every row (n,). For a model with shared sites, that of the weights given a draw of
            these, the median over a few draws; NaN if rows have no sites of their own.
        ess: the effective number of draws (n,), :math:`1 / \sum_s w_s^2` of normalised weights; for a model with shared
            sites, that of the shared draws.
        guide_mean: the guide's mean (n, k), in closed form for a Gaussian or categorical q.
        guide_covariance: the guide's covariance (n, k, k).
        mean: the corrected mean (n, k).
        mean_se: its Monte Carlo standard error (n, k), :math:`(\sum_s w_s^2 (z_s - \mathrm{mean})^2)^{1/2}`.
        covariance: the corrected covariance (n, k, k).
        limit: the largest reliable k-hat for S draws.
        draws: draws per row S.
        units: the names of the k coordinates, as ``"z[0]"``.
        shared: the moments of the shared sites; None if there are none and the guide factorises over rows.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    khat: Tensor
    ess: Tensor
    guide_mean: Tensor
    guide_covariance: Tensor
    mean: Tensor
    mean_se: Tensor
    covariance: Tensor
    limit: float
    draws: int
    units: tuple[str, ...]
    shared: SharedMoments | None = None
    index: np.ndarray | None = None

    @property
    def refused(self) -> list[int]:
        """The indices of the rows whose corrected moments are NaN."""
        if not self.units:
            return []
        if self.shared is not None and self.shared.refused:
            return list(range(len(self.khat)))
        return (~(self.khat <= self.limit)).nonzero().flatten().tolist()

    def at(self, row: int) -> tuple[Tensor, Tensor]:
        """The corrected mean (k,) and covariance (k, k) of one row.

        Raises:
            IndexError: there is no such row.
            ValueError: k-hat of the row is above the limit.
        """
        n = len(self.khat)
        if not -n <= row < n:
            raise IndexError(f"row {row} is not among the {n} rows, counted from 0")
        if self.shared is not None and self.shared.refused:
            self.shared.moments()  # raises
        if not self.khat[row] <= self.limit:
            raise ValueError(
                f"row {row} has k-hat {float(self.khat[row]):.2f}, above {self.limit:.2f}: its importance-corrected "
                f"moments are unreliable with {self.draws} draws. Take more draws if k-hat is below 0.7, otherwise a "
                "richer guide (FullRank, Amortized with covariance='full', Flow), or zoo.nuts for these rows"
            )
        return self.mean[row], self.covariance[row]

    def summary(self) -> dict[str, float]:
        """Median k-hat, smallest effective number of draws, number of refused rows, and k-hat of the shared sites."""
        table = {"khat": float(self.khat.median()), "ess": float(self.ess.min()), "refused": float(len(self.refused))}
        return table if self.shared is None else table | {"khat_shared": self.shared.khat}

    def frame(self) -> pl.DataFrame:
        """One row per row of x and unit: k-hat, and the guide's and the corrected means and standard deviations."""
        n, k = self.mean.shape
        columns: dict[str, Any] = {
            "row": (np.arange(n) if self.index is None else self.index).repeat(k),
            "unit": list(self.units) * n,
            "khat": self.khat.repeat_interleave(k).tolist(),
        }
        for name in ("guide_", ""):
            columns[f"{name}mean"] = getattr(self, f"{name}mean").flatten().tolist()
            variance = getattr(self, f"{name}covariance").diagonal(dim1=-2, dim2=-1)
            columns[f"{name}deviation"] = variance.sqrt().flatten().tolist()
        return pl.DataFrame(columns | {"mean_se": self.mean_se.flatten().tolist()})

    def __repr__(self) -> str:
        n, lost = len(self.khat), len(self.refused)
        text = f"ImportanceMoments of {n} rows from {self.draws} draws"
        if self.shared is not None:
            return f"{text}: {self.shared}; {lost} row{'s' * (lost != 1)} refused (k-hat > {self.limit:.2f})"
        least = f"{float(self.ess.min()):.0f} to {float(self.ess.max()):.0f}"
        return (
            f"{text} each: median k-hat {float(self.khat.median()):.2f}, "
            f"effective draws {least}; {lost} row{'s' * (lost != 1)} refused (k-hat > {self.limit:.2f})"
        )


@on_suited_threads
def importance_moments(
    run: Trained, x: ArrayLike, *, draws: int = 1000, inner: int | None = None, seed: int = 0
) -> ImportanceMoments:
    r"""Correct the guide's mean and covariance of every row by Pareto-smoothed importance sampling.

    The k coordinates of a row are those of all its latent sites in constrained space, concatenated. A discrete site
    with K values is represented by K indicators, so that its mean is the vector of probabilities.

    For a model with shared sites :math:`\theta`, draws of these have one set of weights, as in :func:`zoo.evaluate`,
    and a row's own sites are weighted given each of them, by M = ``inner`` draws:

    .. math:: w_s \propto \frac{p(\theta_s)}{q(\theta_s)} \prod_n \hat p(x_n \mid \theta_s), \qquad
              v_{snj} \propto \frac{p(x_n, z_{snj} \mid \theta_s)}{q(z_{snj} \mid \theta_s)}, \qquad
              E[z_n \mid X] \approx \sum_s w_s \sum_{j=1}^M v_{snj} z_{snj},

    with :math:`\hat p(x_n \mid \theta_s)` the mean of the row's M raw weights, or exact if the model has
    ``log_marginal_given`` (v then has a bias of order 1 / M). A guide that draws all rows jointly (Pyro's joint
    autoguides) has one set of weights for everything, :math:`w_s \propto p(\theta_s, z_s, X) / q(\theta_s, z_s)`.

    Args:
        run: a trained pair.
        x: rows (n, d).
        draws: draws per row, or of the shared sites, at least 30. More draws support a higher k-hat, up to 0.7 for
            2155 draws and more.
        inner: draws of the rows' own sites for every draw of the shared ones, at least 30. None takes 100,
            or 30 for a model or guide that does not broadcast over draws.
        seed: of the draws.

    Raises:
        ValueError: too few draws, a guide without a density (a point mass), or weights that are NaN or infinite.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72); Yao, Vehtari,
        Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """
    run = pair_of(run)
    check_draws(draws, inner)
    index, x = row_names(x), rows_of(run, x)
    limit = min(LIMIT, 1 - 1 / math.log10(draws))
    shared = None
    with reading(run, seed):
        source = reader(run, x)
        local = source.layout.local
        width = x.shape[1] + sum(latent.cardinality or latent.shape.numel() for latent in local)
        chunks = list(source.chunks(rows_at_once(draws * width)))
        if source.layout.shared or source.draw(chunks[0][1], 2).joint is not None:
            columns, shared = of_all_rows(source, draws, inner, limit)
        else:
            parts = [_of_rows(source, local, index, arguments, draws, limit) for index, arguments in chunks]
            columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    named = {name: column.to(x) for name, column in zip(COLUMNS, columns, strict=True)}
    return ImportanceMoments(**named, limit=limit, draws=draws, units=units_of(local), shared=shared, index=index)


def _of_rows(
    source: Reader, found: tuple[Latent, ...], index: Tensor, arguments: Arguments, draws: int, limit: float
) -> tuple[Tensor, ...]:
    """The fields of :class:`ImportanceMoments` for a chunk of rows."""
    drawn, logs = row_draws(source, arguments, draws, "importance_moments")  # (draws, b)
    _check_weights(logs, index)
    values = source.complete(arguments, drawn, draws)
    smoothed, khat = psis_weights(logs)
    weight = smoothed.double().exp()
    z = torch.cat([flat(values[latent.name], latent).double() for latent in found], -1)  # (draws, b, k)
    mean, covariance = weighted_moments(z, weight)
    error = (weight.square().unsqueeze(-1) * (z - mean).square()).sum(0).sqrt()
    own = own_moments(source, found, arguments) or weighted_moments(z, torch.full_like(weight, 1 / draws))
    for corrected in (mean, covariance, error):
        corrected[~(khat <= limit)] = math.nan
    return khat, 1 / weight.square().sum(0), *own, mean, error, covariance


def _check_weights(logs: Tensor, index: Tensor) -> None:
    """Refuse log weights (draws, b) that are not usable, with the index of the row.

    Raises:
        ValueError: a row has NaN, +inf or only -inf.
    """
    wrong = index[logs.isnan().any(0) | ~logs.amax(0).isfinite()]
    if len(wrong):
        raise ValueError(
            f"the log weights of row {int(wrong[0])} are NaN, inf, or all -inf (and of {len(wrong) - 1} more rows): "
            "look for draws outside the model's support, or for NaN among the parameters"
        )
