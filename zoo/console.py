"""Where the command line writes, and how it says that something went wrong."""

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
