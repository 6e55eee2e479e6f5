"""A model of a user's own with a component and factors per row: every call works, or refuses with a reason."""

import math

import arviz as az
import matplotlib
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from user_models import MixtureOfFactorAnalysers

import zoo
import zoo.report
from guides import Amortized, CannotServe, Exact, Flow, FullRank, MeanField, SemiAmortized
from zoo.base import seeded

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def x():
    """30 irises, standardised."""
    rows = zoo.data.load("iris").x.double()[::5]
    return (rows - rows.mean(0)) / rows.std(0)


def brute(model, x):
    """log p(x) of the mixture by its two Gaussians (n,)."""
    weight, mean, scale = model.weight.detach(), model.mean.detach(), model.scale.detach()
    terms = [
        torch.distributions.MultivariateNormal(mean[c], weight[c] @ weight[c].mT + torch.diag(scale.square())).log_prob(
            x
        )
        + model.proportions.detach()[c].log()
        for c in range(2)
    ]
    return torch.logsumexp(torch.stack(terms), 0)


@pytest.fixture(scope="module", params=[MeanField, Amortized], ids=["MeanField", "Amortized"])
def analysers(request, x):
    with pyro.get_param_store().scope(), seeded(1):
        model = MixtureOfFactorAnalysers()
        return zoo.fit(model, request.param(model, x), x, steps=600, progress=False)


def test_mixture_of_factor_analysers(analysers, x):
    run = analysers
    found = zoo.evaluate(run, x, draws=500)
    exact = brute(run.model, x)
    assert (found.elbo < exact + 5 * found.elbo_se).all()
    assert (found.log_marginal <= exact + 5 * found.log_marginal_se + 0.3).all()
    sample = run.sample(x, 9)
    assert sample["component"].shape == (9, len(x))
    assert sample["z"].shape == (9, len(x), 1)
    assert str(zoo.diagnose(run, x, simulations=40))
    assert zoo.generate(run, 5).x.shape == (5, 4)
    assert zoo.reconstruct(run, x, draws=20).mean.shape == x.shape
    assert str(zoo.importance_moments(run, x, draws=100))
    assert str(zoo.log_evidence_bounds(run, x, draws=(30, 60)))
    assert str(zoo.predictive_check(run, x, draws=40))
    assert float(zoo.diagnostics.effective_size(run, x).values.sum()) == pytest.approx(len(x), rel=1e-6)


def test_mixture_export(analysers, x):
    idata = zoo.to_arviz(analysers, x, draws=50)
    assert idata["posterior"]["component"].shape == (1, 50, len(x))
    assert len(az.summary(idata, var_names=["z", "component"], kind="stats")) == 2 * len(x)
    az.plot_forest(idata, var_names=["z"])
    matplotlib.pyplot.close("all")
    with pytest.raises(TypeError, match="log likelihood not found"):  # its parameters are point estimates
        az.loo(idata)


def test_mixture_save_load_and_report(analysers, x, tmp_path):
    analysers.save(tmp_path / "run")
    model = MixtureOfFactorAnalysers()
    back = zoo.load(tmp_path / "run", model=model)
    ours, theirs = analysers.sample(x, 5), back.sample(x, 5)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("component", "z"))
    page = zoo.report.report(back, x, tmp_path / "report.html")
    assert "MixtureOfFactorAnalysers" in page.read_text(encoding="utf-8")


REFUSED = {
    "two sites per row": (
        r"needs a model with one latent site, and this one has 2 \('component', 'z'\)",
        {
            "gaps": lambda run, x: zoo.posterior.gaps(run, x),
            "rate_distortion": lambda run, x: zoo.posterior.rate_distortion(run, x),
            "annealing": lambda run, x: zoo.log_evidence_bounds(
                run, x, draws=(30,), ais=zoo.posterior.AIS(5, chains=2)
            ),
        },
    ),
    "parameters without a posterior": (
        "point estimates|no latent site that all rows share",
        {
            "loo": lambda run, x: zoo.loo(run, x),
            "predictive_density": lambda run, x: zoo.diagnostics.predictive_density(run, x),
        },
    ),
    "a discrete site beside others": (
        "'component' is discrete|site 'component' of",
        {
            "sbc": lambda run, x: zoo.diagnostics.sbc(run),
            "linear_response": lambda run, x: zoo.linear_response(run, x),
        },
    ),
    "no closed form": (
        "no closed-form",
        {
            "posterior_error": lambda run, x: zoo.diagnostics.posterior_error(run, x),
            "information_criteria": lambda run, x: zoo.diagnostics.information_criteria(run.model, x),
        },
    ),
    "no decoder of one site": (
        "needs factors, one latent site with a real vector per row",
        {
            "traverse": lambda run, x: zoo.traverse(run, 0, x=x, rows=[0]),
            "intervene": lambda run, x: zoo.factors.intervene(run, x, {0: 1.0}),
        },
    ),
}


@pytest.mark.parametrize(
    ("reason", "ask"),
    [
        pytest.param(reason, ask, id=f"{kind}:{name}")
        for kind, (reason, asked) in REFUSED.items()
        for name, ask in asked.items()
    ],
)
def test_mixture_refuses_with_a_reason(reason, ask, analysers, x):
    with pytest.raises((ValueError, TypeError), match=reason):
        ask(analysers, x)


@pytest.mark.parametrize("family", [FullRank, Flow, SemiAmortized, lambda model, x: Exact(model)])
def test_mixture_refused_with_a_reason(family, x):
    with pytest.raises(CannotServe, match="'component'|'z'"):
        family(MixtureOfFactorAnalysers(), x)


def test_enumerated_bound_of_the_mixture(x):
    """A guide for z alone: the component is summed out, by Pyro and by evaluate, and by hand."""
    torch.manual_seed(1)
    model = MixtureOfFactorAnalysers()

    def guide(x, index=None, size=None):
        loc = pyro.param("loc", x.new_zeros(len(x), 1))
        with zoo.base.rows(x, index, size):
            pyro.sample("z", pyro.distributions.Normal(loc, 0.5).to_event(1))

    loss = TraceEnum_ELBO(max_plate_nesting=1)
    run = zoo.fit(config_enumerate(model), guide, x, loss=loss, steps=50, progress=False)
    found = zoo.evaluate(run, x, draws=4000)
    with run.scope(), torch.no_grad():
        values = torch.tensor([loss.loss(run.model, guide, x) for _ in range(400)])
    error = math.hypot(float(values.std()) / 20, float(found.elbo_se.square().sum().sqrt()))
    assert -float(values.mean()) == pytest.approx(found.total, abs=5 * error)
    # by hand, at given z: log sum_c p(c) p(z) p(x | z, c)
    z = torch.randn(3, len(x), 1, dtype=torch.float64)
    weight, mean, scale = model.weight.detach(), model.mean.detach(), model.scale.detach()
    normal = torch.distributions.Normal
    by_hand = torch.stack(
        [
            normal(z @ weight[c].mT + mean[c], scale).log_prob(x).sum(-1)
            + normal(0.0, torch.ones((), dtype=x.dtype)).log_prob(z).sum(-1)
            + model.proportions.detach()[c].log()
            for c in range(2)
        ]
    ).logsumexp(0)
    with zoo.posterior.engine.reading(run, 0):
        ours = zoo.posterior.engine.reader(run, x).score((x,), {"z": z}).by_row
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-10)
