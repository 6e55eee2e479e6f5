"""A covariance or correlation matrix from a file."""

import os

import torch

from zoo.base.moments import Divisor, Moments
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
    table = load(path, dtype=torch.float64)
    if len(table) != len(table.columns):
        raise ValueError(
            f"{path} has {len(table)} rows and {len(table.columns)} columns of numbers: a covariance or correlation "
            "matrix is square, with a header of names, and may have these names in its first column"
        )
    listed = [] if table.index is None or table.index.dtype.kind in "iu" else table.index.tolist()
    for i, (row, column) in enumerate(zip(listed, table.columns, strict=False)):
        if row != column:
            raise ValueError(
                f"{path}: row {i} is named {row!r}, column {i} {column!r}: a covariance matrix has the same names in "
                "rows and columns"
            )
    if ((table.x.diagonal() - 1).abs() < 1e-9).all():
        return Moments.from_correlation(table.x, n, columns=table.columns)
    return Moments.from_covariance(table.x, n, columns=table.columns, divisor=divisor)
