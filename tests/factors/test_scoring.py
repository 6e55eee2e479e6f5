"""Factor scores against brute force and R."""

import math

import pandas
import pytest
import torch
from helpers import close

import zoo
from zoo.alignment import rotate
from zoo.data import as_dataset
from zoo.factors import scores

# R 4.2.2: promax and varimax of ``factanal``'s loadings L, z = scale(x): z solve(cor(x), L) Phi, and
# z U^-1 L (L' U^-1 L)^-1; columns in the order of the factors here.
PROMAX = [
    [-0.04654988893, -0.6761623368, -0.07954003422],
    [-1.00567229390, 0.4000404566, 0.73739552867],
    [-1.89330800849, -0.8367286760, -1.30241100495],
]
VARIMAX = [
    [0.1725775859, -1.12235659268, 0.1041565955],
    [-1.4895223012, 0.79596527844, 1.1487112160],
    [-1.9847999906, -0.02984664438, -1.4719821015],
]


@pytest.fixture(scope="module")
def holzinger():
    return zoo.data.load("holzinger", dtype=torch.float64)


@pytest.fixture(scope="module")
def run(holzinger):
    return zoo.em(zoo.FactorAnalysis(9, 3).double(), holzinger)


def test_scores_are_those_of_r(run, holzinger):
    divisor = math.sqrt(300 / 301)  # R standardises by the divisor n - 1
    found = scores(run, holzinger, rotation="promax")
    close(divisor * found.values[:3], torch.tensor(PROMAX).double(), 5e-6)
    found = scores(run, holzinger, rotation="varimax", method="bartlett")
    close(divisor * found.values[:3], torch.tensor(VARIMAX).double(), 5e-6)


def test_scores_by_their_definitions(run, holzinger):
    rotated = rotate(run, "oblimin")
    centred, model = holzinger.x - run.model.mean.detach(), zoo.alignment.covariance(run)
    loadings, weight = rotated.scale.unsqueeze(1) * rotated.pattern, 1 / run.model.noise.detach()
    thurstone = centred @ torch.linalg.solve(model, loadings @ rotated.correlations)
    close(scores(run, holzinger, rotation=rotated).values, thurstone, 1e-9)
    inverse = torch.linalg.inv((loadings.T * weight) @ loadings)
    bartlett = (centred * weight) @ loadings @ inverse
    close(scores(run, holzinger, rotation=rotated, method="bartlett").values, bartlett, 1e-9)


def test_scores_of_incomplete_rows(run, holzinger):
    """A row with a missing entry is scored by its other columns alone, one with fewer of them than factors is not."""
    x = holzinger.x[:4].clone()
    x[1, 3] = math.nan
    x[2, 2:] = math.nan
    x[3] = math.nan
    found = scores(run, x, method="bartlett")
    assert found.values.isnan().any(1).tolist() == [False, False, True, True]
    kept = [j for j in range(9) if j != 3]
    part = zoo.FactorAnalysis(8, 3).double()
    own = run.model
    part.weight, part.mean, part.scale = own.weight[kept].detach(), own.mean[kept].detach(), own.noise[kept].sqrt()
    turn = found.rotated.transform
    q = part.posterior(holzinger.x[1:2, kept])
    precision = torch.linalg.inv(q.covariance_matrix)
    information = precision - torch.eye(3).double()
    want = torch.linalg.solve(information, precision @ q.mean.unsqueeze(-1)).squeeze(-1) @ turn
    close(found.values[1:2], want.detach(), 1e-8)
    assert found.summary() == {"rows": 4.0, "factors": 3.0, "missing": 2.0}
    assert not scores(run, x).values.isnan().any()


def test_frame_has_the_names_of_the_rows(run, holzinger):
    frame = pandas.DataFrame(holzinger.x[:3].numpy(), columns=holzinger.columns, index=["a", "b", "c"])
    for rows in (frame, as_dataset(frame)):
        found = scores(run, rows, rotation="geomin").frame()
        assert found.columns == ["row", "factor 0", "factor 1", "factor 2"]
        assert found["row"].to_list() == ["a", "b", "c"]
    assert scores(run, holzinger.x[:2]).frame()["row"].to_list() == [0, 1]


def test_refusals(run, holzinger):
    with pytest.raises(ValueError, match="method must be 'regression' or 'bartlett'"):
        scores(run, holzinger, method="anderson")
    other = rotate(zoo.em(zoo.PPCA(9, 2).double(), holzinger))
    with pytest.raises(ValueError, match="rotation is of 9 columns and 2 factors"):
        scores(run, holzinger, rotation=other)
    with pytest.raises(ValueError, match="put them into this order"):
        scores(run, pandas.DataFrame(holzinger.x.flip(1).numpy(), columns=holzinger.columns[::-1]))
    with pytest.raises(TypeError, match="symmetries of GMM"):
        scores(zoo.GMM(9, 2), holzinger)
