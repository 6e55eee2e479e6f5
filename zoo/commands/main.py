"""The command ``zoo``: its subcommands, and ``zoo list``; none loads torch before its options are read."""

from typing import Annotated

import typer
from rich.table import Table

from zoo import __version__
from zoo.commands import benchmarking, catalogue, citing, fitting, judging, outputs, selecting
from zoo.commands.console import OPTIONS, out

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


@app.command("list")
def list_() -> None:
    """Show the models, the guides available for each, and the data sets."""
    table = Table("model", *catalogue.GUIDES, title="models x guides")
    for model, refused in catalogue.MODELS.items():
        table.add_row(model, *(f"no: {refused[guide]}" if guide in refused else "yes" for guide in catalogue.GUIDES))
    out.print(table)
    data = Table("data set", "source", "licence", title="data sets, or the path of a .csv, .tsv, .parquet or .npy file")
    for name, found in catalogue.DATA.items():
        data.add_row(name, found["source"], found["licence"])
    out.print(data)


app.command("fit")(fitting.fit_)
app.command("diagnose")(judging.diagnose_)
app.command("report")(judging.report_)
app.command("transform")(outputs.transform_)
app.command("impute")(outputs.impute_)
app.command("generate")(outputs.generate_)
app.command("select")(selecting.select_)
app.command("benchmark")(benchmarking.benchmark_)
app.command("cite")(citing.cite_)
