"""Benchmarks: how good is a method beside others, on the same rows, with the same protocol?

A :class:`Suite` is cases x methods x seeds and the measures taken of every trained method. :func:`run` runs its cells,
in processes if asked, and resumes where it was interrupted; :func:`write` writes the table as CSV, netCDF, Markdown and
LaTeX, with a figure and a page. :func:`named_suite` has those of the package, which ``zoo benchmark`` runs by name.

Example:
    >>> import tempfile
    >>> import polars as pl
    >>> import torch
    >>> def load(seed: int) -> Data:
    ...     x = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed))
    ...     return Data(train=x[:40], test=x[40:])
    >>> def error(center: torch.Tensor, data: Data, cell: Cell) -> dict[str, float]:
    ...     return {"error": float((data.test - center).square().mean())}
    >>> suite = Suite(
    ...     name="center",
    ...     question="Mean or median?",
    ...     cases=[Case("normal", load, protocol={"rows": "40 for training, 20 held out"})],
    ...     methods=[
    ...         Method("mean", lambda data, cell: data.train.mean(0)),
    ...         Method("median", lambda data, cell: data.train.median(0).values),
    ...     ],
    ...     measures=[Measure("error", better="lower", digits=3)],
    ...     measure=error,
    ...     seeds=3,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = run(suite, folder)
    ...     files = write(suite, table, folder)
    >>> table.group_by("method", maintain_order=True).agg(pl.col("error").mean().round(3)).rows()
    [('mean', 1.07), ('median', 1.13)]
"""

from zoo.benchmark.named import named_suite
from zoo.benchmark.running import run
from zoo.benchmark.suite import (
    Case,
    Cell,
    Claim,
    Data,
    Estimator,
    Measure,
    Method,
    Own,
    Pair,
    Published,
    Suite,
)
from zoo.benchmark.writing import write

__all__ = [
    "Case",
    "Cell",
    "Claim",
    "Data",
    "Estimator",
    "Measure",
    "Method",
    "Own",
    "Pair",
    "Published",
    "Suite",
    "named_suite",
    "run",
    "write",
]
