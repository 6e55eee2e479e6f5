"""The Wishart distribution with draws from Bartlett's decomposition as they come."""

import pyro.distributions as dist
import torch
from torch import Tensor


class Wishart(dist.Wishart):
    """Pyro's Wishart, whose draws torch 2 takes a second time, with a warning, whenever they are *not* singular.

    References:
        Bartlett (1933), On the theory of statistical regression, Proc. R. Soc. Edinburgh 53.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size(), max_try_correction: int | None = None) -> Tensor:  # noqa: B008
        """Reparametrised draws (*sample_shape, *batch_shape, d, d); the diagonal of the root is kept above 0."""
        return self._bartlett_sampling(torch.Size(sample_shape))
