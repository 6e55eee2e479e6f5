"""Helpers of guides with an inference network: its inputs, its initialisation, its record in saved runs."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.networks.perceptron import Activation, activation_class, activation_name
from zoo.networks.standardize import Standardize

ONE = math.log(math.e - 1)  # softplus(ONE) = 1


def resolved(masked: bool, activation: Activation) -> dict[str, Any]:
    """The arguments to record in ``settings``, since the data are not available when the guide is rebuilt.

    Raises:
        ValueError: there is no such activation.
    """
    activation_class(activation)
    return {"masked": masked, "activation": activation_name(activation)}


def encode(guide: str, network: nn.Module, columns: Standardize, masked: bool, x: Tensor) -> Tensor:
    """The outputs of the network for rows (..., d): (..., outputs), in the dtype of the guide's columns.

    Its inputs are standardised columns, with missing entries (NaN) replaced by their column's mean, and if ``masked``
    also the indicators of missing entries.

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
    return network(seen).to(x)  # undo mixed precision


def flatten_last(network: Any) -> None:
    """Shrink the last layer, so that the outputs for all rows start near 0, but not at 0, to break the symmetry."""
    network[-1].weight.mul_(0.1)
    network[-1].bias.zero_()


def positive(raw: Tensor) -> Tensor:
    """Maps real numbers to positive ones, 0 to 1."""
    return softplus(raw + ONE)
