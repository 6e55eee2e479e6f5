"""No precision is lost silently: rows that a model's dtype cannot hold are refused, closed forms compute in float64."""

import numpy as np
import pytest
import torch

import guides
import zoo
from tests.helpers import fit
from zoo.base.checks import check_rows

MODELS = {
    "PPCA": lambda: zoo.PPCA(3, 1),
    "FactorAnalysis": lambda: zoo.FactorAnalysis(3, 1),
    "GMM": lambda: zoo.GMM(3, 1),
}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows (100, 3) around 0, with one factor."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(100, 1)) @ [[1.0, 0.8, -0.5]] + 0.7 * rng.normal(size=(100, 3))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_em_computes_in_float64_whatever_the_models_dtype(make, rows):
    for offset in (0, 1e3, 3e4):
        single, double = make(), make().double()
        found, right = zoo.em(single, rows + offset), zoo.em(double, rows)
        assert float(found[-1]) == pytest.approx(float(right[-1]), rel=1e-9)
        noise, known = (model.scale.detach().double() for model in (single, double))
        assert torch.allclose(noise.abs(), known.abs(), rtol=1e-5)


def test_evaluate_computes_log_p_from_float64_rows(rows):
    model = zoo.FactorAnalysis(3, 1)
    best = float(zoo.em(model, rows + 3e4)[-1])
    found = zoo.evaluate(zoo.Fit(model, guides.Exact(model)), rows + 3e4, draws=30)
    rounding = (3e4 * 2**-24 / 0.3) ** 2 / 2  # nats per row and column, of the means, by a conditional deviation of 0.3
    assert float(found.log_marginal.sum()) == pytest.approx(best, abs=rows.size * rounding)
    assert float(found.gap.abs().max()) < 1e-4
    single = float(model.log_marginal(torch.tensor(rows + 3e4)).detach().double().sum())
    assert abs(single - best) > rows.size * rounding  # as the rows would give in float32


@pytest.mark.parametrize("offset", [1e7, 1e8, -1e8])
def test_what_a_dtype_cannot_hold_is_refused(offset, rows, untouched):
    shifted = rows + offset * np.array([0, 1, 0])
    model = zoo.FactorAnalysis(3, 1)
    run = zoo.Fit(model, guides.Exact(model))
    for job in (
        lambda: zoo.em(model, shifted),
        lambda: fit(model, guides.Exact(model), shifted),
        lambda: zoo.evaluate(run, shifted),
        lambda: guides.MeanField(model, shifted),
    ):
        message = r"varies by .* around .*in column 1, .* precision of float32: .*\.double\(\), or subtract"
        with untouched(), pytest.raises(ValueError, match=message):
            job()
    best = float(zoo.em(zoo.FactorAnalysis(3, 1).double(), rows)[-1])
    assert float(zoo.em(zoo.FactorAnalysis(3, 1).double(), shifted)[-1]) == pytest.approx(best, abs=1e-5)


def test_imputation_leaves_observed_entries_as_they_were_given(rows):
    given = np.where(np.arange(300).reshape(100, 3) % 50 == 0, np.nan, rows)
    model = zoo.FactorAnalysis(3, 1)
    zoo.em(model, given)
    for found in (model.impute(given), zoo.impute(zoo.Fit(model, guides.Exact(model)), given, draws=10)):
        assert np.array_equal(found.mean.numpy()[~np.isnan(given)], given[~np.isnan(given)])
        assert found.mean.isfinite().all()


def test_the_threshold_is_where_rounding_reaches_a_128th_of_a_deviation():
    model = zoo.GMM(1, 1)
    alternating = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10).unsqueeze(1)  # standard deviation 1
    assert check_rows(2.0**16.9 + alternating, model).dtype == torch.float32
    with pytest.raises(ValueError, match="precision"):
        check_rows(2.0**17.1 + alternating, model)
    alternating[3] = torch.nan
    with pytest.raises(ValueError, match="precision"):
        check_rows(2.0**17.1 + alternating, model)


def test_what_loses_nothing_is_accepted():
    model = zoo.PPCA(2, 1)
    rows = torch.randn(20, 2, dtype=torch.float64)
    assert check_rows(torch.cat([rows[:, :1], torch.full((20, 1), 1e8 + 0.1).double()], 1), model).shape == (20, 2)
    assert check_rows((1e8 + rows).float(), model).shape == (20, 2)  # float32 already: nothing left to lose
    assert check_rows(1e8 + rows[:3], model).shape == (3, 2)  # three new rows say little of the data's variation
    assert check_rows(rows, model, exact=True).dtype == torch.float64
    assert torch.equal(check_rows(rows, model, exact=True), rows)
