"""Densities of one run at draws from its guide, a few rows at a time, with sums over all rows so far."""

from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.protocols import Conjugate, ConjugateGivenShared
from zoo.export import variables
from zoo.export.variables import Variable
from zoo.posterior.engine import Arguments, Densities, Drawn, Reader
from zoo.posterior.evaluation import given_shared, inner_draws
from zoo.posterior.psis import LEAST, psis_khat
from zoo.posterior.rowwise import log_mean

POINT = (
    "the parameters are point estimates, so there are no draws of them for LOO or WAIC to reweight. log p(x_i) at the "
    "estimates is log_marginal in constant_data; compare models by log p(x) of held-out rows (zoo.export.elpd)"
)
Notes = dict[str, dict[str, Any]]
Held = dict[str, Tensor]  # draws of the shared sites


@dataclass
class Sums:
    """Sums over the rows so far, for every draw (draws,), in float64."""

    log_p: Tensor  # log p(X, Z, theta)
    log_q: Tensor  # log q(Z, theta)
    marginal: Tensor  # log p(X, theta) - log q(theta), with the local sites integrated out
    closed: float = 0.0  # log p(X) of a conjugate model without shared sites


@dataclass
class Found:
    """The variables computed from the densities of a piece."""

    stats: dict[str, Variable] = field(default_factory=dict)
    likelihood: dict[str, Variable] = field(default_factory=dict)
    constants: dict[str, Variable] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)


class Scores:
    """The densities of one run, piece by piece.

    Args:
        source: the pair and its rows.
        draws: the number of draws.
    """

    def __init__(self, source: Reader, draws: int) -> None:
        zero = torch.zeros(draws, dtype=torch.float64, device=source.x.device)
        self.source, self.draws, self.sums = source, draws, Sums(zero, zero, zero)

    def of_rows(self, rows: slice, arguments: Arguments, drawn: Drawn, held: Held, point: str) -> Found:
        """The densities of some rows at draws from the guide; the pieces must be computed in order.

        Args:
            rows: the rows.
            arguments: arguments of model and guide for the rows.
            drawn: the draws from the guide.
            held: the draws of the shared sites.
            point: why a point mass leaves the guide without a density; the empty string where it has one.

        Raises:
            ValueError: log weights that are NaN or infinite; the message names the row.
        """
        layout, model = self.source.layout, undecorated(self.source.pair.model)
        if not layout.shared and isinstance(model, Conjugate):
            exact = _log_marginal(model.log_marginal(arguments[0]), "log p(x_i) in closed form, nats")
        else:
            exact = {}
        if point:
            note = {"note": f"absent: {point}"}
            return Found(constants=exact, notes={"sample_stats": note, "log_likelihood": note})
        log_p = self.source.score(arguments, drawn.values, self.draws)
        terms = (log_p.by_row - drawn.log_q.by_row).expand(self.draws, len(arguments[0]))
        _check_weights(terms, rows.start)
        if layout.shared or drawn.joint is not None:
            found = self._summed(rows, arguments, drawn, held, log_p, terms)
        else:
            found = self._row_by_row(log_p, drawn.log_q, terms)
        if exact:
            found.constants = exact
            self.sums.closed += float(exact["log_marginal"].values.sum(dtype=np.float64))
            if found.bounds:
                found.bounds |= {"log_marginal": self.sums.closed, "log_marginal_se": 0.0}
        return found

    def _row_by_row(self, log_p: Densities, log_q: Densities, weights: Tensor) -> Found:
        """The densities of a model whose sites are all local, under a guide that factorizes over rows."""
        point = {"note": f"absent: {POINT}"}
        value, error = _log_mean(weights)
        kind = f"log p(x_i), estimated by importance weighting with {self.draws} draws from the guide, nats"
        constants = _log_marginal(value, kind, draws=self.draws)
        constants["log_marginal_se"] = Variable(("row",), variables.numpy(error), {"kind": "its standard error, nats"})
        if not self.source.layout.local:
            constants = _log_marginal(value, "log p(x_i), nats")
            absent = {"note": "absent: the model has no latent site"}
            return Found(constants=constants, notes={"sample_stats": absent, "log_likelihood": point})
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
        return Found(stats, {}, constants, {}, {"sample_stats": {"note": note}, "log_likelihood": point})

    def _summed(
        self, rows: slice, arguments: Arguments, drawn: Drawn, held: Held, log_p: Densities, terms: Tensor
    ) -> Found:
        """The densities with shared sites, or under a guide that draws all rows jointly: sums over the rows."""
        given, khat, about = self._given(arguments, drawn, held, terms)
        sums = self.sums
        if rows.start == 0:
            sums.log_p = sums.log_p + log_p.of_shared
            sums.log_q = sums.log_q + drawn.log_q.of_shared
            sums.marginal = sums.log_p - sums.log_q
        sums.log_p = sums.log_p + log_p.by_row.double().sum(-1)
        sums.log_q = sums.log_q + drawn.log_q.by_row.double().sum(-1)
        # A joint guide has no separate density of the shared sites: the weights are those of all sites.
        apart = None if drawn.joint is not None else given
        sums.marginal = sums.marginal + (terms if apart is None else apart).double().sum(-1)
        total, marginal = sums.log_p - sums.log_q, sums.marginal
        stats = {
            "lp": variables.per_draw(sums.log_p, kind="log p of all rows and latent sites, nats"),
            "log_q": variables.per_draw(sums.log_q, kind="log q of all latent sites, nats"),
            "log_weight": variables.per_draw(total, kind="lp - log_q, nats"),
        }
        note = "per draw, summed over all rows: the mean of log_weight over the draws is the ELBO of all rows"
        if apart is not None and self.source.layout.local:
            kind = "log p(X, shared sites) - log q(shared sites), local sites integrated out, nats"
            stats["log_weight_shared"] = variables.per_draw(marginal, kind=kind)
        if khat is not None:
            stats["khat"] = _khat(khat, "of the row's weights given draws of the shared sites")
        if self.draws < LEAST:
            note += f"; the k-hat of the shared sites is absent: it needs {LEAST} draws"
        found = Found(stats, bounds=_bounds(total, marginal), notes={"sample_stats": {"note": note}})
        if given is None or not self.source.layout.shared:
            found.notes["log_likelihood"] = {"note": f"absent: {about['note']}"}
        else:
            data = self.source.layout.data
            found.likelihood[data[0] if len(data) == 1 else "x"] = variables.per_row(given, **about)
            found.notes["log_likelihood"] = about
        return found

    def _given(
        self, arguments: Arguments, drawn: Drawn, held: Held, terms: Tensor
    ) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
        """log p(x_i | shared sites) (draws, b) and k-hat per row (b,), None where unknown, with their description."""
        layout, model = self.source.layout, undecorated(self.source.pair.model)
        closed = {"kind": "log p(x_i | shared sites) in closed form, nats"}
        if not layout.shared:
            return None, None, {"note": POINT}
        if not layout.local:
            return terms, None, closed
        exact = isinstance(model, ConjugateGivenShared)
        if drawn.joint is not None:
            if isinstance(model, ConjugateGivenShared):
                return model.log_marginal_given(arguments[0], held), None, closed
            reason = (
                f"the guide draws all rows jointly, in '{drawn.joint}', so that the local sites cannot be integrated "
                "out of log p(x_i | shared sites); guides with a density per row are zoo's and AutoNormal"
            )
            return None, None, {"note": reason}
        inner = inner_draws(self.source, None)
        given, khat = given_shared(self.source, arguments, held, terms, inner)
        if exact:
            return given, khat, closed
        kind = (
            f"log p(x_i | shared sites), estimated by importance weighting with {inner} draws of the local sites, nats"
        )
        return given, khat, {"kind": kind, "draws": inner}


