"""Where simulated truths lie among draws of the guide: the second part of :func:`zoo.sbc`."""

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
from zoo.diagnostics.guide.simulation import Simulated, Table
from zoo.diagnostics.guide.uniform import normal_score
from zoo.infer.run import Fit
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.rowwise import conditional, gaussian

BUDGET = 2**22  # numbers per array and chunk
SAMPLE = 50  # rows that show whether a guide reads its rows


@dataclass(frozen=True, eq=False)
class Ranks:
    """Places of truths in q.

    Attributes:
        units: the names of the k units.
        pit: u of every simulation and unit (S, k).
        first: normal scores of the truths, or the probabilities of the values of a discrete site (S, k).
        likelihood: u of the likelihood (S,).
        hit: indicators of the true values of a discrete site (S, k), None for a continuous one.
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
        """The ranks of all parts together."""
        pit, first, likelihood = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("pit", "first", "likelihood")
        )
        hits = [part.hit for part in parts if part.hit is not None]
        return Ranks(parts[0].units, pit, first, likelihood, torch.cat(hits) if hits else None, parts[0].exact)


def rank(run: Fit, found: Simulated, table: Table, draws: int, seed: int, *, fresh: bool) -> Ranks:
    """The places of the truths of one data set among draws of the guide.

    Args:
        run: the pair whose guide is drawn from.
        found: what was simulated.
        table: one of its data sets.
        draws: draws of the guide.
        seed: of the draws.
        fresh: whether the guide was fitted to this data set.

    Raises:
        ValueError: the guide holds parameters of other rows, or has no density for a discrete site.
    """
    if not fresh:
        _check_reads_rows(run, found.judged, table.x)
    with reading(run, seed):
        source = reader(run, table.x)
        if found.shared:
            return _of_table(source, found, table, draws)
        width = table.x.shape[1] + sum(_widths(found.judged))
        return Ranks.joined(
            [
                _of_rows(source, found, {name: value[index] for name, value in table.truth.items()}, arguments, draws)
                for index, arguments in source.chunks(BUDGET // (draws * width))
            ]
        )


def _of_table(source: Reader, found: Simulated, table: Table, draws: int) -> Ranks:
    """The one simulation that a data set is, where rows share sites: ranks of these, and of log p(x | all sites)."""
    arguments = (table.x,)
    drawn = source.draw(arguments, draws).values
    values = source.complete(arguments, drawn, draws)
    truth = {name: value.unsqueeze(0) for name, value in table.truth.items()}
    ours, theirs = (_likelihood(source, found, arguments, own).sum(1) for own in (values, truth))
    below = [(values[own.name] < truth[own.name]).sum(0).flatten() for own in found.judged]
    pit = _spread(torch.cat(below).unsqueeze(0), draws)
    likelihood = _spread((ours < theirs).sum(0).unsqueeze(0), draws)
    return Ranks(_units(found.judged), pit, normal_score(pit, 0.5 / (draws + 1)), likelihood, None, False)


def _likelihood(source: Reader, found: Simulated, arguments: Arguments, values: dict[str, Tensor]) -> Tensor:
    """log p(x | z) of every draw and row (draws, b), the data sites' terms alone."""
    terms = source.score(arguments, values).rows
    return torch.stack([terms[name] for name in found.data]).sum(0)


def _of_rows(source: Reader, found: Simulated, truth: dict[str, Tensor], arguments: Arguments, draws: int) -> Ranks:
    """The places of the truths of some rows."""
    sites = found.judged
    values = source.complete(arguments, source.draw(arguments, draws).values, draws)
    ours = _likelihood(source, found, arguments, values)  # (draws, b)
    theirs = _likelihood(source, found, arguments, {name: value.unsqueeze(0) for name, value in truth.items()})
    discrete = sites[0].cardinality is not None
    # one value in two places of a discrete site gives one likelihood up to rounding
    rounding = 1e3 * torch.finfo(ours.dtype).eps * theirs.abs().clamp_min(1.0) if discrete else 0.0
    ties = ((ours - theirs).abs() <= rounding).sum(0)
    likelihood = _spread((ours < theirs - rounding).sum(0), draws, ties)
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
    pit = _spread(torch.cat(ranks, 1), draws)
    return Ranks(units, pit, normal_score(pit, 0.5 / (draws + 1)), likelihood, None, False)


