"""A run as one self-contained HTML file: no network, no scripts, figures within it."""

import base64
import io
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes

from zoo.base.atomic import new_file
from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import check_rows
from zoo.base.module import Module
from zoo.data.dataset import Dataset
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, diagnose, tables
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.infer.run import Fit
from zoo.posterior.evaluation import Evaluation
from zoo.report.figures import figures

MARKS = {"good": "✓", "careful": "!", "bad": "✗", "unknown": "?"}  # beside the colour, which is never alone
WORDS = {"good": "good", "careful": "with care", "bad": "against it", "unknown": "not asked"}
ENTRIES = 4e8  # of replicated tables


@dataclass(frozen=True)
class Encoded:
    """A figure in the page.

    Attributes:
        title: its heading.
        caption: what it shows, in a sentence or two; also read aloud in its place.
        data: the PNG as a data URI.
        width: in pixels at which it is drawn.
    """

    title: str
    caption: str
    data: str
    width: int


def report(
    run: Fit,
    x: Any,
    path: str | Path,
    *,
    diagnosis: Diagnosis | None = None,
    predictive: PredictiveCheck | None = None,
    labels: Any = None,
    label_names: Sequence[str] | None = None,
    rerun: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write what was fitted, the verdict with its reasons, figures and tables to one HTML file.

    The file needs no network and runs no script; it reads on a phone and prints.

    Args:
        run: a trained pair: what :func:`zoo.fit` or :func:`zoo.load` returned, or ``zoo.Fit(model, guide)``.
        x: the rows (n, d) it was fitted to: a tensor, an array, or a :class:`zoo.data.Dataset`, whose name, columns and
            labels are then taken.
        path: of the file; missing folders are made, an existing file is replaced once the new one is complete.
        diagnosis: of :func:`zoo.diagnose`; None computes it.
        predictive: of :func:`zoo.predictive_check`; None computes it.
        labels: of the rows, for the map of the latent space.
        label_names: of the labels' codes.
        rerun: lines of a shell or of Python that repeat the run; none are shown where there are none.
        seed: of the draws.

    Returns:
        the path.

    Raises:
        ValueError: rows that are not fit for model or guide, labels of the wrong length, or a path that does not end in
            .html.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"'{path.name}' is not the name of a page: let it end in .html")
    rows = check_rows(x, undecorated(run.model))
    table = x if isinstance(x, Dataset) else None
    if table is not None and labels is None:
        labels, label_names = table.labels, table.label_names
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels has {len(labels)} entries, and x {len(rows)} rows: pass one label per row")
    found = diagnose(run, rows, seed=seed) if diagnosis is None else diagnosis
    fits, unasked = _fits(run, rows if table is None else table, seed) if predictive is None else (predictive, "")
    text = _template().render(
        title=f"{name_of(run.model)} with {name_of(run.guide)}",
        data=table.name if table is not None else None,
        shape=tuple(rows.shape),
        diagnosis=found,
        marks=MARKS,
        words=WORDS,
        summary=_summary(run, found),
        predictive=fits,
        unasked=unasked,
        pictures=[_encoded(one) for one in figures(run, rows, found, fits, labels, label_names, seed)],
        tables=[(title, table.columns, _cells(table)) for title, table in _tables(run, found)],
        rerun=list(rerun),
        versions=_versions(),
    )
    with new_file(path, replace=True) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _fits(run: Fit, x: Any, seed: int) -> tuple[PredictiveCheck | None, str]:
    """The check by replicated tables, or why there is none."""
    rows = x.x if isinstance(x, Dataset) else x
    draws = int(min(200, max(20, ENTRIES // rows.numel())))
    try:
        return predictive_check(run, x, draws=draws, seed=seed), ""
    except ValueError as error:
        return None, str(error)


def _template() -> Any:
    source = files("zoo.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )


def _encoded(picture: Picture) -> Encoded:
    """A figure as a PNG of twice the pixels it is shown at."""
    drawn = picture.drawn
    figure: Any = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=220)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(110 * figure.get_figwidth())
    return Encoded(picture.title, picture.caption, f"data:image/png;base64,{data}", width)


def _summary(run: Fit, found: Diagnosis) -> list[tuple[str, str]]:
    """The numbers one looks for first."""
    rows = []
    e = found.measured.get("gap")
    if isinstance(e, Evaluation):
        s = e.summary()
        rows += [
            ("ELBO", f"{_short(s['elbo'])} nats per row" + _error(s["elbo_se"])),
            ("log p(x)", f"{_short(s['log_marginal'])} nats per row{_error(s['log_marginal_se'])}, {e.estimator}"),
            ("gap", f"{_short(found['gap'].value)} nats per row" + _error(s["gap_se"])),
        ]
        if e.shared is not None and e.shared.sites:
            rows.append(("of shared sites", f"{_short(e.shared.bound)} nats" + _error(e.shared.bound_se)))
    if run.training is None:
        return [*rows, ("training", "no record")]
    return [*rows, ("training", f"{len(run.losses)} steps, {_ended(run)}")]


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _ended(run: Fit) -> str:
    return "until the bound ceased to rise" if run.converged else "stopped at the last step"


def _tables(run: Fit, found: Diagnosis) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and tables."""
    yield from tables(found)
    parts: tuple[tuple[str, PyroCallable], ...] = (("Model", run.model), ("Guide", run.guide))
    for role, function in parts:
        module = unwrapped(function)
        if isinstance(module, Module) and module.settings:
            yield f"{role}: {name_of(module)}", _options("option", module.settings)
    if run.settings:
        yield "Fit", _options("setting", run.settings)


def _options(head: str, settings: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame({head: list(settings), "value": [_short(value) for value in settings.values()]})


def _cells(table: pl.DataFrame) -> list[list[str]]:
    """A table in words."""
    return [["" if value is None else _short(value) for value in row] for row in table.rows()]


def _short(value: Any) -> str:
    """A value in words: numbers to six digits, those in lists too."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return _cut(f"[{', '.join(map(_short, value))}]")
    if isinstance(value, dict):
        return _cut(", ".join(f"{key} {_short(item)}" for key, item in value.items()))
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _versions() -> list[tuple[str, str]]:
    names = ("latent-zoo", "torch", "pyro-ppl", "arviz", "numpy")
    return [("Python", platform.python_version()), *((name, version(name)) for name in names)]
