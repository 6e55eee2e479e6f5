"""The command that prints references: ``zoo cite``; it loads no torch for names and saved runs."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.citation.citing import as_bibtex, citations
from zoo.citation.lookup import citable
from zoo.citation.saved import is_run
from zoo.citation.things import PACKAGE
from zoo.commands.console import FAILURES, fail, out
from zoo.registry import sources


def cite_(
    things: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|RUN]...", help="Names, keys of references, folders of runs, FILE.py:NAME; none lists all."
        ),
    ] = None,
    as_text: Annotated[bool, typer.Option("--text", help="One line of plain text for each, not BibTeX.")] = False,
) -> None:
    """Print the references of the package and of models, guides, losses, data sets or whole runs, as BibTeX."""
    if not things:
        table = Table("kind", "names", title="what zoo cite NAME knows")
        for kind, names in citable().items():
            table.add_row(kind, ", ".join(names))
        out.print(table)
        return
    try:
        entries = citations(PACKAGE, *map(_thing, things))
    except FAILURES as error:
        fail(error)
    typer.echo("\n".join(entry.text for entry in entries) if as_text else as_bibtex(entries))


def _thing(text: str) -> Any:
    """A name, the path of a run, or a class or function of the user's own."""
    path = Path(text)
    if is_run(path):
        return path
    if sources.names_source(text):
        return sources.imported(text)
    return path if len(path.parts) > 1 else text
