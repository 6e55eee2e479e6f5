"""Models of users' own, with priors on the weights or a covariate of every row, through every call."""

import math
import warnings

import arviz as az
import matplotlib
import numpy as np
import pyro
import pytest
import torch
from helpers import rows_plate
from pyro.infer.autoguide import AutoNormal
from user_models import BatchDecoder, BayesianFactors

import zoo
import zoo.report
from guides import Amortized, Flow, FullRank, MeanField
from zoo.base import seeded

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def x():
    """30 irises, standardised."""
    rows = zoo.data.load("iris").x.double()[::5]
    return (rows - rows.mean(0)) / rows.std(0)


# --- priors on the weights: shared sites in a plate, a shared precision, factors per row -----------

FACTOR_GUIDES = {
    "MeanField": lambda model, x: MeanField(model, x),
    "FullRank": lambda model, x: FullRank(model, x),
    "MeanField with a full shared part": lambda model, x: MeanField(model, x, shared="full_rank"),
    "Amortized": lambda model, x: Amortized(model, x, hidden=(), shared="mean_field"),
    "Amortized with a full shared part": lambda model, x: Amortized(model, x, hidden=(), shared="full_rank"),
    "Flow": lambda model, x: Flow(model, x, hidden=(8,), shared="mean_field"),
    "AutoNormal": lambda model, x: AutoNormal(model, create_plates=rows_plate),
}


QUICK = ("MeanField", "FullRank", "Amortized", "AutoNormal")  # the others differ by one of their parts
# By importance sampling over weights and precision, rows exact given them (200,000 draws of Student-t about the mode,
# standard error 0.002); the weights' sign is free, and a guide about one of the two modes sees half of p(X).
LOG_EVIDENCE = -150.350
ONE_MODE = LOG_EVIDENCE - math.log(2)


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FACTOR_GUIDES],
)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def fitted(family, x):
    with pyro.get_param_store().scope(), seeded(0):
        model = BayesianFactors()
        return zoo.fit(model, FACTOR_GUIDES[family](model, x), x, steps=1500, progress=False)


def test_factors_evaluate(fitted, x):
    found = zoo.evaluate(fitted, x, draws=200)
    assert found.shared.sites == ("weight", "precision")
    assert found.rows.shape == (len(x),)
    assert float(found.rows.double().sum()) + found.shared.bound == pytest.approx(found.total, rel=1e-8)
    assert found.total < found.shared.log_marginal + 5 * found.shared.log_marginal_se
    assert found.shared.log_marginal == pytest.approx(ONE_MODE, abs=5 * found.shared.log_marginal_se)
    assert ONE_MODE - 2 < found.total < LOG_EVIDENCE  # every guide here comes within 1.5 nats over all rows
    assert float(-fitted.losses[-200:].mean()) * len(x) == pytest.approx(found.total, abs=2.0)


def test_factors_diagnose(fitted, x):
    found = zoo.diagnose(fitted, x)
    assert {"convergence", "gap", "importance weights"} <= {finding.check for finding in found.findings}
    assert found["gap"].level != "unknown"
    assert found["calibration"].level == "unknown"  # every simulation would cost a fit
    assert "pass simulations=" in found["calibration"].reason
    assert str(found)


@pytest.mark.slow
def test_factors_are_calibrated(fitted):
    """By 20 fresh fits: a guide of one mode among truths of both signs sees so in the weights, not in the precision."""
    found = zoo.diagnostics.sbc(fitted, simulations=20, steps=1000)
    assert found.units[-1] == "precision[0]"
    assert float(found.p_values[-1]) > 1e-4


