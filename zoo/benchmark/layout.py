"""How the table of a benchmark is laid out, before it is written as Markdown or LaTeX."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl

from zoo.benchmark.averages import Entry, Place, entries, methods_of, places_of, texts_along
from zoo.benchmark.suite import Measure, Published, Suite

GROUPED = 40  # rows up to which cases follow each other, with the measures in columns
COLUMNS = 6  # of numbers, at most, side by side
SECONDS = Measure("seconds", "s", digits=1, text="training time")


@dataclass(frozen=True)
class Text:
    """A cell of a table.

    Attributes:
        mean: as printed; empty where there is no number.
        se: as printed; empty where there is none.
        best: whether it is set in bold.
        note: what a reader must know of it: failed or refused cells, fewer seeds.
        published: the published value as printed, with the letter of its source.
    """

    mean: str = ""
    se: str = ""
    best: bool = False
    note: str = ""
    published: tuple[str, str] | None = None


@dataclass(frozen=True)
class Block:
    """A table: its title, the head of its columns, and groups of rows, each row its name and its cells."""

    title: str
    head: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, tuple[Text, ...]], ...]], ...]


@dataclass(frozen=True)
class Layout:
    """The tables of a benchmark, the sources of published values by their letters, and how to read them."""

    blocks: tuple[Block, ...]
    sources: dict[str, Published]
    notes: tuple[str, ...]


class _Cells:
    """The entries of all measures, and their texts."""

    def __init__(self, suite: Suite, table: pl.DataFrame) -> None:
        self.suite, self.table = suite, table
        self.places = places_of(suite, table)
        self.methods = methods_of(suite, table)
        self.measures = [*(measure for measure in suite.measures if measure.shown), SECONDS]
        self.entries = {measure.name: entries(suite, table, measure) for measure in self.measures}
        times = self.entries[SECONDS.name].items()  # of a whole cell: the same wherever it was measured
        self.entries[SECONDS.name] = {(place[:1], method): entry for (place, method), entry in times}
        self.ran = set(table.select("case", "method").unique().rows())
        self.seeds = table["seed"].n_unique()
        self.sources: dict[str, Published] = {}

    def text(self, place: Place, method: str, measure: Measure) -> Text:
        """A method's cell."""
        entry = self.entries[measure.name].get((place[:1] if measure is SECONDS else place, method))
        if entry is None:
            return Text(note="-" if (place[0], method) in self.ran or not self.applies(place, method) else "not run")
        return Text(
            number(entry.mean, measure) if entry.values else "",
            "" if math.isnan(entry.se) else number(entry.se, measure),
            entry.best,
            _note(entry, self.seeds),
            self.published(place, (method, measure.name), measure),
        )

    def applies(self, place: Place, method: str) -> bool:
        """Whether the suite runs a method on a case."""
        case = next((one for one in self.suite.cases if one.name == place[0]), None)
        found = next((one for one in self.suite.methods if one.name == method), None)
        return case is None or found is None or found.cases(case)

    def published(self, place: Place, key: str | tuple[str, str], measure: Measure) -> tuple[str, str] | None:
        """A published value and the letter of its source."""
        case = next((case for case in self.suite.cases if case.name == place[0]), None)
        found = None if case is None else case.published.get(key)
        if found is None:
            return None
        letter = next((one for one, other in self.sources.items() if other.source == found.source), None)
        if letter is None:
            letter = chr(ord("a") + len(self.sources))
            self.sources[letter] = found
        return number(found.value, measure), letter


def layout(suite: Suite, table: pl.DataFrame) -> Layout:
    """The tables of a benchmark.

    Cases follow each other with methods in rows and measures in columns; where that would be long, every measure has a
    table of its own, of cases and methods.
    """
    cells = _Cells(suite, table)
    if len(cells.places) * len(cells.methods) <= GROUPED:
        blocks = list(_grouped(cells))
    else:
        blocks = [block for measure in cells.measures for block in _by_measure(cells, measure)]
    return Layout(tuple(blocks), cells.sources, tuple(_notes(cells)))


def _grouped(cells: _Cells) -> Iterator[Block]:
    """Methods in rows and measures in columns, case by case; wide tables in parts."""
    for measures in _parts(cells.measures):
        groups = []
        for place in cells.places:
            methods = [m for m in cells.methods if (place[0], m) in cells.ran or cells.applies(place, m)]
            rows = [_noted(m, [cells.text(place, m, measure) for measure in measures]) for m in methods]
            values = [cells.published(place, measure.name, measure) for measure in measures]
            if any(values):
                rows.append(("published", tuple(Text(published=value) for value in values)))
            groups.append((named(place), tuple(rows)))
        yield Block("", tuple(map(headed, measures)), tuple(groups))


