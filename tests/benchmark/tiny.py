"""A benchmark of a second, for the tests: means of columns beside a guess."""

import time
from pathlib import Path

import torch

import guides
from zoo.benchmark.suite import Case, Cell, Data, Measure, Method, Published, Suite


def load(seed: int) -> Data:
    """30 rows of three columns, and 10 held out."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Data(train=x[:30], test=x[30:])


def mean(data: Data, cell: Cell) -> torch.Tensor:
    return data.train.mean(0)


def guess(data: Data, cell: Cell) -> torch.Tensor:
    return torch.randn(3, dtype=torch.float64)


def refuse(data: Data, cell: Cell) -> torch.Tensor:
    raise guides.CannotServe("Guess", refuse, "z", "is discrete", "Use Exact.")


def fails_in_seed_1(data: Data, cell: Cell) -> torch.Tensor:
    if cell.seed == 1:
        raise ArithmeticError("no luck")
    return data.train.median(0).values


def error(fitted: torch.Tensor, data: Data, cell: Cell) -> dict[str, float]:
    return {"error": (data.test - fitted).square().mean(), "size": fitted.norm()}


def suite(*extra: Method, wait: float = 0.0, log: Path | None = None, **changed: object) -> Suite:
    """Two cases, three methods, two seeds.

    Args:
        extra: further methods.
        wait: seconds that each cell takes.
        log: a file to which every training adds a line.
        changed: other attributes of the suite.
    """

    def slowly(fitted: torch.Tensor, data: Data, cell: Cell) -> dict[str, float]:
        if log is not None:
            with log.open("a") as stream:
                stream.write(f"{cell.case.name} {cell.seed}\n")
        time.sleep(wait)
        return error(fitted, data, cell)

    methods = (
        Method("mean", mean, {"of": "rows"}, cite=("PPCA",)),
        Method("guess", guess, baseline=True),
        Method("refuses", refuse),
        *extra,
    )
    published = {
        "error": Published(1.05, "Nobody (1900)", "mclust"),
        ("mean", "error"): Published(1.0, "Somebody (1901)"),
    }
    given = {
        "name": "tiny",
        "question": "Is a mean better than a guess?",
        "cases": [
            Case("first_case", load, {"rows": 30}, published, data=("iris",)),
            Case("second", load, {"rows": 30}),
        ],
        "methods": methods,
        "measures": [Measure("error", "units^2", "lower", 3, "squared error"), Measure("size", digits=1)],
        "measure": slowly,
        "seeds": 2,
    }
    return Suite(**{**given, **changed})
