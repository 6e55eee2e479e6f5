"""Flow: an exact density, more room than a Gaussian, and every way a guide is used."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import zoo
from guides import Amortized, CannotServe, Flow
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.losses.quadrature import QuadratureELBO

pytestmark = pytest.mark.usefixtures("own_store")

both = pytest.mark.parametrize("kind", ["iaf", "spline"])
trained = pytest.mark.parametrize("kind", ["iaf", pytest.param("spline", marks=pytest.mark.slow)])


def pushed(guide, by=0.5):
    """The guide, away from its start."""
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(by * torch.randn_like(p))
    return guide


def frozen(theta, x):
    """PPCA at its optimum, with loadings turned by an angle so that the posterior is correlated."""
    model = zoo.PPCA(x.shape[1], 2).double()
    zoo.em(model, x)
    c, s = math.cos(theta), math.sin(theta)
    with torch.no_grad():
        model.weight.copy_(zoo_axes(model.weight) @ torch.tensor([[c, -s], [s, c]]).to(x))
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def zoo_axes(weight):
    """Loadings in the basis in which their columns are orthogonal, and the posterior uncorrelated."""
    return weight @ torch.linalg.svd(weight, full_matrices=False).Vh.T


@both
def test_starts_near_the_standard_normal(kind, some):
    model = zoo.PPCA(4, 2).double()
    q = Flow(model, some, transform=kind, length=3).posterior(some)
    z = q.rsample()
    assert (q.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).abs().max() < 0.3
    assert z.std(0).sub(1).abs().max() < 0.5


@both
@pytest.mark.parametrize("k", [1, 2, 4])
def test_density_is_the_change_of_variables(kind, k, some):
    """Of draws, with autograd's Jacobian; and the same of copies of them, which must be inverted."""
    guide = pushed(Flow(zoo.VAE(4, k).double(), some, (8,), kind, 3), 0.2)
    row = some[:1]
    loc, scale, _ = guide.encode(row)
    q = guide.posterior(row)
    for _ in range(3):
        eps = torch.randn(1, k, dtype=torch.float64)

        def bend(e):
            z = loc + scale * e
            for step in q.carried.transforms:
                z = step(z)
            return z

        jacobian = torch.autograd.functional.jacobian(bend, eps)[0, :, 0]
        expected = dist.Normal(0.0, 1.0).log_prob(eps).sum() - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(q.log_prob(bend(eps))[0], expected, rtol=0, atol=1e-8)
        fresh = guide.posterior(row)
        torch.testing.assert_close(fresh.log_prob(bend(eps).detach().clone())[0], expected, rtol=0, atol=1e-6)


@both
def test_density_integrates_to_one(kind, some):
    """Over a grid of cells: two kinds of curvature, one rule."""
    guide = pushed(Flow(zoo.PPCA(4, 2).double(), some, (8,), kind), 0.15)
    row, step = some[:1], 0.04
    with torch.no_grad():
        q = guide.posterior(row)
        draws = q.rsample((2000,))[:, 0]
        low, high = draws.amin(0) - 3, draws.amax(0) + 3
        axes = [torch.arange(low[j], high[j], step, dtype=torch.float64) for j in range(2)]
        grid = torch.cartesian_prod(*axes).unsqueeze(1)
        total = q.log_prob(grid).exp().sum() * step**2
    assert total.item() == pytest.approx(1.0, abs=2e-3)  # cells across a spline's knots: O(step) of few cells


@both
def test_particles_and_copies_of_the_context(kind, some):
    guide = pushed(Flow(zoo.PPCA(4, 2).double(), some, transform=kind), 0.1)
    q = guide.posterior(some)
    z = q.rsample((3,))
    assert z.shape == (3, 60, 2)
    apart = torch.stack([guide.posterior(some).log_prob(one.detach().clone()) for one in z])
    torch.testing.assert_close(q.log_prob(z), apart)
    one_row = torch.cat(
        [guide.posterior(row.unsqueeze(0)).log_prob(z[0, i : i + 1].detach()) for i, row in enumerate(some[:5])]
    )
    torch.testing.assert_close(one_row, apart[0, :5])


@both
def test_no_rule_for_gaussians_takes_it(kind, some):
    """At its start in float32 a flow is Gaussian up to rounding, and would pass for one."""
    x = some.float()
    model = zoo.PPCA(4, 2)
    guide = Flow(model, x, transform=kind)
    assert not QuadratureELBO.exact(model, guide, x)
    assert zoo.fit(model, guide, x, steps=2, progress=False).settings["loss"] == "Trace_ELBO"


@trained
def test_closes_the_gap_of_a_correlated_posterior(kind, iris):
    """The best diagonal q has the gap (sum log P_jj - log |P|) / 2; a flow gets below a quarter of it."""
    x = iris[::3]
    model = frozen(math.pi / 4, x)
    precision = model.posterior(x).precision_matrix[0]
    best = 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet).item()
    assert best > 0.5
    run = zoo.fit(model, Flow(model, x, (32,), kind), x, steps=250, progress=False)
    result = zoo.evaluate(run, x, draws=200)
    assert result.gap.mean() < best / 4
    assert result.gap.mean() > -5 * float(result.gap_se.square().sum().sqrt() / len(x))


