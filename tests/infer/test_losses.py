"""AnnealedELBO and IWAE against closed forms, enumeration and Trace_ELBO."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import kl_divergence

import zoo
from guides import Amortized, Exact, Flow, FullRank, MeanField
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.infer.losses.annealed import AnnealedELBO, linear_warmup
from zoo.infer.losses.iwae import IWAE

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def ppca(some):
    """A PPCA at a random place, with a network that is not at its start."""
    model = zoo.PPCA(4, 2).double()
    model.initialize(some)
    guide = Amortized(model, some, (8,))
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, guide


def gradient(loss, model, guide, *args, seed=0):
    """The value, and the gradients of all parameters of model and guide, flat."""
    for module in (model, guide):
        module.zero_grad()
    with seeded(seed):
        value = loss.loss_and_grads(model, guide, *args)
    return value, flat(model, guide)


def flat(*modules):
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for m in modules for p in m.parameters()]
    )


def closed_gradient(bound, model, guide):
    for module in (model, guide):
        module.zero_grad()
    (-bound).backward()
    return flat(model, guide)


def agree(loss, truth, model, guide, *args, draws=40):
    """The mean gradient is the true one to five standard errors, in every coordinate."""
    found = torch.stack([gradient(loss, model, guide, *args, seed=i)[1] for i in range(draws)])
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - truth).abs() <= 5 * error + 1e-8).all()
    return error


# AnnealedELBO.


def test_warm_up_is_linear_and_then_one():
    schedule = linear_warmup(10)
    assert [schedule(t) for t in (0, 3, 10, 99)] == [0.0, 0.3, 1.0, 1.0]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", ["diag", "full", "flow"])
def test_reports_the_plain_bound(beta, family, some):
    """The very number of Trace_ELBO, whatever the objective, with the same draws."""
    model = zoo.PPCA(4, 2).double()
    guide = Flow(model, some) if family == "flow" else Amortized(model, some, covariance=family)
    for particles in (1, 3):
        loss = AnnealedELBO(beta, free_bits=0.2, num_particles=particles)
        plain = Trace_ELBO(particles, max_plate_nesting=1, vectorize_particles=True)
        expected = gradient(plain, model, guide, some)[0]
        assert gradient(loss, model, guide, some)[0] == pytest.approx(expected, rel=1e-12)
        with seeded(0):
            assert loss.loss(model, guide, some) == pytest.approx(expected, rel=1e-12)
        with seeded(0):
            assert loss.differentiable_loss(model, guide, some).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_that_of_the_closed_bound(ppca, some):
    model, guide = ppca
    truth = closed_gradient(model.elbo(some, guide.posterior(some)).sum(), model, guide)
    error = agree(AnnealedELBO(num_particles=100), truth, model, guide, some)
    assert error.norm() < 0.05 * truth.norm()  # the test can tell


@pytest.mark.parametrize("family", ["diag", "full"])
@pytest.mark.parametrize(("beta", "free_bits"), [(0.0, 0.0), (0.4, 0.0), (0.7, 0.3)])
def test_annealed_gradient_is_that_of_its_closed_form(family, beta, free_bits, ppca, some):
    """-E log p(x | z) + beta KL, with free bits by unit (diag) or for the whole site (full), as formulas."""
    model, guide = ppca
    if family == "full":
        guide = Amortized(model, some, (8,), covariance="full")
        with torch.no_grad():
            for p in guide.parameters():
                p.add_(0.1 * torch.randn_like(p))
    q, zero = guide.posterior(some), some.new_zeros(2)
    if family == "diag":
        kl = kl_divergence(q.base_dist, dist.Normal(zero, 1.0)).sum(0)  # (k,), summed over the rows
        floor = free_bits
    else:
        kl = kl_divergence(q, dist.MultivariateNormal(zero, torch.eye(2).to(zero))).sum().unsqueeze(0)
        floor = 2 * free_bits
    fit = model.elbo(some, q).sum() + kl.sum()
    held = (kl > len(some) * floor).to(kl)
    if free_bits:
        floor = float(kl.detach().mean() / len(some)) if family == "diag" else floor
        free_bits = floor if family == "diag" else free_bits  # so that one unit is below, one above
        held = (kl > len(some) * floor).to(kl)
        assert family == "full" or held.tolist().count(1.0) == 1
    truth = closed_gradient(fit - beta * (held * kl).sum(), model, guide)
    loss = AnnealedELBO(beta, free_bits, num_particles=100)
    agree(loss, truth, model, guide, some)
    index = torch.arange(0, 60, 2)
    if not free_bits:  # over the two halves of the rows, the scaled gradients have the full batch's as their mean
        half = AnnealedELBO(beta, num_particles=50)
        found = torch.stack(
            [
                sum(gradient(half, model, guide, some[i], i, 60, seed=s)[1] for i in (index, index + 1)) / 2
                for s in range(30)
            ]
        )
        assert ((found.mean(0) - truth).abs() <= 5 * found.std(0) / 30**0.5 + 1e-8).all()


def test_particles_in_a_loop_and_at_once(ppca, some):
    model, guide = ppca
    loop = AnnealedELBO(0.5, 0.1, num_particles=3, vectorize_particles=False)
    found = [
        torch.stack([gradient(loss, model, guide, some, seed=i)[1] for i in range(60)])
        for loss in (loop, AnnealedELBO(0.5, 0.1, num_particles=3))
    ]
    error = sum(f.var(0) / 60 for f in found).sqrt()
    assert ((found[0].mean(0) - found[1].mean(0)).abs() <= 5 * error + 1e-8).all()


def test_closed_kl_is_quieter(some):
    """Than the drawn one: the measurement that the docstring cites, at the start."""
    model = zoo.VAE(4, 2).double()
    model.initialize(some)
    guide = Amortized(model, some)

    def spread(loss):
        found = torch.stack([gradient(loss, model, guide, some, seed=i)[1] for i in range(60)])
        return found[:, -sum(p.numel() for p in guide.parameters()) :].var(0).sum().sqrt()

    assert spread(AnnealedELBO()) < 0.3 * spread(Trace_ELBO(max_plate_nesting=1))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_discrete_sites_take_the_score_function(beta, faithful):
    """Against the sum over the values: a mixture's annealed bound in closed form."""
    x = faithful[:40]
    model = zoo.GMM(2, 2).double()
    model.initialize(x)
    guide = Amortized(model, x, (4,))
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.3 * torch.randn_like(p))
    q = guide.posterior(x)
    trace = poutine.trace(poutine.enum(config_enumerate(guide), first_available_dim=-2)).get_trace(x)
    trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    trace.compute_log_prob()
    fit = (q.probs.T * trace.nodes["x"]["log_prob"]).sum()
    prior = trace.nodes["component"]["log_prob"].reshape(2, -1)  # (2, 1) or (2, n)
    kl = (q.probs * (q.logits - prior.T)).sum()
    with torch.no_grad():
        enumerated = TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(guide, "parallel"), x)
        assert (fit - kl).item() == pytest.approx(-enumerated, rel=1e-10)
    truth = closed_gradient(fit - beta * kl, model, guide)
    agree(AnnealedELBO(beta, num_particles=100), truth, model, guide, x)


