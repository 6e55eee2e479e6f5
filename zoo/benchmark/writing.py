"""Writes the table of a benchmark in every form: CSV, netCDF, Markdown, LaTeX, a figure and a page."""

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from zoo.base.atomic import new_file
from zoo.benchmark.arrays import arrays
from zoo.benchmark.citing import cited, listed
from zoo.benchmark.figures import figure
from zoo.benchmark.latex import latex
from zoo.benchmark.layout import layout
from zoo.benchmark.markdown import markdown
from zoo.benchmark.page import page, said
from zoo.benchmark.suite import Claim, Suite
from zoo.citation import as_bibtex
from zoo.plots.style import save


@dataclass(frozen=True)
class Written:
    """What was written: the tables as text, and the claims."""

    tables: str
    claims: tuple[Claim, ...]

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.tables, said(self.claims)]))


def write(suite: Suite, table: pl.DataFrame, folder: str | Path, page_at: str | Path | None = None) -> Written:
    """Write ``table.csv``, ``table.nc``, ``table.md``, ``table.tex``, ``cite.bib``, ``figure.png`` and
    ``page.md``.

    Args:
        suite: that was run.
        table: of all its rows, from :func:`zoo.benchmark.run`.
        folder: for the files; those of before are replaced.
        page_at: a further place for the page; its figure goes to the folder ``images`` beside it.
    """
    place = Path(folder)
    with new_file(place / "table.csv", replace=True) as partial:
        table.write_csv(partial)
    with new_file(place / "table.nc", replace=True) as partial:
        arrays(suite, table).to_netcdf(partial, engine="h5netcdf")
    laid = layout(suite, table)
    references = cited(suite, table)
    _text(place / "cite.bib", as_bibtex(references) + "\n")
    _text(place / "table.md", f"{markdown(laid)}\nTo cite:\n\n{listed(references)}\n")
    _text(place / "table.tex", latex(laid, suite.name, suite.question, references))
    claims = tuple(suite.claims(table))
    drawn = figure(suite, table)
    if drawn is not None:
        save(drawn, place / "figure.png")
    _text(place / "page.md", page(suite, table, laid, claims, references, "figure.png" if drawn is not None else None))
    if page_at is not None:
        picture = Path(page_at).parent / "images" / f"benchmark-{suite.name}.png"
        if drawn is not None:
            save(drawn, picture)
        named = os.path.relpath(picture, Path(page_at).parent) if drawn is not None else None
        _text(Path(page_at), page(suite, table, laid, claims, references, named))
    return Written(markdown(laid), claims)


def _text(path: Path, text: str) -> None:
    with new_file(path, replace=True) as partial:
        partial.write_text(text, encoding="utf-8")
