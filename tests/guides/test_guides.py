"""The guides' own mathematics: densities with their changes of variables, best approximations, refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import close, jitter, zeros
from pyro import poutine
from torch.distributions import MultivariateNormal, biject_to, constraints

import guides
import zoo
from guides import Amortized, CannotServe, Exact, FullRank, MeanField
from zoo import GMM, PPCA, VAE
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.optim.lbfgs import LBFGS

pytestmark = pytest.mark.usefixtures("own_store")

ALGEBRA = 1e-8  # float64 and a handful of operations


class Story(Module):
    """Local sites on three supports, one of them a matrix, after sites that all rows share."""

    def forward(self, x=None, index=None, size=None):
        level = pyro.sample("level", dist.Gamma(torch.tensor(2.0).double(), 1.0))
        slope = pyro.sample("slope", dist.Normal(zeros(2), 1.0).to_event(1))
        with rows(x, index, size):
            tau = pyro.sample("tau", dist.LogNormal(zeros(), 1.0))
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3).double()))
            z = pyro.sample("z", dist.Normal(zeros(2, 3), 1.0).to_event(2))
            mean = (z @ share.unsqueeze(-1)).squeeze(-1) + slope * level.unsqueeze(-1)  # (..., n, 2)
            return pyro.sample("x", dist.Normal(mean, tau.unsqueeze(-1)).to_event(1), obs=x)


LOCAL = 1 + 2 + 6  # real coordinates of tau, share and z


def drawn(guide, x):
    """Values and log densities of every site of the guide."""
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    nodes = {name: site for name, site in trace.nodes.items() if name in ("level", "slope", "tau", "share", "z")}
    return {k: site["value"] for k, site in nodes.items()}, {k: site["log_prob"] for k, site in nodes.items()}


def simplex_volume(real):
    """log |d (p1, p2) / d real| of the map to the simplex, by automatic differentiation, row by row."""
    to_simplex = biject_to(constraints.simplex)
    jacobian = torch.stack([torch.func.jacrev(lambda r: to_simplex(r)[:2])(row) for row in real])
    return torch.linalg.slogdet(jacobian).logabsdet


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_the_joint_density_is_the_dense_gaussians(kind):
    x, model = torch.randn(5, 2).double(), Story()
    guide = kind(model, x)
    jitter(guide, by=0.5)
    values, densities = drawn(guide, x)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "level": (),
        "slope": (2,),
        "tau": (5,),
        "share": (5, 3),
        "z": (5, 2, 3),
    }
    assert (values["tau"] > 0).all()
    close(values["share"].sum(-1), torch.ones(5).double())
    full = kind is FullRank
    root = guide.scale_tril if full else torch.diag_embed(guide.scale)
    assert root.shape == (5, LOCAL, LOCAL)
    share = biject_to(constraints.simplex).inv(values["share"])
    real = torch.cat([values["tau"].log().unsqueeze(-1), share, values["z"].flatten(1)], -1)
    volume = values["tau"].log() + simplex_volume(share)  # d tau / d log tau = tau
    expected = MultivariateNormal(guide.loc, scale_tril=root).log_prob(real) - volume
    close(densities["tau"] + densities["share"] + densities["z"], expected)
    root = guide.shared.scale_tril if full else torch.diag(guide.shared.scale)
    real = torch.cat([values["level"].log().reshape(1), values["slope"]])
    expected = MultivariateNormal(guide.shared.loc, scale_tril=root).log_prob(real) - values["level"].log()
    close(densities["level"] + densities["slope"], expected)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_draws_have_the_parameters_moments(kind):
    n = 20_000
    x, model = zeros(n, 2), Story()
    guide = kind(model, x)
    with torch.no_grad():  # the same q for all rows: their draws are a sample of it
        for parameter in guide.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter[:1]) if len(parameter) == n else parameter)
    values, _ = drawn(guide, x)
    share = biject_to(constraints.simplex).inv(values["share"])
    real = torch.cat([values["tau"].log().unsqueeze(-1), share, values["z"].flatten(1)], -1).detach()
    root = (guide.scale_tril[0] if kind is FullRank else torch.diag(guide.scale[0])).detach()
    covariance = root @ root.T
    variance = covariance.diagonal()
    assert ((real.mean(0) - guide.loc[0]).abs() < 5 * (variance / n).sqrt()).all()
    error = ((torch.outer(variance, variance) + covariance.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((real.T.cov(correction=0) - covariance).abs() < 5 * error).all()
    if kind is FullRank:
        assert covariance.tril(-1).abs().max() > 0.1


@pytest.mark.parametrize("covariance", ["diag", "low_rank", "full"])
def test_amortized_serves_several_supports(covariance):
    class Local(Module):
        def forward(self, x=None, index=None, size=None):
            with rows(x, index, size):
                tau = pyro.sample("tau", dist.LogNormal(zeros(), 1.0))
                z = pyro.sample("z", dist.Normal(zeros(2), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(z, tau.unsqueeze(-1)).to_event(1), obs=x)

    x = torch.randn(5, 2).double()
    guide = Amortized(Local(), x, hidden=(4,), covariance=covariance, rank=2)
    jitter(guide, by=0.5)
    loc, raw, _ = guide.encode(x)
    root = torch.diag_embed(guide._scale(raw)) if covariance == "diag" else guide._scale(raw)
    values, densities = drawn(guide, x)
    real = torch.cat([values["tau"].log().unsqueeze(-1), values["z"]], -1)
    expected = MultivariateNormal(loc, scale_tril=root).log_prob(real) - values["tau"].log()
    close(densities["tau"] + densities["z"], expected)


# --- covariances of the network ------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6,)])
@pytest.mark.parametrize("covariance", ["diag", "low_rank", "full"])
def test_covariances_of_the_network(covariance, hidden, some):
    guide = Amortized(PPCA(4, 3).double(), some, hidden=hidden, covariance=covariance, rank=1)

    def matrices():
        q = guide.posterior(some)
        return torch.diag_embed(q.variance) if covariance == "diag" else q.covariance_matrix.expand(60, 3, 3)

    assert (matrices() - torch.eye(3)).abs().max() < 0.5  # near the standard normal at the start
    assert guide.posterior(some).mean.abs().max() < 1.0
    jitter(guide, by=0.5)
    _, raw, _ = guide.encode(some)
    raw = raw.expand(60, -1)
    deviation = torch.nn.functional.softplus(raw[:, :3] + math.log(math.e - 1))  # 1 at 0
    if covariance == "diag":
        expected = torch.diag_embed(deviation.square())
    elif covariance == "low_rank":
        expected = torch.diag_embed(deviation.square()) + raw[:, 3:, None] * raw[:, None, 3:]
    else:
        root = torch.diag_embed(deviation)
        root[:, 1, 0], root[:, 2, 0], root[:, 2, 1] = raw[:, 3:].unbind(1)
        expected = root @ root.mT
    close(matrices(), expected)
    spread = (matrices() - matrices()[0]).abs().max()
    assert (spread == 0) if hidden == () else (spread > 1e-3)  # with hidden layers the covariance follows the row


def test_the_network_sees_standard_units(some):
    guide = Amortized(PPCA(4, 2).double(), some, hidden=())
    shifted = Amortized(PPCA(4, 2).double(), 100 * some + 7, hidden=())
    shifted.encoder.load_state_dict(guide.encoder.state_dict())
    close(guide.posterior(some).mean, shifted.posterior(100 * some + 7).mean)


# --- the best approximations ---------------------------------------------------------------------


def rotated(x, theta):
    """Maximum-likelihood PPCA with two factors: its canonical loadings, turned by theta, and frozen."""
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    noise = values[:-2].mean()
    turn = torch.tensor([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]).double()
    model = PPCA(x.shape[1], 2).double()
    model.weight = vectors[:, -2:] * (values[-2:] - noise).sqrt() @ turn
    model.mean, model.scale = x.mean(0), noise.sqrt()
    return model.requires_grad_(False)


GAPS = [(0.0, 0.0), (math.pi / 8, 80.7568), (math.pi / 4, 118.7366)]
LEARNERS = {
    "MeanField": lambda model, x: MeanField(model, x),
    "linear": lambda model, x: Amortized(model, x, hidden=()),
}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("theta", "gap"), GAPS)
def test_the_best_factorised_guide_stops_at_the_known_gap(iris, theta, gap, learner):
    model = rotated(iris, theta)
    before = [p.clone() for p in model.parameters()]
    precision = torch.eye(2) + model.weight.T @ model.weight / model.scale.square()
    formula = 150 * (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    assert formula.item() == pytest.approx(gap, abs=1e-4)  # the digits that were printed
    guide = LEARNERS[learner](model, iris)
    jitter(guide, by=0.5)  # so that it must learn: MeanField starts at the optimum of a conjugate model
    fit = zoo.fit(model, guide, iris, progress=False)
    assert fit.converged
    q = guide.posterior(iris)
    reached = (model.log_marginal(iris) - model.elbo(iris, q)).sum()
    assert -1e-8 < reached - formula < 1e-3
    # The gap is quadratic around its minimum, so q is known to the square root of what is left of it.
    close(q.mean, model.posterior(iris).mean, 5e-2)
    close(q.variance, (1 / precision.diagonal()).expand(150, 2), 5e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_full_covariances_leave_no_gap(iris):
    model = rotated(iris, math.pi / 8)
    for guide in (FullRank(model, iris), Amortized(model, iris, hidden=(), covariance="full")):
        jitter(guide, by=0.5)
        zoo.fit(model, guide, iris, progress=False)
        gap = (model.log_marginal(iris) - model.elbo(iris, guide.posterior(iris))).sum()
        assert -1e-8 < gap < 1e-3


def test_a_conjugate_start_is_the_best_there_is(some):
    model = rotated(some, math.pi / 8)
    field, full = MeanField(model, some), FullRank(model, some)
    field.initialize(some)
    full.initialize(some)
    close(model.elbo(some, full.posterior(some)), model.log_marginal(some))
    precision = torch.eye(2) + model.weight.T @ model.weight / model.scale.square()
    gap = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    close(model.elbo(some, field.posterior(some)), model.log_marginal(some) - gap)
    mixture = GMM(4, 2).double()
    mixture.initialize(some)
    guide = MeanField(mixture, some)
    guide.initialize(some)
    close(mixture.elbo(some, guide.posterior(some)), mixture.log_marginal(some))


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_closed_form_takes_the_e_step_at_every_call(kind, some):
    model, index = rotated(some, math.pi / 8), torch.arange(0, 60, 2)
    guide, reference = kind(model, some, closed_form=True), kind(model, some)
    assert not any(p.requires_grad for p in guide.parameters())
    for shift in (0.0, 1.0):
        model.mean = model.mean + shift  # it follows the model
        reference.initialize(some)
        guide(some[index], index, 60)
        guide(some[index + 1], index + 1, 60)
        close(guide.posterior(some).mean, reference.posterior(some).mean)
        close(guide.posterior(some).variance, reference.posterior(some).variance)


def test_a_mixtures_mean_field_is_its_e_step(some):
    model = GMM(4, 3).double()
    model.initialize(some)
    loss = QuadratureELBO().loss(model, MeanField(model, some), some)
    assert loss == pytest.approx(-model.log_marginal(some).sum().item(), rel=ALGEBRA)


class Regression(Module):
    """x_n ~ N(A m, I) with m ~ N(0, I) shared: a posterior with correlations, known in closed form."""

    design = torch.tensor([[1.0, 0.8], [0.5, 1.0], [0.2, 0.1]]).double()  # A (3, 2)

    def forward(self, x=None, index=None, size=None):
        m = pyro.sample("m", dist.Normal(zeros(2), 1.0).to_event(1))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(m @ self.design.T, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_a_shared_site_is_learned(kind):
    model, x = Regression(), 1 + torch.randn(20, 3).double()
    guide = kind(model, x)
    zoo.fit(model, guide, x, loss=QuadratureELBO(), optim=LBFGS(), progress=False)
    precision = torch.eye(2) + 20 * model.design.T @ model.design
    mean = torch.linalg.solve(precision, model.design.T @ x.sum(0))
    # L-BFGS stops at 1e-9 of the bound: its square root in the parameters, with room for curvature.
    close(guide.shared.loc.detach(), mean, 1e-3)
    if kind is FullRank:
        root = guide.shared.scale_tril.detach()
        close(root @ root.T, precision.inverse(), 1e-3)
    else:
        close(guide.shared.scale.detach().square(), 1 / precision.diagonal(), 1e-3)


# --- refusals ------------------------------------------------------------------------------------


class Switch(Module):
    """A discrete site that all rows share."""

    def forward(self, x=None, index=None, size=None):
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.5).double()))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(on.unsqueeze(-1).expand(*on.shape, 4), 1.0).to_event(1), obs=x)


class Counts(Module):
    """A discrete site without finite support."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            c = pyro.sample("c", dist.Poisson(torch.tensor(2.0).double()))
            return pyro.sample("x", dist.Normal(c.unsqueeze(-1), torch.ones(4).double()).to_event(1), obs=x)


