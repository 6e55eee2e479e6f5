"""Export of fitted runs to ArviZ: as an object in memory (``to_arviz``) or as a file (``write_arviz``)."""

from zoo.export.compare import elpd
from zoo.export.convert import to_arviz
from zoo.export.write import write_arviz

__all__ = [
    "elpd",
    "to_arviz",
    "write_arviz",
]
