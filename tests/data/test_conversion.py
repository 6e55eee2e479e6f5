"""zoo.data.as_dataset: tables in memory as data sets, with names, index and labels."""

import numpy as np
import polars as pl
import pytest
import torch

from zoo.data import as_dataset, load

X = np.random.default_rng(0).normal(size=(4, 2))
KINDS = ["b", "a", "b", "c"]


def frame(**more):
    return pl.DataFrame({"u": X[:, 0], "v": X[:, 1], **more})


def test_an_array_and_a_tensor_keep_their_type():
    data = as_dataset(X, name="numbers")
    assert (data.columns, data.labels, data.index, data.name) == (("0", "1"), None, None, "numbers")
    assert data.x.dtype == torch.float64
    assert as_dataset(X.astype(np.float32)).x.dtype == torch.float32
    assert as_dataset(np.array([[1, 2]])).x.dtype == torch.float64
    assert as_dataset(X, dtype=torch.float32).x.dtype == torch.float32


def test_labels_of_every_kind():
    wanted = [1, 0, 1, 2]
    for labels in (KINDS, np.array(KINDS), pl.Series(KINDS), pl.Series(KINDS, dtype=pl.Categorical)):
        data = as_dataset(X, labels)
        assert (data.labels.tolist(), data.label_names) == (wanted, ("a", "b", "c"))
    data = as_dataset(frame(kind=KINDS), "kind")
    assert (data.columns, data.labels.tolist(), data.label_names) == (("u", "v"), wanted, ("a", "b", "c"))
    data = as_dataset(frame(), torch.tensor([5, 3, 5, 7]))
    assert (data.labels.tolist(), data.label_names) == (wanted, ("3", "5", "7"))
    data = as_dataset(np.column_stack([X, [5, 3, 5, 7]]), 2)
    assert (data.columns, data.labels.tolist(), data.x.shape) == (("0", "1"), wanted, (4, 2))
    data = as_dataset(torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor([1, 0, 1, 2])))
    assert data.labels.tolist() == wanted


def test_pandas_names_index_and_labels_come_along():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X, columns=["u", "v"], index=["p", "q", "r", "s"])
    table["kind"] = pd.Categorical(KINDS, ["c", "b", "a"])
    data = as_dataset(table, "kind")
    assert (data.columns, data.label_names) == (("u", "v"), ("c", "b", "a"))  # in their declared order
    assert data.labels.tolist() == [1, 2, 1, 0]
    assert data.index.tolist() == ["p", "q", "r", "s"]
    for part in data.split(test=0.5):
        rows = [data.index.tolist().index(name) for name in part.index]
        assert torch.equal(part.x, data.x[rows])
    assert as_dataset(table, table["kind"], exclude=["kind"]).labels.tolist() == [1, 2, 1, 0]


def test_columns_can_be_left_out_and_coded():
    table = frame(kind=KINDS, when=["x"] * 4)
    data = as_dataset(table, exclude=["when"], dummies=["kind"])
    assert data.columns == ("u", "v", "kind_b", "kind_c")
    assert data.x[:, 2:].tolist() == [[1, 0], [0, 0], [1, 0], [0, 1]]
    data = as_dataset(frame(kind=["b", None, "a", "b"]), dummies=["kind"])
    assert data.x[:, 2].nan_to_num(-1).tolist() == [1, -1, 0, 1]
    with pytest.raises(TypeError, match=r"text \(first 'b'\), in column 2 \('kind'\); exclude"):
        as_dataset(table)


def test_a_data_set_takes_other_labels():
    iris = load("iris")
    assert as_dataset(iris) is not None
    assert torch.equal(as_dataset(iris).labels, iris.labels)
    assert as_dataset(iris, ["x"] * 75 + ["y"] * 75).label_names == ("x", "y")


def test_refusals():
    with pytest.raises(ValueError, match="labels has 3 entries, the table 4 rows"):
        as_dataset(X, KINDS[:3])
    with pytest.raises(ValueError, match="unknown column 'kin': did you mean 'kind'"):
        as_dataset(frame(kind=KINDS), "kin")
    with pytest.raises(ValueError, match="name columns of a data frame"):
        as_dataset(X, exclude=["0"])
    with pytest.raises(ValueError, match="one row per observation"):
        as_dataset(X[0])
    with pytest.raises(ValueError, match="label column 'labels' is empty in data row 2"):
        as_dataset(X, ["a", None, "b", "c"])
    with pytest.raises(ValueError, match="empty, 4 rows x 0 columns"):
        as_dataset(pl.DataFrame({"kind": KINDS}), "kind")