class Plated(Module):
    """A latent site of the rows in a further plate."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            with pyro.plate("views", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(zeros(), 1.0))
            mean = z.sum(-2).unsqueeze(-1).expand(*z.shape[:-2], z.shape[-1], 4)
            return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


class Plain(Module):
    """No latent site."""

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(zeros(4), 1.0).to_event(1), obs=x)


class Pair(PPCA):
    """Closed forms, but of one of its two latent sites."""

    def forward(self, x=None, index=None, size=None):
        pyro.sample("level", dist.Normal(zeros(), 1.0))
        return super().forward(x, index, size)


REFUSALS = {
    "FullRank of a mixture": (
        lambda x: FullRank(GMM(4, 2).double(), x),
        "component",
        "is discrete",
        "Use Amortized",
    ),
    "Exact of a VAE": (lambda x: Exact(VAE(4, 2).double()), "z", "no closed-form posterior", "Use Amortized"),
    "Exact of two sites": (lambda x: Exact(Pair(4, 2).double()), "level", "is one of 2", "Use MeanField"),
    "Amortized of shared sites alone": (
        lambda x: Amortized(Regression(), x[:, :3]),
        "m",
        "shared by all rows",
        "Use MeanField",
    ),
    "Amortized, full, of a mixture": (
        lambda x: Amortized(GMM(4, 2).double(), x, covariance="full"),
        "component",
        "no full covariance",
        "covariance='diag'",
    ),
    "MeanField of a shared switch": (
        lambda x: MeanField(Switch(), x),
        "on",
        "shared by all rows",
        "Sum it out",
    ),
    "closed form of a VAE": (
        lambda x: MeanField(VAE(4, 2).double(), x, closed_form=True),
        "z",
        "no closed-form posterior",
        "closed_form=False",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_site_reason_and_way_out(case, some):
    build, site, reason, way_out = REFUSALS[case]
    with pytest.raises(CannotServe) as caught:
        build(some)
    assert caught.value.site == site
    message = str(caught.value)
    for part in (case.split()[0] if case[0].isupper() else "MeanField", f"'{site}'", reason, way_out):
        assert part.rstrip(",") in message


@pytest.mark.parametrize("kind", [MeanField, FullRank, Amortized])
def test_models_that_no_guide_serves(kind, some):
    with pytest.raises(ValueError, match=r"'c' \(Poisson\) is discrete without finite support"):
        kind(Counts(), some)
    with pytest.raises(CannotServe, match=r"'z' is in plate 'views' inside the rows.*to_event.*AutoNormal"):
        kind(Plated(), some)
    with pytest.raises(ValueError, match="has no latent site"):
        kind(Plain(), some)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_another_number_of_rows_is_refused(kind, some):
    guide = kind(PPCA(4, 2).double(), some)
    for call in (guide, guide.posterior):
        with pytest.raises(ValueError, match=rf"{kind.__name__} holds 60 rows, got 50: fit a new one .* Amortized"):
            call(some[:50])
        with pytest.raises(ValueError, match="index has 10 entries, x has 20 rows"):
            call(some[:20], torch.arange(10))


def test_another_width_is_refused(some):
    guide = Amortized(PPCA(4, 2).double(), some)
    for call in (guide, guide.posterior):
        with pytest.raises(ValueError, match="x has 3 columns, the network of Amortized was built for 4"):
            call(some[:, :3])
    for kind in (MeanField, FullRank, Amortized):
        with pytest.raises(ValueError, match="x has 3 columns, the model PPCA was built for data_dim=4"):
            kind(PPCA(4, 2).double(), some[:, :3])


def test_several_sites_have_no_single_posterior(some):
    guide = MeanField(Story(), some[:, :2])
    with pytest.raises(ValueError, match="3 local latent sites: draw from the guide"):
        guide.posterior(some[:, :2])


def test_options_of_the_network_are_checked(some):
    model = PPCA(4, 2).double()
    with pytest.raises(ValueError, match="covariance must be one of diag, low_rank, full; got 'ful'"):
        Amortized(model, some, covariance="ful")
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got 0"):
        Amortized(model, some, covariance="low_rank", rank=0)
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1"):
        Amortized(model, some, hidden=(0,))
    with pytest.raises(ValueError, match="pass x"):
        Amortized(model, some)(size=5)
    with pytest.raises(ValueError, match="activation must be one of silu"):
        Amortized(model, some, activation="swish")
    with pytest.raises(ValueError, match=r"image=\(1, 2, 3\) has 6 entries, but a row has 4"):
        Amortized(model, some, image=(1, 2, 3))


# --- networks ------------------------------------------------------------------------------------

NETWORKS = {
    "tanh": {"activation": "tanh"},
    "class": {"activation": torch.nn.ELU},
    "gated": {"gated": True},
    "normalize": {"normalize": True},
    "image": {"image": (1, 2, 2)},
    "image-gated": {"image": (2, 1, 2), "gated": True, "normalize": True},
    "image-linear": {"image": (1, 2, 2), "hidden": ()},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_sort_start_near_the_prior_learn_and_come_back(name, masked, some, tmp_path):
    options = {"hidden": (6, 4), **NETWORKS[name]}
    model = PPCA(4, 2).double()
    x = some.clone()
    if masked:
        x[::7, 1] = math.nan
    guide = Amortized(model, x, covariance="full", **options)
    q = guide.posterior(x)
    assert (q.batch_shape, q.event_shape) == ((60,), (2,))
    assert q.mean.abs().max() < 1.0
    assert (q.covariance_matrix - torch.eye(2)).abs().max() < 0.5
    for row in (0, 7):  # a row is read by itself
        close(guide.posterior(x[row : row + 1]).mean[0], q.mean[row])
    if masked:  # the pattern is seen: the mean in a gap's place is another thing
        filled = torch.where(x.isnan(), guide.columns.shift, x)
        assert (guide.posterior(filled).mean - q.mean)[::7].abs().amax(1).min() > 1e-10  # unseen, it were 0
    run = zoo.fit(model, guide, x, steps=60, progress=False, optim=pyro.optim.Adam({"lr": 0.02}))
    assert run.losses[-10:].mean() < run.losses[:5].mean()
    back = zoo.load(run.save(tmp_path / "run"))
    assert torch.equal(back.guide.posterior(x).mean, run.guide.posterior(x).mean)


def test_a_network_of_ones_own(some, tmp_path):
    model = PPCA(4, 2).double()
    x = some.clone()
    x[::7, 1] = math.nan
    network = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5)).double()
    before = [p.clone() for p in network.parameters()]
    guide = Amortized(model, x, covariance="full", hidden=(), network=network)
    assert guide.outputs == 5
    guide.initialize(x)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))  # a trained one stays
    out = network(torch.cat([guide.columns(x), x.isnan().double()], 1))
    close(guide.posterior(x).mean, out[:, :2])
    close(guide.posterior(x).scale_tril[:, 1, 0], out[:, 4])
    run = zoo.fit(model, guide, x, steps=60, progress=False, optim=pyro.optim.Adam({"lr": 0.02}))
    assert run.losses[-10:].mean() < run.losses[:5].mean()
    run.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"argument network of the guide .*load\(path, guide=\.\.\.\)"):
        zoo.load(tmp_path / "run")
    other = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5)).double()
    again = Amortized(model, x, covariance="full", hidden=(), network=other)
    back = zoo.load(tmp_path / "run", guide=again)
    assert torch.equal(back.guide.posterior(x).mean, guide.posterior(x).mean)
    for call in (back.guide, back.guide.posterior):
        with pytest.raises(ValueError, match="x has 3 columns, the network of Amortized was built for 4"):
            call(some[:, :3])


def test_a_network_of_another_width_is_refused(some):
    model = PPCA(4, 2).double()
    with pytest.raises(ValueError, match=r"network returns width 3 .*\(\.\.\., 4\), 2 means, 2 numbers of the cov"):
        Amortized(model, some, network=torch.nn.Linear(4, 3))
    with pytest.raises(
        ValueError, match=r"network fails on zeros of shape \(2, 3, 8\).*network must map \(\.\.\., 8\)"
    ):
        Amortized(model, some, network=torch.nn.Linear(4, 4), masked=True)
    mixture = GMM(4, 3).double()
    with pytest.raises(ValueError, match="0 means, 0 numbers of the covariance and 3 logits"):
        Amortized(mixture, some, network=torch.nn.Linear(4, 2))
    assert Amortized(mixture, some, network=torch.nn.Linear(4, 3)).posterior(some).logits.shape == (60, 3)


@pytest.mark.parametrize("family", ["Amortized", "SemiAmortized", "Flow"])
def test_the_posterior_is_read_in_evaluation_mode(family, some):
    """Dropout is off whatever mode the network is in, and the mode stays."""
    model = zoo.PPCA(4, 2).double()
    guide = getattr(guides, family)(model, some, hidden=(8,))
    network = guide.proposal.encoder if family == "SemiAmortized" else guide.encoder
    network = getattr(network, "network", network)  # beside a linear path
    network.insert(1, torch.nn.Dropout(0.5))
    guide.train()
    q = guide.posterior(some)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = q.sample()
    again = guide.posterior(some)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = again.sample()
    assert torch.equal(one, other)
    assert all(part.training for part in guide.modules())
