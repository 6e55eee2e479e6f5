"""What guides with an inference network share: how rows enter it, how it starts, and what of it a saved run records."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.networks.perceptron import Activation, activation_class, activation_name
from zoo.networks.standardize import Standardize

ONE = math.log(math.e - 1)  # softplus(ONE) = 1


def resolved(masked: bool, activation: Activation) -> dict[str, Any]:
    """What ``settings`` records in place of the arguments: the data will not be there when the guide is built again.

    Raises:
        ValueError: there is no such activation.
    """
    activation_class(activation)
    return {"masked": masked, "activation": activation_name(activation)}


def encode(guide: str, network: nn.Module, columns: Standardize, masked: bool, x: Tensor) -> Tensor:
    """What the network gives for rows (..., d): (..., outputs), in the dtype of the guide's columns.

    The network sees standardised columns, with missing entries (NaN) as their column's mean, and if ``masked`` also
    which entries are missing.

    Raises:
        ValueError: ``x`` has another width than the columns.
    """
    width = len(columns.unit)
    if x.shape[-1] != width:
        raise ValueError(f"x has {x.shape[-1]} columns, the network of {guide} was built for {width}")
    x = x.to(columns.unit)
    seen = columns(x)
    if masked:
        seen = torch.cat([seen, x.isnan().to(seen)], -1)
    return network(seen).to(x)  # whatever mixed precision made of the products


def flatten_last(network: Any) -> None:
    """Shrink the last layer, so that all rows start near 0: not exactly, as ties would not break."""
    network[-1].weight.mul_(0.1)
    network[-1].bias.zero_()


def positive(raw: Tensor) -> Tensor:
    """Positive numbers from real ones, 1 at 0."""
    return softplus(raw + ONE)
