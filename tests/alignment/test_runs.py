"""Runs in other latent coordinates: the model and the guide together, whatever the guide is."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import rows_plate
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField, SemiAmortized
from zoo.alignment import Alignment, align, canonical_transform, covariance, to_canonical
from zoo.alignment.coordinates import NewCoordinates, RotatedNormal
from zoo.posterior.engine import reader, reading

ALGEBRA = {"rtol": 1e-8, "atol": 1e-8}  # float64
ROTATION = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q


def by_hand(model, x):
    """A plain function with parameters of its own, in Pyro's store, whose second site depends on the first."""

    def guide(x=None, index=None, size=None):
        loc = pyro.param("loc", torch.ones(2, dtype=torch.float64))
        with zoo.base.rows(x, index, size):
            pyro.sample("z", dist.Normal(loc.expand(len(x), 2), 0.3).to_event(1))

    return guide


GUIDES = {
    "Exact": lambda model, x: Exact(model),
    "MeanField": MeanField,
    "MeanField, E-step": lambda model, x: MeanField(model, x, closed_form=True),
    "FullRank": FullRank,
    "linear encoder": lambda model, x: Amortized(model, x, hidden=()),
    "Amortized": lambda model, x: Amortized(model, x, hidden=(5,), covariance="full"),
    "SemiAmortized": lambda model, x: SemiAmortized(model, x, hidden=(5,)),
    "Flow": lambda model, x: Flow(model, x, hidden=(5,)),
    "function": by_hand,
    "AutoNormal": lambda model, x: AutoNormal(model),
    "AutoNormal, minibatches": lambda model, x: AutoNormal(model, create_plates=rows_plate),
    "AutoMultivariateNormal": lambda model, x: AutoMultivariateNormal(model),
    "AutoLowRank": lambda model, x: AutoLowRankMultivariateNormal(model, rank=2),
}


@pytest.fixture
def x(iris):
    return iris[::6]  # (25, 4)


def pair(name, x):
    """A trained PPCA, not in its canonical coordinates, and a guide."""
    torch.manual_seed(3)
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, x, steps=30)
    model = Alignment(rotation=ROTATION).apply(model)
    guide = GUIDES[name](model, x)
    if name in ("function",) or name.startswith("Auto"):
        with torch.no_grad():
            guide(x)
    if hasattr(guide, "initialize"):
        guide.initialize(x)
    run = zoo.Fit(model, guide.double() if isinstance(guide, torch.nn.Module) else guide)
    pyro.clear_param_store()
    return run


@pytest.mark.parametrize("rotation", ["principal", "varimax"])
@pytest.mark.parametrize("name", GUIDES)
def test_bound_and_draws_follow(name, rotation, x, untouched):
    run = pair(name, x)
    weight = run.model.weight.detach().clone()
    with untouched():
        turned = to_canonical(run, rotation)
    change = canonical_transform(run, rotation)
    assert (change.rotation - torch.eye(2)).abs().max() > 0.1
    torch.testing.assert_close(turned.model.weight, to_canonical(run.model, rotation).weight, rtol=0, atol=0)
    assert torch.equal(run.model.weight, weight)  # the run itself is as it was
    ours, theirs = zoo.evaluate(turned, x, draws=50), zoo.evaluate(run, x, draws=50)
    for part in ("elbo", "log_marginal"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), **ALGEBRA)
    assert ours.total == pytest.approx(theirs.total, rel=1e-10)
    z, before = turned.sample(x, 40)["z"], run.sample(x, 40)["z"]
    if name == "Exact":  # the new model's own posterior, with draws of its own
        assert isinstance(turned.guide, Exact)
        assert turned.guide.model is turned.model
        torch.testing.assert_close(
            turned.guide.posterior(x).mean, change.factors(run.guide.posterior(x).mean), **ALGEBRA
        )
    else:
        torch.testing.assert_close(z, change.factors(before), **ALGEBRA)
    torch.testing.assert_close(turned.model.log_marginal(x), run.model.log_marginal(x), check_dtype=False, **ALGEBRA)


@pytest.mark.parametrize("name", ["MeanField", "Amortized", "AutoNormal, minibatches"])
def test_minibatches(name, x):
    turned = to_canonical(pair(name, x))
    index = torch.tensor([3, 17, 8])
    with reading(turned, 0):
        source = reader(turned, x)
        drawn = source.draw((x[index], index, len(x)), 30)
    assert drawn.values["z"].shape == (30, 3, 2)
    assert drawn.log_q.by_row.shape == (30, 3)


