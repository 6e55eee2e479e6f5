import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from zoo.base import Module, check_whole, like, rows
from zoo.networks import Standardize, mlp, reset


class VAE(Module):
    r"""Deep Gaussian latent variable model, the generative half of a variational autoencoder.

    .. math:: z_n \sim N(0, I_K), \quad x_n \mid z_n \sim N(\mu_\theta(z_n), \mathrm{diag}(\sigma^2_\theta(z_n)))

    One network gives the mean, one the variances. Both speak in units of the columns: with a the column means and
    b the standard deviations of the data it is placed on (:meth:`initialize`; 0 and 1 before),
    :math:`\mu = a + b\, f(z)` and :math:`\sigma^2 = b^2 (\epsilon + \mathrm{softplus}(g(z))^2)`.

    The likelihood of a flexible decoder has no maximum: it grows without bound as a variance shrinks on a fitted
    point. The floor :math:`\epsilon` is therefore part of the model and belongs beside every number it gives.

    Args:
        data_dim: number of columns D of the data.
        latent_dim: number of factors K.
        hidden: widths of the hidden layers of both networks; ``()`` makes them linear.
        floor: the least variance of a column, as a fraction of its variance in the data.

    Raises:
        ValueError: a dimension is no whole number of at least 1, or ``floor`` is not positive.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114.
    """

    def __init__(self, data_dim: int, latent_dim: int, hidden: Sequence[int] = (64, 64), floor: float = 1e-3) -> None:
        super().__init__()
        self.data_dim = check_whole(data_dim, "data_dim")
        self.latent_dim = check_whole(latent_dim, "latent_dim")
        if not 0 < floor < math.inf:
            raise ValueError(f"floor must be a positive fraction of the variance, got {floor!r}")
        self.floor = float(floor)
        self.mean = mlp(latent_dim, hidden, data_dim)
        self.scale = mlp(latent_dim, hidden, data_dim)
        self.columns = Standardize(data_dim)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for factors (..., k): a Gaussian with event (d,)."""
        shift, unit = self.columns.shift, self.columns.unit
        mean = shift + unit * self.mean(z)  # (..., d)
        scale = unit * (self.floor + softplus(self.scale(z)).square()).sqrt()  # (..., d)
        return dist.Normal(mean, scale).to_event(1)

    def forward(self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None) -> Tensor:
        """Generate or score rows (n, d); see :func:`zoo.base.rows` for ``index`` and ``size``."""
        zeros = self.columns.shift.new_zeros(self.latent_dim)
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))  # (..., n, k)
            return pyro.sample("x", self.decode(z), obs=x)  # (..., n, d)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """New weights from the running random stream, and the columns' means and units from ``x`` (n, d)."""
        reset(self)
        self.columns.place(like(x, self))
