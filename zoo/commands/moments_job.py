"""What ``zoo fit --moments`` does: fit a covariance or correlation matrix, show the estimates, and write them."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import torch
from rich.table import Table

from zoo.alignment.canonical import to_canonical
from zoo.base.atomic import new_folder
from zoo.base.callables import name_of
from zoo.base.moments import Moments
from zoo.base.protocols import AcceptsMoments, linear_form
from zoo.base.threads import exactly
from zoo.commands import registry
from zoo.commands.console import out
from zoo.data.square import load_moments
from zoo.diagnostics.model.criteria import InformationCriteria, information_criteria
from zoo.infer.expectation_maximisation import MaximumLikelihood, em
from zoo.infer.storage.checkpoint import write


@dataclass(frozen=True, eq=False)
class Estimates:
    """The output of a fit to a covariance matrix.

    Attributes:
        run: the result of EM.
        criteria: log-likelihood, AIC and BIC.
        table: a row per column: its name, its loadings by varimax, divided by its standard deviation under the model,
            and its uniqueness.
    """

    run: MaximumLikelihood
    criteria: InformationCriteria
    table: polars.DataFrame


def fit_moments_and_show(
    name: str,
    settings: dict[str, Any],
    path: Path,
    n: int | None,
    *,
    unfit: dict[str, Any],
    steps: int | None,
    seed: int,
    folder: Path | None,
    threads: int | None,
) -> None:
    """Fit a matrix by EM, print the estimates, and write them to a folder; see ``zoo fit --help``.

    Args:
        name: of the model.
        settings: of the model, None where not given.
        path: of the matrix.
        n: the number of rows behind it.
        unfit: what needs rows, DATA and options by name; None where not given.
        steps: of EM at most; None for convergence.
        seed: of the start.
        folder: where to write the run, or None.
        threads: their number; None for as many as pay.

    Raises:
        ValueError: an option does not fit a matrix, or the model cannot be fitted to one.
    """
    if taken := [option for option, value in unfit.items() if value is not None]:
        option = "DATA" if taken[0] == "DATA" else "--" + taken[0].replace("_", "-")
        raise ValueError(f"{option} needs rows, and --moments gives a matrix: leave one of the two out")
    if n is None:
        raise ValueError("--moments needs --n, the number of rows behind the matrix")
    moments = load_moments(path, n)
    with exactly(threads):
        if folder is None:
            _show(_estimate(name, settings, moments, steps, seed), path)
            return
        with new_folder(folder) as place:
            found = _estimate(name, settings, moments, steps, seed)
            _write(found, place, path)
    _show(found, path)
    out.print(f"run written to {folder}")


def _estimate(name: str, settings: dict[str, Any], moments: Moments, steps: int | None, seed: int) -> Estimates:
    """The fit, and the table of its estimates."""
    chosen = registry.find(name, registry.models(), "model")
    torch.manual_seed(seed)
    model = registry.build(chosen, settings, len(moments.mean)).double()
    if not _accepts(model):
        raise ValueError(f"{name_of(model)} needs the rows: --moments suffices for PPCA and FactorAnalysis")
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    run = em(model, moments, seed=seed, **options)
    form = linear_form(to_canonical(model, "varimax"))
    assert form is not None
    weight, _, noise = (value.detach() for value in form)
    variance = noise + weight.square().sum(1)
    loadings = weight / variance.sqrt().unsqueeze(1)
    factors = {f"factor {j}": loadings[:, j].tolist() for j in range(loadings.shape[1])}
    columns = list(moments.columns) or [str(i) for i in range(len(noise))]
    table = polars.DataFrame({"column": columns, **factors, "uniqueness": (noise / variance).tolist()})
    return Estimates(run, information_criteria(model, moments), table)


def _accepts(model: object) -> bool:
    return isinstance(model, AcceptsMoments) and model.from_moments


def _show(found: Estimates, path: Path) -> None:
    """Print loadings, uniquenesses and criteria."""
    run, criteria = found.run, found.criteria
    title = f"{name_of(run.model)} of {path.name} (n = {criteria.n:g}): standardised loadings (varimax)"
    shown = Table(title=title, title_justify="left")
    for column in found.table.columns:
        shown.add_column(column, justify="left" if column == "column" else "right")
    for row in found.table.rows():
        shown.add_row(row[0], *(f"{value:.3f}" for value in row[1:]))
    out.print(shown)
    out.print(
        f"log-likelihood {criteria.log_likelihood:.4f} nats with {criteria.df} free parameters; "
        f"AIC {criteria.aic:.4f}, BIC {criteria.bic:.4f}",
        highlight=False,
    )
    state = "converged" if run.converged else "not converged"
    out.print(f"EM: {run.steps} steps in {run.settings['seconds']:.2f} s, {state} ({run.stopped})", highlight=False)


def _write(found: Estimates, place: Path, path: Path) -> None:
    """Write the run, its numbers and the table of loadings to a folder."""
    run = found.run
    write(run, place)
    found.table.write_csv(place / "loadings.csv")
    record = {
        "moments": str(path.resolve()),
        **found.criteria.summary(),
        "steps": run.steps,
        "converged": run.converged,
        "stopped": run.stopped,
        "seconds": run.settings["seconds"],
        "command": shlex.join(["zoo", *sys.argv[1:]]),
    }
    (place / "results.json").write_text(json.dumps(record, indent=2) + "\n")
