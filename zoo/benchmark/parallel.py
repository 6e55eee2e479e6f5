"""Runs the cells of a benchmark, one after the other or in processes side by side."""

import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

import torch
from joblib.externals.loky import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from zoo.base.threads import exactly
from zoo.benchmark.cells import Task, described, row_of, run_cell

_limits: list[threadpool_limits] = []  # of a worker, for as long as it lives


def rows_of(tasks: Sequence[Task], jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """The rows of the tasks, as they finish.

    Args:
        tasks: in the order in which they start.
        jobs: processes that run them, each a cell at a time; with 1 they run in this process.
        threads: of the processor in all, torch's and those of BLAS; each process has its share, and at least one.
    """
    if jobs == 1:
        for task in tasks:
            with exactly(threads), threadpool_limits(threads):
                row = run_cell(task)
            yield row
    else:
        yield from _side_by_side(tasks, jobs, max(1, threads // jobs))


def _side_by_side(tasks: Sequence[Task], jobs: int, threads: int) -> Iterator[dict[str, Any]]:
    """Every worker is a pool of its own, so that the end of its process tells which cell ended it."""
    waiting = list(reversed(tasks))
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future[dict[str, Any]], tuple[Task, ProcessPoolExecutor]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, worker = waiting.pop(), idle.pop() if idle else _worker(threads)
                running[worker.submit(run_cell, task)] = (task, worker)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, worker = running.pop(future)
                try:
                    row = future.result()
                    idle.append(worker)
                except Exception as error:  # the process has ended, or the task could not be sent
                    worker.shutdown(wait=True, kill_workers=True)
                    row = lost_row(task, error, threads)
                yield row
    finally:
        for worker in [*idle, *(worker for _, worker in running.values())]:
            worker.shutdown(wait=True, kill_workers=True)


def _worker(threads: int) -> ProcessPoolExecutor:
    """A process that takes a task at a time."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return ProcessPoolExecutor(
        1, initializer=_begin, initargs=(threads,), env=dict.fromkeys(names, str(threads)), timeout=None
    )


def _begin(threads: int) -> None:
    """Set the threads of a worker; an interruption from the keyboard is left to the parent, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _limits.append(threadpool_limits(threads))


def lost_row(task: Task, error: Exception, threads: int) -> dict[str, Any]:
    """The row of a task whose process gave no answer."""
    problem = described(error)
    if isinstance(error, BrokenExecutor):
        codes = ", ".join(re.findall(r"[A-Z]+\(-?\d+\)", str(error))) or "no exit code is known"
        message = (
            f"the process of this cell ended before its result ({codes}): a crash in compiled code, or the operating "
            "system ended it, mostly because memory ran out; fewer jobs need less"
        )
        problem = {"failure": "ProcessEnded", "message": message, "place": ""}
    return row_of(
        task,
        "failed",
        [],
        problem,
        data="",
        warnings=[],
        **dict.fromkeys(("seconds", "cpu_seconds", "total_seconds"), float("nan")),
        threads=threads,
        peak_memory=float("nan"),
        memory_of="",
    )
