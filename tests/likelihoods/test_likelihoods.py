"""Likelihoods of a decoder: their densities, their place on the data, what they refuse, and parts of a row."""

import math

import pytest
import scipy.stats
import torch
from helpers import close
from torch.distributions import MultivariateNormal, constraints
from torch.nn.functional import softplus

from zoo.distributions.discretized import DiscretizedLogistic
from zoo.distributions.observed import Observed, seen
from zoo.likelihoods.building import build
from zoo.likelihoods.kinds import LIKELIHOODS

ALGEBRA = 1e-8  # float64 and a handful of operations
NAN = float("nan")
COVARIANCES = ["scalar", "diag", "low_rank", "full"]
MIXED = ["gaussian", "bernoulli", "gaussian", "poisson", "student_t", "logistic_256", "bernoulli"]
KINDS = [*LIKELIHOODS, "mixed"]
D, N = len(MIXED), 400
every_kind = pytest.mark.parametrize("kind", KINDS)
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def column(kind, n=N):
    """Data of that kind (n,), float64; of a kind without an entry here, draws of the likelihood itself."""
    draw = {
        "gaussian": lambda: 3 + 2 * torch.randn(n),
        "student_t": lambda: torch.distributions.StudentT(3.0).sample((n,)) - 1,
        "bernoulli": lambda: (torch.rand(n) < 0.3).float(),
        "poisson": lambda: torch.poisson(torch.full((n,), 4.0)),
        "logistic_256": lambda: torch.randint(0, 256, (n,)).double() / 255,
    }
    if kind in draw:
        return draw[kind]().double()
    module = build(kind, 1).double()
    return module(*numbers(module)).sample((n,)).squeeze(-1)


def names(kind):
    return MIXED if kind == "mixed" else [kind] * D


def data(kind, n=N):
    return torch.stack([column(name, n) for name in names(kind)], 1)


def placed(kind, x, **options):
    module = build(MIXED if kind == "mixed" else kind, x.shape[1], **options).double()
    module.place(x)
    return module


def numbers(module, *batch):
    return 0.7 * torch.randn(*batch, module.locations).double(), torch.randn(*batch, module.noise).double()


# Densities.


def test_gaussian():
    x = data("gaussian")
    module = placed("gaussian", x, floor=0.02)
    f, g = numbers(module, N)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = deviation * (0.02 + softplus(g) ** 2).sqrt()
    expected = scipy.stats.norm.logpdf(x, mean + deviation * f, scale).sum(-1)
    close(module(f, g).log_prob(x), torch.tensor(expected))


def test_student_t():
    x = data("student_t")
    module = placed("student_t", x, floor=0.02)
    with torch.no_grad():
        module.freedom.copy_(torch.linspace(-3, 3, D))
    f, g = numbers(module, N)
    df = (2.01 + softplus(module.freedom)).detach()
    close(module.degrees.detach(), df)
    loc = x.mean(0) + x.std(0, correction=0) * f
    scale = x.std(0, correction=0) * (0.02 + softplus(g) ** 2).sqrt()
    close(module(f, g).log_prob(x).detach(), torch.tensor(scipy.stats.t.logpdf(x, df, loc, scale).sum(-1)))
    close(module(f, g).variance.detach(), torch.tensor(scipy.stats.t.var(df, loc, scale)))


def test_degrees_of_freedom_start_at_ten_and_stay_above_two():
    module = build("student_t", 3).double()
    close(module.degrees, torch.full((3,), 10.0, dtype=torch.float64), 1e-8)  # made in float32
    with torch.no_grad():
        module.freedom.fill_(-1e4)
    assert (module.degrees > 2).all()
    assert module(torch.zeros(3).double(), torch.zeros(3).double()).variance.isfinite().all()
    module.reset_parameters()
    close(module.degrees, torch.full((3,), 10.0, dtype=torch.float64), 1e-8)  # made in float32


def test_bernoulli():
    x = data("bernoulli")
    module = placed("bernoulli", x)
    f, _ = numbers(module, N)
    odds = torch.logit(x.mean(0)) + f
    close(module(f).log_prob(x), torch.tensor(scipy.stats.bernoulli.logpmf(x, torch.sigmoid(odds)).sum(-1)))


