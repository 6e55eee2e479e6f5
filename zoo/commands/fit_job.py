"""What ``zoo fit`` does: fit, evaluate, show and write."""

import copy
import dataclasses
import json
import math
import shlex
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import guides
from guides.ascent import cavi
from zoo import data, plots
from zoo.base.atomic import new_folder
from zoo.base.callables import name_of
from zoo.base.latent_sites import layout
from zoo.base.module import Module
from zoo.base.protocols import ConditionallyConjugate, Conjugate, Floored, Mixture
from zoo.base.threads import exactly
from zoo.commands import registry
from zoo.commands.console import err, out, tell, words
from zoo.diagnostics.guide.relevance import effective_size
from zoo.export.contents import GROUPS, SMALL, check_groups, numbers_per_draw
from zoo.export.write import write_arviz
from zoo.infer.collapse import UnboundedLikelihood, collapse_of, heywood_case
from zoo.infer.coordinate_ascent import VariationalBayes
from zoo.infer.deep_defaults import HELD_OUT, MOST_HELD_OUT, PATIENCE, may_overfit
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.run import Fit
from zoo.infer.storage.checkpoint import write
from zoo.posterior.evaluation import evaluate
from zoo.posterior.psis import LEAST as LEAST_DRAWS

LARGE = 2_000_000  # entries of the data above which a learned guide takes minibatches by default
SMALL_FILE = 6e5  # numbers in the ArviZ file, at most, where no groups are given: below 5 MB
LARGE_FILE = 2e7  # where they are: some hundred megabytes


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


@dataclass(frozen=True)
class Rows:
    """Where the rows come from: a data set or file, its columns and labels, their precision, whether to binarise."""

    source: str
    columns: str | None
    labels: str | None
    dtype: str
    binarise: bool

    def load(self) -> data.Dataset:
        """All rows."""
        dtype = getattr(torch, self.dtype)
        return data.load(self.source, columns=words(self.columns), labels=self.labels, dtype=dtype)

    def record(self, held_out: float | None) -> dict[str, Any]:
        """How ``zoo diagnose`` and ``zoo report`` find the fitted rows again."""
        source = self.source if self.source in data.names() else str(Path(self.source).resolve())
        return {
            "columns": words(self.columns),
            "labels": self.labels,
            "binarised": self.binarise,
            "held_out": held_out,
            "source": source,
        }


@dataclass(frozen=True)
class Parts:
    """Model and guide by name, None for the default guide, and the settings of both, None where not given."""

    model: str
    guide: str | None
    settings: dict[str, Any]
    own: dict[str, Any]

    def build(self, x: torch.Tensor, seed: int) -> tuple[Module, Module | None]:
        """Model and guide in the precision of the rows; no guide for coordinate ascent."""
        model_class = registry.find(self.model, registry.models(), "model")
        given = None if self.guide is None else registry.find(self.guide, registry.guide_classes(), "guide")
        settings, own = ({**each, "hidden": _widths(each["hidden"])} for each in (self.settings, self.own))
        torch.manual_seed(seed)
        model = registry.build(model_class, settings, x.shape[1]).to(x.dtype)
        ascends = given is None and isinstance(model, ConditionallyConjugate)
        if ascends:
            return model, None
        network = any(value is not None for value in own.values())
        default = guides.Exact if isinstance(model, Conjugate) and not network else guides.Amortized
        return model, registry.build(given or default, own, model, x)


