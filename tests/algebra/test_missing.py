"""Entries missing at random (NaN): every closed form against brute force, one row at a time."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.algebra import linear_gaussian
from zoo.algebra.missing import Incomplete, column_moments
from zoo.algebra.mixture_covariances import KINDS
from zoo.base.random import seeded
from zoo.distributions.observed import Observed, seen
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.run import Fit
from zoo.models import GMM, PPCA, VAE, FactorAnalysis
from zoo.posterior.evaluation import log_weights

pytestmark = pytest.mark.usefixtures("own_store")

NAN = math.nan
COVARIANCES = KINDS
MODELS = {
    "PPCA": lambda d: PPCA(d, 2),
    "FactorAnalysis": lambda d: FactorAnalysis(d, 1 if d < 5 else 2),  # what d columns identify
    **{f"GMM-{c}": lambda d, c=c: GMM(d, 2, c) for c in COVARIANCES},
}
LINEAR = ["PPCA", "FactorAnalysis"]
MIXTURES = [name for name in MODELS if name not in LINEAR]
every_model = pytest.mark.parametrize("name", MODELS)


def holes(x, share=0.3, seed=0):
    """``x`` with a share of its entries removed completely at random."""
    generator = torch.Generator().manual_seed(seed)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < share, NAN)


@pytest.fixture(scope="session")
def flowers(iris):
    """Irises (150, 4) with 30% missing; some rows have nothing left."""
    x = holes(iris)
    assert x.isnan().all(1).any()
    return x


@pytest.fixture(scope="session")
def pupils():
    """Holzinger and Swineford's tests (301, 9) with 30% missing."""
    return holes(zoo.data.load("holzinger").x.double())


def make(name, x):
    """A float64 model, placed on the data and a little off."""
    model = MODELS[name](x.shape[1]).double()
    model.initialize(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def components(model):
    """log pi (k,), means (k, d) and covariances (k, d, d) of the Gaussians that a model of rows is made of."""
    with torch.no_grad():
        if isinstance(model, GMM):
            covariance = model._covariances()
            covariance = torch.diag_embed(covariance) if covariance.ndim == 2 else covariance
            return model.weight.log(), model.mean, covariance
        covariance = model.weight @ model.weight.T + torch.diag(model.noise)
        return torch.zeros(1).double(), model.mean[None], covariance[None]


def brute(model, row):
    """log p(x_o, c) (k,), and E[x | x_o, c] (k, d) and Cov[x | x_o, c] (k, d, d), from dense Gaussians."""
    log_weight, means, covariances = components(model)
    o, m = (~row.isnan()).nonzero().flatten(), row.isnan().nonzero().flatten()
    scores, guesses, spreads = [], [], []
    for log_pi, mean, covariance in zip(log_weight, means, covariances, strict=True):
        guess, spread = row.clone(), torch.zeros_like(covariance)
        inner = covariance[o][:, o]
        slope = covariance[m][:, o] @ torch.linalg.inv(inner)
        guess[m] = mean[m] + slope @ (row[o] - mean[o])
        spread[m.unsqueeze(1), m] = covariance[m][:, m] - slope @ covariance[o][:, m]
        density = dist.MultivariateNormal(mean[o], inner).log_prob(row[o]) if len(o) else torch.zeros(()).double()
        scores.append(log_pi + density)
        guesses.append(guess)
        spreads.append(spread)
    return torch.stack(scores), torch.stack(guesses), torch.stack(spreads)


def close(one, other, tolerance=1e-8):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# Densities.


@every_model
def test_log_marginal_is_that_of_the_observed_columns(name, flowers):
    model = make(name, flowers)
    close(model.log_marginal(flowers), torch.stack([brute(model, row)[0].logsumexp(0) for row in flowers]))


@every_model
def test_posterior_by_bayes(name, flowers):
    """log p(x_o, z) - log p(z | x_o) is log p(x_o), whatever z; the joint by the model's own forward."""
    model = make(name, flowers)
    latent = "component" if isinstance(model, GMM) else "z"
    for _ in range(3):
        z = poutine.trace(model).get_trace(size=len(flowers)).nodes[latent]["value"]
        trace = poutine.trace(poutine.condition(model, {latent: z})).get_trace(flowers)
        trace.compute_log_prob()
        joint = trace.nodes["x"]["log_prob"] + trace.nodes[latent]["log_prob"]
        assert joint.shape == (len(flowers),)
        close(joint - model.posterior(flowers).log_prob(z), model.log_marginal(flowers))
    assert trace.nodes["x"]["value"] is flowers


@every_model
def test_a_row_with_nothing_observed(name, flowers):
    model = make(name, flowers)
    row = torch.full((1, 4), NAN).double()
    close(model.log_marginal(row), torch.zeros(1).double(), 1e-15)
    posterior, (log_weight, means, covariances) = model.posterior(row), components(model)
    if isinstance(model, GMM):
        close(posterior.probs[0], log_weight.exp(), 1e-14)
    else:
        assert torch.equal(posterior.mean, torch.zeros(1, model.latent_dim).double())
        close(posterior.covariance_matrix[0], torch.eye(model.latent_dim).double(), 1e-14)
    filled = model.impute(row)
    pi = log_weight.exp()
    mean = pi @ means
    variance = pi @ (covariances.diagonal(dim1=-2, dim2=-1) + means.square()) - mean.square()
    close(filled.mean[0], mean)
    close(filled.variance[0], variance)


@every_model
def test_the_bound_and_the_identity(name, flowers):
    """log p = ELBO + KL, for a q that is not the posterior."""
    model = make(name, flowers)
    posterior = model.posterior(flowers)
    with torch.no_grad():
        if isinstance(model, GMM):
            q = dist.Categorical(logits=posterior.logits + torch.randn(150, 2).double())
        else:
            q = dist.MultivariateNormal(posterior.mean + 0.3, scale_tril=1.3 * posterior.scale_tril)
        kl = torch.distributions.kl_divergence(q, posterior)
    assert kl.mean() > 1e-3
    close(model.elbo(flowers, q) + kl, model.log_marginal(flowers))
    close(model.elbo(flowers, posterior), model.log_marginal(flowers))


@every_model
def test_gradients_are_numbers_and_right(name, flowers):
    model = make(name, flowers)
    parameters = list(model.parameters())
    x = flowers[:12]
    for of in (lambda: model.log_marginal(x).sum(), lambda: model.elbo(x, model.posterior(x)).sum()):
        gradients = torch.autograd.grad(of(), parameters)
        assert all(g.isfinite().all() for g in gradients)
        with torch.no_grad():
            entry, step = parameters[1].view(-1)[0], 1e-6
            entry += step
            up = of()
            entry -= 2 * step
            down = of()
            entry += step
        close(gradients[1].view(-1)[0], (up - down) / (2 * step), 1e-4 * (1 + gradients[1].view(-1)[0].abs().item()))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_components_sum_out(covariance, flowers):
    """TraceEnum_ELBO, which sums the components out of the model itself, finds the log marginal."""
    model = make(f"GMM-{covariance}", flowers)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(model), lambda *_: None, flowers)
    assert -loss == pytest.approx(model.log_marginal(flowers).sum().item(), abs=1e-8)


