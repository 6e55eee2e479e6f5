"""The suites of this package by name."""

import importlib

from zoo.benchmark.suite import BUDGETS, Suite

SUITES: tuple[str, ...] = (
    "aevb",
    "clustering",
    "conjugate",
    "deep",
    "gaps",
    "gradients",
    "imputation",
    "iwae",
    "linear-vae",
)


def named_suite(name: str, budget: str = "quick") -> Suite:
    """A suite of this package, from the module of its name in :mod:`zoo.benchmark.suites`.

    Raises:
        ValueError: there is no such suite or budget.
    """
    if name not in SUITES:
        raise ValueError(f"unknown benchmark {name!r}: choose from {', '.join(SUITES)}")
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}; got {budget!r}")
    made: Suite = importlib.import_module(f"zoo.benchmark.suites.{name.replace('-', '_')}").suite(budget)
    return made
