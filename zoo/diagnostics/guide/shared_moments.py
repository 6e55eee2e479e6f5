"""Importance-corrected moments of shared sites, and of the rows' own sites given these."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.base.protocols import ConjugateGivenShared
from zoo.diagnostics.guide.moments import flat, units_of, weighted_moments
from zoo.posterior.engine import Arguments, Reader
from zoo.posterior.evaluation import inner_draws
from zoo.posterior.psis import psis_khat, psis_weights
from zoo.posterior.rowwise import log_mean

LIMIT = 0.7  # of k-hat for any number of draws
SHOWN = 4  # draws of the shared sites at which the rows' k-hat is computed


@dataclass(frozen=True, eq=False)
class SharedMoments:
    r"""Moments of the shared sites by one set of Pareto-smoothed importance weights.

    Attributes:
        khat: k-hat of the weights; above ``limit`` the corrected moments are NaN.
        ess: the effective number of draws.
        guide_mean: the guide's mean (p,), from its draws.
        guide_covariance: the guide's covariance (p, p).
        mean: the corrected mean (p,).
        mean_se: its Monte Carlo standard error (p,).
        covariance: the corrected covariance (p, p).
        limit: the largest reliable k-hat for S draws.
        draws: draws of the shared sites S.
        units: the names of the p coordinates, as ``"weight[0]"``; empty for a model without shared sites under a guide
            that draws all rows jointly.
        log_weights: the normalised smoothed log weights of the draws (S,).
    """

    khat: float
    ess: float
    guide_mean: Tensor
    guide_covariance: Tensor
    mean: Tensor
    mean_se: Tensor
    covariance: Tensor
    limit: float
    draws: int
    units: tuple[str, ...]
    log_weights: Tensor

    @property
    def refused(self) -> bool:
        """Whether k-hat is above the limit."""
        return not self.khat <= self.limit

    def moments(self) -> tuple[Tensor, Tensor]:
        """The corrected mean (p,) and covariance (p, p).

        Raises:
            ValueError: k-hat is above the limit.
        """
        if self.refused:
            raise ValueError(
                f"the weights of {', '.join(self.units[:3]) or 'all rows'} have k-hat {self.khat:.2f}, above "
                f"{self.limit:.2f}: importance-corrected moments are unreliable with {self.draws} draws. Take more "
                "draws if k-hat is below 0.7, otherwise a richer guide, or zoo.nuts"
            )
        return self.mean, self.covariance

    def summary(self) -> dict[str, float]:
        """k-hat and the effective number of draws."""
        return {"khat": self.khat, "ess": self.ess, "limit": self.limit}

    def frame(self) -> pl.DataFrame:
        """One row per unit: the guide's and the corrected means and standard deviations."""
        columns: dict[str, Any] = {"unit": list(self.units)}
        for name in ("guide_", ""):
            columns[f"{name}mean"] = getattr(self, f"{name}mean").tolist()
            columns[f"{name}deviation"] = getattr(self, f"{name}covariance").diagonal().sqrt().tolist()
        return pl.DataFrame(columns | {"mean_se": self.mean_se.tolist()})

    def __repr__(self) -> str:
        state = "refused" if self.refused else "corrected"
        what = f"{len(self.units)} shared coordinates" if self.units else "all rows jointly"
        return f"{what} {state}, k-hat {self.khat:.2f}, effective draws {self.ess:.0f} of {self.draws}"


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The terms of a chunk of rows at every draw of the shared sites."""

    density: Tensor  # log p(x | theta), or log p(x, z) - log q(z) of a joint guide, (draws, b)
    mean: Tensor  # corrected means of the rows' own sites given theta (draws, b, k)
    square: Tensor  # their corrected second moments (draws, b, k, k)
    own: Tensor  # the guide's means given theta (draws, b, k)
    own_square: Tensor  # the guide's second moments (draws, b, k, k)
    khat: Tensor  # (b,)


def of_all_rows(
    source: Reader, draws: int, inner: int | None, limit: float
) -> tuple[tuple[Tensor, ...], SharedMoments]:
    """The fields of ``ImportanceMoments`` for all rows, and the moments of the shared sites.

    Args:
        source: the pair and its rows.
        draws: of the shared sites.
        inner: of the rows' own sites for every draw of the shared ones; None chooses by the cost of a draw.
        limit: of k-hat.
    """
    names, local = {latent.name for latent in source.layout.shared}, source.layout.local
    width = sum(latent.cardinality or latent.shape.numel() for latent in local)
    total: Tensor = torch.zeros(())
    held: dict[str, Tensor] = {}
    chunks: list[_Chunk] = []
    joint = None
    for _, arguments in source.chunks(rows_at_once(draws * (source.x.shape[1] + width + width**2))):
        drawn = source.draw(arguments, draws, held)
        log_p = source.score(arguments, drawn.values, draws)
        if not chunks:
            joint = drawn.joint
            held = {name: value for name, value in drawn.values.items() if name in names}
            total = torch.as_tensor(log_p.of_shared - drawn.log_q.of_shared).double().expand(draws)
        terms = (log_p.by_row - drawn.log_q.by_row).double().expand(draws, len(arguments[0]))
        if joint is not None or not local:
            chunks.append(_together(source, local, arguments, drawn.values, terms))
        else:
            chunks.append(_given(source, local, arguments, held, inner_draws(source, inner)))
        total = total + chunks[-1].density.sum(1)
    if total.isnan().any() or not total.amax().isfinite():
        raise ValueError(
            "the log weights of all rows are NaN, inf, or all -inf: look for draws outside the model's support, or for "
            "NaN among the parameters"
        )
    logs, khat = psis_weights(total.unsqueeze(1))
    weight = logs[:, 0].exp()  # (draws,)
    refused = not float(khat) <= limit
    shared = _shared(source, held, logs[:, 0], float(khat), limit)
    parts = [_columns(chunk, weight, limit, refused, joint is not None, float(khat)) for chunk in chunks]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True)), shared


def _shared(source: Reader, held: dict[str, Tensor], logs: Tensor, khat: float, limit: float) -> SharedMoments:
    """The moments of the shared sites from their weights."""
    found, draws, weight = source.layout.shared, len(logs), logs.exp()
    parts = [flat(held[latent.name], latent).double() for latent in found]
    theta = torch.cat(parts, -1) if parts else weight.new_zeros(draws, 0)  # (draws, p)
    even = torch.full_like(weight, 1 / draws)
    own = [part[0] for part in weighted_moments(theta.unsqueeze(1), even.unsqueeze(1))]
    mean, covariance = (part[0] for part in weighted_moments(theta.unsqueeze(1), weight.unsqueeze(1)))
    error = (weight.square().unsqueeze(-1) * (theta - mean).square()).sum(0).sqrt()
    if not khat <= limit:
        for corrected in (mean, covariance, error):
            corrected.fill_(math.nan)
    return SharedMoments(
        khat=khat,
        ess=float(1 / weight.square().sum()),
        guide_mean=own[0].to(source.x),
        guide_covariance=own[1].to(source.x),
        mean=mean.to(source.x),
        mean_se=error.to(source.x),
        covariance=covariance.to(source.x),
        limit=limit,
        draws=draws,
        units=units_of(found),
        log_weights=logs,
    )


def _numbers(values: dict[str, Tensor], local: tuple[Latent, ...], like: Tensor) -> Tensor:
    """The rows' own sites as vectors (draws, b, k)."""
    parts = [flat(values[latent.name], latent).double() for latent in local]
    return torch.cat(parts, -1) if parts else like.new_zeros(*like.shape, 0)


