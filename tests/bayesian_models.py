"""What the tests of the Bayesian models share: brute force, and perturbations of the factors."""

from dataclasses import replace

import pyro.poutine as poutine
import torch

import zoo
from zoo.algebra.exponential_families import blend
from zoo.base.random import seeded


def faithful():
    """Old Faithful, z-scored with population deviations, as the reference numbers have it."""
    x = zoo.data.load("faithful", dtype=torch.float64).x
    return (x - x.mean(0)) / x.std(0, correction=0)


def iris():
    """Centred iris."""
    x = zoo.data.load("iris", dtype=torch.float64).x
    return x - x.mean(0)


def with_holes(x, share=0.2):
    """x with a share of its entries missing."""
    generator = torch.Generator().manual_seed(5)
    return torch.where(torch.rand(x.shape, generator=generator) < share, torch.nan, x)


def log_joint(model, x, values):
    """log p(x, values) by the model's own trace, summed over all sites."""
    conditioned = poutine.condition(model, data=values)
    return poutine.trace(conditioned).get_trace(x).log_prob_sum()


def expected_bound(run, x, draws=100):
    """E_q[log p - log q] by draws, and its standard error."""
    with seeded(0), run.scope(), torch.no_grad():
        totals = []
        for _ in range(draws):
            traced = poutine.trace(run.guide).get_trace(x)
            model = poutine.trace(poutine.replay(run.model, traced)).get_trace(x)
            totals.append(model.log_prob_sum() - traced.log_prob_sum())
    found = torch.stack(totals)
    return float(found.mean()), float(found.std() / draws**0.5)


def perturbed(factor, other, rate):
    """A factor moved towards another of its family in natural parameters."""
    if hasattr(factor, "natural"):
        return blend(factor, other, rate)
    return replace(
        factor, mean=torch.lerp(factor.mean, other.mean, rate), beta=torch.lerp(factor.beta, other.beta, rate)
    )


def assert_every_factor_is_optimal(model, x, factors, other):
    """The bound falls wherever one factor moves towards that of ``other``, the others kept."""
    best = float(model.bound(x, factors))
    for name in factors:
        for rate in (0.02, 0.2):
            moved = {**factors, name: perturbed(factors[name], other[name], rate)}
            assert float(model.bound(x, moved)) < best + 1e-9 * abs(best), name


def ascended(model, x, sweeps=400, seed=0):
    """The coordinate ascent of a model after some sweeps, its bounds after every one of them, rotations left out."""
    with seeded(0):
        model.initialize(x)
    ascent = model.coordinate_ascent(x, torch.Generator().manual_seed(seed))
    bounds = []
    for _ in range(sweeps):
        ascent.sweep()
        bounds.append(float(ascent.bound()))
    return ascent, torch.tensor(bounds, dtype=torch.float64)
