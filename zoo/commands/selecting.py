"""The options of ``zoo select``; torch is loaded once they have been read."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.console import COLUMNS, EXCLUDE, FAILURES, GUIDE_SET, MODEL, SET, SOURCE, THREADS, fail


def select_(
    model: MODEL,
    source: SOURCE,
    values: Annotated[str, typer.Option("--values", "-k", help="Numbers to compare, e.g. 1-6 or 1,2,5.")] = "1-6",
    guide: Annotated[
        str | None,
        typer.Option(help="Fit by SVI with this guide, written as for zoo fit; by default by EM or coordinate ascent."),
    ] = None,
    covariance: Annotated[
        str | None,
        typer.Option(
            help="Of a mixture: full, tied, diag, spherical, tied_diag, tied_spherical; or in mclust's words VVV, EEE, "
            "VVI, VII, EEI, EII."
        ),
    ] = None,
    likelihood: Annotated[str | None, typer.Option(help="Likelihood of a VAE, e.g. gaussian or bernoulli.")] = None,
    set_: SET = None,
    guide_set: GUIDE_SET = None,
    columns: COLUMNS = None,
    exclude: EXCLUDE = None,
    seeds: Annotated[int, typer.Option(help="Random starts per number; the best one is kept.")] = 5,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation; 0 skips it.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds and the draws.")] = 0,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for selection.csv and selection.png.")] = None,
    threads: THREADS = None,
) -> None:
    """Compare numbers of factors or components by BIC, AIC, held-out log p(x), or the bound of a Bayesian model."""
    from zoo.commands import select_job
    from zoo.registry.making import merged

    try:
        settings = merged({"covariance": covariance, "likelihood": likelihood}, set_)
        own = merged({}, guide_set, "--guide-set")
        select_job.select_and_show(
            select_job.Asked(model, guide, settings, own, source, columns, exclude),
            values,
            seeds=seeds,
            folds=folds or None,
            seed=seed,
            folder=folder,
            threads=threads,
        )
    except FAILURES as error:
        fail(error)
