"""A Wishart distribution that draws once and does not warn."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class Wishart(dist.Wishart):
    """Torch's Wishart with draws by Bartlett's decomposition alone.

    Torch 2.13 takes its regular draws for singular ones: it warns of every call and draws again.
    """

    def rsample(self, sample_shape: Any = (), max_try_correction: int | None = None) -> Tensor:
        """Draws (..., d, d), differentiable in the parameters; there is nothing to correct."""
        shape = torch.Size(sample_shape)
        d = self.event_shape[-1]
        degrees = self.df.unsqueeze(-1) - torch.arange(d).to(self.df)  # (..., d)
        root = dist.Chi2(degrees).rsample(shape).sqrt().clamp_min(torch.finfo(self.df.dtype).tiny)
        normal = torch.randn(shape + self.batch_shape + self.event_shape).to(root)
        factor = self.scale_tril @ (normal.tril(-1) + torch.diag_embed(root))
        return factor @ factor.mT
