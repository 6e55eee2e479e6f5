"""Helpers of guides with an inference network: its inputs, its initialisation, its record in saved runs."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.networks.linear_path import LinearPath
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
    if isinstance(network, LinearPath):
        network.straighten()
        network = nn.Sequential(network.path)
    network[-1].weight.mul_(0.1)
    network[-1].bias.zero_()


def raw_positive(value: Tensor) -> Tensor:
    """The inverse of :func:`positive`."""
    return value + torch.log(-torch.expm1(-value)) - ONE


def positive(raw: Tensor) -> Tensor:
    """Maps real numbers to positive ones, 0 to 1."""
    return softplus(raw + ONE)


@torch.no_grad()
def set_affine(network: nn.Linear, columns: Standardize, slope: Tensor, offset: Tensor, first: int = 0) -> None:
    r"""Set some outputs of a linear layer of standardised columns to an affine map of the data's own columns.

    The layer's outputs from ``first`` on become :math:`A (x - s) + b`, with s the shift of the columns. Weights of the
    indicators of missing entries become 0.

    Args:
        network: the layer.
        columns: the standardisation in front of it.
        slope: A (m, d).
        offset: b (m,).
        first: the first of the m outputs.
    """
    weight = slope * columns.unit.to(slope)  # (m, d), of (x - s) / unit
    if columns.turn is not None:
        weight = torch.linalg.solve(columns.turn.to(weight), weight, left=False)
    last = first + len(slope)
    network.weight[first:last] = 0.0
    network.weight[first:last, : weight.shape[1]] = weight.to(network.weight)
    network.bias[first:last] = offset.to(network.bias)
