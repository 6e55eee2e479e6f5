"""Rotations against R: ``factanal``, ``varimax`` and ``promax`` of R 4.2.2, GPArotation 2022.10.2, psych 2.2.9.

Loadings are those of Holzinger and Swineford's nine tests, three factors, by maximum likelihood
(``factanal(..., control = list(opt = list(factr = 1)))``); rotations run to eps 1e-7 (geomin 1e-6, varimax 1e-15).
"""

import math

import pytest
import torch
from helpers import ABILITY_NAMES, ability, close

import zoo
from zoo.alignment import rotate
from zoo.alignment.oblique import geomin, gradient_projection, oblimin, starts
from zoo.data import Moments
from zoo.infer import HeywoodCase

pytestmark = pytest.mark.usefixtures("own_store")

R = 2e-6  # R's optimum of the likelihood, and where its rotations end

PROMAX = """
    0.145652129840 0.62390796442 0.008792578243   0.006851888030 0.52823610935 -0.136490464080
    -0.122088135357 0.71611690144 -0.001571195705   0.841001761472 0.01833302616 0.002088344290
    0.895586809724 -0.07466232455 0.007470984288   0.803964469045 0.07687120932 -0.016268358863
    0.047194758819 -0.17740141073 0.736713246433   -0.048386140656 0.08943426504 0.705779290316
    0.002110884555 0.36769221466 0.455003404855"""
PROMAX_3 = """
    0.153735487042 0.61809006061 0.024511930275   0.014290818521 0.51854572468 -0.122496530995
    -0.111058295146 0.70494243198 0.015869539190   0.836146766036 0.03049218700 0.004503547606
    0.889067780333 -0.06037322454 0.007677813635   0.800161390703 0.08733272255 -0.012369639344
    0.044942078386 -0.15876215252 0.727528563527   -0.046248023111 0.10253007073 0.703177743131
    0.007740535728 0.37257710256 0.461074888152"""
QUARTIMIN = """
    0.191035434 0.602039926 0.0309363554   0.043689112 0.505429977 -0.1166239986
    -0.069495443 0.689323689 0.0230703506   0.840473074 0.021761102 0.0053082637
    0.888207654 -0.067434387 0.0075575397   0.807561686 0.077506449 -0.0109305908
    0.043588642 -0.151593863 0.7230976908   -0.032672495 0.104230662 0.7015023513
    0.034825220 0.366063265 0.4631739607"""
OBLIMIN = """
    0.2213317531 0.593709325 0.0497448401   0.0656968585 0.493578314 -0.1012487166
    -0.0330226162 0.674367788 0.0402339785   0.8354575117 0.036517176 0.0189418067
    0.8783406332 -0.049945668 0.0195226124   0.8051539234 0.090212127 0.0038437877
    0.0573139894 -0.133695112 0.7125939470   -0.0059429778 0.115088171 0.6968786048
    0.0672549388 0.368141894 0.4689665805"""
KAISER = """
    0.182440203 0.0679038603 0.594480335   0.035854311 -0.0863912633 0.502281236
    -0.079359750 0.0647398762 0.681238592   0.840089051 0.0084231793 0.020517831
    0.889118947 0.0053829146 -0.067785231   0.806302743 -0.0045741491 0.076028505
    0.048980753 0.7168321442 -0.165546280   -0.031069301 0.7104771036 0.087981177
    0.031576553 0.4872118050 0.351971354"""
GEOMIN = """
    0.187770907 0.604152892 0.0288214196   0.043639410 0.506564021 -0.1191678233
    -0.072593787 0.690957019 0.0198623176   0.839062995 0.024036554 0.0074032535
    0.887049354 -0.065256303 0.0101850352   0.806260930 0.079799992 -0.0092248709
    0.031357880 -0.150176340 0.7262572022   -0.045446335 0.106051331 0.7032420426
    0.025104766 0.368173303 0.4631303049"""
GEOMIN_SMALL = """
    0.1702649964 0.0124513568 0.6105955499   0.0332350557 -0.1412158078 0.5338591805
    -0.0943092015 0.0015396314 0.7050760594   0.8444029560 0.0036527437 0.0091603389
    0.8952947900 0.0089690095 -0.0833633381   0.8102980922 -0.0154604052 0.0690617519
    0.0100444676 0.7750222061 -0.2551541733   -0.0741005561 0.7435564071 0.0113915072
    -0.0021846271 0.4808805497 0.3116414935"""
