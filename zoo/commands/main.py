"""The command ``zoo``: its subcommands, and ``zoo list``."""

from typing import Any

import torch
import typer
from rich.table import Table

import guides
from zoo import data
from zoo.commands import benchmarking, fitting, judging, registry, selecting
from zoo.commands.console import out

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Latent factor models and variational guides, freely combined, with exact answers for comparison."""


@app.command("list")
def list_() -> None:
    """Show the models, the guides available for each, and the data sets."""
    names = list(registry.guide_classes())
    table = Table("model", *names, title="models x guides")
    for model_name, model_class in registry.models().items():
        sizes: dict[str, Any] = {key: 2 for key in ("latent_dim", "components") if key in registry.options(model_class)}
        model = registry.build(model_class, sizes, 3)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        cells = []
        for guide_class in registry.guide_classes().values():
            try:
                registry.build(guide_class, {}, model, x)
                cells.append("yes")
            except guides.CannotServe as refusal:
                cells.append(f"no: {refusal.site}")
        table.add_row(model_name, *cells)
    out.print(table)
    out.print("data sets:", ", ".join(data.names()), "- or the path of a .csv, .parquet or .npy file")


app.command("fit")(fitting.fit_)
app.command("diagnose")(judging.diagnose_)
app.command("report")(judging.report_)
app.command("select")(selecting.select_)
app.command("benchmark")(benchmarking.benchmark_)


if __name__ == "__main__":
    app()
