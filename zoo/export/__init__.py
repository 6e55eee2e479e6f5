"""How does a fitted run become an ArviZ object or file?"""

from zoo.export.compare import elpd
from zoo.export.convert import to_arviz
from zoo.export.write import write_arviz

__all__ = [
    "elpd",
    "to_arviz",
    "write_arviz",
]
