"""The posterior by Markov chain Monte Carlo: the reference for a guide if there is no closed form; small problems."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from zoo.base.callables import mode, name_of
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import Latent, Layout, layout
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import Pair
from zoo.base.random import seeded
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.guide.mixing import chain_diagnostics
from zoo.diagnostics.guide.moments import own_moments
from zoo.posterior.engine import reader, reading

MOST = 2000  # latent dimensions in total
LEAST = 20  # draws per chain
MIXED = 1.01  # the limit of R-hat (Vehtari et al. 2021)
ENOUGH = 100  # the least effective draws per chain (Vehtari et al. 2021)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A guide's moments minus those of the chains, in posterior standard deviations.

    The result of :meth:`MCMCSamples.compare`. One tensor per continuous latent site by name: (n, ...) for a local site,
    (...) for a shared one.

    Attributes:
        mean: the guide's mean minus that of the chains.
        mean_se: the Monte Carlo standard error of that difference.
        deviation: the guide's standard deviation minus that of the chains: below 0 the guide is too narrow.
        deviation_se: the Monte Carlo standard error of that difference.
        closed: whether the guide's moments are in closed form rather than from draws.
    """

    mean: dict[str, Tensor]
    mean_se: dict[str, Tensor]
    deviation: dict[str, Tensor]
    deviation_se: dict[str, Tensor]
    closed: bool

    def summary(self) -> dict[str, float]:
        """The largest and the mean absolute difference over all coordinates, and the mean standard error."""
        table: dict[str, float] = {}
        for name in ("mean", "deviation"):
            size = _all(getattr(self, name)).abs()
            table |= {f"worst_{name}": float(size.max()), f"usual_{name}": float(size.mean())}
            table[f"{name}_se"] = float(_all(getattr(self, f"{name}_se")).mean())
        return table

    def frame(self) -> pl.DataFrame:
        """One row per coordinate: site, index in the site, and the differences with their standard errors."""
        columns: dict[str, Any] = {"site": [], "place": []}
        for name, value in self.mean.items():
            columns["site"] += [name] * value.numel()
            columns["place"] += list(range(value.numel()))
        parts = ("mean", "mean_se", "deviation", "deviation_se")
        return pl.DataFrame(columns | {part: _all(getattr(self, part)).tolist() for part in parts})

    def __repr__(self) -> str:
        s = self.summary()
        return (
            f"Comparison in posterior standard deviations: means off by {s['usual_mean']:.3g} on average, at worst "
            f"{s['worst_mean']:.3g} (se {s['mean_se']:.1g}); standard deviations by {s['usual_deviation']:.3g}, at "
            f"worst {s['worst_deviation']:.3g} (se {s['deviation_se']:.1g})"
        )