def _bounds(total: Tensor, marginal: Tensor) -> dict[str, float]:
    """The evidence lower bound, log p(X) and k-hat, from log weights (draws,) of all sites and of the shared ones."""
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
    """The log of the mean of exp(weights) over the draws (draws, b), and its standard error: NaN for one draw."""
    return log_mean(weights) if len(weights) > 1 else (weights[0], torch.full_like(weights[0], nan))


def _log_marginal(values: Tensor, kind: str, **attrs: Any) -> dict[str, Variable]:
    about = {"kind": kind, "note": POINT, **attrs}
    return {"log_marginal": Variable(("row",), variables.numpy(values), about)}


def _khat(values: Tensor, what: str) -> Variable:
    kind = f"Pareto k-hat {what}; above 0.7 the guide is too far from the posterior"
    return Variable(("row",), variables.numpy(values), {"kind": kind})


def _check_weights(weights: Tensor, start: int) -> None:
    """Refuse rows with weights that are NaN or infinite, or all zero."""
    wrong = weights.isnan().any(0) | ~weights.amax(0).isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        what = "NaN" if weights[:, row].isnan().any() else str(float(weights[:, row].amax()))
        raise ValueError(
            f"log p(x, z) - log q(z | x) of row {start + row} is {what} (and of {int(wrong.sum()) - 1} more of the "
            f"{len(wrong)} rows from row {start} on): check for parameters that are NaN or infinite, and for draws "
            "outside the model's support"
        )