def test_kl_of_a_site_that_all_rows_share():
    """Conjugate normal mean with a factorised guide: weight and free bits hold for it, too."""
    x = torch.randn(20, 1, dtype=torch.float64) + 1.0
    loc, raw = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, -1.0))

    def model(x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        with rows(x, index, size):
            pyro.sample("x", dist.Normal(m.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x=None, index=None, size=None):
        pyro.sample("m", dist.Normal(loc, raw.exp()))

    for beta, bits, counts in ((0.5, 0.0, 0.5), (1.0, 100.0, 0.0), (1.0, 0.01, 1.0)):
        fit = -0.5 * ((x - loc).square().sum() + len(x) * (2 * raw).exp())
        kl = kl_divergence(dist.Normal(loc, raw.exp()), dist.Normal(0.0, 1.0))
        truth = torch.stack(torch.autograd.grad(-(fit - counts * kl), (loc, raw)))
        loss = AnnealedELBO(beta, bits)
        found = []
        for seed in range(100):
            with seeded(seed):
                found.append(torch.stack(torch.autograd.grad(loss.differentiable_loss(model, guide, x), (loc, raw))))
        found = torch.stack(found)
        assert ((found.mean(0) - truth).abs() <= 5 * found.std(0) / 100**0.5).all()


def test_factors_of_the_guide_count(ppca, some):
    """A factor in the guide has the gradient that Trace_ELBO gives it."""
    model, guide = ppca
    level = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def weighted(x=None, index=None, size=None):
        q = guide.posterior(x)
        with rows(x, index, size):
            pyro.sample("z", q)
            pyro.factor("extra", 3 * level.expand(x.shape[-2]), has_rsample=True)

    for loss in (AnnealedELBO(0.2), IWAE(4), IWAE(4, estimator="doubly"), Trace_ELBO(max_plate_nesting=1)):
        level.grad = None
        loss.loss_and_grads(model, weighted, some)
        assert level.grad.item() == pytest.approx(180.0)


def test_autoguides_with_auxiliary_sites(some):
    model = zoo.PPCA(4, 2).double()
    for family in (AutoNormal, AutoMultivariateNormal):
        guide = family(model)
        guide(some)  # its parameters are made at the first call
        plain, ours = (gradient(loss, model, guide, some)[0] for loss in (Trace_ELBO(), AnnealedELBO()))
        assert ours == pytest.approx(plain, rel=1e-10)
        truth = flat(model, guide)  # of the last, AnnealedELBO at beta 1
        gradient(Trace_ELBO(), model, guide, some)
        torch.testing.assert_close(truth, flat(model, guide))
        with pytest.raises(ValueError, match="free_bits needs the KL of every site.*free_bits=0"):
            AnnealedELBO(free_bits=0.1).loss_and_grads(model, guide, some)


def test_schedule_belongs_to_one_fit(ppca, some):
    model, guide = ppca
    seen = []
    loss = AnnealedELBO(beta=lambda step: seen.append(step) or 1.0)
    for _ in range(3):
        loss.loss_and_grads(model, guide, some)
    loss.loss(model, guide, some)  # a look at the bound is no step
    loss.differentiable_loss(model, guide, some)
    assert seen == [0, 1, 2, 3]
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="has counted 4 steps of another model or guide.*make a new one"):
        loss.loss_and_grads(other, guide, some)
    with pytest.raises(ValueError, match="make a new one"):
        zoo.fit(other, Amortized(other, some), some, steps=2, loss=loss, progress=False)
    loss.loss_and_grads(model, guide, some)
    assert seen[-1] == 4
    constant = AnnealedELBO(0.5)
    constant.loss_and_grads(model, guide, some)
    constant.loss_and_grads(other, guide, some)


def test_schedule_in_a_fit(some):
    """One count per step, looks at held-out rows aside; the same two go on."""
    seen = []
    model = zoo.VAE(4, 2).double()
    guide = Amortized(model, some)
    loss = AnnealedELBO(lambda step: seen.append(step) or linear_warmup(20)(step), 0.05)
    for _ in range(2):
        run = zoo.fit(
            model, guide, some, steps=8, batch_size=20, loss=loss, validation=some[:9], every=2, progress=False
        )
        assert run.settings["loss"] == "AnnealedELBO"
    assert seen == list(range(16))


def test_annealing_keeps_units_alive():
    """Binary rows that a strong pull to the prior collapses: with free bits the units stay in use."""
    with seeded(3):
        z = torch.randn(200, 1)
        x = (torch.randn(200, 6) * 2.0 + z > 0).float()
    used = {}
    for bits in (0.0, 0.3):
        model = zoo.VAE(6, 2, (16,), likelihood="bernoulli")
        guide = Amortized(model, x, (16,))
        zoo.fit(model, guide, x, steps=300, loss=AnnealedELBO(4.0, bits), progress=False)
        kl = kl_divergence(guide.posterior(x).base_dist, dist.Normal(torch.zeros(2), 1.0))
        used[bits] = kl.mean(0).detach()
    assert used[0.0].max() < 0.02
    assert used[0.3].min() > 0.2


@pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan, True, "1"])
def test_refuses_weights_that_are_none(wrong):
    with pytest.raises(ValueError, match="beta must be a number of at least 0"):
        AnnealedELBO(wrong)
    with pytest.raises(ValueError, match="free_bits must be"):
        AnnealedELBO(1.0, wrong)


