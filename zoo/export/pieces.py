"""All groups of one run, computed a few rows at a time, so that memory does not grow with the number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.base import memory
from zoo.base.protocols import Pair
from zoo.export import variables
from zoo.export.chains import Transform
from zoo.export.contents import Contents
from zoo.export.densities import Found, Notes, Scores
from zoo.export.variables import Groups, Variable
from zoo.posterior.engine import Arguments, Densities, Drawn, Reader, reader, reading


@dataclass(frozen=True)
class Piece:
    """The groups of some rows of one run.

    Attributes:
        rows: the rows of the piece.
        groups: variables by group and name. Variables without the dimension ``row`` are in the first piece; sums over
            the rows are in every piece, and are over all rows so far.
        notes: further attributes by group.
        bounds: the evidence lower bound and log p(X) in nats, and k-hat, of all rows so far; empty where these are
            given row by row.
    """

    rows: slice
    groups: Groups
    notes: Notes
    bounds: dict[str, float]


def rows_per_piece(source: Reader, draws: int, rows_at_once: int | None) -> int:
    """The number of rows per piece: all of them where a guide draws shared and local sites jointly."""
    n, d = source.x.shape
    if source.joint_only and source.layout.shared:
        return n
    width = sum(latent.shape.numel() for latent in source.layout.local)
    return min(n, rows_at_once or memory.rows_at_once(draws * max(d, width)))


class Chain:
    """Draws, predictions and densities of one run, piece by piece.

    Args:
        run: the model and the guide.
        x: rows (n, d), in the dtype and on the device of the model.
        draws: the number of draws.
        seed: the seed of the draws; every piece has its own random stream, derived from it.
        number: the number of the chain.
        transform: the transform of the draws of the latent sites.
        contents: the groups to compute, and their precision.
    """

    def __init__(
        self, run: Pair, x: Tensor, draws: int, seed: int, number: int, transform: Transform, contents: Contents
    ) -> None:
        self.run, self.draws, self.transform, self.contents = run, draws, transform, contents
        self.seed, self.number = seed, number
        self.held: dict[str, Tensor] = {}  # draws of the shared sites, from the first piece
        self.prior_held: dict[str, Tensor] = {}
        self.everyone: Drawn | None = None  # draws of a guide that draws all rows jointly
        self.point = ""  # the reason, where a point mass leaves the guide without a density
        with reading(run, 0):
            self.source = reader(run, x)
        self.scores = Scores(self.source, draws)

    def arguments(self, rows: slice) -> Arguments:
        """The arguments of model and guide for some rows."""
        x = self.source.x
        if rows.stop - rows.start == len(x):
            return (x,)
        return x[rows], torch.arange(rows.start, rows.stop, device=x.device), len(x)

    def piece(self, rows: slice) -> Piece:
        """The groups of some rows; the pieces must be computed in order.

        Raises:
            ValueError: log weights that are NaN or infinite; the message names the row.
        """
        stream = np.random.SeedSequence(self.seed, spawn_key=(self.number, rows.start))
        with reading(self.run, int(stream.generate_state(1)[0])):
            return self._piece(rows, self.arguments(rows))

    def _piece(self, rows: slice, arguments: Arguments) -> Piece:
        layout, d, first = self.source.layout, self.source.x.shape[1], rows.start == 0
        if first:
            self.point = _point_mass(self.source, (self.source.x,) if self.source.joint_only else arguments)
        drawn = self._posterior(rows, arguments)
        values = self.source.complete(arguments, drawn.values, self.draws)
        self.held = {latent.name: values[latent.name] for latent in layout.shared}
        groups: Groups = {"posterior": self._latents(values, first)}
        if self.contents.has("posterior_predictive"):
            replicated, _ = self.source.simulate(arguments, self.draws, values)
            groups["posterior_predictive"] = {n: variables.predicted(n, replicated[n], d) for n in layout.data}
        if self.contents.has("prior", "prior_predictive"):
            prior, _ = self.source.simulate(arguments, self.draws, self.prior_held)
            self.prior_held = {latent.name: prior[latent.name] for latent in layout.shared}
            groups["prior"] = self._latents(prior, first)
            groups["prior_predictive"] = {n: variables.predicted(n, prior[n], d) for n in layout.data}
        seen = self.source.observed(arguments)
        groups["observed_data"] = {name: variables.observed(name, value, d) for name, value in seen.items()}
        found = Found()
        if self.contents.has("log_likelihood", "sample_stats", "constant_data"):
            found = self.scores.of_rows(rows, arguments, drawn, self.held, self.point)
        scored = {
            "log_likelihood": found.likelihood,
            "sample_stats": found.stats,
            "constant_data": found.constants,
        }
        notes = {"posterior": {}, **found.notes}
        for name in ("log_likelihood", "sample_stats"):
            if not scored[name] and name in notes:
                notes["posterior"][name] = notes.pop(name)["note"]
        return Piece(rows, self.contents.of(groups | scored), notes, found.bounds)

    def _latents(self, values: Mapping[str, Tensor], first: bool) -> dict[str, Variable]:
        new = [latent for latent in self.source.layout.latents if first or latent.local]
        return {own.name: variables.latent(own, self.transform(own, values[own.name])) for own in new}

    def _posterior(self, rows: slice, arguments: Arguments) -> Drawn:
        """Draws from the guide; where it draws all rows jointly, the part of the joint draws for these rows."""
        if not self.source.joint_only:
            return self.source.draw(arguments, self.draws, self.held, points=True)
        if self.everyone is None:
            self.everyone = self.source.draw((self.source.x,), self.draws, points=True)
        local = {latent.name for latent in self.source.layout.local}
        values = {name: v[:, rows] if name in local else v for name, v in self.everyone.values.items()}
        log_q = self.everyone.log_q
        by_row = {name: term[:, rows] for name, term in log_q.rows.items()}
        return Drawn(values, Densities(by_row, log_q.shared), self.everyone.joint)


def _point_mass(source: Reader, arguments: Arguments) -> str:
    """Why a point mass leaves the guide without a density; the empty string where it has one."""
    source.draw(arguments, 2, points=True)  # any other error is raised here
    try:
        source.draw(arguments, 2)
    except ValueError as error:
        return str(error)
    return ""
