"""Flows with parameters of their own for every row, among which a row's best q is looked for."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive, ConditionalSplineAutoregressive, SplineAutoregressive
from torch import Tensor, nn

WEIGHTS = 0.1  # of a step of the search, in the context and the networks' weights


class LocalFlow:
    """Flows of real vectors with parameters of their own for every row: a :class:`~zoo.base.protocols.LocalFamily`.

    Args:
        flow: the transforms, given the context: affine or spline ones, autoregressive.
        loc: means (b, k) of the base.
        scale: its scales (b, k).
        context: (b, c).
    """

    name = "flow"

    def __init__(self, flow: nn.ModuleList, loc: Tensor, scale: Tensor, context: Tensor) -> None:
        self.steps: list[Any] = list(flow)
        self.names = [[name for name, _ in step.nn.named_parameters()] for step in self.steps]
        weights = [value.detach() for step in self.steps for _, value in step.nn.named_parameters()]
        own = (value.expand(len(loc), *value.shape) for value in weights)
        self.start: tuple[Tensor, ...] = (loc, scale.expand_as(loc), context, *own)

    def free(self) -> list[Tensor]:
        """Zeros in the shapes of the start."""
        return [torch.zeros_like(part, requires_grad=True) for part in self.start]

    def moved(self, free: list[Tensor]) -> tuple[Tensor, ...]:
        """Means in units of the scales, scales by factors, context and weights in tenths."""
        loc, scale, *rest = self.start
        others = (value + WEIGHTS * by for value, by in zip(rest, free[2:], strict=True))
        return loc + scale * free[0], scale * free[1].exp(), *others

    def draw(self, numbers: tuple[Tensor, ...], noise: Tensor, path: bool = False) -> tuple[Tensor, Tensor]:
        """Draws and their log densities; the score of log q is always part of the gradient."""
        loc, scale, context, *weights = numbers
        z = loc + scale * noise  # (s, b, k)
        log_q = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - scale.log().sum(-1)
        for step, names in zip(self.steps, self.names, strict=True):
            own, weights = weights[: len(names)], weights[len(names) :]
            transform = _transform(step, partial(_by_row, step.nn, names, own, context))
            value = transform(z)
            log_q = log_q - transform.log_abs_det_jacobian(z, value)
            z = value
        return z, log_q


def _by_row(network: nn.Module, names: Sequence[str], weights: Sequence[Tensor], context: Tensor, z: Tensor) -> Any:
    """The network's outputs (s, b, ...) at draws (s, b, k), with weights (b, ...) and context (b, c) of each row."""

    def one(z: Tensor, context: Tensor, *weights: Tensor) -> Any:
        return torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (z, context))

    return torch.vmap(one, in_dims=(1, 0, *(0 for _ in weights)), out_dims=1)(z, context, *weights)


def _transform(step: Any, network: Any) -> Any:
    """The transform of a step, with another network in place of its own."""
    if isinstance(step, ConditionalSplineAutoregressive):
        return SplineAutoregressive(step.input_dim, network, **step.kwargs)
    return AffineAutoregressive(network, **step.kwargs)
