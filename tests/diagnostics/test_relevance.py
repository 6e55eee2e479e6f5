"""What a user reads off a Bayesian model: factors kept, components in use, the density of new rows."""

import math

import pytest
import torch

import zoo
from guides import Amortized, FullRank, MeanField
from zoo.diagnostics import EffectiveSize, effective_size, predictive_density
from zoo.diagnostics.checks.collapse import Collapse
from zoo.diagnostics.diagnosis import tables


def bishop(seed):
    """300 rows of ten columns: standard deviation 1 in three directions, 0.5 in seven (Bishop 1999)."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0] * 3 + [0.5] * 7).double()
    return torch.randn(300, 10, generator=generator, dtype=torch.float64) * scale


def test_bishops_example_keeps_three_factors():
    x = bishop(0)
    run = zoo.cavi(zoo.BayesianPCA(10, 9).double(), x, restarts=2)
    found = effective_size(run, x)
    assert (found.unit, found.kept, len(found.values)) == ("factors", 3, 9)
    torch.testing.assert_close(found.values, run.factors["relevance"].mean)
    assert not found.se.any()
    limit = 50 / x.var(0, correction=0).mean().item()
    assert found.summary() == {"kept": 3.0, "size": 9.0, "threshold": pytest.approx(limit)}
    assert found.frame().filter("in_use")["relevance"].max() < limit
    assert str(found).startswith(f"3 of 9 factors kept (relevance below {limit:g}): ")
    assert effective_size(run, x, threshold=50).kept == 3
    assert effective_size(run, x, threshold=1e9).kept == 9


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_number_kept_does_not_depend_on_the_units(unit):
    x = unit * bishop(0)
    prior = (1e-3, 1e-3 * unit**2)
    run = zoo.cavi(zoo.BayesianPCA(10, 9, relevance=prior, precision=prior).double(), x, restarts=2)
    assert effective_size(run, x).kept == 3


def test_diagnosis_and_its_table_report_what_is_in_use(faithful, some):
    run = zoo.cavi(zoo.BayesianPCA(4, 3).double(), some, restarts=2)
    size = effective_size(run, some)
    found = zoo.diagnose(run, some, checks=(Collapse(),))
    assert found["collapse"].level == "good"
    assert found["collapse"].reason.startswith(f"{size.kept} of 3 factors are kept (relevance below ")
    ((title, table),) = tables(found)
    assert (title, table["in_use"].to_list().count("yes")) == ("Factors in use", size.kept)
    run = zoo.cavi(zoo.BayesianGMM(2, 6, concentration=1e-3).double(), faithful, restarts=4)
    found = zoo.diagnose(run, faithful, checks=(Collapse(),))
    assert found["collapse"].reason == "2 of 6 components are in use (at least 1 expected rows); the others are empty"
    nothing = EffectiveSize("factors", torch.tensor([9e9]), torch.zeros(1), 50.0)
    assert Collapse().judge(nothing).level == "bad"


def test_components_that_the_data_do_not_need_are_empty(faithful):
    x = (faithful - faithful.mean(0)) / faithful.std(0, correction=0)
    run = zoo.cavi(zoo.BayesianGMM(2, 6, concentration=1e-3).double(), x)
    found = effective_size(run, x)
    assert (found.unit, found.kept) == ("components", 2)
    assert found.values.sum() == pytest.approx(272)
    assert found.frame().columns == ["component", "count", "se", "in_use"]
    assert str(found).startswith("2 of 6 components in use (at least 1 expected rows): ")
    with pytest.raises(ValueError, match="holds 272 rows, got 100"):
        effective_size(run, x[:100])


@pytest.mark.parametrize("build", [lambda m, x: MeanField(m, x, family="gaussian"), FullRank, Amortized])
def test_any_guide_with_the_sites_serves(build, some):
    model = zoo.BayesianPCA(4, 2).double()
    model.initialize(some)
    guide = build(model, some)
    run = zoo.Fit(model, guide)
    found = effective_size(run, some, draws=4000)
    alpha = run.sample(some, draws=4000)["relevance"]
    torch.testing.assert_close(found.values, alpha.mean(0), rtol=0.05, atol=0.05)
    assert (found.se > 0).all()
    density = predictive_density(run, some[:7] + 0.1, draws=100)
    assert density.log_density.shape == (7,)
    assert (density.se > 0).all()


def test_counts_by_draws_are_those_of_the_probabilities(some):
    model = zoo.GMM(4, 3, start="random").double()
    model.initialize(some)
    guide = MeanField(model, some)
    found = effective_size(zoo.Fit(model, guide), some, draws=2000)
    truth = model.posterior(some).probs.sum(0)
    assert ((found.values - truth).abs() <= 5 * found.se + 1e-9).all()


def test_predictive_density_of_linear_models():
    x, new = bishop(0), bishop(1)
    new[:50, 3] = math.nan
    run = zoo.cavi(zoo.BayesianPCA(10, 9).double(), x, restarts=2)
    found = predictive_density(run, new)
    scale = torch.tensor([1.0] * 3 + [0.5] * 7).double()
    best = torch.distributions.Normal(0.0, scale).log_prob(new[50:]).sum(-1).mean()
    # 40 free numbers learned from 300 rows cost 40 / 600 nats per row in expectation.
    assert best - 0.15 < found.log_density[50:].mean() < best + 0.02
    assert found.summary()["rows"] == 300
    assert found.frame().shape == (300, 2)
    assert "300 rows" in str(found)
    assert "1000 draws" in str(found)
    again = predictive_density(run, new[:10])
    torch.testing.assert_close(again.log_density, found.log_density[:10])  # a row by itself


def test_refusals(some):
    model = zoo.PPCA(4, 2).double()
    run = zoo.Fit(model, MeanField(model, some))
    with pytest.raises(TypeError, match="PPCA has neither a site 'relevance' nor a discrete site 'component'"):
        effective_size(run, some)
    with pytest.raises(TypeError, match=r"PPCA has no latent site that all rows share.*log_marginal\(x\)"):
        predictive_density(run, some)
    with pytest.raises(ValueError, match="draws must be a whole number of at least 2"):
        predictive_density(run, some, draws=1)


def test_a_saved_run_says_the_same(some, tmp_path):
    run = zoo.cavi(zoo.BayesianPCA(4, 2).double(), some, restarts=2)
    back = zoo.load(run.save(tmp_path / "run"))
    torch.testing.assert_close(effective_size(back, some).values, effective_size(run, some).values)
    new = some[:5] + 0.1
    torch.testing.assert_close(predictive_density(back, new).log_density, predictive_density(run, new).log_density)
