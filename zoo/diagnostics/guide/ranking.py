"""Ranks of simulated truths among draws from the guide: the second part of :func:`zoo.diagnostics.sbc`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import Categorical

from zoo.base.callables import name_of, unwrapped
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.diagnostics.guide.simulation import Simulated, Table
from zoo.diagnostics.guide.uniform import normal_score
from zoo.infer.run import Fit
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.rowwise import conditional, gaussian

SAMPLE = 50  # rows on which a guide is tested for its dependence on x


@dataclass(frozen=True, eq=False)
class Ranks:
    """Probability integral transforms u of truths under q.

    Attributes:
        units: the names of the k units.
        pit: u of every simulation and unit (S, k).
        first: normal scores of the truths, or for a discrete site the probabilities of its values (S, k).
        likelihood: u of the likelihood (S,).
        hit: indicators of the true values of a discrete site (S, k); None for a continuous one.
        exact: whether ``pit`` is in closed form.
    """

    units: tuple[str, ...]
    pit: Tensor
    first: Tensor
    likelihood: Tensor
    hit: Tensor | None
    exact: bool

    @staticmethod
    def joined(parts: "Sequence[Ranks]") -> "Ranks":
        """The ranks of all parts, concatenated."""
        pit, first, likelihood = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("pit", "first", "likelihood")
        )
        hits = [part.hit for part in parts if part.hit is not None]
        return Ranks(parts[0].units, pit, first, likelihood, torch.cat(hits) if hits else None, parts[0].exact)


def rank(run: Fit, found: Simulated, table: Table, draws: int, seed: int, *, fresh: bool) -> Ranks:
    """The ranks of the truths of one data set among draws from the guide.

    Args:
        run: the pair with the guide.
        found: the simulations.
        table: one of their data sets.
        draws: draws from the guide.
        seed: of the draws.
        fresh: whether the guide was fitted to this data set.

    Raises:
        ValueError: the guide has parameters for other rows, or is not categorical for a discrete site.
    """
    if not fresh:
        _check_reads_rows(run, found.ranked, table.x)
    with reading(run, seed):
        source = reader(run, table.x)
        if found.shared:
            return _of_table(source, found, table, draws)
        width = table.x.shape[1] + sum(_widths(found.ranked))
        return Ranks.joined(
            [
                _of_rows(source, found, {name: value[index] for name, value in table.truth.items()}, arguments, draws)
                for index, arguments in source.chunks(rows_at_once(draws * width))
            ]
        )


def _of_table(source: Reader, found: Simulated, table: Table, draws: int) -> Ranks:
    """A data set of a model with shared sites, one simulation: ranks of these and of log p(x | all sites)."""
    arguments = (table.x,)
    drawn = source.draw(arguments, draws).values
    values = source.complete(arguments, drawn, draws)
    truth = {name: value.unsqueeze(0) for name, value in table.truth.items()}
    ours, theirs = (_likelihood(source, found, arguments, own).sum(1) for own in (values, truth))
    below = [(values[own.name] < truth[own.name]).sum(0).flatten() for own in found.ranked]
    pit = _randomised(torch.cat(below).unsqueeze(0), draws)
    likelihood = _randomised((ours < theirs).sum(0).unsqueeze(0), draws)
    return Ranks(_units(found.ranked), pit, normal_score(pit, 0.5 / (draws + 1)), likelihood, None, False)


def _likelihood(source: Reader, found: Simulated, arguments: Arguments, values: dict[str, Tensor]) -> Tensor:
    """log p(x | z) of every draw and row (draws, b), from the data sites alone."""
    terms = source.score(arguments, values).rows
    return torch.stack([terms[name] for name in found.data]).sum(0)


def _of_rows(source: Reader, found: Simulated, truth: dict[str, Tensor], arguments: Arguments, draws: int) -> Ranks:
    """The ranks of the truths of a chunk of rows."""
    sites = found.ranked
    values = source.complete(arguments, source.draw(arguments, draws).values, draws)
    ours = _likelihood(source, found, arguments, values)  # (draws, b)
    theirs = _likelihood(source, found, arguments, {name: value.unsqueeze(0) for name, value in truth.items()})
    discrete = sites[0].cardinality is not None
    # equal values of a discrete site have equal likelihoods up to rounding
    rounding = 1e3 * torch.finfo(ours.dtype).eps * theirs.abs().clamp_min(1.0) if discrete else 0.0
    ties = ((ours - theirs).abs() <= rounding).sum(0)
    likelihood = _randomised((ours < theirs - rounding).sum(0), draws, ties)
    units = _units(sites)
    if discrete:
        share, hit, pit = _of_discrete(source, sites[0], truth[sites[0].name], arguments)
        return Ranks(units, pit, share, likelihood, hit, True)
    if len(sites) == 1 and sites[0].transform is None:
        known = gaussian(conditional(source, sites[0], arguments))
        if known is not None:
            loc, root = (part.double() for part in known)
            scale = root if root.ndim == 2 else root.square().sum(-1).sqrt()
            score = (truth[sites[0].name].reshape(loc.shape).double() - loc) / scale
            return Ranks(units, torch.special.ndtr(score), score, likelihood, None, True)
    ranks = [(values[latent.name] < truth[latent.name]).sum(0).reshape(len(arguments[0]), -1) for latent in sites]
    pit = _randomised(torch.cat(ranks, 1), draws)
    return Ranks(units, pit, normal_score(pit, 0.5 / (draws + 1)), likelihood, None, False)


def _of_discrete(source: Reader, latent: Latent, truth: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """For a discrete site: probabilities, indicators y of the truth, and u = F(y-) + v P(y), each (b, k).

    Raises:
        ValueError: q is not categorical.
    """
    q = conditional(source, latent, arguments)
    if not isinstance(q, Categorical):
        raise ValueError(f"q of the discrete site '{latent.name}' is a {type(q).__name__}: sbc requires a Categorical")
    share = q.probs.double()
    hit = torch.nn.functional.one_hot(truth.long(), share.shape[1]).double()
    v = torch.rand_like(share)
    return share, hit, torch.where(hit.bool(), 1 - share + v * share, v * (1 - share))


def _check_reads_rows(run: Fit, ranked: tuple[Latent, ...], x: Tensor) -> None:
    """Refuse a guide whose q depends on the position of a row rather than on its values.

    Raises:
        ValueError: it is one of Pyro's autoguides, fails on new rows, or does not reverse q if the rows are reversed.
    """
    refusal = (
        f"the guide {name_of(run.guide)} has parameters for the rows it was fitted to and cannot be evaluated on new "
        "rows: use Amortized, or MeanField or FullRank, which sbc fits anew, or pass build=lambda model, x: ... for a "
        "fresh guide"
    )
    if isinstance(unwrapped(run.guide), AutoGuide):
        raise ValueError(refusal)
    rows = x[:SAMPLE]
    try:
        with reading(run, 0):
            forward, reverse = (poutine.trace(run.guide).get_trace(part).nodes for part in (rows, rows.flip(0)))
            found = _parameters(forward, reverse, ranked, len(rows))
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{refusal} ({str(error).splitlines()[0]})") from error
    for one, other in found:
        if not torch.allclose(one, other.flip(0), rtol=1e-3, atol=1e-5):
            raise ValueError(refusal)


def _parameters(
    forward: dict[str, Any], reverse: dict[str, Any], ranked: tuple[Latent, ...], count: int
) -> list[tuple[Tensor, Tensor]]:
    """The parameters of q of the one ranked site for rows in both orders; empty if there are none per row.

    Raises:
        ValueError: q has another number of rows.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for latent in ranked:
        if latent.name not in forward:
            continue  # refused later, where its density is needed
        batch = forward[latent.name]["fn"].batch_shape
        if len(batch) and batch[-1] not in (1, count):
            raise ValueError(f"it draws '{latent.name}' for {batch[-1]} rows where there are {count}")
        known = []
        for nodes in (forward, reverse):
            q = nodes[latent.name]["fn"]
            known.append((q.probs,) if isinstance(q, Categorical) else gaussian(q))
        if known[0] is None or known[1] is None or len(ranked) > 1:
            return []  # no parameters to compare, or conditional on other sites
        pairs = list(zip(*known, strict=True))
        found += [pair for pair in pairs if pair[0].ndim >= 2 and len(pair[0]) == count]
    return found


def _widths(ranked: tuple[Latent, ...]) -> list[int]:
    """The number of units of every site."""
    return [latent.cardinality or latent.shape.numel() for latent in ranked]


def _units(ranked: tuple[Latent, ...]) -> tuple[str, ...]:
    if ranked[0].cardinality is not None:
        return tuple(f"{ranked[0].name} = {j}" for j in range(ranked[0].cardinality))
    pairs = zip(ranked, _widths(ranked), strict=True)
    return tuple(f"{latent.name}[{j}]" for latent, width in pairs for j in range(width))


def _randomised(rank: Tensor, draws: int, ties: Tensor | int = 0) -> Tensor:
    """Ranks among draws as uniform values on [0, 1] in float64, randomised within their bin and over ties."""
    v = torch.rand(rank.shape, dtype=torch.float64, device=rank.device)
    return (rank + v * (ties + 1)) / (draws + 1)
