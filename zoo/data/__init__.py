"""Data sets as tensors: built-in ones by name, users' own from files, and from data frames and arrays in memory.

What a benchmark needs of them, so that its numbers can be repeated: :func:`load_parts` gives training, validation and
test rows with a record of the split, the binarisation and the fingerprints of the rows.
"""

from zoo.base.moments import Moments
from zoo.data.binarisation import binarised, binarising
from zoo.data.conversion import as_dataset
from zoo.data.dataset import Dataset
from zoo.data.fingerprints import fingerprint
from zoo.data.loading import Provenance, load, names, provenance
from zoo.data.parts import Parts, load_parts
from zoo.data.removal import random_mask, remove
from zoo.data.splits import Split, rows_in_order, split_rows
from zoo.data.square import load_moments

__all__ = [
    "Dataset",
    "Moments",
    "Parts",
    "Provenance",
    "Split",
    "as_dataset",
    "binarised",
    "binarising",
    "fingerprint",
    "load",
    "load_moments",
    "load_parts",
    "names",
    "provenance",
    "random_mask",
    "remove",
    "rows_in_order",
    "split_rows",
]