def _noted(name: str, texts: Sequence[Text]) -> tuple[str, tuple[Text, ...]]:
    """A row, with what is to be said of each of its numbers said once, after its name."""
    notes = {text.note for text in texts if text.mean}
    if len(notes) != 1 or notes == {""}:
        return name, tuple(texts)
    return f"{name} ({notes.pop()})", tuple(replace(text, note="" if text.mean else text.note) for text in texts)


def _by_measure(cells: _Cells, measure: Measure) -> Iterator[Block]:
    """A measure's table of cases and methods, with fewer of the two in columns; wide tables in parts."""
    title = headed(measure)
    places = _places(cells, measure)
    known = {place: cells.published(place, measure.name, measure) for place in places}
    if len(cells.methods) <= len(cells.places):
        last = ("published",) if any(known.values()) else ()
        for methods in _parts([*cells.methods, *last]):
            rows = [
                (
                    named(place),
                    tuple(
                        Text(published=known[place]) if m in last else cells.text(place, m, measure) for m in methods
                    ),
                )
                for place in places
            ]
            yield Block(title, tuple(methods), (("", tuple(rows)),))
        return
    for part in _parts(places):
        rows = [(m, tuple(cells.text(place, m, measure) for place in part)) for m in cells.methods]
        if any(known[place] for place in part):
            rows.append(("published", tuple(Text(published=known[place]) for place in part)))
        yield Block(title, tuple(map(named, part)), (("", tuple(rows)),))


def _places(cells: _Cells, measure: Measure) -> list[Place]:
    """The places at which a measure is taken, and cases as a whole; of seconds one for every case."""
    if measure is SECONDS:
        return list(dict.fromkeys(place[:1] for place in cells.places))

    def told(place: Place) -> bool:
        taken = any(cells.text(place, method, measure).mean for method in cells.methods)
        return taken or not any(place[1:]) or cells.published(place, measure.name, measure) is not None

    return [place for place in cells.places if told(place)]


def _parts(names: Sequence) -> Iterator[Sequence]:
    """Columns in parts of nearly the same size."""
    count = math.ceil(len(names) / COLUMNS)
    size = math.ceil(len(names) / max(1, count))
    return (names[first : first + size] for first in range(0, len(names), size))


def named(place: Place) -> str:
    """A place in words."""
    return ", ".join(part for part in place if part)


def headed(measure: Measure) -> str:
    """A measure's name, the direction in which it is better, and its unit."""
    unit = f" ({measure.unit})" if measure.unit else ""
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}[measure.better]
    return measure.name.replace("_", " ") + arrow + unit


def number(value: float, measure: Measure) -> str:
    """A number with the digits of its measure.

    >>> number(-0.001, Measure("error")), number(1234.5, Measure("error", scientific=True, digits=1))
    ('0.00', '1.2e+03')
    """
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf" if value < 0 else "-"
    text = f"{value:.{measure.digits + 1}g}" if measure.scientific else f"{value:.{measure.digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 and not measure.scientific else text


def _note(entry: Entry, seeds: int) -> str:
    """What became of cells without a value, and the number of values where it is not that of the table."""
    gone = [f"{entry.failed} failed" if entry.failed else "", f"{entry.refused} refused" if entry.refused else ""]
    if not entry.values:
        whole = "failed" if entry.failed and not entry.refused and not entry.done else ""
        whole = whole or ("refused" if entry.refused and not entry.failed and not entry.done else "")
        return whole or ", ".join(filter(None, gone)) or "-"
    few = f"n = {len(entry.values)}" if len(entry.values) != seeds else ""
    return ", ".join(filter(None, [few, *gone]))


def _notes(cells: _Cells) -> Iterator[str]:
    """How to read the tables."""
    if cells.seeds > 1:
        yield (
            f"Mean ± standard error over {cells.seeds} seeds (n where fewer). In bold the best, all within two "
            "standard errors of it, paired by seed, and what differs from it by less than the digits printed."
        )
    else:
        yield "One seed, so no standard errors: in bold the best, and what differs by less than the digits printed."
    texts = texts_along(cells.suite, cells.table)
    if numbers := [name for name in cells.suite.along if name not in texts]:
        yield f"Along {', '.join(numbers)} the last point counts."
    if cells.sources:
        yield "In brackets: published, with its source."
