"""All groups of one run, some rows at a time, so that memory does not grow with the number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.base.latent_sites import Latent, latents
from zoo.export import variables
from zoo.export.chains import Turn
from zoo.export.variables import Groups, Variable
from zoo.infer.fitting import Fit
from zoo.posterior.draws import Drawn, data_sites, from_guide, from_model, log_joint, no_density, whole
from zoo.posterior.engine import Arguments, reading
from zoo.posterior.psis import LEAST, psis_khat

BUDGET = 2**22  # numbers per array and piece
INNER = 100  # draws of the local sites for every draw of the shared ones
POINT = (
    "parameters are point estimates, so every draw of a chain is the same: LOO and WAIC only restate the in-sample log "
    "density; compare models by log p(x) of held-out rows"
)


@dataclass(frozen=True)
class Piece:
    """The groups of some rows of one run.

    Attributes:
        rows: which.
        groups: variables by group and name; those without the dimension ``row`` only with the first rows.
        notes: further attributes by group.
    """

    rows: slice
    groups: Groups
    notes: dict[str, dict[str, Any]]


def rows_per_piece(run: Fit, x: Tensor, found: Sequence[Latent], draws: int, rows_at_once: int | None) -> int:
    """How many rows to take at a time: all where a guide of shared and local sites knows its rows only together."""
    n, d = x.shape
    if whole(run.guide) and not all(latent.local for latent in found):
        return n
    width = sum(latent.shape.numel() for latent in found if latent.local)
    return min(n, rows_at_once or max(1, BUDGET // (draws * max(d, width))))


class Source:
    """What a run says of its rows, piece by piece.

    Args:
        run: a fit.
        x: rows (n, d) as the run's model takes them.
        draws: the number of draws.
        seed: of the draws; every piece has a random stream of its own that follows from it.
        chain: the run's number.
        turn: applied to the draws of the latent sites.
    """

    def __init__(self, run: Fit, x: Tensor, draws: int, seed: int, chain: int, turn: Turn) -> None:
        self.run, self.x, self.draws, self.turn = run, x, draws, turn
        self.seed, self.chain = seed, chain
        with reading(run, 0):
            self.found = latents(run.model, x)
        self.shared = [latent for latent in self.found if not latent.local]
        self.local = [latent for latent in self.found if latent.local]
        self.held: dict[str, Tensor] = {}  # shared sites, drawn with the first rows
        self.prior_held: dict[str, Tensor] = {}
        self.everyone: Drawn | None = None  # of a guide that knows its rows only together
        self.reason = ""  # why the guide has no density of a row

    def arguments(self, rows: slice) -> Arguments:
        """Those of model and guide for some rows."""
        n = len(self.x)
        if rows.stop - rows.start == n:
            return (self.x,)
        index = torch.arange(rows.start, rows.stop, device=self.x.device)
        return self.x[rows], index, n

    def piece(self, rows: slice) -> Piece:
        """The groups of some rows; ask for the first rows first.

        Raises:
            ValueError: log weights that are no numbers; the message names the row.
        """
        stream = np.random.SeedSequence(self.seed, spawn_key=(self.chain, rows.start))
        with reading(self.run, int(stream.generate_state(1)[0])):
            return self._piece(rows, self.arguments(rows))

    def _piece(self, rows: slice, arguments: Arguments) -> Piece:
        d, first = self.x.shape[1], rows.start == 0
        seen = data_sites(self.run, arguments)
        if first:
            self.reason = no_density(self.run, (self.x,) if whole(self.run.guide) else arguments, self.local)
        drawn = self._posterior(rows, arguments)
        new = [site for site in self.found if first or site.local]
        groups: Groups = {
            "posterior": {s.name: variables.latent(s, self.turn(s, drawn.latent[s.name])) for s in new},
            "observed_data": {name: variables.observed(name, value, d) for name, value in seen.items()},
        }
        _, predicted = from_model(self.run, arguments, self.found, list(seen), self.draws, drawn.latent)
        groups["posterior_predictive"] = {k: variables.predicted(k, v, d) for k, v in predicted.items()}
        latent, predicted = from_model(self.run, arguments, self.found, list(seen), self.draws, self.prior_held)
        self.prior_held = {site.name: latent[site.name] for site in self.shared}
        groups["prior"] = {s.name: variables.latent(s, self.turn(s, latent[s.name])) for s in new}
        groups["prior_predictive"] = {k: variables.predicted(k, v, d) for k, v in predicted.items()}
        notes: dict[str, dict[str, Any]] = {"posterior": {}}
        weights, groups["sample_stats"], notes["sample_stats"] = self._weights(rows, arguments, drawn)
        density, about = self._log_likelihood(arguments, drawn, weights)
        notes["log_likelihood"] = about
        groups["log_likelihood"] = {} if density is None else {"x": variables.per_draw(density, **about)}
        for name in ("log_likelihood", "sample_stats"):
            if not groups[name]:
                notes["posterior"][name] = notes.pop(name)["note"]
        return Piece(rows, {name: group for name, group in groups.items() if group}, notes)

    def _posterior(self, rows: slice, arguments: Arguments) -> Drawn:
        """Draws from the guide; of one that knows its rows only together, these rows of draws for all."""
        if not whole(self.run.guide):
            drawn = from_guide(self.run, arguments, self.found, self.draws, self.held)
        else:
            if self.everyone is None:
                self.everyone = from_guide(self.run, (self.x,), self.found, self.draws)
            local = {site.name for site in self.local}
            latent = {k: v[:, rows] if k in local else v for k, v in self.everyone.latent.items()}
            drawn = Drawn(latent, self.everyone.log_q[:, rows])
        self.held = {site.name: drawn.latent[site.name] for site in self.shared}
        return drawn

    def _weights(
        self, rows: slice, arguments: Arguments, drawn: Drawn
    ) -> tuple[Tensor | None, dict[str, Variable], dict[str, Any]]:
        """Log weights (draws, b), or None; with what goes into ``sample_stats`` and a note on it."""
        reason = self.reason
        if self.shared:
            reason = f"'{self.shared[0].name}' is shared by all rows, so the densities do not split into rows"
        elif not self.local:
            reason = "the model has no latent site"
        if reason:
            return None, {}, {"note": f"absent: {reason}"}
        log_p = log_joint(self.run, arguments, self.found, self.draws, drawn.latent)
        weights = log_p - drawn.log_q
        _check_weights(weights, rows.start)
        stats = {
            "lp": variables.per_draw(log_p, kind="log p(x_i, z_i), nats"),
            "log_q": variables.per_draw(drawn.log_q, kind="log q(z_i | x_i), nats"),
            "log_weight": variables.per_draw(weights, kind="log p(x_i, z_i) - log q(z_i | x_i), nats"),
        }
        note = "per draw and row: the mean of log_weight over the draws is the row's ELBO"
        if self.draws >= LEAST:
            kind = "Pareto k-hat of the row's weights; above 0.7 the guide is too far from the posterior"
            stats["khat"] = Variable(("row",), variables.numpy(psis_khat(weights)), {"kind": kind})
        else:
            note += f"; khat is absent: it needs {LEAST} draws"
        return weights, stats, {"note": note}

    def _log_likelihood(
        self, arguments: Arguments, drawn: Drawn, weights: Tensor | None
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """log p(x_i | parameters) or log p(x_i | shared sites) (draws, b), and what it is; or None and why."""
        x, draws = arguments[0], self.draws
        if not self.shared and hasattr(self.run.model, "log_marginal"):
            exact = self.run.model.log_marginal(x)
            return exact.expand(draws, len(x)), {"kind": "closed-form marginal log p(x_i)", "note": POINT}
        if not self.local:  # the data's own density is all there is
            density = log_joint(self.run, arguments, self.found, draws, drawn.latent)
            if not self.shared:
                return density, {"kind": "log p(x_i)", "note": POINT}
            return density, {"kind": "log p(x_i | shared sites)", "draws": 1}
        if self.reason:
            return None, {"note": f"absent: {self.reason}, the model no log_marginal"}
        if weights is not None:
            kind = f"importance-weighted estimate of log p(x_i) with K = {draws} draws from the guide"
            return _log_mean(weights).expand(draws, len(x)), {"kind": kind, "draws": draws, "note": POINT}
        each = []
        for i in range(draws):
            held = {k: v[i].expand(INNER, *v[i].shape) for k, v in self.held.items()}
            inner = from_guide(self.run, arguments, self.found, INNER, held)
            log_p = log_joint(self.run, arguments, self.found, INNER, inner.latent)
            each.append(_log_mean(log_p - inner.log_q))
        kind = (
            f"importance-weighted estimate of log p(x_i | shared sites) with K = {INNER} draws of the row's own sites"
        )
        return torch.stack(each), {"kind": kind, "draws": INNER}


def _log_mean(weights: Tensor) -> Tensor:
    return weights.logsumexp(0) - log(len(weights))


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
