"""Linear models in oblique coordinates: the same rows, the same bound, and draws with the factors' correlations."""

import pyro.distributions as dist
import pytest
import torch

import guides
import zoo
from zoo.alignment import rotate
from zoo.alignment.coordinates import rotated
from zoo.alignment.correlated import in_oblique_coordinates
from zoo.factors import posterior_scores

TURN = torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)


def test_a_density_in_oblique_coordinates_has_its_volume():
    q = dist.StudentT(3.0, torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    z = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64)
    expected = q.log_prob(z) - torch.log(torch.linalg.det(TURN))
    assert torch.allclose(rotated(q, TURN).log_prob(z @ TURN), expected, atol=1e-12)


@pytest.mark.parametrize("guide", [guides.Exact, guides.MeanField, guides.Amortized])
def test_the_bound_is_that_of_the_run(guide):
    x = zoo.data.load("iris", dtype=torch.float64).x
    model = zoo.FactorAnalysis(4, 2).double()
    made = guide(model) if guide is guides.Exact else guide(model, x)
    run = zoo.fit(model, made, x, steps=20, progress=False)
    turned = in_oblique_coordinates(run, rotate(run, "oblimin").transform)
    before, after = run.sample(x, 20, seed=1)["z"], turned.sample(x, 20, seed=1)["z"]
    assert torch.allclose(before @ rotate(run, "oblimin").transform, after, atol=1e-10)
    old, new = zoo.evaluate(run, x, draws=50), zoo.evaluate(turned, x, draws=50)
    assert new.summary()["log_marginal"] == pytest.approx(old.summary()["log_marginal"], abs=0.02)
    scores = posterior_scores(turned, x)
    assert torch.allclose(scores.mean, posterior_scores(run, x).mean @ rotate(run, "oblimin").transform, atol=1e-8)


def test_a_mixture_has_no_oblique_coordinates():
    run = zoo.em(zoo.GMM(4, 2).double(), zoo.data.load("iris", dtype=torch.float64).x, steps=2)
    with pytest.raises(TypeError, match="neither linear-Gaussian"):
        in_oblique_coordinates(run, TURN)
