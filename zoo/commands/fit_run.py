"""The fit of ``zoo fit``, its evaluation, and the closed-form optimum beside it."""

import copy
import dataclasses
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch

import guides
from guides.ascent import cavi
from zoo import data
from zoo.base.callables import PyroCallable
from zoo.base.protocols import Conjugate, Floored, Mixture
from zoo.commands.console import err
from zoo.commands.fit_asked import Job
from zoo.diagnostics.guide.relevance import effective_size
from zoo.infer.collapse import HeywoodCase, UnboundedLikelihood, collapse_of
from zoo.infer.coordinate_ascent import VariationalBayes
from zoo.infer.expectation_maximisation import em
from zoo.infer.fitting import fit
from zoo.infer.run import Fit
from zoo.posterior.evaluation import evaluate
from zoo.posterior.psis import LEAST as LEAST_DRAWS

LARGE = 2_000_000  # entries of the data above which a learned guide takes minibatches by default


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


def run_job(job: Job) -> Done:
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


def _em(model: PyroCallable, x: torch.Tensor, seed: int) -> float:
    """The log-likelihood per row that EM reaches from a random start; -inf if a component collapses."""
    model = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboundedLikelihood)
            warnings.simplefilter("ignore", HeywoodCase)  # that of the run itself is shown
            found = float(em(model, x, seed=seed)[-1]) / len(x)
    except FloatingPointError:
        return -math.inf
    return -math.inf if collapse_of(model, x) else found
