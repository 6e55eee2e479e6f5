"""The command that prints references: ``zoo cite``; it loads no torch for names and saved runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zoo.citation.citing import as_bibtex, citations
from zoo.citation.lookup import citable
from zoo.citation.saved import is_run
from zoo.citation.things import PACKAGE
from zoo.commands.console import FAILURES, fail, out


def cite_(
    things: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|RUN]...", help="Names, keys of references, or folders of runs; none lists all."),
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


def _thing(text: str) -> str | Path:
    """A name, or the path of a run."""
    path = Path(text)
    return path if is_run(path) or len(path.parts) > 1 else text
