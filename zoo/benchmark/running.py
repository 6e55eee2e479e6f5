"""Runs a suite: every cell once, one line on disk per cell, failures as rows; an interrupted run resumes."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from zoo.base.checks import check_whole
from zoo.benchmark.cells import Task
from zoo.benchmark.citing import cited
from zoo.benchmark.folder import head_of, protocol_text, refuse_others
from zoo.benchmark.parallel import rows_of
from zoo.benchmark.rows import Rows, held
from zoo.benchmark.suite import Cell, Method, Suite
from zoo.infer.pairing import check_device

LISTS = ("warnings", "points")  # columns of a line that are no columns of the table
COLUMNS = ("case", "method", "seed", "status", "failure", "message", "place", "seconds", "cpu_seconds", "threads")


def run(
    suite: Suite,
    folder: str | Path,
    *,
    seeds: int | Sequence[int] | None = None,
    only: str | None = None,
    methods: Sequence[str] | None = None,
    jobs: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    retry_failed: bool = False,
    again: bool = False,
    report: Callable[[dict[str, Any], int, int], None] = lambda row, number, count: None,
) -> pl.DataFrame:
    """Run the cells of a suite that its folder does not hold yet, and return all its rows.

    Every finished cell is a line of ``rows.jsonl``, written at once, so that a run that was killed goes on where it
    was. An error in a cell is a row of its own, and the rest goes on.

    Args:
        suite: the cases, methods and measures.
        folder: for the rows and tables; created if necessary. Finished cells in it are not run again.
        seeds: how many, from 0, or which; by default as many as the suite asks for.
        only: run only cases with this text in their names.
        methods: names of the methods to run; by default all.
        jobs: processes that run cells side by side.
        device: to train on, such as ``"cuda"``.
        threads: of the processor, for all jobs together; by default ``torch.get_num_threads()``.
        retry_failed: run cells that failed again.
        again: run methods again whose protocol is not the one in the folder, which is otherwise an error.
        report: called with every new row, its number and the number of cells that are run.

    Returns:
        one row per case, method, seed and point, in the order of the suite: the measures (NaN where there are none),
        ``status`` (``"done"``, ``"failed"``, ``"refused"``), ``failure``, ``message`` and ``place``; ``seconds`` and
        ``cpu_seconds`` of the training, ``total_seconds`` with loading and measuring, ``peak_memory`` in MiB; suite,
        protocols, versions and machine.

    Raises:
        ValueError: there is no such case, method, seed or device, nothing to cite of a name, or the folder holds rows
            of another suite, budget or protocol.
        BlockingIOError: another run writes to the folder.
        NotADirectoryError: the folder is a file.
    """
    tasks = tasks_of(suite, seeds_of(suite, seeds), only, methods, device)
    cited(suite)  # refuses names that cannot be cited before the work, not after it
    count = torch.get_num_threads() if threads is None else check_whole(threads, "threads")
    check_whole(jobs, "jobs")
    check_device(device)
    with held(folder) as path:
        log = Rows(path)
        refuse_others(suite, log, path, again=again)
        done = {key_of(row): row["method_protocol"] for row in log if not (retry_failed and row["status"] == "failed")}
        left = [task for task in tasks if done.get(task.key) != task.head["method_protocol"]]
        rows = {(row["case"], row["seed"]): row["data"] for row in log if row["data"]}
        for number, row in enumerate(rows_of(left, jobs, count), 1):
            _refuse_other_rows(row, rows)
            log.append(row)
            report(row, number, len(left))
        return table_of(suite, log)


def _refuse_other_rows(row: dict[str, Any], known: dict[tuple[str, int], str]) -> None:
    """Make a cell whose rows are not those of the other methods a failed one.

    Args:
        row: of the cell; changed in place.
        known: the fingerprints of the rows by case and seed; that of a new case and seed is added.
    """
    there, here = known.setdefault((row["case"], row["seed"]), row["data"]), row["data"]
    if here and there != here:
        message = f"the rows have the fingerprint {here}, those of the other methods {there}: use another folder"
        row.update(status="failed", failure="OtherRows", message=message, points=[])
    elif not there:
        del known[row["case"], row["seed"]]  # they could not be loaded


def tasks_of(
    suite: Suite,
    seeds: Sequence[int],
    only: str | None,
    names: Collection[str] | None,
    device: str,
) -> list[Task]:
    """The cells of a suite in their order: case by case, method by method.

    Raises:
        ValueError: two have the same name, or that of a column that every table has; no case has ``only`` in its name;
            there is no such method.
    """
    _refuse_twice("case", [case.name for case in suite.cases])
    _refuse_twice("method", [method.name for method in suite.methods])
    _refuse_twice("measure or coordinate", [*COLUMNS, *(measure.name for measure in suite.measures), *suite.along])
    cases = [case for case in suite.cases if only is None or only.lower() in case.name.lower()]
    if not cases:
        known = ", ".join(case.name for case in suite.cases)
        raise ValueError(f"no case has only={only!r} in its name: choose from {known}")
    wanted = _chosen(suite.methods, names)
    head = head_of(suite)
    tasks = []
    for case in cases:
        for method in (method for method in wanted if method.cases(case)):
            protocols = {
                "case_protocol": protocol_text(case.name, case.protocol),
                "method_protocol": protocol_text(method.name, method.protocol),
            }
            cells = (Cell(case, seed, device) for seed in seeds)
            sent = replace(method, cite=())  # a class of the user's file is no use to another process
            tasks += [Task(sent, cell, suite.measure, {**head, **protocols}) for cell in cells]
    return tasks


def seeds_of(suite: Suite, seeds: int | Sequence[int] | None) -> list[int]:
    """The seeds to run: a number counts from 0.

    Raises:
        ValueError: there is none, or one is no whole number of at least 0.
    """
    if seeds is None or isinstance(seeds, int):
        return list(range(suite.seeds if seeds is None else check_whole(seeds, "seeds")))
    if not seeds:
        raise ValueError("seeds must hold at least one seed")
    return [check_whole(seed, "seeds", 0) for seed in seeds]


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """Case, method and seed."""
    return row["case"], row["method"], row["seed"]


def table_of(suite: Suite, rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """The last row of every cell as a table, one row per point, in the order of cases, methods and seeds.

    Cases and methods that the suite does not have come last.
    """
    last = {key_of(row): row for row in rows}
    cases = [case.name for case in suite.cases]
    methods = [method.name for method in suite.methods]
    cases += [name for name in dict.fromkeys(case for case, _, _ in last) if name not in cases]
    methods += [name for name in dict.fromkeys(method for _, method, _ in last) if name not in methods]
    ordered = sorted(
        last.values(), key=lambda row: (cases.index(row["case"]), methods.index(row["method"]), row["seed"])
    )
    empty: dict[str, Any] = {**dict.fromkeys(suite.along), **{measure.name: math.nan for measure in suite.measures}}
    lines = []
    for row in ordered:
        head = {key: value for key, value in row.items() if key not in LISTS}
        head["warnings"] = "\n".join(row["warnings"])
        lines += [{**head, **empty, **point} for point in row["points"] or [{}]]
    return pl.DataFrame(lines, infer_schema_length=None)


def _chosen(methods: Sequence[Method], names: Collection[str] | None) -> list[Method]:
    """The methods with these names, in any case of letters.

    Raises:
        ValueError: there is none of a name.
    """
    if names is None:
        return list(methods)
    known = {method.name.lower(): method for method in methods}
    if unknown := [name for name in names if name.lower() not in known]:
        choice = ", ".join(repr(method.name) for method in methods)
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {choice}")
    chosen = {name.lower() for name in names}
    return [method for method in methods if method.name.lower() in chosen]


def _refuse_twice(kind: str, names: Sequence[str]) -> None:
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{kind} {twice[0]!r}: another one, or a column, has the same name; give each its own")
