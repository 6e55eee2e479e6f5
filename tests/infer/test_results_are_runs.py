"""The results of EM and of coordinate ascent, and a fitted conjugate model alone, are judged like a run of zoo.fit."""

import pytest
import torch
from helpers import close
from pyro import poutine

import guides
import zoo
from zoo.base.pairs import pair_of
from zoo.infer.convergence import assess
from zoo.infer.run import run_of

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 3, generator=generator).double() @ torch.randn(3, 3, generator=generator).double()


def maximised(rows):
    return zoo.em(zoo.FactorAnalysis(3, 1).double(), rows)


def mixture(rows):
    return zoo.em(zoo.GMM(3, 2).double(), rows)


def swept(rows):
    return zoo.cavi(zoo.BayesianPCA(3, 1).double(), rows, restarts=1)


def alone(rows):
    model = zoo.PPCA(3, 1).double()
    zoo.em(model, rows)
    return model


@pytest.mark.parametrize("train", [maximised, mixture, swept, alone])
def test_whatever_takes_a_run_takes_it(train, rows, tmp_path):
    found = train(rows)
    assert zoo.evaluate(found, rows, draws=50).log_marginal.isfinite().all()
    assert zoo.diagnose(found, rows, draws=50).findings[0].level == "good"
    assert zoo.predictive_check(found, rows, draws=20).frame().height
    assert zoo.to_arviz(found, rows, draws=5).posterior.sizes["draw"] == 5
    assert zoo.generate(found, 7, x=rows).x.shape == (7, 3)
    assert zoo.reconstruct(found, rows, draws=5).mean.shape == (60, 3)
    zoo.plots.latent(found, rows)
    if train is alone:
        assert "<html" in zoo.report.report(found, rows, tmp_path / "report.html").read_text()


@pytest.mark.parametrize("train", [maximised, mixture, swept])
def test_it_is_saved_and_loaded_with_its_record(train, rows, tmp_path):
    found = train(rows)
    loaded = zoo.load(found.save(tmp_path / "run"))
    assert type(loaded) is zoo.Fit
    assert (loaded.steps, loaded.converged, loaded.stopped) == (len(found), True, found.stopped)
    close(loaded.losses[-1], -found[-1] / len(rows), 1e-14)
    assert assess(loaded.training).converged
    close(zoo.evaluate(loaded, rows, draws=50).elbo, zoo.evaluate(found, rows, draws=50).elbo, 1e-12)
    zoo.plots.loss(loaded)


def test_the_record_says_how_em_went(rows):
    found = zoo.em(zoo.GMM(3, 2).double(), rows, steps=3)
    assert (found.steps, found.converged, found.stopped) == (3, False, "all 3 steps are used up")
    assert found.settings["optimizer"] == "EM"
    assert found.settings["rows"] == 60
    assert isinstance(found.guide, guides.Exact)
    assert "not converged" in repr(found)


def test_a_run_is_itself_and_a_model_gets_its_posterior(rows):
    found = maximised(rows)
    assert pair_of(found) is run_of(found) is found
    assert isinstance(run_of(found.model).guide, guides.Exact)
    assert run_of(found.model).training is None
    close(zoo.evaluate(found.model, rows).log_marginal, zoo.evaluate(found, rows).log_marginal, 1e-14)


def test_others_are_refused(rows):
    model = zoo.VAE(3, 1)
    for wrong, words in (
        (model, r"VAE has no closed-form posterior to judge it by: pass its run"),
        (zoo.GMM, "got the class GMM: pass a fitted GMM"),
        (rows, "got Tensor: pass a run"),
        (poutine.scale(zoo.GMM(3, 2), 0.5), "no closed-form posterior"),
    ):
        with pytest.raises(TypeError, match=words):
            zoo.evaluate(wrong, rows)


def test_em_needs_no_guide(rows):
    """A model whose posterior cannot be a guide is fitted all the same; judging it then says why it is impossible."""

    class Silent(zoo.PPCA):
        def forward(self, x=None, index=None, size=None):
            raise NotImplementedError("no story yet")

    found = zoo.em(Silent(3, 1).double(), rows)
    close(found[-1], maximum := zoo.em(zoo.PPCA(3, 1).double(), rows)[-1], 1e-9 * abs(float(maximum)))
    with pytest.raises(NotImplementedError, match="no story yet"):
        found.guide(rows)
