"""Data sets as tensors: bundled ones by name, your own from CSV, Parquet and NPY files."""

from zoo.data.dataset import Dataset
from zoo.data.loading import load, names

__all__ = [
    "Dataset",
    "load",
    "names",
]
