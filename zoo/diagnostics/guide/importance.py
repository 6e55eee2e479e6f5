"""What the posterior of every row would be if the guide's draws were weighted, and how far the guide is from it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent
from zoo.infer.fitting import Fit
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.evaluation import LEAST_DRAWS
from zoo.posterior.psis import psis_weights
from zoo.posterior.rowwise import conditional, gaussian, row_draws

BUDGET = 2**22  # numbers per array and chunk


LIMIT = 0.7  # of k-hat, however many the draws


COLUMNS = ("khat", "ess", "guide_mean", "guide_covariance", "mean", "mean_se", "covariance")


@dataclass(frozen=True, eq=False)
class ImportanceMoments:
    r"""Moments of p(z | x) by Pareto-smoothed importance weights: what :func:`importance_moments` returns.

    .. math:: E[z \mid x] \approx \sum_s w_s z_s, \qquad w_s \propto p(x, z_s) / q(z_s \mid x), \qquad
              z_s \sim q(z \mid x)

    Rows whose k-hat is above ``limit`` are refused: their corrected moments are NaN.

    Attributes:
        khat: the Pareto shape of the weights of every row (n,).
        ess: the effective number of draws (n,), :math:`1 / \sum_s w_s^2` of normalised weights.
        guide_mean: the guide's own mean (n, k), in closed form where q is Gaussian or categorical.
        guide_covariance: the guide's own covariance (n, k, k).
        mean: the corrected mean (n, k).
        mean_se: its Monte Carlo standard error (n, k), :math:`(\sum_s w_s^2 (z_s - \mathrm{mean})^2)^{1/2}`.
        covariance: the corrected covariance (n, k, k).
        limit: the least of 0.7 and :math:`1 - 1 / \log_{10} S` for S draws: above, the weights have too heavy a tail
            for that many draws.
        draws: draws per row S.
        units: what the k numbers are: site and place, as ``"z[0]"``.
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

    @property
    def refused(self) -> list[int]:
        """The numbers of the rows whose k-hat is above the limit, counted from 0."""
        return (~(self.khat <= self.limit)).nonzero().flatten().tolist()

    def at(self, row: int) -> tuple[Tensor, Tensor]:
        """The corrected mean (k,) and covariance (k, k) of one row.

        Raises:
            IndexError: there is no such row.
            ValueError: the row is refused.
        """
        n = len(self.khat)
        if not -n <= row < n:
            raise IndexError(f"row {row} is not among the {n} rows, counted from 0")
        if not self.khat[row] <= self.limit:
            raise ValueError(
                f"row {row} has k-hat {float(self.khat[row]):.2f}, above {self.limit:.2f}: no weighting of these "
                f"{self.draws} draws can be trusted there. Take more draws where k-hat is below 0.7, else a guide "
                "nearer to the posterior (FullRank, Amortized with covariance='full', Flow), or zoo.nuts for these rows"
            )
        return self.mean[row], self.covariance[row]

    def __repr__(self) -> str:
        n, lost = len(self.khat), len(self.refused)
        least = f"{float(self.ess.min()):.0f} to {float(self.ess.max()):.0f}"
        return (
            f"Importance of {n} rows from {self.draws} draws each: median k-hat {float(self.khat.median()):.2f}, "
            f"effective draws {least}; {lost} row{'s' * (lost != 1)} refused (k-hat > {self.limit:.2f})"
        )


