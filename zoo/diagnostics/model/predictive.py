"""Does the model give data like these? Statistics of the rows beside those of replicated rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent, latents
from zoo.data.dataset import column_names
from zoo.infer.fitting import Fit
from zoo.posterior.draws import from_guide, from_model
from zoo.posterior.engine import reading

Given = Literal["prior", "rows"]
Statistic = Callable[[Tensor], Any]
BUDGET = 2**24  # numbers per array and chunk of replicates
PAIRS = 50  # columns up to which all pairs are looked at
POINTS = 41  # of a column's distribution
SHOWN = 10  # statistics that a text names


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    r"""Statistics T of the rows beside those of replicated rows: what :func:`predictive_check` returns.

    The tail probability of a statistic is that of both sides, with R replicates

    .. math:: p = \min\left(1, 2 \min\left(\frac{1 + \#\{T_r \le T\}}{R + 1},
              \frac{1 + \#\{T_r \ge T\}}{R + 1}\right)\right).

    It is no p-value with a uniform distribution under a right model: the rows that it judges have also fitted the
    model, which pulls it towards 1, most for what the model fits directly (a mean, a variance) and least for what it
    has no parameter for. A small one speaks against the model, a large one hardly for it.

    Attributes:
        statistics: the name of every statistic (s,).
        where: its columns (s,), as ``"a"`` or ``"a, b"``; empty for one of the whole table.
        observed: its value on the rows (s,).
        replicates: its values on the replicated rows (draws, s); NaN where it is not defined there.
        level: what the intervals hold of the replicates.
        given: ``"prior"`` or ``"rows"``: where the replicates' latent variables come from.
        columns: the names of the d columns.
        points: quantiles (q,) at which the distributions of the columns are compared.
        marginal: these quantiles of every column, (q, d).
        band: the intervals of the replicates' quantiles (2, q, d).
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
        """Statistic and columns in words (s,)."""
        pairs = zip(self.statistics, self.where, strict=True)
        return tuple(f"{name} of {where}" if where else name for name, where in pairs)

    @property
    def interval(self) -> Tensor:
        """The ends of the central interval of the replicates, (2, s)."""
        edge = (1 - self.level) / 2
        return torch.stack([_nan_quantile(self.replicates, edge), _nan_quantile(self.replicates, 1 - edge)])

    @property
    def tail(self) -> Tensor:
        """The two-sided tail probabilities (s,); NaN where no replicate has the statistic."""
        defined = ~self.replicates.isnan()
        count = defined.sum(0)
        below = ((self.replicates <= self.observed) & defined).sum(0)
        above = ((self.replicates >= self.observed) & defined).sum(0)
        both = 2 * (1 + torch.minimum(below, above)) / (1 + count)
        return torch.where(count > 0, both.clamp_max(1.0), torch.nan).to(self.observed)

    @property
    def distance(self) -> Tensor:
        """How far the rows are from the replicates' mean, in standard deviations of the replicates, (s,)."""
        defined = ~self.replicates.isnan()
        count = defined.sum(0)
        mean = self.replicates.nansum(0) / count
        centred = torch.where(defined, self.replicates - mean, 0.0)
        return (self.observed - mean) / (centred.square().sum(0) / (count - 1)).sqrt()

    @property
    def outside(self) -> tuple[int, ...]:
        """The numbers of the statistics outside the interval, the farthest first."""
        low, high = self.interval
        out = ((self.observed < low) | (self.observed > high)).nonzero().flatten()
        far = self.distance[out].abs().nan_to_num(torch.inf)
        return tuple(out[far.argsort(descending=True, stable=True)].tolist())

    @property
    def headline(self) -> str:
        """How many statistics the model does not give, in words."""
        total, out = len(self.observed), len(self.outside)
        central = f"outside the central {100 * self.level:g}% of the replicates"
        if not out:
            return f"none of {total} statistics lies {central}"
        chance = f"about {100 * (1 - self.level):.2g}% or fewer would under a right model"
        return f"{out} of {total} statistics lie {central} ({chance})"

    @property
    def verdict(self) -> str:
        """What the model does not give, in words."""
        out = self.outside
        if not out:
            return self.headline
        named = "; ".join(self._line(i) for i in out[:SHOWN])
        more = f"; and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
        return f"{self.headline}: {named}{more}"

    def _line(self, i: int) -> str:
        low, high = self.interval[:, i].tolist()
        return f"{self.names[i]} {float(self.observed[i]):.4g}, replicates {low:.4g} to {high:.4g}"

    def __repr__(self) -> str:
        source = "new latent variables" if self.given == "prior" else "the rows' own latent variables"
        return f"PredictiveCheck by {len(self.replicates)} replicates with {source}: {self.verdict}"


def predictive_check(
    run: Fit,
    x: Any,
    *,
    draws: int = 200,
    statistics: Mapping[str, Statistic] | None = None,
    given: Given = "prior",
    level: float = 0.95,
    seed: int = 0,
) -> PredictiveCheck:
    r"""Compare the rows with replicated tables of the same size.

    By default a replicate has new rows: their latent variables come from the prior, and the statistics ask whether
    p(x) is right. With ``given="rows"`` row i keeps its own, drawn from q(z_i | x_i), and they ask whether p(x | z) is
    right and the posterior at home in it. As every row's z has seen its row, such replicates keep close to the rows
    whatever the prior: a factor whose distribution is far from normal is found by new rows alone. Sites that all rows
    share come from the guide in either case. Parameters are those of the fit, so that a replicate's spread is a little
    too small where they are point estimates.

    Of every column: mean, standard deviation, skewness, excess kurtosis, and the quantiles 5%, 50% and 95%; of every
    pair, up to 50 columns, the correlation; and what you add. Missing entries are missing in the replicates in the same
    places.

    Args:
        run: from :func:`zoo.fit`; any model and, for ``given="rows"`` or shared sites, any guide.
        x: the rows (n, d), or a :class:`zoo.data.Dataset`, whose columns are named.
        draws: the number of replicates R, at least 20.
        statistics: your own by name: functions from a table (n, d), with NaN in the missing entries, to a number or a
            tensor. One of shape (d,) or (d, d) is named by the columns. What is NaN for the rows is left out.
        given: ``"prior"`` or ``"rows"``.
        level: what the intervals hold of the replicates, in (0, 1).
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: too few draws, ``given`` or ``level`` out of range, a name that is taken, a statistic that changes
            its shape or is no number, or rows that are not fit for model or guide.

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
    if check_whole(draws, "draws") < 20:
        raise ValueError(f"draws must be at least 20 to have an interval, got {draws}")
    if given not in get_args(Given):
        raise ValueError(f"given must be one of {', '.join(get_args(Given))}; got {given!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    names, x = column_names(x), check_rows(x, run.model)
    n, d = x.shape
    columns = names or tuple(f"x{j}" for j in range(d))
    asked = _asked(statistics or {}, d)
    measured = [_value(name, statistic, x) for name, statistic in asked.items()]
    missing = x.isnan()
    points = torch.linspace(0, 1, POINTS + 2, dtype=torch.float64, device=x.device)[1:-1]
    found, quantiles = [], []
    with reading(run, seed):
        sites = latents(run.model, x)
        width = d + sum(site.shape.numel() for site in sites if site.local)
        for some in torch.arange(draws).split(max(1, BUDGET // (n * width))):
            for table in _replicates(run, x, sites, len(some), given):
                table = table.masked_fill(missing, torch.nan)
                values = [_value(name, statistic, table) for name, statistic in asked.items()]
                for name, own, other in zip(asked, measured, values, strict=True):
                    if own.shape != other.shape:
                        raise ValueError(
                            f"statistic {name!r} has shape {tuple(own.shape)} on x and {tuple(other.shape)} on a "
                            "replicate: it must have one shape"
                        )
                found.append(torch.cat([value.flatten() for value in values]))
                quantiles.append(column_quantiles(table, points))
    labels = [
        (name, _place(k, value.shape, columns))
        for name, value in zip(asked, measured, strict=True)
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
        band=torch.stack([_nan_quantile(marginals, edge), _nan_quantile(marginals, 1 - edge)]),
    )


def _replicates(run: Fit, x: Tensor, sites: tuple[Latent, ...], draws: int, given: Given) -> Tensor:
    """Replicated tables (draws, n, d)."""
    held: dict[str, Tensor] = {}
    if given == "rows" or any(not site.local for site in sites):
        drawn = from_guide(run, (x,), sites, draws).latent
        held = {site.name: drawn[site.name] for site in sites if given == "rows" or not site.local}
    return from_model(run, (x,), sites, ["x"], draws, held)[1]["x"]


def _asked(own: Mapping[str, Statistic], d: int) -> dict[str, Statistic]:
    """The statistics of every table and those of the user's, by name."""
    asked: dict[str, Statistic] = {
        "mean": lambda table: _moments(table)[0],
        "standard deviation": lambda table: _moments(table)[1],
        "skewness": lambda table: _standard_moment(table, 3),
        "excess kurtosis": lambda table: _standard_moment(table, 4) - 3,
        "quantile 5%": lambda table: _quantile(table, 0.05),
        "median": lambda table: _quantile(table, 0.5),
        "quantile 95%": lambda table: _quantile(table, 0.95),
    }
    if 1 < d <= PAIRS:
        asked["correlation"] = correlation
    for name, statistic in own.items():
        if name in asked:
            raise ValueError(f"statistics holds {name!r}, which is one of every check: take another name")
        asked[name] = statistic
    return asked


def _value(name: str, statistic: Statistic, table: Tensor) -> Tensor:
    """What a statistic says of a table, in float64."""
    try:
        return torch.as_tensor(statistic(table)).detach().to(table.device, torch.float64)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"statistic {name!r} gives no number or tensor: {str(error).splitlines()[0]}") from error


def _place(k: int, shape: torch.Size, columns: tuple[str, ...]) -> str:
    """The columns that entry k of a statistic is about."""
    d = len(columns)
    if shape == (d,):
        return columns[k]
    if shape == (d, d):
        return f"{columns[k // d]}, {columns[k % d]}"
    return "" if shape == () else f"entry {k}"


def _moments(table: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of what is there, (d,)."""
    centred, seen = _centred(table)
    return table.double().nansum(0) / seen.sum(0), (centred.square().sum(0) / seen.sum(0)).sqrt()


def _centred(table: Tensor) -> tuple[Tensor, Tensor]:
    """Entries less the means of their columns, 0 where missing, and which are there; (n, d)."""
    table = table.double()
    seen = ~table.isnan()
    return torch.where(seen, table - table.nansum(0) / seen.sum(0), 0.0), seen


def _standard_moment(table: Tensor, power: int) -> Tensor:
    """The mean of the standardised entries to a power (d,); NaN for a column that does not vary."""
    centred, seen = _centred(table)
    count = seen.sum(0)
    deviation = (centred.square().sum(0) / count).sqrt()
    unit = torch.where(deviation > 0, deviation, torch.nan)
    return ((centred / unit) ** power).sum(0) / count


def correlation(table: Tensor) -> Tensor:
    """Correlations of all pairs i < j (d, d), from the rows that have both; NaN elsewhere."""
    table = table.double()
    seen = (~table.isnan()).double()
    centred, _ = _centred(table)
    count = seen.T @ seen
    mean = centred.T @ seen / count  # of column i where j is there too
    cross = centred.T @ centred / count - mean * mean.T
    variance = centred.square().T @ seen / count - mean.square()
    found = cross / (variance * variance.T).clamp_min(0.0).sqrt()
    return torch.where(torch.ones_like(found).triu(1).bool() & found.isfinite(), found, torch.nan)


def _quantile(table: Tensor, point: float) -> Tensor:
    return column_quantiles(table, torch.tensor([point], dtype=torch.float64, device=table.device))[0]


def column_quantiles(table: Tensor, points: Tensor) -> Tensor:
    """Quantiles of what is there of every column, interpolated as numpy does, (q, d); NaN where nothing is.

    ``torch.nanquantile`` refuses tables of more than 16 million entries.
    """
    ordered = table.double().sort(0).values  # NaN comes last
    last = (~table.isnan()).sum(0).sub(1)  # (d,)
    place = points.unsqueeze(1) * last.clamp_min(0)
    low = place.floor().long()
    high = torch.minimum(low + 1, last.clamp_min(0).expand_as(low))
    below, above = ordered.gather(0, low), ordered.gather(0, high)
    return below + (place - low) * (above - below)


def _nan_quantile(values: Tensor, point: float) -> Tensor:
    """A quantile over the first dimension, NaN left out."""
    flat = column_quantiles(values.flatten(1), torch.tensor([point], dtype=torch.float64, device=values.device))
    return flat[0].reshape(values.shape[1:])
