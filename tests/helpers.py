"""What several test files need: fits without a bar, pairs as they are, comparisons, steps away from a start."""

import pyro
import torch
from pyro.infer.autoguide import AutoGuide

import zoo
from zoo.data import Moments

ALGEBRA = 1e-10  # float64, of algebra that is exact
ABILITY_NAMES = ("general", "picture", "blocks", "maze", "reading", "vocab")
ABILITY = torch.tensor(  # R's ability.cov, of 112 persons (Smith and Stanley 1983)
    [
        [24.641, 5.991, 33.520, 6.023, 20.755, 29.701],
        [5.991, 6.700, 18.137, 1.782, 4.936, 7.204],
        [33.520, 18.137, 149.831, 19.424, 31.430, 50.753],
        [6.023, 1.782, 19.424, 12.711, 4.757, 9.075],
        [20.755, 4.936, 31.430, 4.757, 52.604, 66.762],
        [29.701, 7.204, 50.753, 9.075, 66.762, 135.292],
    ],
    dtype=torch.float64,
)


def ability():
    """The moments of six tests of ability."""
    return Moments.from_covariance(ABILITY, n=112, columns=ABILITY_NAMES)


def fit(model, guide, x, **settings):
    """``zoo.fit`` without a progress bar."""
    return zoo.fit(model, guide, x, progress=False, **settings)


def as_it_is(model, guide, x=None):
    """A pair to be judged at the parameters that it has; an autoguide takes its start from ``x``."""
    with pyro.get_param_store().scope():
        if isinstance(guide, AutoGuide):
            guide(x)
        return zoo.Fit(model, guide)


def close(a, b, tolerance=ALGEBRA):
    """Assert that two tensors are equal but for rounding, absolutely and relatively."""
    torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance)


def jitter(*modules, by=0.2):
    """Take random steps in unconstrained coordinates, so that every parameter matters afterwards."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(by * torch.randn_like(parameter))


def rows_plate(x, index=None, size=None):
    """The plate of the rows, as an autoguide's ``create_plates`` wants it."""
    return pyro.plate("rows", size or len(x), subsample=index, dim=-1)


def zeros(*shape):
    """Zeros in float64."""
    return torch.zeros(shape, dtype=torch.float64)


def random_mixture(covariance, d=3, k=4):
    """A Gaussian mixture at random parameters, with nothing at its default."""
    model = zoo.GMM(d, k, covariance).double()
    model.weight = torch.distributions.Dirichlet(torch.full((k,), 3.0).double()).sample()
    model.mean = 2 * torch.randn(k, d).double()
    scale = 0.5 + torch.rand_like(model.scale)
    model.scale = scale.tril() if covariance in ("full", "tied") else scale
    return model