def test_refuses_a_schedule_that_turns_negative(ppca, some):
    with pytest.raises(ValueError, match="beta at step 0 must be a number of at least 0, got -1"):
        AnnealedELBO(lambda _: -1.0).loss_and_grads(*ppca, some)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        linear_warmup(0)


@pytest.mark.parametrize("loss", [AnnealedELBO(), IWAE(3)], ids=["AnnealedELBO", "IWAE"])
def test_refuses_guides_that_leave_a_site_out(loss, some):
    model = zoo.PPCA(4, 2).double()
    silent = pyro.validation_enabled(False)  # else Pyro warns, and every warning is an error here
    with silent, pytest.raises(ValueError, match="no site 'z'.*drawn from the prior"):
        loss.loss_and_grads(model, lambda x=None, index=None, size=None: None, some)


# IWAE.


def test_one_draw_is_the_bound_and_its_gradient(ppca, some):
    model, guide = ppca
    for family in (guide, MeanField(model, some), FullRank(model, some)):
        value, found = gradient(IWAE(1), model, family, some)
        expected, truth = gradient(Trace_ELBO(max_plate_nesting=1), model, family, some)
        assert value == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


def test_value_is_the_formula(ppca, some):
    """logsumexp for every row, and then the sum; a minibatch times n / b."""
    model, guide = ppca
    index = torch.tensor([5, 50, 7])
    for arguments, scale in (((some,), 1.0), ((some[index], index, 60), 20.0)):
        for estimator in ("plain", "doubly"):
            loss = IWAE(6, estimator=estimator)
            with seeded(3), torch.no_grad():
                value = loss.loss(model, guide, *arguments)
            with seeded(3), torch.no_grad(), pyro.plate("draws", 6, dim=-2):
                trace = poutine.trace(guide).get_trace(*arguments)
                z = trace.nodes["z"]["value"]
            x = arguments[0]
            noise = dist.Normal(z @ model.weight.T + model.mean, model.scale).log_prob(x).sum(-1)
            log_w = noise + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - guide.posterior(x).log_prob(z)
            assert value == pytest.approx(-scale * (log_w.logsumexp(0) - math.log(6)).sum().item(), rel=1e-12)
            assert gradient(loss, model, guide, *arguments, seed=3)[0] == pytest.approx(value, rel=1e-12)
            with seeded(3):
                assert loss.differentiable_loss(model, guide, *arguments).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("estimator", ["plain", "doubly"])
