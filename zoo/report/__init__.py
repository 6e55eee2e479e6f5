"""One page on a run: what was fitted, whether to believe it, and why."""

from zoo.report.page import report

__all__ = [
    "report",
]
