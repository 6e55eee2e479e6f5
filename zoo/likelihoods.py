r"""Likelihoods of a decoder: what its outputs say about the columns, p(x | z).

Each is a small module with

- ``locations`` and ``noise``: how many numbers of either sort it reads from the decoder;
- ``place(x)``: takes means and units of the data (n, d) into its buffers, so that locations of 0 give the column means;
- ``check(x, columns=None)``: raises where ``x`` holds a value outside the support (``columns``: their numbers);
- ``forward(location, noise)``: the distribution with event (d,) for numbers (..., locations) and (..., noise).

NaN is a missing entry to ``place`` and ``check``. Those whose density is unbounded take a floor on the variance, show
it as the attribute ``floor``, and tell by ``at_floor(noise)`` how much of the noise lies there. Another likelihood is a
class with these methods and its name in ``LIKELIHOODS``.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from zoo.base import check_whole
from zoo.missing import column_moments
from zoo.networks import Standardize

Covariance = Literal["scalar", "diag", "low_rank", "full"]
Noise = Literal["network", "constant"]
LEVELS = 256  # of a pixel


def build(
    kind: str | Sequence[str],
    data_dim: int,
    floor: float = 1e-3,
    covariance: Covariance = "diag",
    rank: int = 1,
) -> nn.Module:
    """The likelihood of that name, or of d names, one for every column.

    Args:
        kind: one of ``LIKELIHOODS``, or a sequence of them.
        data_dim: number of columns d.
        floor: the least variance, as a fraction of the variance in the data.
        covariance: of the columns given z; other than ``"diag"`` for ``"gaussian"`` alone.
        rank: columns of the factor of ``"low_rank"``.

    Raises:
        ValueError: an argument is none of those; the message names it, and the column.
    """
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be a positive fraction of the variance, got {floor!r}")
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance must be one of {', '.join(get_args(Covariance))}; got {covariance!r}")
    rank = check_whole(rank, "rank")
    known = ", ".join(LIKELIHOODS)
    if isinstance(kind, str):
        if kind not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {known}, or a sequence of them; got {kind!r}")
        if kind == "gaussian":
            return Gaussian(data_dim, floor, covariance, rank)
    if covariance != "diag":
        what = repr(kind) if isinstance(kind, str) else "several kinds of columns"
        raise ValueError(
            f"covariance={covariance!r} is for likelihood='gaussian' alone: given z, the columns of {what} are "
            "independent; take covariance='diag'"
        )
    if isinstance(kind, str):
        return LIKELIHOODS[kind](data_dim, floor)
    names = list(kind)
    if len(names) != data_dim:
        raise ValueError(
            f"likelihood has {len(names)} names for {data_dim} columns: pass one for every column, or a single one"
        )
    for column, name in enumerate(names):
        if not isinstance(name, str) or name not in LIKELIHOODS:
            raise ValueError(f"likelihood of column {column} must be one of {known}; got {name!r}")
    return Mixed(names, floor)


def deviation(raw: Tensor, floor: float) -> Tensor:
    r""":math:`\sqrt{\epsilon + \mathrm{softplus}(g)^2}`, a standard deviation in units of the column."""
    return (floor + softplus(raw).square()).sqrt()


def tiny(above: Tensor, floor: float) -> Tensor:
    """The share of variances, ``above`` the floor by so much, that are below twice the floor or 1e-3 (...).

    In units of the data's own variances: all but a thousandth is explained, which is rare in data and common on the way
    to a singularity, however low the floor.
    """
    return (above < max(floor, 1e-3 - floor)).to(above).mean(-1)


def _products(noise: Tensor, d: int) -> Tensor:
    """L L' (..., d, d) of the numbers of a ``"full"`` covariance."""
    row, column = torch.tril_indices(d, d, -1, device=noise.device)
    lower = noise.new_zeros(*noise.shape[:-1], d, d)
    lower[..., row, column] = noise[..., d:] / math.sqrt(d)
    lower = lower + torch.diag_embed(softplus(noise[..., :d]))
    return lower @ lower.mT


