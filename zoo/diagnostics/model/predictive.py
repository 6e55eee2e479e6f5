"""Predictive checks: statistics of the data against those of replicated data."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import polars as pl
import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor

from zoo.base.callables import name_of
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, known_columns, pair_of, rows_of
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.model.statistics import STATISTICS, column_quantiles, correlation, nan_quantile
from zoo.posterior.engine import Reader, reader, reading

Given = Literal["prior", "rows"]
Grade = Literal["good", "careful", "bad"]
Statistic = Callable[[Tensor], Any]
PAIRS = 50  # the most columns for which all pairs are compared
POINTS = 41  # quantiles per column
SHOWN = 10  # the most statistics that a verdict names
CHANCE = 0.01  # the probability that the farthest of all statistics lies beyond the limit under a correct model
MANY = (2.0, 4.0)  # times the share outside that chance allows, beyond which to be careful, and to reject the model


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    r"""Statistics T of the data against those of replicated data: the result of :func:`predictive_check`.

    The two-sided tail probability of a statistic from R replicates is

    .. math:: p = \min\left(1, 2 \min\left(\frac{1 + \#\{T_r \le T\}}{R + 1},
              \frac{1 + \#\{T_r \ge T\}}{R + 1}\right)\right).

    It is not uniform under a correct model: the same rows were used to fit the model, which shifts it towards 1, most
    for statistics that the model fits directly (a mean, a variance) and least for those without a parameter. A small
    value is evidence against the model, a large one hardly evidence for it.

    Attributes:
        statistics: the name of every statistic (s,).
        where: its columns (s,), as ``"a"`` or ``"a, b"``; empty for a statistic of the whole table.
        observed: its value on the data (s,).
        replicates: its values on the replicated data (draws, s); NaN if it is undefined.
        level: the level of the central intervals of the replicates.
        given: ``"prior"`` or ``"rows"``: the distribution of the replicates' latent variables.
        columns: the names of the d columns.
        points: probabilities (q,) of the quantiles by which the marginal distributions are compared.
        marginal: these quantiles of every column (q, d).
        band: central intervals of the replicates' quantiles (2, q, d).
    """

    statistics: tuple[str, ...]
    where: tuple[str, ...]
    observed: Tensor
    replicates: Tensor
    level: float
    given: Given
    columns: tuple[str, ...]
    points: Tensor
    marginal: Tensor
    band: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Every statistic with its columns, as ``"mean of a"`` (s,)."""
        pairs = zip(self.statistics, self.where, strict=True)
        return tuple(f"{name} of {where}" if where else name for name, where in pairs)

    @property
    def interval(self) -> Tensor:
        """The limits of the central interval of the replicates (2, s)."""
        edge = (1 - self.level) / 2
        return torch.stack([nan_quantile(self.replicates, edge), nan_quantile(self.replicates, 1 - edge)])

    @property
    def tail(self) -> Tensor:
        """The two-sided tail probabilities (s,); NaN if the statistic is undefined on all replicates."""
        defined = ~self.replicates.isnan()
        count = defined.sum(0)
        below = ((self.replicates <= self.observed) & defined).sum(0)
        above = ((self.replicates >= self.observed) & defined).sum(0)
        both = 2 * (1 + torch.minimum(below, above)) / (1 + count)
        return torch.where(count > 0, both.clamp_max(1.0), torch.nan).to(self.observed)

    @property
    def distance(self) -> Tensor:
        """The observed value minus the replicates' mean, in standard deviations of the replicates (s,)."""
        defined = ~self.replicates.isnan()
        count = defined.sum(0)
        mean = self.replicates.nansum(0) / count
        centred = torch.where(defined, self.replicates - mean, 0.0)
        return (self.observed - mean) / (centred.square().sum(0) / (count - 1)).sqrt()

    @property
    def outside(self) -> tuple[int, ...]:
        """The indices of the statistics outside their interval, the farthest first."""
        low, high = self.interval
        out = ((self.observed < low) | (self.observed > high)).nonzero().flatten()
        far = self.distance[out].abs().nan_to_num(torch.inf)
        return tuple(out[far.argsort(descending=True, stable=True)].tolist())

    @property
    def limit(self) -> float:
        """The distance that the farthest of as many normal statistics exceeds with a chance of 1% (Bonferroni)."""
        return float(scipy.stats.norm.isf(CHANCE / 2 / max(1, len(self.observed))))

    @property
    def grade(self) -> Grade:
        """How well the model reproduces the data: ``"good"``, ``"careful"`` or ``"bad"``.

        Good: at most twice as many statistics outside as chance allows, none beyond :attr:`limit`. Bad: more than four
        times as many, or one beyond twice the limit. Careful: in between. Statistics of the same columns depend on each
        other, so that the numbers are rules of thumb.
        """
        out = self.outside
        share = len(out) / max(1, len(self.observed)) / (1 - self.level)
        far = max((abs(float(self.distance[i])) for i in out), default=0.0)
        far = 0.0 if math.isnan(far) else far / self.limit
        if share > MANY[1] or far > 2:
            return "bad"
        return "careful" if share > MANY[0] or far > 1 else "good"

    @property
    def headline(self) -> str:
        """How many statistics lie outside their interval, in words."""
        total, out = len(self.observed), len(self.outside)
        central = f"outside the central {100 * self.level:g}% of the replicates"
        if not out:
            return f"none of {total} statistics lies {central}"
        chance = f"under a correct model about {100 * (1 - self.level):.2g}% or fewer"
        far = abs(float(self.distance[self.outside[0]]))
        farthest = f", the farthest by {far:.2g} standard deviations" if math.isfinite(far) else ""
        return f"{out} of {total} statistics lie {central} ({chance}){farthest}"

    @property
    def verdict(self) -> str:
        """Which statistics the model does not reproduce, in words."""
        out = self.outside
        if not out:
            return self.headline
        named = "; ".join(self._line(i) for i in out[:SHOWN])
        more = f"; and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
        return f"{self.headline}: {named}{more}"

    def summary(self) -> dict[str, float]:
        """The number of statistics, how many lie outside their interval, and the smallest tail probability."""
        tail = self.tail[~self.tail.isnan()]
        least = float(tail.min()) if len(tail) else float("nan")
        return {"statistics": float(len(self.observed)), "outside": float(len(self.outside)), "least_tail": least}

    def frame(self) -> pl.DataFrame:
        """One row per statistic: its columns, value, interval of the replicates, distance and tail probability."""
        low, high = self.interval
        numbers = {"observed": self.observed, "low": low, "high": high, "distance": self.distance, "tail": self.tail}
        words = {"statistic": list(self.statistics), "where": list(self.where)}
        return pl.DataFrame(words | {name: value.tolist() for name, value in numbers.items()})

    def _line(self, i: int) -> str:
        low, high = self.interval[:, i].tolist()
        return f"{self.names[i]} {float(self.observed[i]):.4g}, replicates {low:.4g} to {high:.4g}"

    def __repr__(self) -> str:
        source = "latent variables from the prior" if self.given == "prior" else "latent variables given the rows"
        return f"PredictiveCheck by {len(self.replicates)} replicates with {source}: {self.verdict}"


@on_suited_threads
def predictive_check(
    run: Trained,
    x: ArrayLike,
    *,
    draws: int = 200,
    statistics: Mapping[str, Statistic] | None = None,
    given: Given = "prior",
    level: float = 0.95,
    seed: int = 0,
) -> PredictiveCheck:
    r"""Compare the data with replicated data sets of the same size.

    By default a replicate has new rows with latent variables from the prior, which tests p(x). With ``given="rows"``
    the latent variables of row i are drawn from q(z_i | x_i), which tests p(x | z) together with the guide. Such
    replicates stay close to the data for any prior, so that only new rows detect, for example, a factor whose
    distribution is far from normal. Shared sites are drawn from the guide in both cases. Parameters are those of the
    fit, so that the spread of the replicates is slightly too small if they are point estimates.

    The statistics are mean, standard deviation, skewness, excess kurtosis and the 5%, 50% and 95% quantiles of every
    column, the correlation of every pair up to 50 columns, and any that you add. Replicates have missing entries in the
    same places as the data.

    Args:
        run: a trained pair with any model and, for ``given="rows"`` or shared sites, any guide, including point
            estimates.
        x: the rows (n, d); statistics are named by the columns of a :class:`zoo.data.Dataset`.
        draws: the number of replicates R, at least 20.
        statistics: your own statistics by name: functions from a table (n, d), with NaN for missing entries, to a
            number or a tensor. The entries of one of shape (d,) or (d, d) are named by the columns. Entries that are
            NaN on the data are left out.
        given: ``"prior"`` or ``"rows"``.
        level: the level of the central intervals, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: too few draws, ``given`` or ``level`` out of range, a name that is taken, or a statistic that
            changes its shape or is not a number.

    References:
        Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies,
        Statistica Sinica 6; on the double use of the data Bayarri and Berger (2000), P values for composite null
        models, JASA 95.

    >>> import guides, torch, zoo
    >>> x = zoo.data.load("faithful", dtype=torch.float64)
    >>> model = zoo.GMM(2, 1).double()
    >>> run = zoo.fit(model, guides.Exact(model), x, progress=False)
    >>> found = predictive_check(run, x)
    >>> "excess kurtosis of eruptions" in [found.names[i] for i in found.outside]
    True
    """
    run = pair_of(run)
    if check_whole(draws, "draws") < 20:
        raise ValueError(f"draws must be at least 20 for an interval, got {draws}")
    if given not in get_args(Given):
        raise ValueError(f"given must be one of {', '.join(get_args(Given))}; got {given!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    names, x = known_columns(run, x), rows_of(run, x)
    columns = names or tuple(f"x{j}" for j in range(x.shape[1]))
    chosen = _all_statistics(statistics or {}, x.shape[1])
    measured = [_value(name, statistic, x) for name, statistic in chosen.items()]
    points = torch.linspace(0, 1, POINTS + 2, dtype=torch.float64, device=x.device)[1:-1]
    found, quantiles = [], []
    with reading(run, seed):
        for table in _replicates(reader(run, x), draws, given):
            found.append(torch.cat([value.flatten() for value in _values(chosen, table, measured)]))
            quantiles.append(column_quantiles(table, points))
    labels = [
        (name, _place(k, value.shape, columns))
        for name, value in zip(chosen, measured, strict=True)
        for k in range(value.numel())
    ]
    observed = torch.cat([value.flatten() for value in measured])
    kept = (~observed.isnan()).nonzero().flatten()
    edge = (1 - level) / 2
    marginals = torch.stack(quantiles)  # (draws, q, d)
    return PredictiveCheck(
        statistics=tuple(labels[k][0] for k in kept.tolist()),
        where=tuple(labels[k][1] for k in kept.tolist()),
        observed=observed[kept],
        replicates=torch.stack(found)[:, kept],
        level=float(level),
        given=given,
        columns=columns,
        points=points,
        marginal=column_quantiles(x, points),
        band=torch.stack([nan_quantile(marginals, edge), nan_quantile(marginals, 1 - edge)]),
    )


def _values(chosen: dict[str, Statistic], table: Tensor, measured: list[Tensor]) -> list[Tensor]:
    """The statistics of a replicate.

    Raises:
        ValueError: one has another shape than on the data.
    """
    values = [_value(name, statistic, table) for name, statistic in chosen.items()]
    for name, own, other in zip(chosen, measured, values, strict=True):
        if own.shape != other.shape:
            raise ValueError(
                f"statistic {name!r} has shape {tuple(own.shape)} on x and {tuple(other.shape)} on a "
                "replicate: return the same shape for both"
            )
    return values


def _replicates(source: Reader, draws: int, given: Given) -> Iterator[Tensor]:
    """Replicated tables (n, d), with the missing entries of the data."""
    x, layout = source.x, source.layout
    width = x.shape[1] + sum(site.shape.numel() for site in layout.local)
    missing = x.isnan()
    for some in torch.arange(draws).split(rows_at_once(len(x) * width)):
        held: dict[str, Tensor] = {}
        if given == "rows" or layout.shared:
            values = source.draw((x,), len(some), points=True).values
            if given == "rows":
                values = source.complete((x,), values, len(some))
            held = {site.name: values[site.name] for site in layout.latents if given == "rows" or not site.local}
        simulated, _ = source.simulate((x,), len(some), held)
        for table in _table(source, simulated):
            yield table.masked_fill(missing, torch.nan)


def _table(source: Reader, values: Mapping[str, Tensor]) -> Tensor:
    """The one simulated data site with the shape of x (draws, n, d).

    Raises:
        ValueError: no data site, or more than one, has this shape.
    """
    n, d = source.x.shape
    found = [name for name in source.layout.data if values[name][0].numel() == n * d]
    if len(found) != 1:
        listed = ", ".join(f"'{name}'" for name in source.layout.data)
        raise ValueError(
            f"predictive_check requires one data site with the shape of x ({n} x {d}), and {len(found) or 'none'} of "
            f"the data sites of {name_of(source.pair.model)} ({listed}) have it"
        )
    return values[found[0]].reshape(-1, n, d)


def _all_statistics(own: Mapping[str, Statistic], d: int) -> dict[str, Statistic]:
    """The default and the user's statistics by name."""
    chosen: dict[str, Statistic] = dict(STATISTICS)
    if 1 < d <= PAIRS:
        chosen["correlation"] = correlation
    for name, statistic in own.items():
        if name in chosen:
            raise ValueError(f"statistics has {name!r}, which is a default statistic: take another name")
        chosen[name] = statistic
    return chosen


def _value(name: str, statistic: Statistic, table: Tensor) -> Tensor:
    """The value of a statistic of a table, in float64."""
    try:
        return torch.as_tensor(statistic(table)).detach().to(table.device, torch.float64)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"statistic {name!r} is not a number or tensor: {str(error).splitlines()[0]}") from error


def _place(k: int, shape: torch.Size, columns: tuple[str, ...]) -> str:
    """The columns of entry k of a statistic."""
    d = len(columns)
    if shape == (d,):
        return columns[k]
    if shape == (d, d):
        return f"{columns[k // d]}, {columns[k % d]}"
    return "" if shape == () else f"entry {k}"
