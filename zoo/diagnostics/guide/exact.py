"""How far q lies from the closed-form posterior of every row."""

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.distributions.kl import kl_divergence

from zoo.algebra.linear_gaussian import gaussian_moments
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import check_rows
from zoo.base.protocols import Conjugate, Pair
from zoo.posterior.engine import reader, reading
from zoo.posterior.rowwise import conditional, real_site

BUDGET = 2**22  # numbers per array and chunk


@dataclass(frozen=True, eq=False)
class PosteriorError:
    """How far the guide is from the exact posterior, row by row: what :func:`posterior_error` returns.

    In the model's own gauge: a rotation of the factors changes what single units and correlations are, not the KL.

    Attributes:
        kl: KL(q || p(z | x)) in nats (n,).
        shift: q's mean less the posterior's, in posterior standard deviations of the unit (n, k).
        deviation: q's standard deviation over the posterior's (n, k): below 1 the guide is too narrow.
        correlation: q's correlations less the posterior's (n, k, k), 0 on the diagonal.
    """

    kl: Tensor
    shift: Tensor
    deviation: Tensor
    correlation: Tensor

    @property
    def mean(self) -> Tensor:
        """The error of the mean in posterior standard deviations, of every row's worst unit (n,)."""
        return self.shift.abs().amax(-1)

    def summary(self) -> dict[str, float]:
        """KL per row, and the worst of every error over all rows and units."""
        return {
            "kl": float(self.kl.double().mean()),
            "shift": float(self.mean.max()),
            "least_deviation": float(self.deviation.min()),
            "largest_deviation": float(self.deviation.max()),
            "correlation": float(self.correlation.abs().max()),
        }

    def frame(self) -> pl.DataFrame:
        """A row per row of the data: KL, and the worst errors of mean, standard deviation and correlation."""
        columns = {
            "kl": self.kl,
            "mean": self.mean,
            "log_deviation": self.deviation.log().abs().amax(-1),
            "correlation": self.correlation.abs().flatten(1).amax(-1),
        }
        return pl.DataFrame({name: value.tolist() for name, value in columns.items()})

    def __repr__(self) -> str:
        s = self.summary()
        return (
            f"PosteriorError of {len(self.kl)} rows: KL {s['kl']:.4g} nats per row; at worst the mean is off by "
            f"{s['shift']:.3g} posterior standard deviations, a correlation by {s['correlation']:.3g}; standard "
            f"deviations {s['least_deviation']:.3g} to {s['largest_deviation']:.3g} times the posterior's"
        )


def posterior_error(run: Pair, x: Any) -> PosteriorError:
    """The distance of a Gaussian guide from the exact posterior of a conjugate model, in closed form.

    Args:
        run: a trained pair: what :func:`zoo.fit` or :func:`zoo.load` returned, or ``zoo.Fit(model, guide)``.
        x: rows (n, d); a guide with parameters for every row takes those it was fitted to, in their order.

    Raises:
        ValueError: a model without a closed-form posterior or without exactly one latent site with a real vector per
            row, a guide or posterior that is no Gaussian, or rows that are not fit for model or guide.
    """
    model, name = undecorated(run.model), name_of(run.model)
    x = check_rows(x, model)
    if not isinstance(model, Conjugate):
        raise ValueError(
            f"{name} has no closed-form posterior: zoo.importance_moments corrects the guide's moments by weights, "
            "zoo.nuts draws from the posterior itself"
        )
    parts = []
    with reading(run, 0):
        source = reader(run, x)
        latent = real_site(source, "posterior_error")
        for _, arguments in source.chunks(BUDGET // max(x.shape[1], latent.width**2)):
            q, p = conditional(source, latent, arguments), model.posterior(arguments[0])
            parts.append(_apart(_gaussian(q, f"the guide {name_of(run.guide)}"), _gaussian(p, f"the model {name}")))
    return PosteriorError(*(torch.cat(column).to(x) for column in zip(*parts, strict=True)))


def _gaussian(q: Distribution, whose: str) -> MultivariateNormal:
    """A Gaussian of vectors in float64.

    Raises:
        ValueError: it is none.
    """
    try:
        loc, covariance = gaussian_moments(q)
    except TypeError:
        raise ValueError(
            f"q(z | x) of {whose} is a {type(q).__name__}, and posterior_error compares Gaussians: zoo.evaluate gives "
            "its KL as the gap, zoo.importance_moments its moments"
        ) from None
    return MultivariateNormal(loc.double(), covariance.double())


def _apart(q: MultivariateNormal, p: MultivariateNormal) -> tuple[Tensor, ...]:
    """The columns of :class:`PosteriorError`."""
    ours, theirs = q.variance.sqrt(), p.variance.sqrt()

    def correlation(of: MultivariateNormal, sd: Tensor) -> Tensor:
        return of.covariance_matrix / (sd.unsqueeze(-1) * sd.unsqueeze(-2))

    return kl_divergence(q, p), (q.mean - p.mean) / theirs, ours / theirs, correlation(q, ours) - correlation(p, theirs)
