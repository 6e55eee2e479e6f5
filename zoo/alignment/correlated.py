"""A linear model in oblique coordinates, whose factors are correlated, and its run."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from zoo.alignment.coordinates import NewCoordinates
from zoo.alignment.symmetry import factors_of, model_of, unknown
from zoo.base.latent_sites import latents
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.distributions.diagonal import DiagonalNormal
from zoo.distributions.observed import seen
from zoo.infer.run import Fit


class CorrelatedFactors(Module):
    r"""The same distribution of rows as a linear-Gaussian model, with factors :math:`f = T^T z`.

    .. math:: f_n \sim N(0, T^T T), \quad x_n \mid f_n \sim N(W T^{-T} f_n + \mu, \Psi)

    Args:
        weight: W (d, k).
        mean: mu (d,).
        noise: the variances Psi (d,).
        transform: T (k, k), invertible.
    """

    missing = True  # accepts NaN, as entries missing at random

    def __init__(self, weight: Tensor, mean: Tensor, noise: Tensor, transform: Tensor) -> None:
        super().__init__()
        exact = transform.double()
        turned = torch.linalg.solve(exact, weight.detach().to(exact).mT).mT  # W T^-T (d, k)
        values = {"weight": turned, "mean": mean, "noise": noise, "correlations": exact.mT @ exact}
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value.detach().to(mean).clone(), requires_grad=False))

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generates or scores rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        weight, mean, noise = self.weight, self.mean, self.noise
        prior = dist.MultivariateNormal(mean.new_zeros(weight.shape[1]), self.correlations)
        with rows(x, index, size):
            z = pyro.sample("z", prior)  # (..., n, k)
            density = DiagonalNormal(linear(z, weight, mean), noise.sqrt())
            return pyro.sample("x", seen(density, x), obs=x)  # (..., n, d)


def in_oblique_coordinates(run: Fit, transform: Tensor) -> Fit:
    r"""A run in the coordinates :math:`f = T^T z` of an oblique rotation: model and guide, with the same bound.

    The model has the loadings and the factor correlations as parameters; a prior with independent factors, which
    :class:`zoo.PPCA` and :class:`zoo.FactorAnalysis` have, exists in orthogonal coordinates alone.

    Args:
        run: of a linear-Gaussian model.
        transform: T (k, k), as :attr:`zoo.alignment.RotatedFactors.transform`.

    Raises:
        TypeError: the model is not linear-Gaussian.
    """
    if factors_of(run) is None:
        raise unknown(run)
    inner = model_of(run)
    with run.scope(), torch.no_grad():
        d = len(inner.mean)
        model = CorrelatedFactors(inner.weight, inner.mean, inner.noise.expand(d), transform.to(inner.mean.device))
        site = next(own.name for own in latents(run.model) if own.local)
    turned = NewCoordinates(site, transform.to(inner.mean))(run.guide)
    return replace(run, model=model, guide=turned)
