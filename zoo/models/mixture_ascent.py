"""Coordinate ascent for Gaussian mixtures with priors on everything."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoo.algebra.exponential_families import CategoricalFactor, CoupledFactor, GaussianFactor
from zoo.algebra.missing import column_moments
from zoo.models.mixture_factors import MixtureFactors, MixturePriors, best_parameters, gain
from zoo.models.mixture_rows import mixture_rows


def mixture_bound(
    x: Tensor,
    component: CategoricalFactor,
    q: MixtureFactors,
    priors: MixturePriors,
    scale: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The evidence lower bound, every constant kept; the rows' terms count ``scale`` times, as those of a minibatch.

    Missing entries of ``x`` (NaN) are left out where columns are independent, and latent given the component, with a
    factor at its optimum, otherwise (:class:`zoo.models.mixture_rows.Latent`). Every row counts as often as its weight
    (n,).
    """
    centre = column_moments(x, weights)[1]
    priors = replace(priors, location=priors.location - centre)
    q = replace(q, mean=replace(q.mean, mean=q.mean.mean - centre))
    own = None if weights is None else weights.to(x).unsqueeze(1)
    share = component.mean if own is None else component.mean * own
    expected = (share * mixture_rows(x - centre, priors).logs(q, priors)).sum()
    return scale * (expected + component.entropy(own)) + gain(q, priors)


class MixtureAscent:
    """The factors of q and the sweeps over them, in coordinates around the means of the columns.

    Args:
        x: rows (n, d); NaN where an entry is missing at random.
        responsibilities: to start from (n, k).
        priors: of the model.
        weights: how often every row counts (n,); None for once.
    """

    def __init__(
        self, x: Tensor, responsibilities: Tensor, priors: MixturePriors, weights: Tensor | None = None
    ) -> None:
        x = x.double()
        self.centre = column_moments(x, weights)[1]
        self.priors = replace(priors, location=priors.location - self.centre)
        self.rows = mixture_rows(x - self.centre, self.priors, weights)
        heavy = responsibilities if weights is None else responsibilities * weights.to(x).unsqueeze(1)
        self.sums = self.rows.start(heavy)
        self.entropy = -torch.xlogy(heavy, responsibilities).sum()
        self.q = best_parameters(self.rows.statistics(self.sums), None, self.priors)

    def sweep(self) -> None:
        """Every factor once, at its optimum given the others: the components first."""
        self.sums, self.entropy = self.rows.expect(self.q, self.priors)
        self.q = best_parameters(self.rows.statistics(self.sums), self.q, self.priors)

    def bound(self) -> Tensor:
        """The evidence lower bound over all rows, every constant kept."""
        rows = (self.sums * self.rows.coefficients(self.q, self.priors)).sum() + self.entropy
        return rows + gain(self.q, self.priors)

    def factors(self, x: Tensor) -> dict[str, Any]:
        """q of every site by name; the components' of the rows ``x`` (n, d), at its optimum given the others."""
        logs = mixture_rows(x.double() - self.centre, self.priors).logs(self.q, self.priors)
        name = "sticks" if self.priors.sticks else "proportions"
        mean = self.q.mean.mean + self.centre
        shared = {
            name: self.q.proportions,
            "precision": self.q.precision,
            "mean": GaussianFactor(mean, self.q.mean.covariance)
            if self.q.beta is None
            else CoupledFactor(mean, self.q.beta),
        }
        return {**shared, "component": CategoricalFactor(logs.log_softmax(-1))}