def test_the_density_of_a_part(flowers):
    mean, root = torch.randn(4).double(), torch.eye(4).double() + torch.ones(4, 4).double().tril(-1)
    for base in (dist.MultivariateNormal(mean, scale_tril=root), dist.Normal(mean, 2.0).to_event(1)):
        part = seen(base, flowers)
        assert isinstance(part, Observed)
        assert (part.batch_shape, part.event_shape) == ((150,), (4,))
        assert part.expand((7, 150)).log_prob(flowers).shape == (7, 150)
        assert part.sample((3,)).isfinite().all()  # draws are whole rows
        assert part.rsample().shape == (150, 4)
        assert part.support.check(part.sample()).all()
        assert seen(base, flowers.nan_to_num()) is base
        assert seen(base, None) is base


# Expectation-maximisation.


@every_model
@pytest.mark.parametrize("data", ["flowers", "pupils"])
def test_em_climbs(name, data, request):
    x = request.getfixturevalue(data)
    model = MODELS[name](x.shape[1]).double()
    climb = zoo.em(model, x, seed=1)
    assert (climb.log_likelihood.diff() > -1e-9).all()
    assert climb[-1].item() == pytest.approx(model.log_marginal(x).sum().item(), abs=1e-8)
    for q, g in model.named_parameters():  # a stationary point: nothing is left to climb
        (slope,) = torch.autograd.grad(model.log_marginal(x).mean(), g)
        assert slope.abs().max() < 2e-3, q


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_step_of_mixture_em(covariance, flowers):
    """Against the sums over rows of what brute force expects."""
    model = make(f"GMM-{covariance}", flowers)
    rows = [brute(model, row) for row in flowers]
    share = torch.stack([score.softmax(0) for score, _, _ in rows])  # (n, k)
    guess = torch.stack([g for _, g, _ in rows])  # (n, k, d)
    spread = torch.stack([s for _, _, s in rows])  # (n, k, d, d)
    counts = share.sum(0)
    mean = torch.einsum("nk,nkd->kd", share, guess) / counts[:, None]
    offset = guess - mean
    scatter = torch.einsum("nk,nkij->kij", share, offset.unsqueeze(-1) * offset.unsqueeze(-2) + spread)
    before = model.em_step(flowers)
    close(before, sum(score.logsumexp(0) for score, _, _ in rows))
    close(model.weight, counts / 150)
    close(model.mean, mean)
    own = scatter / counts[:, None, None]
    found = {
        "full": own,
        "tied": (scatter.sum(0) / 150).expand(2, 4, 4),
        "diag": own.diagonal(dim1=1, dim2=2),
        "spherical": own.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(2, 4),
        "tied_diag": (scatter.sum(0) / 150).diagonal().expand(2, 4),
        "tied_spherical": (scatter.sum(0) / 150).diagonal().mean().expand(2, 4),
    }[covariance]
    close(model._covariances(), found)


