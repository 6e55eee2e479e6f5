"""One cell of a benchmark: a method trained on a case with a seed, measured, as a line of ``rows.jsonl``."""

import functools
import hashlib
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyro
import torch

import guides
from zoo.base.random import seeded
from zoo.base.threads import suited_to
from zoo.benchmark.suite import Cell, Data, DoesNotApply, Method, Point
from zoo.benchmark.surroundings import machine, versions, watch_memory
from zoo.data.fingerprints import fingerprint
from zoo.infer.fitting import fit
from zoo.models.ppca import PPCA

OTHERS = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
NO_ERROR = {"failure": "", "message": "", "place": ""}
OURS = Path(guides.__file__).resolve().parents[1]  # the folder that holds zoo and guides


@dataclass(frozen=True, eq=False)
class Task:
    """What a process is given to run a cell.

    Attributes:
        method: to train.
        cell: case, seed and device.
        measure: the suite's measures of what was trained.
        head: the suite and the protocols, as columns.
    """

    method: Method
    cell: Cell
    measure: Callable[[Any, Data, Cell], Point | Iterable[Point]]
    head: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, int]:
        """Case, method and seed."""
        return self.cell.case.name, self.method.name, self.cell.seed


def run_cell(task: Task) -> dict[str, Any]:
    """Train and measure; a row with status, points, and everything that a reader needs to run it again.

    ``status`` is ``"done"``, ``"refused"`` (the method does not apply: ``DoesNotApply`` or :class:`guides.CannotServe`)
    or ``"failed"`` (any other error but an interruption). The caller's random streams and parameter store are left as
    they were.
    """
    _warm_up()
    watch = _Clock()
    peak = watch_memory()
    points, status, problem, rows = list[dict[str, Any]](), "done", NO_ERROR, ""
    with warnings.catch_warnings(record=True) as said, seeded(task.cell.seed), pyro.get_param_store().scope():
        warnings.simplefilter("default")
        try:
            data = task.cell.case.load(task.cell.seed)
            rows = _fingerprint(data)
            points = _points(task, data, watch)
        except Exception as error:  # a row, so that the rest goes on
            status = "refused" if isinstance(error, guides.CannotServe | DoesNotApply) else "failed"
            problem = described(error)
    memory, of = peak()
    return row_of(
        task,
        status,
        points,
        problem,
        data=rows,
        warnings=list(dict.fromkeys(f"{one.category.__name__}: {_line(one.message)}" for one in said)),
        **watch.columns(),
        threads=torch.get_num_threads(),
        peak_memory=memory,
        memory_of=of,
    )


@functools.cache
def _warm_up() -> None:
    """Fit something small, so that the time and memory of a process's first cell are not those of loading torch."""
    with warnings.catch_warnings(), seeded(0), pyro.get_param_store().scope():
        warnings.simplefilter("ignore")
        x = torch.randn(10, 2)
        model = PPCA(2, 1)
        fit(model, guides.MeanField(model, x), x, progress=False)


def row_of(
    task: Task,
    status: str,
    points: list[dict[str, Any]],
    problem: Mapping[str, str],
    **measured: Any,
) -> dict[str, Any]:
    """A line of ``rows.jsonl``."""
    case, method, seed = task.key
    return {
        **task.head,
        "case": case,
        "method": method,
        "seed": seed,
        "status": status,
        **problem,
        "points": points,
        **measured,
        **versions(),
        **machine(task.cell.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def described(error: BaseException) -> dict[str, str]:
    """An error's type, message, and the last line of ours or the user's that it came through, as columns."""
    return {"failure": type(error).__name__, "message": _line(error), "place": _place(error)}


def _line(message: object) -> str:
    """A message on one line, without the shapes of all sites that Pyro appends.

    >>> _line(ValueError("Shape mismatch at site z\\n Trace Shapes:  \\n  z dist 3 | 2"))
    'Shape mismatch at site z'
    """
    return " ".join(str(message).partition("Trace Shapes:")[0].split())


def _fingerprint(data: Data) -> str:
    """Of training, held-out and validation rows."""
    parts = [fingerprint(part) for part in (data.train, data.test, data.validation) if part is not None]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _points(task: Task, data: Data, watch: "_Clock") -> list[dict[str, Any]]:
    """The measures of the trained method, at one point or along a curve."""
    cell = task.cell
    watch.start()
    torch.manual_seed(cell.seed)  # the same stream for every method, however much the loading drew
    with suited_to(tuple(data.train.shape)):
        fitted = task.method.train(data, cell)
    watch.stop()
    found = task.measure(fitted, data, cell)
    points = [found] if isinstance(found, Mapping) else list(found)
    return [{name: _plain(name, value) for name, value in point.items()} for point in points]


def _plain(name: str, value: Any) -> float | int | str:
    """A number or a text, from a scalar of torch or numpy too.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise TypeError(f"the measure {name!r} must be a number or a text, got {type(value).__name__}")
    return value


def _place(error: BaseException) -> str:
    """The last line of the traceback outside the standard library and the packages of others."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename).resolve()
        ours = file.is_relative_to(OURS / "zoo") or file.is_relative_to(OURS / "guides")
        if ours or not any(file.is_relative_to(other) for other in OTHERS):
            name = file.relative_to(OURS).as_posix() if ours else file.name
            found = f"{name}, line {frame.lineno}, in {frame.name}"
    return found


class _Clock:
    """Seconds of a cell on the wall and of the processor: of the training alone, and of all."""

    def __init__(self) -> None:
        self._begun = self._from = _now()
        self._until: tuple[float, float] | None = None

    def start(self) -> None:
        """The training begins."""
        self._from = _now()

    def stop(self) -> None:
        """The training has ended."""
        self._until = _now()

    def columns(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` of the training, ``total_seconds`` with loading and measuring."""
        now = _now()
        until = self._until or now
        return {
            "seconds": until[0] - self._from[0],
            "cpu_seconds": until[1] - self._from[1],
            "total_seconds": now[0] - self._begun[0],
        }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
