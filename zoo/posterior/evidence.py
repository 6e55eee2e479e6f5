r"""Bounds on log p(x): ELBO, importance-weighted bounds, annealed importance sampling, and the exact value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars
import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import Latent
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import Conjugate
from zoo.base.random import seeded
from zoo.base.tables import index_column, row_names
from zoo.base.threads import on_suited_threads
from zoo.posterior.annealing import AIS, anneal
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.evaluation import all_rows, check_draws
from zoo.posterior.psis import LEAST
from zoo.posterior.rowwise import log_mean, real_site, refuse_joint, row_weights

BLOCKS = 30  # blocks, from which on their spread estimates the error of their mean better than the delta method


@dataclass(frozen=True, eq=False)
class Bound:
    """One bound on log p(x), in nats.

    Attributes:
        name: ``"ELBO"``, ``"IWAE-K"``, ``"IS-K"``, ``"AIS"`` or ``"exact"``.
        values: for every row (n,); for all rows together (1,) in a model with shared sites.
        se: the Monte Carlo standard error of every value; 0 where it is exact.
    """

    name: str
    values: Tensor
    se: Tensor

    @property
    def mean(self) -> float:
        """The mean over the rows."""
        return float(self.values.double().mean())

    @property
    def mean_se(self) -> float:
        """The Monte Carlo standard error of the mean, for these rows."""
        return float(self.se.double().square().sum().sqrt() / len(self.se))

    @property
    def population_se(self) -> float:
        """The standard error of the mean as an estimate for the population of the rows, Monte Carlo noise included.

        NaN for a single row.
        """
        n = len(self.values)
        return float(self.values.double().std() / n**0.5) if n > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Bounds:
    r"""Bounds on log p(x), in nats, from the loosest to the tightest: the result of :func:`log_evidence_bounds`.

    .. math:: \mathrm{ELBO} \le E[\mathrm{IWAE}_{K}] \le E[\mathrm{IWAE}_{K'}] \le \log p(x), \qquad K < K'

    ELBO and IWAE are computed from the same draws, the smaller K as the mean over blocks of the larger, so they are
    ordered for every row, not only in expectation. AIS is an independent bound, below log p(x) in expectation.

    In a model with shared sites they are bounds on log p(X) of all rows together, and every tensor has one entry.

    Attributes:
        rungs: the bounds in this order; ``bounds["IWAE-5000"]`` is one of them.
        effective: the effective sample size of the importance weights of every row (n,),
            :math:`(\sum w)^2 / \sum w^2`. Where it is small, a few draws dominate the estimate, and the largest IWAE
            and its standard error are both too low.
        draws: draws per row.
        acceptance: of the transitions of AIS (n,), or None.
        shared: the sites shared by all rows, or drawn for all rows jointly by the guide; empty where log p(x) is a
            sum over rows.
        count: the number of rows n.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    rungs: tuple[Bound, ...]
    effective: Tensor
    draws: int
    acceptance: Tensor | None = None
    shared: tuple[str, ...] = ()
    count: int = 0
    index: np.ndarray | None = None

    def __getitem__(self, name: str) -> Bound:
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise KeyError(f"no bound {name!r}: there are {', '.join(rung.name for rung in self.rungs)}")

    @property
    def unit(self) -> str:
        """The unit of the bounds, in words."""
        return "nats, all rows together" if self.shared else "nats per row"

    def frame(self) -> polars.DataFrame:
        """A row per row of the data, or one for all of them: every bound with its standard error."""
        table: dict[str, Tensor] = {}
        for rung in self.rungs:
            table |= {rung.name: rung.values, f"{rung.name}_se": rung.se}
        table |= {"effective": self.effective}
        values = {name: value.detach().cpu().double().numpy() for name, value in table.items()}
        return polars.DataFrame(({} if self.shared else index_column(self.index)) | values)

    def summary(self) -> dict[str, float]:
        """Means per row, with Monte Carlo standard errors (``_se``) and standard errors for the population
        (``_population_se``), and the share of rows whose effective sample size is below 10.

        In a model with shared sites: totals with Monte Carlo standard errors, and the effective sample size.
        """
        table = {}
        for rung in self.rungs:
            table[rung.name] = rung.mean
            table[f"{rung.name}_se"] = rung.mean_se
            if not self.shared:
                table[f"{rung.name}_population_se"] = rung.population_se
        if self.shared:
            return table | {"effective": float(self.effective)}
        return table | {"effective_below_10": float((self.effective < 10).double().mean())}

    def __repr__(self) -> str:
        n = self.count or len(self.effective)
        rows = f"{n} row{'s' * (n != 1)}"
        head = f"Bounds on log p(x) of {rows}, nats per row (Monte Carlo se; population se):"
        if self.shared:
            head = f"Bounds on log p(X) of {rows} together (by {', '.join(self.shared)}), nats (Monte Carlo se):"
        lines = [head]
        wide = max(len(rung.name) for rung in self.rungs)
        for rung in self.rungs:
            rest = "" if self.shared else f"; {rung.population_se:.2g}"
            lines.append(f"  {rung.name:<{wide}}  {rung.mean:.4f} (se {rung.mean_se:.1g}{rest})")
        effective = f"  effective draws of {self.draws}: "
        share = 100 * float((self.effective < 10).double().mean())
        more = "" if self.shared else f", < 10 on {share:.0f}% of rows"
        median = "" if self.shared else "median "
        return "\n".join([*lines, f"{effective}{median}{self.effective.median():.0f}{more}"])


@on_suited_threads
def log_evidence_bounds(
    run: Trained,
    x: ArrayLike,
    *,
    draws: Sequence[int] = (100, 5000),
    inner: int | None = None,
    ais: AIS | None = None,
    seed: int = 0,
) -> Bounds:
    r"""All bounds on log p(x): ELBO, IWAE-K, AIS, and log p(x) itself where it has a closed form.

    With :math:`w_k = p(x, z_k) / q(z_k \mid x)` the ELBO is the mean of the :math:`\log w_k`, and IWAE-K the log of the
    mean of K weights, averaged over blocks of K draws. The computation goes by chunks of rows and of draws and keeps
    only the running sum of every block, so that memory grows neither with the rows nor with the draws (Pyro's
    autoguides without ``create_plates`` need all rows at once).

    In a model with shared sites :math:`\theta`, log p(X) is not a sum over rows. The bounds are then those of all rows
    together: the ELBO, and IS-K, the log of the mean of K weights of theta as in :func:`zoo.evaluate`,

    .. math:: w_k = \frac{p(\theta_k)}{q(\theta_k)} \prod_n \hat p(x_n \mid \theta_k), \qquad \theta_k \sim q,

    with ``inner`` draws of the local sites for every draw of theta, where p(x | theta) has no closed form
    (``log_marginal_given``).

    Standard errors are Monte Carlo errors: from the spread of the blocks if there are at least thirty, otherwise by the
    delta method, :math:`\mathrm{se} = \mathrm{cv}(w) / \sqrt{K_{max}}`. They do not include the bias, which is
    negative.

    Args:
        run: a trained pair: what :func:`zoo.fit`, :func:`zoo.em`, :func:`zoo.cavi` or :func:`zoo.load` returned, or
            ``zoo.Fit(model, guide)``; or a fitted conjugate model, with its own posterior as the guide.
        x: rows (n, d); for a guide with parameters for every row, those it was fitted to, in the same order.
        draws: the K of every IWAE, ascending, each a multiple of the one before; the last is the number of draws, at
            least 30.
        inner: draws of the local sites for every draw of the shared ones; at least 30. None takes 100, or 30 for a
            model or guide that does not broadcast over draws.
        ais: settings of annealed importance sampling, for a model with one latent site, a real vector per row.
        seed: of the draws; the caller's random stream is left unchanged.

    Raises:
        ValueError: ``draws`` that do not divide each other or are too few, rows that do not suit model or guide, a
            guide with a point mass, or with ``ais`` a shared, discrete, constrained or second site.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR; for AIS see
        :class:`~zoo.posterior.annealing.AIS`.
    """
    run = pair_of(run)
    sizes = _check_draws(draws)
    check_draws(sizes[-1], inner)
    index, x = row_names(x), rows_of(run, x)
    with reading(run, seed):
        source = reader(run, x)
        latent = None if ais is None else real_site(source, "AIS")
        _, first = next(iter(source.chunks(rows_at_once(400 * x.shape[1]))))
        with seeded(0):
            joint = source.draw(first, 2).joint
        if ais is not None:
            refuse_joint(source, joint, "AIS")
        if source.layout.shared or joint is not None:
            return _together(source, sizes, inner, joint)
        found = [
            _weighted(source, arguments, sizes)
            for _, arguments in source.chunks(rows_at_once(max(400 * x.shape[1], 4 * sizes[-1] // sizes[0])))
        ]
        values, errors, effective = zip(*found, strict=True)
        rungs = _rungs(sizes, "IWAE", _columns(values), _columns(errors))
        acceptance = None
        if ais is not None and latent is not None:
            annealed, acceptance = _annealed(source, latent, ais)
            rungs.append(annealed)
        model = undecorated(run.model)
        if isinstance(model, Conjugate):
            exact = torch.cat([model.log_marginal(part) for part in x.split(rows_at_once(4 * x.shape[1]))])
            rungs.append(Bound("exact", exact, torch.zeros_like(exact)))
    return Bounds(tuple(rungs), torch.cat(effective), sizes[-1], acceptance, count=len(x), index=index)


def _columns(chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The values of every bound for all rows, concatenated from chunks of rows."""
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _rungs(sizes: list[int], kind: str, values: Sequence[Tensor], errors: Sequence[Tensor]) -> list[Bound]:
    names = ["ELBO", *(f"{kind}-{size}" for size in sizes)]
    return [Bound(*parts) for parts in zip(names, values, errors, strict=True)]


def _annealed(source: Reader, latent: Latent, ais: AIS) -> tuple[Bound, Tensor]:
    """The bound by annealed importance sampling, and the acceptance of its transitions (n,)."""
    parts = []
    for _, arguments in source.chunks(rows_at_once(4 * (ais.chains + ais.pilots) * source.x.shape[1])):
        weights, chance = anneal(source, latent, arguments, ais)
        parts.append((*log_mean(weights), chance))
    annealed, noise, acceptance = (torch.cat(part) for part in zip(*parts, strict=True))
    return Bound("AIS", annealed, noise), acceptance


def _together(source: Reader, sizes: list[int], inner: int | None, joint: str | None) -> Bounds:
    """The bounds of all rows together."""
    total = sizes[-1]
    sums = all_rows(source, total, inner)
    weights = sums.weights.unsqueeze(1)  # (total, 1)
    blocks = weights.unflatten(0, (total // sizes[0], -1)).logsumexp(1)  # (total / least, 1)
    values, errors, effective = _blocks(blocks, (2 * weights).logsumexp(0), sizes)
    elbo = sums.elbo
    error = (elbo.std() / total**0.5).reshape(1)
    rungs = _rungs(sizes, "IS", [elbo.mean().reshape(1), *values], [error, *errors])
    model = undecorated(source.pair.model)
    if isinstance(model, Conjugate):  # with a guide that draws all rows jointly
        exact = model.log_marginal(source.x).sum().reshape(1)
        rungs.append(Bound("exact", exact, torch.zeros_like(exact)))
    names = tuple(latent.name for latent in source.layout.shared) or (str(joint),)
    return Bounds(tuple(rungs), effective, total, None, names, len(source.x))


def _check_draws(draws: Sequence[int]) -> list[int]:
    try:
        sizes = [check_whole(size, "draws") for size in draws]
    except TypeError:
        raise ValueError(f"draws must be the K of every IWAE, such as (100, 5000), got {draws!r}") from None
    if not sizes:
        raise ValueError("draws is empty: pass the K of every IWAE, such as (100, 5000)")
    if sizes[-1] < LEAST:
        raise ValueError(f"draws must end with at least {LEAST} to judge the importance weights, got {sizes[-1]}")
    for small, large in pairwise(sizes):
        if large <= small or large % small:
            raise ValueError(f"draws must ascend, each a multiple of the one before it, got {small} and then {large}")
    return sizes


def _weighted(source: Reader, arguments: Arguments, sizes: list[int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """ELBO and IWAE of some rows, their standard errors, each (b,) by rung, and the effective sample size (b,)."""
    x = arguments[0]
    least, total = sizes[0], sizes[-1]
    most = rows_at_once(4 * x.numel())  # draws at a time: some whole blocks of the least K, or a piece of one
    mean, scatter, seen = x.new_zeros(len(x)), x.new_zeros(len(x)), 0
    squares = x.new_full((len(x),), -math.inf)  # log of the sum of w squared
    found = []
    for group in torch.arange(total // least).split(max(1, most // least)):
        sums = x.new_full((len(group), len(x)), -math.inf)  # log of the sum of w, of every block
        for piece in torch.arange(least).split(most):
            count = len(group) * len(piece)
            weights = row_weights(source, arguments, count, "log_evidence_bounds")  # (count, b)
            sums = torch.logaddexp(sums, weights.unflatten(0, (len(group), -1)).logsumexp(1))
            squares = torch.logaddexp(squares, (2 * weights).logsumexp(0))
            own, seen = weights.mean(0), seen + count
            step = own - mean  # the moments' update of Chan, Golub and LeVeque (1983)
            scatter += (weights - own).square().sum(0) + step.square() * ((seen - count) * count / seen)
            mean = mean + step * (count / seen)
        found.append(sums)
    bounds, spreads, effective = _blocks(torch.cat(found), squares, sizes)
    return [mean, *bounds], [(scatter / (total - 1) / total).sqrt(), *spreads], effective


def _blocks(blocks: Tensor, squares: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The bound of every K with its standard error, each (b,), and the effective sample size (b,).

    Args:
        blocks: log of the sum of w over the blocks of the least K (total / least, b).
        squares: log of the sum of w squared (b,).
        sizes: the K, ascending.
    """
    total = sizes[-1]
    effective = (2 * blocks.logsumexp(0) - squares).exp().clamp(1.0, total)
    delta = ((total / effective - 1) / (total - 1)).clamp_min(0.0).sqrt()  # cv(w) / sqrt(total)
    values, errors = [], []
    for size in sizes:
        bound = blocks.unflatten(0, (total // size, -1)).logsumexp(1) - math.log(size)
        values.append(bound.mean(0))
        errors.append(bound.std(0) / len(bound) ** 0.5 if len(bound) >= BLOCKS else delta)
    return values, errors, effective
