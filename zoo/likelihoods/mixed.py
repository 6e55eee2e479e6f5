"""Columns with different likelihoods."""

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.distributions.columns import Columns
from zoo.likelihoods.kinds import LIKELIHOODS
from zoo.likelihoods.shared import FlooredLikelihood


class Mixed(nn.Module):
    """Columns with different likelihoods, independent given z.

    Args:
        names: the name of the likelihood of every column. Locations are in the order of the columns; noise parameters
            are grouped by likelihood, in the order of first occurrence, and within a group in the order of the columns.
        floor: the floor of the likelihoods that have one.
    """

    inverse: Tensor
    locations: int
    noise: int

    def __init__(self, names: Sequence[str], floor: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.locations = len(names)
        self.kinds = tuple(dict.fromkeys(names))
        groups = [[j for j, name in enumerate(names) if name == kind] for kind in self.kinds]
        self.parts = nn.ModuleList(LIKELIHOODS[k](len(g), floor) for k, g in zip(self.kinds, groups, strict=True))
        for number, group in enumerate(groups):
            self.register_buffer(f"group_{number}", torch.tensor(group), persistent=False)
        order = torch.tensor([j for group in groups for j in group])
        self.register_buffer("inverse", order.argsort(), persistent=False)
        self.split = [int(part.noise) for part in self._parts]
        self.noise = sum(self.split)
        if any(isinstance(part, FlooredLikelihood) for part in self.parts):
            self.floor = float(floor)

    @property
    def _parts(self) -> list[Any]:
        return list(self.parts)

    @property
    def _groups(self) -> list[Tensor]:
        return [self.get_buffer(f"group_{number}") for number in range(len(self.kinds))]

    def place(self, x: Tensor, weights: Tensor | None = None) -> None:
        for part, group in zip(self._parts, self._groups, strict=True):
            part.place(x[:, group], weights)

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Raises a ValueError where a column has a value outside the support of its likelihood."""
        for part, group in zip(self._parts, self._groups, strict=True):
            part.check(x[:, group], group if columns is None else columns[group])

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        own = [None] * len(self.split) if noise is None else noise.split(self.split, -1)
        parts = [
            part(location[..., group], numbers).base_dist
            for part, group, numbers in zip(self._parts, self._groups, own, strict=True)
        ]
        return Columns(parts, self._groups, self.inverse).to_event(1)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of variances at the floor (...), averaged over the likelihoods that have one; there must be one."""
        own = zip(self._parts, noise.split(self.split, -1), strict=True)
        found = [part.at_floor(numbers) for part, numbers in own if isinstance(part, FlooredLikelihood)]
        return torch.stack(found).mean(0)

    def extra_repr(self) -> str:
        runs = [(name, len(list(run))) for name, run in itertools.groupby(self.names)]
        return ", ".join(f"{count} {name}" for name, count in runs)
