"""The command ``zoo``: its subcommands, and ``zoo list``; none loads torch before its options are read."""

from typing import Annotated

import typer

from zoo import __version__
from zoo.commands import benchmarking, citing, fitting, judging, listing, outputs, selecting
from zoo.commands.console import OPTIONS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zoo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Latent factor models and variational guides, freely combined, with exact answers for comparison."""
    chosen = getattr(context.command, "commands", {}).get(context.invoked_subcommand)
    OPTIONS.set(() if chosen is None else [name for own in chosen.params for name in own.opts])


app.command("list")(listing.list_)
app.command("fit")(fitting.fit_)
app.command("diagnose")(judging.diagnose_)
app.command("report")(judging.report_)
app.command("transform")(outputs.transform_)
app.command("impute")(outputs.impute_)
app.command("generate")(outputs.generate_)
app.command("select")(selecting.select_)
app.command("benchmark")(benchmarking.benchmark_)
app.command("cite")(citing.cite_)
