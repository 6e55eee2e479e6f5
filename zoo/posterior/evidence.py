r"""Bounds on log p(x): ELBO, importance-weighted bounds, annealed importance sampling, and log p(x) itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zoo.base.callables import undecorated
from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import Conjugate, Pair
from zoo.posterior.annealing import AIS, anneal
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.evaluation import LEAST_DRAWS
from zoo.posterior.rowwise import log_mean, real_site, row_weights

BUDGET = 2**20  # numbers per array and chunk: 4 MB in float32, and a decoder holds some ten of them at a time
BLOCKS = 30  # from here on the spread of the blocks tells the error of their mean better than the delta method


@dataclass(frozen=True, eq=False)
class Bound:
    """One bound on log p(x), in nats.

    Attributes:
        name: ``"ELBO"``, ``"IWAE-K"``, ``"AIS"`` or ``"exact"``.
        values: of every row (n,).
        se: the standard error that the draws cause, of every row (n,); 0 where the value is exact.
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
        """The standard error of the mean that the draws cause, for these very rows."""
        return float(self.se.double().square().sum().sqrt() / len(self.se))

    @property
    def population_se(self) -> float:
        """The standard error of the mean as an estimate for rows like these: their spread, the draws' noise included.

        NaN for a single row.
        """
        n = len(self.values)
        return float(self.values.double().std() / n**0.5) if n > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Bounds:
    r"""Bounds on log p(x), in nats, from the loosest up: what :func:`log_evidence_bounds` returns.

    .. math:: \mathrm{ELBO} \le E[\mathrm{IWAE}_{K}] \le E[\mathrm{IWAE}_{K'}] \le \log p(x), \qquad K < K'

    ELBO and IWAE are taken from the same draws, the smaller K as the mean over blocks of the larger, so they are
    ordered for every row, not only in expectation. AIS stands beside them, below log p(x) in expectation.

    Attributes:
        rungs: the bounds in this order; ``bounds["IWAE-5000"]`` is one of them.
        effective: the effective sample size of the importance weights of every row (n,),
            :math:`(\sum w)^2 / \sum w^2`. Where it is small, a few draws carry the estimate, and the largest IWAE and
            its standard error are both too low.
        draws: draws per row.
        acceptance: of the transitions of AIS (n,), or None.
    """

    rungs: tuple[Bound, ...]
    effective: Tensor
    draws: int
    acceptance: Tensor | None = None

    def __getitem__(self, name: str) -> Bound:
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise KeyError(f"no rung {name!r}: there are {', '.join(rung.name for rung in self.rungs)}")

    @property
    def rows(self) -> dict[str, Tensor]:
        """A table with a row per row of the data: every bound and its standard error, by name, each (n,)."""
        table: dict[str, Tensor] = {}
        for rung in self.rungs:
            table |= {rung.name: rung.values, f"{rung.name}_se": rung.se}
        return table | {"effective": self.effective}

    def summary(self) -> dict[str, float]:
        """Means per row, with the standard errors that the draws cause (``_se``) and those for rows like these
        (``_population_se``), and the share of rows whose effective sample size is below 10."""
        table = {}
        for rung in self.rungs:
            table[rung.name] = rung.mean
            table[f"{rung.name}_se"] = rung.mean_se
            table[f"{rung.name}_population_se"] = rung.population_se
        return table | {"effective_below_10": float((self.effective < 10).double().mean())}

    def __repr__(self) -> str:
        n = len(self.effective)
        lines = [
            f"Bounds on log p(x) of {n} row{'s' * (n != 1)}, nats per row (se of the draws; se for rows like these):"
        ]
        wide = max(len(rung.name) for rung in self.rungs)
        for rung in self.rungs:
            errors = f"(se {rung.mean_se:.1g}; {rung.population_se:.2g})"
            lines.append(f"  {rung.name:<{wide}}  {rung.mean:.4f} {errors}")
        share = 100 * float((self.effective < 10).double().mean())
        lines.append(
            f"  effective draws of {self.draws}: median {self.effective.median():.0f}, < 10 on {share:.0f}% of rows"
        )
        return "\n".join(lines)