def _of_discrete(source: Reader, latent: Latent, truth: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Of a discrete site: probabilities, indicators of the truth, and u of these, :math:`F(y^-) + v P(y)`; (b, k).

    Raises:
        ValueError: q of the guide is not categorical.
    """
    q: Any = conditional(source, latent, arguments)
    if not isinstance(q, Categorical):
        raise ValueError(f"q of the discrete site '{latent.name}' is a {type(q).__name__}: sbc needs a Categorical")
    share = q.probs.double()
    hit = torch.nn.functional.one_hot(truth.long(), share.shape[1]).double()
    v = torch.rand_like(share)
    return share, hit, torch.where(hit.bool(), 1 - share + v * share, v * (1 - share))


def _check_reads_rows(run: Fit, judged: tuple[Latent, ...], x: Tensor) -> None:
    """Refuse a guide whose answer belongs to the place of a row, and not to its content.

    Raises:
        ValueError: it is one of Pyro's autoguides, it fails on new rows, or rows in reverse do not reverse its answer.
    """
    refusal = (
        f"the guide {name_of(run.guide)} holds parameters of the rows it was fitted to and cannot be evaluated on new "
        "ones: use MeanField or FullRank, of which sbc fits a fresh one, or Amortized; or pass build=lambda model, x: "
        "..., which builds a fresh guide"
    )
    if isinstance(unwrapped(run.guide), AutoGuide):
        raise ValueError(refusal)
    rows = x[:SAMPLE]
    try:
        with reading(run, 0):
            there, back = (poutine.trace(run.guide).get_trace(part).nodes for part in (rows, rows.flip(0)))
            answers = _parameters(there, back, judged, len(rows))
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{refusal} ({str(error).splitlines()[0]})") from error
    for one, other in answers:
        if not torch.allclose(one, other.flip(0), rtol=1e-3, atol=1e-5):
            raise ValueError(refusal)


def _parameters(
    there: dict[str, Any], back: dict[str, Any], judged: tuple[Latent, ...], count: int
) -> list[tuple[Tensor, Tensor]]:
    """The parameters of q of the one judged site for rows in both orders; nothing where there are none per row.

    Raises:
        ValueError: the answer is of another number of rows.
    """
    answers: list[tuple[Tensor, Tensor]] = []
    for latent in judged:
        if latent.name not in there:
            continue  # what needs its density refuses it later
        batch = there[latent.name]["fn"].batch_shape
        if len(batch) and batch[-1] not in (1, count):
            raise ValueError(f"it draws '{latent.name}' for {batch[-1]} rows where there are {count}")
        known = []
        for nodes in (there, back):
            q = nodes[latent.name]["fn"]
            known.append((q.probs,) if isinstance(q, Categorical) else gaussian(q))
        if known[0] is None or known[1] is None or len(judged) > 1:
            return []  # no parameters to compare, or drawn given other sites
        pairs = list(zip(*known, strict=True))
        answers += [pair for pair in pairs if pair[0].ndim >= 2 and len(pair[0]) == count]
    return answers


def _widths(judged: tuple[Latent, ...]) -> list[int]:
    """The number of units of every site."""
    return [latent.cardinality or latent.shape.numel() for latent in judged]


def _units(judged: tuple[Latent, ...]) -> tuple[str, ...]:
    if judged[0].cardinality is not None:
        return tuple(f"{judged[0].name} = {j}" for j in range(judged[0].cardinality))
    pairs = zip(judged, _widths(judged), strict=True)
    return tuple(f"{latent.name}[{j}]" for latent, width in pairs for j in range(width))


def _spread(rank: Tensor, draws: int, ties: Tensor | int = 0) -> Tensor:
    """Ranks among draws, spread evenly over their place, or the places of what ties with them: in float64 on [0, 1]."""
    v = torch.rand(rank.shape, dtype=torch.float64, device=rank.device)
    return (rank + v * (ties + 1)) / (draws + 1)
