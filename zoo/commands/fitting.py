"""The options of ``zoo fit``; torch is loaded once they have been read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.catalogue import GUIDES, LIKELIHOODS
from zoo.commands.console import COLUMNS, EXCLUDE, FAILURES, GUIDE_SET, MODEL, SET, THREADS, fail
from zoo.commands.outputs import Rotation

OPTIONAL_SOURCE = Annotated[
    str | None, typer.Argument(metavar="DATA", help="Name of a data set, or path of a file; none with --moments.")
]
MOMENTS = Annotated[
    Path | None,
    typer.Option(help="In place of DATA for PPCA and FactorAnalysis: a covariance or correlation matrix, with --n."),
]
COVARIANCE = Annotated[
    str | None,
    typer.Option(
        help="Of a mixture: full, tied, diag, spherical, tied_diag, tied_spherical; of a VAE: scalar, diag, low_rank, "
        "full."
    ),
]
LIKELIHOOD = Annotated[str | None, typer.Option(help=f"Likelihood of a VAE: {', '.join(LIKELIHOODS)}.")]
FLOOR = Annotated[
    float | None, typer.Option(help="Lower limit of a VAE's or a mixture's variances, as a fraction of the data's.")
]
PATIENCE = Annotated[
    int | None,
    typer.Option(
        help="Hold out a tenth of the rows; stop after this many looks without a better ELBO on them, and keep the "
        "best parameters. By default 20 for a deep model with an Amortized guide; 0 holds nothing out."
    ),
]
BATCH_SIZE = Annotated[
    int | None, typer.Option(help="Rows per step; by default all, or minibatches for large data and deep models.")
]
BINARISE = Annotated[bool, typer.Option("--binarise", help="Draw every entry in [0, 1] as 0 or 1, anew at every step.")]
ARVIZ = Annotated[
    str | None,
    typer.Option(
        help="Groups of arviz.nc, e.g. posterior,sample_stats; 'all', or 'none' for no file. By default those without "
        "predictive draws."
    ),
]


class Precision(StrEnum):
    """Floating-point types of a run."""

    float32 = "float32"
    float64 = "float64"


class Start(StrEnum):
    """Where a model starts."""

    data = "data"
    random = "random"


class Tables(StrEnum):
    """Formats of the tables in the folder of a run."""

    csv = "csv"
    parquet = "parquet"
    none = "none"


TABLES = Annotated[Tables, typer.Option(help="Format of the tables of loadings, components and scores in --out.")]
RESUME = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the same command's fit that was interrupted or killed, to the bit; begin if there is none.",
    ),
]
ROTATION = Annotated[
    Rotation | None,
    typer.Option(
        help="Rotation of the factors of a linear model in tables, figures and draws; by default principal, or varimax "
        "with --moments."
    ),
]
GUIDE = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(GUIDES[:-1])} or {GUIDES[-1]}; or one of your own, written as the model; by default Exact "
        "where the model has a closed-form posterior, else Amortized, and coordinate ascent for a Bayesian model."
    ),
]
START = Annotated[
    Start | None, typer.Option(help="Start at an estimate from the data where the model has one, or at random.")
]


def fit_(
    model: MODEL,
    source: OPTIONAL_SOURCE = None,
    guide: GUIDE = None,
    moments: MOMENTS = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of rows behind --moments.")] = None,
    latent_dim: Annotated[int | None, typer.Option("--latent-dim", "-k", help="Number of factors.")] = None,
    components: Annotated[int | None, typer.Option(help="Number of mixture components.")] = None,
    covariance: COVARIANCE = None,
    noise: Annotated[str | None, typer.Option(help="Noise of a VAE: network, constant.")] = None,
    likelihood: LIKELIHOOD = None,
    model_hidden: Annotated[str | None, typer.Option(help="Hidden widths of a VAE's networks, e.g. 64,64.")] = None,
    floor: FLOOR = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden widths of the guide's network, e.g. 64,64.")] = None,
    guide_covariance: Annotated[str | None, typer.Option(help="Covariance of Amortized: diag, low_rank, full.")] = None,
    set_: SET = None,
    guide_set: GUIDE_SET = None,
    columns: COLUMNS = None,
    exclude: EXCLUDE = None,
    labels: Annotated[str | None, typer.Option(help="Column with labels, for the figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial values, minibatches and draws.")] = 0,
    start: START = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps; by default until convergence.")] = None,
    batch_size: BATCH_SIZE = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point type.")] = Precision.float64,
    device: Annotated[str | None, typer.Option(help="Device to train on, e.g. cpu or cuda.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the run; must not contain one yet.")] = None,
    rotation: ROTATION = None,
    tables: TABLES = Tables.csv,
    arviz: ARVIZ = None,
    binarise: BINARISE = False,
    patience: PATIENCE = None,
    threads: THREADS = None,
    resume: RESUME = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Fit a model to data by SVI or coordinate ascent, and compare with its closed-form optimum.

    With --out, writes parameters (safetensors), settings (JSON), draws for ArviZ (netCDF), results (JSON), figures of
    the loss and the latent space, and tables: loadings and their variance or the components of a mixture, and scores of
    the rows. zoo.load(DIR) loads the run. Until then DIR.checkpoint keeps the fit so far, from which --resume goes on.
    """
    from zoo.commands import fit_asked, fit_job, moments_job

    own = {"latent_dim": latent_dim, "components": components, "hidden": model_hidden, "floor": floor}
    own |= {"covariance": covariance, "noise": noise, "likelihood": likelihood}
    of_guide = {"hidden": hidden, "covariance": guide_covariance}
    options = {"steps": steps, "batch_size": batch_size, "device": device, "patience": patience}
    options["start"] = start and start.value
    try:
        parts = fit_asked.Parts.asked(model, guide, own, of_guide, {"--set": set_, "--guide-set": guide_set})
        if moments is None:
            rows = fit_asked.Rows(_rows_of(source, n), columns, exclude, labels, dtype.value, binarise)
            wanted = fit_job.Outputs(folder, arviz, tables.value, rotation and rotation.value, resume)
            fit_job.fit_and_show(parts, rows, options, wanted, seed=seed, threads=threads, quiet=quiet)
        else:
            given: dict[str, object] = {"DATA": source, "guide": guide, "columns": columns, "exclude": exclude}
            given |= {"labels": labels, "arviz": arviz, "guide_set": guide_set, "binarise": binarise or None}
            given |= {"hidden": hidden, "guide_covariance": guide_covariance, "resume": resume or None}
            given |= {**options, "steps": None}
            turned, matrix = rotation and rotation.value, moments_job.Matrix(moments, n, given)
            moments_job.fit_moments_and_show(
                model, parts.settings, matrix, turned, steps=steps, seed=seed, folder=folder, threads=threads
            )
    except (*FAILURES, KeyboardInterrupt) as error:
        fail(error)


def _rows_of(source: str | None, n: int | None) -> str:
    """The source of the rows.

    Raises:
        ValueError: there is none, or ``--n`` is given as well.
    """
    if source is None:
        raise ValueError("DATA is missing: give the name of a data set or the path of a file, or --moments")
    if n is not None:
        raise ValueError("--n is the number of rows behind --moments: DATA has its own")
    return source
