"""Runs a suite: every cell once, one line on disk per cell, failures as rows; an interrupted run resumes."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

import guides
from zoo.base.threads import suited_to
from zoo.benchmark.rows import Rows
from zoo.benchmark.suite import Cell, Method, Suite


def run(
    suite: Suite,
    folder: str | Path,
    *,
    seeds: Sequence[int] | None = None,
    only: str | None = None,
    methods: Sequence[str] | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pl.DataFrame:
    """Run the cells of a suite that its folder does not hold yet, and return all its rows.

    Args:
        suite: the cases, methods and measures.
        folder: for the rows and tables; created if necessary. Finished cells in it are not run again.
        seeds: by default as many as the suite asks for, from 0.
        only: run only cases with this text in their names.
        methods: names of the methods to run; by default all.
        device: to train on, such as ``"cuda"``.
        report: called with every new cell.

    Returns:
        one row per case, method, seed and point: ``status`` (``"done"``, ``"failed"``, ``"refused"``), ``error``, the
        measures (NaN where there are none), ``seconds``, and the protocol.
    """
    log = Rows(folder)
    done = {(row["case"], row["method"], row["seed"]) for row in log}
    wanted = range(suite.seeds) if seeds is None else seeds
    for case in suite.cases:
        if only is not None and only.lower() not in case.name.lower():
            continue
        for method in suite.methods:
            if (methods is not None and method.name not in methods) or not method.cases(case):
                continue
            for seed in wanted:
                if (case.name, method.name, seed) not in done:
                    row = run_cell(suite, method, Cell(case, seed, device))
                    log.append(row)
                    report(row)
    return table_of(suite, log)


def run_cell(suite: Suite, method: Method, cell: Cell) -> dict[str, Any]:
    """One cell as a line of ``rows.jsonl``: head, status, points and protocol."""
    started = time.perf_counter()
    error, points = "", list[dict[str, Any]]()
    try:
        data = cell.case.load(cell.seed)
        torch.manual_seed(cell.seed)
        with suited_to(data.train.shape):
            fitted = method.train(data, cell)
            seconds = time.perf_counter() - started
            found = suite.measure(fitted, data, cell)
        points = [dict(found)] if isinstance(found, Mapping) else [dict(point) for point in found]
        status = "done"
    except guides.CannotServe as refusal:
        status, error, seconds = "refused", str(refusal), time.perf_counter() - started
    except Exception as failure:  # a row, so that the rest goes on
        status, error = "failed", f"{type(failure).__name__}: {failure}"
        seconds = time.perf_counter() - started
    return {
        "suite": suite.name,
        "budget": suite.budget,
        "case": cell.case.name,
        "method": method.name,
        "seed": cell.seed,
        "status": status,
        "error": error,
        "points": points,
        "seconds": seconds,
        "protocol": json.dumps({**cell.case.protocol, **method.protocol}, default=str),
    }


def table_of(suite: Suite, rows: Iterator[dict[str, Any]] | Rows) -> pl.DataFrame:
    """The cells as a table, one row per point."""
    empty: dict[str, Any] = {measure.name: math.nan for measure in suite.measures}
    lines = []
    for row in rows:
        head = {key: value for key, value in row.items() if key != "points"}
        lines += [{**head, **empty, **point} for point in row["points"] or [{}]]
    return pl.DataFrame(lines, infer_schema_length=None)
