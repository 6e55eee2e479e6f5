"""A categorical distribution without score-function term."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class PathwiseCategorical(dist.Categorical):
    """A Categorical without score-function term.

    Under the exact posterior that term, (log p(x) - a constant) times the gradient of log q, has expectation zero:
    saying ``has_rsample`` makes Pyro leave it out, and the gradient of the bound becomes that of log p(x), exactly.
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.sample(sample_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        self.has_rsample = False  # summed over, as TraceEnum_ELBO does, every value must keep its weight
        return super().enumerate_support(expand)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PathwiseCategorical":
        return super().expand(batch_shape, self._get_checked_instance(PathwiseCategorical, _instance))
