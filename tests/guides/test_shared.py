"""Guides for sites of every kind: rows' and shared ones, in plates of the user's own, continuous and discrete."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import jitter, zeros
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroParam
from torch.distributions import MultivariateNormal, biject_to, constraints
from user_models import Awkward

import zoo
from guides import Amortized, CannotServe, Exact, Flow, FullRank, MeanField, SemiAmortized
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.base.random import seeded
from zoo.posterior.engine import reader, reading

pytestmark = pytest.mark.usefixtures("own_store")

N, D, K = 12, 4, 2
ALGEBRA = {"rtol": 1e-9, "atol": 1e-9}
PART = torch.tensor([7, 2, 9])


@pytest.fixture
def x():
    return torch.randn(N, D, dtype=torch.float64)


def one_mean(x=None, index=None, size=None):
    """A mean that all rows share, and a data site and a plate of other names."""
    mean = pyro.sample("mean", dist.Normal(zeros(), 10.0))
    with rows(x, index, size, name="people"):
        return pyro.sample("y", dist.Normal(mean.unsqueeze(-1).expand(*mean.shape, D), 1.0).to_event(1), obs=x)


def factors(x=None, index=None, size=None):
    """Bayesian factor analysis: weights and shares in plates of their own, a precision in none, factors per row."""
    with pyro.plate("features", D):
        weight = pyro.sample("weight", dist.Normal(zeros(K), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.Gamma(zeros() + 2.0, 2.0))
    with pyro.plate("groups", 3, dim=-2):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(3).double()))  # (..., 3, 1, 3)
    precision = pyro.sample("precision", dist.Gamma(zeros() + 2.0, 1.0))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(zeros(K), 1.0).to_event(1))
        scale = precision.rsqrt().unsqueeze(-1) * noise + share[..., 0, :, :1]
        return pyro.sample("x", dist.Normal(z @ weight.mT, scale).to_event(1), obs=x)


class Mixed(Module):
    """Two factor analysers, mixed: factors, a component and a switch per row."""

    def __init__(self):
        super().__init__()
        self.weight = PyroParam(torch.randn(2, D, K, dtype=torch.float64))
        self.mean = PyroParam(torch.randn(2, D, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        weight, mean = self.weight, self.mean
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            c = pyro.sample("component", dist.Categorical(weight.new_tensor([0.3, 0.7])))
            on = pyro.sample("on", dist.Bernoulli(weight.new_tensor(0.4)))
            loc = (weight[c] @ z.unsqueeze(-1)).squeeze(-1) + mean[c] + on.unsqueeze(-1)
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


class Covariate(Module):
    """Rows with a covariate of their own, held by the model, and a slope that all rows share."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.5).double(), constraints.positive)
        self.register_buffer("batch", torch.arange(N, dtype=torch.float64).unsqueeze(-1) / N)

    def forward(self, x=None, index=None, size=None):
        scale, batch = self.scale, self.batch if index is None else self.batch[index]
        slope = pyro.sample("slope", dist.Normal(zeros(D), 5.0).to_event(1))
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(scale.new_zeros(K), 1.0).to_event(1))
            loc = z.sum(-1, keepdim=True) + batch * slope.unsqueeze(-2)
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


FAMILIES = {
    "MeanField": MeanField,
    "MeanField-full": lambda model, x: MeanField(model, x, shared="full_rank"),
    "FullRank": FullRank,
    "Amortized": lambda model, x: Amortized(model, x, (4,)),
    "Amortized-full": lambda model, x: Amortized(model, x, (4,), covariance="full", shared="full_rank"),
    "SemiAmortized": lambda model, x: SemiAmortized(model, x, (4,), 2),
    "SemiAmortized-full": lambda model, x: SemiAmortized(model, x, (4,), 2, shared="full_rank"),
    "Flow": lambda model, x: Flow(model, x, (4,), length=1),
    "Flow-full": lambda model, x: Flow(model, x, (4,), "spline", 1, shared="full_rank"),
}
MODELS = {
    "one_mean": lambda: one_mean,
    "factors": lambda: factors,
    "Awkward": Awkward,
    "Mixed": Mixed,
    "Covariate": Covariate,
}
SERVED = [
    (model, family)
    for model in MODELS
    for family in FAMILIES
    if not (model == "one_mean" and family.split("-")[0] in ("Amortized", "SemiAmortized", "Flow"))
    and not (model == "Mixed" and family not in ("MeanField", "MeanField-full", "Amortized"))
]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_cell = pytest.mark.parametrize(("model", "family"), SERVED)