def fit_and_show(
    parts: Parts,
    rows: Rows,
    options: dict[str, Any],
    *,
    seed: int,
    folder: Path | None,
    arviz: str | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Fit, print the results, and write them to a folder; see ``zoo fit --help`` for the arguments.

    Args:
        parts: model and guide.
        rows: the data.
        options: ``steps``, ``batch_size``, ``device``, ``patience`` and ``start``; None where not given.
        seed: of the fit.
        folder: where to write the run, or None.
        arviz: names of the groups of the ArviZ file, ``"all"``, ``"none"``, or None for the default.
        threads: their number; None for as many as pay.
        quiet: whether to show no progress bar.
    """
    groups = _groups(arviz)
    most = SMALL_FILE if arviz is None else LARGE_FILE
    with exactly(threads):
        job = _job(parts, rows, options, seed, quiet)
        if folder is None:
            _show(_run(job))
            return
        with new_folder(folder) as place:
            done = _run(job)
            _write(job, done, place, groups, most)
    _show(done)
    out.print(f"run written to {folder}")


def _job(parts: Parts, rows: Rows, options: dict[str, Any], seed: int, quiet: bool) -> Job:
    """The input of the fit, with the defaults of deep models filled in."""
    table = rows.load()
    tell(table)
    model, guide = parts.build(table.x, seed)
    given = {**options, "progress": not quiet}
    if guide is None:
        listed = {"--hidden": parts.own["hidden"], "--guide-covariance": parts.own["covariance"]}
        listed |= {"--batch-size": options["batch_size"], "--device": options["device"], "--start": options["start"]}
        _refuse_with_ascent(listed | {"--patience": options["patience"], "--binarise": rows.binarise or None})
    elif given["patience"] is None and may_overfit(model, guide, table.x, layout(model, table.x)):
        given["patience"] = PATIENCE
    if not given["patience"]:
        return Job(model, guide, table, None, seed, rows.binarise, given, rows.record(None))
    share = min(HELD_OUT, MOST_HELD_OUT / len(table))
    table, held_out = table.split(test=share, seed=seed)
    model, guide = parts.build(table.x, seed)  # anew: both standardise by the rows they are given
    return Job(model, guide, table, held_out, seed, rows.binarise, given, rows.record(share))


def _groups(text: str | None) -> tuple[str, ...]:
    """The groups of the ArviZ file.

    Raises:
        ValueError: there is no such group.
    """
    if text is None:
        return SMALL
    return GROUPS if text == "all" else () if text == "none" else check_groups(words(text))


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
    evaluation = evaluate(run, table, draws=int(min(500, max(LEAST_DRAWS, 2e9 // (n * d)))), seed=job.seed)
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
        best = max(_em(reference, table.x, seed) for seed in range(starts))
        if best > -math.inf:
            results["optimum"], results["distance"] = best, best - results["log_marginal"]
            results["optimum_seconds"] = time.perf_counter() - started
    return Done(run, results, table)


def _fit(job: Job) -> Fit:
    """The fit itself; large data are fitted by minibatches unless a batch size is given."""
    if job.guide is None:
        steps = job.options["steps"]
        return cavi(job.model, job.table, seed=job.seed, **({} if steps is None else {"sweeps": steps}))
    options = {**job.options, "start": job.options["start"] or "data"}
    if options["batch_size"] is None and not isinstance(job.guide, guides.Exact) and job.table.x.numel() > LARGE:
        options["batch_size"] = 256
        err.print(f"{len(job.table)} rows: using minibatches of 256; --batch-size sets another size")
    if job.binarise:
        _refuse_beyond_one(job.table.x)
        options["transform"] = torch.bernoulli
    if job.held_out is not None:
        options["validation"] = job.held_out
    return fit(job.model, job.guide, job.table, seed=job.seed, **options)


def _em(model: Module, x: torch.Tensor, seed: int) -> float:
    """The log-likelihood per row that EM reaches from a random start; -inf if a component collapses."""
    model = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboundedLikelihood)
            found = float(em(model, x, seed=seed)[-1]) / len(x)
    except FloatingPointError:
        return -math.inf
    return -math.inf if collapse_of(model, x) else found


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
    if (heywood := heywood_case(run.model, table.columns)) is not None:
        out.print(heywood, highlight=False, soft_wrap=True, markup=False)
    if "floor" in results:
        share = f"{100 * results['at_floor']:.1f}% of the variances are at the floor or below 1e-3"
        out.print(f"variance floor: {results['floor']:g} of each column's variance; {share}")


def _error(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _method(se: float, exact: str) -> str:
    return f"Monte Carlo{_error(se)}" if se > 0 else exact


def _write(job: Job, done: Done, place: Path, groups: tuple[str, ...], most: float) -> None:
    """Write the run, its results, figures and draws to a folder.

    Args:
        job: the input of the fit.
        done: its output.
        place: the folder.
        groups: of the ArviZ file; empty for no file.
        most: the most numbers in it.
    """
    run, results, table = done.run, done.results, done.table
    record = {**results, "command": shlex.join(["zoo", *sys.argv[1:]]), "table": job.source}
    write(run, place)
    (place / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    plots.save(plots.loss(run, optimum=results.get("optimum")), place / "loss.png")
    plots.save(plots.latent(run, table), place / "latent.png")
    if not groups:
        return
    n, d = table.x.shape
    draws = int(min(500, most // max(1, numbers_per_draw(layout(job.model, table.x), n, d, groups))))
    if draws < 1:
        err.print(f"no ArviZ file: a draw for {n} rows is too large; use --arviz GROUPS, or zoo.to_arviz on fewer rows")
        return
    write_arviz(run, table, place / "arviz.nc", draws=draws, seed=job.seed, groups=groups)
