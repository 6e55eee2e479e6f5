"""A fitted run as an ArviZ object or file, and Pareto-smoothed importance weights."""

from zoo.export.convert import to_arviz
from zoo.export.psis import psis_khat, psis_weights

__all__ = ["psis_khat", "psis_weights", "to_arviz"]