VARIMAX = """
    0.27700335551 0.62272543069 0.15150616269   0.10452460803 0.48952104358 -0.02660772897
    0.03366085683 0.66264484245 0.13036257097   0.82687999476 0.16520953835 0.09890521688
    0.86097570988 0.08657049722 0.09137327679   0.80112740962 0.21244275600 0.08858415427
    0.09044209427 -0.07270501808 0.69593506910   0.05059628450 0.16177798939 0.70902632205
    0.13155630793 0.40636802123 0.52374731519"""
QUARTIMAX = """
    0.35256399 0.124388953 0.589659190   0.15751845 -0.042324466 0.473983960
    0.11451377 0.113999497 0.656594510   0.84412007 0.055706409 0.071868402
    0.86872658 0.048289148 -0.010246460   0.82336690 0.045588406 0.121543635
    0.11627088 0.692261843 -0.071035442   0.10378204 0.702076362 0.166638818
    0.20242576 0.507811643 0.397371901"""
NONE = (0.0, 0.0, 0.0)
KNOWN = [
    ("varimax", {}, VARIMAX, NONE),
    ("quartimax", {}, QUARTIMAX, NONE),
    ("promax", {}, PROMAX, (0.3993777569, 0.2395023483, 0.3390386084)),
    ("promax", {"power": 3}, PROMAX_3, None),
    ("oblimin", {}, QUARTIMIN, (0.32577211, 0.21643890, 0.27047807)),
    ("oblimin", {"gamma": -0.5}, OBLIMIN, (0.25601898, 0.16456618, 0.21348068)),
    ("oblimin", {"kaiser": True}, KAISER, (0.21644562, 0.33129916, 0.23463646)),
    ("geomin", {}, GEOMIN, (0.32715902, 0.22959990, 0.27767793)),
    ("geomin", {"delta": 0.001}, GEOMIN_SMALL, (0.30615753, 0.37335498, 0.43217539)),
]


def numbers(text):
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64).view(9, 3)


@pytest.fixture(scope="module")
def holzinger():
    return zoo.data.load("holzinger", dtype=torch.float64)


@pytest.fixture(scope="module")
def run(holzinger):
    return zoo.em(zoo.FactorAnalysis(9, 3).double(), holzinger)


@pytest.mark.parametrize(("rotation", "options", "pattern", "correlations"), KNOWN)
def test_rotations_are_those_of_r(run, rotation, options, pattern, correlations):
    found = rotate(run, rotation, **options)
    tolerance = 5e-6 if rotation in ("quartimax", "geomin") else R  # R's search ends earlier there
    close(found.pattern, numbers(pattern), tolerance)
    if correlations is not None:
        close(found.correlations[[0, 0, 1], [1, 2, 2]], torch.tensor(correlations).double(), tolerance)
    assert found.converged
    assert found.near >= min(found.starts, 2)


def early_varimax(loadings, eps):
    """R's ``varimax``: it stops once Kaiser's criterion grows by less than a factor 1 + eps (1e-5 by default)."""
    length = loadings.norm(dim=1, keepdim=True)
    x, rotation, height = loadings / length, torch.eye(loadings.shape[1]).double(), 0.0
    for _ in range(1000):
        z = x @ rotation
        left, values, right = torch.linalg.svd(x.T @ (z**3 - z * z.square().mean(0)))
        rotation, before, height = left @ right, height, float(values.sum())
        if height < before * (1 + eps):
            break
    return loadings @ rotation


def test_what_r_prints_is_a_rotation_stopped_early():
    """The varimax loadings that R prints for ``factanal(factors = 2, covmat = ability.cov)``, to their three digits."""
    model = zoo.FactorAnalysis(6, 2).double()
    run = zoo.to_canonical(zoo.em(model, ability()))
    standard = run.model.weight.detach() / ability().covariance.diagonal().sqrt().unsqueeze(1)
    found = early_varimax(standard, 1e-5)
    printed = (0.499, 0.156, 0.206, 0.109, 0.956, 0.785, 0.543, 0.622, 0.860, 0.468, 0.182, 0.225)
    order = found.square().sum(0).argsort(descending=True)
    close(found[:, order].abs().T.flatten(), torch.tensor(printed).double(), 1e-3)
    exact = early_varimax(standard, 1e-15)
    close(exact[:, order].abs(), rotate(run, "varimax").pattern.abs(), 1e-6)


