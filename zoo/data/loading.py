"""Loading a data set by its name or from a file."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from zoo.data.catalogue import CATALOGUE, Entry
from zoo.data.dataset import Dataset
from zoo.data.files import read_file
from zoo.data.table import FrameTable, RowNames, Table, nearest, pick
from zoo.data.text import Format

COUNTED = 10  # rows from which on a column that counts them is no chance


def names() -> tuple[str, ...]:
    """The names of the data sets that :func:`load` provides.

    >>> names()
    ('iris', 'wine', 'digits', 'breast_cancer', 'faithful', 'holzinger', 'mnist', 'mnist-test', 'frey_faces')
    """
    return tuple(CATALOGUE)


@dataclass(frozen=True)
class Provenance:
    """Where a data set comes from.

    Attributes:
        source: a citation of the origin.
        licence: terms of use.
    """

    source: str
    licence: str

    def __str__(self) -> str:
        return f"{self.source} ({self.licence})"


def provenance(name: str) -> Provenance:
    """Where a data set of :func:`names` comes from, without loading it; a loaded one has the same in its attributes.

    Raises:
        ValueError: the name is unknown.

    >>> print(provenance("faithful"))
    Azzalini and Bowman (1990), Applied Statistics 39; from R's datasets::faithful (GPL-2 or GPL-3 (R))
    """
    if name not in CATALOGUE:
        raise ValueError(f"unknown data set {name!r}: {nearest(name, names())}")
    return Provenance(CATALOGUE[name].source, CATALOGUE[name].licence)


def load(
    source: str | os.PathLike[str],
    *,
    columns: Sequence[str | int] | None = None,
    exclude: Sequence[str | int] = (),
    labels: str | int | None = None,
    index: str | int | None = None,
    dtype: torch.dtype | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
) -> Dataset:
    """Loads a data set by name, or a table from a CSV, Parquet or NPY file.

    Data sets by name, in raw values unless stated otherwise, rows x columns:

    - `iris` 150 x 4 [cm], `wine` 178 x 13, `digits` 1797 x 64 [0..16], `breast_cancer` 569 x 30;
    - `faithful` 272 x 2, eruption and waiting time of Old Faithful [min], no labels;
    - `holzinger` 301 x 9, tests `x1`..`x9`; labels are the two schools;
    - `mnist` 60000 x 784 and `mnist-test` 10000 x 784, pixels of 28 x 28 divided by 255 to [0, 1];
    - `frey_faces` 1965 x 560, pixels of 28 x 20 divided by 255 to [0, 1], no labels.

    MNIST and Frey's faces are downloaded once, unless the environment variable LATENT_ZOO_DATA names a folder with
    MNIST's four .gz files, directly or under mnist/, and Frey's frey_rawface.mat or frey_faces.npz, directly or under
    frey_faces/. Checksums are verified in both cases.

    Files: a CSV file has a header line. Its fields are separated by commas, semicolons, tabs or bars, with decimal
    points or commas, in UTF-8, UTF-16 with a byte order mark, or Windows-1252; a first column that has no name, or is
    unique text, names the rows. All this is found from the content, stated in ``notes``, and refused where two readings
    are possible. An NPY array is (n, d), with columns named by position; a large one (2**26 numbers or more) of type
    ``dtype`` stays on disk, memory-mapped with copy on write. Missing entries (blank, NA, N/A, null, None, ?, -, and
    the other marks of pandas) become NaN, infinite entries are kept, and booleans become 0 and 1.

    Args:
        source: one of :func:`names`, or the path of a .csv, .tsv, .parquet or .npy file.
        columns: the columns of ``x``, in this order: names, or positions for NPY. By default all but the labels and the
            index (`holzinger`: only the tests).
        exclude: columns to leave out of ``x``.
        labels: the column of labels, text or integers, encoded in sorted order. By default the data set's own; none for
            a file.
        index: the column of the names of the rows; None for the first column of a CSV file if it has no name or is
            unique text, and for the index that pandas writes into Parquet files.
        dtype: floating-point type of ``x``; by default torch's default type.
        separator: between the fields of a CSV file; None finds it.
        decimal: the decimal mark of a CSV file, ``"."`` or ``","``; None finds it.
        encoding: of a CSV file, a name that Python knows; None finds it.

    Returns:
        A :class:`Dataset` with ``x`` (n, d) and ``labels`` (n,), on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ConnectionError: MNIST or Frey's faces cannot be downloaded.
        ValueError: the name, the suffix or a column is unknown, the file is damaged or empty, or a column does not
            contain numbers, or labels; a CSV file can be read in two ways; or ``dtype`` cannot hold the variation of a
            column beside its offset.

    >>> load("iris")
    Dataset(iris: 150 rows x 4 columns, 3 labels; Fisher (1936), Annals of Eugenics 7; from scikit-learn)
    >>> load("faithful", columns=["waiting"]).x[:2]
    tensor([[79.],
            [54.]])
    """
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} cannot represent missing values: choose a floating-point type")
    name, entry = find(source, Format(separator, decimal, encoding))
    table = entry.read()

    label = entry.labels if labels is None else pick(labels, table.columns, name)
    names = _row_names(table, None if index is None else pick(index, table.columns, name), label)
    if columns is None:
        default = table.columns if entry.columns is None else entry.columns
        taken = (label, entry.labels, None if names is None else names.column)
        chosen = tuple(column for column in default if column not in taken)
    else:
        chosen = _picked(columns, "columns", table, name)
    out = _picked(exclude, "exclude", table, name)
    chosen = tuple(column for column in chosen if column not in out)
    if not chosen:
        raise ValueError(f"{name}: no columns left for x")
    repeated = {column for column in chosen if chosen.count(column) > 1}
    if repeated:
        raise ValueError(f"{name}: columns repeats {min(repeated)!r}")

    read = table.settled(chosen) if isinstance(table, FrameTable) and table.decimal is None else table
    x = read.numbers(chosen, dtype)
    codes, label_names = (None, ()) if label is None else table.labels(label)
    own = None if names is None else names.names
    notes = (*read.notes, *_notes(names, x)) if isinstance(read, FrameTable) else ()
    if isinstance(read, FrameTable) and columns is None and _counts(x[:, 0]):
        notes += (f"column {chosen[0]!r} counts the rows but is taken as data: exclude it if it only names them",)
    return Dataset(x, codes, label_names, chosen, name, entry.source, entry.licence, own, notes)


def _picked(wanted: Sequence[str | int], argument: str, table: Table, name: str) -> tuple[str, ...]:
    """The names of the columns that an argument lists."""
    if isinstance(wanted, str):
        raise ValueError(f"{argument}={wanted!r} is one string: pass a list, {argument}=[{wanted!r}]")
    return tuple(pick(column, table.columns, name) for column in wanted)


def _row_names(table: Table, index: str | None, label: str | None) -> RowNames | None:
    """The names of the rows: the column ``index``, or what the reader found, unless that has the labels."""
    if index is not None:
        return RowNames(index, table.text(index))
    return None if table.index is None or table.index.column == label else table.index


def _counts(column: Tensor) -> bool:
    """Whether a column (n,) of some length counts its rows: whole numbers, each one more than the one before."""
    return len(column) >= COUNTED and bool((column == column.round()).all() and (column.diff() == 1).all())


def _notes(names: RowNames | None, x: Tensor) -> Iterator[str]:
    """What was found about rows and entries, in words."""
    if names is not None:
        title = f"column {names.column!r}" if names.column else "the first column"
        yield f"rows named by {title}" if names.names is not None else f"{title} counts the rows and is left out"
    if missing := int(x.isnan().sum()):
        yield f"{missing} of {x.numel()} entries missing"


def find(source: str | os.PathLike[str], how: Format | None = None) -> tuple[str, Entry]:
    """Name and entry of a data set in the catalogue, or of a file, which is written as ``how`` says."""
    if isinstance(source, str) and source in CATALOGUE:
        if how not in (None, Format()):
            raise ValueError(f"{source} is no CSV file: separator, decimal and encoding are of CSV files")
        return source, CATALOGUE[source]
    path = Path(source).expanduser()
    if isinstance(source, str) and Path(source).name == source and not path.suffix and not path.is_file():
        raise ValueError(f"unknown data set {source!r}: {nearest(source, names())}")
    return path.stem, Entry(partial(read_file, path, how), path.name, "not stated")