def part_of(guide):
    return guide.proposal.shared if isinstance(guide, SemiAmortized) else guide.shared


def shared_density(part, values):
    """The density of the shared sites of ``factors`` by hand: a dense Gaussian in real coordinates, (draws,)."""
    share = biject_to(constraints.simplex).inv(values["share"])  # (draws, 3, 2)
    logs = values["noise"].log(), values["precision"].log().unsqueeze(-1)
    real = torch.cat([values["weight"].flatten(1), logs[0], share.flatten(1), logs[1]], -1)
    root = part.scale_tril if part.covariance == "full_rank" else torch.diag(part.scale)
    volume = logs[0].sum(-1) + logs[1].sum(-1)
    volume = volume + values["share"].log().sum((-1, -2))  # |d (p1, p2) / d real| is the product of all shares
    return MultivariateNormal(part.loc, scale_tril=root).log_prob(real) - volume


@pytest.mark.parametrize("whole", [True, False])
@every_family
def test_the_density_of_the_shared_sites(family, whole, x):
    guide = FAMILIES[family](factors, x)
    jitter(guide)
    pair = zoo.Fit(factors, guide)
    arguments = (x,) if whole else (x[PART], PART, N)
    with reading(pair, 0):
        drawn = reader(pair, x).draw(arguments, 5)
        expected = shared_density(part_of(guide), drawn.values)
    shapes = {name: tuple(value.shape[1:]) for name, value in drawn.values.items()}
    count = len(arguments[0])
    assert shapes == {"weight": (D, K), "noise": (D,), "share": (3, 3), "precision": (), "z": (count, K)}
    torch.testing.assert_close(drawn.log_q.of_shared, expected, **ALGEBRA)
    assert drawn.joint is None
    if family.startswith(("MeanField", "FullRank")):
        numbers = torch.arange(N) if whole else PART
        scale = guide.scale_tril[numbers] if family == "FullRank" else torch.diag_embed(guide.scale[numbers])
        by_hand = MultivariateNormal(guide.loc[numbers], scale_tril=scale).log_prob(drawn.values["z"])
        torch.testing.assert_close(drawn.log_q.by_row, by_hand, **ALGEBRA)


@every_cell
def test_trains_by_vanilla_svi_and_by_fit(model, family, x, untouched):
    x = x + 1
    story = MODELS[model]()
    guide = FAMILIES[family](story, x)
    svi = SVI(story, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(3)] + [svi.step(x[PART], PART, N) for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()
    pyro.clear_param_store()
    options = {"loss": Trace_ELBO(max_plate_nesting=2), "steps": 3, "progress": False}
    with untouched():
        run = zoo.fit(story, guide, x, **options)
        batched = zoo.fit(story, guide, x, **options, batch_size=5)
        values = batched.sample(x, 2)
    assert run.losses.isfinite().all()
    assert batched.losses.isfinite().all()
    assert all(value.isfinite().all() for value in values.values())
    if isinstance(story, Module):
        assert json.loads(json.dumps(guide.settings)) == guide.settings


@every_family
def test_a_minibatch_loss_is_unbiased(family, x):
    """Under the same draws of the shared sites, losses of batches that cover the rows have the full loss as mean."""
    guide = FAMILIES[family](factors, x)
    jitter(guide)
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
        total = poutine.trace(poutine.replay(factors, trace=trace)).get_trace(x).log_prob_sum() - trace.log_prob_sum()
        parts = []
        for index in torch.arange(N).split(4):
            values = {
                name: site["value"][index] if name == "z" else site["value"]
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and name not in ("rows", "features", "groups")
            }
            own = poutine.trace(poutine.condition(guide, values)).get_trace(x[index], index, N)
            joint = poutine.trace(poutine.condition(factors, values)).get_trace(x[index], index, N)
            parts.append(joint.log_prob_sum() - own.log_prob_sum())
    torch.testing.assert_close(torch.stack(parts).mean(), total, **ALGEBRA)


@pytest.mark.parametrize("family", ["MeanField", "FullRank"])
def test_one_mean_has_its_closed_form_posterior(family, x):
    x = x + 3
    guide = FAMILIES[family](one_mean, x)
    optim = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.995})
    zoo.fit(one_mean, guide, x, steps=800, optim=optim, progress=False)
    precision = 0.01 + N * D
    scale = (guide.shared.scale if family == "MeanField" else guide.shared.scale_tril.squeeze(-1)).detach()
    deviation = precision**-0.5
    assert abs(float(guide.shared.loc.detach()) - float(x.sum()) / precision) < 0.1 * deviation
    assert float(scale) == pytest.approx(deviation, rel=0.1)