@dataclass(frozen=True, eq=False)
class MCMCSamples:
    """Draws from the posterior by NUTS: the result of :func:`nuts`.

    Attributes:
        samples: draws of the continuous sites by name: (chains, draws, n, ...) local, (chains, draws, ...) shared.
        rhat: R-hat of every coordinate by site, (n, ...) or (...).
        ess_bulk: bulk effective sample sizes by site.
        ess_tail: tail effective sample sizes by site, of the 5% and 95% quantiles.
        mean_se: Monte Carlo standard errors of the means over all draws, by site.
        deviation_se: those of the standard deviations.
        divergences: the number of divergent transitions after warm-up, over all chains.
        acceptance: the mean acceptance rate of every chain (chains,).
        x: the rows (n, d).
        discrete: draws of the discrete sites given the continuous ones and the rows, by name (chains, draws, n);
            NUTS itself marginalises them.
    """

    samples: dict[str, Tensor]
    rhat: dict[str, Tensor]
    ess_bulk: dict[str, Tensor]
    ess_tail: dict[str, Tensor]
    mean_se: dict[str, Tensor]
    deviation_se: dict[str, Tensor]
    divergences: int
    acceptance: Tensor
    x: Tensor = field(repr=False)
    discrete: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> dict[str, Tensor]:
        """The posterior mean by site, (n, ...) or (...)."""
        return {name: value.flatten(0, 1).mean(0) for name, value in self.samples.items()}

    @property
    def deviation(self) -> dict[str, Tensor]:
        """The posterior standard deviation by site, (n, ...) or (...)."""
        return {name: value.flatten(0, 1).std(0) for name, value in self.samples.items()}

    @property
    def converged(self) -> bool:
        """Whether R-hat is below 1.01, with 100 effective draws per chain and no divergences.

        Vehtari et al. (2021), see :func:`zoo.diagnostics.guide.mixing.chain_diagnostics`.
        """
        least = min(float(_all(self.ess_bulk).min()), float(_all(self.ess_tail).min()))
        worst = float(_all(self.rhat).max())
        return worst < MIXED and least >= ENOUGH * len(self.acceptance) and self.divergences == 0

    def summary(self) -> dict[str, float]:
        """The largest R-hat, the smallest effective sample sizes and the number of divergences."""
        return {
            "rhat": float(_all(self.rhat).max()),
            "ess_bulk": float(_all(self.ess_bulk).min()),
            "ess_tail": float(_all(self.ess_tail).min()),
            "divergences": float(self.divergences),
        }

    def frame(self) -> pl.DataFrame:
        """One row per coordinate: site, index in the site, mean, standard deviation, R-hat, effective sample sizes."""
        columns: dict[str, Any] = {"site": [], "place": []}
        for name, value in self.rhat.items():
            columns["site"] += [name] * value.numel()
            columns["place"] += list(range(value.numel()))
        parts = ("mean", "mean_se", "deviation", "deviation_se", "rhat", "ess_bulk", "ess_tail")
        return pl.DataFrame(columns | {part: _all(getattr(self, part)).tolist() for part in parts})

    def compare(self, run: Trained, *, draws: int = 4000, seed: int = 0) -> Comparison:
        """Compare the guide's means and standard deviations with those of the chains.

        Args:
            run: a pair with the same model, and a guide for the same rows.
            draws: draws from the guide, if its moments have no closed form.
            seed: of these draws.

        Raises:
            ValueError: the guide lacks one of the sites, or has another shape.
        """
        run = pair_of(run)
        check_whole(draws, "draws", 2)
        with reading(run, seed):
            source = reader(run, self.x)
            found = tuple(latent for latent in source.layout.latents if latent.name in self.samples)
            closed = own_moments(source, found, (self.x,)) if len(found) == len(self.samples) == 1 else None
        ours = _closed(found[0], closed) if closed is not None else _drawn(run, self.x, self.samples, draws, seed)
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "mean_se": {}, "deviation": {}, "deviation_se": {}}
        for name in self.samples:
            mean, deviation, mean_se, deviation_se = ours[name]
            if mean.shape != self.mean[name].shape:
                raise ValueError(
                    f"the guide's site '{name}' has shape {tuple(mean.shape)}, the chains have "
                    f"{tuple(self.mean[name].shape)}: compare a run of the model that was sampled"
                )
            unit = self.deviation[name]
            parts["mean"][name] = (mean - self.mean[name]) / unit
            parts["mean_se"][name] = (mean_se.square() + self.mean_se[name].square()).sqrt() / unit
            parts["deviation"][name] = deviation / unit - 1
            relative = (deviation * self.deviation_se[name] / unit).square()  # by the delta method
            parts["deviation_se"][name] = (deviation_se.square() + relative).sqrt() / unit
        return Comparison(**parts, closed=closed is not None)

    def __repr__(self) -> str:
        chains, draws = next(iter(self.samples.values())).shape[:2]
        sites = ", ".join(f"{name} {tuple(value.shape[2:])}" for name, value in self.samples.items())
        state = "converged" if self.converged else "not converged"
        return (
            f"MCMCSamples of {sites} by NUTS, {chains} chains of {draws} draws, {state}: R-hat at most "
            f"{float(_all(self.rhat).max()):.3f}, effective draws at least {float(_all(self.ess_bulk).min()):.0f} "
            f"(bulk), {float(_all(self.ess_tail).min()):.0f} (tail), {self.divergences} divergences"
        )


@on_suited_threads
def nuts(
    run: Trained, x: ArrayLike, *, chains: int = 4, draws: int = 500, warmup: int = 500, seed: int = 0
) -> MCMCSamples:
    """Sample the posterior at the fitted parameters by Pyro's No-U-Turn sampler.

    The chains start at different points and run one after the other. Discrete sites are marginalised, and drawn
    afterwards given the continuous ones. The state of a chain holds the latent sites of all rows, so the cost grows
    with n: use it on small problems, as a reference for a guide.

    Args:
        run: a trained pair; only its model is used.
        x: rows (n, d).
        chains: the number of chains, at least 2 for R-hat.
        draws: draws per chain after warm-up, at least 20.
        warmup: adaptation steps per chain, which are discarded.
        seed: of initial values and draws.

    Raises:
        ValueError: more than 2000 latent dimensions in total, a model without a continuous latent site, or too few
            chains or draws.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler, JMLR 15.
    """
    run = pair_of(run)
    check_whole(chains, "chains", 2)
    check_whole(draws, "draws", LEAST)
    check_whole(warmup, "warmup", LEAST)
    x = rows_of(run, x)
    with run.scope():
        plan = layout(run.model, x)
    found = _continuous(plan, x, name_of(run.model))
    runs, divergences, acceptance = [], 0, []
    with (
        run.scope(),
        seeded(seed),
        torch.enable_grad(),
        pyro.validation_enabled(False),
        mode(False, run.model),
    ):
        for _ in range(chains):
            kernel = NUTS(run.model, max_plate_nesting=plan.nesting)
            sampler = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            sampler.run(x)
            runs.append(sampler.get_samples())
            diagnostics = sampler.diagnostics()
            divergences += sum(len(steps) for steps in diagnostics["divergences"].values())
            acceptance += list(diagnostics["acceptance rate"].values())
    samples = {
        latent.name: torch.stack([_laid_out(one[latent.name].detach(), latent, len(x)) for one in runs])
        for latent in found
    }
    state = {name: chain_diagnostics(value) for name, value in samples.items()}
    columns = {
        key: {name: values[key].to(x) for name, values in state.items()}
        for key in ("rhat", "ess_bulk", "ess_tail", "mean_se", "deviation_se")
    }
    return MCMCSamples(
        samples,
        **columns,
        divergences=divergences,
        acceptance=torch.tensor(acceptance),
        x=x,
        discrete=_discrete(run, x, plan, samples, seed),
    )