@pytest.mark.parametrize("name", LINEAR)
def test_a_step_of_linear_em(name, flowers):
    """Against a regression of every column on the factors, with the rows in which it is observed."""
    model = make(name, flowers)
    posterior = model.posterior(flowers)
    k = model.latent_dim
    m, v = posterior.mean.detach(), posterior.covariance_matrix.detach()
    weight, mean, residual, count = [], [], [], []
    for j in range(4):
        rows = ~flowers[:, j].isnan()
        y, ahead = flowers[rows, j], torch.cat([m[rows], torch.ones(int(rows.sum()), 1)], 1)
        second = ahead.T @ ahead
        second[:k, :k] += v[rows].sum(0)
        found = torch.linalg.solve(second, ahead.T @ y)
        weight.append(found[:k])
        mean.append(found[k])
        residual.append((y - ahead @ found).square().sum() + found[:k] @ v[rows].sum(0) @ found[:k])
        count.append(float(rows.sum()))
    before = model.log_marginal(flowers).sum()
    close(model.em_step(flowers), before)
    close(model.weight, torch.stack(weight))
    close(model.mean, torch.stack(mean))
    residual, count = torch.stack(residual), torch.tensor(count).double()
    found = residual / count if name == "FactorAnalysis" else (residual.sum() / count.sum()).expand(4)
    close(model.noise, found if name == "PPCA" else torch.maximum(found, model.least))


def test_chunks_give_the_same_sums(pupils, monkeypatch):
    results = []
    for budget in (2**22, 300):
        monkeypatch.setattr("zoo.base.memory.NUMBERS", budget)
        torch.manual_seed(0)
        for name in ("PPCA", "GMM-full", "GMM-diag"):
            model = make(name, pupils)
            results += [model.log_marginal(pupils), *vars(model.impute(pupils)).values(), model.em_step(pupils)]
    half = len(results) // 2
    for one, other in zip(results[:half], results[half:], strict=True):
        close(one, other, 1e-9)


