"""The deep model as a whole: what it must find where the answer is known, or where a simpler model stands beside it."""

import pytest
import torch
from sklearn.datasets import make_moons

import zoo
from guides import Amortized
from zoo.base.schedules import cosine
from zoo.benchmark.problems import digits, simulated
from zoo.infer.optim.fused import Fused


def train(model, guide, x, steps, rate=3e-3, batch=100, **options):
    adam = Fused(torch.optim.Adam, {"lr": rate}, schedule=cosine(steps))
    return zoo.fit(model, guide, x, steps=steps, batch_size=min(batch, len(x)), optim=adam, progress=False, **options)


def grey():
    """Digits (1797, 61) in float32, without the columns that are constant."""
    return digits().float()


def linear(cls, vae):
    """The PPCA or factor analysis that a linear VAE is."""
    model = cls(vae.data_dim, vae.latent_dim).double()
    with torch.no_grad():
        at_zero = vae.decode(torch.zeros(vae.latent_dim).double())
        model.weight = vae.columns.unit.unsqueeze(1) * vae.mean[-1].weight
        model.mean = at_zero.mean
        model.scale = at_zero.stddev if cls is zoo.FactorAnalysis else at_zero.stddev[0]
    return model


@pytest.mark.slow  # a minute or two for digits
@pytest.mark.parametrize(("rows", "k"), [(simulated, 5), (digits, 10)])
@pytest.mark.parametrize(("covariance", "cls"), [("scalar", zoo.PPCA), ("diag", zoo.FactorAnalysis)])
def test_a_linear_vae_ends_where_em_ends(rows, k, covariance, cls):
    x = rows()
    vae = zoo.VAE(x.shape[1], k, hidden=(), covariance=covariance, noise="constant", floor=1e-6).double()
    zoo.fit(vae, Amortized(vae, x, hidden=()), x, progress=False)
    optimum = zoo.em(cls(x.shape[1], k).double(), x)[-1] / len(x)
    with torch.no_grad():
        distance = optimum - linear(cls, vae).log_marginal(x).mean()
    assert -1e-6 < distance < 0.01


def test_the_ladder_stands_below_the_exact_log_marginal():
    """ELBO <= IWAE-100 <= IWAE-5000 <= log p(x), and AIS within 0.05, where log p(x) is known."""
    x = simulated()
    vae = zoo.VAE(20, 5, hidden=(), covariance="scalar", noise="constant").double()
    run = zoo.fit(vae, Amortized(vae, x, hidden=()), x, steps=150, progress=False)
    few = x[:40]
    found = zoo.log_evidence_bounds(run, few, draws=(100, 5000), ais=zoo.posterior.AIS(temperatures=100, chains=16))
    with torch.no_grad():
        exact = float(linear(zoo.PPCA, vae).log_marginal(few).mean())
    low, middle, high, annealed = (found[name] for name in ("ELBO", "IWAE-100", "IWAE-5000", "AIS"))
    assert low.mean <= middle.mean <= high.mean <= exact + 3 * high.mean_se
    assert abs(annealed.mean - exact) < 0.05


def test_a_heavy_kl_collapses_all_units_and_free_bits_prevent_it():
    x = grey()
    found = {}
    for bits in (0.0, 0.5):
        torch.manual_seed(0)
        model = zoo.VAE(x.shape[1], 8, covariance="scalar")
        loss = zoo.infer.AnnealedELBO(beta=50.0, free_bits=bits)
        found[bits] = zoo.posterior.rate_distortion(train(model, Amortized(model, x), x, 200, loss=loss), x)
    assert not found[0.0].active.any()
    assert "all 8 units have collapsed" in repr(found[0.0])
    assert found[0.5].active.all()


def noisy(n, seed):
    """x (n, 6) around a bent plane, with noise that grows with z_1 and is correlated with z_2; and its covariances."""
    fixed, new = torch.Generator().manual_seed(123), torch.Generator().manual_seed(seed)
    w, v, a = (torch.randn(6, 2, generator=fixed) for _ in range(3))
    z = torch.randn(n, 2, generator=new)
    mean = 2 * z @ w.T + torch.sin(z @ v.T)
    factor = (0.07 + 0.84 * torch.sigmoid(2 * z[:, 1:])).unsqueeze(-1) * a / a.norm(dim=1, keepdim=True)
    own = (0.15 + 0.8 * torch.sigmoid(2 * z[:, :1])).square().expand(n, 6)
    covariance = factor @ factor.mT + torch.diag_embed(own)
    return mean + (torch.linalg.cholesky(covariance) @ torch.randn(n, 6, 1, generator=new)).squeeze(-1), covariance


