"""A covariance or correlation matrix with n in place of rows: the same estimates, and R's."""

import polars
import pytest
import torch
from helpers import ABILITY, ABILITY_NAMES, ability, close

import zoo
from zoo import PPCA, FactorAnalysis
from zoo.base.moments import Moments
from zoo.diagnostics import information_criteria

pytestmark = pytest.mark.usefixtures("own_store")


def uniquenesses(model):
    return model.noise / (model.noise + model.weight.square().sum(1))


@pytest.mark.parametrize("build", [lambda: PPCA(4, 2), lambda: FactorAnalysis(4, 1)], ids=["PPCA", "FactorAnalysis"])
def test_moments_are_as_good_as_rows(build, iris):
    one, other = build().double(), build().double()
    n = len(iris)
    given = Moments.from_covariance(torch.cov(iris.T), n, mean=iris.mean(0))
    found, again = zoo.em(one, given), zoo.em(other, iris)
    close(found[-1], again[-1], 1e-10)
    close(one.weight @ one.weight.T, other.weight @ other.weight.T, 1e-10)
    close(one.noise, other.noise, 1e-10)
    close(one.mean, other.mean, 1e-10)
    assert (found.converged, found.settings["rows"]) == (True, n)
    criteria, rows = information_criteria(one, given), information_criteria(other, iris)
    assert (criteria.n, criteria.df) == (rows.n, rows.df)
    assert criteria.bic == pytest.approx(rows.bic, rel=1e-10)
    one.initialize(given), other.initialize(given)
    plain = zoo.em(one, given, accelerate=False, tol=1e-12), zoo.em(other, given)
    close(plain[0][-1], plain[1][-1], 1e-6)


def test_factanal_of_a_covariance_matrix():
    """R 4.3: factanal(factors = 2, covmat = ability.cov)."""
    model = FactorAnalysis(6, 2).double()
    assert zoo.em(model, ability()).converged
    expected = torch.tensor([0.4552, 0.5893, 0.2182, 0.7694, 0.0524, 0.3336]).double()
    close(uniquenesses(model), expected, 1e-3)


def test_a_correlation_matrix_gives_the_same_uniquenesses():
    unit = ABILITY.diagonal().sqrt()
    model, other = FactorAnalysis(6, 2).double(), FactorAnalysis(6, 2).double()
    zoo.em(model, Moments.from_correlation(ABILITY / torch.outer(unit, unit), n=112))
    zoo.em(other, ability())
    close(uniquenesses(model), uniquenesses(other), 1e-5)
    close(model.noise + model.weight.square().sum(1), torch.ones(6).double(), 1e-5)


def test_names_and_divisor():
    frame = polars.DataFrame(ABILITY.numpy(), schema=list(ABILITY_NAMES))
    assert Moments.from_covariance(frame, n=112).columns == ABILITY_NAMES
    close(Moments.from_covariance(ABILITY, n=112).covariance, ABILITY * 111 / 112)
    close(Moments.from_covariance(ABILITY, n=112, divisor="n").covariance, ABILITY)
    assert repr(ability()) == "Moments of 112 rows x 6 columns"


def changed(i, j, value):
    matrix = ABILITY.clone()
    matrix[i, j] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (ABILITY[:, :5], {}, r"shape \(6, 5\): pass a square"),
        (changed(1, 4, 5.0), {}, r"not symmetric: 5 in row 'picture', column 'reading', 4.936 in row 'reading'"),
        (changed(2, 2, -1.0), {}, "the variance of column 'blocks' is -1"),
        (changed(3, 3, float("nan")), {}, "holds nan in row 'maze', column 'maze'"),
        (changed(5, 5, 50.0), {}, "is no covariance matrix: its correlations have the eigenvalue -0"),
        (ABILITY, {"n": 1}, "n must be the number of rows"),
        (ABILITY, {"mean": [0.0]}, "mean must be 6 finite numbers"),
        (ABILITY, {"columns": ["a"] * 6}, "columns must be 6 different names"),
        (ABILITY, {"divisor": "N"}, "divisor must be"),
    ],
)
def test_a_wrong_matrix_is_refused(matrix, options, message):
    with pytest.raises(ValueError, match=message):
        Moments.from_covariance(matrix, **{"n": 112, "columns": ABILITY_NAMES} | options)


def test_a_covariance_is_no_correlation():
    with pytest.raises(ValueError, match=r"diagonal of the correlation matrix holds 24.641 for column 'general'"):
        Moments.from_correlation(ABILITY, n=112, columns=ABILITY_NAMES)


def test_what_needs_rows_says_so():
    model = FactorAnalysis(6, 2).double()
    run = zoo.em(model, ability())
    with pytest.raises(TypeError, match="needs the rows themselves, as do all scores"):
        zoo.evaluate(run, ability())
    with pytest.raises(TypeError, match="GMM needs the rows: a mean and a covariance suffice"):
        zoo.em(zoo.GMM(6, 2), ability())
    with pytest.raises(ValueError, match="6 columns, the model FactorAnalysis was built for data_dim=5"):
        zoo.em(FactorAnalysis(5, 2), ability())
    with pytest.raises(ValueError, match=r"weight the rows by Moments.of\(x, weights\)"):
        zoo.em(model, ability(), weights=[1.0] * 112)


def written(path, matrix=ABILITY, header=ABILITY_NAMES, rows=ABILITY_NAMES):
    """A CSV file as R's write.csv makes it."""
    lines = [",".join(f'"{name}"' for name in (("", *header) if rows else header))]
    for i, values in enumerate(matrix.tolist()):
        lines.append(",".join([*([f'"{rows[i]}"'] if rows else []), *map(repr, values)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_matrices_from_files(tmp_path):
    path = written(tmp_path / "cov.csv")
    found = zoo.data.load_moments(path, n=112)
    close(found.covariance, ability().covariance)
    assert (found.columns, found.count) == (ABILITY_NAMES, 112)
    close(zoo.data.load_moments(written(tmp_path / "bare.csv", rows=()), n=112).covariance, found.covariance)
    unit = ABILITY.diagonal().sqrt()
    correlation = ABILITY / torch.outer(unit, unit)
    close(zoo.data.load_moments(written(tmp_path / "cor.csv", correlation), n=112).covariance, correlation)
    with pytest.raises(ValueError, match="row 0 is named 'picture', column 0 'general'"):
        zoo.data.load_moments(
            written(tmp_path / "other.csv", rows=(ABILITY_NAMES[1], ABILITY_NAMES[0], *ABILITY_NAMES[2:])), n=112
        )
    with pytest.raises(ValueError, match="has 4 rows and 6 columns of numbers"):
        zoo.data.load_moments(written(tmp_path / "part.csv", ABILITY[:4]), n=112)