def test_factors_export(fitted, x):
    idata = zoo.to_arviz(fitted, x, draws=100)
    posterior = idata["posterior"]
    assert posterior["weight"].dims[:3] == ("chain", "draw", "features")
    assert posterior["precision"].shape == (1, 100)
    assert posterior["z"].shape == (1, 100, len(x), 1)
    summary = az.summary(idata, var_names=["weight", "precision"], kind="stats")
    assert len(summary) == 5
    az.plot_forest(idata, var_names=["weight"])
    matplotlib.pyplot.close("all")
    ours = zoo.loo(fitted, x, draws=100, correct=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-hat of single rows
        theirs = az.loo(idata)
    elpd = float(getattr(theirs, "elpd_loo", getattr(theirs, "elpd", math.nan)))
    assert elpd == pytest.approx(ours.elpd, abs=max(ours.se, 1.0))


def test_factors_save_and_load(fitted, family, x, tmp_path):
    fitted.save(tmp_path / "run")
    model = BayesianFactors()
    guide = FACTOR_GUIDES[family](model, x)
    back = zoo.load(tmp_path / "run", model=model, guide=guide)
    ours, theirs = fitted.sample(x, 5), back.sample(x, 5)
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_factors_report(fitted, x, tmp_path):
    page = zoo.report.report(fitted, x, tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert "weight" in text
    assert "precision" in text


def test_factors_predict(fitted, x):
    assert zoo.generate(fitted, 7).x.shape == (7, 4)
    assert zoo.reconstruct(fitted, x, draws=20).mean.shape == x.shape
    check = zoo.predictive_check(fitted, x, draws=40)
    assert str(check)
    moments = zoo.importance_moments(fitted, x, draws=200)
    assert str(moments)


@pytest.mark.slow
def test_nuts_agrees_with_the_factors(fitted, x):
    """On the precision, which neither sign nor rotation of the factors moves."""
    chains = zoo.nuts(fitted, x, chains=2, draws=500, warmup=500)
    compared = chains.compare(fitted)
    assert abs(float(compared.mean["precision"])) < 1.0
    assert abs(float(compared.deviation["precision"])) < 0.5


# --- a covariate of every row ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches():
    """1200 rows in two batches, three apart in the first two columns.

    Both batches have the same z, so that least squares knows the slopes to 2 * 0.5 / sqrt(1200) = 0.029.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.arange(1200).remainder(2).double().unsqueeze(1)
    z = torch.randn(600, 1, generator=generator, dtype=torch.float64).repeat_interleave(2, 0)
    noise = 0.5 * torch.randn(1200, 4, generator=generator, dtype=torch.float64)
    slope = torch.tensor([[3.0, 3.0, 0.0, -1.0]], dtype=torch.float64)
    return z.sin() @ torch.ones(1, 4, dtype=torch.float64) + batch @ slope + noise, batch, slope


@pytest.fixture(scope="module")
def decoded(batches):
    x, batch, _ = batches
    torch.manual_seed(0)
    model = BatchDecoder(batch)
    return zoo.fit(model, Amortized(model, x, hidden=(32, 32)), x, steps=4000, batch_size=100, progress=False)


def test_slopes_of_the_batch(decoded, batches):
    np.testing.assert_allclose(decoded.model.slope.detach().numpy(), batches[2].numpy(), atol=0.1)


def test_minibatches_are_unbiased(decoded, batches):
    x, n, b = batches[0], 1200, 100
    loss = pyro.infer.Trace_ELBO()
    generator = torch.Generator().manual_seed(1)

    def value(arguments):
        with decoded.scope(), torch.no_grad():
            return loss.loss(decoded.model, decoded.guide, *arguments)

    parts = []
    for _ in range(200):
        index = torch.randperm(n, generator=generator)[:b]
        parts.append(value((x[index], index, n)))
    full = torch.tensor([value((x,)) for _ in range(200)])
    part = torch.tensor(parts)
    error = math.hypot(float(part.std()), float(full.std())) / 200**0.5
    assert abs(float(part.mean() - full.mean())) < 3 * error


def test_generation_and_reconstruction_given_covariates(decoded, batches):
    x, batch, slope = batches
    ones, zeros = torch.ones(2000, 1, dtype=torch.float64), torch.zeros(2000, 1, dtype=torch.float64)
    apart = zoo.generate(decoded.given(batch=ones), 2000).x.mean(0) - zoo.generate(
        decoded.given(batch=zeros), 2000
    ).x.mean(0)
    np.testing.assert_allclose(apart.numpy(), slope[0].numpy(), atol=0.3)
    other = decoded.given(batch=1 - batch)
    moved = zoo.reconstruct(other, x).mean - zoo.reconstruct(decoded, x).mean
    expected = (1 - 2 * batch) @ decoded.model.slope.detach()
    np.testing.assert_allclose(moved.numpy(), expected.numpy(), atol=1e-8)
    with pytest.raises(ValueError, match="batch"):
        zoo.evaluate(decoded, x[:50])
    assert zoo.evaluate(decoded.given(batch=batch[:50]), x[:50]).elbo.shape == (50,)