def test_ability_tests_are_those_of_r():
    """R's ``factanal(factors = 2, covmat = ability.cov)``: uniquenesses, and loadings by ``varimax(eps = 1e-15)``.

    R prints those of ``eps = 1e-5``, which stop before the maximum of the criterion.
    """
    run = zoo.em(zoo.FactorAnalysis(6, 2).double(), ability())
    found = rotate(run, "varimax")
    assert found.columns == ABILITY_NAMES
    close(found.uniquenesses, torch.tensor([0.4552, 0.5893, 0.2182, 0.7694, 0.0524, 0.3336]).double(), 6e-5)
    first = [0.5011376537, 0.1580137737, 0.2084764121, 0.1099949645, 0.9568017596, 0.7854718203]
    second = [0.5418827182, 0.6210470841, 0.8592776179, 0.4674180789, 0.1791050955, 0.2223638593]
    close(found.pattern.T, torch.tensor([first, second]).double(), R)
    printed = [0.499, 0.156, 0.206, 0.109, 0.956, 0.785, 0.543, 0.622, 0.860, 0.468, 0.182, 0.225]
    assert kaisers(found.pattern) > kaisers(torch.tensor(printed).double().view(2, 6).T)


def kaisers(loadings):
    """Kaiser's criterion: the variances of the squared loadings of every factor, columns scaled to length 1."""
    return (loadings / loadings.norm(dim=1, keepdim=True)).square().var(0).sum()


@pytest.mark.parametrize("rotation", ["principal", "varimax", "quartimax", "promax", "oblimin", "geomin"])
def test_rotations_keep_the_covariance(run, rotation):
    found, own = rotate(run, rotation), run.model
    unit = found.scale.unsqueeze(1)
    implied = found.structure @ found.pattern.T + torch.diag(found.uniquenesses)
    close(unit * implied * unit.T, zoo.alignment.covariance(own), 1e-12)
    close(found.communalities + found.uniquenesses, torch.ones(9).double(), 1e-12)
    close(found.correlations, found.transform.T @ found.transform, 1e-12)
    close(found.correlations.diagonal(), torch.ones(3).double(), 1e-12)
    close(unit * found.pattern @ found.transform.T, own.weight.detach(), 1e-12)
    assert (found.sums_of_squares.diff() <= 0).all()
    close(found.sums_of_squares.sum(), found.communalities.sum(), 1e-10)
    assert (found.pattern.gather(0, found.pattern.abs().argmax(0, keepdim=True)) > 0).all()
    assert found.oblique == (rotation in ("promax", "oblimin", "geomin"))


@pytest.mark.parametrize("rotation", ["varimax", "promax", "oblimin", "geomin"])
def test_a_rotated_model_has_the_same_factors(run, rotation):
    """Whatever the rotation and order in which the model holds its factors, and the units of its columns."""
    want = rotate(run, rotation)
    turned = zoo.alignment.Alignment(rotation=torch.linalg.qr(torch.randn(3, 3).double()).Q).apply(run.model)
    turned.weight = turned.weight * torch.logspace(-3, 3, 9).double().unsqueeze(1)
    turned.scale, turned.least = (
        turned.scale * torch.logspace(-3, 3, 9).double(),
        turned.least * torch.logspace(-6, 6, 9).double(),
    )
    found = rotate(turned, rotation, seed=1)
    close(found.pattern, want.pattern, 1e-6)
    close(found.correlations, want.correlations, 1e-6)


@pytest.mark.parametrize("criterion", [oblimin(0.0), oblimin(-1.0), geomin(0.01)])
def test_gradients_of_criteria(criterion):
    pattern = torch.randn(2, 5, 3).double().numpy()
    change, step = torch.randn(2, 5, 3).double().numpy(), 1e-6
    above, below = criterion(pattern + step * change)[0], criterion(pattern - step * change)[0]
    close(torch.tensor((above - below) / (2 * step)), torch.tensor((criterion(pattern)[1] * change).sum((1, 2))), 1e-7)


def test_perfect_simple_structure_is_found():
    """Loadings of one factor per column, and correlated factors: oblimin has its minimum, 0, there."""
    pattern = torch.zeros(9, 3).double()
    for j in range(3):
        pattern[3 * j : 3 * j + 3, j] = torch.tensor([0.9, 0.8, 0.7])
    phi = torch.full((3, 3), 0.4).double().fill_diagonal_(1.0)
    loadings = (pattern @ torch.linalg.cholesky(phi)).numpy()
    turn, near, converged = gradient_projection(loadings, oblimin(0.0), starts(3, 10, 0))
    assert converged
    assert near >= 1
    found = torch.tensor(loadings) @ torch.linalg.inv(torch.tensor(turn)).T
    close(found.abs().amax(1), pattern.amax(1), 1e-6)
    close(torch.tensor(turn.T @ turn).abs(), phi, 1e-6)