def covariances(run, x, truth):
    """The correlation between the entries of the learned covariances of rows and of the true ones."""
    with torch.no_grad():
        learned = run.model.decode(run.guide.posterior(x).mean).covariance_matrix
    lower = torch.tril_indices(6, 6)
    return torch.corrcoef(torch.stack([learned[:, *lower].flatten(), truth[:, *lower].flatten()]))[0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])  # those that ended worst while the noise was free from the first step
def test_full_noise_leaves_the_factors_what_they_explain(seed):
    x, _ = noisy(8000, 0)
    test, truth = noisy(2000, 1)
    model = zoo.VAE(6, 2, covariance="full")
    run = train(model, Amortized(model, x, covariance="full"), x, 3000, batch=200, seed=seed)
    assert covariances(run, test, truth) > 0.9
    assert zoo.log_evidence_bounds(run, test, draws=(500,))["IWAE-500"].mean > -8.95  # the true log p(x) is -8.855


@pytest.mark.slow
def test_held_out_rows_prefer_the_noise_they_have():
    x, _ = noisy(8000, 0)
    test, truth = noisy(2000, 1)
    held_out = {}
    for name, options in {
        "shared": {"covariance": "scalar", "noise": "constant"},
        "diag": {"covariance": "diag"},
        "low_rank": {"covariance": "low_rank", "rank": 2},
        "full": {"covariance": "full"},
    }.items():
        torch.manual_seed(0)
        model = zoo.VAE(6, 2, **options)
        run = train(model, Amortized(model, x, covariance="full"), x, 3000, batch=200)
        held_out[name] = zoo.log_evidence_bounds(run, test, draws=(50, 500))["IWAE-500"].mean
    assert held_out["shared"] < held_out["diag"] < held_out["low_rank"]
    assert held_out["diag"] < held_out["full"]
    assert covariances(run, test, truth) > 0.9  # of the last, "full"


@pytest.mark.slow
def test_missing_pixels_are_better_filled_than_by_ppca():
    x = grey()
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    holes = x.masked_fill(missing, torch.nan)

    def error(filled):
        return (filled - x)[missing].square().mean()

    torch.manual_seed(0)
    model = zoo.VAE(x.shape[1], 8, hidden=(128,), covariance="scalar", floor=0.01)
    run = train(model, Amortized(model, holes, hidden=(128,)), holes, 3000)
    assert run.guide.masked
    ppca = zoo.PPCA(x.shape[1], 8).double()
    zoo.em(ppca, holes.double())
    linear = error(ppca.impute(holes.double()).mean.float())
    assert error(zoo.impute(run, holes, draws=50).mean) < 0.8 * linear
    assert linear < error(holes.nanmean(0).expand_as(holes))


@pytest.mark.slow
def test_flexible_noise_bends_a_gaussian_into_two_moons():
    """On the same split far above a mixture of two Gaussians, and within 0.05 nats of one of eight."""
    x = torch.tensor(make_moons(2000, noise=0.1, random_state=0)[0]).float()
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    seen, held_out = x[order[:1400]], x[order[1400:]]
    torch.manual_seed(0)
    model = zoo.VAE(2, 2, hidden=(64, 64), covariance="full")
    guide = Amortized(model, seen, hidden=(64, 64), covariance="full")
    run = train(model, guide, seen, 4000, batch=200, loss=zoo.infer.IWAE(32))
    found = zoo.log_evidence_bounds(run, held_out, draws=(50, 5000))["IWAE-5000"]
    mixtures = {}
    for count in (2, 8):
        best = zoo.best_of(lambda: zoo.GMM(2, count).double(), seen.double(), seeds=5).best  # noqa: B023
        with torch.no_grad():
            mixtures[count] = float(best.log_marginal(held_out.double()).mean())
    assert found.mean > mixtures[2] + 0.5
    assert found.mean > mixtures[8] - 0.05
