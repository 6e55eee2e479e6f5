"""What ``zoo select`` does: compare numbers of factors or components."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import nn

from zoo import data, plots
from zoo.base.atomic import new_file
from zoo.base.protocols import ConditionallyConjugate, Conjugate
from zoo.base.threads import exactly
from zoo.commands.console import err, out, tell, words
from zoo.diagnostics.model.candidates import Builder
from zoo.diagnostics.model.selection import Candidate, Selection, select_size
from zoo.registry.finding import find_model
from zoo.registry.making import guide_maker, model_maker, options

WORDS = {"bic": "BIC", "bound": "bound on log p(X)", "aic": "AIC", "held_out": "held-out log p(x)"}


@dataclass(frozen=True)
class Asked:
    """The model, the guide or None, settings of both or None for each, and the rows and their columns."""

    model: str
    guide: str | None
    settings: dict[str, Any]
    own: dict[str, Any]
    source: str
    columns: Sequence[str] | None
    exclude: Sequence[str] | None


def select_and_show(
    asked: Asked,
    values: str,
    *,
    seeds: int,
    folds: int | None,
    seed: int,
    folder: Path | None,
    threads: int | None,
) -> None:
    """Compare sizes, print the table, and write it to a folder; see ``zoo select --help`` for the arguments.

    Raises:
        ValueError: an argument is unfit.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file: pass a folder")
    build, size, name = _parts(asked)
    table = data.load(
        asked.source, columns=words(asked.columns), exclude=words(asked.exclude) or (), dtype=torch.float64
    )
    tell(table)

    with exactly(threads):
        found = select_size(build, table.x, _numbers(values), seeds=seeds, folds=folds, seed=seed, report=_progress)
    _show(found, f"{name} on {table.name} ({len(table)} rows x {len(table.columns)} columns)", size)
    if folder is not None:
        with new_file(folder / "selection.csv", replace=True) as partial:
            found.frame().write_csv(partial)
        plots.save(plots.selection(found), folder / "selection.png")
        out.print(f"selection written to {folder}", highlight=False, soft_wrap=True)


def _parts(asked: Asked) -> tuple[Builder, str, str]:
    """What builds a candidate, the parameter that is its size, and the model's name.

    Raises:
        ValueError: model or guide is unknown, the model has no size, or is to be fitted by EM and cannot.
    """
    made = find_model(asked.model)
    name, known = getattr(made, "__name__", asked.model), options(made)
    size = next((each for each in ("components", "latent_dim") if each in known), None)
    if size is None:
        raise ValueError(f"{name} has neither 'latent_dim' nor 'components', whose values could be compared")
    make_guide = None if asked.guide is None else guide_maker(asked.guide, asked.own)
    if make_guide is None and asked.own:
        raise ValueError("--guide-set needs a --guide")

    def build(value: int, rows: torch.Tensor) -> Any:
        built = model_maker(asked.model, {**asked.settings, size: value})(rows.shape[1])
        built = built.double() if isinstance(built, nn.Module) else built
        if make_guide is not None:
            return built, make_guide(built, rows)
        if not isinstance(built, Conjugate | ConditionallyConjugate):
            raise ValueError(f"{name} has no closed-form EM: choose a guide, as --guide Amortized")
        return built

    return build, size, name


def _numbers(text: str) -> list[int]:
    """Whole numbers from text such as ``1-6``, ``1,2,5``, or both.

    Raises:
        ValueError: the text is something else.
    """
    found: list[int] = []
    try:
        for word in text.split(","):
            first, dash, last = word.strip().partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise ValueError(f"--values must be numbers such as 1-6 or 1,2,5, got {text!r}") from None
    return found


def _progress(row: Candidate) -> None:
    """Print a line for a finished candidate."""
    state = "failed" if row.best is None else "done"
    err.print(f"{row.value}: {state} after {row.seconds:.1f} s", highlight=False)


def _show(found: Selection, title: str, size: str) -> None:
    """Print the candidates as a table, with the best by every measure marked."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in (size, "log p(x)", "df", "AIC", "BIC", "bound", "held-out", "below (se)", "near"):
        shown.add_column(name, justify="right", no_wrap=True)
    chosen = {by: found.best(by).value for by in found.measures}
    for row in found.table:
        if row.best is None:
            shown.add_row(str(row.value), "failed")
            continue
        numbers: dict[str, str | Text] = {
            "aic": _number(row.aic, 2),
            "bic": _number(row.bic, 2),
            "bound": _number(row.bound, 3),
            "held_out": _number(row.held_out, 4),
        }
        for by, value in chosen.items():
            if value == row.value:
                numbers[by] = Text(f"{numbers[by]}*", style="bold green")
        shown.add_row(
            str(row.value),
            _number(row.log_likelihood, 3),
            "" if row.df is None else str(row.df),
            *numbers.values(),
            "" if row.log_p is None else "{:.4f} ({:.2g})".format(*found.below(row.value)),
            f"{row.near}/{row.starts}",
        )
    out.print(shown)
    if found.retention is not None:
        out.print(str(found.retention), highlight=False, soft_wrap=True)
    for row in found.table:
        if row.error is not None:
            out.print(f"{size} {row.value}: {row.error}", highlight=False, soft_wrap=True)
    compared = f"; held-out: log p(x) per row, {found.how}" if found.how != "none" else ""
    best = ", ".join(f"{WORDS[by]}: {value}" for by, value in chosen.items())
    out.print(
        f"* best by {best}{compared}; near: starts within 0.01 nats of the best",
        highlight=False,
        soft_wrap=True,
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
