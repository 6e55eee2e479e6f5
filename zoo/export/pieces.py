"""All groups of one run, some rows at a time, so that memory does not grow with the number of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.protocols import Conjugate, ConjugateGivenShared, Pair
from zoo.export import variables
from zoo.export.chains import Transform
from zoo.export.variables import Groups, Variable
from zoo.posterior.engine import Arguments, Densities, Drawn, Reader, reader, reading
from zoo.posterior.evaluation import given_shared, inner_draws
from zoo.posterior.psis import LEAST, psis_khat
from zoo.posterior.rowwise import log_mean

BUDGET = 2**22  # numbers per array and piece
POINT = (
    "the parameters are point estimates: there are no draws of them that LOO or WAIC could reweight. log p(x_i) at the "
    "estimates is log_marginal in constant_data; compare models by log p(x) of held-out rows (zoo.export.elpd)"
)
Notes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Piece:
    """The groups of some rows of one run.

    Attributes:
        rows: which.
        groups: variables by group and name. Those without the dimension ``row`` stand in the first piece, and sums over
            the rows in every one: over the rows up to its own.
        notes: further attributes by group.
        bounds: the evidence lower bound, log p(X) and k-hat of all rows up to these, in nats; empty where they are
            given row by row.
    """

    rows: slice
    groups: Groups
    notes: Notes
    bounds: dict[str, float]


@dataclass
class _Sums:
    """Sums over the rows so far, for every draw (draws,), in float64."""

    log_p: Tensor  # log p(X, Z, theta)
    log_q: Tensor  # log q(Z, theta)
    marginal: Tensor  # log p(X, theta) - log q(theta), the rows' own sites integrated out
    closed: float = 0.0  # log p(X) of a conjugate model without shared sites


@dataclass
class _Densities:
    """What the densities of a piece come to."""

    stats: dict[str, Variable] = field(default_factory=dict)
    likelihood: dict[str, Variable] = field(default_factory=dict)
    constants: dict[str, Variable] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)


def rows_per_piece(source: Reader, draws: int, rows_at_once: int | None) -> int:
    """The rows to take at a time: all where a guide of shared and local sites draws them only together."""
    n, d = source.x.shape
    if source.joint_only and source.layout.shared:
        return n
    width = sum(latent.shape.numel() for latent in source.layout.local)
    return min(n, rows_at_once or max(1, BUDGET // (draws * max(d, width))))


class Chain:
    """Draws, predictions and densities of one run, piece by piece.

    Args:
        run: the model and the guide.
        x: rows (n, d) as the run's model takes them.
        draws: the number of draws.
        seed: of the draws; every piece has a random stream of its own that follows from it.
        number: of the chain.
        transform: applied to the draws of the latent sites.
    """

    def __init__(self, run: Pair, x: Tensor, draws: int, seed: int, number: int, transform: Transform) -> None:
        self.run, self.draws, self.transform = run, draws, transform
        self.seed, self.number = seed, number
        self.held: dict[str, Tensor] = {}  # shared sites, drawn with the first rows
        self.prior_held: dict[str, Tensor] = {}
        self.everyone: Drawn | None = None  # of a guide that knows its rows only together
        zero = torch.zeros(draws, dtype=torch.float64, device=x.device)
        self.sums = _Sums(zero, zero, zero)
        self.point = ""  # why the guide has no density, where it puts a point mass on a site
        with reading(run, 0):
            self.source = reader(run, x)

    def arguments(self, rows: slice) -> Arguments:
        """Those of model and guide for some rows."""
        x = self.source.x
        if rows.stop - rows.start == len(x):
            return (x,)
        return x[rows], torch.arange(rows.start, rows.stop, device=x.device), len(x)

    def piece(self, rows: slice) -> Piece:
        """The groups of some rows; ask for the pieces in their order.

        Raises:
            ValueError: log weights that are no numbers; the message names the row.
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
        replicated, _ = self.source.simulate(arguments, self.draws, values)
        prior, _ = self.source.simulate(arguments, self.draws, self.prior_held)
        self.prior_held = {latent.name: prior[latent.name] for latent in layout.shared}
        found = self._densities(rows, arguments, drawn)
        seen = self.source.observed(arguments)
        groups: Groups = {
            "posterior": self._latents(values, first),
            "posterior_predictive": {name: variables.predicted(name, replicated[name], d) for name in layout.data},
            "log_likelihood": found.likelihood,
            "sample_stats": found.stats,
            "prior": self._latents(prior, first),
            "prior_predictive": {name: variables.predicted(name, prior[name], d) for name in layout.data},
            "observed_data": {name: variables.observed(name, value, d) for name, value in seen.items()},
            "constant_data": found.constants,
        }
        notes = {"posterior": {}, **found.notes}
        for name in ("log_likelihood", "sample_stats"):
            if not groups[name]:
                notes["posterior"][name] = notes.pop(name)["note"]
        return Piece(rows, {name: group for name, group in groups.items() if group}, notes, found.bounds)

    def _latents(self, values: Mapping[str, Tensor], first: bool) -> dict[str, Variable]:
        new = [latent for latent in self.source.layout.latents if first or latent.local]
        return {own.name: variables.latent(own, self.transform(own, values[own.name])) for own in new}

    def _posterior(self, rows: slice, arguments: Arguments) -> Drawn:
        """Draws from the guide; of one that knows its rows only together, these rows of draws for all."""
        if not self.source.joint_only:
            return self.source.draw(arguments, self.draws, self.held, points=True)
        if self.everyone is None:
            self.everyone = self.source.draw((self.source.x,), self.draws, points=True)
        local = {latent.name for latent in self.source.layout.local}
        values = {name: v[:, rows] if name in local else v for name, v in self.everyone.values.items()}
        log_q = self.everyone.log_q
        by_row = {name: term[:, rows] for name, term in log_q.rows.items()}
        return Drawn(values, Densities(by_row, log_q.shared), self.everyone.joint)

    def _densities(self, rows: slice, arguments: Arguments, drawn: Drawn) -> _Densities:
        """The densities of some rows at draws from the guide."""
        layout, model = self.source.layout, undecorated(self.run.model)
        if not layout.shared and isinstance(model, Conjugate):
            exact = _log_marginal(model.log_marginal(arguments[0]), "log p(x_i) in closed form, nats")
        else:
            exact = {}
        if self.point:
            note = {"note": f"absent: {self.point}"}
            return _Densities(constants=exact, notes={"sample_stats": note, "log_likelihood": note})
        log_p = self.source.score(arguments, drawn.values, self.draws)
        terms = (log_p.by_row - drawn.log_q.by_row).expand(self.draws, len(arguments[0]))
        _check_weights(terms, rows.start)
        if layout.shared or drawn.joint is not None:
            found = self._of_all_rows(rows, arguments, drawn, log_p, terms)
        else:
            found = self._of_rows(log_p, drawn.log_q, terms)
        if exact:
            found.constants = exact
            self.sums.closed += float(exact["log_marginal"].values.sum(dtype=np.float64))
            if found.bounds:
                found.bounds |= {"log_marginal": self.sums.closed, "log_marginal_se": 0.0}
        return found

    def _of_rows(self, log_p: Densities, log_q: Densities, weights: Tensor) -> _Densities:
        """The densities of a model all of whose sites are local, under a guide that splits into rows."""
        point = {"note": f"absent: {POINT}"}
        value, error = _log_mean(weights)
        kind = f"log p(x_i), estimated by importance weighting with {self.draws} draws from the guide, nats"
        constants = _log_marginal(value, kind, draws=self.draws)
        constants["log_marginal_se"] = Variable(("row",), variables.numpy(error), {"kind": "its standard error, nats"})
        if not self.source.layout.local:
            constants = _log_marginal(value, "log p(x_i), nats")
            absent = {"note": "absent: the model has no latent site"}
            return _Densities(constants=constants, notes={"sample_stats": absent, "log_likelihood": point})
        stats = {
            "lp": variables.per_row(log_p.by_row.expand_as(weights), kind="log p(x_i, z_i), nats"),
            "log_q": variables.per_row(log_q.by_row.expand_as(weights), kind="log q(z_i | x_i), nats"),
            "log_weight": variables.per_row(weights, kind="log p(x_i, z_i) - log q(z_i | x_i), nats"),
        }
        note = "per draw and row: the mean of log_weight over the draws is the row's ELBO"
        if self.draws >= LEAST:
            stats["khat"] = _khat(psis_khat(weights), "of the row's weights")
        else:
            note += f"; khat is absent: it needs {LEAST} draws"
        return _Densities(stats, {}, constants, {}, {"sample_stats": {"note": note}, "log_likelihood": point})

    def _of_all_rows(
        self, rows: slice, arguments: Arguments, drawn: Drawn, log_p: Densities, terms: Tensor
    ) -> _Densities:
        """The densities where rows share sites, or where the guide draws all rows together: sums over the rows."""
        given, khat, about = self._given(arguments, drawn, terms)
        sums = self.sums
        if rows.start == 0:
            sums.log_p = sums.log_p + log_p.of_shared
            sums.log_q = sums.log_q + drawn.log_q.of_shared
            sums.marginal = sums.log_p - sums.log_q
        sums.log_p = sums.log_p + log_p.by_row.double().sum(-1)
        sums.log_q = sums.log_q + drawn.log_q.by_row.double().sum(-1)
        # Of a joint guide the shared sites have no density of their own: the weights are those of everything.
        apart = None if drawn.joint is not None else given
        sums.marginal = sums.marginal + (terms if apart is None else apart).double().sum(-1)
        total, marginal = sums.log_p - sums.log_q, sums.marginal
        stats = {
            "lp": variables.per_draw(sums.log_p, kind="log p of all rows and latent sites, nats"),
            "log_q": variables.per_draw(sums.log_q, kind="log q of all latent sites, nats"),
            "log_weight": variables.per_draw(total, kind="lp - log_q, nats"),
        }
        note = "per draw, of all rows together: the mean of log_weight over the draws is the ELBO of all rows"
        if apart is not None and self.source.layout.local:
            kind = "log p(X, shared sites) - log q(shared sites), the rows' own sites integrated out, nats"
            stats["log_weight_shared"] = variables.per_draw(marginal, kind=kind)
        if khat is not None:
            stats["khat"] = _khat(khat, "of the row's weights given draws of the shared sites")
        if self.draws < LEAST:
            note += f"; the k-hat of the shared sites is absent: it needs {LEAST} draws"
        found = _Densities(stats, bounds=_bounds(total, marginal), notes={"sample_stats": {"note": note}})
        if given is None or not self.source.layout.shared:
            found.notes["log_likelihood"] = {"note": f"absent: {about['note']}"}
        else:
            data = self.source.layout.data
            found.likelihood[data[0] if len(data) == 1 else "x"] = variables.per_row(given, **about)
            found.notes["log_likelihood"] = about
        return found

    def _given(
        self, arguments: Arguments, drawn: Drawn, terms: Tensor
    ) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
        """log p(x_i | shared sites) (draws, b) and the rows' k-hat (b,), None where unknown; and what they are."""
        layout, model = self.source.layout, undecorated(self.run.model)
        closed = {"kind": "log p(x_i | shared sites) in closed form, nats"}
        if not layout.shared:
            return None, None, {"note": POINT}
        if not layout.local:
            return terms, None, closed
        exact = isinstance(model, ConjugateGivenShared)
        if drawn.joint is not None:
            if isinstance(model, ConjugateGivenShared):
                return model.log_marginal_given(arguments[0], self.held), None, closed
            reason = (
                f"the guide draws all rows together, in '{drawn.joint}', so that the rows' own sites cannot be "
                "integrated out of log p(x_i | shared sites); guides with a density per row are zoo's and AutoNormal"
            )
            return None, None, {"note": reason}
        inner = inner_draws(self.source, None)
        given, khat = given_shared(self.source, arguments, self.held, terms, inner)
        if exact:
            return given, khat, closed
        kind = (
            f"log p(x_i | shared sites), estimated by importance weighting with {inner} draws of the row's own sites, "
            "nats"
        )
        return given, khat, {"kind": kind, "draws": inner}


