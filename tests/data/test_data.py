"""zoo.data: the bundled sets against their published facts, and every way a file can be wrong."""

import gzip
import hashlib
import struct
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.io import savemat

from zoo.data import Dataset, load, names, provenance
from zoo.data import mnist as mnist_module
from zoo.data.frey_faces import ARRAY, MATLAB
from zoo.data.frey_faces import FILES as FREY_FILES
from zoo.data.mnist import MIRRORS, SHA256, fetch, read_idx


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def csv(tmp_path):
    """A function that writes a CSV file and returns its path."""
    return lambda content: write(tmp_path / "table.csv", content)


@pytest.fixture
def npy(tmp_path):
    """A function that writes an NPY file and returns its path."""

    def save(array) -> Path:
        path = tmp_path / "array.npy"
        np.save(path, array)
        return path

    return save


@pytest.fixture
def parquet(tmp_path):
    """A function that writes a Parquet file and returns its path."""

    def save(columns) -> Path:
        path = tmp_path / "table.parquet"
        pl.DataFrame(columns).write_parquet(path)
        return path

    return save


# Data sets by name.


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("iris", (150, 4), {"setosa": 50, "versicolor": 50, "virginica": 50}),
        ("wine", (178, 13), {"class_0": 59, "class_1": 71, "class_2": 48}),
        ("digits", (1797, 64), None),
        ("breast_cancer", (569, 30), {"malignant": 212, "benign": 357}),
        ("faithful", (272, 2), None),
        ("holzinger", (301, 9), {"Grant-White": 145, "Pasteur": 156}),
    ],
)
def test_bundled(name, shape, counts):
    data = load(name)
    assert data.x.shape == shape
    assert data.x.dtype == torch.get_default_dtype()
    assert data.x.isfinite().all()
    assert len(data) == shape[0]
    assert len(data.columns) == shape[1]
    assert data.name == name
    assert data.source
    assert data.licence
    if counts is not None:
        assert data.labels.dtype == torch.int64
        assert dict(zip(data.label_names, data.labels.bincount().tolist(), strict=True)) == counts


def test_bundled_values_are_raw():
    assert load("iris", dtype=torch.float64).x[0].tolist() == [5.1, 3.5, 1.4, 0.2]  # Fisher's first flower
    faithful = load("faithful", dtype=torch.float64)
    assert faithful.columns == ("eruptions", "waiting")
    assert faithful.x[0].tolist() == [3.6, 79.0]
    assert torch.allclose(faithful.x.mean(0), faithful.x.new_tensor([3.487783, 70.897059]), atol=1e-6)
    assert faithful.labels is None
    assert faithful.label_names == ()
    digits = load("digits")
    assert (digits.x.min(), digits.x.max()) == (0, 16)
    assert digits.label_names == tuple("0123456789")
    holzinger = load("holzinger")
    assert holzinger.columns == tuple(f"x{j}" for j in range(1, 10))


def test_bundled_columns_and_labels_can_be_chosen():
    data = load("holzinger", columns=["x9", "ageyr"], labels="sex", dtype=torch.float64)
    assert data.columns == ("x9", "ageyr")
    assert torch.allclose(data.x[0], data.x.new_tensor([6.3611111, 13.0]))
    assert data.label_names == ("1", "2")
    assert load("holzinger", labels="sex").columns == tuple(f"x{j}" for j in range(1, 10))
    assert load("iris", columns=["petal width (cm)"]).labels is not None


def test_names_lists_what_load_knows():
    assert set(names()) == {
        *("iris", "wine", "digits", "breast_cancer", "faithful", "holzinger", "mnist", "mnist-test", "frey_faces"),
    }


@pytest.mark.parametrize(("wrong", "right"), [("iri", "iris"), ("Iris", "iris"), ("breast-cancer", "breast_cancer")])
def test_unknown_name_suggests_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"unknown data set '{wrong}': did you mean '{right}'"):
        load(wrong)


@pytest.mark.parametrize("wrong", ["", "zzzzzz"])
def test_unknown_name_lists_the_known(wrong):
    with pytest.raises(ValueError, match=f"unknown data set '{wrong}': known are iris, wine"):
        load(wrong)


# The record.


