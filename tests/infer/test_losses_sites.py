"""Losses on models with shared sites, plates of the user's own and several sites per row."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import zeros
from pyro.infer import Trace_ELBO, config_enumerate
from pyro.nn import PyroParam
from torch.distributions import constraints

import zoo
from guides import Amortized, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO

pytestmark = pytest.mark.usefixtures("own_store")

N, D, K = 12, 4, 2
PARTS = torch.arange(N).split(4)
ALGEBRA = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def x():
    return torch.randn(N, D, dtype=torch.float64)


class Factors(Module):
    """Bayesian factor analysis: weights in a plate of the features, a shared precision, factors per row."""

    def __init__(self):
        super().__init__()
        self.mean = PyroParam(torch.randn(D, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        with pyro.plate("features", D):
            weight = pyro.sample("weight", dist.Normal(zeros(K), 1.0).to_event(1))
        precision = pyro.sample("precision", dist.Gamma(zeros() + 2.0, 1.0))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zeros(K), 1.0).to_event(1))
            scale = precision.rsqrt().unsqueeze(-1)
            return pyro.sample("x", dist.Normal(z @ weight.mT + self.mean, scale).to_event(1), obs=x)


class Switched(Module):
    """A level that all rows share, a factor and a switch per row: quadratic in the level and the factor together."""

    def __init__(self):
        super().__init__()
        self.step = PyroParam(torch.tensor(1.5).double())

    def forward(self, x=None, index=None, size=None):
        level = pyro.sample("level", dist.Normal(zeros(), 2.0))
        with rows(x, index, size, name="people"):
            z = pyro.sample("z", dist.Normal(zeros(), 1.0))
            on = pyro.sample("on", dist.Bernoulli(zeros() + 0.4))
            loc = (z + level + self.step * on).unsqueeze(-1)
            return pyro.sample("seen", dist.Normal(loc.expand(*loc.shape[:-1], D), 1.0).to_event(1), obs=x)


class Views(Module):
    """A plate of the user's own to the left of the rows."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zeros(K), 1.0).to_event(1))
            with pyro.plate("views", 3, dim=-2):
                pyro.sample("seen", dist.Normal(z.sum(-1), 2.0), obs=None if x is None else x[:, :3].T)
            return pyro.sample("x", dist.Normal(zeros(D), 1.0).to_event(1), obs=x)