def _continuous(plan: Layout, x: Tensor, model: str) -> tuple[Latent, ...]:
    """The continuous latent sites.

    Raises:
        ValueError: there is none, or they have too many dimensions.
    """
    found = tuple(latent for latent in plan.latents if latent.cardinality is None)
    if not found:
        raise ValueError(
            f"{model} has no continuous latent site, which NUTS requires: a discrete posterior is a finite sum, "
            "available from the guide Exact or model.posterior(x)"
        )
    each = sum(latent.shape.numel() for latent in found if latent.local)
    shared = sum(latent.shape.numel() for latent in found if not latent.local)
    total = shared + each * len(x)
    if total > MOST:
        few = f"pass at most {max(1, (MOST - shared) // max(1, each))} of the rows, or use "
        raise ValueError(
            f"{len(x)} rows have {total} latent dimensions in total, more than the {MOST} that NUTS samples in "
            f"reasonable time: {few if each and shared < MOST else 'use '}zoo.importance_moments"
        )
    return found


def _laid_out(value: Tensor, latent: Latent, n: int) -> Tensor:
    """Draws of a chain as (draws, n, *shape) local and (draws, *shape) shared, for plates at any dimension."""
    batch = value.ndim - 1 - latent.event_dim  # batch dimensions of the site
    place = {plate.dim: plate.size for plate in latent.plates} | ({-1: n} if latent.local else {})
    event = value.shape[1 + batch :]
    depth = max((-dim for dim in place), default=0)
    wide = value.reshape(len(value), *(1,) * (depth - batch), *value.shape[1 : 1 + batch], *event)
    order = ([-1] if latent.local else []) + [plate.dim for plate in latent.plates]
    rest = [dim for dim in range(-depth, 0) if dim not in order]
    first = [1 + depth + dim for dim in (*order, *rest)]
    wide = wide.permute(0, *first, *range(1 + depth, wide.ndim))
    return wide.reshape(len(value), *((n,) if latent.local else ()), *latent.shape)


def _discrete(run: Pair, x: Tensor, plan: Layout, samples: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draws of the discrete sites given the continuous ones and the rows (chains, draws, n)."""
    missing = [latent.name for latent in plan.latents if latent.name not in samples]
    if not missing:
        return {}
    chains, draws = next(iter(samples.values())).shape[:2]
    with reading(run, seed):
        values = {name: value.flatten(0, 1) for name, value in samples.items()}
        complete = reader(run, x).complete((x,), values)
    return {name: complete[name].unflatten(0, (chains, draws)) for name in missing}


def _all(parts: dict[str, Tensor]) -> Tensor:
    """The values of all sites in one vector."""
    return torch.cat([part.flatten() for part in parts.values()])


Moments = tuple[Tensor, Tensor, Tensor, Tensor]  # mean, standard deviation, and the standard errors of both


def _closed(latent: Latent, moments: tuple[Tensor, Tensor]) -> dict[str, Moments]:
    """Moments of the one site in closed form, without Monte Carlo error."""
    mean, covariance = moments
    shape = (len(mean), *latent.shape)
    mean, deviation = mean.reshape(shape), covariance.diagonal(dim1=-2, dim2=-1).sqrt().reshape(shape)
    return {latent.name: (mean, deviation, torch.zeros_like(mean), torch.zeros_like(mean))}


def _drawn(run: Pair, x: Tensor, samples: dict[str, Tensor], draws: int, seed: int) -> dict[str, Moments]:
    """Moments of every site from draws of the guide, also of a point mass, with standard deviation 0."""
    with reading(run, seed):
        source = reader(run, rows_of(run, x))
        given = source.draw((source.x,), draws, points=True).values
    found = {}
    for name in samples:
        if name not in given:
            raise ValueError(f"the guide {name_of(run.guide)} has no site '{name}': pass a run whose guide has it")
        z = given[name].double()
        mean, deviation = z.mean(0), z.std(0)
        kurtosis = ((z - mean) / deviation.clamp_min(torch.finfo(z.dtype).tiny)).pow(4).mean(0)
        error = deviation * ((kurtosis - 1).clamp_min(0.0) / (4 * draws)).sqrt()
        found[name] = (mean, deviation, deviation / draws**0.5, error)
    return found
