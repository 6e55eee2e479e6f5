"""The density of rows with shared deviations is that of independent normal entries."""

import pyro.distributions as dist
import pytest
import torch

from zoo.distributions.diagonal import DiagonalNormal


def pair(shape, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return DiagonalNormal(loc, scale), dist.Normal(loc, scale).to_event(1), loc


@pytest.mark.parametrize("scale", [0.3, [0.2, 1.0, 5.0]])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
def test_values_and_gradients(scale, shape):
    scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    ours, plain, loc = pair(shape, scale)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = ours.log_prob(x), plain.log_prob(x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    weights = torch.arange(1.0, a.numel() + 1).reshape(a.shape).double()
    for one, other in zip(
        torch.autograd.grad((a * weights).sum(), [loc, scale]),
        torch.autograd.grad((b * weights).sum(), [loc, scale]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-8)


def test_batch_event_and_draws():
    ours, plain, _ = pair((4, 3), torch.tensor(0.5, dtype=torch.float64))
    assert (ours.batch_shape, ours.event_shape) == ((4,), (3,))
    wide = ours.expand((2, 4))
    assert wide.batch_shape == (2, 4)
    torch.manual_seed(0)
    x = wide.rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(x, plain.expand((2, 4)).rsample())
    torch.testing.assert_close(wide.log_prob(x), plain.log_prob(x))
    assert ours.mask(torch.tensor([True, False, True, True])).log_prob(x[0])[1] == 0


def test_what_is_no_row_is_refused():
    ours, _, _ = pair((4, 3), torch.tensor(0.5, dtype=torch.float64))
    ours._validate_args = True
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((4, 3), torch.nan, dtype=torch.float64))
