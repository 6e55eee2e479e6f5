"""The discretized logistic likelihood of pixels."""

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.distributions.discretized import LEVELS, DiscretizedLogistic, levels
from zoo.likelihoods.shared import refuse
from zoo.networks.standardize import Standardize


class Logistic256(nn.Module):
    r"""Independent pixels of 256 levels k / 255: a logistic distribution, rounded to the levels.

    :math:`\mu = a + b f` and the scale :math:`s = b\, \mathrm{softplus}(g) + 0.1 / 255`; see
    :class:`DiscretizedLogistic` for the probabilities. These do not exceed 1, so no floor on the variance is needed;
    the tenth of a level (Salimans et al. 2017: 0.116) avoids overflow.
    """

    locations: int
    noise: int

    LEAST = 0.1 / (LEVELS - 1)

    def __init__(self, data_dim: int, floor: float | None = None) -> None:
        super().__init__()
        self.locations = self.noise = data_dim
        self.columns = Standardize(data_dim)

    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        self.columns.place(x, weights)

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        refuse(
            x,
            levels.check(x),
            columns,
            "likelihood 'logistic_256' is for the 256 levels k/255: divide whole pixels by 255, without added noise or "
            "other scaling, or use 'gaussian' for real numbers",
        )

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        return DiscretizedLogistic(shift + unit * location, unit * softplus(noise) + self.LEAST).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)
