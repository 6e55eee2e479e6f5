"""Labels, responsibilities and uncertainty of rows under mixtures, against mclust and in canonical order."""

import numpy as np
import pandas
import pytest
import torch
from helpers import close, random_mixture

import zoo
from guides import Exact, MeanField
from zoo.factors import classify
from zoo.plots.latents import _moments

pytestmark = pytest.mark.usefixtures("own_store")


# By R 4.2.2 and mclust 6.0.0: Mclust(iris[, 1:4], G = 3, modelNames = "VVV") with tolerances of 1e-12.
@pytest.fixture(scope="module")
def by_em():
    data = zoo.data.load("iris", dtype=torch.float64)
    return zoo.em(zoo.GMM(4, 3).double(), data.x), data


def test_labels_and_uncertainty_are_those_of_mclust(by_em):
    run, data = by_em
    found = classify(run, data)
    assert torch.bincount(found.labels).tolist() == [55, 50, 45]
    assert found.uncertainty.mean().item() == pytest.approx(0.009815672535, abs=1e-7)
    assert found.uncertainty.max().item() == pytest.approx(0.3286026303, abs=1e-5)  # log-likelihoods agree to 1e-9
    assert int((found.uncertainty > 0.1).sum()) == 3
    assert found.rand_index(data.labels) == pytest.approx(0.903874, abs=1e-6)
    close(found.responsibilities.sum(1), torch.ones(150).double())


def test_numbers_are_canonical_whatever_the_order_in_the_model(by_em):
    run, data = by_em
    model = zoo.GMM(4, 3).double()
    turned = [2, 0, 1]
    for name in ("weight", "mean", "scale"):
        setattr(model, name, getattr(run.model, name).detach()[turned])
    found, other = classify(run, data), classify(model, data)
    close(found.responsibilities, other.responsibilities)
    assert [turned[j] for j in other.order] == list(found.order)
    same = zoo.to_canonical(model)
    close(same.posterior(data.x).probs.detach(), found.responsibilities)
    np.testing.assert_allclose(_moments(model)[0], same.mean.detach().numpy())  # the ellipses of a plot


def test_the_index_of_a_frame_comes_back(by_em):
    run, data = by_em
    names = [f"flower {i}" for i in range(150)]
    frame = classify(run, pandas.DataFrame(data.x.numpy(), index=names)).frame()
    assert frame["row"].to_list() == names
    assert frame.columns == ["row", "label", "uncertainty", "component 0", "component 1", "component 2"]
    assert classify(run, data.x).frame()["row"].to_list() == list(range(150))


def test_missing_entries_and_learned_guides_are_classified(by_em):
    run, data = by_em
    x = data.x.clone()
    x[torch.rand(x.shape) < 0.2] = torch.nan
    close(classify(run.model, x).responsibilities.sum(1), torch.ones(150).double())
    model = zoo.GMM(4, 3).double()
    fitted = zoo.fit(model, MeanField(model, data.x), data.x, progress=False)
    found = classify(fitted, data.x)
    assert found.rand_index(classify(zoo.Fit(model, Exact(model)), data.x).labels) > 0.99


def test_what_has_no_components_is_refused(iris):
    with pytest.raises(ValueError, match="PPCA has no discrete component per row"):
        classify(zoo.PPCA(4, 2).double(), iris)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\): pass one per row, \(9,\)"):
        classify(random_mixture("full"), torch.randn(9, 3).double()).rand_index([0, 1, 2])
