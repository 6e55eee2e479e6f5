"""Coordinates in which a line search finds every parameter of about the same scale."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOOR = 1e-6  # lower bound on row norms of the Hessian, relative to the largest


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
    r"""The units :math:`1 / \sqrt{D_i}` of parameters (p,), with :math:`D_i` the norm of row i of the loss's Hessian.

    Where the loss has no second derivative, and without probes, all units are 1.

    Args:
        loss: returns the loss at the current parameters.
        params: the parameters.
        moving: those of them that move; the units of the others are zero.
        probes: the number of Hessian-vector products, with Rademacher vectors, from which the norms are estimated.

    References:
        Dauphin, de Vries and Bengio (2015), Equilibrated adaptive learning rates for non-convex optimization, NIPS.
    """
    norms = _row_norms(loss, moving, probes) if probes else None
    if norms is None or not norms.isfinite().all():
        found = torch.ones_like(joined(moving))
    else:
        found = norms.clamp_min(FLOOR * norms.max()).rsqrt()
    own = dict(zip(map(id, moving), found.split([p.numel() for p in moving]), strict=True))
    return torch.cat([own.get(id(p), found.new_zeros(p.numel())) for p in params])


def _row_norms(loss: Callable[[], Tensor], params: Sequence[Tensor], probes: int) -> Tensor | None:
    """The norms of the Hessian's rows; None where the loss has no second derivative."""
    try:
        gradient = _gradient(loss(), params, create_graph=True)
        total = torch.zeros_like(gradient)
        for _ in range(probes):
            signs = torch.randint(0, 2, gradient.shape, device=gradient.device).to(gradient) * 2 - 1
            total += _gradient(gradient @ signs, params).square()
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return (total / probes).sqrt()


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