def importance_moments(run: Fit, x: Any, draws: int = 1000, *, seed: int = 0) -> ImportanceMoments:
    r"""Correct the guide's mean and covariance of every row by Pareto-smoothed importance sampling.

    The k numbers of a row are those of all latent sites, one after the other, as the model sees them; a discrete site
    of K values counts as its K indicators, so that its mean is its probabilities.

    Args:
        run: what :func:`zoo.fit` or :func:`zoo.load` returned.
        x: rows (n, d); a guide with parameters for every row takes those it was fitted to, in their order.
        draws: draws per row, at least 25. The more, the higher a k-hat can be borne (up to 0.7 from 2155 on).
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: too few draws, a guide without a density, a site that all rows share, weights of a row that are no
            numbers, or rows that are not fit for model or guide.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72); Yao, Vehtari,
        Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference, ICML.
    """
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    x = check_rows(x, undecorated(run.model))
    limit = min(LIMIT, 1 - 1 / math.log10(draws))
    parts = []
    with reading(run, seed):
        source = reader(run, x)
        found = source.layout.latents
        width = sum(latent.cardinality or latent.shape.numel() for latent in found)
        for index, arguments in source.chunks(BUDGET // (draws * (x.shape[1] + width))):
            parts.append(_of_rows(source, found, index, arguments, draws, limit))
    columns = {name: torch.cat(column).to(x) for name, column in zip(COLUMNS, zip(*parts, strict=True), strict=True)}
    return ImportanceMoments(**columns, limit=limit, draws=draws, units=_units(found))


def _units(found: tuple[Latent, ...]) -> tuple[str, ...]:
    """The names of the numbers of a row."""
    counts = [(latent.name, latent.cardinality or latent.shape.numel()) for latent in found]
    return tuple(f"{name}[{j}]" for name, count in counts for j in range(count))


def flat(value: Tensor, latent: Latent) -> Tensor:
    """Values (draws, b, ...) of a site as numbers (draws, b, k); of a discrete one its indicators."""
    if latent.cardinality is not None:
        return torch.nn.functional.one_hot(value.long(), latent.cardinality).flatten(2).double()
    return value.flatten(2) if latent.shape else value.unsqueeze(-1)


def _of_rows(
    source: Reader, found: tuple[Latent, ...], index: Tensor, arguments: Arguments, draws: int, limit: float
) -> tuple[Tensor, ...]:
    """The columns of :class:`ImportanceMoments` for some rows."""
    values, logs = row_draws(source, arguments, draws, "importance_moments")  # (draws, b)
    _check_weights(logs, index)
    smoothed, khat = psis_weights(logs)
    weight = smoothed.double().exp()
    z = torch.cat([flat(values[latent.name], latent).double() for latent in found], -1)  # (draws, b, k)
    mean, covariance = _moments(z, weight)
    error = (weight.square().unsqueeze(-1) * (z - mean).square()).sum(0).sqrt()
    own = own_moments(source, found, arguments) or _moments(z, torch.full_like(weight, 1 / draws))
    for corrected in (mean, covariance, error):
        corrected[~(khat <= limit)] = math.nan
    return khat, 1 / weight.square().sum(0), *own, mean, error, covariance


def _check_weights(logs: Tensor, index: Tensor) -> None:
    """Refuse weights (draws, b) that are no numbers, with the number of the row.

    Raises:
        ValueError: a row with NaN, +inf or nothing but -inf.
    """
    wrong = index[logs.isnan().any(0) | ~logs.amax(0).isfinite()]
    if len(wrong):
        raise ValueError(
            f"the log weights of row {int(wrong[0])} hold NaN, inf, or nothing but -inf (and {len(wrong) - 1} rows "
            "more): look for draws outside the model's support, or for parameters that are no numbers"
        )


def _moments(z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (b, k) and covariance (b, k, k) of draws (draws, b, k) with normalised weights (draws, b)."""
    mean = (weight.unsqueeze(-1) * z).sum(0)
    offset = (z - mean) * weight.sqrt().unsqueeze(-1)
    offset = offset.transpose(0, 1)  # (b, draws, k)
    return mean, offset.mT @ offset


def own_moments(source: Reader, found: tuple[Latent, ...], arguments: Arguments) -> tuple[Tensor, Tensor] | None:
    """The guide's mean (b, k) and covariance (b, k, k) in closed form, where it has one site that is known to have one.

    A site off the real line has none here, whatever its distribution is before it is carried there.
    """
    if len(found) != 1 or (found[0].cardinality is None and found[0].transform is not None):
        return None
    try:
        q = conditional(source, found[0], arguments)
    except ValueError:  # drawn together with something else
        return None
    if isinstance(q, torch.distributions.Categorical):
        share = q.probs.double()
        return share, torch.diag_embed(share) - share.unsqueeze(-1) * share.unsqueeze(-2)
    known = gaussian(q)
    if known is None:
        return None
    loc, root = (part.double() for part in known)
    return loc, torch.diag_embed(root.square()) if root.ndim == 2 else root @ root.mT
