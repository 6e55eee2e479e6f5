"""A recorded graph gives what the function gives, with fewer operations."""

import math

import pytest
import torch

from zoo.infer.losses.graph import NotCaptured, recorded


def in_place(x, y):
    z = 2 * x
    before, same = 3 * z, z * 1
    z.add_(y)
    return [before, 3 * z, z - 0, same]


def in_parts(x, y):
    z = 2 * x
    before, part, same = 3 * z, z[0], z * 1
    part.mul_(-1)
    z.view(-1)[:: z.shape[-1] + 1].add_(y.sum())
    z.diagonal(dim1=-2, dim2=-1).add_(1)
    return [before, 3 * z, z - 0, part * 2, same, 3 * (2 * x)]


def onto_constants(x, y):
    z, total = torch.zeros_like(x), torch.zeros(4, dtype=x.dtype)
    first = y[0, 0] * z[0]
    z[0].add_(x[0])
    total.add_(x.flatten()[:4])
    total[1] += 1
    return [z, first, total, torch.zeros_like(x) + y]


def filled(x, y):
    z = torch.zeros(3, dtype=x.dtype)
    z[torch.tensor([1])] = (2 * x).sum()
    return [2 * z, z / 2, torch.empty_like(x).fill_(3.0) * y]


FUNCTIONS = {
    "sums": lambda x, y: [2 * x + 3 * y, 2 * x - 3 * y, -x + 1, 2 * x - 3, 1 - 2 * x, 0 - 2 * x, -(x + 0)],
    "scaled sums": lambda x, y: [torch.add(2 * x, y, alpha=3), (2 * x).sum(), (2 * x).sum(-1, keepdim=True) / 4],
    "products": lambda x, y: [(2 * x) * (3 * y), (2 * x) / (3 * y), 1 / (2 * x), x / 2, (-x) * (-x)],
    "powers": lambda x, y: [(2 * x) ** 2, (2 * x) ** 3, x**1, (2 * x) ** 1, (-x) ** 2, (2 * y) ** 0.5],
    "zero and infinity": lambda x, y: [(x * 0) + y, (x * math.inf) * 2, (y * math.nan) + 1, x - math.inf],
    "filled tensors": lambda x, y: [torch.full((5, 3, 4), 2.0) * x, x / torch.full_like(x, 4.0), torch.ones(4) / x],
    "literals": lambda x, y: [x * torch.tensor([1.0, 2.0, 3.0, 4.0]), x + torch.tensor(2.0), torch.arange(4) * x],
    "other types": lambda x, y: [(2 * x).double() * 3, 2 * (x > 0), (3 * (x > 0).long()) // 2, (2 * x).half() * 2],
    "views": lambda x, y: [(2 * x).T.T, torch.cat([2 * x]), (2 * x).split(4, -1)[0] * 3, (-x).expand(5, 3, 4)],
    "results that share memory": lambda x, y: [x, x.T, 2 * y, (2 * y).T, 1 * x],
    "writing": in_place,
    "writing to parts": in_parts,
    "writing to constants": onto_constants,
    "filling": filled,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_graph_gives_what_the_function_gives(name):
    function, first, later = FUNCTIONS[name], torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    graph = recorded(function, [first[0], first[1].exp()])
    x, y = later[0], later[1].exp()
    right = function(x.clone(), y.clone())
    ours = graph(x, y)
    torch.testing.assert_close(ours, right, rtol=5e-7, atol=1e-7, equal_nan=True)
    places = [t.untyped_storage().data_ptr() for t in (x, y, *ours)]
    assert len(set(places)) == len(places)


def test_factors_and_what_is_computed_twice_cost_nothing():
    def density(x, mean, scale):
        value = (-((x - mean) ** 2) / (2 * scale**2) - scale.log() - 0.5 * math.log(2 * math.pi)).sum()
        return [value.detach(), *torch.autograd.grad(-8.0 * value, [mean, scale])]

    inputs = [torch.randn(3, 4), torch.randn(3, 4).requires_grad_(), torch.rand(3, 4).add(1).requires_grad_()]
    graph = recorded(density, inputs)
    torch.testing.assert_close(graph(*inputs), density(*inputs), rtol=1e-6, atol=1e-6)
    assert sum(node.op == "call_function" for node in graph.graph.nodes) <= 22


def test_results_share_no_memory_with_what_a_graph_keeps():
    outside, frozen = torch.ones(3), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    graph = recorded(lambda x: [outside, frozen.detach(), torch.ones(3), torch.ones(3), x.sum()], [torch.randn(3)])
    for result in graph(torch.zeros(3))[:-1]:
        result.mul_(2)
    assert torch.equal(torch.stack(graph(torch.zeros(3))[:-1]), torch.ones(4, 3))


def test_neutral_operations_are_left_out():
    def neutral(x):
        return [torch.cat([(x.t().t() * 1 / 1 + 0.0) ** 1]).exp(), x.split(4, -1)[0].sin()]

    x = torch.randn(3, 4)
    graph = recorded(neutral, [x])
    torch.testing.assert_close(graph(x), neutral(x))
    calls = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == ["exp", "sin_default"]


@pytest.mark.parametrize("write", [lambda x: x.add_(1), lambda x: x[0].add_(1)])
def test_writing_to_what_was_there_is_refused(write):
    kept = torch.ones(3)
    for function in (lambda y: [write(kept)], lambda y: [write(y)]):
        with pytest.raises(NotCaptured, match="writes to a tensor that was there before"):
            recorded(function, [torch.ones(3)])
    assert torch.equal(kept, torch.ones(3))


def test_a_failure_is_raised_by_the_graph_too():
    graph = recorded(lambda x: [torch.linalg.cholesky(x)], [torch.eye(3)])
    with pytest.raises(torch.linalg.LinAlgError):
        graph(-torch.eye(3))
