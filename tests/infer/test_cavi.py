"""zoo.cavi: the reference numbers of variational Bayes, its starts, and what it refuses."""

import polars
import pytest
import torch
from bayesian_models import faithful, iris
from pyro import poutine

import guides
import zoo
from zoo.base.module import Module
from zoo.diagnostics.checks.convergence import Convergence

SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 2)) for seed in range(10)]


def bishop(seed):
    """Bishop (1999): ten columns, standard deviation 1 in three directions and 0.5 in seven."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]
    deviations = torch.tensor([1.0] * 3 + [0.5] * 7, dtype=torch.float64)
    return torch.randn(300, 10, generator=generator, dtype=torch.float64) * deviations @ turn.mT


def mixture(components, concentration):
    """The mixture of the reference numbers."""
    options = {"df": 2.0, "location": 0.0, "spread": 10.0, "inverse_scale": 1.0}
    return zoo.BayesianGMM(2, components, concentration=concentration, **options).double()


@pytest.mark.parametrize(("k", "bound", "relevance"), [(1, -502.2193962, [0.980]), (2, -456.3283516, [0.9647, 21.167])])
def test_bayesian_pca_of_iris(k, bound, relevance):
    run = zoo.cavi(zoo.BayesianPCA(4, k, mean=False).double(), iris())
    assert run.converged
    assert float(run[-1]) == pytest.approx(bound, abs=1e-5)
    assert run.factors["relevance"].mean.sort().values.tolist() == pytest.approx(relevance, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_three_factors_of_iris_reach_the_best_optimum(seed):
    run = zoo.cavi(zoo.BayesianPCA(4, 3, mean=False).double(), iris(), seed=1000 * seed)
    assert float(run[-1]) > -452


@pytest.mark.parametrize("seed", SEEDS)
def test_bishops_example_keeps_three_columns(seed):
    run = zoo.cavi(zoo.BayesianPCA(10, 9).double(), bishop(seed), restarts=3)
    assert int((run.factors["relevance"].mean < 50).sum()) == 3
    assert 3.6 < float(run.factors["precision"].mean) < 4.4


@pytest.mark.parametrize(("k", "bound"), [(1, -564.794638), (2, -430.670619)])
def test_mixture_of_old_faithful(k, bound):
    run = zoo.cavi(mixture(k, 1.0), faithful(), restarts=12)
    assert float(run[-1]) == pytest.approx(bound, abs=1e-5)


def test_superfluous_components_empty():
    run = zoo.cavi(mixture(6, 1e-3), faithful())
    counts = run.factors["component"].mean.sum(0).sort(descending=True).values
    assert counts[:2].tolist() == pytest.approx([175.1, 96.9], abs=0.1)
    assert (counts[2:] < 1e-3).all()


def test_bound_prefers_two_components_to_three():
    two, three = (float(zoo.cavi(mixture(k, 1.0), faithful())[-1]) for k in (2, 3))
    assert two > three + 1


@pytest.mark.parametrize("build", [lambda: zoo.BayesianPCA(4, 3), lambda: zoo.BayesianFactorAnalysis(4, 3)])
def test_bound_never_falls_with_rotations(build):
    run = zoo.cavi(build().double(), iris(), restarts=3)
    assert (run.bound.diff() > -1e-10 * run.bound[1:].abs()).all()
    assert len(run) == len(run.bound) == len(run.losses)
    torch.testing.assert_close(run.losses, -run.bound / 150)


def test_reports_every_start():
    run = zoo.cavi(zoo.BayesianPCA(4, 3, mean=False).double(), iris(), restarts=4, seed=7)
    frame = run.frame()
    assert isinstance(frame, polars.DataFrame)
    assert frame["seed"].to_list() == [7, 8, 9, 10]
    assert frame["bound"].max() == pytest.approx(float(run[-1]), abs=1e-9)
    assert frame["converged"].all()
    found = run.summary()
    assert found["starts"] == 4
    assert found["near"] == len(run.near())
    assert found["failed"] == 0
    assert "starts within 0.01 nats" in str(run)
    assert "the bound has settled" in run.settings["stopped"]


def test_same_seed_same_bound():
    one, two = (zoo.cavi(zoo.BayesianPCA(4, 2).double(), iris(), restarts=2, seed=3) for _ in range(2))
    assert torch.equal(one.bound, two.bound)


class Failing(zoo.BayesianPCA):
    """Fails at its first start."""

    def coordinate_ascent(self, x, generator):
        ascent = super().coordinate_ascent(x, generator)
        if generator.initial_seed() in self.bad:
            ascent.bound = lambda: torch.tensor(-float(ascent.rows.n) if ascent.fallen() else 0.0)
            ascent.fallen = iter([False, True]).__next__
        return ascent


def test_a_failed_start_does_not_end_the_others():
    model = Failing(4, 1).double()
    model.bad = (0,)
    run = zoo.cavi(model, iris(), restarts=2)
    assert run.frame()["error"].to_list()[1] is None
    assert "the bound fell from 0 to -150 in sweep 1" in run.attempts[0].error
    assert run.summary()["failed"] == 1
    assert "1 failed" in str(run)
    model.bad = (0, 1)
    with pytest.raises(FloatingPointError, match=r"all 2 starts failed:\n  seed 0: the bound fell"):
        zoo.cavi(model, iris(), restarts=2)


def test_stops_after_its_sweeps():
    run = zoo.cavi(zoo.BayesianPCA(4, 3).double(), iris(), restarts=1, sweeps=5)
    assert len(run) == 5
    assert not run.converged
    assert run.settings["stopped"] == "all 5 sweeps are used up"
    assert "not converged" in str(run)
    found = zoo.diagnose(run, iris(), checks=(Convergence(),))["convergence"]
    assert found.level != "good"
    assert found.reason.startswith("the last of 5 sweeps raised the bound by ")
    run = zoo.cavi(zoo.BayesianGMM(4, 1).double(), iris(), restarts=1)  # few sweeps are enough
    assert zoo.diagnose(run, iris(), checks=(Convergence(),))["convergence"].level == "good"


def test_is_a_pair_like_any_other(tmp_path):
    x = iris()
    run = zoo.cavi(zoo.BayesianFactorAnalysis(4, 1).double(), x, restarts=2)
    found = zoo.evaluate(run, x, draws=400)
    assert abs(found.shared.total - float(run[-1])) < 5 * found.shared.total_se
    run.save(tmp_path / "run")
    again = zoo.load(tmp_path / "run")
    torch.testing.assert_close(again.model.bound(x, again.guide.factors()).detach(), run.bound[-1])
    assert isinstance(run.guide, guides.MeanField)
    assert run.sample(x, draws=3)["weight"].shape == (3, 4, 1)


class Own(Module):
    """A model without closed forms."""

    data_dim = 4

    def forward(self, x=None, index=None, size=None):
        raise NotImplementedError


@pytest.mark.parametrize("build", [lambda: zoo.PPCA(4, 2), Own], ids=["PPCA", "own"])
def test_refuses_models_without_conditionally_conjugate_priors(build):
    with pytest.raises(TypeError, match=r"not conditionally conjugate.*guides.MeanField\(model, x\)"):
        zoo.cavi(build(), iris())


def test_refuses_handlers_that_change_the_density_and_classes():
    model = zoo.BayesianPCA(4, 1)
    with pytest.raises(TypeError, match="BayesianPCA stands behind a handler that changes its density"):
        zoo.cavi(poutine.scale(model, 0.5), iris())
    with pytest.raises(TypeError, match=r"got the class BayesianPCA: pass BayesianPCA\(\.\.\.\)"):
        zoo.cavi(zoo.BayesianPCA, iris())


def test_priors_are_placed_once(tmp_path):
    x = iris()
    model = zoo.BayesianPCA(4, 1).double()
    run = zoo.cavi(model, x, restarts=1)
    spread = model.spread.clone()
    assert float(zoo.cavi(model, x, restarts=1)[-1]) == float(run[-1])
    zoo.cavi(model, 7 * x, restarts=1)  # the same priors, so that bounds of one model can be compared
    assert torch.equal(model.spread, spread)
    loaded = zoo.load(run.save(tmp_path / "run")).model
    assert float(zoo.cavi(loaded, x, restarts=1)[-1]) == pytest.approx(float(run[-1]), rel=1e-12)
    zoo.cavi(loaded, 7 * x, restarts=1)
    assert torch.equal(loaded.spread, spread)
    model.initialize(7 * x)
    torch.testing.assert_close(model.spread, 49 * spread)
    changed = zoo.BayesianPCA(4, 1).double()
    changed.spread = 3 * torch.ones(4).double()  # a user's own prior is kept
    zoo.cavi(changed, x, restarts=1)
    assert changed.spread.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": 0}, "sweeps must be a whole number of at least 1"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1"),
        ({"tol": -1.0}, "tol must not be negative"),
        ({"tol": float("nan")}, "tol must not be negative"),
    ],
)
def test_refuses_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.cavi(zoo.BayesianPCA(4, 2), iris(), **options)


def test_refuses_rows_that_are_not_finite():
    x = iris()
    x[5, 2] = torch.inf
    with pytest.raises(ValueError, match="x holds inf in row 5, column 2"):
        zoo.cavi(zoo.BayesianPCA(4, 2), x)
