"""The command that fits a model to data: ``zoo fit``."""

import copy
import dataclasses
import json
import shlex
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import guides
from guides.ascent import cavi
from zoo import data, plots
from zoo.base.atomic import new_folder
from zoo.base.callables import name_of
from zoo.base.module import Module
from zoo.base.protocols import ConditionallyConjugate, Conjugate, Floored, Mixture
from zoo.commands import registry
from zoo.commands.console import COLUMNS, MODEL, SOURCE, err, fail, out, words
from zoo.diagnostics.guide.relevance import effective_size
from zoo.export.convert import to_arviz
from zoo.infer.coordinate_ascent import VariationalBayes
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.run import Fit
from zoo.infer.storage.checkpoint import write
from zoo.posterior.evaluation import evaluate
from zoo.posterior.psis import LEAST as LEAST_DRAWS

LARGE = 2_000_000  # entries of the data above which a learned guide takes minibatches by default
HELD_OUT = 0.1  # share of the rows held out with --patience
ARVIZ = 2e7  # numbers in the ArviZ file, at most: some hundred megabytes

COVARIANCE = Annotated[
    str | None,
    typer.Option(help="Of a mixture: full, tied, diag, spherical; of a VAE: scalar, diag, low_rank, full."),
]
LIKELIHOOD = Annotated[
    str | None, typer.Option(help="Likelihood of a VAE: gaussian, bernoulli, poisson, student_t, logistic_256.")
]
FLOOR = Annotated[float | None, typer.Option(help="Lower limit of a VAE's variances, as a fraction of the data's.")]
PATIENCE = Annotated[
    int | None,
    typer.Option(help="Hold out a tenth of the rows; stop after this many looks without a better ELBO on them."),
]
BINARISE = Annotated[bool, typer.Option("--binarise", help="Draw every entry in [0, 1] as 0 or 1, anew at every step.")]


class Precision(StrEnum):
    """Floating-point types of a run."""

    float32 = "float32"
    float64 = "float64"


@dataclass(frozen=True, eq=False)
class Job:
    """The input of a fit.

    Attributes:
        model: the model.
        guide: the guide; None fits by coordinate ascent.
        table: the rows to fit.
        held_out: rows for early stopping, or None.
        seed: of the fit.
        binarise: whether every entry is drawn anew as 0 or 1.
        options: further arguments of :func:`zoo.fit`.
        source: the provenance of the rows, by which ``zoo diagnose`` and ``zoo report`` load them again.
    """

    model: Module
    guide: Module | None
    table: data.Dataset
    held_out: data.Dataset | None
    seed: int
    binarise: bool
    options: dict[str, Any]
    source: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Done:
    """The output of a fit.

    Attributes:
        run: the fit.
        results: its numbers, for JSON.
        table: the rows on which it was evaluated.
    """

    run: Fit
    results: dict[str, Any]
    table: data.Dataset