class Gaussian(nn.Module):
    r"""Columns around means :math:`\mu = a + b f`, with a and b the columns' means and deviations.

    With the floor :math:`\epsilon`, s = softplus and B = diag(b), the covariance of the columns given z is

    - ``"scalar"``: :math:`c^2 (\epsilon + s(g)^2)\, I`, :math:`c^2` the mean of the columns' variances; one number;
    - ``"diag"``: :math:`B\, \mathrm{diag}(\epsilon + s(g)^2)\, B`; d numbers;
    - ``"low_rank"``: :math:`B (\mathrm{diag}(\epsilon + s(g)^2) + F F^T / R) B`, F with R columns; d (1 + R) numbers,
      the diagonal first, then one column of F after the other. Its density takes O(d R^2), and no d x d matrix;
    - ``"full"``: :math:`B (\epsilon I + L L^T) B`, L lower triangular with the diagonal s(g) and the other numbers, row
      by row, over :math:`\sqrt d`; d (d + 1) / 2 numbers, the diagonal first.

    (R and d divide so that a start does not depend on them.) No variance falls below the floor in any direction: the
    covariance less :math:`\epsilon B^2` (``"scalar"``: :math:`\epsilon c^2 I`) is positive semidefinite.
    """

    common: Tensor
    locations: int
    noise: int

    def __init__(self, data_dim: int, floor: float, covariance: Covariance = "diag", rank: int = 1) -> None:
        super().__init__()
        self.floor, self.covariance, self.rank = float(floor), covariance, rank
        d = self.locations = data_dim
        self.noise = {"scalar": 1, "diag": d, "low_rank": d * (1 + rank), "full": d * (d + 1) // 2}[covariance]
        self.columns = Standardize(d)
        if covariance == "scalar":
            self.register_buffer("common", torch.ones(()))

    def place(self, x: Tensor) -> None:
        self.columns.place(x)
        if self.covariance == "scalar":
            variance, _ = column_moments(x)
            self.common.copy_(variance.mean().sqrt() if variance.any() else variance.new_ones(()))

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Any number is fine; that it is one was seen to before."""

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        mean = shift + unit * location  # (..., d)
        if self.covariance == "diag":
            return dist.Normal(mean, unit * deviation(noise, self.floor)).to_event(1)
        if self.covariance == "scalar":
            return dist.Normal(mean, self.common * deviation(noise, self.floor)).to_event(1)
        d = self.locations
        if self.covariance == "low_rank":
            diagonal, rest = softplus(noise[..., :d]), noise[..., d:]
            factor = rest.unflatten(-1, (self.rank, d)).mT / math.sqrt(self.rank)  # (..., d, r)
            variance = unit.square() * (self.floor + diagonal.square())
            return dist.LowRankMultivariateNormal(mean, unit.unsqueeze(-1) * factor, variance)
        products = _products(noise, d)
        root = torch.linalg.cholesky(products + self.floor * torch.eye(d, dtype=noise.dtype, device=noise.device))
        return dist.MultivariateNormal(mean, scale_tril=unit.unsqueeze(-1) * root)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of columns (``"full"``: of principal axes) whose variance is :func:`tiny` (...)."""
        d = self.locations
        if self.covariance != "full":
            return tiny(softplus(noise[..., :d]).square(), self.floor)
        return tiny(torch.linalg.eigvalsh(_products(noise, d)), self.floor)

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.covariance == "low_rank" else ""
        return f"{self.locations}, covariance={self.covariance}{rank}, floor={self.floor:g}"


class StudentT(nn.Module):
    r"""Independent columns with heavy tails: :math:`x = \mu + \sigma t_\nu`.

    :math:`\mu = a + b f` and :math:`\sigma^2 = b^2 (\epsilon + \mathrm{softplus}(g)^2)`, as for the Gaussian; the
    degrees of freedom :math:`\nu` are learned, one number for every column, and stay above 2, where the variance
    :math:`\sigma^2 \nu / (\nu - 2)` exists.

    References:
        Lange, Little and Taylor (1989), Robust Statistical Modeling Using the t Distribution, JASA 84.
    """

    locations: int
    noise: int

    LEAST = 2.01  # degrees of freedom
    START = 10.0

    def __init__(self, data_dim: int, floor: float) -> None:
        super().__init__()
        self.floor = float(floor)
        self.locations = self.noise = data_dim
        self.columns = Standardize(data_dim)
        self.freedom = nn.Parameter(torch.empty(data_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.freedom.fill_(math.log(math.expm1(self.START - self.LEAST)))

    @property
    def degrees(self) -> Tensor:
        """The degrees of freedom of every column (d,)."""
        return self.LEAST + softplus(self.freedom)

    def place(self, x: Tensor) -> None:
        self.columns.place(x)

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Any number is fine; that it is one was seen to before."""

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        mean, scale = shift + unit * location, unit * deviation(noise, self.floor)
        return dist.StudentT(self.degrees, mean, scale).to_event(1)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The share of columns whose squared scale is :func:`tiny` (...)."""
        return tiny(softplus(noise).square(), self.floor)

    def extra_repr(self) -> str:
        return f"{self.locations}, floor={self.floor:g}"


class Bernoulli(nn.Module):
    """Independent columns of 0 and 1 with log odds :math:`a + f`, a those of the column means.

    A column that is all 0 or all 1 counts as if half a row were otherwise. Grey values in between have no probability
    under this likelihood (what is often computed for them is not one: Loaiza-Ganem and Cunningham 2019, The continuous
    Bernoulli), and are refused.
    """

    shift: Tensor
    locations: int
    noise: int = 0

    def __init__(self, data_dim: int, floor: float | None = None) -> None:
        super().__init__()
        self.locations = data_dim
        self.register_buffer("shift", torch.zeros(data_dim))

    @torch.no_grad()
    def place(self, x: Tensor) -> None:
        _, mean = column_moments(x)
        edge = _half_a_row(x)
        self.shift.copy_(torch.logit(mean.clamp(edge, 1 - edge)))

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        _refuse(
            x,
            (x == 0) | (x == 1),
            columns,
            "likelihood 'bernoulli' is of 0 and 1 alone: binarise grey values, once (x > 0.5) or dynamically, drawing "
            "torch.bernoulli(x) anew for every pass over the data, or take 'logistic_256' for pixels k/255",
        )

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.shift + location).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)


class Poisson(nn.Module):
    """Independent columns of counts with log rates :math:`a + f`, a the logarithm of the column means.

    A column without any count has half a count for its sum.
    """

    shift: Tensor
    locations: int
    noise: int = 0

    def __init__(self, data_dim: int, floor: float | None = None) -> None:
        super().__init__()
        self.locations = data_dim
        self.register_buffer("shift", torch.zeros(data_dim))

    @torch.no_grad()
    def place(self, x: Tensor) -> None:
        _, mean = column_moments(x)
        self.shift.copy_(torch.maximum(mean, _half_a_row(x)).log())

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        _refuse(
            x,
            (x >= 0) & (x == x.floor()),
            columns,
            "likelihood 'poisson' is of the counts 0, 1, 2, ...: undo what has scaled or centred them, or take "
            "'gaussian' or 'student_t' for real numbers",
        )

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Poisson((self.shift + location).exp()).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)


