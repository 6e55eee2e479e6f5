"""q for new rows with a held model, against the closed-form posterior and the factors of the fit."""

import pytest
import torch

import guides
import zoo
from zoo.infer import infer


@pytest.fixture(scope="module")
def x():
    return zoo.data.load("iris", dtype=torch.float64).x


@pytest.mark.parametrize("family", [guides.FullRank, guides.MeanField])
def test_the_guide_of_new_rows_is_the_best_one_and_the_model_is_held(x, family):
    model = zoo.FactorAnalysis(4, 1).double()
    run = zoo.fit(model, family(model, x[:90]), x[:90], progress=False)
    before = [p.detach().clone() for p in model.parameters()]
    new = infer(run, x[90:])
    assert new.guide.count == 60
    assert torch.allclose(new.guide.posterior(x[90:]).mean, model.posterior(x[90:]).mean, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, new.model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_a_guide_for_any_rows_serves_as_it_is(x):
    model = zoo.PPCA(4, 2).double()
    run = zoo.fit(model, guides.Exact(model), x, steps=2, progress=False)
    assert infer(run, x[:5]) is run


@pytest.mark.parametrize("build", [lambda: zoo.BayesianPCA(4, 2), lambda: zoo.BayesianGMM(4, 2)], ids=["pca", "gmm"])
def test_conjugate_factors_of_the_rows_of_the_fit_are_found_again(x, build):
    model = build().double()
    run = zoo.cavi(model, x, restarts=1)
    again = infer(run, x)
    new, old = again.guide.posterior(x), run.guide.posterior(x)
    names = ("probs",) if isinstance(model, zoo.BayesianGMM) else ("mean", "covariance_matrix")
    for name in names:  # up to what one more sweep moves
        assert torch.allclose(getattr(new, name), getattr(old, name), rtol=1e-5, atol=1e-4)
    for site in run.guide.conjugate.latents:
        if not site.local:
            held = (run.guide.conjugate.part(site), again.guide.conjugate.part(site))
            assert all(torch.equal(a, b) for a, b in zip(*(part.parameters() for part in held), strict=True))
    assert infer(run, x[:7]).guide.posterior(x[:7]).batch_shape == (7,)


def test_gaussian_factors_of_shared_sites_are_held(x):
    model = zoo.BayesianPCA(4, 1).double()
    run = zoo.fit(model, guides.MeanField(model, x, family="gaussian"), x, steps=5, progress=False)
    new = infer(run, x[:20], steps=5)
    assert torch.equal(new.guide.shared.loc, run.guide.shared.loc)
    assert run.guide.shared.loc.requires_grad


def test_a_guide_of_another_kind_is_refused(x):
    model = zoo.PPCA(4, 1).double()
    run = zoo.fit(model, guides.FullRank(model, x), x, steps=2, progress=False)
    turned = zoo.to_canonical(run)
    with pytest.raises(TypeError, match="holds 150 rows and cannot be built anew"):
        infer(turned, x[:5])