def _bounds(total: Tensor, marginal: Tensor) -> dict[str, float]:
    """The evidence lower bound, log p(X) and k-hat, from log weights (draws,) of everything and of the shared sites."""
    draws = len(total)
    evidence, error = _log_mean(marginal.unsqueeze(1))
    found = {
        "elbo": float(total.mean()),
        "elbo_se": float(total.std() / draws**0.5) if draws > 1 else nan,
        "log_marginal": float(evidence),
        "log_marginal_se": float(error),
    }
    if draws >= LEAST:
        found["khat"] = float(psis_khat(marginal.unsqueeze(1)))
    return found


def _log_mean(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean of weights (draws, b) given as logs, and its standard error, NaN for a single draw."""
    return log_mean(weights) if len(weights) > 1 else (weights[0], torch.full_like(weights[0], nan))


def _log_marginal(values: Tensor, kind: str, **attrs: Any) -> dict[str, Variable]:
    about = {"kind": kind, "note": POINT, **attrs}
    return {"log_marginal": Variable(("row",), variables.numpy(values), about)}


def _khat(values: Tensor, what: str) -> Variable:
    kind = f"Pareto k-hat {what}; above 0.7 the guide is too far from the posterior"
    return Variable(("row",), variables.numpy(values), {"kind": kind})


def _point_mass(source: Reader, arguments: Arguments) -> str:
    """Why the guide has no density, where it puts a point mass on a site; the empty string where it has one."""
    source.draw(arguments, 2, points=True)  # whatever else may be wrong is raised here
    try:
        source.draw(arguments, 2)
    except ValueError as error:
        return str(error)
    return ""


def _check_weights(weights: Tensor, start: int) -> None:
    """Refuse rows whose weights are no numbers, or all zero."""
    wrong = weights.isnan().any(0) | ~weights.amax(0).isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        what = "NaN" if weights[:, row].isnan().any() else str(float(weights[:, row].amax()))
        raise ValueError(
            f"log p(x, z) - log q(z | x) of row {start + row} is {what} (and of {int(wrong.sum()) - 1} rows more of "
            f"the {len(wrong)} from row {start} on): look for parameters that are no numbers, or draws outside the "
            "model's support"
        )
