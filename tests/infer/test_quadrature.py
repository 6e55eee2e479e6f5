"""The rule in place of draws: where it is exact it must be the closed bound, gradients included."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import jitter
from pyro.infer.autoguide import AutoNormal, init_to_value

from guides import Amortized, Exact, FullRank, MeanField
from zoo import GMM, PPCA, VAE, FactorAnalysis
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer.losses.quadrature import QuadratureELBO

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64: the rule is exact up to rounding


GUIDES = {
    "MeanField": lambda model, x: MeanField(model, x, closed_form=False),
    "FullRank": FullRank,
    "diag": lambda model, x: Amortized(model, x, hidden=(5,)),
    "low_rank": lambda model, x: Amortized(model, x, hidden=(), covariance="low_rank", rank=2),
    "full": lambda model, x: Amortized(model, x, hidden=(5,), covariance="full"),
    "Exact": lambda model, x: Exact(model),
}
LINEAR = [(cls, name) for cls in (PPCA, FactorAnalysis) for name in GUIDES]
MIXTURES = [(GMM, name) for name in ("MeanField", "diag", "Exact")]


@pytest.fixture(params=LINEAR + MIXTURES, ids=lambda p: f"{p[0].__name__}-{p[1]}")
def pair(request, some):
    """A conjugate model and a guide, both at random parameters."""
    cls, name = request.param
    model = cls(4, 3).double()
    model.initialize(some)
    guide = GUIDES[name](model, some)
    jitter(model, guide, by=0.3)
    return model, guide


# --- where the rule is exact ---------------------------------------------------------------------


def test_the_rule_is_the_closed_bound(pair, some, untouched):
    model, guide = pair
    closed = -model.elbo(some, guide.posterior(some)).sum().item()
    for rotation in (None, 7):
        loss = QuadratureELBO(rotation)
        assert loss.loss(model, guide, some) == pytest.approx(closed, rel=ALGEBRA)
        assert loss.differentiable_loss(model, guide, some).item() == pytest.approx(closed, rel=ALGEBRA)
    assert QuadratureELBO.exact(model, guide, some)


def test_its_gradients_are_those_of_the_closed_bound(pair, some):
    model, guide = pair
    parameters = [*model.parameters(), *guide.parameters()]
    expected = torch.autograd.grad(-model.elbo(some, guide.posterior(some)).sum(), parameters)
    value = QuadratureELBO().loss_and_grads(model, guide, some)
    assert value == pytest.approx(-model.elbo(some, guide.posterior(some)).sum().item(), rel=ALGEBRA)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, gradient, rtol=ALGEBRA, atol=ALGEBRA * len(some))


def test_equal_batches_average_to_all_rows(pair, some):
    model, guide = pair
    loss, n = QuadratureELBO(), len(some)
    batches = [loss.loss(model, guide, some[index], index, n) for index in torch.randperm(n).split(n // 4)]
    assert sum(batches) / 4 == pytest.approx(loss.loss(model, guide, some), rel=ALGEBRA)
    assert max(batches) - min(batches) > 1e-3  # the batches do differ


def test_pyros_own_guide(some):
    model = PPCA(4, 2).double()
    model.initialize(some)
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": torch.zeros(60, 2).double()}))
    guide(some)
    jitter(guide, by=0.3)
    q = dist.Normal(guide.locs.z, guide.scales.z).to_event(1)
    assert QuadratureELBO().loss(model, guide, some) == pytest.approx(-model.elbo(some, q).sum().item(), rel=ALGEBRA)
    assert QuadratureELBO.exact(model, guide, some)


class Two(Module):
    """PPCA with its factors in two sites."""

    def __init__(self, whole):
        super().__init__()
        self.__dict__["whole"] = whole

    def forward(self, x=None, index=None, size=None):
        weight, mean, scale = self.whole.weight, self.whole.mean, self.whole.scale
        with rows(x, index, size):
            a = pyro.sample("a", dist.Normal(mean.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(mean.new_zeros(2), 1.0).to_event(1))
            z = torch.cat([a.unsqueeze(-1).expand(*b.shape[:-1], 1), b], -1)
            return pyro.sample("x", dist.Normal(z @ weight.T + mean, scale).to_event(1), obs=x)


@pytest.mark.parametrize("tiny", [1e-12, 1e-25])
def test_a_scale_that_is_tiny_beside_the_mean_adds_nothing_to_the_bound(tiny, some):
    """Densities taken at points that rounding has moved would be off by any amount."""
    model = PPCA(4, 2).double()
    guide = FullRank(model, some, closed_form=False)
    with torch.no_grad():
        guide.loc.normal_(std=10.0)
        guide.scale_tril = (tiny * torch.eye(2).double()).expand(len(some), 2, 2)
        bound = float(model.elbo(some, guide.posterior(some)).sum())
    assert -QuadratureELBO().loss(model, guide, some) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_two_gaussian_sites_share_the_points(kind, some):
    whole = PPCA(4, 3).double()
    whole.initialize(some)
    model = Two(whole)
    guide = kind(model, some)
    jitter(whole, guide, by=0.3)
    if kind is MeanField:
        q = dist.Normal(guide.loc, guide.scale).to_event(1)
    else:
        q = dist.MultivariateNormal(guide.loc, scale_tril=guide.scale_tril)
    closed = -whole.elbo(some, q).sum().item()
    assert QuadratureELBO(3).loss(model, guide, some) == pytest.approx(closed, rel=ALGEBRA)


class Factors(Module):
    """Factor analysers that share loadings and differ in means: one Gaussian site, one categorical."""

    def __init__(self, ppca, means):
        super().__init__()
        self.__dict__["ppca"], self.__dict__["means"] = ppca, means

    def forward(self, x=None, index=None, size=None):
        means, weight = self.means, self.ppca.weight
        with rows(x, index, size):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.3, 0.2]).to(means)))
            z = pyro.sample("z", dist.Normal(means.new_zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T + means[c], self.ppca.scale).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [MeanField, Amortized])
def test_gaussian_and_categorical_sites_together(kind, some):
    ppca = PPCA(4, 2).double()
    ppca.initialize(some)
    means = some[:3]
    model = Factors(ppca, means)
    guide = kind(model, some)
    jitter(ppca, guide, by=0.3)
    if kind is MeanField:
        loc, scale, logits = guide.loc, guide.scale, guide.c_logits
    else:
        loc, raw, logits = guide.encode(some)
        scale = guide._scale(raw)
    q, share = dist.Normal(loc, scale).to_event(1), logits.softmax(-1)
    closed = 0.0
    for j, prior in enumerate([0.5, 0.3, 0.2]):  # component by component, each a PPCA of its own
        ppca.mean = means[j]
        closed += (share[:, j] * (ppca.elbo(some, q) + torch.tensor(prior).double().log() - share[:, j].log())).sum()
    assert QuadratureELBO().loss(model, guide, some) == pytest.approx(-closed.item(), rel=ALGEBRA)
    index = torch.arange(0, 60, 2)
    halves = [QuadratureELBO().loss(model, guide, some[i], i, 60) for i in (index, index + 1)]
    assert sum(halves) / 2 == pytest.approx(-closed.item(), rel=ALGEBRA)


class Level(Module):
    """Rows around a mean that all rows share: x ~ N(m, 1), m ~ N(0, 4 I)."""

    def forward(self, x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(torch.zeros(4).double(), 2.0).to_event(1))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_a_site_that_all_rows_share(kind, some):
    model = Level()
    guide = kind(model, some)
    jitter(guide, by=0.3)
    q = (
        dist.Normal(guide.shared.loc, guide.shared.scale).to_event(1)
        if kind is MeanField
        else (dist.MultivariateNormal(guide.shared.loc, scale_tril=guide.shared.scale_tril))
    )
    prior = dist.Normal(torch.zeros(4).double(), 2.0).to_event(1)
    expected = prior.log_prob(q.mean) - q.variance.sum() / (2 * 4) + q.entropy()  # E log p of a quadratic
    expected = expected + dist.Normal(q.mean, 1.0).to_event(1).log_prob(some).sum() - 60 * q.variance.sum() / 2
    loss = QuadratureELBO()
    assert loss.loss(model, guide, some) == pytest.approx(-expected.item(), rel=ALGEBRA)
    batches = [loss.loss(model, guide, some[i], i, 60) for i in torch.randperm(60).split(20)]
    assert sum(batches) / 3 == pytest.approx(-expected.item(), rel=ALGEBRA)


# --- where it is not -----------------------------------------------------------------------------


def test_a_deep_model_is_no_case_for_it(some):
    model = VAE(4, 2, hidden=(8,)).double()
    model.initialize(some)
    guide = MeanField(model, some)
    assert not QuadratureELBO.exact(model, guide, some)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", [MeanField, FullRank, Amortized])
def test_a_deep_model_is_no_case_for_it_with_any_number_of_factors(family, k, some):
    model = VAE(4, k, hidden=(4,)).double()
    assert not QuadratureELBO.exact(model, family(model, some), some)


@pytest.mark.parametrize("k", [1, 3])
def test_every_rule_has_mean_zero_and_unit_covariance(k, some):
    model = PPCA(4, k).double()
    guide = FullRank(model, some, closed_form=False)
    for rotation in (None, 1, 2):
        assert QuadratureELBO(rotation).loss(model, guide, some) == pytest.approx(
            -model.elbo(some, guide.posterior(some)).sum().item(), rel=1e-12
        )


def test_a_gamma_site_has_no_rule(some):
    def model(x=None, index=None, size=None):
        with rows(x, index, size):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            return pyro.sample("x", dist.Normal(torch.zeros(4), rate.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x=None, index=None, size=None):
        with rows(x, index, size):
            pyro.sample("rate", dist.Gamma(3.0, 1.0))

    with pytest.raises(NotImplementedError, match=r"'rate' \(Gamma\): use Trace_ELBO"):
        QuadratureELBO().loss(model, guide, some)
    assert not QuadratureELBO.exact(model, guide, some)


class Counted:
    """A model or guide that counts its runs on all rows."""

    def __init__(self, function, rows):
        self.function, self.rows, self.runs = function, rows, 0

    def __call__(self, x=None, index=None, size=None):
        self.runs += x is not None and len(x) == self.rows
        return self.function(x, index, size)


def test_a_step_traces_the_guide_once(some):
    model = FactorAnalysis(4, 2).double()
    guide = Counted(MeanField(model, some), len(some))
    loss = QuadratureELBO()
    with pyro.get_param_store().scope():
        loss.prepare(pyro.poutine.trace(guide.function).get_trace(some))
        losses = [loss.loss_and_grads(model, guide, some) for _ in range(3)]
    assert guide.runs == 3
    assert losses[0] == pytest.approx(QuadratureELBO().loss(model, guide.function, some), rel=1e-12)


def test_a_rule_for_other_sites_is_replaced(some):
    """Of another width, another number of values, another dtype, more sites and fewer of them."""
    loss = QuadratureELBO()
    pairs = [FactorAnalysis(4, 2), FactorAnalysis(4, 1), GMM(4, 2), GMM(4, 3), FactorAnalysis(4, 1), PPCA(4, 2)]
    for model, dtype in zip(pairs, (torch.float64, *[torch.float32] * 4, torch.float64), strict=True):
        model, x = model.to(dtype), some.to(dtype)
        guide = MeanField(model, x)
        with pyro.get_param_store().scope():
            assert loss.loss(model, guide, x) == QuadratureELBO().loss(model, guide, x)
