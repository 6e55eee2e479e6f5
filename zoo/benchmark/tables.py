"""The table of a benchmark as text."""

import polars as pl

from zoo.benchmark.suite import Suite


def summary(suite: Suite, table: pl.DataFrame) -> str:
    """Means over the seeds, in Markdown."""
    names = [measure.name for measure in suite.measures]
    groups = ["case", "method", *suite.along]
    means = table.group_by(groups, maintain_order=True).agg(*(pl.col(name).mean() for name in names))
    lines = ["| " + " | ".join(means.columns) + " |", "|---" * len(means.columns) + "|"]
    for row in means.iter_rows():
        cells = (f"{value:.5g}" if isinstance(value, float) else str(value) for value in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