def leveled(x=None, index=None, size=None):
    """A level and an offset of every feature: correlated in the posterior, within and across the plate."""
    level = pyro.sample("level", dist.Normal(zeros(), 1.0))
    with pyro.plate("features", D):
        offset = pyro.sample("offset", dist.Normal(zeros(), 1.0))
    with rows(x, index, size):
        return pyro.sample("x", dist.Normal(level + offset, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("family", ["FullRank", pytest.param("MeanField-full", marks=pytest.mark.slow), "MeanField"])
def test_a_full_covariance_reaches_across_a_plate(family, x):
    x = x + 1
    guide = FAMILIES[family](leveled, x)
    optim = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.997})
    zoo.fit(leveled, guide, x, steps=1500, optim=optim, progress=False)
    design = torch.cat([torch.ones(D, 1), torch.eye(D)], 1).double()  # (d, 1 + d)
    precision = torch.eye(1 + D).double() + N * design.T @ design
    mean = torch.linalg.solve(precision, design.T @ x.sum(0))
    covariance = precision.inverse()
    loc = guide.shared.loc.detach()
    if family == "MeanField":
        torch.testing.assert_close(guide.shared.scale.detach().square(), 1 / precision.diagonal(), rtol=0.2, atol=0.0)
        return
    root = guide.shared.scale_tril.detach()
    assert ((loc - mean).abs() < 0.2 * covariance.diagonal().sqrt()).all()
    torch.testing.assert_close(root @ root.T, covariance, rtol=0.2, atol=0.02)


def test_the_semi_amortized_guide_climbs_the_bound_at_the_centre(x):
    """Given the centre of q(theta) the rows' posterior is Gaussian, and full steps end at the best diagonal q."""
    model = Awkward()
    guide = SemiAmortized(model, x, (4,), steps=200, rate=0.5)
    jitter(guide)
    weight = guide.proposal.shared.centre()["weight"].detach()
    precision = torch.eye(K).double() + weight.T @ weight / 0.09
    q = guide.posterior(x)
    torch.testing.assert_close(q.mean, x @ weight @ precision.inverse() / 0.09, rtol=1e-6, atol=1e-6)
    expected = precision.diagonal().rsqrt().expand(N, K)
    torch.testing.assert_close(q.variance.sqrt(), expected, rtol=1e-6, atol=1e-6)


def test_refining_sees_a_rows_own_covariates(x):
    """A minibatch is refined to what the whole data give."""
    model = Covariate()
    guide = SemiAmortized(model, x, (4,), steps=5)
    jitter(guide)
    whole, part = guide.posterior(x), guide.posterior(x[PART], PART)
    torch.testing.assert_close(part.mean, whole.mean[PART], **ALGEBRA)
    torch.testing.assert_close(part.variance, whole.variance[PART], **ALGEBRA)
    trace = poutine.trace(guide).get_trace(x[PART], PART, N)
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean, whole.mean[PART], **ALGEBRA)