def test_repr_is_one_short_line():
    text = repr(load("holzinger"))
    assert text.startswith("Dataset(holzinger: 301 rows x 9 columns, 2 labels; Holzinger and Swineford (1939)")
    assert "\n" not in text
    assert len(text) < 160
    assert "no labels" in repr(load("faithful"))


def test_dataset_is_frozen():
    with pytest.raises(AttributeError):
        load("faithful").name = "other"  # type: ignore[misc]


def test_split_parts_every_row_once():
    data = load("iris", dtype=torch.float64)
    train, test = data.split(test=0.3, seed=1)
    assert (len(train), len(test)) == (105, 45)
    rows = torch.cat([train.x, test.x])
    assert sorted(rows.tolist()) == sorted(data.x.tolist())
    assert torch.equal(torch.cat([train.labels, test.labels]).bincount(), data.labels.bincount())
    assert (train.columns, train.label_names, train.source) == (data.columns, data.label_names, data.source)


def test_split_keeps_rows_in_order_and_labels_beside_them():
    x = torch.arange(20.0)[:, None]
    data = Dataset(x, torch.arange(20), tuple(map(str, range(20))), ("a",), "count", "here", "none")
    for part in data.split(test=0.25):
        assert (part.x[:, 0].diff() > 0).all()
        assert torch.equal(part.x[:, 0].long(), part.labels)


