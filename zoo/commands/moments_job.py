"""What ``zoo fit --moments`` does: fit a covariance or correlation matrix, show the estimates, and write them."""

import json
import math
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.alignment.rotated import RotatedFactors, rotate
from zoo.base.atomic import new_folder
from zoo.base.callables import name_of
from zoo.base.moments import Moments
from zoo.base.protocols import AcceptsMoments
from zoo.base.threads import exactly
from zoo.commands.console import out
from zoo.commands.fit_written import loading_tables
from zoo.data.square import load_moments
from zoo.diagnostics.model.criteria import InformationCriteria, information_criteria
from zoo.diagnostics.model.goodness import FitMeasures, fit_measures
from zoo.infer.collapse import HeywoodCase
from zoo.infer.expectation_maximisation import MaximumLikelihood, em
from zoo.infer.storage.checkpoint import write
from zoo.registry.making import model_maker


@dataclass(frozen=True, eq=False)
class Estimates:
    """The output of a fit to a covariance matrix.

    Attributes:
        run: the result of EM.
        factors: its factors, by varimax unless another rotation is given.
        measures: of its fit; log-likelihood, AIC and BIC alone where the matrix is singular.
    """

    run: MaximumLikelihood
    factors: RotatedFactors
    measures: FitMeasures | InformationCriteria


@dataclass(frozen=True)
class Matrix:
    """What is asked of a matrix.

    Attributes:
        path: of the file.
        n: the number of rows behind it; None if not given.
        unfit: what needs rows, DATA and options by name; None or an empty list where not given.
    """

    path: Path
    n: int | None
    unfit: dict[str, Any]


def fit_moments_and_show(
    name: str,
    settings: dict[str, Any],
    matrix: Matrix,
    rotation: str | None,
    *,
    steps: int | None,
    seed: int,
    folder: Path | None,
    threads: int | None,
) -> None:
    """Fit a matrix by EM, print the estimates, and write them to a folder; see ``zoo fit --help``.

    Args:
        name: of the model.
        settings: of the model, None where not given.
        matrix: in place of rows.
        rotation: of the factors; None for varimax.
        steps: of EM at most; None for convergence.
        seed: of the start.
        folder: where to write the run, or None.
        threads: their number; None for as many as pay.

    Raises:
        ValueError: an option does not fit a matrix, or the model cannot be fitted to one.
    """
    path, n = matrix.path, matrix.n
    if taken := [option for option, value in matrix.unfit.items() if value not in (None, [])]:
        option = "DATA" if taken[0] == "DATA" else "--" + taken[0].replace("_", "-")
        raise ValueError(f"{option} needs rows, and --moments gives a matrix: leave one of the two out")
    if n is None:
        raise ValueError("--moments needs --n, the number of rows behind the matrix")
    moments = load_moments(path, n)
    with exactly(threads):
        if folder is None:
            _show(_estimate(name, settings, moments, rotation or "varimax", steps, seed), path)
            return
        with new_folder(folder) as place:
            found = _estimate(name, settings, moments, rotation or "varimax", steps, seed)
            _write(found, place, path)
    _show(found, path)
    out.print(f"run written to {folder}")


def _estimate(
    name: str, settings: dict[str, Any], moments: Moments, rotation: str, steps: int | None, seed: int
) -> Estimates:
    """The fit, and the table of its estimates."""
    make = model_maker(name, settings)
    torch.manual_seed(seed)
    model = make(len(moments.mean))
    model = model.double() if isinstance(model, nn.Module) else model
    if not _accepts(model):
        raise ValueError(f"{name_of(model)} needs the rows: --moments suffices for PPCA and FactorAnalysis")
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeywoodCase)  # it stands below the table
        run = em(model, moments, seed=seed, **options)
    measures: FitMeasures | InformationCriteria
    try:
        measures = fit_measures(run, moments)
    except ValueError:  # a singular matrix
        measures = information_criteria(model, moments)
    return Estimates(run, rotate(run, rotation), measures)  # type: ignore[arg-type]


def _accepts(model: object) -> bool:
    return isinstance(model, AcceptsMoments) and model.from_moments


def _show(found: Estimates, path: Path) -> None:
    """Print loadings, variances, and measures of fit."""
    run = found.run
    title = f"{name_of(run.model)} of {path.name} (n = {run.settings['rows']})"
    for text in (title, found.factors.table(cutoff=0, sort=False, digits=3), "", str(found.measures)):
        out.print(text, highlight=False, soft_wrap=True)
    state = "converged" if run.converged else "not converged"
    out.print(f"EM: {run.steps} steps in {run.settings['seconds']:.2f} s, {state} ({run.stopped})", highlight=False)


def _write(found: Estimates, place: Path, path: Path) -> None:
    """Write the run, its numbers and the table of loadings to a folder."""
    run = found.run
    write(run, place)
    for name, frame in loading_tables(found.factors).items():
        frame.write_csv(place / f"{name}.csv")
    record = {
        "moments": str(path.resolve()),
        "rotation": found.factors.rotation,
        **{name: value for name, value in found.measures.summary().items() if math.isfinite(value)},
        "steps": run.steps,
        "converged": run.converged,
        "stopped": run.stopped,
        "seconds": run.settings["seconds"],
        "command": shlex.join(["zoo", *sys.argv[1:]]),
    }
    (place / "results.json").write_text(json.dumps(record, indent=2) + "\n")
