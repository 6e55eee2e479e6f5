"""The command ``zoo``."""

import copy
import dataclasses
import json
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import guides
from zoo import data, plots
from zoo.base.atomic import new_folder
from zoo.base.module import Module
from zoo.base.protocols import Conjugate
from zoo.commands import judging, registry, selecting
from zoo.commands.console import err, fail, out, words
from zoo.export.convert import to_arviz
from zoo.infer.coordinate_ascent import VariationalBayes, cavi
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import Fit, fit
from zoo.infer.storage.checkpoint import write
from zoo.posterior.evaluation import LEAST_DRAWS, evaluate

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("diagnose")(judging.diagnose_)
app.command("report")(judging.report_)
app.command("select")(selecting.select_)
LARGE = 2_000_000  # entries of the data beyond which a learned guide takes minibatches unless told otherwise


class Precision(StrEnum):
    """Floating-point types a run can use."""

    float32 = "float32"
    float64 = "float64"


@app.callback()
def main() -> None:
    """Latent factor models and variational guides, any with any, with the exact answer beside them."""


@app.command("list")
def list_() -> None:
    """Show the models, the guides that serve each, and the data sets."""
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


@app.command("fit")
def fit_(
    model: Annotated[str, typer.Argument(help="PPCA, FactorAnalysis, GMM or VAE.")],
    source: Annotated[str, typer.Argument(metavar="DATA", help="Name of a data set, or path of a file.")],
    guide: Annotated[
        str | None,
        typer.Option(
            help="MeanField, FullRank, Amortized, SemiAmortized, Flow or Exact; by default Amortized, and coordinate "
            "ascent for a Bayesian model."
        ),
    ] = None,
    latent_dim: Annotated[int | None, typer.Option("--latent-dim", "-k", help="Number of factors.")] = None,
    components: Annotated[int | None, typer.Option(help="Number of mixture components.")] = None,
    covariance: Annotated[
        str | None,
        typer.Option(help="Of a mixture: full, tied, diag, spherical; of a VAE: scalar, diag, low_rank, full."),
    ] = None,
    noise: Annotated[str | None, typer.Option(help="Covariance of a VAE: network, constant.")] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="Of a VAE: gaussian, bernoulli, poisson, student_t, logistic_256.")
    ] = None,
    model_hidden: Annotated[str | None, typer.Option(help="Hidden widths of a VAE's networks, as 64,64.")] = None,
    floor: Annotated[float | None, typer.Option(help="Least variance of a VAE, as a fraction of the data's.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden widths of the guide's network, as 64,64.")] = None,
    guide_covariance: Annotated[str | None, typer.Option(help="Of Amortized: diag, low_rank, full.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of the data, as a,b,c.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column with labels, for the pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of the start, the batches and the draws.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Most steps; by default until converged.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step; by default all, of large data 256.")] = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point type.")] = Precision.float64,
    device: Annotated[str | None, typer.Option(help="Where to train, as cpu or cuda.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the run; must not hold one yet.")] = None,
    binarise: Annotated[bool, typer.Option("--binarise", help="Draw every entry in [0, 1] anew as 0 or 1.")] = False,
    patience: Annotated[
        int | None, typer.Option(help="Hold a tenth of the rows out; stop after so many looks without a better bound.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Fit a model to data by SVI, next to its closed-form answer.

    Writes, with --out: parameters (safetensors), settings (JSON), the ArviZ file (netCDF), results (JSON) and pictures
    of the loss and the latent space. zoo.load(DIR) brings the run back.
    """
    try:
        model_class = registry.find(model, registry.models(), "model")
        ascends = guide is None and hasattr(model_class, "coordinate_ascent")
        guide_class = registry.find(guide or "Amortized", registry.guide_classes(), "guide")
        kind = getattr(torch, dtype.value)
        table = data.load(source, columns=words(columns), labels=labels, dtype=kind)
        settings = {
            "latent_dim": latent_dim,
            "components": components,
            "covariance": covariance,
            "noise": noise,
            "likelihood": likelihood,
            "hidden": _widths(model_hidden),
            "floor": floor,
        }
        how: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "device": device, "progress": not quiet}
        if patience is not None:
            table, apart = table.split(test=0.1, seed=seed)
            how |= {"patience": patience, "validation": apart}
        if binarise:
            how["transform"] = torch.bernoulli
            _refuse_beyond_one(table.x)
        torch.manual_seed(seed)
        built = registry.build(model_class, settings, table.x.shape[1]).to(kind)
        widths = _widths(hidden)
        served = None
        if ascends:
            given = {"--hidden": hidden, "--guide-covariance": guide_covariance, "--batch-size": batch_size}
            _refuse_with_ascent(given | {"--patience": patience, "--binarise": binarise or None})
        else:
            served = registry.build(guide_class, {"hidden": widths, "covariance": guide_covariance}, built, table.x)
        if folder is None:
            run, results, _ = _run(built, served, table, seed, how)
            _show(run, results, table)
            return
        with new_folder(folder) as place:
            run, results, table = _run(built, served, table, seed, how)
            results["command"] = shlex.join(["zoo", *sys.argv[1:]])
            results["table"] = {
                "source": source if source in data.names() else str(Path(source).resolve()),
                "columns": words(columns),
                "labels": labels,
                "held_out": 0.1 if patience is not None else None,
                "binarised": binarise,
            }
            write(run, place)
            (place / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            _pictures(run, table, results, place)
            _export(run, table, seed, place)
        _show(run, results, table)
        out.print(f"run written to {folder}")
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        fail(error)


def _widths(text: str | None) -> tuple[int, ...] | None:
    """Hidden widths from text as 64,64; the empty text means none."""
    try:
        return None if text is None else tuple(int(word) for word in words(text) or ())
    except ValueError:
        raise ValueError(f"hidden must be whole numbers as 64,64, got {text!r}") from None


def _refuse_with_ascent(given: dict[str, Any]) -> None:
    """Raise where an option is given that coordinate ascent does not take.

    Raises:
        ValueError: names the first one.
    """
    if taken := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"{taken[0]} is an option of SVI, and this model is fitted by coordinate ascent: name a --guide"
        )


def _refuse_beyond_one(x: torch.Tensor) -> None:
    """Raise where an entry is no probability.

    Raises:
        ValueError: names the first one.
    """
    beyond = ((x < 0) | (x > 1)).nonzero()
    if len(beyond):
        row, column = beyond[0].tolist()
        value = x[row, column].item()
        raise ValueError(f"--binarise needs entries in [0, 1]: row {row}, column {column} holds {value}; scale them")


def _run(
    model: Module, guide: Module | None, table: data.Dataset, seed: int, how: dict[str, Any]
) -> tuple[Fit, dict[str, Any], data.Dataset]:
    """Fit (by coordinate ascent without a guide), evaluate, and find the closed-form optimum on a copy.

    The rows come back as they were evaluated.
    """
    reference = copy.deepcopy(model)
    learned = guide is not None and not isinstance(guide, guides.Exact)
    if learned and how["batch_size"] is None and table.x.numel() > LARGE:
        how["batch_size"] = 256
        err.print(f"{len(table)} rows are many: taking minibatches of 256; --batch-size sets another size")
    if guide is None:
        run: Fit = cavi(model, table.x, seed=seed, **({} if how["steps"] is None else {"sweeps": how["steps"]}))
    else:
        run = fit(model, guide, table.x, seed=seed, **how)
    if "transform" in how:
        generator = torch.Generator().manual_seed(seed)
        table = dataclasses.replace(table, x=torch.bernoulli(table.x, generator=generator))
    n, d = table.x.shape
    draws = int(min(500, max(LEAST_DRAWS, 2e9 // (n * d))))
    evaluation = evaluate(run, table.x, draws=draws, seed=seed)
    results: dict[str, Any] = {
        "data": table.name,
        "rows": n,
        "columns": d,
        **evaluation.summary(),
        "estimator": evaluation.estimator,
        "seconds": run.settings["seconds"],
        "steps": run.settings["steps"],
        "converged": run.converged,
    }
    if "at_floor" in run.settings:
        results |= {"floor": model.floor, "at_floor": run.settings["at_floor"]}
    if run.validation is not None:
        results["held_out_elbo"] = -float(run.validation[:, 1].min())
        results["held_out_rows"] = len(how["validation"])
    if isinstance(reference, Conjugate):
        started = time.perf_counter()
        results["optimum"] = max(
            _climb(reference, table.x, s) for s in range(5 if hasattr(reference, "components") else 1)
        )
        results["distance"] = results["optimum"] - results["log_marginal"]
        results["optimum_seconds"] = time.perf_counter() - started
    return run, results, table


def _climb(model: Module, x: torch.Tensor, seed: int) -> float:
    """The log-likelihood per row that EM reaches from a random start; -inf where a component collapses."""
    try:
        return float(em(copy.deepcopy(model), x, seed=seed)[-1]) / len(x)
    except FloatingPointError:
        return float("-inf")


def _show(run: Fit, results: dict[str, Any], table: data.Dataset) -> None:
    name = f"{type(run.model).__name__} with {type(run.guide).__name__} on {table.name}"
    shown = Table(title=f"{name} ({len(table)} rows x {len(table.columns)} columns)", title_justify="left")
    shown.add_column("quantity")
    shown.add_column("per row, nats", justify="right")
    shown.add_column("all rows", justify="right")
    shown.add_column("how")
    n = results["rows"]

    def row(label: str, key: str, how: str) -> None:
        shown.add_row(label, f"{results[key]:.6f}", f"{results[key] * n:.4f}", how)

    row("ELBO", "elbo", _error(results["elbo_se"], "closed form"))
    row("log marginal", "log_marginal", results["estimator"] + _plus(results["log_marginal_se"]))
    row("gap = KL(q || p)", "gap", _error(results["gap_se"], "difference"))
    if "optimum" in results:
        row("closed-form optimum", "optimum", f"EM, {results['optimum_seconds']:.2f} s")
        row("optimum - log marginal", "distance", "what SVI leaves")
    if "held_out_elbo" in results:
        held_out, count = results["held_out_elbo"], results["held_out_rows"]
        shown.add_row("held-out ELBO", f"{held_out:.6f}", f"{held_out * count:.4f}", f"{count} rows, one draw each")
    out.print(shown)
    method = "coordinate ascent" if isinstance(run, VariationalBayes) else "SVI"
    state = "converged" if run.converged else "stopped at its last step"
    out.print(
        f"{method}: {results['steps']} steps in {results['seconds']:.2f} s, {state}; loss {run.settings['loss']}, "
        f"optimizer {run.settings['optimizer']}; k-hat > 0.7 on {100 * results['khat_above_0.7']:.1f}% of the rows"
    )
    if "at_floor" in run.settings:
        share = f"; {100 * run.settings['at_floor']:.1f}% of the variances lie there or below 1e-3"
        out.print(f"variance floor: {run.model.floor:g} of each column's variance{share}")


def _plus(se: float) -> str:
    return f" (se {se:.1g})" if se > 0 else ""


def _error(se: float, exact: str) -> str:
    return f"Monte Carlo (se {se:.1g})" if se > 0 else exact


def _pictures(run: Fit, table: data.Dataset, results: dict[str, Any], place: Path) -> None:
    plots.save(plots.loss(run, optimum=results.get("optimum")), place / "loss.png")
    plots.save(plots.latent(run, table.x, labels=table.labels, label_names=table.label_names), place / "latent.png")


def _export(run: Fit, table: data.Dataset, seed: int, place: Path) -> None:
    """The ArviZ file, with as many draws as keep it below some hundred megabytes."""
    n, d = table.x.shape
    draws = int(min(500, 2e7 // (n * d)))
    if draws < 1:
        err.print(f"no ArviZ file: one draw of {n} x {d} entries is too much; call zoo.to_arviz on fewer rows")
        return
    to_arviz(run, table, draws=draws, seed=seed).to_netcdf(str(place / "arviz.nc"))


@app.command("benchmark")
def benchmark_(
    suite: Annotated[str, typer.Argument(help="conjugate: how near SVI comes to EM's optimum; deep: held-out bounds.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the tables; an interrupted run resumes from it.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds: 5 of conjugate, 1 of deep.")] = None,
    only: Annotated[str | None, typer.Option(help="Run the cases with this in their names.")] = None,
    guide: Annotated[list[str] | None, typer.Option(help="Run these guides only (conjugate); repeatable.")] = None,
    budget: Annotated[str, typer.Option(help="Of deep: quick, cpu, full.")] = "quick",
    device: Annotated[str | None, typer.Option(help="Where to train (deep), as cpu or cuda.")] = None,
) -> None:
    """Run models x guides x data x seeds, beside scikit-learn or published numbers; write CSV, Markdown and netCDF."""
    from zoo.benchmark import conjugate, deep

    try:
        if suite not in ("conjugate", "deep"):
            raise ValueError(f"unknown benchmark {suite!r}: there are 'conjugate' and 'deep'")
        count = {"conjugate": 5, "deep": 1}[suite] if seeds is None else seeds
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}")
        if suite == "conjugate":
            names = tuple(guide or conjugate.GUIDES)
            table = conjugate.conjugate(folder, seeds=range(count), only=only, guide_names=names, report=_report)
            text = conjugate.markdown(table)
        else:
            table = deep.deep(
                folder, seeds=range(count), budget=budget, only=only, device=device, progress=True, report=_report
            )
            text = deep.markdown(table)
        out.print(text, highlight=False, soft_wrap=True, markup=False)
    except (ValueError, FloatingPointError, OSError) as error:
        fail(error)


def _report(row: dict[str, Any]) -> None:
    """A new row of a benchmark, in a line."""
    if "method" in row:
        found = f"{row['method']:17s} seed {row['seed']}  distance {row['distance']:9.1e}  {row['steps']:6d} steps"
    else:
        found = f"{row['budget']:5s} seed {row['seed']}  IWAE-{row['draws']} {row['iwae']:.2f} (ELBO {row['elbo']:.2f})"
    err.print(f"{row['case']:26s} {found}  {row['seconds']:8.2f} s", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
