"""The product of experts: exact for linear-Gaussian models under every pattern of missing entries."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import zoo
from guides import Amortized, CannotServe, Potential
from zoo.base.module import Module
from zoo.base.plates import rows

ALGEBRA = 1e-10


@pytest.fixture(scope="module")
def tests():
    """Holzinger-Swineford's nine tests (301, 9), 30% of the entries missing at random."""
    x = zoo.data.load("holzinger").x.double()
    return torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3, math.nan, x)


def fitted(x, k):
    model = zoo.FactorAnalysis(x.shape[1], k).double()
    zoo.em(model, x)
    return model.requires_grad_(False)


def gap(model, guide, x):
    """KL(q || p(z | x)) of every row, in closed form."""
    return model.log_marginal(x) - model.elbo(x, guide.posterior(x))


@pytest.mark.parametrize("kind", [zoo.FactorAnalysis, zoo.PPCA])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_placed_on_the_parameters_it_is_the_posterior(kind, share, tests):
    x = tests.nan_to_num(4.0)
    x = torch.where(torch.rand(x.shape) < share, math.nan, x)
    model = kind(9, 3).double()
    model.initialize(x)
    guide = Potential(model, x)
    assert gap(model, guide, x).max() > 0.1
    guide.place(model)
    assert gap(model, guide, x).abs().max() < 1e-8
    q, exact = guide.posterior(x), model.posterior(x)
    torch.testing.assert_close(q.mean, exact.mean, rtol=ALGEBRA, atol=ALGEBRA)
    torch.testing.assert_close(q.covariance_matrix, exact.covariance_matrix, rtol=ALGEBRA, atol=ALGEBRA)
    assert not guide.fresh  # so that a fit goes on from there


@pytest.mark.parametrize("k", [2, 3])
def test_training_reaches_the_posterior_where_amortized_does_not(k, tests):
    model = fitted(tests, k)
    guide = Potential(model, tests)
    run = zoo.fit(model, guide, tests, progress=False)
    assert run.converged
    assert gap(model, guide, tests).mean() < 1e-4
    network = Amortized(model, tests, hidden=(), covariance="full")
    zoo.fit(model, network, tests, progress=False)
    left = gap(model, network, tests).mean()
    print(f"\n{k} factors, gap in nats per row: Potential {gap(model, guide, tests).mean():.1e}, Amortized {left:.3f}")
    assert left > 0.1


def test_trained_along_with_the_model_it_reaches_maximum_likelihood(tests):
    reference = fitted(tests, 3)
    model = zoo.FactorAnalysis(9, 3).double()
    run = zoo.fit(model, Potential(model, tests), tests, progress=False)
    assert gap(model, run.guide, tests).mean() < 1e-4
    assert reference.log_marginal(tests).mean() - model.log_marginal(tests).mean() < 1e-4
    evaluation = zoo.evaluate(run, tests, draws=50)
    assert abs(evaluation.summary()["gap"]) < 1e-4


def test_a_row_without_any_entry_has_the_prior(tests):
    x = tests.clone()
    x[3] = math.nan
    model = zoo.FactorAnalysis(9, 2).double()
    model.initialize(x)
    for options in ({}, {"hidden": (4,)}, {"hidden": (4,), "blocks": [range(6), range(6, 9)]}):
        guide = Potential(model, x, **options)
        guide.initialize(x)
        q = guide.posterior(x)
        assert torch.equal(q.mean[3], torch.zeros(2).double())
        torch.testing.assert_close(q.covariance_matrix[3], torch.eye(2).double())


