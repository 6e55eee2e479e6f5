"""The Hessian as a matrix and by products: the same answers, and the same refusals."""

import pytest
import torch

from zoo.algebra.curvature import Curvature

F64 = torch.float64


@pytest.mark.parametrize("dense", [10, 0])
def test_solves_and_the_gain_of_a_newton_step(dense):
    p = [torch.randn(2, dtype=F64, requires_grad=True), torch.randn(1, dtype=F64, requires_grad=True)]
    root = torch.randn(3, 3, dtype=F64) + 3 * torch.eye(3, dtype=F64)
    units = torch.tensor([1.0, 1e4, 1e-3], dtype=F64)  # of the parameters
    hessian = units * (root @ root.mT) * units.unsqueeze(-1)
    goal = torch.randn(3, dtype=F64) / units
    offset = torch.cat(p) - goal
    gain = 0.5 * float((offset @ hessian @ offset).detach())
    found = Curvature.of(0.5 * offset @ hessian @ offset, p, dense)
    assert found.decrement() == pytest.approx(gain, rel=1e-5)
    v = torch.randn(2, 3, dtype=F64) * units
    torch.testing.assert_close(found.solve(v, ("a", "b")), torch.linalg.solve(hessian, v.mT).mT, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dense", [10, 0])
def test_a_flat_direction_is_refused_only_to_those_who_see_it(dense):
    p = torch.tensor([1.0, -1.0], dtype=F64, requires_grad=True)
    found = Curvature.of(p.sum().square(), [p], dense)
    assert found.decrement() == pytest.approx(0.0)
    both = torch.ones(1, 2, dtype=F64)
    torch.testing.assert_close(found.solve(both, ("sum",)) @ both.mT, torch.full((1, 1), 0.5, dtype=F64))
    with pytest.raises(ValueError, match="difference moves along a direction in which the bound is flat"):
        found.solve(torch.tensor([[1.0, -1.0]], dtype=F64), ("difference",))


@pytest.mark.parametrize("dense", [10, 0])
def test_a_saddle_is_no_optimum(dense):
    p = torch.tensor([0.1, 0.1], dtype=F64, requires_grad=True)
    assert Curvature.of(p[0] * p[1] - p[0].square(), [p], dense).decrement() == float("inf")
