"""What ``zoo fit`` prints."""

import polars
from rich.markup import escape
from rich.table import Table

from zoo.base.callables import name_of
from zoo.commands.console import out
from zoo.commands.fit_run import Done
from zoo.commands.fit_written import FitTables
from zoo.commands.rotation import Rotated
from zoo.infer.collapse import heywood_case
from zoo.infer.coordinate_ascent import VariationalBayes

LINES = 20  # columns of the data or numbers of a line, beyond which a table is left to its file


def show(done: Done) -> None:
    """Print the results as a table."""
    run, results, table = done.run, done.results, done.table
    name = f"{name_of(run.model)} with {name_of(run.guide)} on {table.name}"
    shown = Table(title=f"{name} ({len(table)} rows x {len(table.columns)} columns)", title_justify="left")
    shown.add_column("quantity")
    shown.add_column("per row, nats", justify="right")
    shown.add_column("all rows", justify="right")
    shown.add_column("method")
    n = results["rows"]

    def row(label: str, key: str, method: str, count: int = n) -> None:
        shown.add_row(label, f"{results[key]:.6f}", f"{results[key] * count:.4f}", method)

    row("ELBO", "elbo", _method(results["elbo_se"], "closed form"))
    row("log marginal", "log_marginal", results["estimator"] + _error(results["log_marginal_se"]))
    row("gap = KL(q || p)", "gap", _method(results["gap_se"], "difference"))
    if "optimum" in results:
        row("closed-form optimum", "optimum", f"EM, {results['optimum_seconds']:.2f} s")
        row("optimum - log marginal", "distance", "not reached by SVI")
    if "held_out_elbo" in results:
        count = results["held_out_rows"]
        row("held-out ELBO", "held_out_elbo", f"{count} rows, one draw each", count)
    if "bound" in results:
        starts = f"coordinate ascent, {results['near']} of {results['starts']} starts within 0.01 nats"
        shown.add_row("bound on log p(X)", f"{results['bound'] / n:.6f}", f"{results['bound']:.4f}", starts)
    out.print(shown)
    if "size" in results:
        out.print(results["size"], highlight=False, soft_wrap=True)
    method = "coordinate ascent" if isinstance(run, VariationalBayes) else "SVI"
    state = "converged" if results["converged"] else "not converged"
    out.print(
        f"{method}: {results['steps']} steps in {results['seconds']:.2f} s, {state} ({results['stopped']}); loss "
        f"{run.settings['loss']}, optimizer {run.settings['optimizer']}; k-hat > 0.7 for "
        f"{100 * results['khat_above_0.7']:.1f}% of the rows"
    )
    if (heywood := heywood_case(run.model, table.columns)) is not None:
        out.print(heywood, highlight=False, soft_wrap=True, markup=False)
    if "floor" in results:
        share = f"{100 * results['at_floor']:.1f}% of the variances are at the floor or below 1e-3"
        out.print(f"variance floor: {results['floor']:g} of each column's variance; {share}")


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _method(se: float, exact: str) -> str:
    return f"Monte Carlo{_error(se)}" if se > 0 else exact


def show_tables(tables: FitTables) -> None:
    """Print loadings or components, where these are few."""
    if tables.rotated is not None:
        _show_loadings(tables.rotated)
    if tables.components is not None:
        _show_components(tables.components)


def _show_loadings(found: Rotated) -> None:
    """Print loadings, communality and uniqueness of every column, and the variance that the factors explain."""
    loadings, variance = found.loadings(), found.variance()
    if max(loadings.shape) <= LINES:
        shown = Table(title=f"loadings of standardised columns ({found.rotation} rotation)", title_justify="left")
        for name in loadings.columns:
            shown.add_column(name, justify="left" if name == "column" else "right")
        for row in loadings.rows():
            shown.add_row(escape(str(row[0])), *(f"{value:.3f}" for value in row[1:]))
        out.print(shown)
    shares = ", ".join(f"{100 * share:.1f}%" for share in variance["proportion"][:LINES])
    total = 100 * variance["cumulative"][-1]
    out.print(f"variance explained by the factors: {shares}; {total:.1f}% together", highlight=False, soft_wrap=True)


def _show_components(components: polars.DataFrame) -> None:
    """Print the proportion and the means of every component."""
    parts = components.partition_by("component", maintain_order=True)
    if max(len(parts), len(parts[0])) > LINES:
        return
    shown = Table(title="components: proportions and means", title_justify="left")
    for name in ("component", "proportion", *parts[0]["column"]):
        shown.add_column(escape(name), justify="right")
    for part in parts:
        means = (f"{value:.4g}" for value in part["mean"])
        shown.add_row(str(part["component"][0]), f"{part['proportion'][0]:.4f}", *means)
    out.print(shown)
