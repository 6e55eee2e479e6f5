"""Units of the columns do not change a fit, nor EM where entries are missing; complete tables: test_transformations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import guides
import zoo

pytestmark = pytest.mark.usefixtures("own_store")

TABLES = ("iris", "faithful", "holes", "narrow", "factors")
SAME = 1e-8  # relative, of log-likelihoods
STEPS = (1.5, 10)  # a fit in other units takes at most so many times the steps, and so many more


def made(name: str) -> np.ndarray:
    """One of five tables, some with missing entries."""
    rng = np.random.default_rng(0)
    if name in ("iris", "faithful"):
        return zoo.data.load(name, dtype=torch.float64).x.numpy()[:150]
    n, d = {"holes": (60, 6), "narrow": (90, 3), "factors": (120, 5)}[name]
    x = rng.normal(size=(n, 1)) @ rng.normal(size=(1, d)) + rng.normal(size=(n, d)) * rng.uniform(0.4, 1.2, d)
    if name == "holes":
        x[rng.random(x.shape) < 0.1] = np.nan
    return x


def masked(y: np.ndarray) -> Any:
    return np.ma.masked_array(np.nan_to_num(y), np.isnan(y))


def pandas(y: np.ndarray) -> Any:
    return pytest.importorskip("pandas").DataFrame(y, columns=[f"c{j}" for j in range(y.shape[1])])


def polars(y: np.ndarray) -> Any:
    return pytest.importorskip("polars").DataFrame(y, schema=[f"c{j}" for j in range(y.shape[1])])


CONTAINERS: tuple[Callable[[np.ndarray], Any], ...] = (
    np.ndarray.tolist,
    np.array,
    torch.tensor,
    np.asfortranarray,
    masked,
    pandas,
    polars,
)
MODELS = {  # whether columns may have units of their own
    "FactorAnalysis": (lambda d: zoo.FactorAnalysis(d, 1).double(), True),
    "PPCA": (lambda d: zoo.PPCA(d, 1).double(), False),
    "GMM diag": (lambda d: zoo.GMM(d, 2, "diag").double(), True),
    "GMM tied": (lambda d: zoo.GMM(d, 2, "tied").double(), True),
}


def scaled(x: np.ndarray, rng: np.random.Generator, *, each: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in other units and from another origin; the units (d,); and the rows as they were, with the same rounding.

    Origins are up to 1e8 units away, where float64 still holds eight digits of every entry.
    """
    d = x.shape[1]
    unit = 10.0 ** rng.uniform(-6, 6, d if each else 1) * np.ones(d)
    origin = rng.choice([0, 1]) * 10.0 ** rng.uniform(0, 8, d) * unit
    y = x * unit + origin
    if not origin.any() and rng.random() < 0.3:
        y = y.astype(np.float32)
    return y, unit, (y.astype(np.float64) - origin) / unit


def transformation(number: int) -> None:
    """One random transformation of one table, under one model fitted by EM."""
    rng = np.random.default_rng(number)
    table = made(TABLES[number % len(TABLES)])
    name = list(MODELS)[int(rng.integers(len(MODELS)))]
    build, each = MODELS[name]
    y, unit, x = scaled(table, rng, each=each)
    columns, rows = rng.permutation(x.shape[1]), rng.permutation(len(x))
    mixture = name.startswith("GMM")
    if mixture:  # whose start depends on the order
        columns, rows = np.arange(x.shape[1]), np.arange(len(x))
    first, second = (build(x.shape[1]) for _ in range(2))
    pack = CONTAINERS[int(rng.integers(len(CONTAINERS)))]
    before = zoo.em(first, torch.tensor(x))
    after = zoo.em(second, pack(y[rows][:, columns]))
    jacobian = float((~np.isnan(x) * np.log(unit)).sum())
    assert float(after[-1]) + jacobian == pytest.approx(float(before[-1]), rel=SAME, abs=SAME), (number, name)
    assert after.converged == before.converged, (number, name)
    if not mixture:  # W W' does not depend on the rotation
        old, new = (model.weight.detach().numpy() for model in (first, second))
        own = unit[columns]
        np.testing.assert_allclose(
            new @ new.T / np.outer(own, own),
            (old @ old.T)[columns][:, columns],
            rtol=1e-3,
            atol=1e-4 * np.square(old).max(),
        )


@pytest.mark.parametrize("number", range(10))
def test_a_transformation_changes_nothing(number):
    transformation(number)


UNITS = ([1e-6, 1e-3, 1.0, 1e3, 1e6], [1e6] * 5, [1e-6] * 5)
PAIRS = (
    ("FactorAnalysis", guides.Exact, False),
    ("FactorAnalysis", guides.MeanField, False),
    ("FactorAnalysis", guides.Amortized, False),
    ("FactorAnalysis", guides.Exact, True),
    ("PPCA", guides.Exact, False),
    ("PPCA", guides.Exact, True),
    ("GMM diag", guides.MeanField, False),
    ("GMM tied", guides.Exact, False),
)


@pytest.mark.parametrize(("name", "family", "holes"), PAIRS)
def test_units_of_columns_do_not_change_a_fit(name, family, holes):
    build, each = MODELS[name]
    x = torch.tensor(made("factors"))
    if holes:
        x[::4, 1] = math.nan

    def fitted(y: torch.Tensor) -> tuple[float, bool, int]:
        model = build(x.shape[1])
        guide = family(model) if family is guides.Exact else family(model, y)
        run = zoo.fit(model, guide, y, progress=False)
        return float(model.log_marginal(y).detach().sum()), run.converged, run.steps

    level, converged, steps = fitted(x)
    for units in UNITS if each else UNITS[1:]:
        unit = torch.tensor(units, dtype=torch.float64)
        found = fitted(x * unit)
        assert found[0] + float((~x.isnan() * unit.log()).sum()) == pytest.approx(level, rel=SAME)
        assert found[1] == converged
        assert found[2] <= STEPS[0] * steps + STEPS[1]