def _together(
    source: Reader, local: tuple[Latent, ...], arguments: Arguments, values: dict[str, Tensor], terms: Tensor
) -> _Chunk:
    """The chunk of a guide that draws all rows jointly, or of a model whose rows have no sites of their own."""
    z = _numbers(source.complete(arguments, values, len(terms)), local, terms)
    square = z.unsqueeze(-1) * z.unsqueeze(-2)
    return _Chunk(terms, z, square, z, square, terms.new_full((terms.shape[1],), math.nan))


def _given(
    source: Reader, local: tuple[Latent, ...], arguments: Arguments, held: dict[str, Tensor], inner: int
) -> _Chunk:
    """The chunk with moments of the rows' own sites given every draw of the shared sites."""
    parts: list[tuple[Tensor, ...]] = []
    khats: list[Tensor] = []
    for chosen in _groups(held, inner, arguments[0].numel()):
        count = len(chosen)
        repeated = {name: value[chosen].repeat_interleave(inner, 0) for name, value in held.items()}
        drawn = source.draw(arguments, count * inner, repeated)
        log_p = source.score(arguments, drawn.values).by_row
        logs = (log_p - drawn.log_q.by_row).double().unflatten(0, (count, inner))  # (group, inner, b)
        z = _numbers(source.complete(arguments, drawn.values), local, logs.flatten(0, 1)).unflatten(0, (count, inner))
        v = logs.softmax(1).unsqueeze(-1)  # (group, inner, b, 1)
        outer = z.unsqueeze(-1) * z.unsqueeze(-2)
        moments = (v * z).sum(1), (v.unsqueeze(-1) * outer).sum(1), z.mean(1), outer.mean(1)
        parts.append((log_mean(logs.movedim(1, 0))[0], *moments))
        khats += [psis_khat(own) for own in logs[: max(0, SHOWN - len(khats))]]
    density, mean, square, own, own_square = (torch.cat(column) for column in zip(*parts, strict=True))
    model = undecorated(source.pair.model)
    if isinstance(model, ConjugateGivenShared):
        density = model.log_marginal_given(arguments[0], held).double()
    return _Chunk(density, mean, square, own, own_square, torch.stack(khats).median(0).values)


def _groups(held: dict[str, Tensor], inner: int, numbers: int) -> Iterator[Tensor]:
    """Indices of the draws of the shared sites, as many at a time as memory allows."""
    draws = len(next(iter(held.values())))
    yield from torch.arange(draws).split(rows_at_once(inner * numbers))


def _columns(
    chunk: _Chunk, weight: Tensor, limit: float, refused: bool, joint: bool, khat_shared: float
) -> tuple[Tensor, ...]:
    """The fields of ``ImportanceMoments`` for a chunk of rows."""
    mean = torch.einsum("s,sbk->bk", weight, chunk.mean)
    covariance = torch.einsum("s,sbkl->bkl", weight, chunk.square) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    error = torch.einsum("s,sbk->bk", weight.square(), (chunk.mean - mean).square()).sqrt()
    own = chunk.own.mean(0)
    own_covariance = chunk.own_square.mean(0) - own.unsqueeze(-1) * own.unsqueeze(-2)
    khat = torch.full_like(chunk.khat, khat_shared) if joint else chunk.khat
    lost = torch.full_like(khat, True, dtype=torch.bool) if refused else ~(khat <= limit)
    for corrected in (mean, covariance, error):
        corrected[lost] = math.nan
    ess = torch.full_like(khat, float(1 / weight.square().sum()))
    return khat, ess, own, own_covariance, mean, error, covariance