@pytest.mark.parametrize("name", LINEAR)
def test_complete_data_take_the_moments(name, iris):
    """Without a missing entry nothing has changed, to the bit; and the two ways agree."""
    model = make(name, iris)
    other = copy.deepcopy(model)
    assert isinstance(model.summarize(iris), linear_gaussian.Moments)
    assert isinstance(model.summarize(holes(iris)), Incomplete)
    assert torch.equal(model.em_step(iris), other.em_step(linear_gaussian.Moments.of(iris)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    whole = Incomplete(iris, torch.ones_like(iris, dtype=torch.bool))
    args = (model.weight, model.mean, model.noise)
    close(linear_gaussian.missing_linear.log_marginal(iris, *args), model.log_marginal(iris))
    close(linear_gaussian.missing_linear.posterior(iris, *args).mean, model.posterior(iris).mean)
    model.mean = iris.mean(0)  # where the complete case has it from the first step on
    other.mean = iris.mean(0)
    if name == "FactorAnalysis":  # whose complete step first puts the loadings where they are best
        moments = linear_gaussian.Moments.of(iris)
        model.weight = other.weight = linear_gaussian.best_weight(moments, model.noise.detach(), model.latent_dim)
    close(model.em_step(whole), other.em_step(iris))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        close(a, b)


def test_complete_mixtures_agree_with_the_long_way(iris):
    for covariance in COVARIANCES:
        model = make(f"GMM-{covariance}", iris)
        other = copy.deepcopy(model)
        assert model.summarize(iris) is iris
        whole = Incomplete(iris, torch.ones_like(iris, dtype=torch.bool)).sorted()
        close(model.em_step(iris), other.em_step(whole))
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            close(a, b)


# Variational inference.


@pytest.mark.parametrize(
    ("name", "data"),
    [("PPCA", "flowers"), ("FactorAnalysis", "pupils"), ("GMM-full", "flowers"), ("GMM-diag", "pupils")],
)
def test_exact_inference_reaches_the_optimum_of_em(name, data, request):
    x = request.getfixturevalue(data)
    reference, model = (MODELS[name](x.shape[1]).double() for _ in range(2))
    best = zoo.em(reference, x)[-1].item() / len(x)
    run = zoo.fit(model, Exact(model), x, progress=False)
    assert run.settings["optimizer"] == "LBFGS"
    assert run.converged
    assert -run.losses[-1].item() == pytest.approx(best, abs=1e-6)
    evaluation = zoo.evaluate(run, x)
    assert evaluation.gap.abs().max() < 1e-8
    assert evaluation.log_marginal.mean().item() == pytest.approx(best, abs=1e-6)


GUIDES = {
    "Exact": lambda model, x: Exact(model),
    "MeanField": MeanField,
    "FullRank": FullRank,
    "Amortized": Amortized,
    "linear": lambda model, x: Amortized(model, x, hidden=()),
    "full": lambda model, x: Amortized(model, x, covariance="full"),
}
CELLS = [
    (name, guide)
    for name in MODELS
    for guide in GUIDES
    if name in LINEAR or (guide not in ("FullRank", "full") and name in ("GMM-full", "GMM-spherical"))
]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_every_guide_runs_and_improves(name, family, flowers):
    model = MODELS[name](4).double()
    guide = GUIDES[family](model, flowers)
    placed = copy.deepcopy(model)
    with seeded(0):
        placed.initialize(flowers)
    start = -placed.log_marginal(flowers).mean()  # no bound is better; some fits begin with EM
    run = zoo.fit(model, guide, flowers, steps=30, progress=False)
    assert run.losses[-1] < max(start, run.losses[0]) - 0.1
    if name in LINEAR:
        assert QuadratureELBO.exact(model, guide, flowers)
        assert run.settings["optimizer"] == "LBFGS"
    assert run.sample(flowers, 5)["component" if isinstance(model, GMM) else "z"].isfinite().all()
    evaluation = zoo.evaluate(run, flowers, draws=400)
    assert evaluation.gap.min() > -1e-8
    if name in LINEAR:  # the closed-form bound is what draws from the guide say, to five standard errors
        weights = log_weights(run, flowers, 400, seed=1)
        assert ((weights.mean(0) - evaluation.elbo).abs() < 5 * weights.std(0) / 20 + 1e-8).all()


@pytest.mark.parametrize("guide", [Exact, MeanField, Amortized])
@every_model
def test_minibatches_are_scaled(name, guide, flowers):
    model = make(name, flowers)
    guide = guide(model) if guide is Exact else guide(model, flowers)
    loss = QuadratureELBO()
    whole = loss.loss(model, guide, flowers)
    parts = [loss.loss(model, guide, flowers[i], i, 150) / 3 for i in torch.arange(150).split(50)]
    assert sum(parts) == pytest.approx(whole, abs=1e-8)


def test_minibatches_train(flowers):
    model = MODELS["GMM-full"](4)
    guide = Amortized(model, flowers)
    run = zoo.fit(model, guide, flowers, steps=40, batch_size=32, validation=flowers[:20], progress=False)
    assert run.losses[-5:].mean() < run.losses[:5].mean()
    assert run.validation.isfinite().all()


def test_vanilla_svi_and_autoguides(flowers):
    model = make("FactorAnalysis", flowers)
    svi = SVI(model, pyro.infer.autoguide.AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(flowers)) for _ in range(3))


# Amortized.


def test_the_network_sees_what_is_missing(flowers, iris):
    model = PPCA(4, 2).double()
    masked, plain = Amortized(model, flowers, skip=False), Amortized(model, iris, skip=False)
    assert masked.encoder[0].in_features == 8
    assert plain.encoder[0].in_features == 4
    assert (masked.settings["masked"], plain.settings["masked"]) == (True, False)
    variance, mean = column_moments(flowers)
    column = flowers[:, 1][~flowers[:, 1].isnan()]
    close(torch.stack([mean[1], variance[1]]), torch.stack([column.mean(), column.var(correction=0)]))
    close(masked.columns.shift, mean)
    assert (masked.columns(flowers)[flowers.isnan()] == 0).all()
    for guide in (masked, plain):  # one that was shown complete rows takes a missing entry for the mean
        assert guide.posterior(flowers).mean.isfinite().all()
        guide.posterior(flowers).mean.sum().backward()
        assert all(p.grad.isfinite().all() for p in guide.parameters() if p.grad is not None)
    assert Amortized(model, iris, masked=True).posterior(iris).mean.isfinite().all()


@pytest.mark.parametrize("name", ["PPCA", "GMM-full"])
def test_a_masked_run_comes_back_from_disk(name, flowers, tmp_path):
    model = MODELS[name](4).double()
    run = zoo.fit(model, Amortized(model, flowers, hidden=(8,)), flowers, steps=5, progress=False)
    back = zoo.load(run.save(tmp_path / "run"))
    assert isinstance(back, Fit)
    assert back.guide.masked
    assert back.guide.settings == run.guide.settings
    for one, other in zip(run.sample(flowers, 3).values(), back.sample(flowers, 3).values(), strict=True):
        assert torch.equal(one, other)


# Imputation.


@every_model
def test_imputed_by_brute_force(name, flowers):
    model = make(name, flowers)
    filled = model.impute(flowers)
    for row, mean, variance in zip(flowers, filled.mean, filled.variance, strict=True):
        score, guess, spread = brute(model, row)
        share = score.softmax(0)
        expected = share @ guess
        close(mean, expected)
        close(variance, share @ (spread.diagonal(dim1=1, dim2=2) + (guess - expected).square()))
    observed = ~flowers.isnan()
    assert torch.equal(filled.mean[observed], flowers[observed])
    assert (filled.variance[observed] == 0).all()
    assert (filled.variance[~observed] > 0).all()


@every_model
def test_nothing_to_impute(name, iris):
    filled = make(name, iris).impute(iris)
    assert torch.equal(filled.mean, iris)
    assert not filled.variance.any()


@every_model
def test_imputation_beats_the_column_means(name, iris, flowers):
    model = MODELS[name](4).double()
    zoo.em(model, flowers)
    gone = flowers.isnan()
    error = (model.impute(flowers).mean - iris)[gone].square().mean()
    assert error < 0.75 * (flowers.nanmean(0).expand(150, 4) - iris)[gone].square().mean()


# What is refused, and what is not.


@every_model
@pytest.mark.parametrize("run", ["em", "fit"])
def test_columns_with_too_little(name, run, flowers):
    model = MODELS[name](4).double()

    def start(x):
        return zoo.em(model, x) if run == "em" else zoo.fit(model, Exact(model), x, steps=2, progress=False)

    x = flowers.clone()
    x[:, 2] = NAN
    with pytest.raises(ValueError, match="column 2 of x has only NaN"):
        start(x)
    x[5, 2] = 1.0
    with pytest.raises(ValueError, match="column 2 of x has only one observed value"):
        start(x)
    if name != "PPCA" and not name.endswith("spherical"):
        x[6, 2] = 1.0
        with pytest.raises(ValueError, match="1 constant column"):
            start(x)
    x[5, 2] = math.inf
    with pytest.raises(ValueError, match="x holds inf in row 5, column 2"):
        start(x)


def test_em_step_alone_refuses_too(flowers):
    x = flowers.clone()
    x[:, 2] = NAN
    for name in LINEAR:
        with pytest.raises(ValueError, match="column 2"):
            make(name, flowers).em_step(x)
    x = torch.full((6, 4), 2.0).double()
    x[0, 0] = NAN
    with pytest.raises(ValueError, match="all rows of x are equal"):
        PPCA(4, 2).double().em_step(x)


def test_models_without_support_refuse(flowers):
    class Complete(VAE):
        missing = False

    model = Complete(4, 2).double()
    row, column = flowers.isnan().nonzero()[0].tolist()
    with pytest.raises(ValueError, match=f"x holds nan in row {row}, column {column}"):
        Amortized(model, flowers)
    with pytest.raises(ValueError, match="nan in row"):
        zoo.base.check_rows(flowers)
    x = flowers.nan_to_num(5.0)
    guide = Amortized(model, x)
    with pytest.raises(ValueError, match="x holds nan in row"):
        zoo.fit(model, guide, flowers)
    with pytest.raises(ValueError, match="validation holds nan in row"):
        zoo.fit(model, guide, x, validation=flowers)


def test_export_and_pictures(flowers):
    import zoo.plots

    for name in ("PPCA", "GMM-full"):
        model = MODELS[name](4).double()
        run = zoo.fit(model, Exact(model), flowers, steps=5, progress=False)
        idata = zoo.to_arviz(run, flowers, draws=10)
        assert (idata["observed_data"]["x"].isnull().values == flowers.isnan().numpy()).all()
        assert not idata["posterior_predictive"]["x"].isnull().any()
        assert not idata["constant_data"]["log_marginal"].isnull().any()
        zoo.plots.latent(run, flowers)
