"""Every check grades by its thresholds, and missing checks limit the verdict."""

import math
from dataclasses import replace
from types import ModuleType

import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal

import zoo
from guides import Exact, MeanField
from zoo import plots
from zoo.base.plates import rows
from zoo.diagnostics import Check, Finding
from zoo.diagnostics.checks.check import Case, Picture, grade
from zoo.diagnostics.checks.every import CHECKS
from zoo.diagnostics.checks.gap import Gap
from zoo.diagnostics.checks.importance_weights import ImportanceWeights
from zoo.diagnostics.checks.posterior import Posterior
from zoo.diagnostics.diagnosis import Diagnosis, pictures, tables
from zoo.diagnostics.guide.exact import PosteriorError
from zoo.infer import Training
from zoo.infer.convergence import assess
from zoo.posterior.evaluation import Evaluation, SharedTerm


def evaluation(gap, se=0.0, estimator="exact", shared=None, khat=0.3):
    gap, zero = torch.full((4,), gap, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    return Evaluation(-gap, zero + se, zero, zero, estimator, zero + khat, 500, shared)


def term(khat, gap=0.0):
    return SharedTerm(("theta",), -1.0, 0.0, -gap, 0.0, 0.0, 0.0, khat)


@pytest.mark.parametrize(
    ("value", "below", "level"),
    [
        (0.0, False, "good"),
        (0.15, False, "careful"),
        (0.3, False, "bad"),
        (0.3, True, "good"),
        (math.nan, True, "unknown"),
    ],
)
def test_grades(value, below, level):
    assert grade(value, (0.1, 0.2), below=below) == level


@pytest.mark.parametrize(
    ("gap", "se", "level"),
    [(0.0, 0.0, "good"), (0.06, 0.0, "careful"), (0.6, 0.0, "bad"), (-1e-12, 0.0, "good"), (-1.15, 0.1, "bad")],
)
def test_an_exact_gap_is_never_below_zero(gap, se, level):
    found = Gap().judge(evaluation(gap, se))
    assert found.level == level
    if gap < -1:
        assert "1.15 nats per row above log p(x), which is impossible" in found.reason
        assert found.advice


def test_a_gap_within_its_errors_is_rounding():
    assert Gap().judge(evaluation(-0.01, 0.02)).level == "good"


def test_an_estimated_gap_depends_on_its_weights():
    good, weak = (Gap().judge(evaluation(0.0, estimator="IS-500", shared=term(khat))) for khat in (0.4, 0.9))
    assert (good.level, weak.level) == ("good", "careful")
    assert "k-hat of the weights is 0.90" in weak.reason


@pytest.mark.parametrize(
    ("khat_shared", "khat", "level"),
    [(0.3, 0.3, "good"), (0.8, 0.3, "careful"), (1.2, 0.3, "bad"), (0.3, 0.9, "bad"), (0.3, math.nan, "good")],
)
def test_weights_of_shared_sites_and_rows(khat_shared, khat, level):
    measured = evaluation(0.0, estimator="IS-500", shared=term(khat_shared), khat=khat)
    found = ImportanceWeights().judge(measured)
    assert found.level == level
    assert "theta" in found.reason
    assert not list(ImportanceWeights().draw(replace(measured, khat=measured.khat * math.nan), plots))


def diagnosis(**levels):
    findings = tuple(Finding(name.replace("_", " "), level, 0.0, 1.0, "") for name, level in levels.items())
    return Diagnosis(findings, {}, {})


def test_missing_checks_limit_the_verdict():
    one = diagnosis(convergence="good", gap="unknown", posterior="unknown", calibration="unknown", collapse="unknown")
    assert (one.level, one.trusted) == ("unknown", False)
    assert "1 of 5 checks were possible" in one.verdict
    blind = diagnosis(convergence="unknown", gap="good")
    assert (blind.level, blind.trusted) == ("careful", True)
    assert "look at convergence" in blind.verdict
    assert "1 of 2 checks were possible; missing: convergence" in blind.verdict
    bad = diagnosis(convergence="unknown", gap="unknown", posterior="bad")
    assert bad.verdict.startswith("Do not trust this posterior: it failed the check of posterior")
    good = diagnosis(convergence="good", gap="good", calibration="unknown")
    assert good.level == "good"
    assert good.verdict.startswith("This posterior can be trusted, as far as these checks show (2 of 3")
    assert good.frame()["check"].to_list() == ["convergence", "gap", "calibration"]
    assert set(good.summary()) == {"convergence", "gap", "calibration"}


def bayesian(x=None, index=None, size=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(4, 2, dtype=torch.float64), 1.0).to_event(2))
    with rows(x, index, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        loc = (weight @ z.unsqueeze(-1)).squeeze(-1)
        return pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x)


def test_possible_checks_of_a_model_with_shared_sites(some):
    x = some[::4] - some.mean(0)
    run = zoo.fit(bayesian, MeanField(bayesian, x), x, steps=300, progress=False)
    found = zoo.diagnose(run, x, draws=50)
    unknown = [finding.check for finding in found.findings if finding.level == "unknown"]
    assert {"posterior", "calibration", "collapse"} <= set(unknown)
    assert not {"convergence", "gap", "importance weights"} & set(unknown)
    possible = f"{len(found.findings) - len(unknown)} of {len(found.findings)} checks were possible"
    assert possible in found.verdict
    assert "weight" in found["importance weights"].reason
    assert "every simulation is a whole data set" in found["calibration"].reason


