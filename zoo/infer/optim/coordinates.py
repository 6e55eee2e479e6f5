"""Coordinates in which a line search finds every parameter of about the same scale."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-6  # lower bound on row norms of the Hessian, relative to the largest
ALIKE = 4.0  # the ratio of the largest to the smallest norm at which units have been found
ROUNDS = 12  # of their search, at most: each takes the square root of the ratio


class Coordinates:
    """The coordinates u of a search from parameters p0, with p = p0 + unit u, and torch's L-BFGS on them.

    Args:
        params: the parameters.
        unit: of every parameter (p,); a parameter whose unit is zero does not move.
        options: of ``torch.optim.LBFGS``.

    Attributes:
        u: the coordinates (p,).
        optimizer: torch's L-BFGS on them.
        curved: whether it has seen the curvature in earlier searches.
    """

    def __init__(self, params: Sequence[Tensor], unit: Tensor, options: dict[str, Any]) -> None:
        self.params, self.unit = tuple(params), unit
        self.u = torch.zeros_like(unit, requires_grad=True)
        self.optimizer = torch.optim.LBFGS([self.u], **options)
        self.curved = False


def units(loss: Callable[[], Tensor], params: Sequence[Tensor], moving: Sequence[Tensor], probes: int) -> Tensor:
    r"""The units u of parameters (p,) in which all rows of the loss's Hessian, :math:`u_i H_{ij} u_j`, have norm 1.

    The norms depend on the units of all parameters, so both are found in turn, with the norms :math:`D_i` in the units
    so far and :math:`u_i \leftarrow u_i / \sqrt{D_i}`, until they are alike. If a column of the data is rescaled, so
    are the units of its parameters, and the search takes the same steps. Where the loss has no second derivative, and
    without probes, all units are 1.

    Args:
        loss: returns the loss at the current parameters.
        params: the parameters.
        moving: those of them that move; the units of the others are zero.
        probes: the number of Hessian-vector products, with Rademacher vectors, from which the norms are estimated.

    References:
        Ruiz (2001), A scaling algorithm to equilibrate both rows and columns norms in matrices, RAL-TR-2001-034;
        Dauphin, de Vries and Bengio (2015), Equilibrated adaptive learning rates for non-convex optimization, NIPS.
    """
    found = _equilibrated(loss, moving, probes) if probes else None
    if found is None:
        found = torch.ones_like(joined(moving))
    own = dict(zip(map(id, moving), found.split([p.numel() for p in moving]), strict=True))
    return torch.cat([own.get(id(p), found.new_zeros(p.numel())) for p in params])


def _equilibrated(loss: Callable[[], Tensor], params: Sequence[Tensor], probes: int) -> Tensor | None:
    """The units (p,) of parameters that move; None where the loss has no second derivative."""
    try:
        gradient = _gradient(loss(), params, create_graph=True)
        signs = torch.randint(0, 2, (probes, len(gradient)), device=gradient.device).to(gradient) * 2 - 1
        unit, before = torch.ones_like(gradient).detach(), math.inf
        for _ in range(ROUNDS):
            norms = _row_norms(gradient, params, unit, signs)
            top = norms.max()
            norms = torch.where(norms > 0, norms, top)
            unit = unit * norms.clamp_min(FLOOR * top).rsqrt()
            ratio = float(top / norms.min())
            if not ALIKE < ratio < before / 2:
                break
            before = ratio
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return unit if unit.isfinite().all() else None


def _row_norms(gradient: Tensor, params: Sequence[Tensor], unit: Tensor, signs: Tensor) -> Tensor:
    """The norms of the rows (p,) of the Hessian in these units, by its products with vectors of signs (probes, p)."""
    total = torch.zeros_like(unit)
    for sign in signs:
        total += (unit * _gradient(gradient @ (unit * sign), params)).square()
    return (total / len(signs)).sqrt()


def _gradient(value: Tensor, params: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """The gradient of a scalar (p,); zero where it does not depend on a parameter."""
    found = torch.autograd.grad(
        value, params, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in found])


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector (p,), a copy without derivatives."""
    return torch.cat([one.detach().flatten() for one in tensors]) if tensors else torch.zeros(0)


@torch.no_grad()
def place(params: Sequence[Tensor], value: Tensor) -> None:
    """Set parameters, in place, from one vector (p,)."""
    for p, part in zip(params, value.split([p.numel() for p in params]), strict=True):
        p.copy_(part.view_as(p))
