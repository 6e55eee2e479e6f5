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

from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.base.atomic import new_file
from zoo.base.checks import check_rows
from zoo.base.module import Module
from zoo.data.dataset import Dataset
from zoo.diagnostics.diagnosis import Diagnosis, diagnose
from zoo.diagnostics.model.predictive import PredictiveCheck, predictive_check
from zoo.infer.fitting import Fit
from zoo.report.figures import figures

MARKS = {"good": "✓", "careful": "!", "bad": "✗", "unknown": "?"}  # beside the colour, which is never alone
WORDS = {"good": "good", "careful": "with care", "bad": "against it", "unknown": "not asked"}
ENTRIES = 4e8  # of replicated tables


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        title: its heading.
        caption: what is seen, in a sentence or two; it stands for the picture where that cannot be seen.
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
        run: what :func:`zoo.fit` or :func:`zoo.load` returned.
        x: the rows (n, d) it was fitted to: a tensor, an array, or a :class:`zoo.data.Dataset`, whose name, columns and
            labels are then taken.
        path: of the file; folders on the way are made, a file that is there is replaced once the new one is whole.
        diagnosis: of :func:`zoo.diagnose`; None asks for it.
        predictive: of :func:`zoo.predictive_check`; None asks for it.
        labels: of the rows, for the map of the latent space.
        label_names: of the labels' codes.
        rerun: lines of a shell or of Python that make the run again; None are shown where there are none.
        seed: of the draws.

    Returns:
        the path.

    Raises:
        ValueError: rows that are not fit for model or guide, labels of the wrong length, or a path that does not end in
            .html.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"'{path.name}' is no name of a page: let it end in .html")
    rows = check_rows(x, run.model)
    table = x if isinstance(x, Dataset) else None
    if table is not None and labels is None:
        labels, label_names = table.labels, table.label_names
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels has {len(labels)} entries, and x {len(rows)} rows: pass one label per row")
    found = diagnose(run, rows, seed=seed) if diagnosis is None else diagnosis
    fits, unasked = _fits(run, rows if table is None else table, seed) if predictive is None else (predictive, "")
    text = _template().render(
        title=f"{_name(run.model)} with {_name(run.guide)}",
        data=table.name if table is not None else None,
        shape=tuple(rows.shape),
        diagnosis=found,
        marks=MARKS,
        words=WORDS,
        summary=_summary(run, found),
        predictive=fits,
        unasked=unasked,
        pictures=[
            _picture(title, caption, drawn)
            for title, caption, drawn in figures(run, rows, found, fits, labels, label_names, seed)
        ],
        tables=list(_tables(run, found)),
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


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _picture(title: str, caption: str, drawn: Axes | Figure) -> Picture:
    """A figure as a PNG of twice the pixels it is shown at."""
    figure: Any = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=220)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(title, caption, f"data:image/png;base64,{data}", round(110 * figure.get_figwidth()))


def _summary(run: Fit, found: Diagnosis) -> list[tuple[str, str]]:
    """The numbers one looks for first."""
    rows = []
    e = found.evaluation
    if e is not None:
        s = e.summary()
        rows += [
            ("ELBO", f"{s['elbo']:.4f} nats per row" + _error(s["elbo_se"])),
            ("log p(x)", f"{s['log_marginal']:.4f} nats per row" + _error(s["log_marginal_se"]) + f", {e.estimator}"),
            ("gap", f"{s['gap']:z.4f} nats per row" + _error(s["gap_se"])),
        ]
    rows.append(("training", f"{run.settings.get('steps', len(run.losses))} steps, {_ended(run)}"))
    return rows


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _ended(run: Fit) -> str:
    return "until the bound ceased to rise" if run.converged else "stopped at the last step"


def _tables(run: Fit, found: Diagnosis) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Titles, heads and rows."""
    if found.information is not None:
        i = found.information
        kl = [float("nan")] * len(i.variance) if i.unit_kl is None else i.unit_kl.tolist()
        body = [
            [str(j), f"{kl[j]:.4f}", f"{float(i.variance[j]):.4f}", "yes" if bool(i.active[j]) else "no"]
            for j in range(len(kl))
        ]
        yield "Units", ["unit", "KL from the prior, nats", "variance of the means", "active"], body
    for role, thing in (("Model", run.model), ("Guide", run.guide)):
        if isinstance(thing, Module) and thing.settings:
            yield f"{role}: {_name(thing)}", ["option", "value"], [[k, _short(v)] for k, v in thing.settings.items()]
    yield "Fit", ["setting", "value"], [[k, _short(v)] for k, v in run.settings.items()]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _versions() -> list[tuple[str, str]]:
    names = ("latent-zoo", "torch", "pyro-ppl", "arviz", "numpy")
    return [("Python", platform.python_version()), *((name, version(name)) for name in names)]