class Held(dist.Normal):
    """A Gaussian whose draws are loc + scale * noise with the noise held, so that a loss is a function."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale, validate_args=False)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        return Held(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise


class Fixed(Module):
    """A mean-field guide of ``Factors`` with held noise; the precision by its logarithm."""

    def __init__(self):
        super().__init__()
        for name, shape in {"weight": (D, K), "precision": (), "z": (N, K)}.items():
            setattr(self, f"{name}_loc", PyroParam(0.3 * torch.randn(shape, dtype=torch.float64)))
            setattr(self, f"{name}_scale", PyroParam(zeros(*shape) + 0.4, constraints.positive))
            self.register_buffer(f"{name}_noise", torch.randn(shape, dtype=torch.float64))

    def held(self, name, index=slice(None)):
        parts = (getattr(self, f"{name}_{part}") for part in ("loc", "scale", "noise"))
        return Held(*(part[index] if part.ndim else part for part in parts))

    def forward(self, x=None, index=None, size=None):
        with pyro.plate("features", D):
            pyro.sample("weight", self.held("weight").to_event(1))
        exp = torch.distributions.ExpTransform()
        pyro.sample("precision", dist.TransformedDistribution(self.held("precision"), [exp]))
        with rows(x, index, N):
            pyro.sample("z", self.held("z", slice(None) if index is None else index).to_event(1))


def gradients(loss, model, guide, *arguments):
    for module in (model, guide):
        module.zero_grad()
    value = loss.loss_and_grads(model, guide, *arguments)
    return value, torch.cat([p.grad.flatten() for module in (model, guide) for p in module.parameters()])


@pytest.mark.parametrize(
    "loss",
    [lambda: Trace_ELBO(), lambda: AnnealedELBO(), lambda: AnnealedELBO(0.3), lambda: AnnealedELBO(0.7, 0.05)],
    ids=["Trace_ELBO", "AnnealedELBO", "AnnealedELBO-beta", "AnnealedELBO-bits"],
)
def test_minibatches_average_to_all_rows(loss, x):
    """Value and gradient, with the noise held: the shared terms count once, those of the rows n / b times."""
    model, guide = Factors(), Fixed()
    value, slope = gradients(loss(), model, guide, x)
    batches = [gradients(loss(), model, guide, x[index], index, N) for index in PARTS]
    assert sum(value for value, _ in batches) / 3 == pytest.approx(value, rel=1e-10)
    if loss() is not None and getattr(loss(), "free_bits", 0.0):
        return  # the threshold is on the mean over the rows at hand
    torch.testing.assert_close(sum(slope for _, slope in batches) / 3, slope, **ALGEBRA)


def test_the_annealed_value_is_the_plain_bound(x):
    model, guide = Factors(), Fixed()
    with torch.no_grad():
        z, weight = (guide.held(name).rsample() for name in ("z", "weight"))
        precision = guide.held("precision").rsample().exp()
        log_p = dist.Normal(z @ weight.T + model.mean, precision.rsqrt()).log_prob(x).sum()
        log_p = log_p + dist.Normal(0.0, 1.0).log_prob(torch.cat([z, weight])).sum()
        log_p = log_p + dist.Gamma(zeros() + 2.0, 1.0).log_prob(precision)
        log_q = sum(guide.held(n).log_prob(v).sum() for n, v in (("z", z), ("weight", weight)))
        log_q = log_q + guide.held("precision").log_prob(precision.log()) - precision.log()
    for loss in (AnnealedELBO(0.2), AnnealedELBO(1.0, 0.5), Trace_ELBO()):
        assert loss.loss(model, guide, x) == pytest.approx(float(log_q - log_p), rel=1e-10)


def test_the_annealed_gradient_without_annealing_is_that_of_the_bound(x):
    """On average over draws: KLs in closed form where they have one, by draws for the rest."""
    model, guide = Factors(), MeanField(Factors(), x)
    loss = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
    with seeded(0):
        _, ours = gradients(AnnealedELBO(**loss), model, guide, x)
        _, pyros = gradients(Trace_ELBO(**loss), model, guide, x)
    assert float((ours - pyros).norm() / pyros.norm()) < 0.1


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_free_bits_want_a_density_of_every_site(kind, x):
    model = Factors()
    guide = kind(model, x)
    loss = AnnealedELBO(free_bits=0.1)
    if kind is MeanField:
        assert math.isfinite(loss.loss_and_grads(model, guide, x))
        return
    with pytest.raises(ValueError, match="the guide draws them through '_shared_latent': use .* MeanField"):
        loss.loss_and_grads(model, guide, x)


@pytest.mark.parametrize("kind", [MeanField, Amortized])
def test_quadrature_with_shared_continuous_and_discrete_sites(kind, x):
    """By the moments of q: the rule is exact, all rows or a batch."""
    model = Switched()
    guide = kind(model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if kind is MeanField:
            (m, s), logits = (guide.loc[:, 0], guide.scale[:, 0]), guide.on_logits
        else:
            loc, raw, logits = guide.encode(x)
            m, s = loc[:, 0], guide._scale(raw)[:, 0]
        level, spread = guide.shared.loc, guide.shared.scale
        on = logits.softmax(-1)[:, 1]
        offset = x - (m + level).unsqueeze(-1)  # (n, d)
        square = offset.square() - (2 * offset * model.step - model.step**2) * on.unsqueeze(-1)
        terms = -0.5 * (square + (s.square() + spread.square()).unsqueeze(-1) + math.log(2 * math.pi)).sum(-1)
        terms = terms - torch.distributions.kl_divergence(dist.Normal(m, s), dist.Normal(zeros(), 1.0))
        terms = terms - torch.distributions.kl_divergence(dist.Bernoulli(on), dist.Bernoulli(zeros() + 0.4))
        of_level = torch.distributions.kl_divergence(dist.Normal(level, spread), dist.Normal(zeros(), 2.0)).sum()
    loss = QuadratureELBO()
    assert loss.loss(model, guide, x) == pytest.approx(float(of_level - terms.sum()), rel=1e-10)
    assert QuadratureELBO(rotation=3).loss(model, guide, x) == pytest.approx(float(of_level - terms.sum()), rel=1e-10)
    for index in PARTS:
        expected = float(of_level - 3 * terms[index].sum())
        assert loss.loss(model, guide, x[index], index, N) == pytest.approx(expected, rel=1e-10)


def leave_out(*names):
    """A guide of ``Switched`` without some of its sites."""

    def guide(x=None, index=None, size=None):
        if "level" not in names:
            pyro.sample("level", dist.Normal(zeros(), 1.0))
        with rows(x, index, size, name="people"):
            if "z" not in names:
                pyro.sample("z", dist.Normal(zeros(), 1.0))
            if "on" not in names:
                pyro.sample("on", dist.Bernoulli(zeros() + 0.5))

    return guide


LOSSES = {"QuadratureELBO": QuadratureELBO, "AnnealedELBO": AnnealedELBO}


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")  # Pyro's word on the same
@pytest.mark.parametrize("wrap", [config_enumerate, lambda model: model], ids=["enumerated", "plain"])
@pytest.mark.parametrize("site", ["level", "z", "on"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_site_that_is_left_out_is_named(loss, site, wrap, x):
    """Whether or not the model marks it to be enumerated: these losses do not enumerate, and a prior draw is no sum."""
    with pytest.raises(ValueError, match=f"the guide has no site '{site}'.*TraceEnum_ELBO"):
        LOSSES[loss]().loss_and_grads(wrap(Switched()), leave_out(site), x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda x: (QuadratureELBO(), Factors(), MeanField(Factors(), x)),
            "'weight' is in plate 'features'.*Trace_E",
        ),
        (
            lambda x: (QuadratureELBO(), Views(), MeanField(Views(), x)),
            "has a plate already .*views.*max_plate_nesting=2",
        ),
        (lambda x: (IWAE(4), Views(), MeanField(Views(), x)), "has a plate already .*views.*max_plate_nesting=2"),
        (
            lambda x: (IWAE(4), Factors(), MeanField(Factors(), x)),
            "site 'weight' is shared by all rows, and IWAE needs a weight for every row.*Trace_ELBO",
        ),
        (
            lambda x: (IWAE(4), Factors(), FullRank(Factors(), x)),
            "site 'weight' is shared by all rows, and IWAE needs a weight for every row.*Trace_ELBO",
        ),
        (lambda x: (IWAE(4), Switched(), MeanField(Switched(), x)), "site 'on'.*are not reparametrised"),
    ],
)
def test_a_refusal_names_the_site_and_the_way_out(build, message, x):
    loss, model, guide = build(x)
    with pytest.raises(ValueError, match=message):
        loss.loss_and_grads(model, guide, x)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_a_captured_step_is_that_of_trace_elbo(kind, x):
    """With shared sites, a plate of the user's own and, for FullRank, an auxiliary site."""
    runs = []
    for capture in (False, True):
        with seeded(0):
            model = Factors()
            guide = kind(model, x)
        own = {"loss": Trace_ELBO(), "capture": capture, "batch_size": len(x) // 2 + 1}
        runs.append(zoo.fit(model, guide, x, steps=20, progress=False, **own))
    torch.testing.assert_close(runs[0].losses, runs[1].losses, rtol=1e-9, atol=1e-9)
