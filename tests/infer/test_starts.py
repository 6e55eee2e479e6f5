"""Several starts: the best is kept, every one is reported, none that fails is lost."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta

import zoo
from guides import Amortized, Exact, MeanField
from zoo import GMM, PPCA, VAE
from zoo.base import rows
from zoo.infer import LBFGS, ClosedFormELBO, QuadratureELBO
from zoo.infer.starts import best_of

TIED = -1126.31593  # Old Faithful, three tied components; five digits printed
MAXIMA = -1127.00752, -1131.81853  # with a diagonal covariance each; EM ends in both as well


def three():
    model = GMM(2, 3, "tied", start="k-means++").double()
    return model, Exact(model)


def three_apart():
    model = GMM(2, 3, "diag", start="k-means++").double()
    return model, Exact(model)


def test_the_best_of_several_seeds_and_all_of_them(faithful, untouched):
    with untouched():  # a line search alone, without the steps of EM that a default fit begins with
        found = best_of(three_apart, faithful, seeds=4, progress=False, optim=LBFGS())
    assert [row.seed for row in found.table] == [0, 1, 2, 3]
    scores = [row.score for row in found.table]
    assert (max(scores), min(scores)) == pytest.approx(MAXIMA, abs=1e-4)
    assert found.seed == scores.index(max(scores))
    with torch.no_grad():
        assert found.best.model.log_marginal(faithful).sum().item() == pytest.approx(max(scores), abs=1e-9)
    assert found.best.settings["seed"] == found.seed
    assert found.near() == tuple(i for i, score in enumerate(scores) if score > MAXIMA[0] - 0.01)
    for row in found.table:
        assert row.error is None
        assert row.converged
        assert row.steps > 1
        assert row.seconds > 0
        assert row.elbo == pytest.approx(row.log_marginal, abs=1e-6)  # Exact: the bound is tight, one step apart
        assert row.score == pytest.approx(len(faithful) * row.log_marginal)
    lines = repr(found).splitlines()
    assert len(lines) == 2 + 4
    assert f"seed {found.seed} is best, {len(found.near())} of 4 within 0.01" in lines[0]
    assert lines[2 + found.seed].startswith("*")


def test_a_run_is_the_one_that_fit_makes_with_that_seed(faithful):
    found = best_of(three, faithful, seeds=[1], progress=False, steps=10)
    model, guide = three()
    run = zoo.fit(model, guide, faithful, seed=1, steps=10, progress=False)
    assert torch.equal(run.losses, found.best.losses)
    assert not found.table[0].converged
    assert "not converged" in repr(found)


def test_em_gives_the_same_report(faithful, untouched):
    with untouched():
        found = best_of(lambda: three()[0], faithful, seeds=[0, 2, 1], steps=150)
    assert [row.seed for row in found.table] == [0, 2, 1]
    assert isinstance(found.best, GMM)
    assert found.best.log_marginal(faithful).sum().item() == pytest.approx(TIED, abs=1e-4)
    slow = found.table[0]  # passes by the saddle of two components for more steps than it was given
    assert (slow.steps, slow.converged) == (150, False)
    assert slow.score < TIED - 1
    assert [row.converged for row in found.table[1:]] == [True, True]
    assert all(row.elbo == row.log_marginal for row in found.table)


def test_collapses_are_reported_and_not_lost(faithful):
    found = best_of(lambda: GMM(2, 3).double(), faithful[:14], seeds=8)  # three full covariances on 14 rows
    failed = [row for row in found.table if row.error is not None]
    assert 0 < len(failed) < 8
    for row in failed:
        assert "collapsed" in row.error or "lost all its rows" in row.error
        assert row.score is row.elbo is row.log_marginal is row.steps is None
        assert not row.converged
    assert found.seed not in [row.seed for row in failed]
    assert f"{len(failed)} failed" in repr(found)
    assert repr(found).count("failed after") == len(failed)


def test_a_loss_that_ceases_to_be_a_number_is_reported(iris):
    centres = iter([0.0, 1e160, 0.0])  # squared residuals of 1e320 are infinite

    def build():
        model = PPCA(4, 1).double()
        model.mean = torch.full((4,), next(centres), dtype=torch.float64)
        return model, Amortized(model, iris)

    found = best_of(build, iris, seeds=3, steps=5, progress=False)
    assert [row.error is None for row in found.table] == [True, False, True]
    assert "the loss is inf at step 0" in found.table[1].error


def test_when_all_fail_each_is_listed(faithful, untouched):
    with untouched(), pytest.raises(FloatingPointError, match="all 2 runs failed:\n  seed 3: .*\n  seed 5: "):
        best_of(lambda: GMM(2, 7).double(), faithful[:8], seeds=[3, 5])
    with pytest.raises(FloatingPointError, match="seed 0: the score is nan"):
        best_of(three, faithful, seeds=1, steps=2, progress=False, score=lambda run: float("nan"))


def test_deep_models_are_ranked_by_their_bound(some, untouched):
    def build():
        model = VAE(4, 1, hidden=(4,)).double()
        return model, Amortized(model, some, hidden=(4,))

    with untouched():
        found = best_of(build, some, seeds=2, steps=30, progress=False)
    assert len({row.score for row in found.table}) == 2
    for row in found.table:
        assert row.log_marginal is None
        assert row.score == pytest.approx(len(some) * row.elbo)
    best = found.table[found.seed]
    assert best.elbo == pytest.approx(zoo.evaluate(found.best, some, draws=2000).elbo.mean().item(), abs=0.05)
    assert best.score == max(row.score for row in found.table)


def test_the_score_is_yours_to_choose(faithful):
    worst = best_of(three, faithful, seeds=3, steps=5, progress=False, score=lambda run: run.losses[-1])
    assert worst.table[worst.seed].elbo == min(row.elbo for row in worst.table)


def test_only_the_best_is_held(faithful):
    models = []

    def build():
        model, guide = three()
        models.append(weakref.ref(model))
        gc.collect()
        assert sum(ref() is not None for ref in models) <= 2  # this one and the best
        return model, guide

    gc.freeze()  # else every collection walks through all that is loaded
    try:
        found = best_of(build, faithful, seeds=4, steps=3, progress=False)
        gc.collect()
        assert [ref() for ref in models if ref() is not None] == [found.best.model]
    finally:
        gc.unfreeze()


def test_every_run_has_its_own_optimizer_and_modules_drawn_under_its_seed(iris):
    class Drawn(PPCA):
        initialize = None  # its start is the constructor's alone

        @property
        def fresh(self):
            return False

    def build():
        model = Drawn(4, 1).double()
        return model, Exact(model)

    optim = pyro.optim.Adam({"lr": 0.01})
    first, second = (best_of(build, iris, seeds=[0, 1], steps=5, progress=False, optim=optim) for _ in range(2))
    assert [row.score for row in first.table] == [row.score for row in second.table]
    assert first.table[0].score != first.table[1].score
    assert not optim.optim_objs


def test_a_model_returned_twice_is_refused(faithful):
    pair = three()
    with pytest.raises(ValueError, match="build returned the same GMM twice"):
        best_of(lambda: pair, faithful, seeds=2, steps=2, progress=False)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "seeds is empty"),
        (0, "seeds must be a whole number of at least 1"),
        ([1, 2, 1], "seed 1 is given twice"),
        ([0.5], "seeds must be a whole number"),
        (True, "seeds must be a whole number"),
    ],
)
def test_seeds_are_checked_before_anything_runs(faithful, seeds, message):
    with pytest.raises(ValueError, match=message):
        best_of(lambda: pytest.fail("built"), faithful, seeds=seeds)
    with pytest.raises(ValueError, match="pass seeds"):
        best_of(three, faithful, seed=3)


class Doubled(Trace_ELBO):
    """An objective that is no bound."""

    def loss_and_grads(self, *args, **kwargs):
        return 2 * super().loss_and_grads(*args, **kwargs)


def test_runs_are_ranked_by_their_bound_whatever_the_loss(some):
    def build():
        model = VAE(4, 1, hidden=(4,)).double()
        return model, Amortized(model, some, hidden=(4,))

    found = best_of(build, some, seeds=2, steps=40, progress=False, loss=Doubled())
    best = found.table[found.seed]
    assert best.elbo == pytest.approx(zoo.evaluate(found.best, some, draws=2000).elbo.mean().item(), abs=0.2)
    assert best.elbo > -0.6 * float(found.best.losses[-1])
    assert best.score == pytest.approx(len(some) * best.elbo)


def test_bounds_without_noise_rank_exactly(some):
    def build():
        model = zoo.BayesianPCA(4, 1).double()
        return model, MeanField(model, some)

    found = best_of(build, some, seeds=2, batch_size=20, steps=30, progress=False)
    with found.best.scope():
        exact = -ClosedFormELBO().loss(found.best.model, found.best.guide, some)
    assert found.table[found.seed].score == pytest.approx(exact, rel=1e-12)

    def factors():
        model = zoo.FactorAnalysis(4, 1).double()
        return model, MeanField(model, some)

    found = best_of(factors, some, seeds=1, steps=30, progress=False)
    with found.best.scope():
        exact = -QuadratureELBO().loss(found.best.model, found.best.guide, some)
    assert found.table[0].elbo == pytest.approx(exact / len(some), rel=1e-12)


def test_a_model_behind_a_handler(faithful):
    def nothing(x=None, index=None, size=None):
        """Leaves the components to enumeration."""

    def build():
        return config_enumerate(GMM(2, 2).double()), nothing

    loss = TraceEnum_ELBO(max_plate_nesting=1)
    found = best_of(build, faithful, seeds=2, progress=False, loss=loss, optim=LBFGS())
    assert found.table[found.seed].log_marginal == pytest.approx(-1130.26396 / 272, abs=0.01)


def test_a_point_mass_is_ranked_by_a_score_of_yours(some):
    def build():
        model = Prior()
        return model, AutoDelta(model)

    with pytest.raises(ValueError, match="no bound by which to rank the runs.*pass score="):
        best_of(build, some, seeds=1, steps=5, progress=False)
    found = best_of(build, some, seeds=2, steps=5, progress=False, score=lambda run: -float(run.losses[-1]))
    assert all(row.elbo is None for row in found.table)
    assert "not converged" in repr(found)


class Prior(zoo.base.Module):
    """A mean with a prior, which all rows share."""

    def forward(self, x=None, index=None, size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(4, dtype=torch.float64), 10.0).to_event(1))
        with rows(x, index, size):
            return pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
