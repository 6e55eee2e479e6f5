"""Fitted runs as ArviZ objects and files, and Pareto-smoothed importance weights."""

from zoo.export.compare import elpd
from zoo.export.convert import to_arviz
from zoo.export.psis import psis_khat, psis_weights
from zoo.export.write import write_arviz

__all__ = ["elpd", "psis_khat", "psis_weights", "to_arviz", "write_arviz"]
