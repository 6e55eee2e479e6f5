"""What ``zoo fit`` prints."""

import polars
from rich.table import Table

from zoo.alignment.rotated import RotatedFactors
from zoo.base.callables import name_of
from zoo.commands.console import out
from zoo.commands.fit_run import Done
from zoo.commands.fit_written import FitTables
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
        row("optimum - log marginal", "distance", _compared(results["distance"] * n))
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
    if "floor" in results:
        share = f"{100 * results['at_floor']:.1f}% of the variances are at the floor or below 1e-3"
        out.print(f"variance floor: {results['floor']:g} of each column's variance; {share}")


def _compared(nats: float) -> str:
    """Which of EM and the fit has the higher log p(X), by nats over all rows."""
    if abs(nats) < 0.01:
        return "equal"
    return "not reached by the fit" if nats > 0 else "EM ended at a lower optimum"


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _method(se: float, exact: str) -> str:
    return f"Monte Carlo{_error(se)}" if se > 0 else exact


def show_tables(tables: FitTables) -> None:
    """Print loadings or components, where these are few."""
    if tables.rotated is not None:
        show_loadings(tables.rotated)
    if tables.components is not None:
        _show_components(tables.components)


def show_loadings(found: RotatedFactors) -> None:
    """Print the table of loadings, or where it is large the variance explained; and what to know about them."""
    if max(found.pattern.shape) <= LINES:
        out.print(found.table(), highlight=False, soft_wrap=True)
        return
    shares = ", ".join(f"{100 * share:.1f}%" for share in found.variance()["proportion"][:LINES])
    total = 100 * float(found.communalities.mean())
    out.print(f"variance explained ({found.rotation}): {shares}; {total:.1f}% in all", highlight=False, soft_wrap=True)
    for line in found.warnings:
        out.print(line, highlight=False, soft_wrap=True)


def _show_components(components: polars.DataFrame) -> None:
    """Print the proportion and the means of every component."""
    parts = components.partition_by("component", maintain_order=True)
    if max(len(parts), len(parts[0])) > LINES:
        return
    shown = Table(title="components: proportions and means", title_justify="left")
    for name in ("component", "proportion", *parts[0]["column"]):
        shown.add_column(name, justify="right")
    for part in parts:
        means = (f"{value:.4g}" for value in part["mean"])
        shown.add_row(str(part["component"][0]), f"{part['proportion'][0]:.4f}", *means)
    out.print(shown)
