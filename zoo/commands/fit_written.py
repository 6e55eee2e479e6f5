"""What ``zoo fit`` writes: the run, its results, tables, figures and draws."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import polars

from zoo import plots
from zoo.alignment.rotated import RotatedFactors
from zoo.base.latent_sites import layout
from zoo.commands.console import err
from zoo.commands.fit_asked import Job
from zoo.commands.fit_run import Done
from zoo.commands.rotation import in_coordinates, rotate_run, with_turned_guide
from zoo.commands.row_tables import components_of, has_components, scores_of, without_scores
from zoo.commands.tables import write_table
from zoo.data.fingerprints import fingerprint
from zoo.export.contents import numbers_per_draw
from zoo.export.write import write_arviz
from zoo.infer.storage.checkpoint import write


@dataclass(frozen=True)
class Written:
    """Where to write and what: the folder, the groups of the ArviZ file, its most numbers, the format of tables."""

    place: Path
    groups: tuple[str, ...]
    most: float
    tables: str


@dataclass(frozen=True, eq=False)
class FitTables:
    """The tables of a fit.

    Attributes:
        rotated: the factors of a linear model, with their loadings; None for others.
        components: those of a Gaussian mixture; None for others.
        scores: a line per row; None if they are not wanted.
    """

    rotated: RotatedFactors | None
    components: polars.DataFrame | None
    scores: polars.DataFrame | None

    def frames(self) -> dict[str, polars.DataFrame]:
        """The tables by the names of their files, without suffix."""
        found = {} if self.rotated is None else loading_tables(self.rotated)
        found |= {} if self.components is None else {"components": self.components}
        return found | ({} if self.scores is None else {"scores": self.scores})


def loading_tables(rotated: RotatedFactors) -> dict[str, polars.DataFrame]:
    """Loadings and variances by the names of their files; of oblique factors also structure and correlations."""
    found = {"loadings": rotated.frame(), "variance": rotated.variance()}
    if rotated.oblique:
        found |= {"structure": rotated.frame("structure"), "correlations": rotated.correlation_frame()}
    return found


def tables_of(done: Done, rotation: str | None, seed: int, *, scores: bool) -> FitTables:
    """The tables of a fit, in one rotation.

    Raises:
        ValueError: a rotation is given, and the model is not linear-Gaussian.
    """
    run, table = done.run, done.table
    mixture = has_components(run, table)
    rotated = rotate_run(run, table, rotation)
    components = components_of(run, table.columns) if mixture else None
    scores = scores and without_scores(run, table) is None
    return FitTables(rotated, components, scores_of(run, table, rotated, seed=seed) if scores else None)


def write_folder(job: Job, done: Done, tables: FitTables, wanted: Written) -> None:
    """Write the run, its results, tables, figures and draws to a folder."""
    run, results, table, place = done.run, done.results, done.table, wanted.place
    rows = job.source | {"fingerprint": fingerprint(job.table.x)}
    record = {**results, "command": shlex.join(["zoo", *sys.argv[1:]]), "table": rows}
    if tables.rotated is not None:
        record["rotation"] = tables.rotated.rotation
    write(run, place)
    (place / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    if wanted.tables != "none":
        for name, frame in tables.frames().items():
            write_table(frame, place / f"{name}.{wanted.tables}")
    plots.save(plots.loss(run, optimum=results.get("optimum")), place / "loss.png")
    if (why := without_scores(run, table)) is None:
        plots.save(plots.latent(with_turned_guide(run, tables.rotated), table), place / "latent.png")
    else:
        err.print(f"no scores and no latent.png: {why}", highlight=False, soft_wrap=True)
    if not wanted.groups:
        return
    n, d = table.x.shape
    draws = int(min(500, wanted.most // max(1, numbers_per_draw(layout(job.model, table.x), n, d, wanted.groups))))
    if draws < 1:
        err.print(f"no ArviZ file: a draw for {n} rows is too large; use --arviz GROUPS, or zoo.to_arviz on fewer rows")
        return
    turned = in_coordinates(run, tables.rotated)
    write_arviz(turned, table, place / "arviz.nc", draws=draws, seed=job.seed, groups=wanted.groups)
