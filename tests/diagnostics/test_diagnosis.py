"""The verdict: good fits pass, spoiled ones fail with a reason, and missing checks are named."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo import GMM, PPCA, VAE, FactorAnalysis


def fitted(model, build, x, **options):
    model = model.double()
    return zoo.fit(model, build(model, x), x, progress=False, **options)


def linear(model, x):
    return Amortized(model, x, hidden=())


def normal(model, x):
    return Amortized(model, x, hidden=(), covariance="full")


@pytest.fixture(scope="module")
def holzinger():
    x = zoo.data.load("holzinger", dtype=torch.float64).x
    return (x - x.mean(0)) / x.std(0)


@pytest.fixture(scope="module")
def faithful():
    return zoo.data.load("faithful", dtype=torch.float64).x


GOOD = {
    "PPCA-Exact": lambda t: fitted(PPCA(4, 2), lambda m, x: Exact(m), t["iris"]),
    "PPCA-FullRank": lambda t: fitted(PPCA(4, 2), FullRank, t["iris"]),
    "PPCA-MeanField": lambda t: fitted(PPCA(4, 2), MeanField, t["iris"]),
    "PPCA-linear": lambda t: fitted(PPCA(4, 1), linear, t["iris"]),
    "PPCA-linear-full": lambda t: fitted(PPCA(9, 2), normal, t["holzinger"]),
    "FA-Exact": lambda t: fitted(FactorAnalysis(9, 2), lambda m, x: Exact(m), t["holzinger"]),
    "FA-FullRank": lambda t: fitted(FactorAnalysis(9, 2), FullRank, t["holzinger"]),
    "FA-MeanField": lambda t: fitted(FactorAnalysis(9, 1), MeanField, t["holzinger"]),
    "GMM-Exact": lambda t: fitted(GMM(2, 2), lambda m, x: Exact(m), t["faithful"]),
    "GMM-MeanField": lambda t: fitted(GMM(2, 2), MeanField, t["faithful"]),
}


def scaled(factor):
    """A full-rank fit whose standard deviations are then multiplied."""

    def spoil(t):
        run = fitted(PPCA(4, 2), FullRank, t["iris"])
        with torch.no_grad():
            run.guide.scale_tril = factor * run.guide.scale_tril.detach()
        return run

    return spoil


def shifted(t):
    """A mean-field fit whose means are then moved by half a posterior standard deviation."""
    run = fitted(FactorAnalysis(9, 1), MeanField, t["holzinger"])
    with torch.no_grad():
        run.guide.loc += 0.5 * run.guide.scale
    return run


def turned(t):
    """A fitted model whose loadings are then turned, the guide left as it was: the same density, another posterior."""
    run = fitted(PPCA(4, 2), MeanField, t["iris"])
    c = math.sqrt(0.5)
    with torch.no_grad():
        run.model.weight = run.model.weight.detach() @ torch.tensor([[c, -c], [c, c]], dtype=torch.float64)
    return run


def refitted(t):
    """Turned loadings, held, and the best factorised guide for them: it cannot hold their correlations."""
    run = turned(t)
    run.model.requires_grad_(False)
    return zoo.fit(run.model, MeanField(run.model, t["iris"]), t["iris"], progress=False)


def collapsed(t):
    """A VAE under a weight of 50 on the KL term."""
    torch.manual_seed(0)
    model = VAE(4, 2, hidden=(16,), covariance="scalar").double()
    guide = Amortized(model, t["iris"], hidden=(16,))
    return zoo.fit(model, guide, t["iris"], steps=300, loss=zoo.infer.AnnealedELBO(beta=50.0), progress=False)


def prior_guide(t):
    """A linear guide that ignores the rows."""
    run = fitted(FactorAnalysis(9, 2), linear, t["holzinger"])
    with torch.no_grad():
        for p in run.guide.parameters():
            p.zero_()
    return run


SPOILED = {
    "stopped-Exact": lambda t: fitted(PPCA(4, 2), lambda m, x: Exact(m), t["iris"], steps=3, start="random"),
    "stopped-FullRank": lambda t: fitted(FactorAnalysis(9, 2), FullRank, t["holzinger"], steps=2, start="random"),
    "stopped-GMM": lambda t: fitted(GMM(2, 3, start="random"), lambda m, x: Exact(m), t["faithful"], steps=2),
    "narrow": scaled(1 / 3),
    "a-fifth-too-narrow": scaled(0.8),
    "wide": scaled(2.0),
    "shifted": shifted,
    "turned": turned,
    "collapsed": collapsed,
    "prior": prior_guide,
}


@pytest.fixture(scope="module")
def tables(holzinger, faithful):
    return {
        "iris": zoo.data.load("iris", dtype=torch.float64).x,
        "holzinger": holzinger,
        "faithful": faithful,
    }


def rows_of(run, tables):
    return next(x for x in tables.values() if len(x) == run.settings["rows"])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_fit_is_trusted(name, tables):
    run = GOOD[name](tables)
    found = zoo.diagnose(run, rows_of(run, tables))
    assert found.trusted, str(found)
    assert found["convergence"].level == "good"


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_fit_is_not(name, tables):
    run = SPOILED[name](tables)
    found = zoo.diagnose(run, rows_of(run, tables))
    assert not found.trusted, str(found)
    assert found.level == "bad"
    assert "Do not trust" in found.verdict
    bad = [finding for finding in found.findings if finding.level == "bad"]
    assert all(finding.advice for finding in bad)


def test_a_factorised_guide_of_correlated_factors_fails(tables):
    found = zoo.diagnose(refitted(tables), tables["iris"])
    assert found["gap"].level == "bad"
    assert found["gap"].value == pytest.approx(118.7366 / 150, abs=1e-3)  # by Lawley and Maxwell's closed form
    assert found["convergence"].level == "unknown"  # nothing of the model was to be trained
    assert "held" in found["convergence"].reason


def test_the_verdict_names_the_failed_checks(tables):
    found = zoo.diagnose(SPOILED["narrow"](tables), tables["iris"])
    for check in ("gap", "importance weights", "posterior"):
        assert found[check].level == "bad"
        assert check in found.verdict
    assert found["posterior"].value == pytest.approx(math.log(3), rel=1e-3)
    assert "a newly fitted FullRank" in found["calibration"].reason  # which is right: it is this one that is not
    with pytest.raises(KeyError, match="no check 'taste': there are convergence, gap"):
        found["taste"]


def test_possible_checks_of_a_user_model(untouched):
    x = 2.0 + torch.randn(60, 1, dtype=torch.float64)

    def model(x=None, index=None, size=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 3.0))
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(centre.unsqueeze(-1), 1.0).to_event(1), obs=x)

    run = zoo.fit(model, pyro.infer.autoguide.AutoNormal(model), x, steps=600, progress=False)
    with untouched():
        found = zoo.diagnose(run, x)
    assert [f.check for f in found.findings if f.level == "unknown"] == ["posterior", "calibration", "collapse"]
    assert "shared by all rows" in found["calibration"].reason
    assert found["gap"].level == "good"
    assert found["convergence"].level != "unknown"


def test_other_rows_than_the_fitted_ones_leave_convergence_open(tables):
    run = fitted(PPCA(4, 1), linear, tables["iris"])
    found = zoo.diagnose(run, tables["iris"][:100])
    assert found["convergence"].level == "unknown"
    assert "fitted to 150 rows, these are 100" in found["convergence"].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 0}, "draws must be"), ({"draws": 10}, "at least 30"), ({"simulations": 0}, "simulations must be")],
)
def test_too_few_draws_are_refused(options, message, tables):
    run = fitted(PPCA(4, 1), linear, tables["iris"], steps=2)
    with pytest.raises(ValueError, match=message):
        zoo.diagnose(run, tables["iris"], **options)


def test_a_model_that_requires_its_rows():
    x = torch.randn(40, 2, dtype=torch.float64)

    def model(x, index=None, size=None):
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)

    run = zoo.fit(model, pyro.infer.autoguide.AutoNormal(model), x, steps=600, progress=False)
    found = zoo.diagnose(run, x)
    assert found["gap"].level == "good"
    assert found["calibration"].level == "unknown"
