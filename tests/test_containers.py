"""Every container of rows gives the same numbers in every function that takes rows, with its names."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch

import guides
import zoo
from tests.helpers import fit
from zoo.data import as_dataset
from zoo.diagnostics.guide.exact import posterior_error
from zoo.factors import encode, reconstruct

NAMES = ("height", "weight", "age", "pulse")
ROWS = [f"p{i}" for i in range(40)]


def table() -> np.ndarray:
    """Rows (40, 4) with two factors and three missing entries."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(40, 4)) + [170, 70, 40, 60]
    x[3, 1] = x[7, 0] = x[7, 2] = np.nan
    return x


X = table()


def frame():
    return pytest.importorskip("pandas").DataFrame(X, columns=list(NAMES), index=ROWS)


CONTAINERS = {
    "array": lambda: X,
    "backwards": lambda: np.ascontiguousarray(X[::-1])[::-1],
    "masked": lambda: np.ma.masked_array(np.where(np.isnan(X), -999.0, X), np.isnan(X)),
    "list": lambda: [[None if np.isnan(value) else value for value in row] for row in X.tolist()],
    "sparse": lambda: scipy.sparse.csr_array(X),
    "polars": lambda: pl.DataFrame(X, schema=list(NAMES)).fill_nan(None),
    "pandas": frame,
    "pandas nullable": lambda: frame().convert_dtypes(),
    "data set": lambda: as_dataset(frame()),
}
NAMED = {"polars", "pandas", "pandas nullable", "data set"}
INDEXED = NAMED - {"polars"}


def model():
    torch.manual_seed(0)
    return zoo.FactorAnalysis(4, 1).double()


@pytest.fixture(scope="module")
def run():
    """A fit to the array."""
    own = model()
    zoo.em(own, X)
    return zoo.Fit(own, guides.Exact(own))


def em(run, x):
    return zoo.em(model(), x).log_likelihood[-1:]


def svi(run, x):
    own = model()
    return fit(own, guides.MeanField(own, x), x, steps=3, start="random").losses


def cavi(run, x):
    return zoo.cavi(zoo.BayesianFactorAnalysis(4, 1).double(), x, sweeps=5)[-1:]


def select(run, x):
    found = zoo.select_size(lambda size, rows: zoo.PPCA(4, size).double(), x, [1], seeds=1, folds=None)
    return torch.tensor(found.frame()["log_likelihood"].to_list())


def arviz(run, x):
    return torch.tensor(zoo.to_arviz(run, x, draws=2, groups=["posterior"]).posterior["z"].values)


FUNCTIONS = {
    "em": em,
    "fit": svi,
    "cavi": cavi,
    "evaluate": lambda run, x: zoo.evaluate(run, x, draws=30).log_marginal,
    "impute": lambda run, x: zoo.impute(run, x, draws=5).mean,
    "the model's impute": lambda run, x: run.model.impute(x).mean,
    "encode": lambda run, x: encode(run, x),
    "reconstruct": lambda run, x: reconstruct(run, x, draws=5).mean,
    "sample": lambda run, x: run.sample(x, 2)["z"],
    "diagnose": lambda run, x: torch.tensor([len(zoo.diagnose(run, x, draws=50, simulations=20).findings)]).double(),
    "select_size": select,
    "to_arviz": arviz,
}


@pytest.fixture(scope="module")
def known():
    """The results on the array, by function."""
    return {}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_numbers(container, name, run, known):
    if name not in known:
        known[name] = FUNCTIONS[name](run, X)
    if container == "array":
        return
    found = FUNCTIONS[name](run, CONTAINERS[container]())
    torch.testing.assert_close(found, known[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("container", CONTAINERS)
def test_names_come_back_with_the_results(container):
    x, own = CONTAINERS[container](), model()
    run = fit(own, guides.Exact(own), x, steps=3)
    columns = NAMES if container in NAMED else ()
    assert run.training.columns == columns
    assert zoo.em(model(), x).training.columns == columns
    for result in (zoo.impute(run, x, draws=5), own.impute(x)):
        lines = result.frame().rows()
        wanted = [(3, 1), (7, 0), (7, 2)]
        assert [line[0] for line in lines] == [ROWS[i] if container in INDEXED else i for i, _ in wanted]
        assert [line[1] for line in lines] == [NAMES[j] if columns else j for _, j in wanted]
    assert tuple(zoo.generate(run, 3).frame().columns[:4]) == (columns or tuple(f"x[{j}]" for j in range(4)))
    results = (
        zoo.evaluate(run, x, draws=30),
        reconstruct(run, x, draws=5),
        zoo.log_evidence_bounds(run, x, draws=(30,)),
        posterior_error(run, x),
    )
    for result in results:
        table = result.frame()
        assert (table.columns[0] == "row") == (container in INDEXED)
        if container in INDEXED:
            assert table["row"].to_list() == ROWS
    moments = zoo.importance_moments(run, x, draws=30).frame()  # a line per row and factor, of which there is one
    assert moments["row"].to_list() == (ROWS if container in INDEXED else list(range(40)))
    posterior = zoo.to_arviz(run, x, draws=2, groups=["posterior", "observed_data"])
    assert posterior.posterior["row"].values.tolist() == (ROWS if container in INDEXED else list(range(40)))
    assert tuple(posterior.observed_data["column"].values) == (columns or tuple(f"x{j}" for j in range(4)))


def test_a_saved_run_keeps_the_names(tmp_path):
    own = model()
    fit(own, guides.Exact(own), frame(), steps=2).save(tmp_path / "run")
    again = zoo.load(tmp_path / "run")
    assert again.training.columns == NAMES
    assert tuple(zoo.generate(again, 2).frame().columns[:4]) == NAMES


def test_columns_in_another_order_are_refused():
    own = model()
    run = fit(own, guides.Exact(own), frame(), steps=2)
    for job in (zoo.evaluate, zoo.impute, encode, zoo.diagnose, zoo.generate):
        arguments = {"x": frame()[["age", *NAMES[:2], "pulse"]]} | ({"size": 2} if job is zoo.generate else {})
        with pytest.raises(ValueError, match="x has the columns age, height, weight, pulse, the rows of the fit"):
            job(run, **arguments)
    other = frame().set_axis(list("abcd"), axis=1)
    assert zoo.evaluate(run, other, draws=30).log_marginal.shape == (40,)  # other names say nothing of the order


def test_filled_tables_hold_the_observed_entries_unchanged(run):
    filled = zoo.impute(run, frame(), draws=5).filled()
    assert filled.columns == ["row", *NAMES]
    observed = ~np.isnan(X)
    assert np.array_equal(filled.select(NAMES).to_numpy()[observed], X[observed])
