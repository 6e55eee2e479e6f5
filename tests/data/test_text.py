"""zoo.data.load of CSV files as programs write them: separators, decimal commas, names of rows, encodings, marks."""

import numpy as np
import polars as pl
import pytest
import torch

from zoo.data import load

X = [[1.5, 2.25], [-0.5, 30.0], [4.0, 0.125]]


@pytest.fixture
def csv(tmp_path):
    """A function that writes a CSV file and returns its path."""

    def save(content, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return save


def text(separator, decimal=".", names=None, header="a,b"):
    """A table as text."""
    lines = [header.replace(",", separator)]
    for i, row in enumerate(X):
        fields = [] if names is None else [names[i]]
        lines.append(separator.join([*fields, *(str(value).replace(".", decimal) for value in row)]))
    return "\n".join(lines) + "\n"


def read(path, **settings):
    return load(path, dtype=torch.float64, **settings)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_separators_and_decimal_marks(csv, separator, decimal):
    if separator == decimal:
        content = text(";", ",").replace("a;b", '"a","b"').replace(";", '","')
        content = "\n".join(line if i == 0 or not line else f'"{line}"' for i, line in enumerate(content.split("\n")))
    else:
        content = text(separator, decimal)
    data = read(csv(content))
    assert data.x.tolist() == X
    assert data.columns == ("a", "b")
    assert (len(data.notes) > 0) == (separator != "," or decimal == ",")
    assert ("decimal commas" in data.notes) == (decimal == ",")


def test_what_can_be_read_in_two_ways_is_refused(csv):
    with pytest.raises(ValueError, match=r"table\.csv: both commas and semicolons .* equally many fields: pass sep"):
        load(csv("a,b;c\n1,2;3\n"))
    assert read(csv("a,b;c\n1,2;3\n"), separator=";", columns=["c"]).x.tolist() == [[3]]
    with pytest.raises(ValueError, match=r"'1,234' in column 'a' may have a decimal comma .* pass decimal=','"):
        load(csv("a;b\n1,234;1\n5,678;2\n"))
    assert read(csv("a;b\n1,234;1\n5,678;2\n"), decimal=",").x[:, 0].tolist() == [1.234, 5.678]
    assert read(csv("a;b\n0,234;1\n5,678;2\n")).x[:, 0].tolist() == [0.234, 5.678]
    with pytest.raises(
        ValueError, match=r"decimal comma \(column 'a': '1,5'\) and with a point \(column 'b': '2\.5'\)"
    ):
        load(csv("a;b\n1,5;2.5\n"))
    with pytest.raises(ValueError, match=r"column 'b' contains text, first '2\.500' in data row 1"):
        load(csv("a;b\n1,5;2.500\n"), decimal=",")


@pytest.mark.parametrize("header", [",a,b", "Unnamed: 0,a,b", "who,a,b"])
def test_a_first_column_of_unique_names_is_the_index(csv, header):
    data = read(csv(text(",", names=["ann", "bob", "cy"], header=header)))
    assert data.x.tolist() == X
    assert (data.columns, data.index.tolist()) == (("a", "b"), ["ann", "bob", "cy"])
    assert any("rows named by" in note for note in data.notes)
    assert sorted(name for part in data.split() for name in part.index) == ["ann", "bob", "cy"]
    chosen = read(csv(text(",", names=["ann", "bob", "cy"], header="who,a,b")), columns=["b"])
    assert chosen.index.tolist() == ["ann", "bob", "cy"]


def test_rows_that_are_merely_counted_have_no_index(csv):
    for names in ("012", "123"):
        data = read(csv(text(",", names=names, header='"",a,b')))
        assert (data.x.tolist(), data.columns, data.index) == (X, ("a", "b"), None)
        assert "the first column counts the rows and is left out" in data.notes


def test_rs_header_lacks_the_name_of_the_first_column(csv):
    data = read(csv(text("\t", names=["ann", "bob", "cy"])))
    assert (data.x.tolist(), data.index.tolist()) == (X, ["ann", "bob", "cy"])
    assert read(csv(text("\t", names="123"))).x.tolist() == X
    for content in ("a,b\n1,5,2\n3,5,4\n", "a,b\n1,2,\n3,4,\n", "a,b\nx,1,2\nx,3,4\n"):
        with pytest.raises(
            ValueError, match="line 2 has 3 fields, the header has 2, and the first of them are no names"
        ):
            load(csv(content))


def test_text_that_repeats_and_numbers_name_no_rows(csv):
    with pytest.raises(ValueError, match="column 'who' contains text"):
        load(csv(text(",", names=["ann", "ann", "cy"], header="who,a,b")))
    assert read(csv(text(",", names=["7", "8", "9"], header="id,a,b"))).columns == ("id", "a", "b")
    data = read(csv(text(",", names=["7", "8", "9"], header="id,a,b")), index="id")
    assert (data.columns, data.index.tolist()) == (("a", "b"), ["7", "8", "9"])
    data = read(csv(text(",", names=["u", "v", "w"], header="kind,a,b")), labels="kind")
    assert (data.index, data.label_names) == (None, ("u", "v", "w"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings(csv, encoding):
    data = read(csv("größe;b\n1,5;2\n", encoding))
    assert (data.columns, data.x.tolist()) == (("größe", "b"), [[1.5, 2]])
    wanted = {"utf-16": "encoding utf-16", "latin-1": "encoding Windows-1252", "cp1252": "encoding Windows-1252"}
    assert [note for note in data.notes if "encoding" in note] == ([wanted[encoding]] if encoding in wanted else [])


def test_an_encoding_can_be_given(csv):
    assert read(csv("рост;b\n1;2\n", "cp1251"), encoding="cp1251").columns == ("рост", "b")
    assert read(csv("a,b\n1,2\n", "utf-16-le"), encoding="utf-16-le").columns == ("a", "b")
    with pytest.raises(ValueError, match="cannot be read: it is no text in UTF-8, as it contains zero bytes"):
        load(csv("a,b\n1,2\n", "utf-16-le"))
    with pytest.raises(ValueError, match="encoding='utf-7777' is unknown"):
        load(csv("a,b\n1,2\n"), encoding="utf-7777")


@pytest.mark.parametrize(
    "mark", ["", "NA", "NaN", "nan", "null", "None", "?", "-", "--", ".", "n/a", "#N/A", "<NA>", " "]
)
def test_marks_of_missing_entries(csv, mark):
    data = read(csv(f"a,b\n1,{mark}\n2,4\n3,{mark}\n"))
    assert data.x[:, 1].isnan().tolist() == [True, False, True]
    assert data.notes == ("2 of 6 entries missing",)


def test_a_label_may_be_a_dash(csv):
    assert load(csv("a,k\n1,-\n2,+\n"), labels="k").label_names == ("+", "-")


def test_precision_is_not_lost_on_loading(csv, tmp_path):
    stamps = [1.6e9, 1.6e9 + 60, 1.6e9 + 120, 1.6e9 + 180]
    path = csv("b,t\n" + "".join(f"{i},{stamp:.0f}\n" for i, stamp in enumerate(stamps)))
    np.save(tmp_path / "table.npy", np.column_stack([range(4), stamps]))
    for source, place in ((path, "column 1 ('t')"), (tmp_path / "table.npy", "column 1 ('1')")):
        with pytest.raises(ValueError, match="varies by 67.1 around 1.6e.* precision of float32: pass dtype") as caught:
            load(source)
        assert place in str(caught.value)
        assert read(source).x[:, 1].tolist() == stamps


def test_an_index_in_a_parquet_file(tmp_path):
    path = tmp_path / "table.parquet"
    pl.DataFrame({"a": [1.0, 2.0], "__index_level_0__": ["p", "q"]}).write_parquet(path)
    data = read(path)
    assert (data.columns, data.index.tolist(), data.x.shape) == (("a",), ["p", "q"], (2, 1))


def test_the_options_are_of_csv_files_and_checked(csv, tmp_path):
    np.save(tmp_path / "table.npy", np.ones((2, 2)))
    for source in ("iris", tmp_path / "table.npy"):
        with pytest.raises(ValueError, match="separator, decimal and encoding are of CSV files"):
            load(source, separator=";")
    with pytest.raises(ValueError, match="single character"):
        load(csv("a,b\n1,2\n"), separator=";;")
    with pytest.raises(ValueError, match=r"decimal must be '\.' or ','"):
        load(csv("a,b\n1,2\n"), decimal=";")
    (tmp_path / "table.tsv").write_text(text("\t"))
    assert read(tmp_path / "table.tsv").x.tolist() == X


def test_a_column_that_counts_the_rows_is_named(csv):
    path = csv("id,a,b\n" + "".join(f"{1000 + i},{i * i % 7},{i % 3}\n" for i in range(20)))
    assert any("column 'id' counts the rows" in note for note in load(path).notes)
    for settled in ({"exclude": ["id"]}, {"index": "id"}, {"columns": ["id", "a"]}):
        assert not any("taken as data" in note for note in load(path, **settled).notes)
