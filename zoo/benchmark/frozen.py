"""Linear models held at their maximum, with inference gaps in closed form, and a veil that hides the closed forms."""

import math
from typing import Any

import torch
from torch import Tensor

from zoo.algebra.projected import mean_field_gap, principal_rotation
from zoo.base.callables import PyroCallable
from zoo.base.module import Module
from zoo.base.protocols import HasPosterior
from zoo.infer.expectation_maximisation import em
from zoo.models.factor_analysis import FactorAnalysis
from zoo.models.ppca import PPCA
from zoo.posterior.rowwise import gaussian

Linear = PPCA | FactorAnalysis
ANGLE = math.pi / 8  # by which the loadings are rotated away from the principal axes


def held(kind: type[Linear], latent_dim: int, x: Tensor) -> Linear:
    r"""A frozen linear model at its maximum for the rows x (n, d), with factors that correlate a posteriori.

    With free loadings a factorised q is exact at the optimum: they rotate until the posterior is diagonal. Here they
    are rotated from there by :data:`ANGLE` in every plane of neighbouring factors, which leaves log p(x) as it is.
    """
    model = kind(x.shape[1], latent_dim).to(x.dtype)
    em(model, x)
    with torch.no_grad():
        turn = principal_rotation(model.weight, model.noise)
        for j in range(latent_dim - 1):
            plane = torch.eye(latent_dim, dtype=x.dtype)
            plane[j, j] = plane[j + 1, j + 1] = math.cos(ANGLE)
            plane[j, j + 1], plane[j + 1, j] = -math.sin(ANGLE), math.sin(ANGLE)
            turn = turn @ plane
        model.weight = model.weight @ turn
    return model.requires_grad_(False)


class Undisclosed(Module):
    """A model without its closed forms: as deep as any to what evaluates it."""

    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner: Any = inner

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Any:
        """As the model."""
        return self.inner(x, index, size)


@torch.no_grad()
def known_gaps(model: Linear, guide: PyroCallable, x: Tensor) -> tuple[float, float]:
    r"""Approximation and amortization gap of a Gaussian guide in closed form, in nats per row; NaN for another guide.

    The best factorised q has the posterior's means and the variances :math:`1 / P_{jj}`, P its precision, and loses
    :math:`\tfrac12 (\sum_j \log P_{jj} - \log |P|)`; the best q with a full covariance loses nothing. The rest of
    :math:`\mathrm{KL}(q \| p) = \log p(x) - \mathrm{ELBO}(q)` is amortization.
    """
    q = guide.posterior(x) if isinstance(guide, HasPosterior) else None
    found = None if q is None else gaussian(q)
    if q is None or found is None:
        return math.nan, math.nan
    total = float((model.log_marginal(x) - model.elbo(x, q)).mean())
    factorised = found[1].ndim == 2
    posterior: Any = model.posterior(x[:1])
    least = float(mean_field_gap(posterior.precision_matrix)) if factorised else 0.0
    return least, total - least