def test_a_pair_without_a_record_of_its_training(some):
    model = zoo.VAE(4, 1, hidden=(4,)).double()
    found = zoo.diagnose(zoo.Fit(model, MeanField(model, some)), some, simulations=20, draws=50)
    assert found["convergence"].level == "unknown"
    assert "no training record" in found["convergence"].reason
    conjugate = zoo.PPCA(4, 2).double()
    zoo.em(conjugate, some)
    found = zoo.diagnose(zoo.Fit(conjugate, Exact(conjugate)), some, simulations=20, draws=50)
    assert found["convergence"].level == "good"  # by EM
    assert found.level == "good"


def test_a_record_is_judged_by_the_rule_that_ends_a_fit(some):
    model = zoo.VAE(4, 1, hidden=(4,)).double()
    guide = MeanField(model, some)
    falling = Training(losses=torch.linspace(10, 0, 1000), converged=False, stopped="all 1,000 steps were taken")
    flat = Training(losses=torch.randn(1000), converged=True)
    (check,) = [one for one in CHECKS if one.name == "convergence"]
    for training, level in ((falling, "bad"), (flat, "good")):
        run = zoo.Fit(model, guide, training)
        found = check.judge(check.measure(Case(run, some, 50, None, 0)))
        assert found.level == level
        assert found.reason.startswith(assess(training).reason)
        assert found.reason.endswith("; training ended: all 1,000 steps were taken") == (training is falling)


def test_laplace_is_a_point(iris):
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, iris)
    model.requires_grad_(False)
    run = zoo.fit(model, AutoLaplaceApproximation(model), iris, steps=100, progress=False)
    for ask in (zoo.evaluate, zoo.importance_moments):
        with pytest.raises(ValueError, match="point mass on 'z'"):
            ask(run, iris)
    found = zoo.diagnose(run, iris)
    assert found["posterior"].level == "bad"
    assert "a point estimate, not a posterior" in found["posterior"].reason
    assert found["gap"].level == "unknown"
    assert not found.trusted


def test_a_joint_autoguide_of_a_conjugate_model(some):
    """Its exact gap is known; single rows have neither weights nor a posterior of their own."""
    x = some[:10]
    model = zoo.PPCA(4, 1).double()
    zoo.em(model, x)
    run = zoo.fit(model, AutoMultivariateNormal(model), x, steps=300, progress=False)
    found = zoo.diagnose(run, x, draws=100)
    assert found.measured["gap"].estimator == "exact"
    assert found.measured["gap"].shared.log_marginal == pytest.approx(model.log_marginal(x).sum().item(), abs=1e-8)
    assert {f.check for f in found.findings if f.level == "unknown"} >= {"posterior", "calibration", "collapse"}
    assert "checks were possible" in found.verdict


class Longest(Check):
    """A user's own check: one class in one file."""

    name = "longest row"

    def measure(self, case):
        return float(case.x.norm(dim=1).max())

    def judge(self, measured):
        return Finding(self.name, grade(measured, (1.0, 100.0)), measured, 100.0, f"the longest row has {measured:.3g}")

    def draw(self, measured, plots: ModuleType):
        from matplotlib.figure import Figure

        yield Picture("Longest", "The length of the longest row, alone.", Figure().subplots())

    def tables(self, measured):
        yield "Longest row", pl.DataFrame({"length": [measured]})


def test_a_new_check_is_one_class(some, tmp_path):
    model = zoo.PPCA(4, 1).double()
    zoo.em(model, some)
    run = zoo.Fit(model, Exact(model))
    found = zoo.diagnose(run, some, simulations=20, checks=(*CHECKS, Longest()))
    assert found["longest row"].level == "careful"
    assert [picture.title for picture in pictures(found, plots)][-1] == "Longest"
    assert [title for title, _ in tables(found)][-1] == "Longest row"
    page = zoo.report.report(run, some, tmp_path / "page.html", diagnosis=found).read_text(encoding="utf-8")
    assert "longest row" in page
    assert "The length of the longest row, alone." in page
    assert "<dd>no record</dd>" in page


def test_a_large_factor_is_printed_with_few_digits():
    """A guide too narrow by e^138: its factor has sixty digits before the point."""
    zero, one = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    found = Posterior().judge(PosteriorError(zero[:, 0], zero, math.exp(-138.0) * one, zero.unsqueeze(-1)))
    assert found.level == "bad"
    assert "within a factor of 8.56e+59" in found.reason


@pytest.mark.filterwarnings("ignore::zoo.infer.UnboundedLikelihood")  # the collapse below
def test_a_covariance_at_its_floor_is_bad():
    x = torch.cat([torch.randn(60, 2).double(), torch.full((10, 2), 9.0).double()])
    model = zoo.GMM(2, 2).double()
    found = zoo.diagnose(zoo.em(model, x), x)
    bad = next(finding for finding in found.findings if finding.check == "collapse")
    assert bad.level == "bad"
    assert "component 0 has collapsed onto 10 of the rows (rows 60, 61" in bad.reason
    assert not found.trusted
