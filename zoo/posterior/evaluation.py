"""How good is the bound: ELBO, log marginal likelihood and their gap, row by row."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import Conjugate
from zoo.infer.fitting import Fit
from zoo.posterior.psis import psis_khat
from zoo.posterior.rowwise import chunks, densities, gaussian, log_mean, reading

LEAST_DRAWS = 25  # below, the tail of the weights cannot be fitted


@dataclass(frozen=True, eq=False)
class Evaluation:
    r"""The identity :math:`\log p(x) = \mathrm{ELBO}(q) + \mathrm{KL}(q \| p(z \mid x))`, in nats, for every row.

    Attributes:
        elbo: the evidence lower bound (n,).
        elbo_se: its Monte Carlo standard error (n,); 0 where it is closed-form.
        log_marginal: log p(x) (n,), exact or by importance sampling.
        log_marginal_se: its Monte Carlo standard error (n,); 0 where it is exact.
        estimator: ``"exact"``, or ``"IWAE-K"``: the importance-weighted bound of K draws, which is below log p(x) in
            expectation, so that the gap is too.
        khat: the Pareto shape of the importance weights (n,); above 0.7 the guide is too far from the posterior
            for importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25).
        draws: the number of draws per row.
    """

    elbo: Tensor
    elbo_se: Tensor
    log_marginal: Tensor
    log_marginal_se: Tensor
    estimator: str
    khat: Tensor
    draws: int

    @property
    def gap(self) -> Tensor:
        """KL(q || p(z | x)) of every row (n,), or a lower bound on it where log p(x) is estimated."""
        return self.log_marginal - self.elbo

    @property
    def gap_se(self) -> Tensor:
        """The Monte Carlo standard error of the gap (n,)."""
        return (self.elbo_se.square() + self.log_marginal_se.square()).sqrt()

    def summary(self) -> dict[str, float]:
        """Means per row with the standard errors that the draws cause, and the share of rows with k-hat above 0.7."""
        n = len(self.elbo)

        def error(se: Tensor) -> float:
            return float(se.square().sum().sqrt() / n)

        return {
            "elbo": float(self.elbo.mean()),
            "elbo_se": error(self.elbo_se),
            "log_marginal": float(self.log_marginal.mean()),
            "log_marginal_se": error(self.log_marginal_se),
            "gap": float(self.gap.mean()),
            "gap_se": error(self.gap_se),
            "khat_above_0.7": float((self.khat > 0.7).double().mean()),
        }

    def __repr__(self) -> str:
        s = self.summary()
        return (
            f"Evaluation of {len(self.elbo)} rows, nats per row: ELBO {s['elbo']:.4f} (se {s['elbo_se']:.1g}), "
            f"log marginal {s['log_marginal']:.4f} ({self.estimator}), gap {s['gap']:.4f} (se {s['gap_se']:.1g}), "
            f"k-hat > 0.7 on {100 * s['khat_above_0.7']:.0f}% of the rows"
        )


def evaluate(run: Fit, x: Any, *, draws: int = 500, seed: int = 0) -> Evaluation:
    """Bound, log marginal likelihood and gap of a run on the rows ``x``.

    Closed forms are used where model and guide have them; what is left is estimated from ``draws`` draws of the guide
    per row, in chunks of rows, so that memory stays bounded.

    Args:
        run: what :func:`zoo.fit` or :func:`zoo.load` returned.
        x: rows (n, d); a guide with parameters for every row takes those it was fitted to, in their order.
        draws: draws per row, K of IWAE-K; at least 25.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: too few draws, rows that are not fit for model or guide, or a model with latent sites that all
            rows share, whose bound does not split into rows.
    """
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    x = check_rows(x, run.model)
    with torch.no_grad():
        weights = log_weights(run, x, draws, seed=seed)  # (draws, n)
        zero = weights.new_zeros(len(x))
        exact = isinstance(run.model, Conjugate)
        if exact:
            log_marginal, log_marginal_se = run.model.log_marginal(x), zero
        else:
            log_marginal, log_marginal_se = log_mean(weights)
        q = None
        if hasattr(run.model, "elbo") and hasattr(run.guide, "posterior"):
            with run.scope():
                q = run.guide.posterior(x)
        if q is not None and (gaussian(q) is not None or isinstance(q, Categorical)):
            elbo, elbo_se = run.model.elbo(x, q), zero
        else:  # no closed form for such a q
            elbo, elbo_se = weights.mean(0), weights.std(0) / draws**0.5
    estimator = "exact" if exact else f"IWAE-{draws}"
    return Evaluation(elbo, elbo_se, log_marginal, log_marginal_se, estimator, psis_khat(weights), draws)


def log_weights(run: Fit, x: Tensor, draws: int, *, seed: int = 0, budget: int = 2**24) -> Tensor:
    r""":math:`\log p(x_n, z) - \log q(z \mid x_n)` for draws of z from the guide, shape (draws, n).

    Args:
        run: a fit.
        x: rows (n, d).
        draws: draws per row.
        seed: of the draws.
        budget: numbers per array and chunk; bounds the memory.

    Raises:
        ValueError: a latent site is shared by all rows.
    """
    d = x.shape[1]
    parts = []
    with reading(run, seed):
        for _, arguments in chunks(run, x, budget // (draws * d)):
            model, guide = densities(run, arguments, draws)
            parts.append(sum(model.values()) - guide)
    return torch.cat(parts, 1)