def test_a_plate_of_the_users_own_left_of_the_rows_is_no_hindrance(x):
    """Refining under plates to the left of the rows: the bound of a row sums over them."""

    class Views(Module):
        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                z = pyro.sample("z", dist.Normal(zeros(K), 1.0).to_event(1))
                with pyro.plate("views", 3, dim=-2):
                    pyro.sample("seen", dist.Normal(z.sum(-1), 2.0), obs=None if x is None else x[:, :3].T)
                loc = z[..., :1].expand(*z.shape[:-1], D)
                if z.ndim > 2:
                    loc = loc.squeeze(-3)
                return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    guide = SemiAmortized(Views(), x, (4,), steps=100, rate=0.5)
    ones = torch.ones(K, K).double()
    precision = torch.eye(K).double() + 3 * ones / 4
    precision[0, 0] += D
    shift = x[:, :3].sum(-1, keepdim=True) / 4 * torch.ones(K).double()
    shift[:, 0] += x.sum(-1)
    expected = torch.linalg.solve(precision, shift.T).T
    torch.testing.assert_close(guide.posterior(x).mean, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Flow", "FullRank", "Amortized"])
def test_a_discrete_site_may_be_summed_out(family, x):
    """As a refusal says: the guide on the blocked model, the training on the enumerated one."""
    model = Mixed()
    if family != "Amortized":
        with pytest.raises(CannotServe, match=r"poutine.block\(Mixed, hide=\['component'\]\).*TraceEnum_ELBO"):
            FAMILIES[family](model, x)
    guide = FAMILIES[family](poutine.block(model, hide=["component", "on"]), x)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(config_enumerate(model), guide, pyro.optim.Adam({"lr": 0.01}), loss)
    assert math.isfinite(svi.step(x))
    with torch.no_grad():
        with seeded(3):
            own = loss.loss(config_enumerate(model), guide, x)
        with seeded(3):
            trace = poutine.trace(guide).get_trace(x)
        expected = trace.log_prob_sum() - summed(model, x, trace.nodes["z"]["value"])
    assert own == pytest.approx(float(expected), rel=1e-10)
    with pytest.raises(ValueError, match="SemiAmortized needs .* of Mixed, of which poutine.block hides a part"):
        SemiAmortized(poutine.block(model, hide=["component", "on"]), x)


def summed(model, x, z):
    """log p(x, z) of all rows, both discrete sites summed out by hand."""
    terms = []
    for component, share in enumerate((0.3, 0.7)):
        for on, chance in ((0.0, 0.6), (1.0, 0.4)):
            loc = z @ model.weight[component].T + model.mean[component] + on
            terms.append(dist.Normal(loc, 0.5).log_prob(x).sum(-1) + math.log(share * chance))
    return (torch.stack(terms).logsumexp(0) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).sum()


@pytest.mark.parametrize("family", ["MeanField", "Amortized"])
def test_several_sites_per_row(family, x):
    model = Mixed()
    guide = FAMILIES[family](model, x)
    jitter(guide)
    values = poutine.trace(guide).get_trace(x).nodes
    assert values["component"]["value"].dtype == torch.int64
    assert values["on"]["value"].dtype == torch.float64
    exact = TraceEnum_ELBO(max_plate_nesting=1, num_particles=300, vectorize_particles=True)
    drawn = Trace_ELBO(max_plate_nesting=1, num_particles=3000, vectorize_particles=True)
    with torch.no_grad(), seeded(0):
        one = exact.loss(model, config_enumerate(guide, "parallel"), x)
        other = drawn.loss(model, guide, x)
    assert one == pytest.approx(other, rel=0.02)


def test_a_functions_dtype_is_that_of_its_parameters():
    x = torch.randn(N, D)
    held = PyroParamHolder()

    def by_param(x=None, index=None, size=None):
        weight = pyro.param("weight", torch.eye(D, K).double())
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def by_module(x=None, index=None, size=None):
        weight = held.weight
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weight.T, 0.5).to_event(1), obs=x)

    def by_data(x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.repeat(1, 2), 0.5).to_event(1), obs=x)

    for family, build in FAMILIES.items():
        for model, dtype in ((by_param, torch.float64), (by_module, torch.float64), (by_data, torch.float32)):
            guide = build(model, x)
            assert {p.dtype for p in guide.parameters()} == {dtype}, (family, model)
            assert poutine.trace(guide).get_trace(x).nodes["z"]["value"].dtype == dtype


class PyroParamHolder(Module):
    def __init__(self):
        super().__init__()
        self.weight = PyroParam(torch.eye(D, K).double())


