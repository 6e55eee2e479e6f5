"""Bounds on log p(x), and annealed importance sampling against log p(x) itself."""

import math
import re
import sys
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import as_it_is
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from user_models import Levels, levels_evidence

import zoo
from guides import Amortized, Exact, FullRank, MeanField
from zoo.base.module import Module
from zoo.base.plates import rows
from zoo.posterior.annealing import AIS, anneal
from zoo.posterior.engine import Reader, reader, reading
from zoo.posterior.evaluation import evaluate
from zoo.posterior.evidence import log_evidence_bounds
from zoo.posterior.rowwise import real_site, row_weights

FAST = AIS(temperatures=60, chains=8, leapfrog=4)


def poor(cls, family, n=30, by=0.1, noise=1.0):
    """A frozen linear-Gaussian model, rows it has drawn, and a guide some way off."""
    model = cls(6, 3).double()
    model.scale = noise * model.scale.detach()
    model.requires_grad_(False)
    x = model(size=n)
    guide = family(model, x)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return as_it_is(model, guide, x), x


def linear(model, x):
    return Amortized(model, x, hidden=())


FAMILIES = {"MeanField": MeanField, "FullRank": FullRank, "linear": linear, "Exact": lambda model, x: Exact(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_rungs_are_ordered_for_every_row_and_agree_with_closed_forms(family, untouched):
    run, x = poor(zoo.PPCA, FAMILIES[family])
    with untouched():
        found = log_evidence_bounds(run, x, draws=(1, 20, 100, 1000))
    assert [rung.name for rung in found.rungs] == ["ELBO", "IWAE-1", "IWAE-20", "IWAE-100", "IWAE-1000", "exact"]
    for low, high in pairwise(found.rungs[:-1]):
        assert (low.values <= high.values + 1e-10).all()
    with torch.no_grad():
        torch.testing.assert_close(found["exact"].values, run.model.log_marginal(x), rtol=0, atol=1e-10)
        elbo = run.model.elbo(x, run.guide.posterior(x))
    assert ((found["ELBO"].values - elbo).abs() <= 5 * found["ELBO"].se + 1e-8).all()
    torch.testing.assert_close(found["ELBO"].values, found["IWAE-1"].values, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["ELBO"].se, found["IWAE-1"].se, rtol=0, atol=1e-9)
    if family == "Exact":
        assert (found["IWAE-1000"].values - found["exact"].values).abs().max() < 1e-9
        torch.testing.assert_close(found.effective, torch.full_like(elbo, 1000.0))


def test_the_rungs_are_those_of_the_weights_themselves(monkeypatch):
    """One block, or pieces of a block, or several blocks at a time: the running sums are the sums."""
    run, x = poor(zoo.FactorAnalysis, linear, n=3)
    for budget in (10**9, 10 * x.numel(), 70 * x.numel()):  # all at once; a third of a block of 30; two blocks
        monkeypatch.setattr("zoo.base.memory.NUMBERS", 4 * budget)
        seen = []

        def spy(*args, seen=seen):
            seen.append(row_weights(*args))
            return seen[-1]

        monkeypatch.setattr(sys.modules["zoo.posterior.evidence"], "row_weights", spy)
        monkeypatch.setattr(Reader, "chunks", lambda source, count: [(torch.arange(3), (source.x,))])
        found = log_evidence_bounds(run, x, draws=(30, 120, 480))
        assert len(seen) == {10**9: 1, 10 * 18: 48, 70 * 18: 8}[budget]
        weights = torch.cat(seen)  # (480, n)
        torch.testing.assert_close(found["ELBO"].values, weights.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found["ELBO"].se, weights.std(0) / 480**0.5, rtol=1e-8, atol=1e-10)
        for size in (30, 120, 480):
            blocks = weights.unflatten(0, (480 // size, size)).logsumexp(1) - math.log(size)
            torch.testing.assert_close(found[f"IWAE-{size}"].values, blocks.mean(0), rtol=1e-10, atol=1e-10)
        ratio = (weights - weights.amax(0)).exp()
        expected = ratio.std(0) / ratio.mean(0) / 480**0.5
        torch.testing.assert_close(found["IWAE-480"].se, expected, rtol=1e-6, atol=1e-10)
        effective = ratio.sum(0).square() / ratio.square().sum(0)
        torch.testing.assert_close(found.effective, effective, rtol=1e-8, atol=1e-8)


def test_standard_errors_are_those_of_repetition():
    """Forty ladders with seeds of their own spread as each of them says, for rungs of both kinds of error."""
    run, x = poor(zoo.PPCA, linear, n=20, by=0.03)
    found = [log_evidence_bounds(run, x, draws=(10, 1000), seed=seed) for seed in range(40)]
    for name in ("ELBO", "IWAE-10", "IWAE-1000"):
        spread = torch.stack([one[name].values for one in found]).std(0)  # (n,), itself known to 1 / sqrt(78)
        told = torch.stack([one[name].se for one in found]).square().mean(0).sqrt()
        ratio = (spread / told).log().mean().abs()  # over 20 rows: five standard errors are 5 / sqrt(78 * 20)
        assert ratio < 5 / (78 * 20) ** 0.5 + 0.02, name


def test_rows_do_not_depend_on_how_they_are_cut(monkeypatch):
    run, x = poor(zoo.PPCA, MeanField, n=5)
    for budget in (1, 2 * 100 * 6):  # draw by draw and row by row; two rows
        monkeypatch.setattr("zoo.base.memory.NUMBERS", 4 * budget)
        found = log_evidence_bounds(run, x, draws=(5, 200) if budget == 1 else (100, 1000))
        with torch.no_grad():
            elbo = run.model.elbo(x, run.guide.posterior(x))
        assert ((found["ELBO"].values - elbo).abs() <= 5 * found["ELBO"].se).all()


def test_deep_model_between_its_bounds_and_quadrature(some):
    """One factor: log p(x) by quadrature; the largest IWAE and AIS are there, in float64 and whatever the start."""
    model = zoo.VAE(4, 1, hidden=(8,)).double()
    run = zoo.fit(model, Amortized(model, some), some, steps=100, progress=False)
    with torch.no_grad():
        z = torch.linspace(-9, 9, 6001, dtype=torch.float64).reshape(-1, 1, 1)
        joint = model.decode(z).log_prob(some) - 0.5 * z.squeeze(-1).square() - 0.5 * math.log(2 * math.pi)
        exact = joint.logsumexp(0) + math.log(18 / 6000)
    for settings in (AIS(40, chains=32, leapfrog=4), AIS(40, chains=32, leapfrog=4, start="prior")):
        found = log_evidence_bounds(run, some, draws=(50, 2000), ais=settings)
        assert [rung.name for rung in found.rungs] == ["ELBO", "IWAE-50", "IWAE-2000", "AIS"]
        assert (found["AIS"].values <= exact + math.log(60 * 1e3)).all()  # Markov: one row in 60,000 exceeds it
        assert abs(found["AIS"].mean - exact.mean().item()) < 5 * found["AIS"].mean_se + 0.01
        sure = found.effective > 200
        error = (found["IWAE-2000"].values - exact).abs()[sure]
        assert sure.double().mean() > 0.5
        assert (error <= 5 * found["IWAE-2000"].se[sure] + 1e-3).all()


@pytest.mark.parametrize(("cls", "start"), [(zoo.PPCA, "guide"), (zoo.FactorAnalysis, "prior")])
def test_annealing_reaches_log_p_where_importance_sampling_fails(cls, start):
    """The guide is nats away, IWAE-1000 too; AIS is within 0.05 nats per row."""
    run, x = poor(cls, linear, by=0.2, noise=0.3)
    found = log_evidence_bounds(run, x, draws=(100, 1000), ais=AIS(200, chains=64, leapfrog=4, start=start), seed=1)
    exact = found["exact"].mean
    assert exact - found["ELBO"].mean > 20
    assert exact - found["IWAE-1000"].mean > 0.5
    assert abs(found["AIS"].mean - exact) < 0.05
    assert found.acceptance.shape == (30,)
    assert ((found.acceptance > 0.4) & (found.acceptance < 0.9)).all()


def test_annealing_from_the_posterior_is_exact():
    """From the exact posterior every weight is p(x), whatever the chains do."""
    run, x = poor(zoo.FactorAnalysis, lambda model, x: Exact(model), n=5)
    found = log_evidence_bounds(run, x, draws=(30,), ais=FAST)
    torch.testing.assert_close(found["AIS"].values, found["exact"].values, rtol=0, atol=1e-9)
    assert found["AIS"].se.max() < 1e-9


@pytest.mark.parametrize("temperatures", [2, 5])
def test_weights_are_unbiased_with_hardly_any_temperatures(temperatures):
    """E[w] = p(x) for any path: the mean of the weights themselves, by five standard errors, step sizes adapting."""
    model = zoo.PPCA(4, 2).double()
    model.scale = torch.tensor(2.0, dtype=torch.float64)
    model.requires_grad_(False)
    x = model(size=4)
    run = as_it_is(model, linear(model, x), x)
    settings = AIS(temperatures, chains=40_000, leapfrog=3, pilots=1)
    with reading(run, 3):
        source = reader(run, x)
        latent = real_site(source, "AIS")
        (_, arguments), *_ = source.chunks(4)
        weights, acceptance = anneal(source, latent, arguments, settings)
        ratio = (weights - model.log_marginal(x)).exp()
    assert weights.shape == (40_000, 4)
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 200).all()
    assert (ratio.std(0) > 0.05).all()  # there was something to average
    assert (acceptance < 1).all()


class Correlated(Module):
    """A guide that is no Gaussian: the square of a coordinate bends the other."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        base = dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1)
        bend = dist.transforms.AffineCoupling(
            1, lambda z: (0.3 * z.square().expand(*z.shape[:-1], 2), 0.0 * z.expand(*z.shape[:-1], 2))
        )
        with rows(x, index, size):
            pyro.sample("z", dist.TransformedDistribution(base, [bend]))


def test_annealing_from_a_guide_that_is_no_gaussian():
    model = zoo.PPCA(6, 3).double()
    model.scale = torch.tensor(0.5, dtype=torch.float64)
    model.requires_grad_(False)
    x = model(size=10)
    run = as_it_is(model, Correlated(), x)
    found = log_evidence_bounds(run, x, draws=(100,), ais=AIS(200, chains=64, leapfrog=4))
    assert found["AIS"].mean_se < 0.05
    assert abs(found["AIS"].mean - found["exact"].mean) < 5 * found["AIS"].mean_se


def test_an_autoguide(some):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(model, AutoNormal(model), some[:20], steps=100, progress=False)
    found = log_evidence_bounds(run, some[:20], draws=(20, 500), ais=FAST)
    with torch.no_grad():
        q = dist.Normal(run.guide.locs.z, run.guide.scales.z).to_event(1)
        elbo = model.elbo(some[:20], q)
    assert ((found["ELBO"].values - elbo).abs() <= 5 * found["ELBO"].se).all()
    assert (found["AIS"].values - found["exact"].values).abs().max() < 1


def test_mixtures_climb_without_annealing(some):
    model = zoo.GMM(4, 2).double()
    run = zoo.fit(model, MeanField(model, some), some, progress=False)
    found = log_evidence_bounds(run, some, draws=(50, 100))
    assert (found["IWAE-100"].values <= found["exact"].values + 5 * found["IWAE-100"].se + 1e-8).all()
    with pytest.raises(ValueError, match="'component' is discrete"):
        log_evidence_bounds(run, some, draws=(30,), ais=FAST)


class Positive(Module):
    """A model whose factor is positive."""

    def __init__(self):
        super().__init__()
        self.data_dim = 4
        self.mean = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x=None, index=None, size=None):
        with rows(x, index, size):
            z = pyro.sample("z", dist.LogNormal(self.mean.new_zeros(4), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.mean + z, 1.0).to_event(1), obs=x)


def test_refuses_to_anneal_constrained_sites(some):
    run = as_it_is(Positive(), MeanField(Positive(), some), some)
    assert log_evidence_bounds(run, some, draws=(30,)).rungs[1].name == "IWAE-30"
    with pytest.raises(ValueError, match="'z' is constrained to"):
        log_evidence_bounds(run, some, draws=(30,), ais=FAST)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ((), "draws is empty"),
        ((29,), "draws must end with at least 30"),
        ((100, 250), "draws must ascend, each a multiple of the one before it, got 100 and then 250"),
        ((100, 100), "draws must ascend"),
        ((0, 100), "draws must be a whole number"),
        (100, "draws must be the K of every IWAE, such as (100, 5000), got 100"),
    ],
)
def test_refuses_draws(draws, message, untouched):
    run, x = poor(zoo.PPCA, linear)
    with untouched(), pytest.raises(ValueError, match=re.escape(message)):
        log_evidence_bounds(run, x, draws=draws)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": 0}, "temperatures must be a whole number"),
        ({"temperatures": (0.0, 0.7, 0.5, 1.0)}, "temperatures must increase from 0 to 1"),
        ({"temperatures": (0.0, 0.7)}, "temperatures must increase from 0 to 1"),
        ({"chains": 1}, "chains must be a whole number of at least 2"),
        ({"leapfrog": 0}, "leapfrog"),
        ({"pilots": 0}, "pilots"),
        ({"start": "posterior"}, "start must be 'guide' or 'prior', got 'posterior'"),
    ],
)
def test_refuses_settings_of_annealing(settings, message):
    with pytest.raises(ValueError, match=message):
        AIS(**settings)


def test_refuses_a_point_mass(some):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(model, AutoDelta(model), some, steps=3, progress=False)
    with pytest.raises(ValueError, match="point mass"):
        log_evidence_bounds(run, some, draws=(30,))


def test_a_guide_that_draws_all_rows_together_has_total_bounds(some):
    model = zoo.PPCA(4, 2).double()
    zoo.em(model, some)
    c = 0.5**0.5  # away from the principal axes, where the posterior is diagonal and the bound tight
    model.weight = model.weight.detach() @ torch.tensor([[c, -c], [c, c]], dtype=torch.float64)
    model.requires_grad_(False)
    run = zoo.fit(model, AutoDiagonalNormal(model), some, steps=1500, progress=False)
    found = log_evidence_bounds(run, some, draws=(50, 1000))
    total = float(model.log_marginal(some).sum())
    assert [rung.name for rung in found.rungs] == ["ELBO", "IS-50", "IS-1000", "exact"]
    assert found["exact"].mean == pytest.approx(total)
    assert found["ELBO"].mean < found["IS-50"].mean < found["IS-1000"].mean < total
    with pytest.raises(ValueError, match="draws all rows jointly.*which AIS needs"):
        log_evidence_bounds(run, some, draws=(30,), ais=FAST)


def test_bounds_of_all_rows_where_they_share_a_site():
    """Normal-normal: log p(X) is that of a Gaussian of n correlated rows."""
    x = 1 + torch.randn(40, 1, dtype=torch.float64)
    model = Levels()
    run = zoo.fit(model, MeanField(model, x), x, steps=1500, progress=False)
    found = log_evidence_bounds(run, x, draws=(50, 1000))
    truth = levels_evidence(x)
    assert found.shared == ("level",)
    assert [rung.values.shape for rung in found.rungs] == [(1,)] * 3
    assert found["ELBO"].mean < found["IS-50"].mean <= found["IS-1000"].mean + 0.02
    assert abs(found["IS-1000"].mean - truth) <= 4 * found["IS-1000"].mean_se + 0.02
    evaluation = evaluate(run, x, draws=1000)
    error = math.hypot(found["ELBO"].mean_se, evaluation.shared.total_se)
    assert abs(found["ELBO"].mean - evaluation.total) <= 5 * error
    assert found.frame().height == 1
    assert found.summary()["IS-1000"] == found["IS-1000"].mean
    assert "log p(X) of 40 rows together (by level)" in str(found)
    with pytest.raises(ValueError, match=r"'level' is shared by all rows.*which AIS\s+needs"):
        log_evidence_bounds(run, x, draws=(30,), ais=FAST)


def test_only_reads_and_repeats_itself(untouched):
    run, x = poor(zoo.PPCA, linear, n=5)
    model = run.model
    before = [p.detach().clone() for m in (model, run.guide) for p in m.parameters()]
    with untouched():
        one, same, other = (log_evidence_bounds(run, x, draws=(30,), ais=FAST, seed=seed) for seed in (1, 1, 2))
    parameters = [p for m in (model, run.guide) for p in m.parameters()]
    assert all(map(torch.equal, before, parameters))
    assert all(p.grad is None or not p.grad.any() for p in parameters)
    for a, b, c in zip(one.rungs, same.rungs, other.rungs, strict=True):
        assert torch.equal(a.values, b.values)
        assert a.name == "exact" or not torch.equal(a.values, c.values)


def test_summary_rows_and_repr():
    run, x = poor(zoo.PPCA, linear)
    found = log_evidence_bounds(run, x, draws=(10, 100), ais=FAST)
    summary, table = found.summary(), found.frame()
    for name in ("ELBO", "IWAE-10", "IWAE-100", "AIS", "exact"):
        values, se = table[name], table[f"{name}_se"]
        assert values.shape == se.shape == (30,)
        assert summary[name] == pytest.approx(values.mean())
        assert summary[f"{name}_se"] == pytest.approx((se**2).sum() ** 0.5 / 30)
        assert summary[f"{name}_population_se"] == pytest.approx(values.std() / 30**0.5)
        assert re.search(rf"  {name} +{values.mean():.4f} ", repr(found))
    assert summary["exact_se"] == 0
    assert table["effective"].shape == (30,)
    assert repr(found).startswith("Bounds on log p(x) of 30 rows")
    assert math.isnan(log_evidence_bounds(run, x[:1], draws=(30,)).summary()["ELBO_population_se"])
    with pytest.raises(KeyError, match="no bound 'IWAE-5': there are ELBO, IWAE-10, IWAE-100, AIS, exact"):
        found["IWAE-5"]
    assert evaluate(run, x).log_marginal.mean().item() == pytest.approx(summary["exact"])
