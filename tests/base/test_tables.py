"""zoo.base.tables: whatever holds a table becomes rows of numbers with their names, or is refused by its place."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from zoo.base.checks import check_rows
from zoo.base.tables import column_names, named_rows, row_names
from zoo.data import Dataset

NAN = float("nan")
X = np.random.default_rng(0).normal(size=(6, 3))
TENSORS = TensorDataset(torch.tensor(X), torch.arange(6))


def pandas_case(make):
    """A case that is made only where pandas is installed."""
    return lambda: make(pytest.importorskip("pandas"))


def read(make):
    return named_rows(make())


SAME = {
    "tensor": lambda: torch.tensor(X),
    "array": lambda: X,
    "reversed rows": lambda: X[::-1][::-1],
    "rows backwards": lambda: np.ascontiguousarray(X[::-1])[::-1],
    "columns backwards": lambda: np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "by columns": lambda: np.asfortranarray(X),
    "read-only": lambda: np.lib.stride_tricks.as_strided(X, X.shape, X.strides, writeable=False),
    "big-endian": lambda: X.astype(">f8"),
    "long double": lambda: X.astype(np.longdouble),
    "objects": lambda: X.astype(object),
    "without a mask": lambda: np.ma.masked_array(X),
    "matrix": lambda: np.asmatrix(X),
    "lists": lambda: X.tolist(),
    "tuple of arrays": lambda: tuple(X),
    "list of tensors": lambda: list(torch.tensor(X)),
    "sparse tensor": lambda: torch.tensor(X).to_sparse(),
    "sparse matrix": lambda: scipy.sparse.csr_matrix(X),
    "sparse array": lambda: scipy.sparse.coo_array(X),
    "data set": lambda: Dataset(torch.tensor(X), None, (), ("a", "b", "c"), "", "", ""),
    "torch data set": lambda: TENSORS,
    "loader": lambda: DataLoader(TENSORS, 2, shuffle=True),
    "parts": lambda: ConcatDataset([Subset(TENSORS, [0, 1]), Subset(TENSORS, range(2, 6))]),
    "mapping": lambda: dict(zip("abc", X.T, strict=True)),
    "polars": lambda: pl.DataFrame(X, schema=["a", "b", "c"]),
    "arrow": lambda: Arrow(pl.DataFrame(X)),
    "pandas": pandas_case(lambda pd: pd.DataFrame(X)),
    "pandas columns": pandas_case(lambda pd: pd.DataFrame(X).iloc[:, ::-1].iloc[:, ::-1]),
}


class Arrow:
    """A frame of another library, known by its Arrow interface alone."""

    def __init__(self, frame):
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_every_container_holds_the_same_rows(make):
    rows = read(make).values
    assert rows.dtype == torch.float64
    assert np.array_equal(rows.numpy(), X)


def test_memory_is_shared_where_it_can_be():
    assert named_rows(X).values.data_ptr() == X.ctypes.data
    single = X.astype(np.float32)
    assert named_rows(single).values.dtype == torch.float32


MISSING = {
    "mask": lambda: np.ma.masked_array([[1.0, 9.0], [3.0, 4.0]], [[0, 1], [0, 0]]),
    "mask of integers": lambda: np.ma.masked_array([[1, 2**60], [3, 4]], [[0, 1], [0, 0]]),
    "mask of objects": lambda: np.ma.masked_array(np.array([[1, "text"], [3, 4]], dtype=object), [[0, 1], [0, 0]]),
    "None": lambda: [[1, None], [3, 4]],
    "objects": lambda: np.array([[Decimal(1), None], [Fraction(3), np.int8(4)]], dtype=object),
    "polars integers": lambda: pl.DataFrame({"a": [1, 3], "b": [None, 4]}),
    "polars decimals": lambda: pl.DataFrame({"a": [1, 3], "b": [None, Decimal(4)]}),
    "polars objects": lambda: pl.DataFrame({"a": [1, 3], "b": pl.Series([None, Fraction(4)], dtype=pl.Object)}),
    "mapping": lambda: {"a": [1, 3], "b": [None, 4.0]},
    "pandas Int64": pandas_case(lambda pd: pd.DataFrame({"a": [1, 3], "b": pd.array([None, 4], dtype="Int64")})),
    "pandas Float32": pandas_case(lambda pd: pd.DataFrame({"a": [1, 3], "b": pd.array([None, 4], dtype="Float32")})),
    "pandas objects": pandas_case(lambda pd: pd.DataFrame({"a": [1, 3], "b": [pd.NA, Decimal(4)]}, dtype=object)),
    "pandas sparse": pandas_case(lambda pd: pd.DataFrame({"a": [1, 3], "b": pd.arrays.SparseArray([NAN, 4.0])})),
}


@pytest.mark.parametrize("make", MISSING.values(), ids=MISSING)
def test_missing_entries_become_nan(make):
    assert np.array_equal(read(make).values.numpy(), [[1, NAN], [3, 4]], equal_nan=True)


BOOLEANS = {
    "array": lambda: np.array([[True], [False]]),
    "polars": lambda: pl.DataFrame({"a": [True, False]}),
    "pandas": pandas_case(lambda pd: pd.DataFrame({"a": [True, False]})),
    "pandas boolean": pandas_case(lambda pd: pd.DataFrame({"a": pd.array([True, False], dtype="boolean")})),
}


@pytest.mark.parametrize("make", BOOLEANS.values(), ids=BOOLEANS)
def test_booleans_become_zero_and_one(make):
    assert check_rows(make()).tolist() == [[1], [0]]


def test_a_column_of_a_frame_is_a_table():
    column = pl.Series("height", [1, None])
    assert (column_names(column), tuple(named_rows(column).values.shape)) == (("height",), (2, 1))
    pd = pytest.importorskip("pandas")
    column = pd.Series([1.0, 2.0], name="height", index=["ann", "bob"])
    assert (column_names(column), row_names(column).tolist()) == (("height",), ["ann", "bob"])
    assert column_names(pd.Series([1.0])) == ()


def test_names_of_columns_and_rows():
    assert (column_names(X), row_names(X)) == ((), None)
    assert column_names({"a": [1], "b": [2]}) == ("a", "b")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X)
    assert (column_names(frame), row_names(frame)) == ((), None)
    assert row_names(frame[frame.index > 2]).tolist() == [3, 4, 5]
    assert column_names(frame[[2, 0]]) == ("2", "0")
    both = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
    assert column_names(pd.DataFrame(X, columns=both)) == ("a_1", "a_2", "b_1")
    assert row_names(pd.DataFrame(X.T, index=both)).tolist() == ["a_1", "a_2", "b_1"]
    days = pd.DataFrame(X[:2], index=pd.to_datetime(["2020-01-01", "2020-01-02"]))
    assert row_names(days)[1].startswith("2020-01-02")


REFUSED = {
    "text in a list": (lambda: [[1, "a"]], "other than numbers: text, 'a', in row 0, column 1; exclude"),
    "text in an array": (lambda: np.array([["1"]]), "text, '1', in row 0, column 0"),
    "objects": (lambda: np.array([[1, {}]], dtype=object), "type dict, in row 0, column 1"),
    "dates": (lambda: np.array([["2020"]], dtype="M8[D]"), r"dates or times \(datetime64\[D\]\); count days"),
    "fields": (lambda: np.zeros(3, [("a", "f8"), ("b", "i4")]), "structured array, with the fields a, b: pass"),
    "complex": (lambda: X + 0j, "is complex"),
    "complex object": (lambda: np.array([[1j, None]], dtype=object), "is complex, 1j in row 0, column 0"),
    "string": (lambda: "rows", "type str; pass a tensor"),
    "generator": (lambda: iter(X), "pass a tensor"),
    "lazy": (lambda: pl.LazyFrame({"a": [1]}), r"LazyFrame, which holds no rows yet: pass x\.collect\(\)"),
    "polars text": (lambda: pl.DataFrame({"a": [1], "b": ["u"]}), r"text \(first 'u'\), in column 1 \('b'\); exclude"),
    "polars enum": (lambda: pl.DataFrame({"b": pl.Series(["u"], dtype=pl.Enum(["u"]))}), r"categories \(first 'u'\)"),
    "polars date": (lambda: pl.DataFrame({"b": [datetime.date(2020, 1, 1)]}), r"dates or times \(Date\), in column 0"),
    "polars list": (lambda: pl.DataFrame({"b": [[1, 2]]}), r"entries of type List\(Int64\)"),
    "pandas text": (pandas_case(lambda pd: pd.DataFrame({"a": [1], "b": ["u"]})), r"text.* in .*column 1 \('b'\)"),
    "pandas mixed": (pandas_case(lambda pd: pd.DataFrame({"b": [1, {}]})), r"type dict, in row 1, column 0 \('b'\)"),
    "pandas category": (
        pandas_case(lambda pd: pd.DataFrame({"b": pd.Categorical([None, 7])})),
        r"categories \(first '7'\), in column 0 \('b'\); exclude",
    ),
    "pandas date": (pandas_case(lambda pd: pd.DataFrame({"b": pd.to_datetime(["2020-01-01"])})), "dates or times"),
    "pandas period": (pandas_case(lambda pd: pd.DataFrame({"b": pd.period_range("2020", periods=2)})), "dates or"),
    "pandas complex": (pandas_case(lambda pd: pd.DataFrame({"b": [1j]})), r"complex in column 0 \('b'\)"),
    "torch data": (lambda: torch.utils.data.Dataset(), r"rows are not in memory: pass a tensor"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_number_is_refused_by_its_place(make, message):
    with pytest.raises(TypeError, match=message):
        check_rows(make())


BEYOND = {
    "array": lambda big: np.array([[1, 2], [3, -big]]),
    "unsigned": lambda big: np.array([[1, 2], [3, big]], dtype=np.uint64),
    "tensor": lambda big: torch.tensor([[1, 2], [3, big]]),
    "list": lambda big: [[1, 2], [3, big]],
    "objects": lambda big: np.array([[1, 2], [None, big]], dtype=object),
    "polars": lambda big: pl.DataFrame({"a": [1, 3], "id": [None, big]}),
    "pandas": lambda big: pytest.importorskip("pandas").DataFrame({"a": [1, 3], "id": [2, big]}),
    "pandas Int64": lambda big: pytest.importorskip("pandas").DataFrame(
        {"a": [1, 3], "id": [None, big]}, dtype="Int64"
    ),
}


@pytest.mark.parametrize("make", BEYOND.values(), ids=BEYOND)
def test_whole_numbers_beyond_float64_are_refused(make):
    with pytest.raises(ValueError, match=r"9007199254740993 in row 1, column 1( \('id'\))?, and float64 has gaps"):
        check_rows(make(2**53 + 1))
    assert abs(read(lambda: make(2**53)).values[1, 1].item()) == 2**53


def test_shapes_are_refused_with_the_place():
    with pytest.raises(ValueError, match="rows of different lengths: row 0 has 2 entries, row 1 has 1"):
        check_rows([[1, 2], [3]])
    with pytest.raises(ValueError, match="list of tensors of different shapes"):
        check_rows([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(ValueError, match=r"sparse, 200000 x 20000: dense it would take 29\.8 GiB.*TruncatedSVD"):
        check_rows(scipy.sparse.csr_array((200_000, 20_000)))
    with pytest.raises(ValueError, match="shape"):
        check_rows(X[0])


def test_repeated_column_names_are_refused():
    frame = pytest.importorskip("pandas").DataFrame(X, columns=["a", "b", "a"])
    for read_it in (check_rows, column_names):
        with pytest.raises(ValueError, match="column name 'a' appears more than once: rename"):
            read_it(frame)


def test_infinite_entries_are_named():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([[1, 2], [3, np.inf]], columns=["height", "weight"], index=["ann", "bob"])
    with pytest.raises(ValueError, match=r"holds inf in row 1 \('bob'\), column 1 \('weight'\): drop"):
        check_rows(frame)
    with pytest.raises(ValueError, match=r"holds 1e\+300 in row 1 .* too large for torch.float32: use a float64"):
        check_rows(frame.replace(np.inf, 1e300), torch.nn.Linear(2, 1))
