"""Fits that move the model's parameters alone: the best q in closed form against quadrature, and the starts."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer import ProjectedELBO, QuadratureELBO
from zoo.infer.projecting import projection_of

GUIDES = {
    "mean field": MeanField,
    "full rank": FullRank,
    "linear": lambda m, x: Amortized(m, x, hidden=()),
    "linear, full": lambda m, x: Amortized(m, x, hidden=(), covariance="full"),
    "deep": lambda m, x: Amortized(m, x, hidden=(5,)),
    "deep, full": lambda m, x: Amortized(m, x, hidden=(5, 5), covariance="full", masked=True),
}
MODELS = {
    "PPCA": lambda: zoo.PPCA(9, 2),
    "FactorAnalysis": lambda: zoo.FactorAnalysis(9, 2),
    "scalar VAE": lambda: zoo.VAE(9, 2, hidden=(), covariance="scalar", noise="constant"),
    "diagonal VAE": lambda: zoo.VAE(9, 2, hidden=(), noise="constant"),
}


@pytest.fixture(scope="module")
def pupils() -> torch.Tensor:
    """Nine tests of 301 pupils (301, 9), float64."""
    return zoo.data.load("holzinger", dtype=torch.float64).x


def drawn(build, x):
    """A model at a random start, in which the factors are correlated a posteriori."""
    with seeded(3):
        model = build().double()
        model.initialize(x)
    return model


@pytest.mark.parametrize("family", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_the_projected_bound_is_that_of_the_pair_and_no_q_has_a_higher_one(name, family, pupils):
    model = drawn(MODELS[name], pupils)
    guide = GUIDES[family](model, pupils)
    found = projection_of(model, guide, pupils)
    found.solve()
    exact = QuadratureELBO()
    with pyro.get_param_store().scope():
        loss = exact.differentiable_loss(model, guide, pupils)
        own = list(guide.parameters())
        slopes = torch.autograd.grad(loss, own, allow_unused=True)
    torch.testing.assert_close(-found.bound().detach(), loss.detach(), rtol=1e-9, atol=0)
    for slope in slopes:  # the gradient in q vanishes
        assert slope is None or slope.abs().max() < 1e-6 * abs(loss.item())


@pytest.mark.parametrize("family", ["mean field", "full rank", "deep"])
def test_its_gradient_is_that_of_the_bound_with_q_held_fixed(family, pupils):
    model = drawn(MODELS["FactorAnalysis"], pupils)
    model.weight.requires_grad_(False)  # no rotation: factors stay correlated
    guide = GUIDES[family](model, pupils)
    found = projection_of(model, guide, pupils)
    found.solve()
    free = [p for p in model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(found.bound(), free)
    with pyro.get_param_store().scope():
        plain = torch.autograd.grad(-QuadratureELBO().differentiable_loss(model, guide, pupils), free)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", ["mean field", "full rank"])
@pytest.mark.parametrize("name", MODELS)
def test_missing_entries_row_by_row(name, family, pupils):
    x = pupils.clone()
    x[::5, 1] = x[3::7, 2] = torch.nan
    model = drawn(MODELS[name], x)
    guide = GUIDES[family](model, x)
    found = projection_of(model, guide, x)
    found.solve()
    with pyro.get_param_store().scope():
        loss = QuadratureELBO().loss(model, guide, x)
    assert -found.bound().item() == pytest.approx(loss, rel=1e-9)
    assert projection_of(model, Amortized(model, x), x) is None  # its best q is not affine in x


@pytest.mark.parametrize("family", [MeanField, Exact, lambda m, x: Amortized(m, x, hidden=()), Amortized])
def test_mixtures(family, faithful):
    model = drawn(lambda: zoo.GMM(2, 3, "tied"), faithful)
    guide = family(model) if family is Exact else family(model, faithful)
    found = projection_of(model, guide, faithful)
    found.solve()
    torch.testing.assert_close(guide.posterior(faithful).probs, model.posterior(faithful).probs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.bound(), model.log_marginal(faithful).sum())


def test_logits_that_are_not_affine_are_learned(faithful):
    model = zoo.GMM(2, 2).double()
    guide = Amortized(model, faithful, hidden=())
    assert projection_of(model, guide, faithful) is None
    assert projection_of(model, MeanField(model, faithful), faithful) is not None
    run = zoo.fit(model, guide, faithful, progress=False)
    assert run.settings["loss"] == "QuadratureELBO"
    assert model.log_marginal(faithful).sum().item() == pytest.approx(-1130.26396, abs=1e-3)


@pytest.mark.parametrize("start", ["data", "random"])
@pytest.mark.parametrize("family", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_a_fit_ends_at_the_optimum_with_the_guide_there(name, family, start, pupils):
    model = MODELS[name]().double()
    guide = GUIDES[family](model, pupils)
    run = zoo.fit(model, guide, pupils, start=start, progress=False)
    assert (run.converged, run.settings["loss"]) == (True, "ProjectedELBO")
    reference = (zoo.FactorAnalysis(9, 2, 1e-3) if name == "diagonal VAE" else MODELS[name]()).double()
    if name == "scalar VAE":
        reference = zoo.PPCA(9, 2).double()
    best = float(zoo.em(reference, pupils)[-1]) / len(pupils)
    assert -float(run.losses[-1]) == pytest.approx(best, abs=1e-6)
    with run.scope():
        assert QuadratureELBO().loss(model, guide, pupils) / len(pupils) == pytest.approx(-best, abs=1e-6)
    assert (run.losses.diff() <= 1e-9).all()


def test_a_frozen_rotation_leaves_its_gap(pupils):
    model = zoo.PPCA(9, 2).double()
    zoo.em(model, pupils)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]]).double()
    with torch.no_grad():
        model.weight = model.weight @ turn
    for p in model.parameters():
        p.requires_grad_(False)
    run = zoo.fit(model, MeanField(model, pupils), pupils, progress=False)
    precision = torch.eye(2).double() + model.weight.T @ model.weight / model.scale.square()
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 5e-3
    found = zoo.evaluate(run, pupils)
    assert float((model.log_marginal(pupils) - found.elbo).mean()) == pytest.approx(float(gap), abs=1e-9)
    assert torch.equal(run.losses, run.losses[:1].expand(len(run.losses)))


def test_the_guide_follows_every_step(pupils):
    model = zoo.FactorAnalysis(9, 2).double()
    guide = MeanField(model, pupils)
    gaps = []

    def look(step, loss):
        precision = guide.scale.detach()[0].square().reciprocal()
        gaps.append(float((guide.loc - model.posterior(pupils).mean).detach().abs().max()))
        assert (precision > 1).all()

    zoo.fit(model, guide, pupils, start="random", steps=5, callbacks=[look], progress=False)
    assert len(gaps) == 5
    assert max(gaps) < 1e-9


class Own(Module):
    """A linear-Gaussian model of a user, with parameters under the names of the hook."""

    quadratic = True

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 2))
        self.mean = nn.Parameter(torch.zeros(9))
        self.logs = nn.Parameter(torch.zeros(9))
        self.shift = shift

    @property
    def noise(self):
        return self.logs.exp()

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.mean.new_zeros(2), 1.0).to_event(1))
            own = dist.Normal(z @ self.weight.T + self.mean + self.shift, self.noise.sqrt())
            return pyro.sample("x", own.to_event(1), obs=x)


class Changed(zoo.PPCA):
    """A density of its own under the closed forms of its parent."""

    quadratic = True

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(self.mean.new_zeros(2), 2.0).to_event(1))
            own = dist.Normal(z @ self.weight.T + self.mean, self.scale).to_event(1)
            return pyro.sample("x", own, obs=x)


@pytest.mark.parametrize("family", GUIDES)
def test_a_users_linear_model_profits(family, pupils):
    model = Own().double()
    run = zoo.fit(model, GUIDES[family](model, pupils), pupils, progress=False)
    assert run.settings["loss"] == "ProjectedELBO"
    reference = zoo.FactorAnalysis(9, 2, floor=0.0).double()
    best = float(zoo.em(reference, pupils, steps=2000)[-1]) / len(pupils)
    assert -float(run.losses[-1]) == pytest.approx(best, abs=1e-6)


def test_closed_forms_of_another_density_are_not_used(pupils):
    for model in (Own(shift=0.5), Changed(9, 2)):
        model.double()
        assert projection_of(model, MeanField(model, pupils), pupils) is None
    model = zoo.PPCA(9, 2).double()
    assert projection_of(poutine.scale(model, 0.5), MeanField(model, pupils), pupils) is None
    other = zoo.PPCA(9, 2).double()
    assert projection_of(other, MeanField(model, pupils), pupils) is None
    guide = MeanField(model, pupils)
    next(guide.parameters()).requires_grad_(False)
    assert projection_of(model, guide, pupils) is None


def test_estimates(pupils):
    model, reference = zoo.PPCA(9, 2).double(), zoo.PPCA(9, 2).double()
    model.estimate(pupils)
    best = zoo.em(reference, pupils)[-1]
    assert model.log_marginal(pupils).sum().item() == pytest.approx(best.item(), abs=1e-6)
    linear = zoo.VAE(9, 2, hidden=(), covariance="scalar", noise="constant").double()
    linear.estimate(pupils)
    weight, mean, _ = linear.linear_form()
    torch.testing.assert_close(weight @ weight.T, (model.weight @ model.weight.T), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mean, pupils.mean(0))
    assert zoo.VAE(9, 2).double().linear_form() is None
    x = pupils.clone()
    x[::3, 1] = torch.nan
    for build in MODELS.values():
        model = build().double()
        model.estimate(x)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_deep_encoder_with_a_linear_path_is_saved_and_trained_on(covariance, pupils, tmp_path):
    model = zoo.PPCA(9, 2).double()
    guide = Amortized(model, pupils, hidden=(6,), covariance=covariance)
    assert guide.settings["skip"] is True
    run = zoo.fit(model, guide, pupils, progress=False)
    run.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run")
    assert torch.equal(loaded.guide.posterior(pupils).mean, guide.posterior(pupils).mean)
    further = zoo.fit(loaded.model, loaded.guide, pupils, steps=20, batch_size=50, progress=False)
    assert further.losses.isfinite().all()
    assert guide.encoder.network[-1].weight.abs().max() == 0
    assert loaded.guide.encoder.network[-1].weight.abs().max() > 0


def test_deep_models_have_no_linear_path(pupils):
    model = zoo.VAE(9, 2, hidden=(8,)).double()
    assert Amortized(model, pupils).settings["skip"] is False
    assert Amortized(model, pupils, skip=True).settings["skip"] is True
    assert Amortized(zoo.PPCA(9, 2).double(), pupils, skip=False).settings["skip"] is False
    assert not isinstance(zoo.plan(model, Amortized(model, pupils), pupils).loss, ProjectedELBO)
