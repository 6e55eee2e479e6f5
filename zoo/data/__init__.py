"""Data sets as tensors: built-in ones by name, users' own from files, and from data frames and arrays in memory."""

from zoo.base.moments import Moments
from zoo.data.conversion import as_dataset
from zoo.data.dataset import Dataset
from zoo.data.loading import load, names
from zoo.data.square import load_moments

__all__ = [
    "Dataset",
    "Moments",
    "as_dataset",
    "load",
    "load_moments",
    "names",
]
