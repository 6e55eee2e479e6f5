"""What to cite for the table of a benchmark."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from zoo.benchmark.suite import Suite
from zoo.citation import Entry, citations


def cited(suite: Suite, table: pl.DataFrame | None = None) -> list[Entry]:
    """The references of the package, and of the data sets, methods and published values of a suite.

    Args:
        suite: that was run.
        table: of its rows; only the cases and methods in it are cited. By default all are.

    Raises:
        ValueError: there is nothing to cite of a name.
    """
    return citations("latent-zoo", *_things(suite, table))


def _things(suite: Suite, table: pl.DataFrame | None) -> Iterator[Any]:
    cases = [case for case in suite.cases if table is None or case.name in set(table["case"])]
    for case in cases:
        yield from case.data
    for method in suite.methods:
        if table is None or method.name in set(table["method"]):
            yield from method.cite
    for case in cases:
        yield from (published.cite for published in case.published.values() if published.cite)


def listed(entries: list[Entry]) -> str:
    """References as a Markdown list, each with what it stands for."""
    return "\n".join(f"- {entry.text}" + f" ({', '.join(entry.of)})" * bool(entry.of) for entry in entries)
