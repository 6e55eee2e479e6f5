"""Independent columns with different distributions, as one distribution."""

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class Columns(dist.TorchDistribution):
    """Independent columns with different distributions: batch (..., d), event ().

    Args:
        parts: one distribution with batch (..., d_i) and event () per group of columns.
        groups: the numbers of the columns in each group (d_i,).
        inverse: the permutation from the concatenated groups to the order of the columns (d,).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as in torch)

    def __init__(self, parts: Sequence[Any], groups: Sequence[Tensor], inverse: Tensor) -> None:
        self.parts, self.groups, self.inverse = list(parts), list(groups), inverse
        lead = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in self.parts))
        super().__init__((*lead, len(inverse)), validate_args=False)  # the parts validate their arguments

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        lead = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        whole = torch.cat([value.expand(*lead, value.shape[-1]) for value in values], -1)
        return whole[..., self.inverse]

    @property
    def has_rsample(self) -> bool:
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> Any:
        kind = torch.cat([torch.full_like(group, number) for number, group in enumerate(self.groups)])[self.inverse]
        runs = [(number, len(list(run))) for number, run in itertools.groupby(kind.tolist())]
        return constraints.cat([self.parts[number].support for number, _ in runs], -1, [size for _, size in runs])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        lead = tuple(batch_shape)[:-1]
        parts = [part.expand((*lead, part.batch_shape[-1])) for part in self.parts]
        return Columns(parts, self.groups, self.inverse)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._joined([part.sample(torch.Size(sample_shape)) for part in self.parts])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._joined([part.rsample(torch.Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of every column (..., d)."""
        return self._joined([p.log_prob(value[..., g]) for p, g in zip(self.parts, self.groups, strict=True)])

    @property
    def mean(self) -> Tensor:
        return self._joined([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self._joined([part.variance for part in self.parts])