NETWORKS = {
    "columns": {},
    "views": {"blocks": [[0, 2, 4, 6, 8], [1, 3, 5, 7]]},
    "rank": {"blocks": [range(3), range(3, 9)], "rank": 1, "activation": "tanh"},
    "gated": {"blocks": [range(9)], "gated": True, "normalize": True, "masked": False},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_start_near_the_prior_learn_and_come_back(name, tests, tmp_path):
    model = zoo.VAE(9, 2, hidden=(8,), likelihood="student_t").double() if name == "views" else fitted(tests, 2)
    guide = Potential(model, tests, hidden=(8,), **NETWORKS[name])
    q = guide.posterior(tests)
    assert q.mean.abs().max() < 1.5
    for row in (0, 7):  # a row is read by itself
        torch.testing.assert_close(guide.posterior(tests[row : row + 1]).mean[0], q.mean[row], rtol=1e-8, atol=1e-8)
    run = zoo.fit(model, guide, tests, steps=80, progress=False, optim=pyro.optim.Adam({"lr": 0.02}))
    assert run.losses[-10:].mean() < run.losses[:5].mean()
    back = zoo.load(run.save(tmp_path / "run"))
    assert torch.equal(back.guide.posterior(tests).mean, guide.posterior(tests).mean)
    found = zoo.evaluate(back, tests[:20], draws=50)
    assert found.elbo.isfinite().all()
    assert zoo.to_arviz(run, tests[:20], draws=10).posterior["z"].shape == (1, 10, 20, 2)


def test_networks_of_one_block_see_which_entries_are_missing(tests):
    model = fitted(tests, 2)
    guide = Potential(model, tests, hidden=(8,), blocks=[range(9)])
    filled = torch.where(tests.isnan(), guide.columns.shift, tests)
    differs = (guide.posterior(filled).mean - guide.posterior(tests).mean).abs().amax(1) > 1e-10
    assert torch.equal(differs, tests.isnan().any(1))


def test_the_linear_form_comes_back_and_serves_other_rows(tests, tmp_path):
    model = zoo.PPCA(9, 2).double()
    run = zoo.fit(model, Potential(model, tests[:200]), tests[:200], steps=30, progress=False)
    back = zoo.load(run.save(tmp_path / "run"))
    assert torch.equal(back.guide.posterior(tests).mean, run.guide.posterior(tests).mean)
    batch = zoo.fit(model, back.guide, tests, steps=5, batch_size=50, progress=False)  # in minibatches as well
    assert batch.losses.isfinite().all()


class Latents(Module):
    """One site z per row of a chosen prior, and perhaps a second one, under a linear mean."""

    missing = True

    def __init__(self, prior, more=None):
        super().__init__()
        self.__dict__["draw"], self.__dict__["more"] = prior, more

    def forward(self, x=None, index=None, size=None):
        level = pyro.sample("level", dist.Normal(torch.zeros(()).double(), 1.0))
        with rows(x, index, size):
            z = pyro.sample("z", self.draw(level))
            if self.more is not None:
                pyro.sample("y", self.more)
            mean = z.sum(-1, keepdim=True) + level.unsqueeze(-1)
            return pyro.sample("x", dist.Normal(mean.expand(*mean.shape[:-1], 9), 1.0).to_event(1), obs=x)


def normal(loc=0.0, scale=1.0):
    one = torch.ones(2).double()
    return dist.Normal(loc * one, scale * one).to_event(1)


def around(level):
    return dist.Normal(level.unsqueeze(-1).expand(*level.shape, 2), 1.0).to_event(1)


def test_shared_sites_have_a_part_of_their_own(tests):
    model, x = Latents(lambda level: normal()), tests.nan_to_num(4.0)
    for shared in ("mean_field", "full_rank"):
        guide = Potential(model, x, shared=shared)
        run = zoo.fit(model, guide, x, steps=50, progress=False)
        assert zoo.evaluate(run, x[:40], draws=30).shared.sites == ("level",)


REFUSALS = {
    "shifted": (lambda: Latents(lambda level: normal(1.0)), "z", "has another prior"),
    "wide": (lambda: Latents(lambda level: normal(0.0, 2.0)), "z", "has another prior"),
    "hierarchical": (lambda: Latents(around), "z", "has another prior"),
    "positive": (
        lambda: Latents(lambda level: dist.Gamma(2 * torch.ones(2).double(), 1.0).to_event(1)),
        "z",
        "is constrained to",
    ),
    "two": (lambda: Latents(lambda level: normal(), normal()), "y", "is one of 2"),
    "mixture": (lambda: zoo.GMM(9, 2).double(), "component", "is discrete"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_site_reason_and_way_out(case, tests):
    build, site, reason = REFUSALS[case]
    with pytest.raises(CannotServe, match=rf"Potential cannot serve .*'{site}' {reason}.*Amortized") as caught:
        Potential(build(), tests.nan_to_num(4.0))
    assert caught.value.site == site


def test_options_are_checked(tests):
    model = zoo.FactorAnalysis(9, 2).double()
    for blocks in ([range(8)], [range(9), [0]], [range(9), []], [range(10)]):
        with pytest.raises(ValueError, match="blocks must hold each of the columns 0 to 8 once"):
            Potential(model, tests, hidden=(4,), blocks=blocks)
    with pytest.raises(ValueError, match="blocks describes networks, and hidden=None has none"):
        Potential(model, tests, blocks=[range(9)])
    with pytest.raises(ValueError, match="rank must be a whole number"):
        Potential(model, tests, hidden=(4,), rank=0)
    with pytest.raises(ValueError, match="pass x"):
        Potential(model, tests)(size=5)
    guide = Potential(model, tests)
    for call in (guide, guide.posterior):
        with pytest.raises(ValueError, match="x has 3 columns, Potential was built for 9"):
            call(tests[:, :3])
    with pytest.raises(ValueError, match=r"loadings of PPCA are \(9, 3\), those of this Potential \(9, 2\)"):
        guide.place(zoo.PPCA(9, 3).double())
    with pytest.raises(TypeError, match="place takes a linear-Gaussian model"):
        guide.place(zoo.GMM(9, 3))
    with pytest.raises(ValueError, match="this Potential has networks"):
        Potential(model, tests, hidden=(4,)).place(model)
