"""Scores of rows under any guide: posterior means and standard deviations of their factors."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.tables import row_names
from zoo.factors.decoding import closed_posterior, factor_site
from zoo.posterior.engine import reader, reading


@dataclass(frozen=True, eq=False)
class PosteriorScores:
    """Posterior moments of the factors of rows; the result of :func:`posterior_scores`.

    Attributes:
        mean: the posterior means (n, k), in float64 on the CPU.
        deviation: the posterior standard deviations (n, k).
        index: the names of the rows; None where they are merely counted.
    """

    mean: Tensor
    deviation: Tensor
    index: np.ndarray | None = None

    def summary(self) -> dict[str, float]:
        """The numbers of rows and factors, and the root mean square of the posterior standard deviations."""
        n, k = self.mean.shape
        return {"rows": float(n), "factors": float(k), "sd": float(self.deviation.square().mean().sqrt())}

    def frame(self) -> pl.DataFrame:
        """A line per row: its name or number, the mean of every factor, and the standard deviations."""
        names = range(len(self.mean)) if self.index is None else self.index
        k = self.mean.shape[1]
        means = {f"factor {j}": self.mean[:, j].numpy() for j in range(k)}
        sds = {f"factor {j} sd": self.deviation[:, j].numpy() for j in range(k)}
        return pl.DataFrame({"row": names, **means, **sds})

    def __repr__(self) -> str:
        n, k = self.mean.shape
        sd = self.summary()["sd"]
        return f"PosteriorScores of {n} rows on {k} factor{'s' * (k != 1)}: root mean square posterior sd {sd:.4g}"


@torch.no_grad()
def posterior_scores(
    run: Trained, x: ArrayLike, *, transform: Tensor | None = None, draws: int = 200, seed: int = 0
) -> PosteriorScores:
    r"""Means and standard deviations of the factors of every row under the guide, in any linear coordinates.

    .. math:: E_q[z_n^T T], \qquad \sqrt{\mathrm{diag}(T^T\, \mathrm{Cov}_q[z_n]\, T)}

    Args:
        run: a trained pair whose model has factors: one latent site with a real vector per row.
        x: rows (n, d); for a guide with parameters per row, the rows it was fitted to (:func:`zoo.infer.infer` finds a
            guide for others). The index of a data frame is kept.
        transform: T (k, k), such as a rotation of the factors; None leaves them as they are.
        draws: number of draws, at least 2, where the guide's moments have no closed form.
        seed: seed of these draws.

    Raises:
        ValueError: the model has no factors, model or guide cannot take the rows, or T has another size.

    >>> import guides, torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64)
    >>> posterior_scores(zoo.em(zoo.PPCA(4, 2).double(), x), x).frame().columns
    ['row', 'factor 0', 'factor 1', 'factor 0 sd', 'factor 1 sd']
    """
    run = pair_of(run)
    latent = factor_site(run, "posterior_scores", decoding=False)
    data, k = rows_of(run, x), latent.shape.numel()
    check_whole(draws, "draws", 2)
    if transform is not None and transform.shape != (k, k):
        raise ValueError(f"transform has shape {tuple(transform.shape)}: pass one of ({k}, {k}), for {k} factors")
    change = torch.eye(k, dtype=torch.float64) if transform is None else transform.detach().double().cpu()
    means, variances = [], []
    with reading(run, seed):
        source = reader(run, data)
        q = closed_posterior(run, data)
        known = None if q is None else _moments(q, len(data), k)
        if known is not None:
            mean, variance = _changed(*known, change)
            return PosteriorScores(mean, variance.sqrt(), row_names(x))
        held: dict[str, Tensor] = {}
        for _, arguments in source.chunks(rows_at_once(draws * max(k, data.shape[1]))):
            values = source.draw(arguments, draws, held, points=True).values
            if latent.name not in values:
                raise ValueError(f"the guide has no site '{latent.name}': add it to the guide")
            held = {own.name: values[own.name] for own in source.layout.shared if own.name in values}
            z = values[latent.name].double().cpu().flatten(2) @ change  # (s, b, k)
            variance, mean = torch.var_mean(z, 0)
            means.append(mean)
            variances.append(variance)
    return PosteriorScores(torch.cat(means), torch.cat(variances).sqrt(), row_names(x))


def _moments(q: Distribution, n: int, k: int) -> tuple[Tensor, Tensor] | None:
    """Means (n, k) and covariances (n, k, k) or variances (n, k) of q; None where they have no closed form."""
    try:
        mean, variance = q.mean, q.variance
    except NotImplementedError:
        return None
    if mean.shape[0] != n or mean.numel() != n * k:
        return None
    mean = mean.double().cpu().reshape(n, k)
    if isinstance(q, MultivariateNormal):
        return mean, q.covariance_matrix.double().cpu().expand(n, k, k)
    if isinstance(q, torch.distributions.Independent):
        return mean, variance.double().cpu().reshape(n, k)
    return (mean, variance.double().cpu().reshape(n, k)) if k == 1 else None


def _changed(mean: Tensor, spread: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (n, k) of z T."""
    if spread.ndim == 2:
        return mean @ change, spread @ change.square()
    return mean @ change, torch.einsum("jk,njl,lk->nk", change, spread, change)