class Banana(nn.Module):
    """Two normals, and two columns of z_2 - z_1^2 under noise: a posterior along a parabola."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            ridge = (z[..., 1] - z[..., 0].square()).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(ridge.expand(*ridge.shape[:-1], 2), 0.4).to_event(1), obs=x)


@trained
def test_bends_along_a_banana(kind):
    with seeded(1), torch.no_grad():
        x = Banana()(size=40)
    bounds = {}
    for guide in (Amortized(Banana(), x, (32,), "full"), Flow(Banana(), x, (32,), kind)):
        run = zoo.fit(Banana(), guide, x, steps=250, progress=False)
        bounds[type(guide).__name__] = zoo.evaluate(run, x, draws=200).summary()["elbo"]
    assert bounds["Flow"] > bounds["Amortized"] + 0.15


class Pair(nn.Module):
    """A real and a positive site that only their product's logarithm is seen of."""

    def forward(self, x=None, index=None, size=None):
        zero = torch.zeros((), dtype=torch.float64)
        with rows(x, index, size):
            a = pyro.sample("a", dist.Normal(zero, 1.0))
            b = pyro.sample("b", dist.LogNormal(zero, 1.0))
            pyro.sample("share", dist.Dirichlet(torch.ones(3).to(zero)))
            seen = (a + b.log()).unsqueeze(-1)
            return pyro.sample("x", dist.Normal(seen.expand(*seen.shape[:-1], 2), 0.5).to_event(1), obs=x)


@trained
def test_several_sites_of_several_supports(kind):
    """One joint density: the strong dependence of two sites is in it, and the draws are where they may be."""
    with seeded(2), torch.no_grad():
        x = Pair()(size=50)
    results = {}
    for guide in (Amortized(Pair(), x, (16,)), Flow(Pair(), x, (16,), kind)):
        run = zoo.fit(Pair(), guide, x, steps=150, progress=False)
        # log p(x): the seen sum has the variance 2, and its two copies the noise 0.25 each
        covariance = 2.0 + 0.25 * torch.eye(2).double()
        truth = dist.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x).mean().item()
        results[type(guide).__name__] = truth - zoo.evaluate(run, x, draws=200).summary()["elbo"]
        draws = run.sample(x, 5)
        assert {name: tuple(value.shape) for name, value in draws.items()} == {
            "a": (5, 50),
            "b": (5, 50),
            "share": (5, 50, 3),
        }
        assert (draws["b"] > 0).all()
        assert (draws["share"].sum(-1) - 1).abs().max() < 1e-10
    assert -0.02 < results["Flow"] < results["Amortized"] / 3
    with pytest.raises(ValueError, match="has 3 local latent sites"):
        guide.posterior(x)


@both
def test_minibatches_evaluation_arviz_and_disk(kind, some, tmp_path, untouched):
    x = some.clone()
    x[::5, 2] = math.nan
    model = zoo.FactorAnalysis(4, 2).double()
    guide = Flow(model, x, (8,), kind, 1, context=4)
    assert guide.settings["masked"] is True
    assert json.loads(json.dumps(guide.settings))["transform"] == kind
    with untouched():
        run = zoo.fit(model, guide, x, steps=20, batch_size=16, validation=x[:10], progress=False)
        result = zoo.evaluate(run, x, draws=50)
        assert result.elbo_se.min() > 0  # by draws: there is no closed form
        idata = zoo.to_arviz(run, x, draws=10)
        run.save(tmp_path / "run")
        again = zoo.load(tmp_path / "run")
    assert idata.posterior["z"].shape == (1, 10, 60, 2)
    assert torch.equal(run.sample(x, 3)["z"], again.sample(x, 3)["z"])
    z = run.sample(x, 1)["z"][0]
    torch.testing.assert_close(again.guide.posterior(x).log_prob(z), guide.posterior(x).log_prob(z))


def test_the_linear_network(some):
    guide = Flow(zoo.PPCA(4, 2).double(), some, hidden=())
    assert len(guide.encoder) == 1
    assert guide.posterior(some).rsample().isfinite().all()
    wide = Flow(zoo.VAE(4, 9).double(), some, hidden=(4,))  # no layer of a transform is narrower than z
    assert {layer.out_features for layer in wide.flows[0][0].nn.layers} == {9, 18}


def test_draws_are_scored_without_inversion(some, monkeypatch):
    guide = Flow(zoo.PPCA(4, 2).double(), some)
    passes = []
    inverse = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: passes.append(1) or inverse(self, x))
    trace = poutine.trace(guide).get_trace(some)
    drawn = len(passes)
    trace.compute_log_prob()
    assert len(passes) == drawn


def test_refusals(some, faithful):
    mixture = zoo.GMM(2, 2).double()
    with pytest.raises(CannotServe, match="'component' is discrete.*Use Amortized or MeanField"):
        Flow(mixture, faithful)

    def shared(x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x, index, size):
            pyro.sample("x", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=x)

    with pytest.raises(CannotServe, match="Flow cannot serve .*'m' is shared by all rows, .*Use MeanField or FullRank"):
        Flow(shared, some)
    model = zoo.PPCA(4, 2).double()
    for wrong, message in (
        ({"transform": "planar"}, "transform must be one of iaf, spline; got 'planar'"),
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"context": 0}, "context must be"),
        ({"bins": 1}, "bins must be a whole number of at least 2"),
        ({"bound": -1.0}, "bound must be a positive number"),
        ({"hidden": (0,)}, "hidden must be"),
        ({"activation": "sine"}, "activation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Flow(model, some, **wrong)
    guide = Flow(model, some)
    with pytest.raises(ValueError, match="x has 3 columns, the network of Flow was built for 4"):
        guide.posterior(some[:, :3])
    with pytest.raises(ValueError, match="pass x"):
        guide()