def test_split_owns_its_randomness():
    data = load("faithful")
    before = torch.get_rng_state()
    first, again, other = data.split(seed=3)[1], data.split(seed=3)[1], data.split(seed=4)[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert first.labels is None


@pytest.mark.parametrize("test", [0.0, 1.0, -0.1, 2, 0.001, float("nan")])
def test_split_refuses_an_empty_part(test):
    with pytest.raises(ValueError, match="leaves one part of 272 rows empty"):
        load("faithful").split(test=test)


# Files that are right.


def test_csv_columns_keep_the_order_asked_for(csv):
    path = csv('a,"b, too",c\n1,2,3\n4,5,6.5\n')
    data = load(path, columns=["c", "a"])
    assert data.columns == ("c", "a")
    assert data.x.tolist() == [[3, 1], [6.5, 4]]
    assert (data.name, data.source) == ("table", "table.csv")
    assert load(str(path)).columns == ("a", "b, too", "c")


@pytest.mark.parametrize("blank", ["", "NA", "N/A", "null", "NULL", " ", "nan", "NaN"])
def test_csv_missing_values_become_nan(csv, blank):
    x = load(csv(f"a,b\n1,2\n{blank},3\n")).x
    assert x.isnan().tolist() == [[False, False], [True, False]]


def test_csv_column_without_any_value_is_nan(csv):
    assert load(csv("a,b\n1,\n2,\n")).x[:, 1].isnan().all()


def test_csv_numbers_in_every_notation(csv):
    x = load(csv('a\n1e5\n-2E-3\n+3\n.5\n" 7 "\ninf\n-Infinity\n"8"\n'), dtype=torch.float64).x[:, 0]
    assert x.tolist() == [1e5, -2e-3, 3, 0.5, 7, float("inf"), -float("inf"), 8]


def test_csv_booleans_become_zero_and_one(csv):
    x = load(csv("a,b\nTRUE,false\nFalse,\n")).x
    assert x[:, 0].tolist() == [1, 0]
    assert x[0, 1] == 0
    assert x[1, 1].isnan()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("tail", [0, 1, 3])
def test_csv_line_ends_mark_and_last_lines(csv, end, tail):
    text = "\ufeffa, b" + end + "1, 2" + end + "3, 4" + end * tail  # with byte order mark
    data = load(csv(text))
    assert data.columns == ("a", "b")
    assert data.x.tolist() == [[1, 2], [3, 4]]


def test_csv_blank_line_of_a_single_column_is_a_missing_value(csv):
    assert load(csv("a\n1\n\n3\n\n")).x[:, 0].isnan().tolist() == [False, True, False]


def test_csv_takes_row_names_and_integer_names(csv):
    assert load(csv('"",x\n1,2\n'), columns=["x"]).x.tolist() == [[2]]
    assert load(csv("0,1\n5,6\n"), columns=[1]).x.tolist() == [[6]]


def test_text_labels_are_coded_in_sorted_order(csv):
    data = load(csv("a,kind\n1,pear\n2, apple\n3,pear\n"), labels="kind")
    assert data.columns == ("a",)
    assert data.labels.tolist() == [1, 0, 1]
    assert data.labels.dtype == torch.int64
    assert data.label_names == ("apple", "pear")


def test_integer_labels_are_coded_in_numeric_order(csv, parquet, npy):
    for path in (csv("a,k\n0,10\n0,9\n0,-1\n"), parquet({"a": [0, 0, 0], "k": [10, 9, -1]})):
        data = load(path, labels="k")
        assert data.labels.tolist() == [2, 1, 0]
        assert data.label_names == ("-1", "9", "10")
    data = load(npy(np.array([[0.5, 10.0], [0.5, 9.0], [0.5, 10.0]])), labels=1)
    assert data.columns == ("0",)
    assert data.labels.tolist() == [1, 0, 1]
    assert data.label_names == ("9", "10")


def test_labels_with_leading_zeros_stay_text(csv):
    assert load(csv("a,k\n0,01\n0,1\n"), labels="k").label_names == ("01", "1")


def test_labels_of_other_types(parquet):
    size = pl.Series(["small", "large"], dtype=pl.Enum(["small", "large"]))
    path = parquet(
        {
            "a": [1, 2],
            "size": size,
            "kind": pl.Series(["y", "x"], dtype=pl.Categorical),
            "good": [True, False],
        }
    )
    assert load(path, columns=["a"], labels="size").label_names == ("small", "large")  # declared order
    assert load(path, columns=["a"], labels="kind").labels.tolist() == [1, 0]
    assert load(path, columns=["a"], labels="good").label_names == ("False", "True")


def test_parquet_types(parquet):
    path = parquet(
        {
            "int": pl.Series([1, None], dtype=pl.Int8),
            "float": [0.5, float("inf")],
            "bool": [True, None],
            "none": [None, None],
            "money": pl.Series(["1.25", "2.50"]).cast(pl.Decimal(10, 2)),
        }
    )
    x = load(path, dtype=torch.float64).x
    nan = float("nan")
    expected = torch.tensor([[1, 0.5, 1, nan, 1.25], [nan, float("inf"), nan, nan, 2.5]], dtype=torch.float64)
    assert torch.equal(x.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64", "float16", "float32", ">f8", ">i4"])
def test_npy_types(npy, dtype):
    array = np.array([[0, 1], [1, 1], [1, 0]], dtype=dtype)
    assert load(npy(array)).x.tolist() == [[0, 1], [1, 1], [1, 0]]
    assert load(npy(array), labels=0).labels.tolist() == [0, 1, 1]


def test_npy_in_column_order_and_with_gaps(npy):
    array = np.array([[1.0, np.nan], [np.inf, 4.0]], order="F")
    data = load(npy(array), columns=[1, 0])
    assert data.columns == ("1", "0")
    assert data.x.isnan().tolist() == [[True, False], [False, False]]
    assert data.x[1].tolist() == [4, float("inf")]


def test_npy_is_converted_block_by_block(npy, monkeypatch):
    monkeypatch.setattr("zoo.data.table.BLOCK", 7)
    array = np.arange(30.0).reshape(10, 3)
    path = npy(array)
    assert torch.equal(load(path, dtype=torch.float64).x, torch.from_numpy(array))
    assert torch.equal(load(path, columns=[2, 1], dtype=torch.float64).x, torch.from_numpy(array[:, [2, 1]].copy()))


def test_data_is_a_copy_the_caller_may_change(npy):
    path = npy(np.zeros((2, 2)))
    load(path, dtype=torch.float64).x.add_(1)
    assert (load(path).x == 0).all()


def test_dtype_defaults_to_torchs(csv):
    path = csv("a\n1\n")
    assert load(path).x.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert load(path).x.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert load(path, dtype=torch.bfloat16).x.dtype == torch.bfloat16


def test_suffix_in_capitals_and_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "T.CSV", "a\n1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load("~/T.CSV").x.tolist() == [[1]]


def test_a_path_is_no_pattern(tmp_path):
    write(tmp_path / "a[1]*.csv", "a\n1\n")
    write(tmp_path / "a1.csv", "a\n2\n")
    assert load(tmp_path / "a[1]*.csv").x.tolist() == [[1]]


# Files and arguments that are wrong.


@pytest.mark.parametrize("source", ["missing.csv", "missing.txt", "folder/iris", Path("iris")])
def test_missing_file(source):
    with pytest.raises(FileNotFoundError, match=Path(source).name):
        load(source)


def test_unsupported_suffix_lists_the_supported(tmp_path):
    for name in ("table.xlsx", "table"):
        path = write(tmp_path / name, "a\n1\n")
        with pytest.raises(ValueError, match=r"unsupported suffix .*\.csv, \.parquet, \.npy"):
            load(path)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv is not a file"):
        load(tmp_path / "folder.csv")


def test_unknown_column_names_the_nearest(csv, npy):
    with pytest.raises(ValueError, match="faithful: unknown column 'wating': did you mean 'waiting'"):
        load("faithful", columns=["wating"])
    path = csv("apple,pear\n1,2\n")
    with pytest.raises(ValueError, match="unknown column 'paer': did you mean 'pear'"):
        load(path, labels="paer")
    with pytest.raises(ValueError, match="unknown column 'zzz': known are apple, pear"):
        load(path, columns=["zzz"])
    array = npy(np.zeros((2, 3)))
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"unknown column {wrong}"):
            load(array, columns=[wrong])


def test_columns_as_one_string_repeated_or_empty(csv):
    with pytest.raises(ValueError, match=r"pass a list, columns=\['waiting'\]"):
        load("faithful", columns="waiting")
    with pytest.raises(ValueError, match="repeats 'waiting'"):
        load("faithful", columns=["waiting", "waiting"])
    with pytest.raises(ValueError, match="no columns left"):
        load("faithful", columns=[])
    with pytest.raises(ValueError, match="no columns left"):
        load(csv("a\n1\n"), labels="a")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_dtype_must_be_floating(dtype):
    with pytest.raises(ValueError, match="choose a floating-point type"):
        load("faithful", dtype=dtype)


def test_numbers_too_large_for_the_dtype(csv, npy):
    path = csv("a,b\n1,1e300\n")
    with pytest.raises(ValueError, match=r"'b' has 1e\+300, too large for torch.float32: pass dtype"):
        load(path)
    assert load(path, dtype=torch.float64).x[0, 1] == 1e300
    with pytest.raises(ValueError, match="too large"):
        load(npy(np.array([[1e300]])))


def test_text_column_names_value_row_and_way_out(csv, parquet):
    for path in (csv("a,b\n1,2\n3,oops\n4,no\n"), parquet({"a": [1, 2], "b": ["2", "oops"]})):
        with pytest.raises(
            ValueError, match=r"'b' contains text, first 'oops' in data row 2.*exclude=\['b'\].*labels='b'"
        ):
            load(path)
        assert load(path, columns=["a"]).x.shape[1] == 1
    with pytest.raises(ValueError, match="first 'true' in data row 2"):
        load(csv("a\n1\ntrue\n"))


def test_columns_of_neither_numbers_nor_text(parquet):
    path = parquet({"a": [1], "when": [date(2020, 1, 1)], "list": [[1, 2]]})
    for name in ("when", "list"):
        with pytest.raises(ValueError, match=f"'{name}' has type .*, not numbers"):
            load(path, columns=[name])
        with pytest.raises(ValueError, match=f"'{name}' has type .*, not labels"):
            load(path, columns=["a"], labels=name)


def test_labels_must_be_whole_and_complete(csv, parquet, npy):
    with pytest.raises(ValueError, match="'k' is empty in data row 2"):
        load(csv("a,k\n1,x\n2,\n"), labels="k")
    with pytest.raises(ValueError, match="'k' contains fractions"):
        load(parquet({"a": [1], "k": [0.5]}), labels="k")
    with pytest.raises(ValueError, match="'1' contains fractions"):
        load(npy(np.array([[0.0, np.inf]])), labels=1)
    with pytest.raises(ValueError, match="'1' is empty in data row 1"):
        load(npy(np.array([[0.0, np.nan]])), labels=1)


@pytest.mark.parametrize("first", [0, 1])
def test_names_that_count_the_columns_are_taken_and_noted(csv, first):
    found = load(csv(f"{first},{first + 1}\n3,4\n5,6\n"))
    assert found.columns == (str(first), str(first + 1))
    assert "the first line, which counts the columns, taken as their names" in found.notes


@pytest.mark.parametrize("beyond", [2**53 + 1, -(2**53) - 1])
def test_whole_numbers_beyond_float64_are_refused_in_files(npy, parquet, csv, beyond):
    rows = np.array([[1, 2], [3, 2**53], [5, beyond]])
    text = csv(f"0,1\n1,1e300\n3,9007199254740992\n5,{beyond}\n")
    for path in (npy(rows), parquet(pl.DataFrame(rows, schema=["0", "1"])), text):
        with pytest.raises(ValueError, match=rf"holds {beyond} in row 2, column [01] \('1'\).*exclude the column"):
            load(path, dtype=torch.float64)
        assert load(path, columns=["0"]).x.flatten().tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "has no rows"),
        ("a,b\n\n\n", "has no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, the header has 2"),
        ("a,b\n1,2\n3,4\n5,6,7\n", "line 4 has 3 fields, the header has 2"),
        ('a,b\n"x\ny",2\n3\n', "line 4 has 1 fields"),
        ("a,b\n1,2\n\n3,4\n", "blank line before line 4"),
        ("a,b,a\n1,2,3\n", "column name 'a' appears more than once"),
        ("5.1,3.5\n4.9,3.0\n", "has no header"),
        ("5,3\n4,3\n", "has no header"),
        ("2,3\n4,3\n", "has no header"),
        ('a,b\n1,"2\n3,4\n', "cannot be read"),
        ('a,b\n1,"2"3\n', "cannot be read"),
        ("a,b\r1,2\r", "cannot be read"),
        ("a\r1\r", "check its line endings"),
        (b"a,b\n1,\x81\n", "cannot be read"),
        (b"a,b\n1,\xe2\x82", "cannot be read"),
        (b"a,b\n1,\x00\n", "cannot be read: it is no text in UTF-8"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "cannot be read"),
    ],
)
def test_damaged_csv_names_file_and_fault(csv, content, message):
    with pytest.raises(ValueError, match=rf"table\.csv.*{message}"):
        load(csv(content))