def test_minibatches_are_unbiased(estimator, ppca, some):
    """With fixed draws for every row, value and gradient of equal batches have the full batch's as their mean."""
    model, guide = ppca
    with seeded(1):
        noise = torch.randn(5, 60, 2, dtype=torch.float64)

    def fixed(x=None, index=None, size=None):
        q = guide.posterior(x)
        eps = noise if index is None else noise[:, index]
        with rows(x, index, size):
            pyro.sample("z", Fixed(q.base_dist.loc, q.base_dist.scale, eps))

    def both(*arguments):
        for module in (model, guide):
            module.zero_grad()
        return IWAE(5, estimator=estimator).loss_and_grads(model, fixed, *arguments), flat(model, guide)

    value, whole = both(some)
    parts = [both(some[i], i, 60) for i in torch.randperm(60).split(15)]
    assert sum(part[0] for part in parts) / 4 == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close(sum(part[1] for part in parts) / 4, whole, rtol=1e-8, atol=1e-8)


class Fixed(dist.TorchDistribution):
    """A factorised Gaussian with draws that were made before."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.real_vector

    def __init__(self, loc, scale, noise):
        self.loc, self.scale, self.noise = loc, scale, noise
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        shape = (*batch_shape, self.loc.shape[-1])
        return Fixed(self.loc.expand(shape), self.scale.expand(shape), self.noise)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise

    def log_prob(self, value):
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)


def test_bounds_climb_to_the_log_marginal(ppca, some):
    model, guide = ppca
    truth = model.log_marginal(some).sum().item()
    means, errors = [], []
    for k in (1, 5, 50, 500):
        with torch.no_grad(), seeded(k):
            values = torch.tensor([-IWAE(k).loss(model, guide, some) for _ in range(40)])
        means.append(values.mean().item())
        errors.append(values.std().item() / 40**0.5)
    for low, high, *se in zip(means, means[1:], errors, errors[1:], strict=False):
        assert high - low > 5 * math.hypot(*se)
    assert means[-1] < truth + 5 * errors[-1]
    assert truth - means[-1] < 0.1 * (truth - means[0])
    assert IWAE(3).loss(model, Exact(model), some) == pytest.approx(-truth, rel=1e-12)


def test_doubly_reparametrised_gradients_have_the_same_mean(ppca, some):
    model, guide = ppca
    found = {}
    for estimator in ("plain", "doubly"):
        loss = IWAE(8, estimator=estimator)
        found[estimator] = torch.stack([gradient(loss, model, guide, some, seed=i)[1] for i in range(80)])
    plain, doubly = found.values()
    se = ((plain.var(0) + doubly.var(0)) / 80).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() <= 5 * se + 1e-8).all()
    count = sum(p.numel() for p in guide.parameters())
    assert doubly[:, -count:].var(0).sum() < plain[:, -count:].var(0).sum()
    torch.testing.assert_close(plain[:, :-count], doubly[:, :-count])  # the model's are the same


def test_doubly_reparametrised_gradients_vanish_at_the_posterior(some):
    model = zoo.PPCA(4, 2).double()
    guide = FullRank(model, some)
    guide.to(some)
    zoo.fit(model, guide, some, progress=False)
    loss = IWAE(4, estimator="doubly")
    gradient(loss, model, guide, some)
    quiet = flat(guide).norm()
    gradient(IWAE(4), model, guide, some)
    assert quiet < 1e-3 * flat(guide).norm()


def test_sites_one_after_the_other(some):
    """Draws that depend on earlier draws: the doubly reparametrised path goes through both."""
    w = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64, requires_grad=True)

    def model(x=None, index=None, size=None):
        with rows(x, index, size):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a.sin(), 1.0))
            pyro.sample("x", dist.Normal((a * b).unsqueeze(-1).expand(*a.shape, 4), 1.0).to_event(1), obs=x)

    def guide(x=None, index=None, size=None):
        with rows(x, index, size):
            a = pyro.sample("a", dist.Normal(w[0] * x[:, 0], w[1].exp()))
            pyro.sample("b", dist.Normal(w[2] * a, w[3].exp()))

    means, errors = [], []
    for estimator in ("plain", "doubly"):
        loss, found = IWAE(6, estimator=estimator), []
        for seed in range(120):
            with seeded(seed):
                found.append(torch.autograd.grad(loss.differentiable_loss(model, guide, some), w)[0])
        found = torch.stack(found)
        means.append(found.mean(0))
        errors.append(found.var(0) / 120)
    assert ((means[0] - means[1]).abs() <= 5 * (errors[0] + errors[1]).sqrt()).all()


def test_missing_entries_and_other_guides(some):
    x = some.clone()
    x[::7, 1] = math.nan
    model = zoo.PPCA(4, 2).double()
    truth = -model.log_marginal(x).sum().item()
    assert IWAE(4).loss(model, Exact(model), x) == pytest.approx(truth, rel=1e-10)
    for guide in (AutoNormal(model), Flow(model, x)):
        for estimator in ("plain", "doubly"):
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), IWAE(4, estimator=estimator))
            assert all(math.isfinite(svi.step(x)) for _ in range(2))


def test_fits_under_minibatches(some):
    model = zoo.VAE(4, 2).double()
    guide = Amortized(model, some)
    run = zoo.fit(model, guide, some, steps=60, batch_size=20, loss=IWAE(5), validation=some[:10], progress=False)
    assert run.losses[-10:].mean() < run.losses[:10].mean() - 0.5
    assert run.validation.isfinite().all()
    assert run.settings["loss"] == "IWAE"


def test_refuses_what_has_no_weights_per_row(some, faithful):
    mixture = zoo.GMM(2, 2).double()
    with pytest.raises(ValueError, match=r"the guide's site 'component' \(Categorical\)"):
        IWAE(3).loss_and_grads(mixture, Amortized(mixture, faithful), faithful)

    def shared(x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(some.new_zeros(()), 1.0))
        with rows(x, index, size):
            pyro.sample("x", dist.Normal(m.unsqueeze(-1), 1.0).expand([*m.shape, 4]).to_event(1), obs=x)

    with pytest.raises(ValueError, match="'m' is shared by all rows.*Use Trace_ELBO"):
        IWAE(3).loss_and_grads(shared, AutoNormal(shared), some)

    def crossed(x=None, index=None, size=None):
        with pyro.plate("columns", 1, dim=-3), rows(x, index, size):
            pyro.sample("z", dist.Normal(some.new_zeros(()), 1.0))

    with pytest.raises(ValueError, match="is in plate 'columns'"):
        IWAE(3).loss_and_grads(crossed, crossed, some)
    model = zoo.PPCA(4, 2).double()
    guide = Amortized(model, some)
    with pytest.raises(ValueError, match="'z of the guide' are scaled differently.*AnnealedELBO"):
        IWAE(3).loss_and_grads(model, poutine.scale(guide, 0.5), some)
    with pytest.raises(ValueError, match="num_particles must be a whole number"):
        IWAE(0)
    with pytest.raises(ValueError, match="estimator must be one of plain, doubly"):
        IWAE(2, estimator="best")