def test_models_runs_and_ppca(run, holzinger):
    close(rotate(run.model, "oblimin").pattern, rotate(run, "oblimin").pattern, 1e-12)
    assert rotate(run.model).columns == tuple(f"x{j}" for j in range(9))
    close(rotate(zoo.em(zoo.PPCA(9, 1).double(), holzinger), "oblimin").correlations, torch.ones(1, 1).double(), 0.0)
    with pytest.raises(TypeError, match="symmetries of GMM are unknown"):
        rotate(zoo.GMM(9, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": "equamax"}, "rotation must be one of principal, varimax"),
        ({"gamma": 1.5}, "gamma is out of range, got 1.5"),
        ({"delta": 0.0}, "delta is out of range"),
        ({"power": 1}, "power is out of range"),
        ({"starts": 0}, "starts must be a whole number of at least 1"),
    ],
)
def test_refusals(run, options, message):
    with pytest.raises(ValueError, match=message):
        rotate(run, **options)


def test_table_is_that_of_psych(run):
    """psych's ``print(fa(x, 3, fm = "ml", rotate = "oblimin"), cut = .3, sort = TRUE)``, to two digits."""
    found = rotate(run, "oblimin")
    lines = [line.split() for line in found.table(digits=2).splitlines()]
    assert lines[1] == ["factor", "0", "1", "2", "h2", "u2", "com"]
    assert lines[2] == ["x5", "0.89", "0.76", "0.24", "1.01"]
    assert lines[10] == ["x9", "0.37", "0.46", "0.46", "0.54", "1.91"]
    assert ["SS", "loadings", "2.24", "1.34", "1.28"] in lines
    assert ["cumulative", "var", "0.25", "0.40", "0.54"] in lines
    assert ["1", "0.33", "1.00", "0.27"] in lines
    assert str(found) == found.table()
    plain = found.table(cutoff=0, sort=False).splitlines()
    assert plain[2].split()[:4] == ["x1", "0.19", "0.60", "0.03"]
    close(found.complexity[[0, 8]], torch.tensor([1.2051201, 1.9118141]).double(), 3e-5)  # at psych's own optimum
    close(found.sums_of_squares, torch.tensor([2.23735051, 1.33777099, 1.27954885]).double(), 3e-5)


def test_frames(run):
    found = rotate(run, "promax")
    frame = found.frame()
    assert frame.columns == ["column", "factor 0", "factor 1", "factor 2", "communality", "uniqueness", "complexity"]
    assert frame["column"].to_list() == [f"x{j}" for j in range(1, 10)]
    close(
        torch.tensor(found.frame("structure")["factor 1"].to_list(), dtype=torch.float64), found.structure[:, 1], 1e-12
    )
    assert found.variance()["cumulative"][2] == pytest.approx(found.summary()["explained"], rel=1e-9)
    assert found.correlation_frame().columns == ["factor", "factor 0", "factor 1", "factor 2"]
    with pytest.raises(ValueError, match="which must be 'pattern' or 'structure'"):
        found.frame("both")


def test_heywood_cases_and_factors_in_excess_are_named():
    correlation = [[1, 0.9, 0.9, 0.2], [0.9, 1, 0.72, 0.2], [0.9, 0.72, 1, 0.2], [0.2, 0.2, 0.2, 1]]
    moments = Moments.from_correlation(correlation, n=100, columns=["a", "b", "c", "d"])
    with pytest.warns(HeywoodCase, match=r"the uniqueness of column 0 \('a'\) is at its floor"):
        run = zoo.em(zoo.FactorAnalysis(4, 1).double(), moments)
    found = rotate(run, "varimax")
    assert found.at_floor == ("a",)
    assert math.isclose(float(found.uniquenesses[0]), 0.005, rel_tol=1e-2)
    assert "Heywood case: the uniqueness of 'a' is at its floor" in str(found)
    assert not found.excess
    found = rotate(zoo.em(zoo.FactorAnalysis(4, 2).double(), moments), "varimax")
    assert found.excess
    assert "2 factors of 4 columns have more parameters than there are covariances" in found.table()
