"""The Hessian of a scalar in many parameters: as a matrix where it is small, by products with vectors elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLAT = 1e-9  # eigenvalues, of the equilibrated Hessian's largest, below which a direction is flat
SEEN = 1e-4  # share of a vector along flat directions above which it sees them
RESIDUAL = 1e-10  # of conjugate gradients, relative
PROBES = 20  # products that estimate the diagonal


@dataclass(frozen=True, eq=False)
class Curvature:
    r"""The Hessian H of a loss at one point, in coordinates that give it a diagonal near 1.

    Attributes:
        params: the parameters.
        gradient: of the loss (p,), differentiable.
        unit: of the coordinates (p,): one over the root of H's diagonal.
        values: eigenvalues of the equilibrated Hessian (p,); None where it is not held.
        vectors: its eigenvectors (p, p); None where it is not held.
    """

    params: Sequence[Tensor]
    gradient: Tensor
    unit: Tensor
    values: Tensor | None
    vectors: Tensor | None

    @classmethod
    def of(cls, loss: Tensor, params: Sequence[Tensor], dense: int) -> "Curvature":
        """The curvature of a differentiable scalar, held as a matrix for up to ``dense`` parameters."""
        gradient = _flat(torch.autograd.grad(loss, params, create_graph=True, allow_unused=True), params)
        count = len(gradient)
        if count <= dense:
            basis = torch.eye(count).to(gradient)
            hessian = torch.stack([_product(gradient, params, row) for row in basis])
            hessian = 0.5 * (hessian + hessian.mT)
            unit = _unit(hessian.diagonal())
            values, vectors = torch.linalg.eigh(unit * hessian * unit.unsqueeze(-1))
            return cls(params, gradient, unit, values, vectors)
        generator = torch.Generator().manual_seed(0)
        diagonal = torch.zeros_like(gradient)
        for _ in range(PROBES):
            sign = (torch.randint(0, 2, (count,), generator=generator) * 2 - 1).to(gradient)
            diagonal = diagonal + sign * _product(gradient, params, sign) / PROBES
        return cls(params, gradient, _unit(diagonal), None, None)

    def flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Gradients by parameter as one vector (p,)."""
        return _flat(gradients, self.params).detach()

    def decrement(self) -> float:
        """Half of g' H^-1 g: what a Newton step would gain; inf where the point is no minimum."""
        gradient = self.unit * self.gradient.detach()
        if self.values is not None and self.vectors is not None:
            top = self.values[-1]
            if not self.values[0] > -1e-6 * top:
                return float("inf")
            along = self.vectors.mT @ gradient
            kept = self.values > FLAT * top
            return 0.5 * float((along[kept].square() / self.values[kept]).sum())
        try:
            return 0.5 * float(gradient @ self._conjugate_gradients(gradient, "the gradient", tolerance=1e-3))
        except ValueError:
            return float("inf")

    def solve(self, vectors: Tensor, names: Sequence[str]) -> Tensor:
        """H^-1 v for every row v (q, p) with its name.

        Raises:
            ValueError: a vector sees a direction in which the loss is flat, or falls.
        """
        scaled = self.unit * vectors
        if self.values is None or self.vectors is None:
            pairs = zip(scaled, names, strict=True)
            return self.unit * torch.stack([self._conjugate_gradients(v, name) for v, name in pairs])
        along = scaled @ self.vectors
        kept = self.values > FLAT * self.values[-1]
        seen = along[:, ~kept].norm(dim=1) / along.norm(dim=1)
        if len(seen) and seen.max() > SEEN:
            raise ValueError(_flat_direction(names[int(seen.argmax())]))
        return self.unit * ((along[:, kept] / self.values[kept]) @ self.vectors[:, kept].mT)

    def _conjugate_gradients(self, vector: Tensor, name: str, tolerance: float = RESIDUAL) -> Tensor:
        """The solution in the equilibrated coordinates; from 0, it stays in the range of a singular Hessian."""
        solution, residual = torch.zeros_like(vector), vector.clone()
        direction, size = residual, residual @ residual
        limit = tolerance**2 * size
        for _ in range(10 * len(vector)):
            if size <= limit:
                return solution
            image = self.unit * _product(self.gradient, self.params, self.unit * direction)
            curvature = direction @ image
            if not curvature > FLAT * (direction @ direction):
                break
            length = size / curvature
            solution = solution + length * direction
            residual = residual - length * image
            before, size = size, residual @ residual
            direction = residual + (size / before) * direction
        raise ValueError(_flat_direction(name))


def _flat_direction(name: str) -> str:
    return (
        f"{name} moves along a direction in which the bound is flat, or rises (as along a rotation of the factors), so "
        "that its variance is not determined: take a quantity that does not see it, such as W W' + Psi, or give the "
        "guide a maximum there"
    )


def _flat(gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> Tensor:
    pairs = zip(gradients, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def _product(gradient: Tensor, params: Sequence[Tensor], vector: Tensor) -> Tensor:
    """H v (p,)."""
    found = torch.autograd.grad(gradient @ vector, params, retain_graph=True, allow_unused=True)
    return _flat(found, params)


def _unit(diagonal: Tensor) -> Tensor:
    """One over the root of a diagonal, whose entries count as a tiny share of the largest at least."""
    size = diagonal.abs()
    return size.clamp_min(1e-12 * size.max()).rsqrt()
