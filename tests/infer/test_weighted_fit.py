"""Weights of rows in SVI: the bound is that of repeated rows, for every loss that keeps the rows' terms apart."""

import pyro
import pytest
import torch
from helpers import close
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

import guides
import zoo
from zoo import GMM, PPCA, BayesianGMM, BayesianPCA, FactorAnalysis
from zoo.infer import IWAE, AnnealedELBO, FixedDraws, NaturalGradient
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.weighting import weighted, weighted_loss

pytestmark = pytest.mark.usefixtures("own_store")

PAIRS = {
    "Exact": (lambda: PPCA(4, 2), lambda model, x: guides.Exact(model)),
    "MeanField": (lambda: FactorAnalysis(4, 1), guides.MeanField),
    "mixture": (lambda: GMM(4, 2, "diag"), lambda model, x: guides.Exact(model)),
}


@pytest.fixture
def weights(iris):
    return torch.randint(0, 4, (len(iris),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PAIRS)
def test_a_fit_to_weighted_rows_ends_where_one_to_repeated_rows_does(name, iris, weights):
    build, guided = PAIRS[name]
    ends = []
    for x, own in ((iris, weights), (iris.repeat_interleave(weights, dim=0), None)):
        model = build().double()
        torch.manual_seed(0)
        model.initialize(iris)
        run = zoo.fit(model, guided(model, x), x, weights=own, progress=False)
        assert run.converged
        ends.append(run.losses[-1])
    close(*ends, 1e-10)


@pytest.mark.parametrize("build", [lambda: BayesianPCA(4, 2), lambda: BayesianGMM(4, 2)], ids=["PCA", "GMM"])
def test_the_closed_form_of_weighted_rows(build, iris, weights):
    """The guide that coordinate ascent fills has the bound that coordinate ascent reports."""
    model = build().double()
    found = zoo.cavi(model, iris, weights=weights, restarts=1, sweeps=30)
    run = zoo.fit(model, found.guide, iris, weights=weights, steps=1, progress=False)
    gain = -float(found[-1]) - float(run.losses[0] * weights.sum())  # of the rows' own factors, set anew at the end
    assert -1e-6 < gain < 2e-2
    found = zoo.fit(model, found.guide, iris, weights=weights, progress=False)
    assert found.settings["loss"] == "WeightedClosedForm"
    assert found.converged


@pytest.mark.parametrize(
    "loss",
    [Trace_ELBO(), TraceMeanField_ELBO(), QuadratureELBO(), FixedDraws(3), AnnealedELBO(), IWAE(5)],
    ids=lambda loss: type(loss).__name__,
)
def test_every_loss_weights_the_terms_of_rows(loss, iris, weights):
    """With one row of weight 3 and another of weight 0, the loss is the sum of the rows' own losses so often."""
    model, x = FactorAnalysis(4, 1).double(), iris[:3]
    guide = guides.MeanField(model, x)
    guide.initialize(x)

    def total(own):
        with zoo.base.seeded(0):
            return weighted_loss(loss, model, guide, x, torch.tensor(own).double(), "rows")

    parts = [total(own) for own in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    with zoo.base.seeded(0):
        assert sum(parts) == pytest.approx(loss.loss(model, guide, x), rel=1e-10)
    assert total([3.0, 0.0, 0.5]) == pytest.approx(3 * parts[0] + 0.5 * parts[2], rel=1e-10)


def test_minibatches_are_unbiased(iris, weights):
    model = FactorAnalysis(4, 1).double()
    model.initialize(iris)
    guide = guides.Exact(model)
    pair = weighted(model, guide, weights.double(), "rows")
    loss = QuadratureELBO()
    index = torch.arange(150).split(30)
    parts = [loss.loss(*pair, iris[some], some, 150) for some in index]
    assert sum(parts) / len(parts) == pytest.approx(weighted_loss(loss, model, guide, iris, weights, "rows"), rel=1e-10)


def test_recorded_steps_weight_rows_too(iris, weights):
    ends = []
    for capture in (True, False):
        torch.manual_seed(0)
        model = PPCA(4, 2).double()
        guide = guides.Amortized(model, iris)
        options = {"batch_size": 50, "steps": 20, "capture": capture, "progress": False}
        ends.append(zoo.fit(model, guide, iris, weights=weights, loss=Trace_ELBO(), **options).losses)
    close(ends[0], ends[1], 1e-8)


@pytest.mark.parametrize("incomplete", [False, True])
def test_the_best_start_on_weighted_rows(incomplete, iris, weights):
    x = iris.clone()
    x[::7, 1] = torch.nan if incomplete else 1.0

    def build():
        model = PPCA(4, 2).double()
        return model, guides.Exact(model)

    found = zoo.best_of(build, x, seeds=1, weights=weights, progress=False)
    again = zoo.best_of(build, x.repeat_interleave(weights, dim=0), seeds=1, progress=False)
    assert found.table[0].score == pytest.approx(again.table[0].score, rel=1e-9)
    by_em = zoo.best_of(lambda: PPCA(4, 2).double(), x, seeds=1, weights=weights)
    assert by_em.table[0].score == pytest.approx(again.table[0].score, rel=1e-6)
    assert by_em.table[0].elbo == pytest.approx(by_em.table[0].score / float(weights.sum()))


def test_what_cannot_weight_rows_says_so(iris, weights):
    model = GMM(4, 2).double()
    with pytest.raises(ValueError, match="TraceEnum_ELBO does not keep the rows' terms"):
        zoo.fit(model, lambda x=None, index=None, size=None: None, iris, weights=weights, loss=TraceEnum_ELBO())
    bayesian = BayesianPCA(4, 2).double()
    guide = guides.MeanField(bayesian, iris)
    with pytest.raises(ValueError, match="use zoo.cavi, which takes weights"):
        zoo.fit(bayesian, guide, iris, weights=weights, optim=NaturalGradient(guide))
    with pytest.raises(ValueError, match="weights holds -1 in row 1"):
        zoo.fit(model, guides.Exact(model), iris, weights=torch.tensor([1, -1] * 75))
    assert not pyro.get_param_store()


def test_scales_of_columns_count_rows_by_their_weights(iris, weights):
    x = iris.clone()
    x[::5, 2] = torch.nan
    repeated = x.repeat_interleave(weights, dim=0)
    for build in (lambda rows, **own: _started(zoo.VAE(4, 2).double(), rows, own), _network):
        one, other = build(x, weights=weights.double()), build(repeated)
        close(one.columns.shift, other.columns.shift, 1e-10)
        close(one.columns.unit, other.columns.unit, 1e-10)
    counts = torch.poisson(iris)
    for kind in ("poisson", "student_t", "gaussian"):
        models = zoo.VAE(4, 2, likelihood=kind).double(), zoo.VAE(4, 2, likelihood=kind).double()
        models[0].initialize(counts, weights.double())
        models[1].initialize(counts.repeat_interleave(weights, dim=0))
        for one, other in zip(*(model.likelihood.buffers() for model in models), strict=True):
            close(one, other, 1e-10)


def _started(part, rows, own):
    part.initialize(rows, **own)
    return part


def _network(rows, **own):
    return _started(guides.Amortized(zoo.VAE(4, 2).double(), rows), rows, own)


def test_totals_and_sizes_of_weighted_rows(iris, weights):
    repeated = iris.repeat_interleave(weights, dim=0)
    model = PPCA(4, 2).double()
    run = zoo.em(model, iris, weights=weights)
    found, again = zoo.evaluate(run, iris, weights=weights), zoo.evaluate(run, repeated)
    assert found.total == pytest.approx(float(run[-1]), rel=1e-12)
    assert found.summary()["log_marginal"] == pytest.approx(again.summary()["log_marginal"], rel=1e-12)
    options = {"seeds": 1, "folds": None}
    sizes = zoo.select_size(lambda k, rows: PPCA(4, k).double(), iris, [1, 2], weights=weights, **options)
    plain = zoo.select_size(lambda k, rows: PPCA(4, k).double(), repeated, [1, 2], **options)
    for one, other in zip(sizes.table, plain.table, strict=True):
        assert one.bic == pytest.approx(other.bic, rel=1e-8)
    folded = zoo.select_size(lambda k, rows: PPCA(4, k).double(), iris, [1, 2], weights=weights, seeds=1, folds=2)
    assert folded.below(1)[1] > 0
    bayesian = zoo.cavi(BayesianPCA(4, 2).double(), iris, weights=weights, restarts=1, sweeps=5)
    with pytest.raises(ValueError, match="not a sum over rows: leave weights out"):
        zoo.evaluate(bayesian, iris, weights=weights)