class Logistic256(nn.Module):
    r"""Independent pixels of 256 levels k / 255: a logistic distribution, rounded to them.

    :math:`\mu = a + b f` and the scale :math:`s = b\, \mathrm{softplus}(g) + 0.1 / 255`; for the probabilities see
    :class:`DiscretizedLogistic`. They do not exceed 1, so that no floor on the variance is needed; the tenth of a level
    (Salimans et al. 2017: 0.116) keeps the arithmetic in range.
    """

    locations: int
    noise: int

    LEAST = 0.1 / (LEVELS - 1)

    def __init__(self, data_dim: int, floor: float | None = None) -> None:
        super().__init__()
        self.locations = self.noise = data_dim
        self.columns = Standardize(data_dim)

    def place(self, x: Tensor) -> None:
        self.columns.place(x)

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        _refuse(
            x,
            levels.check(x),
            columns,
            "likelihood 'logistic_256' is of the 256 levels k/255: divide whole pixels by 255, leave out noise and "
            "scaling, or take 'gaussian' for real numbers",
        )

    def forward(self, location: Tensor, noise: Tensor) -> dist.TorchDistribution:
        shift, unit = self.columns.shift, self.columns.unit
        return DiscretizedLogistic(shift + unit * location, unit * softplus(noise) + self.LEAST).to_event(1)

    def extra_repr(self) -> str:
        return str(self.locations)


