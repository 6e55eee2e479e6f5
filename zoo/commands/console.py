"""Where the command line writes, how it says that something went wrong, and how it reads lists."""

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)


def fail(error: Exception) -> NoReturn:
    """Print an error in a line and end with status 2."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def words(text: str | None) -> list[str] | None:
    """What commas separate, as in ``a,b,c``; None where nothing is given."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
