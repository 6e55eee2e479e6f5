"""Checks of users' networks."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.base.callables import name_of
from zoo.base.random import seeded


def check_network(network: Any, name: str, inputs: int, outputs: int, parts: str) -> nn.Module:
    """A user's module, after a test on zeros (2, 3, inputs) that leaves its mode and the random stream unchanged.

    Args:
        network: the argument's value.
        name: the argument's name.
        inputs: the width of its input.
        outputs: the required width of its output.
        parts: a description of the outputs.

    Raises:
        ValueError: it is not a module, fails on leading dimensions, or gives another shape; the message states what is
            expected.
    """
    expected = f"{name} must map (..., {inputs}) to (..., {outputs}), {parts}"
    if not isinstance(network, nn.Module):
        kind = "the class" if isinstance(network, type) else "a"
        raise ValueError(f"{name} is {kind} {name_of(network)}, not a module: {expected}")
    parameter = next(network.parameters(), None)
    zeros = torch.zeros(2, 3, inputs) if parameter is None else parameter.new_zeros(2, 3, inputs)
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad(), seeded(0):
            out = network.eval()(zeros)
    except Exception as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} fails on zeros of shape (2, 3, {inputs}), {why}: {expected}") from error
    finally:
        for module, flag in training.items():
            module.training = flag
    if not isinstance(out, Tensor):
        raise ValueError(f"{name} returns a {type(out).__name__}, not a tensor: {expected}")
    if out.shape != (2, 3, outputs):
        width = f"width {out.shape[-1]}" if out.shape[:-1] == (2, 3) else f"shape {tuple(out.shape)}"
        raise ValueError(f"{name} returns {width} for zeros of shape (2, 3, {inputs}): {expected}")
    return network