class Mixed(nn.Module):
    """Columns of several kinds, independent of each other given z.

    Args:
        names: of a likelihood, one for every column. The locations come in the order of the columns; the noise numbers
            kind by kind, in the order in which the kinds first occur, and within a kind in that of the columns.
        floor: of the kinds that have one.
    """

    inverse: Tensor
    locations: int
    noise: int

    def __init__(self, names: Sequence[str], floor: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.locations = len(names)
        self.kinds = tuple(dict.fromkeys(names))
        groups = [[j for j, name in enumerate(names) if name == kind] for kind in self.kinds]
        self.parts = nn.ModuleList(LIKELIHOODS[k](len(g), floor) for k, g in zip(self.kinds, groups, strict=True))
        for number, group in enumerate(groups):
            self.register_buffer(f"group_{number}", torch.tensor(group), persistent=False)
        order = torch.tensor([j for group in groups for j in group])
        self.register_buffer("inverse", order.argsort(), persistent=False)
        self.split = [int(part.noise) for part in self._parts]
        self.noise = sum(self.split)
        if any(hasattr(part, "floor") for part in self.parts):
            self.floor = float(floor)

    @property
    def _parts(self) -> list[Any]:
        return list(self.parts)

    @property
    def _groups(self) -> list[Tensor]:
        return [self.get_buffer(f"group_{number}") for number in range(len(self.kinds))]

    def place(self, x: Tensor) -> None:
        for part, group in zip(self._parts, self._groups, strict=True):
            part.place(x[:, group])

    def check(self, x: Tensor, columns: Tensor | None = None) -> None:
        """Raises: ValueError: a column holds a value outside the support of its likelihood."""
        for part, group in zip(self._parts, self._groups, strict=True):
            part.check(x[:, group], group if columns is None else columns[group])

    def forward(self, location: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        own = [None] * len(self.split) if noise is None else noise.split(self.split, -1)
        parts = [
            part(location[..., group], numbers).base_dist
            for part, group, numbers in zip(self._parts, self._groups, own, strict=True)
        ]
        return Columns(parts, self._groups, self.inverse).to_event(1)

    def at_floor(self, noise: Tensor) -> Tensor:
        """The mean share over the kinds of columns that have a floor (...); there must be one."""
        own = zip(self._parts, noise.split(self.split, -1), strict=True)
        return torch.stack([part.at_floor(numbers) for part, numbers in own if hasattr(part, "floor")]).mean(0)

    def extra_repr(self) -> str:
        runs = [(name, len(list(run))) for name, run in itertools.groupby(self.names)]
        return ", ".join(f"{count} {name}" for name, count in runs)


LIKELIHOODS: dict[str, Callable[[int, float], Any]] = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "student_t": StudentT,
    "logistic_256": Logistic256,
}


def _half_a_row(x: Tensor) -> Tensor:
    """Half an observation, as a share of the observed entries of every column (d,)."""
    return 0.5 / (~x.isnan()).sum(0).clamp_min(1).to(x)


def _refuse(x: Tensor, fine: Tensor, columns: Tensor | None, way_out: str) -> None:
    """Raise at the first entry of ``x`` (n, d) that is not ``fine`` and not NaN.

    Raises:
        ValueError: names value, row and column, counted from 0, and the way out.
    """
    wrong = (~fine & ~x.isnan()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        number = column if columns is None else int(columns[column])
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"x holds {x[row, column].item():g} in row {row}, column {number}{more}, but {way_out}")


# Distributions.


class _Levels(constraints.Constraint):
    """The numbers 0, 1/255, ..., 1, to a thousandth of their distance."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        level = (LEVELS - 1) * value
        near = level.round()
        return ((level - near).abs() < 1e-3) & (near >= 0) & (near < LEVELS)


levels = _Levels()


class DiscretizedLogistic(dist.TorchDistribution):
    r"""A logistic distribution, rounded to the levels k / 255, its tails counted to the first and the last.

    .. math:: P(k) = \sigma(\beta_k) - \sigma(\alpha_k), \quad
              \alpha_k, \beta_k = \frac{(k \mp \tfrac12) / 255 - \mu}{s}, \quad
              \alpha_0 = -\infty,\; \beta_{255} = \infty

    Args:
        loc: location :math:`\mu` (...).
        scale: scale s > 0 (...).

    References:
        Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, ICLR, arXiv 1701.05517.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 (torch's own form)
    support = levels

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            u = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device)
            value = self.loc + self.scale * (u.log() - (-u).log1p())
            return ((LEVELS - 1) * value).round().clamp(0, LEVELS - 1) / (LEVELS - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""log P by :math:`P = \sigma(\beta)\, \sigma(-\alpha)\, (1 - e^{\alpha - \beta})`, which cancels no digits."""
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 / (LEVELS - 1)
        offset = value - self.loc
        above = logsigmoid((offset + half) / self.scale)  # log P(not above level k)
        below = logsigmoid((half - offset) / self.scale)  # log P(not below level k)
        inside = (-torch.expm1(-2 * half / self.scale)).log()
        first, last = value < half, value > 1 - half
        return torch.where(last, 0.0, above) + torch.where(first, 0.0, below) + torch.where(first | last, 0.0, inside)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square of the level k, by the probabilities of its exceeding every threshold."""
        first, second = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        for k in range(1, LEVELS):  # one by one: all at once takes 255 times the memory
            beyond = torch.sigmoid((self.loc - (k - 0.5) / (LEVELS - 1)) / self.scale)
            first = first + beyond
            second = second + (2 * k - 1) * beyond
        return first, second

    @property
    def mean(self) -> Tensor:
        return self._moments()[0] / (LEVELS - 1)

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return (second - first.square()).clamp_min(0.0) / (LEVELS - 1) ** 2


class Columns(dist.TorchDistribution):
    """Independent columns of several kinds: batch (..., d), where every kind has some of the last d.

    Args:
        parts: a distribution with batch (..., d_i) and event () for every kind.
        groups: the columns of every kind (d_i,).
        inverse: takes the kinds' columns, one kind after the other, to their places (d,).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own form)

    def __init__(self, parts: Sequence[Any], groups: Sequence[Tensor], inverse: Tensor) -> None:
        self.parts, self.groups, self.inverse = list(parts), list(groups), inverse
        lead = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in self.parts))
        super().__init__((*lead, len(inverse)), validate_args=False)  # the parts see to it

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        lead = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        whole = torch.cat([value.expand(*lead, value.shape[-1]) for value in values], -1)
        return whole[..., self.inverse]

    @property
    def has_rsample(self) -> bool:
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> Any:
        kind = torch.cat([torch.full_like(group, number) for number, group in enumerate(self.groups)])[self.inverse]
        runs = [(number, len(list(run))) for number, run in itertools.groupby(kind.tolist())]
        return constraints.cat([self.parts[number].support for number, _ in runs], -1, [size for _, size in runs])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        lead = tuple(batch_shape)[:-1]
        parts = [part.expand((*lead, part.batch_shape[-1])) for part in self.parts]
        return Columns(parts, self.groups, self.inverse)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._joined([part.sample(torch.Size(sample_shape)) for part in self.parts])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._joined([part.rsample(torch.Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of every column by itself (..., d)."""
        return self._joined([p.log_prob(value[..., g]) for p, g in zip(self.parts, self.groups, strict=True)])

    @property
    def mean(self) -> Tensor:
        return self._joined([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self._joined([part.variance for part in self.parts])
