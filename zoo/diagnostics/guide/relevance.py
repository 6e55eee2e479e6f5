"""How much of a Bayesian model the data use: factors that their relevances keep, components that hold rows."""

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

from zoo.algebra.missing import column_moments
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.latent_sites import Layout
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import HoldsFactors, Pair, declares
from zoo.infer.pairing import check_count
from zoo.posterior.engine import Reader, reader, reading

RELEVANCE = 50.0  # E[alpha] times the columns' mean variance, at and above which a factor is switched off
COUNT = 1.0  # expected rows below which a component is empty


@dataclass(frozen=True, eq=False)
class EffectiveSize:
    r"""The factors or components of a model that the data use.

    Attributes:
        unit: ``"factors"``, judged by their expected relevances :math:`E_q[\alpha_k]`, or ``"components"``, judged by
            the expected number of their rows :math:`\sum_n q(c_n = k)`.
        values: these numbers (k,).
        se: their Monte Carlo standard errors (k,), 0 where they are closed forms.
        threshold: factors are kept below it, components from it on.
    """

    unit: Literal["factors", "components"]
    values: Tensor
    se: Tensor
    threshold: float

    @property
    def in_use(self) -> Tensor:
        """Which of them are in use (k,)."""
        return self.values < self.threshold if self.unit == "factors" else self.values >= self.threshold

    @property
    def kept(self) -> int:
        """The number of those in use."""
        return int(self.in_use.sum())

    def summary(self) -> dict[str, float]:
        """The number in use, the number that the model has, and the threshold."""
        return {"kept": float(self.kept), "size": float(len(self.values)), "threshold": self.threshold}

    def frame(self) -> pl.DataFrame:
        """A row per factor or component: its number from 0, relevance or expected count, error, and whether in use."""
        column = "relevance" if self.unit == "factors" else "count"
        numbers = {column: self.values, "se": self.se, "in_use": self.in_use}
        found = {name: value.detach().cpu().numpy() for name, value in numbers.items()}
        return pl.DataFrame({self.unit[:-1]: range(len(self.values)), **found})

    def __repr__(self) -> str:
        listed = ", ".join(f"{value:.4g}" for value in self.values.tolist())
        if self.unit == "factors":
            return f"{self.kept} of {len(self.values)} factors kept (relevance below {self.threshold:g}): {listed}"
        rule = f"at least {self.threshold:g} expected rows"
        return f"{self.kept} of {len(self.values)} components in use ({rule}): {listed}"


def effective_size(
    run: Trained, x: ArrayLike, *, threshold: float | None = None, draws: int = 1000, seed: int = 0
) -> EffectiveSize:
    r"""The factors that automatic relevance determination keeps, or the components of a mixture that hold rows.

    A relevance :math:`\alpha_k` is the prior precision of the loadings of factor k, in the units of the data: it is
    large where the loadings vanish. By default a factor counts as switched off where its loadings are expected to have
    less than a fiftieth of the columns' mean variance :math:`v`, :math:`E_q[\alpha_k] \geq 50 / v`.

    Args:
        run: a trained pair: what :func:`zoo.cavi`, :func:`zoo.fit` or :func:`zoo.load` returned. Its model has a site
            ``relevance`` (k,), or else a discrete site ``component`` per row.
        x: the rows (n, d).
        threshold: factors are kept whose expected relevance is below it (None: 50 over the mean variance of the
            columns), components are in use that expect as many rows (None: 1).
        draws: draws from the guide, where its factors have no closed form.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        TypeError: the model has neither of the two sites.
        ValueError: ``draws`` is no whole number of at least 2, or the rows do not fit model or guide.

    References:
        Bishop (1999), Variational principal components, ICANN.
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    x = rows_of(run, x)
    with reading(run, seed):
        source = reader(run, x)
        component = _component(source.layout)
        if "relevance" in {latent.name for latent in source.layout.latents}:
            values, se = _relevances(source, draws)
            least = RELEVANCE / _variance(x) if threshold is None else float(threshold)
            return EffectiveSize("factors", values, se, least)
        if component is None:
            raise TypeError(
                f"{name_of(run.model)} has neither a site 'relevance' nor a discrete site 'component' per row: there "
                "is nothing to count. BayesianPCA, BayesianFactorAnalysis and BayesianGMM have"
            )
        values, se = _counts(source, component, draws)
        return EffectiveSize("components", values, se, COUNT if threshold is None else float(threshold))


def has_effective_size(found: Layout) -> bool:
    """Whether priors decide how many factors or components of a model are in use."""
    shared = {latent.name for latent in found.shared}
    return "relevance" in shared or (bool(shared) and _component(found) is not None)


def _component(found: Layout) -> int | None:
    """The number of values of the site ``component`` of every row; None without such a site."""
    return next((own.cardinality for own in found.local if own.name == "component"), None)


def _variance(x: Tensor) -> float:
    """The mean variance of the columns over their observed entries; 1 where nothing varies."""
    variance = float(column_moments(x)[0].mean())
    return variance if variance > 0 else 1.0


def conjugate_factors(run: Pair) -> dict[str, Any] | None:
    """The factors of q by site, where they are of conjugate families; to be used inside ``reading``."""
    guide = undecorated(run.guide)
    if isinstance(guide, HoldsFactors) and not declares(run.guide, "gaussian"):
        return dict(guide.factors())
    return None


def _relevances(source: Reader, draws: int) -> tuple[Tensor, Tensor]:
    """E[alpha] (k,) and standard errors."""
    factors = conjugate_factors(source.pair)
    if factors is not None:
        mean = factors["relevance"].mean
        return mean, torch.zeros_like(mean)
    _, arguments = next(source.chunks(1))
    values = source.draw(arguments, draws).values["relevance"].flatten(1).double()
    return values.mean(0), values.std(0) / draws**0.5


def _counts(source: Reader, components: int, draws: int) -> tuple[Tensor, Tensor]:
    """Expected rows of every component (k,) and standard errors."""
    factors = conjugate_factors(source.pair)
    if factors is not None:
        check_count(source.pair.guide, len(source.x), None)
        count = factors["component"].mean.sum(0)
        return count, torch.zeros_like(count)
    total: Tensor = torch.zeros(draws, components, dtype=torch.float64)
    names = {latent.name for latent in source.layout.shared}
    held: dict[str, Tensor] = {}
    for _, arguments in source.chunks(rows_at_once(draws * source.x.shape[1])):
        drawn = source.draw(arguments, draws, held)
        held = held or {name: value for name, value in drawn.values.items() if name in names}
        chosen = source.complete(arguments, drawn.values, draws)["component"].long()  # (draws, b)
        total = total.to(chosen.device) + torch.nn.functional.one_hot(chosen, components).sum(1)
    return total.mean(0), total.std(0) / draws**0.5
