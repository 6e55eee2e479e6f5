"""Output, errors, and what the commands have in common: shared arguments and lists as text."""

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # it loads torch
    from zoo.data.dataset import Dataset

out = Console()
err = Console(stderr=True)
MODEL = Annotated[str, typer.Argument(help="Name of a model; see zoo list.")]
SOURCE = Annotated[str, typer.Argument(metavar="DATA", help="Name of a data set, or path of a file.")]
THREADS = Annotated[
    int | None,
    typer.Option(help="Threads of the processor; by default as many as pay, and at most OMP_NUM_THREADS or the cores."),
]
FAILURES = (ValueError, TypeError, FloatingPointError, OSError)  # what a command reports without a traceback
COLUMNS = Annotated[str | None, typer.Option(help="Columns of the data, e.g. a,b,c.")]


def fail(error: Exception) -> NoReturn:
    """Print an error on one line and exit with status 2."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def tell(table: "Dataset") -> None:
    """Print on one line how the file of a table was read, where that was found from its content."""
    if table.notes:
        out.print(escape(f"{table.source}: {'; '.join(table.notes)}"), highlight=False, soft_wrap=True)


def words(text: str | None) -> list[str] | None:
    """The words of a comma-separated list such as ``a,b,c``; None if nothing is given."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