def log_evidence_bounds(
    run: Pair, x: Any, draws: Sequence[int] = (100, 5000), ais: AIS | None = None, *, seed: int = 0
) -> Bounds:
    r"""Every bound on log p(x) that there is, side by side: ELBO, IWAE-K, AIS, and log p(x) where it is known.

    With :math:`w_k = p(x, z_k) / q(z_k \mid x)` the ELBO is the mean of the :math:`\log w_k`, and IWAE-K the log of the
    mean of K weights, averaged over the blocks of K that the draws fall into. Draws are taken in chunks of rows and of
    draws, and of every block only its running sum is kept, so that memory grows neither with the rows nor with the
    draws (Pyro's autoguides without ``create_plates`` need all rows at once).

    Standard errors are those of the draws. From thirty blocks on they come from the spread of the blocks; below, from
    the delta method, :math:`\mathrm{se} = \mathrm{cv}(w) / \sqrt{K_{max}}`. They leave out the bias, which is
    downwards.

    Args:
        run: what :func:`zoo.fit` or :func:`zoo.load` returned, with any guide whose density splits into rows.
        x: rows (n, d); a guide with parameters for every row takes those it was fitted to, in their order.
        draws: the K of every IWAE, ascending, each a multiple of the one before; the last is the number of draws.
        ais: annealed importance sampling as well, for a model with one latent site, a real vector per row.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: ``draws`` that do not divide each other or are fewer than 25, rows that are not fit for model or
            guide, latent sites that all rows share, or with ``ais`` a discrete, constrained or second site.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR; for AIS see
        :class:`~zoo.posterior.annealing.AIS`.
    """
    sizes = _check_draws(draws)
    model = undecorated(run.model)
    x = check_rows(x, model)
    found, effective = [], []
    with reading(run, seed):
        source = reader(run, x)
        latent = None if ais is None else real_site(source, "AIS")
        for _, arguments in source.chunks(BUDGET // max(100 * x.shape[1], sizes[-1] // sizes[0])):
            values, errors, ess = _weighted(source, arguments, sizes)
            found.append((values, errors))
            effective.append(ess)
        rungs = [
            Bound(name, torch.cat([v[i] for v, _ in found]), torch.cat([e[i] for _, e in found]))
            for i, name in enumerate(["ELBO", *(f"IWAE-{size}" for size in sizes)])
        ]
        acceptance = None
        if ais is not None and latent is not None:
            parts = []
            for _, arguments in source.chunks(BUDGET // ((ais.chains + ais.pilots) * x.shape[1])):
                weights, chance = anneal(source, latent, arguments, ais)
                parts.append((*log_mean(weights), chance))
            annealed, noise, acceptance = (torch.cat(part) for part in zip(*parts, strict=True))
            rungs.append(Bound("AIS", annealed, noise))
        if isinstance(model, Conjugate):
            exact = torch.cat([model.log_marginal(part) for part in x.split(max(1, BUDGET // x.shape[1]))])
            rungs.append(Bound("exact", exact, torch.zeros_like(exact)))
    return Bounds(tuple(rungs), torch.cat(effective), sizes[-1], acceptance)


def _check_draws(draws: Sequence[int]) -> list[int]:
    try:
        sizes = [check_whole(size, "draws") for size in draws]
    except TypeError:
        raise ValueError(f"draws must be the K of every IWAE, such as (100, 5000), got {draws!r}") from None
    if not sizes:
        raise ValueError("draws is empty: pass the K of every IWAE, such as (100, 5000)")
    if sizes[-1] < LEAST_DRAWS:
        raise ValueError(f"draws must end with at least {LEAST_DRAWS} to judge the importance weights, got {sizes[-1]}")
    for small, large in pairwise(sizes):
        if large <= small or large % small:
            raise ValueError(f"draws must ascend, each a multiple of the one before it, got {small} and then {large}")
    return sizes


def _weighted(source: Reader, arguments: Arguments, sizes: list[int]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """ELBO and IWAE of some rows, their standard errors, each (b,) by rung, and the effective sample size (b,)."""
    x = arguments[0]
    least, total = sizes[0], sizes[-1]
    most = max(1, BUDGET // x.numel())  # draws at a time: some whole blocks of the least K, or a piece of one
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
    blocks = torch.cat(found)  # (total / least, b)
    effective = (2 * blocks.logsumexp(0) - squares).exp().clamp(1.0, total)
    delta = ((total / effective - 1) / (total - 1)).clamp_min(0.0).sqrt()  # cv(w) / sqrt(total)
    values, errors = [mean], [(scatter / (total - 1) / total).sqrt()]
    for size in sizes:
        bound = blocks.unflatten(0, (total // size, -1)).logsumexp(1) - math.log(size)
        values.append(bound.mean(0))
        errors.append(bound.std(0) / len(bound) ** 0.5 if len(bound) >= BLOCKS else delta)
    return values, errors, effective