def test_gaussians_stay_gaussians(x):
    """A diagonal Gaussian has a full covariance after a rotation, and is known as a Gaussian."""
    run = pair("MeanField", x)
    turned = to_canonical(run)
    rotation = canonical_transform(run).rotation
    with reading(turned, 0):
        q = pyro.poutine.trace(turned.guide).get_trace(x).nodes["z"]["fn"]
    assert isinstance(q, RotatedNormal)
    scale = torch.diag_embed(run.guide.scale.detach() ** 2)
    torch.testing.assert_close(q.covariance_matrix, rotation.T @ scale @ rotation, **ALGEBRA)
    torch.testing.assert_close(q.mean, run.guide.loc.detach() @ rotation, **ALGEBRA)
    torch.testing.assert_close(
        zoo.diagnostics.posterior_error(turned, x).kl, zoo.diagnostics.posterior_error(run, x).kl
    )


def test_the_guide_goes_on_in_its_own_coordinates():
    def guide():
        z = pyro.sample("z", dist.Normal(torch.tensor([1.0, 2.0]), 1e-6).to_event(1))
        return pyro.sample("w", dist.Delta(z.sum()))

    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    trace = pyro.poutine.trace(NewCoordinates("z", rotation=turn)(guide)).get_trace()
    torch.testing.assert_close(trace.nodes["z"]["value"], torch.tensor([-2.0, 1.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(trace.nodes["w"]["value"], torch.tensor(3.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("enumerated", [False, True])
def test_components_are_renumbered(x, enumerated):
    torch.manual_seed(0)
    model = zoo.GMM(4, 3, "tied").double()
    zoo.em(model, x, steps=5)
    model = Alignment(order=torch.tensor([2, 0, 1])).apply(model)
    guide = MeanField(model, x)
    guide.component_logits = torch.randn(25, 3, dtype=torch.float64)
    run = zoo.Fit(config_enumerate(model) if enumerated else model, guide)
    turned, order = to_canonical(run), canonical_transform(run).order
    assert order.tolist() != [0, 1, 2]
    torch.testing.assert_close(zoo.evaluate(turned, x).elbo, zoo.evaluate(run, x).elbo, **ALGEBRA)
    expected = guide.component_logits.detach().softmax(-1)[:, order]
    with reading(turned, 0):
        q = pyro.poutine.trace(turned.guide).get_trace(x).nodes["component"]["fn"]
    torch.testing.assert_close(q.probs, expected)
    labels = turned.sample(x, 4000)["component"]
    share = torch.stack([(labels == j).double().mean(0) for j in range(3)], -1)
    assert (share - expected).abs().max() < 5 * 0.5 / 4000**0.5


def test_one_run_aligned_to_another(x):
    run = pair("MeanField", x)
    other = Alignment(rotation=ROTATION.mT).apply(run)
    change = align(other, run)
    torch.testing.assert_close(change.rotation, ROTATION, **ALGEBRA)
    back = change.apply(other)  # a guide behind two handlers
    torch.testing.assert_close(back.model.weight, run.model.weight, **ALGEBRA)
    torch.testing.assert_close(back.sample(x, 20)["z"], run.sample(x, 20)["z"], **ALGEBRA)
    torch.testing.assert_close(zoo.evaluate(back, x).elbo, zoo.evaluate(run, x).elbo, **ALGEBRA)
    torch.testing.assert_close(covariance(run), covariance(other), **ALGEBRA)


def test_all_that_shows_factors_shows_the_same(x):
    run = pair("MeanField", x)
    turned = to_canonical(run, "varimax")
    change = canonical_transform(run, "varimax")
    idata, before = zoo.to_arviz(turned, x, draws=30), zoo.to_arviz(run, x, draws=30)
    z = torch.as_tensor(before["posterior"]["z"].values)
    np.testing.assert_allclose(idata["posterior"]["z"].values, change.factors(z), rtol=0, atol=1e-8)
    for name in ("lp", "log_q"):
        np.testing.assert_allclose(idata["sample_stats"][name], before["sample_stats"][name], rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        idata["constant_data"]["weight"], to_canonical(run.model, "varimax").weight.detach(), rtol=0, atol=1e-12
    )
    assert "NewCoordinates" not in idata.attrs["guide"]
    axes = zoo.plots.latent(turned, x)
    drawn = axes.collections[0].get_offsets()
    expected = change.factors(run.guide.posterior(x).mean.detach())
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


def test_training_goes_on_in_neither(x):
    run = pair("MeanField, E-step", x)
    turned = to_canonical(run)
    before = zoo.evaluate(turned, x).elbo
    with torch.no_grad():
        run.model.weight_unconstrained.add_(1.0) if hasattr(run.model, "weight_unconstrained") else (
            run.model.weight.add_(1.0)
        )
    assert torch.equal(zoo.evaluate(turned, x).elbo, before)


def test_refusals(x):
    model = zoo.VAE(4, 2, hidden=(4,)).double()
    run = zoo.Fit(model, Amortized(model, x, hidden=(4,)))
    with pytest.raises(TypeError, match="the symmetries of VAE are unknown"):
        to_canonical(run)