class Regressed(Covariate):
    """A covariate held by a conjugate model: its posterior takes the rows' numbers."""

    missing = False

    def __init__(self):
        super().__init__()
        self.offset = PyroParam(torch.randn(D).double())

    def forward(self, x=None, index=None, size=None):
        batch = self.batch if index is None else self.batch[index]
        with rows(x, index, size):
            z = pyro.sample("z", dist.Normal(zeros(D), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z + batch * self.offset, 1.0).to_event(1), obs=x)

    def posterior(self, x, index=None):
        batch = self.batch if index is None else self.batch[index]
        root = torch.full((D,), 0.5).double().sqrt()
        return dist.MultivariateNormal((x - batch * self.offset) / 2, scale_tril=torch.diag(root))

    def log_marginal(self, x):
        return dist.Normal(self.batch * self.offset, 2**0.5).log_prob(x).sum(-1)

    def em_step(self, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    "family", [Exact, lambda m, x: MeanField(m, x, closed_form=True), lambda m, x: FullRank(m, x, True)]
)
def test_closed_form_steps_see_a_rows_own_covariates(family, x):
    model = Regressed()
    guide = family(model) if family is Exact else family(model, x)
    loss = Trace_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        part = loss.loss(model, guide, x[PART], PART, N)
        expected = -model.log_marginal(x)[PART].sum() * N / len(PART)
    assert part == pytest.approx(float(expected), rel=1e-10)


@every_family
def test_a_full_covariance_or_none_and_nothing_else(family, x):
    kind = family.split("-")[0]
    if kind != "FullRank":
        cls = {"MeanField": MeanField, "Amortized": Amortized, "SemiAmortized": SemiAmortized, "Flow": Flow}[kind]
        with pytest.raises(ValueError, match="shared must be one of mean_field, full_rank; got 'full'"):
            cls(factors, x, shared="full")


@pytest.mark.parametrize("family", ["MeanField", pytest.param("SemiAmortized", marks=pytest.mark.slow)])
def test_a_default_fit_recovers_the_slope_of_a_covariate(family):
    """Held by the model, by row number: the slope is that of the groups' means."""
    n = 80
    with seeded(0):
        group = (torch.arange(n) % 2).unsqueeze(-1).double()
        x = 3 * group + 0.5 * torch.randn(n, 1).double() + 0.5 * torch.randn(n, 3).double()

    class Groups(Module):
        def __init__(self):
            super().__init__()
            self.weight = PyroParam(torch.full((3, 1), 0.3).double())
            self.slope = PyroParam(zeros(1, 3))
            self.register_buffer("group", group)

        def forward(self, x=None, index=None, size=None):
            weight, slope, group = self.weight, self.slope, self.group if index is None else self.group[index]
            with rows(x, index, size):
                z = pyro.sample("z", dist.Normal(weight.new_zeros(1), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(z @ weight.T + group @ slope, 0.5).to_event(1), obs=x)

    model = Groups()
    zoo.fit(model, FAMILIES[family](model, x), x, progress=False)
    torch.testing.assert_close(model.slope[0].detach(), x[group[:, 0] == 1].mean(0), rtol=0, atol=0.1)


def test_refining_runs_the_model_in_evaluation_mode(x):
    """Dropout is off and batch normalisation keeps its statistics, whatever the mode of the model."""

    class Noisy(Module):
        def __init__(self):
            super().__init__()
            parts = torch.nn.Linear(K, D), torch.nn.Dropout(0.5), torch.nn.Linear(D, D)
            self.decoder = torch.nn.Sequential(*parts).double()
            self.norm = torch.nn.BatchNorm1d(D).double()

        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                z = pyro.sample("z", dist.Normal(zeros(K), 1.0).to_event(1))
                out = self.decoder(z)
                out = self.norm(out.reshape(-1, D)).reshape(out.shape)
                return pyro.sample("x", dist.Normal(out, 0.5).to_event(1), obs=x)

    model = Noisy().train()
    guide = SemiAmortized(model, x, (4,), steps=3)
    before = {name: value.clone() for name, value in model.named_buffers()}
    first, second = guide.posterior(x), guide.posterior(x)
    assert torch.equal(first.mean, second.mean)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