def test_damaged_parquet_names_the_file(tmp_path, parquet):
    whole = parquet({"a": np.arange(1000.0)}).read_bytes()
    for content in (b"", b"PAR1", b"a,b\n1,2\n", whole[:500], whole[:500] + b"\xff" * 2000 + whole[2500:]):
        path = write(tmp_path / "damaged.parquet", content)
        with pytest.raises(ValueError, match=r"damaged\.parquet cannot be read") as caught:
            load(path)
        assert caught.value.__cause__ is not None


def test_parquet_panic_of_the_reader_is_an_error_like_others(parquet, monkeypatch):
    path = parquet({"a": [1]})

    def collect(self):
        raise pl.exceptions.PanicException("range end out of bounds")

    monkeypatch.setattr(pl.LazyFrame, "collect", collect)
    with pytest.raises(ValueError, match=r"table\.parquet cannot be read.*out of bounds"):
        load(path)


def test_empty_parquet(parquet):
    with pytest.raises(ValueError, match="has no rows"):
        load(parquet({"a": pl.Series([], dtype=pl.Float64)}))
    with pytest.raises(ValueError, match="has no columns"):
        load(parquet({}))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"has shape \(3,\)"),
        (np.zeros((2, 2, 2)), "reshape it to two dimensions"),
        (np.zeros((0, 3)), "no rows"),
        (np.zeros((3, 0)), "no columns"),
        (np.zeros((2, 2), dtype=complex), "holds complex128"),
        (np.array([["a", "b"]]), "holds <U1"),
        (np.array([[{}]], dtype=object), "pickled"),
        (np.zeros((2, 2), dtype="M8[D]"), "holds datetime64"),
        (np.zeros((2, 2), dtype=[("a", "f8")]), "not real numbers"),
    ],
)
def test_npy_that_is_no_numeric_table(npy, array, message):
    with pytest.raises(ValueError, match=rf"array\.npy.*{message}"):
        load(npy(array))


