"""Bounds without noise beside quadrature: in closed form, and over fixed draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam

import guides
import zoo
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.fixed_draws import FixedDraws, inflation, least_draws


def conjugate_pairs(iris, faithful):
    for model, x in (
        (zoo.BayesianPCA(4, 2).double(), iris),
        (zoo.BayesianFactorAnalysis(4, 2).double(), iris),
        (zoo.BayesianGMM(2, 3, "full", means="independent").double(), faithful),
        (zoo.BayesianGMM(2, 3, "diag", means="coupled").double(), faithful),
        (zoo.BayesianGMM(2, 3, "tied", proportions="sticks").double(), faithful),
    ):
        model.initialize(x)
        guide = guides.MeanField(model, x, family="conjugate").double()
        guide.initialize(x)
        yield model, guide, x


def test_closed_form_is_the_bound_of_its_draws(iris, faithful):
    for model, guide, x in conjugate_pairs(iris, faithful):
        run = zoo.Fit(model, guide)
        found = zoo.evaluate(run, x, draws=1000).shared
        with run.scope():
            expected = -ClosedFormELBO().loss(model, guide, x)
        assert abs(found.total - expected) < 5 * found.total_se


def test_closed_form_is_unbiased_on_minibatches(iris, faithful):
    for model, guide, x in conjugate_pairs(iris, faithful):
        order = torch.randperm(len(x))
        with pyro.get_param_store().scope():
            whole = ClosedFormELBO().loss_and_grads(model, guide, x)
            gradients = [p.grad.clone() for p in guide.parameters()]
            guide.zero_grad()
            parts = order.view(-1, 2)
            losses = [ClosedFormELBO().loss_and_grads(model, guide, x[i], i, len(x)) for i in parts]
        assert sum(losses) / len(parts) == pytest.approx(whole, rel=1e-12)
        for p, expected in zip(guide.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad / len(parts), expected, rtol=1e-9, atol=1e-9)
        guide.zero_grad()


def test_closed_form_in_plain_svi_and_in_single_precision(iris):
    x = iris.float()
    model = zoo.BayesianPCA(4, 1)
    guide = guides.MeanField(model, x)
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, Adam({"lr": 0.05}), ClosedFormELBO())
        losses = [svi.step(x) for _ in range(50)]
    assert losses[-1] < losses[0]


def test_closed_form_is_the_default_and_reaches_the_bound_of_cavi(iris):
    x = iris - iris.mean(0)
    model = zoo.BayesianPCA(4, 1, mean=False).double()
    guide = guides.MeanField(model, x)
    assert zoo.plan(model, guide, x).summary()["loss"] == "ClosedFormELBO"
    run = zoo.fit(model, guide, x, progress=False)
    assert run.converged
    assert -run.losses[-1] * len(x) == pytest.approx(-502.2193962, abs=1e-4)


def test_closed_form_refuses_other_pairs_by_name(iris):
    bayes, plain = zoo.BayesianPCA(4, 1).double(), zoo.PPCA(4, 1).double()
    loss = ClosedFormELBO()
    with pytest.raises(ValueError, match="PPCA, which is not conditionally conjugate.*use Trace_ELBO"):
        zoo.fit(plain, guides.MeanField(plain, iris), iris, loss=loss, steps=1, progress=False)
    with pytest.raises(ValueError, match="guide MeanField, which does not hold factors.*family='conjugate'"):
        loss.loss(bayes, guides.MeanField(bayes, iris, family="gaussian"), iris)
    with pytest.raises(ValueError, match="handler that changes its density"):
        loss.loss(poutine.scale(bayes, 0.5), guides.MeanField(bayes, iris), iris)


def test_fixed_draws_take_a_line_search_to_their_optimum(some):
    model = zoo.BayesianFactorAnalysis(4, 1).double()
    guide = guides.MeanField(model, some, family="gaussian").double()
    loss = FixedDraws(20)
    run = zoo.fit(model, guide, some, loss=loss, steps=800, progress=False)
    assert run.settings["optimizer"] == "LBFGS"
    assert (run.losses.diff() <= 1e-9).all()
    with run.scope():
        first = loss.loss(model, guide, some)
        assert first == loss.loss(model, guide, some)
    assert first / len(some) <= run.losses[-1] + 1e-9


def test_fixed_draws_count_the_plates_of_the_model(some):
    def model(x=None, index=None, size=None):
        with pyro.plate("features", 4, dim=-2):
            slope = pyro.sample("slope", dist.Normal(some.new_zeros(()), 1.0))  # (4, 1)
        with zoo.base.rows(x, index, size):
            z = pyro.sample("z", dist.Normal(some.new_zeros(()), 1.0))  # (n,)
            loc = (slope * z).mT if slope.ndim == 2 else (slope * z.unsqueeze(-2)).mT
            pyro.sample("x", dist.Normal(loc.reshape(*loc.shape[:-2], *loc.shape[-2:]), 1.0).to_event(1), obs=x)

    guide = guides.MeanField(model, some)
    one, other = FixedDraws(3), FixedDraws(3)
    with pyro.get_param_store().scope():
        assert one.loss(model, guide, some) == one.loss(model, guide, some) == other.loss(model, guide, some)
    assert one.max_plate_nesting == 3  # features, rows and the draws


def regression(x=None, index=None, size=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))  # (3,)
    with zoo.base.rows(x, index, size):
        pyro.sample("x", dist.Normal(weight, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda m, x: guides.FullRank(m, x),
            "couples the 3 latent numbers that all rows share.*no maximum.*FixedDraws.29.",
        ),
        (lambda m, x: AutoMultivariateNormal(m), "couples the 3 latent numbers that all rows share"),
    ],
)
def test_fixed_draws_refuse_to_be_bent_around(make, words):
    x = torch.randn(20, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=words):
        zoo.fit(regression, make(regression, x), x, loss=FixedDraws(3), steps=1, progress=False)


def test_fixed_draws_refuse_flows_and_full_ranks_of_rows(some):
    model = zoo.PPCA(4, 3).double()
    for guide in (guides.Flow(model, some), guides.FullRank(model, some)):
        for draws, words in ((3, "has no maximum"), (5, "several times too large"), (28, "about 1.10 times too large")):
            with pytest.raises(ValueError, match=f"couples the 3 latent numbers of each row.*{words}.*FixedDraws.29."):
                zoo.fit(model, guide, some, loss=FixedDraws(draws), steps=1, progress=False)
        zoo.fit(model, guide, some, loss=FixedDraws(29), steps=1, progress=False)


def test_the_least_number_of_draws_keeps_deviations_within_a_tenth():
    for numbers in (2, 3, 13, 100):
        least = least_draws(numbers)
        assert inflation(numbers, least) <= 1.1 < inflation(numbers, least - 1)
    assert inflation(3, 5) == math.inf


def test_a_full_rank_guide_overstates_covariances_as_the_formula_says():
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = 1 / 21  # variance of each weight under the posterior: prior 1, 20 rows of noise 1
    ratios = []
    for seed in range(12):
        guide = guides.FullRank(regression, x)
        run = zoo.fit(regression, guide, x, loss=FixedDraws(29, seed), progress=False)
        with torch.no_grad(), run.scope():
            root = guide.shared.scale_tril
        ratios.append(float((root @ root.mT).trace()) / (3 * truth))
    found = torch.tensor(ratios)
    assert abs(found.mean() - inflation(3, 29) ** 2) < 4 * found.std() / len(found) ** 0.5
    assert found.mean() > 1 + 3 * found.std() / len(found) ** 0.5


def test_fixed_draws_refuse_rejection_discrete_sites_and_minibatches(some, faithful):
    bayes = zoo.BayesianPCA(4, 1).double()
    with pytest.raises(ValueError, match="Gamma are taken by rejection.*family='gaussian'"):
        zoo.fit(bayes, guides.MeanField(bayes, some), some, loss=FixedDraws(), steps=1, progress=False)
    mixture = zoo.GMM(2, 2).double()
    with pytest.raises(ValueError, match="site 'component'.*not reparametrised"):
        zoo.fit(mixture, guides.MeanField(mixture, faithful), faithful, loss=FixedDraws(), steps=1, progress=False)
    guide = guides.MeanField(bayes, some, family="gaussian")
    with pytest.raises(ValueError, match="FixedDraws uses the same draws.*batch_size=None"):
        zoo.fit(bayes, guide, some, loss=FixedDraws(), batch_size=10, steps=1, progress=False)
    zoo.fit(bayes, AutoNormal(bayes), some, loss=FixedDraws(3), steps=1, progress=False)
