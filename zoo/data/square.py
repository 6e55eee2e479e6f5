"""A covariance or correlation matrix from a file."""

import os
from pathlib import Path

import torch

from zoo.base.moments import Divisor, Moments
from zoo.data.files import read_file
from zoo.data.loading import load


def load_moments(path: str | os.PathLike[str], n: float, *, divisor: Divisor = "n-1") -> Moments:
    """A covariance or correlation matrix of n rows from a CSV or Parquet file: a square table with a header.

    A first column of names, as R's ``write.csv`` puts there, must hold the names of the header in its order. A matrix
    with ones on its diagonal is a correlation matrix.

    Args:
        path: of the file.
        n: the number of rows behind the matrix.
        divisor: of a covariance matrix: ``"n-1"`` as in R, pandas and NumPy, or ``"n"``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the table is not square, its two lists of names differ, or as for
            :meth:`zoo.data.Moments.from_covariance`.
    """
    columns = list(read_file(Path(path)).columns)
    names = columns[1:] if len(columns) > 1 else columns
    rows = len(load(path, columns=names, dtype=torch.float64))
    if rows == len(names) and len(columns) > 1:
        table = load(path, columns=names, labels=columns[0], dtype=torch.float64)
        assert table.labels is not None
        listed = [str(table.label_names[label]) for label in table.labels.tolist()]
        if listed != names:
            i = next(i for i in range(rows) if listed[i] != names[i])
            raise ValueError(
                f"{path}: row {i} is named {listed[i]!r}, column {i} {names[i]!r}: a covariance matrix has the same "
                "names in rows and columns"
            )
    elif rows == len(columns):
        table = load(path, columns=columns, dtype=torch.float64)
    else:
        raise ValueError(
            f"{path} has {rows} rows and {len(columns)} columns: a covariance or correlation matrix is square, with a "
            "header of names, and may have these names in its first column"
        )
    if ((table.x.diagonal() - 1).abs() < 1e-9).all():
        return Moments.from_correlation(table.x, n, columns=table.columns)
    return Moments.from_covariance(table.x, n, columns=table.columns, divisor=divisor)
