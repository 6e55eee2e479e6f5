"""Means over the seeds of a benchmark, their standard errors, and which methods are as good as the best."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from zoo.benchmark.suite import Measure, Suite

WITHIN = 2.0  # paired standard errors of the best
Place = tuple[str, ...]  # a case, and the texts among the coordinates


@dataclass(frozen=True)
class Entry:
    """A method's values of a measure at a place of the table.

    Attributes:
        values: by seed, where the cell is done and the measure is defined.
        done: seeds whose cells are done.
        failed: the number of cells that failed.
        refused: the number of cells that the method refused.
        best: whether it is the best, or not to be told from it.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    refused: int = 0
    best: bool = False

    @property
    def mean(self) -> float:
        """The mean over the seeds; NaN where there is no value."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def se(self) -> float:
        """The standard error of the mean; NaN with fewer than two values."""
        return standard_error(list(self.values.values()))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean; NaN with fewer than two values, or where one is infinite.

    >>> standard_error([1.0, 3.0])
    1.0
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def methods_of(suite: Suite, table: pl.DataFrame) -> list[str]:
    """The methods of a table, in the order of the suite; others last."""
    found = list(dict.fromkeys(table["method"]))
    known = [method.name for method in suite.methods if method.name in found]
    return [*known, *(name for name in found if name not in known)]


def places_of(suite: Suite, table: pl.DataFrame) -> list[Place]:
    """The rows that a table has for every method: cases, and the texts along which measures are taken."""
    parts = texts_along(suite, table)
    done = table.filter(pl.col("status") == "done").select("case", *parts).unique(maintain_order=True).rows()
    cases = list(dict.fromkeys(table["case"]))
    empty = [(case, *[""] * len(parts)) for case in cases if case not in {place[0] for place in done}]
    return sorted([*done, *empty], key=lambda place: cases.index(place[0]))


def texts_along(suite: Suite, table: pl.DataFrame) -> list[str]:
    """The coordinates that are texts: each has rows of its own, where numbers are followed to their end."""
    return [name for name in suite.along if name in table.columns and table[name].dtype == pl.String]


def entries(suite: Suite, table: pl.DataFrame, measure: Measure) -> dict[tuple[Place, str], Entry]:
    """The entries of a measure by place and method, with the best of every place marked.

    Along numbers (a curve) the last point counts.
    """
    parts = texts_along(suite, table)
    found: dict[tuple[Place, str], Entry] = {}
    last = table.group_by("case", "method", "seed", "status", *parts, maintain_order=True).last()
    missing = dict[tuple[str, str], Entry]()
    for row in last.iter_rows(named=True):
        place, method = (row["case"], *(row[name] for name in parts)), row["method"]
        if row["status"] != "done":
            before = missing.get((row["case"], method), Entry())
            missing[row["case"], method] = replace(before, **{row["status"]: getattr(before, row["status"]) + 1})
            continue
        before = found.get((place, method), Entry())
        value = row[measure.name]
        kept = {} if value is None or math.isnan(value) else {row["seed"]: float(value)}
        found[place, method] = replace(before, values={**before.values, **kept}, done=before.done + 1)
    for place in places_of(suite, table):
        for (case, method), entry in missing.items():
            if case == place[0]:
                here = found.get((place, method), Entry())
                found[place, method] = replace(here, failed=entry.failed, refused=entry.refused)
        _mark(found, place, measure)
    return found


def _mark(found: dict[tuple[Place, str], Entry], place: Place, measure: Measure) -> None:
    """Mark the best entry of a place, and those that are not to be told from it."""
    if measure.better is None:
        return
    here = {method: entry for (other, method), entry in found.items() if other == place and entry.values}
    good = good_methods({method: entry.values for method, entry in here.items()}, measure)
    for method in good:
        found[place, method] = replace(here[method], best=True)


def good_methods(values: Mapping[str, Mapping[int, float]], measure: Measure) -> list[str]:
    """The best method and all within two paired standard errors of it, over the seeds that both have.

    The best has the best mean among the methods with the most seeds. Those whose mean difference from it is at most
    :attr:`Measure.equal` count as equal to it.

    Args:
        values: of each method, by seed.
        measure: which values are better, and how many digits are printed.

    >>> values = {"a": {0: 1.0, 1: 5.0}, "b": {0: 1.2, 1: 5.1}, "c": {0: 3.0, 1: 7.1}}
    >>> good_methods(values, Measure("error", better="lower"))
    ['a']
    >>> good_methods(values | {"b": {0: 0.9, 1: 5.3}}, Measure("error", better="lower"))
    ['a', 'b']
    """
    if not values:
        return []
    sign = -1.0 if measure.better == "higher" else 1.0
    most = max(map(len, values.values()))
    means = {name: sign * statistics.fmean(own.values()) for name, own in values.items() if len(own) == most}
    best = min(means, key=means.__getitem__)
    equal = measure.equal
    if equal is None:
        equal = 0.0 if measure.scientific else 0.5 * 10.0**-measure.digits
    good = []
    for name, own in values.items():
        behind = [sign * (own[seed] - values[best][seed]) for seed in own if seed in values[best]]
        if name == best or (behind and _near(behind, equal)):
            good.append(name)
    return good


def _near(behind: Sequence[float], equal: float) -> bool:
    """Whether differences from the best are within its paired standard errors, or too small to be printed."""
    mean = statistics.fmean(behind)
    se = standard_error(behind)
    return mean <= max(equal, 0.0) or mean <= WITHIN * (0.0 if math.isnan(se) else se)
