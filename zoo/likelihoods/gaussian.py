"""The Gaussian likelihood with four forms of covariance."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.algebra.missing import column_moments
from zoo.likelihoods.shared import deviation, tiny
from zoo.networks.standardize import Standardize

Covariance = Literal["scalar", "diag", "low_rank", "full"]


def _products(noise: Tensor, d: int) -> Tensor:
    """L L' (..., d, d) from the noise parameters of a ``"full"`` covariance."""
    row, column = torch.tril_indices(d, d, -1, device=noise.device)
    lower = noise.new_zeros(*noise.shape[:-1], d, d)
    lower[..., row, column] = noise[..., d:] / math.sqrt(d)
    lower = lower + torch.diag_embed(softplus(noise[..., :d]))
    return lower @ lower.mT


class Gaussian(nn.Module):
    r"""Gaussian columns with means :math:`\mu = a + b f`, with a and b the columns' means and standard deviations.

    With the floor :math:`\epsilon`, s = softplus, B = diag(b) and noise parameters g, the covariance of the columns
    given z is

    - ``"scalar"``: :math:`c^2 (\epsilon + s(g)^2)\, I`, :math:`c^2` the mean variance of the columns; one parameter;
    - ``"diag"``: :math:`B\, \mathrm{diag}(\epsilon + s(g)^2)\, B`; d parameters;
    - ``"low_rank"``: :math:`B (\mathrm{diag}(\epsilon + s(g)^2) + F F^T / R) B`, F with R columns; d (1 + R)
      parameters, the diagonal first, then the columns of F. The density costs O(d R^2), without a d x d matrix;
    - ``"full"``: :math:`B (\epsilon I + L L^T) B`, L lower triangular with diagonal s(g) and the other parameters, row
      by row, divided by :math:`\sqrt d`; d (d + 1) / 2 parameters, the diagonal first.

    (The division by R and d makes the scale at a start independent of them.) No variance is below the floor in any
    direction: the covariance minus :math:`\epsilon B^2` (``"scalar"``: :math:`\epsilon c^2 I`) is positive
    semidefinite.

    ``"full"`` noise represents the linear dependence between the columns without any factors. While ``held`` is true,
    the parameters below the diagonal of L therefore pass no gradient, so that the factors take up that dependence
    first; the density is the same either way.

    Attributes:
        held: whether the parameters below the diagonal of L are held fixed.
    """

    held = False
    common: Tensor
    locations: int
    noise: int

    def __init__(self, data_dim: int, floor: float, covariance: Covariance = "diag", rank: int = 1) -> None:
        super().__init__()
        self.floor, self.covariance, self.rank = float(floor), covariance, rank
        d = self.locations = data_dim
        self.noise = {"scalar": 1, "diag": d, "low_rank": d * (1 + rank), "full": d * (d + 1) // 2}[covariance]
        self.columns = Standardize(d)
        if covariance == "scalar":
            self.register_buffer("common", torch.ones(()))

    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        self.columns.place(x, weights)
        if self.covariance == "scalar":
            variance, _ = column_moments(x, weights)
            self.common.copy_(variance.mean().sqrt() if variance.any() else variance.new_ones(()))

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Every finite number is in the support."""

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        mean = shift + unit * location  # (..., d)
        if self.covariance == "diag":
            return dist.Normal(mean, unit * deviation(noise, self.floor)).to_event(1)
        if self.covariance == "scalar":
            return dist.Normal(mean, self.common * deviation(noise, self.floor)).to_event(1)
        d = self.locations
        if self.covariance == "low_rank":
            diagonal, rest = softplus(noise[..., :d]), noise[..., d:]
            factor = rest.unflatten(-1, (self.rank, d)).mT / math.sqrt(self.rank)  # (..., d, r)
            variance = unit.square() * (self.floor + diagonal.square())
            return dist.LowRankMultivariateNormal(mean, unit.unsqueeze(-1) * factor, variance)
        if self.held:
            noise = torch.cat([noise[..., :d], noise[..., d:].detach()], -1)
        products = _products(noise, d)
        root = torch.linalg.cholesky(products + self.floor * torch.eye(d, dtype=noise.dtype, device=noise.device))
        return dist.MultivariateNormal(mean, scale_tril=unit.unsqueeze(-1) * root)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of columns (``"full"``: of principal axes) whose variance is :func:`tiny`: (...)."""
        d = self.locations
        if self.covariance != "full":
            return tiny(softplus(noise[..., :d]).square(), self.floor)
        return tiny(torch.linalg.eigvalsh(_products(noise, d)), self.floor)

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.covariance == "low_rank" else ""
        return f"{self.locations}, covariance={self.covariance}{rank}, floor={self.floor:g}"
