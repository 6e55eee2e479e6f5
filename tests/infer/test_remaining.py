"""A noisy fit of a conjugate model has converged only if EM gains no more from there."""

import copy

import pyro
import pytest
import torch

import guides
import zoo
from zoo.infer import Training
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.remaining import confirmed

pytestmark = pytest.mark.usefixtures("own_store")


def test_a_settled_curve_short_of_the_maximum_is_not_converged():
    """Two uniquenesses of these 30 flowers are at their floor, which a noisy fit approaches ever more slowly."""
    x = zoo.data.load("iris", dtype=torch.float64).x[:30]
    model = zoo.FactorAnalysis(4, 2).double()
    best = zoo.em(model, x)
    short = copy.deepcopy(model)
    short.scale = short.scale.detach() * 1.2 + 0.02
    loss = pyro.infer.Trace_ELBO()
    adam = pyro.optim.Adam({"lr": 0.01})
    plan = zoo.plan(model, guides.Exact(model), x, loss=loss, optim=adam, steps=10)
    searched = zoo.plan(model, guides.Exact(model), x, optim=LBFGS(), steps=10)

    def run(own):
        mean = float(own.log_marginal(x).detach().mean())
        training = Training(torch.full((800,), -mean).double(), converged=True, stopped="the bound has settled")
        return zoo.Fit(own, guides.Exact(own), training)

    assert confirmed(run(model), plan).converged
    found = confirmed(run(short), plan)
    assert not found.converged
    left = float(best[-1]) / 30 - float(short.log_marginal(x).detach().mean())
    assert found.stopped == f"the bound has settled, but EM goes on from there by {left:.2g} nats per row"
    assert confirmed(run(short), searched).converged  # a search without noise is assessed by its own gains
