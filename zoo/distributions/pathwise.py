"""A categorical distribution without score-function gradients."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class PathwiseCategorical(dist.Categorical):
    """A Categorical whose ELBO gradient has no score-function term.

    Under the exact posterior this term, (log p(x) - a constant) times the gradient of log q, has expectation zero.
    ``has_rsample = True`` makes Pyro omit it, so that the gradient of the bound is exactly that of log p(x).
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.sample(sample_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        self.has_rsample = False  # TraceEnum_ELBO sums over all values, which then need their weights
        return super().enumerate_support(expand)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PathwiseCategorical":
        return super().expand(batch_shape, self._get_checked_instance(PathwiseCategorical, _instance))