def test_poisson():
    x = data("poisson")
    module = placed("poisson", x)
    f, _ = numbers(module, N)
    close(module(f).log_prob(x), torch.tensor(scipy.stats.poisson.logpmf(x, x.mean(0) * f.exp()).sum(-1)))


PIXELS = torch.arange(256).double() / 255


@pytest.mark.parametrize("loc", [-0.5, 0.0, 0.3, 0.5017, 1.0, 1.5])
@pytest.mark.parametrize("scale", [4e-4, 0.01, 0.1, 1.0, 100.0])
def test_pixels(loc, scale):
    q = DiscretizedLogistic(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    logs = q.log_prob(PIXELS)
    close(logs.logsumexp(0), torch.zeros(()).double())
    edges = (torch.arange(1, 256).double() - 0.5) / 255
    with_tails = torch.cat([torch.tensor([-math.inf]), edges, torch.tensor([math.inf])]).double()
    standard = (with_tails - loc) / scale
    mirror = standard[:-1] > 0  # from the tail that is short, where a difference keeps its digits
    expected = torch.where(
        mirror,
        torch.sigmoid(-standard[:-1]) - torch.sigmoid(-standard[1:]),
        torch.sigmoid(standard[1:]) - torch.sigmoid(standard[:-1]),
    )
    close(logs.exp(), expected)
    close(q.mean, (logs.exp() * PIXELS).sum())
    close(q.variance, (logs.exp() * (PIXELS - q.mean) ** 2).sum())


def test_pixels_far_from_their_location_keep_digits_and_gradients():
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        loc = torch.tensor([0.9, -3.0, 4.0], dtype=dtype, requires_grad=True)
        scale = torch.full((3,), 4e-4, dtype=dtype, requires_grad=True)
        value = torch.tensor([51 / 255, 51 / 255, 51 / 255], dtype=dtype)
        logs = DiscretizedLogistic(loc, scale).log_prob(value)
        # In a tail the distribution is exponential: log P = -|x - loc| / s + log(2 sinh(h / s)).
        half = 0.5 / 255 / 4e-4
        expected = -(value - loc).abs() / 4e-4 + half + math.log1p(-math.exp(-2 * half))
        torch.testing.assert_close(logs, expected, rtol=tolerance, atol=tolerance)
        logs.sum().backward()
        assert loc.grad.isfinite().all()
        assert scale.grad.isfinite().all()
        torch.testing.assert_close(loc.grad, torch.tensor([-2500.0, 2500, -2500], dtype=dtype), rtol=1e-4, atol=0)


def test_pixels_of_a_decoder():
    x = data("logistic_256")
    module = placed("logistic_256", x)
    f, g = numbers(module, N)
    unit = x.std(0, correction=0)
    q = DiscretizedLogistic(x.mean(0) + unit * f, unit * softplus(g) + 0.1 / 255)
    close(module(f, g).log_prob(x), q.log_prob(x).sum(-1))


def test_mixed_columns_are_their_own():
    x = data("mixed")
    module = placed("mixed", x, floor=0.05)
    f, g = numbers(module, 3, N)
    q = module(f, g)
    assert (q.batch_shape, q.event_shape) == ((3, N), (D,))
    total, start = 0, 0
    for kind in dict.fromkeys(MIXED):
        group = [j for j, name in enumerate(MIXED) if name == kind]
        own = placed(kind, x[:, group], floor=0.05)
        part = own(f[..., group], g[..., start : start + own.noise])
        total = total + part.log_prob(x[:, group])
        close(q.mean[..., group], part.mean.expand(3, N, -1))
        close(q.variance[..., group], part.variance.expand(3, N, -1))
        start += own.noise
    close(q.log_prob(x), total)
    assert q.expand((2, 3, N)).log_prob(x).shape == (2, 3, N)
    assert not q.has_rsample
    assert q.support.check(q.sample((2,))).all()
    assert not q.support.check(x - 0.25).any()
    smooth = build(["gaussian", "student_t"], 2)(torch.zeros(2), torch.zeros(2))
    assert smooth.has_rsample
    assert smooth.rsample((5,)).shape == (5, 2)


# Covariances of the Gaussian.


def covariance_of(module, g):
    """Sigma by the formulas of the docstring, with loops."""
    unit, d, floor = module.columns.unit, module.locations, module.floor
    if module.covariance == "scalar":
        return module.common**2 * (floor + softplus(g[0]) ** 2) * torch.eye(d, dtype=torch.float64)
    diagonal = torch.diag(softplus(g[:d]))
    if module.covariance == "diag":
        inner = floor * torch.eye(d, dtype=torch.float64) + diagonal**2
    elif module.covariance == "low_rank":
        factor = torch.stack([g[d + r * d : d + (r + 1) * d] for r in range(module.rank)], 1)
        inner = floor * torch.eye(d, dtype=torch.float64) + diagonal**2 + factor @ factor.T / module.rank
    else:
        lower, rest = diagonal.clone(), iter(g[d:])
        for i in range(d):
            for j in range(i):
                lower[i, j] = next(rest) / math.sqrt(d)
        inner = floor * torch.eye(d, dtype=torch.float64) + lower @ lower.T
    return torch.diag(unit) @ inner @ torch.diag(unit)


@every_covariance
@pytest.mark.parametrize("shared", [False, True])
def test_covariances_are_the_dense_gaussians(covariance, shared):
    x = data("gaussian") * torch.linspace(0.5, 4, D)
    module = placed("gaussian", x, covariance=covariance, rank=2, floor=0.03)
    f, g = numbers(module, 5)
    g = g[0] if shared else g
    q = module(f, g)
    assert (q.batch_shape, q.event_shape) == ((5,), (D,))
    mean = x.mean(0) + x.std(0, correction=0) * f
    own = torch.stack([covariance_of(module, row) for row in g.expand(5, -1)])
    close(q.log_prob(x[:5]), MultivariateNormal(mean, own).log_prob(x[:5]))
    close(q.mean, mean)
    close(q.variance, own.diagonal(dim1=-2, dim2=-1))
    more = module(*numbers(module, 2, 3))
    assert more.log_prob(x[:3]).shape == (2, 3)


@every_covariance
@pytest.mark.parametrize("floor", [1e-3, 0.3])
def test_no_direction_falls_below_the_floor(covariance, floor):
    x = data("gaussian") * torch.linspace(0.5, 4, D)
    module = placed("gaussian", x, covariance=covariance, rank=2, floor=floor)
    f, g = numbers(module, 1)
    unit = module.common.expand(D) if covariance == "scalar" else module.columns.unit
    lowest = torch.zeros_like(g)
    lowest[..., : 1 if covariance == "scalar" else D] = -1e3  # as far as training can push the diagonal
    for noise in (g, g - 5, lowest):
        q = module(f, noise)
        own = q.covariance_matrix[0] if hasattr(q, "covariance_matrix") else torch.diag(q.variance[0])
        inner = own / torch.outer(unit, unit) - floor * torch.eye(D, dtype=torch.float64)
        assert torch.linalg.eigvalsh(inner).min() > -ALGEBRA
    close(module(f, lowest).variance[0], floor * unit**2)


def test_scalar_noise_has_the_common_unit():
    x = data("gaussian") * torch.linspace(0.5, 4, D)
    module = placed("gaussian", x, covariance="scalar")
    close(module.common**2, x.var(0, correction=0).mean())
    module.place(torch.full((10, D), 2.0).double())
    close(module.common, torch.ones(()).double())


def test_low_rank_forms_no_matrix_of_the_columns():
    """At d = 60,000 a d x d matrix would take 14 GB."""
    d = 60_000
    module = build("gaussian", d, covariance="low_rank", rank=2)
    f, g = torch.zeros(2, d, requires_grad=True), torch.randn(2, module.noise, requires_grad=True)
    x = torch.randn(2, d)
    q = module(f, g)
    q.log_prob(x).sum().backward()
    assert g.grad.isfinite().all()
    observed = torch.rand(2, d) < 0.5
    assert Observed(q, observed).log_prob(x).isfinite().all()
    assert q.rsample().shape == (2, d)


# Place, check, draws.


@every_kind
def test_a_location_of_zero_gives_the_column_means(kind):
    x = data(kind)
    module = placed(kind, x)
    zeros = torch.zeros(D).double()
    # The mean of a logistic on [0, 1] is cut at the ends; where it is narrow it is the location, rounded.
    q = module(zeros, torch.full((module.noise,), -30.0).double())
    cut = torch.tensor([name == "logistic_256" for name in names(kind)])
    close(q.mean[~cut].detach(), x.mean(0)[~cut])
    assert ((q.mean - x.mean(0)).abs()[cut] < 0.51 / 255).all()


@every_kind
def test_missing_entries_do_not_count(kind):
    x = data(kind)
    gaps = x.clone()
    gaps[torch.rand(N, D) < 0.3] = NAN
    gaps[:2] = x[:2]
    module = placed(kind, gaps)
    for j in range(D):
        own = gaps[:, j][~gaps[:, j].isnan()].unsqueeze(1)
        single = placed(names(kind)[j], own)
        q = module(torch.zeros(D).double(), torch.zeros(module.noise).double())
        one = single(torch.zeros(1).double(), torch.zeros(single.noise).double())
        close(q.mean[j], one.mean[0])
        close(q.variance[j], one.variance[0])


@pytest.mark.parametrize("kind", ["bernoulli", "poisson"])
def test_columns_without_any_event_stay_finite(kind):
    x = torch.zeros(10, 2).double()
    x[:, 1] = 1
    module = placed(kind, x)
    q = module(torch.zeros(2).double())
    close(q.mean, torch.tensor([0.05, 0.95 if kind == "bernoulli" else 1.0], dtype=torch.float64))
    assert q.log_prob(x).isfinite().all()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_pass_the_check(kind, dtype):
    x = data(kind).to(dtype)
    module = placed(kind, x).to(dtype)
    f, g = (value.to(dtype) for value in numbers(module, N))
    draws = module(f, g).sample((3,))
    assert draws.dtype == dtype
    for draw in draws:
        module.check(draw)
    module.check(x)
    gaps = x.clone()
    gaps[3, 2] = NAN
    module.check(gaps)


@every_kind
def test_draws_have_the_moments(kind):
    draws = 20_000
    x = data(kind)
    module = placed(kind, x)
    if kind in ("student_t", "mixed"):
        with torch.no_grad():  # above 8 degrees of freedom the error of a sample variance exists
            for p in module.parameters():
                p.fill_(20.0)
    f, g = numbers(module)
    q = module(f, g)
    sample = q.sample((draws,))
    assert ((sample.mean(0) - q.mean).abs() < 5 * (q.variance / draws).sqrt()).all()
    centred = (sample - q.mean).square()
    assert ((centred.mean(0) - q.variance).abs() < 5 * centred.std(0) / math.sqrt(draws)).all()


REFUSED = {
    "bernoulli": (0.5, "dynamically, drawing torch.bernoulli"),
    "poisson": (1.5, "counts 0, 1, 2"),
    "logistic_256": (0.4999, "divide whole pixels by 255"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_outside_the_support_are_refused(kind):
    value, way_out = REFUSED[kind]
    x = data(kind)
    module = placed(kind, x)
    x[7, 2] = value
    with pytest.raises(ValueError, match=rf"x holds {value} in row 7, column 2, but likelihood '{kind}' .*{way_out}"):
        module.check(x)
    x[9, 1] = -1.0
    with pytest.raises(ValueError, match=r"column 2 \(and 1 more\)"):
        module.check(x)
    x[7, 2] = NAN
    with pytest.raises(ValueError, match="x holds -1 in row 9, column 1, but"):
        module.check(x)


def test_whole_pixels_are_refused():
    with pytest.raises(ValueError, match=r"x holds 255 in row 0, column 1, but .* divide whole pixels by 255"):
        build("logistic_256", 2).check(torch.tensor([[0.0, 255.0]]))


def test_mixed_columns_are_named_by_their_number_in_the_data():
    x = data("mixed")
    module = placed("mixed", x)
    x[11, 6] = 2.0
    with pytest.raises(ValueError, match="x holds 2 in row 11, column 6, but likelihood 'bernoulli'"):
        module.check(x)
    x[11, 6] = 1.0
    x[4, 5] = -0.1
    with pytest.raises(ValueError, match="row 4, column 5, but likelihood 'logistic_256'"):
        module.check(x)


# Parts of a row.


@pytest.mark.parametrize("kind", [*KINDS, "scalar", "low_rank", "full"])
def test_the_density_of_a_part_is_that_of_the_sub_vector(kind):
    options = {"covariance": kind, "rank": 2} if kind in COVARIANCES else {}
    kind = "gaussian" if options else kind
    x = data(kind, 12)
    module = placed(kind, x, **options)
    f, g = (value.requires_grad_() for value in numbers(module, 2, 12))
    q = module(f, g)
    observed = torch.rand(12, D) < 0.6
    observed[0], observed[1] = True, False
    gaps = torch.where(observed, x, NAN)
    part = seen(q, gaps)
    assert (part.batch_shape, part.event_shape) == ((2, 12), (D,))
    found = part.log_prob(gaps)
    assert (found[:, 1] == 0).all()
    for p in range(2):
        for n in range(12):
            own = observed[n]
            if options.get("covariance") in ("low_rank", "full"):
                cov = q.covariance_matrix[p, n][own][:, own]
                brute = MultivariateNormal(q.mean[p, n][own], cov).log_prob(x[n, own]) if own.any() else found[p, n]
            else:
                brute = q.base_dist.log_prob(x)[p, n][own].sum()
            close(found[p, n], brute)
    gradients = torch.autograd.grad(found.sum(), [t for t in (f, g) if t.numel()], allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, 1] == 0).all()
    assert seen(q, x) is q
    close(found[:, 0], q.log_prob(x)[:, 0])
    assert part.sample((3,)).isfinite().all()
    assert part.expand((4, 2, 12)).log_prob(gaps).shape == (4, 2, 12)


# What is asked for.


def test_names_are_checked():
    for wrong, message in (
        ("gausian", "likelihood must be one of gaussian, bernoulli, .*got 'gausian'"),
        (["gaussian"] * 3, "likelihood has 3 names for 4 columns"),
        (["gaussian", "gaussian", "normal", "poisson"], "likelihood of column 2 must be one of .*got 'normal'"),
        (["gaussian", 3, "normal", "poisson"], "likelihood of column 1 must be one of .*got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build(wrong, 4)
    for wrong in ("bernoulli", ["gaussian"] * 4):
        with pytest.raises(ValueError, match="covariance='full' is for likelihood='gaussian' only"):
            build(wrong, 4, covariance="full")
    with pytest.raises(ValueError, match="covariance must be one of scalar, diag, low_rank, full; got 'dia'"):
        build("gaussian", 4, covariance="dia")
    with pytest.raises(ValueError, match="rank must be a whole number"):
        build("gaussian", 4, covariance="low_rank", rank=0)
    with pytest.raises(ValueError, match="floor must be a positive fraction"):
        build("student_t", 4, floor=0.0)


def test_what_it_says():
    assert "covariance=low_rank, rank=2, floor=0.01" in repr(build("gaussian", 4, 0.01, "low_rank", 2))
    assert "floor=0.01" in repr(build("student_t", 4, 0.01))
    assert "1 gaussian, 2 poisson" in repr(build(["gaussian", "poisson", "poisson"], 3))
    for kind in ("bernoulli", "poisson", "logistic_256"):
        assert not hasattr(build(kind, 2), "floor")
    assert not hasattr(build(["poisson", "bernoulli"], 2), "floor")


def test_supports_are_discrete_where_they_are():
    for kind in ("bernoulli", "poisson", "logistic_256"):
        module = build(kind, 2)
        support = module(torch.zeros(2), torch.zeros(module.noise)).support
        assert isinstance(support, constraints.independent)
        assert support.is_discrete
