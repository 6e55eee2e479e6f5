"""The density of removed entries given those that were left."""

import pytest
import torch
from torch.distributions import MultivariateNormal

import guides
import zoo
from zoo.data import random_mask, remove
from zoo.diagnostics import conditional_density


@pytest.fixture
def rows():
    x = zoo.data.load("iris", dtype=torch.float64).x
    return remove(x, random_mask(*x.shape, 0.3, seed=0)), x


def brute(model, x, complete):
    """Conditional Gaussians, row by row."""
    covariance = model.weight @ model.weight.T + torch.diag(model.noise)
    found = []
    for part, whole in zip(x, complete, strict=True):
        m = part.isnan()
        if not m.any():
            found.append(torch.zeros((), dtype=x.dtype))
            continue
        gain = covariance[m][:, ~m] @ torch.linalg.inv(covariance[~m][:, ~m])
        mean = model.mean[m] + gain @ (whole - model.mean)[~m]
        left = covariance[m][:, m] - gain @ covariance[~m][:, m]
        found.append(MultivariateNormal(mean, (left + left.T) / 2).log_prob(whole[m]))
    return torch.stack(found)


def test_a_linear_model_has_the_conditional_gaussian(rows):
    x, complete = rows
    model = zoo.FactorAnalysis(4, 1).double()
    zoo.em(model, complete)
    found = conditional_density(model, x, complete)
    torch.testing.assert_close(found.log_density, brute(model, x, complete).detach(), rtol=0, atol=1e-9)
    assert found.draws == 0
    assert (found.se == 0).all()


def test_importance_sampling_agrees_with_the_closed_form(rows):
    """A linear VAE is factor analysis without the closed form: the same density, estimated."""
    x, complete = (part[:40] for part in rows)
    model = zoo.VAE(4, 2, hidden=(), noise="constant").double()
    model.estimate(rows[1])
    weight, mean, noise = model.linear_form()
    exact = zoo.FactorAnalysis(4, 2, floor=0.0).double()
    with torch.no_grad():
        exact.weight, exact.mean, exact.scale = weight, mean, noise.sqrt()
    run = zoo.Fit(model, guides.Amortized(model, x, hidden=()))
    found = conditional_density(run, x, complete, steps=300, draws=200)
    removed = x.isnan().any(1)
    torch.testing.assert_close(found.log_density, brute(exact, x, complete).detach(), rtol=0, atol=1e-3)
    assert (found.se[~removed] == 0).all()
    assert found.draws == 200


def test_shared_sites_are_averaged_over(rows):
    """With a posterior that is nearly a point, the average is the density at the point."""
    x, complete = rows
    model = zoo.BayesianPCA(4, 2).double()
    found = zoo.cavi(model, complete.repeat(200, 1), restarts=1, sweeps=200)
    part, whole = x, complete
    density = conditional_density(found, part, whole, draws=50)
    point = zoo.PPCA(4, 2).double()
    zoo.em(point, complete)
    exact = point.log_marginal(whole) - point.log_marginal(part)
    torch.testing.assert_close(density.log_density, exact.detach(), rtol=0, atol=0.05)


def test_rows_that_are_not_the_same_are_refused(rows):
    x, complete = rows
    model = zoo.PPCA(4, 1).double()
    zoo.em(model, complete)
    with pytest.raises(ValueError, match=r"complete has shape \(149, 4\) and x \(150, 4\)"):
        conditional_density(model, x, complete[1:])
    other = complete.clone()
    row, column = (~x.isnan()).nonzero()[7].tolist()
    other[row, column] += 1
    with pytest.raises(ValueError, match=f"row {row}, column {column} is"):
        conditional_density(model, x, other)
    with pytest.raises(ValueError, match="at least 30"):
        conditional_density(model, x, complete, draws=10)
