"""Multilayer perceptrons, their activations and their initialisation."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from zoo.base.checks import check_whole
from zoo.base.protocols import Hook

Activation = str | type[nn.Module]


@runtime_checkable
class Resettable(Hook, Protocol):
    """A layer that can draw its parameters anew, as torch's own layers can."""

    def reset_parameters(self) -> None:
        """Draws new parameters with torch's global generator."""
        ...


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: Activation = "silu",
    normalize: bool = False,
    gated: bool = False,
) -> nn.Sequential:
    r"""A multilayer perceptron, or with ``hidden=()`` a single linear layer.

    Args:
        inputs: width of the input.
        hidden: widths of the hidden layers, each followed by the activation.
        outputs: width of the linear output.
        activation: its name (``"silu"``, ``"relu"``, ``"tanh"``, ``"elu"``, ``"gelu"``, ``"softplus"``) or its class.
        normalize: whether to put a layer norm before every activation (Ba, Kiros and Hinton 2016). A batch norm would
            mix particles with rows, make the output for a row depend on the rest of its batch, and be undefined for a
            single row.
        gated: hidden layers :math:`a \odot \mathrm{sigmoid}(g)` with linear maps a and g, instead of the activation
            (Dauphin et al. 2017; Tomczak and Welling 2018).

    Raises:
        ValueError: a width is not a whole number of at least 1 (2 with ``normalize``), or the activation is unknown.
    """
    layers: list[nn.Module] = []
    for width in check_widths(hidden, normalize):
        wide = width * (1 + gated)
        layers += hidden_layer(nn.Linear(inputs, wide), wide, activation, normalize, gated)
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Constant(nn.Module):
    """A network that ignores its input: the same learned outputs (outputs,) for every input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.value.normal_(0.0, 0.1)  # not 0, where the gradient of a low-rank factor vanishes

    def forward(self, _: Tensor) -> Tensor:
        return self.value

    def extra_repr(self) -> str:
        return f"outputs={len(self.value)}"


def hidden_layer(
    linear: nn.Module, width: int, activation: Activation, normalize: bool, gated: bool, *, flat: bool = True
) -> list[nn.Module]:
    """A hidden layer: a map to ``width`` units (or channels of an image), the norm, the activation or the gate."""
    norm: list[nn.Module] = []
    if normalize:
        norm = [nn.LayerNorm(width) if flat else nn.GroupNorm(1, width)]
    return [linear, *norm, nn.GLU(-1 if flat else 1) if gated else activation_class(activation)()]


def check_widths(hidden: Sequence[int], normalize: bool) -> list[int]:
    """The widths of the hidden layers as whole numbers; raises a ValueError for invalid ones."""
    widths = [check_whole(width, "hidden") for width in hidden]
    if normalize and 1 in widths:
        raise ValueError("hidden has a layer of width 1, which normalize=True makes constant: use 2 or more")
    return widths


def activation_class(activation: Activation) -> type[nn.Module]:
    """The class of an activation, given its name or the class itself.

    Raises:
        ValueError: it is neither a known name nor a module class.
    """
    found = ACTIVATIONS.get(activation) if isinstance(activation, str) else activation
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)} or a module class; got {activation!r}")
    return found


def activation_name(activation: Activation) -> Activation:
    """The form stored in saved runs, to rebuild the activation: its name, if it has one."""
    return next((name for name, known in ACTIVATIONS.items() if known is activation), activation)


def reset(network: nn.Module, keep: nn.Module | None = None) -> None:
    """Draws new parameters of a network, layer by layer, with torch's global generator.

    Args:
        network: the network, whose layers with a method ``reset_parameters`` are reset.
        keep: a part of it that is not changed.
    """
    kept = set() if keep is None else set(keep.modules())
    for layer in network.modules():
        if isinstance(layer, Resettable) and layer not in kept:
            layer.reset_parameters()
