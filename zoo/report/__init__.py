"""A run on one HTML page: what was fitted, whether its posterior can be trusted, and why."""

from zoo.report.page import report

__all__ = [
    "report",
]