def fit_(
    model: MODEL,
    source: SOURCE,
    guide: Annotated[
        str | None,
        typer.Option(
            help="MeanField, FullRank, Amortized, SemiAmortized, Flow, Potential or Exact; by default Amortized, and "
            "coordinate ascent for a Bayesian model."
        ),
    ] = None,
    latent_dim: Annotated[int | None, typer.Option("--latent-dim", "-k", help="Number of factors.")] = None,
    components: Annotated[int | None, typer.Option(help="Number of mixture components.")] = None,
    covariance: COVARIANCE = None,
    noise: Annotated[str | None, typer.Option(help="Noise of a VAE: network, constant.")] = None,
    likelihood: LIKELIHOOD = None,
    model_hidden: Annotated[str | None, typer.Option(help="Hidden widths of a VAE's networks, e.g. 64,64.")] = None,
    floor: FLOOR = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden widths of the guide's network, e.g. 64,64.")] = None,
    guide_covariance: Annotated[str | None, typer.Option(help="Covariance of Amortized: diag, low_rank, full.")] = None,
    columns: COLUMNS = None,
    labels: Annotated[str | None, typer.Option(help="Column with labels, for the figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial values, minibatches and draws.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Number of steps; by default until convergence.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per step; by default all, or 256 for large data.")
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point type.")] = Precision.float64,
    device: Annotated[str | None, typer.Option(help="Device to train on, e.g. cpu or cuda.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the run; must not contain one yet.")] = None,
    binarise: BINARISE = False,
    patience: PATIENCE = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Fit a model to data by SVI or coordinate ascent, and compare with its closed-form optimum.

    With --out, writes parameters (safetensors), settings (JSON), draws for ArviZ (netCDF), results (JSON), and figures
    of the loss and the latent space. zoo.load(DIR) loads the run.
    """
    sizes = {"latent_dim": latent_dim, "components": components, "hidden": model_hidden, "floor": floor}
    kinds = {"covariance": covariance, "noise": noise, "likelihood": likelihood}
    own = {"hidden": hidden, "covariance": guide_covariance}
    options: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "device": device, "progress": not quiet}
    try:
        if patience is not None:
            options["patience"] = patience
        table, held_out = _rows(source, columns, labels, dtype, seed, hold_out=patience is not None)
        origin: dict[str, Any] = {"columns": words(columns), "labels": labels, "binarised": binarise}
        origin["held_out"] = None if held_out is None else HELD_OUT
        origin["source"] = source if source in data.names() else str(Path(source).resolve())
        pair = _build(model, guide, {**sizes, **kinds}, own, table, seed)
        if pair[1] is None:
            given = {"--hidden": hidden, "--guide-covariance": guide_covariance, "--batch-size": batch_size}
            _refuse_with_ascent(given | {"--device": device, "--patience": patience, "--binarise": binarise or None})
        job = Job(*pair, table, held_out, seed, binarise, options, origin)
        if folder is None:
            _show(_run(job))
            return
        with new_folder(folder) as place:
            done = _run(job)
            _write(job, done, place)
        _show(done)
        out.print(f"run written to {folder}")
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        fail(error)


def _rows(
    source: str, columns: str | None, labels: str | None, dtype: Precision, seed: int, *, hold_out: bool
) -> tuple[data.Dataset, data.Dataset | None]:
    """The rows to fit, and the held-out rows or None."""
    table = data.load(source, columns=words(columns), labels=labels, dtype=getattr(torch, dtype.value))
    return table.split(test=HELD_OUT, seed=seed) if hold_out else (table, None)


def _build(
    model: str, guide: str | None, settings: dict[str, Any], own: dict[str, Any], table: data.Dataset, seed: int
) -> tuple[Module, Module | None]:
    """Model and guide by name, in the precision of the rows; no guide for coordinate ascent.

    Args:
        model: the name of the model.
        guide: the name of the guide; None for the default.
        settings: of the model; None where not given.
        own: settings of the guide.
        table: the rows.
        seed: of the parameters.
    """
    model_class = registry.find(model, registry.models(), "model")
    guide_class = registry.find(guide or "Amortized", registry.guide_classes(), "guide")
    settings, own = ({**given, "hidden": _widths(given["hidden"])} for given in (settings, own))
    torch.manual_seed(seed)
    built = registry.build(model_class, settings, table.x.shape[1]).to(table.x.dtype)
    ascends = guide is None and isinstance(built, ConditionallyConjugate)
    return built, None if ascends else registry.build(guide_class, own, built, table.x)


def _refuse_with_ascent(given: dict[str, Any]) -> None:
    """Refuse options that coordinate ascent does not have.

    Raises:
        ValueError: names the first one that is given.
    """
    if taken := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"{taken[0]} is an option of SVI, but this model is fitted by coordinate ascent: choose a --guide"
        )


def _widths(text: str | None) -> tuple[int, ...] | None:
    """Hidden widths from text such as ``64,64``; the empty text means no hidden layer.

    Raises:
        ValueError: the text is something else.
    """
    try:
        return None if text is None else tuple(int(word) for word in words(text) or ())
    except ValueError:
        raise ValueError(f"hidden must be whole numbers such as 64,64, got {text!r}") from None


def _refuse_beyond_one(x: torch.Tensor) -> None:
    """Refuse entries that are not probabilities.

    Raises:
        ValueError: names the first one.
    """
    beyond = ((x < 0) | (x > 1)).nonzero()
    if len(beyond):
        row, column = beyond[0].tolist()
        value = x[row, column].item()
        raise ValueError(f"--binarise needs entries in [0, 1]: row {row}, column {column} is {value}; scale the data")


def _run(job: Job) -> Done:
    """Fit and evaluate, and find the closed-form optimum from a copy of the model."""
    reference = copy.deepcopy(job.model)
    run = _fit(job)
    table = job.table
    if job.binarise:
        generator = torch.Generator().manual_seed(job.seed)
        table = dataclasses.replace(table, x=torch.bernoulli(table.x, generator=generator))
    n, d = table.x.shape
    evaluation = evaluate(run, table.x, draws=int(min(500, max(LEAST_DRAWS, 2e9 // (n * d)))), seed=job.seed)
    results: dict[str, Any] = {
        "data": table.name,
        "rows": n,
        "columns": d,
        **evaluation.summary(),
        "estimator": evaluation.estimator,
        "seconds": run.settings["seconds"],
        "steps": run.settings["steps"],
        "converged": run.converged,
        "stopped": run.settings["stopped"],
    }
    if isinstance(job.model, Floored) and "at_floor" in run.settings:
        results |= {"floor": job.model.floor, "at_floor": run.settings["at_floor"]}
    if run.validation is not None and job.held_out is not None:
        results |= {"held_out_elbo": -float(run.validation[:, 1].min()), "held_out_rows": len(job.held_out)}
    if isinstance(run, VariationalBayes):
        size = effective_size(run, table.x)
        results |= {"bound": float(run[-1]), "in_use": size.kept, "starts": len(run.attempts), "near": len(run.near())}
        results["size"] = str(size)
    if isinstance(reference, Conjugate):
        started = time.perf_counter()
        starts = 5 if isinstance(reference, Mixture) else 1
        results["optimum"] = max(_em(reference, table.x, seed) for seed in range(starts))
        results["distance"] = results["optimum"] - results["log_marginal"]
        results["optimum_seconds"] = time.perf_counter() - started
    return Done(run, results, table)


def _fit(job: Job) -> Fit:
    """The fit itself; large data are fitted by minibatches unless a batch size is given."""
    if job.guide is None:
        steps = job.options["steps"]
        return cavi(job.model, job.table.x, seed=job.seed, **({} if steps is None else {"sweeps": steps}))
    options = dict(job.options)
    if options["batch_size"] is None and not isinstance(job.guide, guides.Exact) and job.table.x.numel() > LARGE:
        options["batch_size"] = 256
        err.print(f"{len(job.table)} rows: using minibatches of 256; --batch-size sets another size")
    if job.binarise:
        _refuse_beyond_one(job.table.x)
        options["transform"] = torch.bernoulli
    if job.held_out is not None:
        options["validation"] = job.held_out
    return fit(job.model, job.guide, job.table.x, seed=job.seed, **options)


def _em(model: Module, x: torch.Tensor, seed: int) -> float:
    """The log-likelihood per row that EM reaches from a random start; -inf if a component collapses."""
    try:
        return float(em(copy.deepcopy(model), x, seed=seed)[-1]) / len(x)
    except FloatingPointError:
        return float("-inf")


def _show(done: Done) -> None:
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
    if "floor" in results:
        share = f"{100 * results['at_floor']:.1f}% of the variances are at the floor or below 1e-3"
        out.print(f"variance floor: {results['floor']:g} of each column's variance; {share}")


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _method(se: float, exact: str) -> str:
    return f"Monte Carlo{_error(se)}" if se > 0 else exact


def _write(job: Job, done: Done, place: Path) -> None:
    """Write the run, its results, figures and draws to a folder."""
    run, results, table = done.run, done.results, done.table
    record = {**results, "command": shlex.join(["zoo", *sys.argv[1:]]), "table": job.source}
    write(run, place)
    (place / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    plots.save(plots.loss(run, optimum=results.get("optimum")), place / "loss.png")
    plots.save(plots.latent(run, table.x, labels=table.labels, label_names=table.label_names), place / "latent.png")
    n, d = table.x.shape
    draws = int(min(500, ARVIZ // (n * d)))
    if draws < 1:
        err.print(f"no ArviZ file: a draw of {n} x {d} entries is too large; call zoo.to_arviz on fewer rows")
        return
    to_arviz(run, table, draws=draws, seed=job.seed).to_netcdf(str(place / "arviz.nc"))
