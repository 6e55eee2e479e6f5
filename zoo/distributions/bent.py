"""A transformed distribution that is not an instance of torch's class."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class Bent(dist.TorchDistribution):
    """A base distribution of real vectors, transformed by vector-valued transforms.

    It equals ``TransformedDistribution`` but is not an instance of it: code that applies Gaussian rules to a
    transformed Gaussian (:class:`zoo.infer.losses.quadrature.QuadratureELBO`) must not apply them to a flow.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as in torch
    support = dist.constraints.real_vector

    def __init__(self, base: dist.TorchDistribution, transforms: Sequence[Any]) -> None:
        self.carried = dist.TransformedDistribution(base, list(transforms), validate_args=False)
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Bent":
        return Bent(self.carried.base_dist.expand(torch.Size(batch_shape)), self.carried.transforms)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as in torch
        return self.carried.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.carried.log_prob(value)