def test_damaged_npy_names_the_file(tmp_path, npy):
    whole = npy(np.zeros((100, 3))).read_bytes()
    for content in (b"", b"hello", whole[:50], whole[:500], whole.replace(b"}", b" ")):
        with pytest.raises(ValueError, match=r"damaged\.npy is not a numeric NPY array"):
            load(write(tmp_path / "damaged.npy", content))
    np.savez(tmp_path / "archive.npz", a=np.zeros((2, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(ValueError, match=r"archive\.npy is an NPZ archive"):
        load(tmp_path / "archive.npy")


# MNIST.


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def test_idx_reads_what_was_written(tmp_path):
    images = np.arange(24).reshape(3, 2, 4)
    assert np.array_equal(read_idx(write(tmp_path / "a.gz", idx(images)), (3, 2, 4)), images)
    assert np.array_equal(read_idx(write(tmp_path / "b.gz", idx(np.arange(3))), (3,)), np.arange(3))


def test_idx_names_file_and_fault(tmp_path):
    good = idx(np.arange(24).reshape(3, 2, 4))
    raw = gzip.decompress(good)
    for content, message in [
        (gzip.compress(b"\0\0\x0d" + raw[3:], mtime=0), "magic number 00000d03, expected 00000803"),
        (idx(np.arange(24)), "magic number 00000801"),
        (idx(np.zeros((3, 4, 2))), r"has sizes \(3, 4, 2\), expected \(3, 2, 4\)"),
        (gzip.compress(raw[:9], mtime=0), r"has sizes \(3,\)"),
        (gzip.compress(b"", mtime=0), "magic number , expected"),
        (gzip.compress(raw[:-1], mtime=0), "has less than 24 bytes"),
        (gzip.compress(raw + b"\0", mtime=0), "has more than 24 bytes"),
        (good[:-12], "damaged or not gzipped"),
        (raw, "damaged or not gzipped"),
        (good[:-8] + b"\0" * 8, "damaged or not gzipped"),
    ]:
        with pytest.raises(ValueError, match=rf"bad\.gz.*{message}"):
            read_idx(write(tmp_path / "bad.gz", content), (3, 2, 4))


def test_mnist_from_small_files(tmp_path, monkeypatch):
    images = np.zeros((3, 28, 28))
    images[1, 0, 1] = 255
    images[2, 27, 27] = 51
    write(tmp_path / "t10k-images-idx3-ubyte.gz", idx(images))
    write(tmp_path / "t10k-labels-idx1-ubyte.gz", idx(np.array([7, 0, 7])))
    monkeypatch.setattr(mnist_module, "fetch", lambda name: tmp_path / name)
    table = mnist_module.read_mnist("t10k", rows=3)
    x = table.numbers(table.columns[:784], torch.float32)
    assert torch.equal(x, torch.from_numpy(images.reshape(3, 784) / 255).float())
    codes, label_names = table.labels("digit")
    assert codes.tolist() == [1, 0, 1]
    assert label_names == ("0", "7")
    assert table.numbers(["digit", "pixel_0_1"], torch.float32).tolist() == [[7, 0], [0, 1], [7, 0]]


def test_failed_download_names_mirrors_and_way_out(monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append(url)
        raise OSError("network is unreachable") if len(asked) == 1 else ValueError("hash does not match")

    monkeypatch.delenv("LATENT_ZOO_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(ConnectionError, match=r"set LATENT_ZOO_DATA to a folder.*unreachable.*hash"):
        load("mnist")
    assert asked == [mirror + "train-images-idx3-ubyte.gz" for mirror in MIRRORS]


def test_second_mirror_stands_in_for_the_first(monkeypatch, tmp_path):
    def retrieve(url, known_hash, fname, path):
        if url.startswith(MIRRORS[0]):
            raise OSError("down")
        assert known_hash == f"sha256:{SHA256[fname]}"
        return str(tmp_path / fname)

    monkeypatch.delenv("LATENT_ZOO_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert fetch("t10k-labels-idx1-ubyte.gz") == tmp_path / "t10k-labels-idx1-ubyte.gz"


def test_local_folder_is_searched_and_verified(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"LATENT_ZOO_DATA=.* contains neither mnist/train-images"):
        load("mnist")
    for folder in (tmp_path, tmp_path / "mnist"):
        folder.mkdir(exist_ok=True)
        write(folder / "t10k-images-idx3-ubyte.gz", idx(np.zeros((10000, 28, 28))))
        with pytest.raises(ValueError, match="wrong checksum"):
            load("mnist-test")
    path = write(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz", b"labels")
    monkeypatch.setitem(SHA256, path.name, hashlib.sha256(b"labels").hexdigest())
    assert fetch(path.name) == path


def test_mnist_itself(shared_data, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    train, test = load("mnist"), load("mnist-test")
    for data, rows, counts in [
        (train, 60000, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (test, 10000, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ]:
        assert data.x.shape == (rows, 784)
        assert (data.x.min(), data.x.max()) == (0, 1)
        assert data.labels.bincount().tolist() == counts
        assert data.label_names == tuple("0123456789")
        assert data.columns[0] == "pixel_0_0"
        assert data.columns[-1] == "pixel_27_27"
    assert train.x.mean().item() == pytest.approx(0.1307, abs=1e-4)  # the mean everyone normalizes by
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]


# Frey faces.


def test_frey_faces_themselves(shared_data, monkeypatch, tmp_path):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(shared_data))
    data = load("frey_faces")
    assert data.x.shape == (1965, 560)
    assert data.columns[21] == "pixel_1_1"
    assert data.columns[-1] == "pixel_27_19"
    assert 0 <= data.x.min() < data.x.max() <= 1
    pixels = (data.x * 255).round().to(torch.uint8).numpy()
    savemat(tmp_path / MATLAB, {"ff": pixels.T})
    monkeypatch.setenv("LATENT_ZOO_DATA", str(tmp_path))
    assert torch.equal(load("frey_faces").x, data.x)
    pixels[3, 5] ^= 1  # a single pixel
    savemat(tmp_path / MATLAB, {"ff": pixels.T})
    with pytest.raises(ValueError, match=r"frey_rawface\.mat has the wrong checksum.*remove it.*LATENT_ZOO_DATA"):
        load("frey_faces")


@pytest.mark.parametrize("name", [ARRAY, MATLAB])
def test_damaged_frey_faces_name_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(tmp_path))
    write(tmp_path / name, "<html>404</html>" * 30)
    with pytest.raises(ValueError, match=rf"{name} cannot be read, it may be damaged.*remove it"):
        load("frey_faces")


def test_frey_faces_are_looked_for_under_both_names(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_ZOO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"frey_faces\.npz .* nor frey_rawface\.mat: put Frey Face's file"):
        load("frey_faces")
    np.savez(tmp_path / ARRAY, images=np.zeros((2, 28, 20), np.uint8))
    with pytest.raises(ValueError, match="does not hold Frey's faces"):
        load("frey_faces")


def test_frey_faces_are_downloaded_as_a_matlab_file(monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash))
        raise OSError("down")

    monkeypatch.delenv("LATENT_ZOO_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(ConnectionError, match=r"cannot download Frey Face's frey_rawface\.mat: set LATENT_ZOO_DATA"):
        load("frey_faces")
    assert asked == [(mirror + MATLAB, None) for mirror in FREY_FILES.mirrors]


def test_provenance_without_loading():
    for name in names():
        found = provenance(name)
        assert found.source
        assert found.licence
    assert str(provenance("frey_faces")).endswith("(none stated: fetched, not distributed)")
    iris = load("iris")
    assert (iris.source, iris.licence) == (provenance("iris").source, provenance("iris").licence)
    with pytest.raises(ValueError, match="did you mean 'iris'"):
        provenance("irises")


def test_a_large_array_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.table.MAPPED", 12)
    values = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "large.npy", values)
    found = load(tmp_path / "large.npy", dtype=torch.float64).x
    assert torch.equal(found, torch.from_numpy(values))
    np.load(tmp_path / "large.npy", mmap_mode="r+")[1, 1] = values[1, 1] = -1.0
    assert found[1, 1] == -1  # the tensor is the file ...
    found[0, 0] = 7.0
    assert np.array_equal(np.load(tmp_path / "large.npy"), values)  # ... but for what is written to it
    assert load(tmp_path / "large.npy", dtype=torch.float32).x.dtype == torch.float32
    assert load(tmp_path / "large.npy", columns=[2, 0], dtype=torch.float64).x.shape == (4, 2)
