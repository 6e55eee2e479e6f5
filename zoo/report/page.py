"""A run as one self-contained HTML file with embedded figures: no network access, no scripts."""

import base64
import inspect
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
from torch import Tensor

from zoo.alignment.rotated import Rotations
from zoo.base.atomic import new_file
from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import ArrayLike
from zoo.base.module import Module
from zoo.base.pairs import Trained, rows_of
from zoo.base.tables import column_names
from zoo.citation.citing import as_bibtex, citations
from zoo.citation.things import PACKAGE
from zoo.data.conversion import as_dataset
from zoo.data.dataset import Dataset
from zoo.diagnostics.checks.check import Picture
from zoo.diagnostics.diagnosis import Diagnosis, diagnose, tables
from zoo.diagnostics.guide.relevance import EffectiveSize
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.infer.convergence import assess
from zoo.infer.run import Fit, run_of
from zoo.posterior.evaluation import Evaluation
from zoo.report.factors import factor_tables
from zoo.report.figures import figures_of
from zoo.report.glossary import GLOSSARY

MARKS = {"good": "✓", "careful": "!", "bad": "✗", "unknown": "?"}  # beside the colour, for readers who do not see it
WORDS = {"good": "good", "careful": "with care", "bad": "failed", "unknown": "not possible"}
ENTRIES = 4e8  # of all replicated tables together


@dataclass(frozen=True)
class Encoded:
    """A figure of the page.

    Attributes:
        title: its heading.
        caption: a sentence or two on its content; also the alternative text.
        data: the PNG as a data URI.
        width: the width on the page in pixels.
    """

    title: str
    caption: str
    data: str
    width: int


def report(
    run: Trained,
    x: ArrayLike,
    path: str | Path,
    *,
    diagnosis: Diagnosis | None = None,
    predictive: PredictiveCheck | None = None,
    labels: Any = None,
    label_names: Sequence[str] | None = None,
    rerun: Sequence[str] = (),
    rotation: Rotations = "varimax",
    seed: int = 0,
) -> Path:
    """Write a report on a trained pair to one HTML file: the verdict with its reasons, figures and tables.

    The file requires no network access and runs no script; its layout suits phones and print.

    Args:
        run: a trained pair: the result of :func:`zoo.fit`, :func:`zoo.em`, :func:`zoo.cavi` or :func:`zoo.load`, or
            ``zoo.Fit(model, guide)``; or a fitted conjugate model, with its own posterior as the guide.
        x: the rows (n, d) that it was fitted to: a tensor, an array, or a :class:`zoo.data.Dataset`, whose name,
            columns and labels are used.
        path: of the file. Missing folders are created; an existing file is replaced once the new one is complete.
        diagnosis: the result of :func:`zoo.diagnose`; None computes it.
        predictive: the result of :func:`zoo.predictive_check`; None computes it.
        labels: labels of the rows (n,), for the figure of the latent space.
        label_names: names of the label codes.
        rerun: shell or Python lines that reproduce the run, shown on the page.
        rotation: of the loadings of a linear-Gaussian model; see :func:`zoo.alignment.rotate`.
        seed: of the draws.

    Returns:
        the path.

    Raises:
        ValueError: rows that do not fit model or guide, labels of the wrong length, or a path that does not end in
            .html.
    """
    run = run_of(run)
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"'{path.name}' is not the name of an HTML file: use a path that ends in .html")
    rows = rows_of(run, x)
    table = x if isinstance(x, Dataset) else as_dataset(x) if column_names(x) else None
    if table is not None and labels is None:
        labels, label_names = table.labels, table.label_names
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels has {len(labels)} entries, x has {len(rows)} rows: pass one label per row")
    known = rows if table is None else table
    found = diagnose(run, rows, seed=seed) if diagnosis is None else diagnosis
    missing = ""
    if predictive is None:
        predictive, missing = _predictive(run, known, seed)
    cited = citations(PACKAGE, run, *([table] if isinstance(x, Dataset) else []))
    text = _template().render(
        title=f"{name_of(run.model)} with {name_of(run.guide)}",
        data=table.name if table is not None else None,
        shape=tuple(rows.shape),
        diagnosis=found,
        marks=MARKS,
        words=WORDS,
        summary=_summary(run, found),
        predictive=predictive,
        missing=missing,
        pictures=[_encoded(one) for one in figures_of(run, known, found, predictive, labels, label_names, seed)],
        tables=[(title, table.columns, _cells(table)) for title, table in _tables(run, known, found, rotation)],
        glossary=GLOSSARY,
        cited=cited,
        bibtex=as_bibtex(cited),
        rerun=list(rerun),
        versions=_versions(),
    )
    with new_file(path, replace=True) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _predictive(run: Fit, x: Tensor | Dataset, seed: int) -> tuple[PredictiveCheck | None, str]:
    """The predictive check, or the reason why there is none."""
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
    """A figure as a PNG with twice the resolution of the page."""
    drawn = picture.drawn
    figure: Any = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=220)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(110 * figure.get_figwidth())
    return Encoded(picture.title, picture.caption, f"data:image/png;base64,{data}", width)


def _summary(run: Fit, found: Diagnosis) -> list[tuple[str, str]]:
    """The main results, by name."""
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
            total, log_p = e.shared.total, e.shared.log_marginal
            rows.append(("ELBO of all rows", f"{_short(total)} nats{_error(e.shared.total_se)}, a bound on log p(X)"))
            rows.append(("part of shared sites", f"{_short(e.shared.bound)} nats" + _error(e.shared.bound_se)))
            weights = f"importance weights of the shared sites with k-hat {e.shared.khat:.2f}"
            rows.append(("log p(X)", f"{_short(log_p)} nats{_error(e.shared.log_marginal_se)}, {weights}"))
    size = found.measured.get("collapse")
    if isinstance(size, EffectiveSize):
        rows.append((f"{size.unit} in use", f"{size.kept} of {len(size.values)}"))
    return [*rows, *_training(run)]


def _training(run: Fit) -> list[tuple[str, str]]:
    """How training ended, and what its loss curve shows."""
    if run.training is None:
        return [("training", "no record")]
    stopped = f"; {run.training.stopped}" if run.training.stopped else ""
    steps = f"{len(run.losses):,} steps, {'converged' if run.converged else 'not converged'}{stopped}"
    return [("training", steps), ("loss curve", assess(run.training).reason)]


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _tables(run: Fit, x: Tensor | Dataset, found: Diagnosis, rotation: Rotations) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and tables of the page."""
    yield from factor_tables(run, x, rotation)
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
    """The cells of a table as text."""
    return [["" if value is None else _short(value) for value in row] for row in table.rows()]


def _short(value: Any) -> str:
    """A value as text, with numbers to six digits, also within lists."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if inspect.isfunction(value):
        return name_of(value)
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
