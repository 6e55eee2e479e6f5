"""The error of a guide against the closed-form posterior of every row."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.distributions.kl import kl_divergence

from zoo.algebra.linear_gaussian import gaussian_moments
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import Conjugate
from zoo.base.tables import index_column, row_names
from zoo.base.threads import on_suited_threads
from zoo.posterior.engine import reader, reading
from zoo.posterior.rowwise import conditional, real_site


@dataclass(frozen=True, eq=False)
class PosteriorError:
    """The error of the guide against the exact posterior of every row: the result of :func:`posterior_error`.

    A rotation of the factors changes the errors of single units, but not the KL.

    Attributes:
        kl: KL(q || p(z | x)) in nats (n,).
        shift: q's mean minus the posterior's, in posterior standard deviations of the unit (n, k).
        deviation: q's standard deviation divided by the posterior's (n, k): below 1 the guide is too narrow.
        correlation: q's correlations minus the posterior's (n, k, k), 0 on the diagonal.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    kl: Tensor
    shift: Tensor
    deviation: Tensor
    correlation: Tensor
    index: np.ndarray | None = None

    @property
    def mean(self) -> Tensor:
        """The error of the mean in posterior standard deviations, the largest over units (n,)."""
        return self.shift.abs().amax(-1)

    def summary(self) -> dict[str, float]:
        """The mean KL per row, and every error at its worst over all rows and units."""
        return {
            "kl": float(self.kl.double().mean()),
            "shift": float(self.mean.max()),
            "least_deviation": float(self.deviation.min()),
            "largest_deviation": float(self.deviation.max()),
            "correlation": float(self.correlation.abs().max()),
        }

    def frame(self) -> pl.DataFrame:
        """One row per row of x: KL, and the largest errors of mean, log standard deviation and correlation."""
        columns = {
            "kl": self.kl,
            "mean": self.mean,
            "log_deviation": self.deviation.log().abs().amax(-1),
            "correlation": self.correlation.abs().flatten(1).amax(-1),
        }
        return pl.DataFrame(index_column(self.index) | {name: value.cpu().numpy() for name, value in columns.items()})

    def __repr__(self) -> str:
        s = self.summary()
        return (
            f"PosteriorError of {len(self.kl)} rows: KL {s['kl']:.4g} nats per row; at worst the mean is off by "
            f"{s['shift']:.3g} posterior standard deviations, a correlation by {s['correlation']:.3g}; standard "
            f"deviations {s['least_deviation']:.3g} to {s['largest_deviation']:.3g} times the posterior's"
        )


@on_suited_threads
def posterior_error(run: Trained, x: ArrayLike) -> PosteriorError:
    """Compare a Gaussian guide with the exact posterior of a conjugate model, in closed form.

    Args:
        run: a trained pair.
        x: rows (n, d).

    Raises:
        ValueError: the model has no closed-form posterior, or not exactly one latent site with a real vector per row,
            or guide or posterior are not Gaussian.
    """
    run = pair_of(run)
    model, name = undecorated(run.model), name_of(run.model)
    index, x = row_names(x), rows_of(run, x)
    if not isinstance(model, Conjugate):
        raise ValueError(
            f"{name} has no closed-form posterior: zoo.importance_moments corrects the guide's moments, "
            "zoo.nuts samples the posterior"
        )
    parts = []
    with reading(run, 0):
        source = reader(run, x)
        latent = real_site(source, "posterior_error")
        for _, arguments in source.chunks(rows_at_once(max(x.shape[1], latent.width**2))):
            q, p = conditional(source, latent, arguments), model.posterior(arguments[0])
            parts.append(_errors(_gaussian(q, f"the guide {name_of(run.guide)}"), _gaussian(p, f"the model {name}")))
    kl, shift, deviation, correlation = (torch.cat(column).to(x) for column in zip(*parts, strict=True))
    return PosteriorError(kl, shift, deviation, correlation, index)


def _gaussian(q: Distribution, whose: str) -> MultivariateNormal:
    """A Gaussian distribution of vectors, in float64.

    Raises:
        ValueError: the distribution is not Gaussian.
    """
    try:
        loc, covariance = gaussian_moments(q)
    except TypeError:
        raise ValueError(
            f"posterior_error compares Gaussians, and the distribution of z given x of {whose} is a "
            f"{type(q).__name__}: zoo.evaluate gives the KL as the gap, zoo.importance_moments corrects the moments"
        ) from None
    return MultivariateNormal(loc.double(), covariance.double())


def _errors(q: MultivariateNormal, p: MultivariateNormal) -> tuple[Tensor, ...]:
    """The fields of :class:`PosteriorError`."""
    ours, theirs = q.variance.sqrt(), p.variance.sqrt()

    def correlation(of: MultivariateNormal, sd: Tensor) -> Tensor:
        return of.covariance_matrix / (sd.unsqueeze(-1) * sd.unsqueeze(-2))

    return kl_divergence(q, p), (q.mean - p.mean) / theirs, ours / theirs, correlation(q, ours) - correlation(p, theirs)
