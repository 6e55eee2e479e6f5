"""The figure of a benchmark that draws none of its own: curves, or means with their standard errors."""

import math
from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.benchmark.averages import Place, entries, methods_of, places_of, texts_along
from zoo.benchmark.suite import Measure, Suite
from zoo.plots.style import GREY, TEXT, colour, marker

PANELS = 12  # at most
ACROSS = 3
WIDE = 24  # letters of a label that fit below a panel
SMALL = 1e-3  # numbers below it are written with an exponent


def figure(suite: Suite, table: pl.DataFrame) -> Figure | None:
    """The suite's figure, or its first measure that is better high or low: a panel per case.

    Returns:
        None if no cell is done.
    """
    done = table.filter(pl.col("status") == "done")
    if done.is_empty():
        return None
    if suite.draw is not None:
        drawn: Figure = suite.draw(table)
        return drawn
    measure = next((one for one in suite.measures if one.better is not None), suite.measures[0])
    along = [name for name in suite.along if name not in texts_along(suite, table)]
    places = [place for place in places_of(suite, done) if place[0] in set(done["case"])][:PANELS]
    methods = methods_of(suite, table)
    height = 2.0 if along else 0.7 + 0.2 * len(methods)
    whole, panels = _panels(len(places), height)
    for panel, place in zip(panels, places, strict=True):
        panel.set_title(", ".join(filter(None, place)), fontsize=TEXT)
        if along:
            _curves(panel, _at(suite, done, place), along[0], measure, methods)
        else:
            _means(panel, suite, table, place, measure, methods)
    if along:
        handles, names = panels[0].get_legend_handles_labels()
        whole.legend(handles, names, loc="outside lower center", ncols=4, fontsize=TEXT - 1, frameon=False)
    return whole


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, created without pyplot."""
    across = min(ACROSS, count)
    down = math.ceil(count / across)
    whole = Figure(figsize=(2.5 * across + 0.6, height * down + 0.4), layout="constrained")
    FigureCanvasAgg(whole)
    panels = list(whole.subplots(down, across, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        panel.tick_params(labelsize=TEXT - 1)
        panel.spines[["top", "right"]].set_visible(False)
    return whole, panels[:count]


def _at(suite: Suite, table: pl.DataFrame, place: Place) -> pl.DataFrame:
    """The rows of a place."""
    names = ("case", *texts_along(suite, table))
    return table.filter(**dict(zip(names, place, strict=True)))


def _curves(panel: Axes, rows: pl.DataFrame, along: str, measure: Measure, methods: Sequence[str]) -> None:
    """The mean over the seeds along a coordinate, a line per method."""
    for number, method in enumerate(methods):
        points = rows.filter(method=method).group_by(along).agg(pl.col(measure.name).mean()).sort(along)
        if len(points):
            panel.plot(points[along], points[measure.name], color=colour(number), lw=1.2, label=method)
    panel.set_xlabel(along, fontsize=TEXT)
    panel.set_ylabel(_label(measure), fontsize=TEXT)
    steps = rows[along].unique().sort().to_list()
    if len(steps) > 2 and steps[0] > 0 and steps[-1] > 30 * steps[0]:
        panel.set_xscale("log")


def _means(
    panel: Axes, suite: Suite, table: pl.DataFrame, place: Place, measure: Measure, methods: Sequence[str]
) -> None:
    """A dot per method with two standard errors, and the published value as a line."""
    found = entries(suite, table, measure)
    for number, method in enumerate(methods):
        entry = found.get((place, method))
        if entry is None or not math.isfinite(entry.mean):
            continue
        error = 0.0 if math.isnan(entry.se) else 2 * entry.se
        panel.errorbar(entry.mean, number, xerr=error, color=colour(number), fmt=marker(number), ms=4, lw=1, capsize=2)
    known = next((case.published.get(measure.name) for case in suite.cases if case.name == place[0]), None)
    if known is not None:
        panel.axvline(known.value, color=GREY, lw=0.8, ls="--")
    panel.set_yticks(range(len(methods)), methods, fontsize=TEXT - 1)
    panel.set_ylim(len(methods) - 0.5, -0.5)
    panel.set_xlabel(_label(measure), fontsize=TEXT)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    if max(map(abs, panel.get_xlim())) < SMALL:
        panel.xaxis.set_major_locator(MaxNLocator(2))
        panel.xaxis.set_major_formatter("{x:.2g}")  # each with its exponent: a common one would cover the label


def _label(measure: Measure) -> str:
    """A measure with its unit, on two lines where that is longer than a panel is wide."""
    text = f"{measure.name}, {measure.unit}" if measure.unit else measure.name
    return text if len(text) <= WIDE else text.replace(", ", ",\n", 1)
