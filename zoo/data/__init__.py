"""Data sets as tensors: built-in ones by name, and users' own from CSV, Parquet and NPY files."""

from zoo.data.dataset import Dataset
from zoo.data.loading import load, names

__all__ = [
    "Dataset",
    "load",
    "names",
]
