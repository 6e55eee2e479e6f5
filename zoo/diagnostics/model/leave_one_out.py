"""Leave-one-out predictive densities of models whose parameters have a posterior."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent, latents
from zoo.infer.fitting import Fit
from zoo.posterior.draws import from_guide, log_joint, no_density
from zoo.posterior.engine import reader, reading
from zoo.posterior.evaluation import LEAST_DRAWS
from zoo.posterior.psis import psis_weights

BUDGET = 2**22  # numbers per array and chunk


@dataclass(frozen=True, eq=False)
class Loo:
    r"""Expected log predictive density by leaving rows out, in nats: what :func:`loo` returns.

    Attributes:
        pointwise: :math:`\log p(x_i \mid x_{-i})` of every row (n,).
        khat: the Pareto shape of every row's weights (n,); where it is above ``limit``, the row's value cannot be
            trusted: the posterior without the row is too far from the guide.
        log_p: :math:`\log p(x_i \mid x)` of every row (n,), which has seen the row.
        limit: the least of 0.7 and :math:`1 - 1 / \log_{10} S` for S draws.
        draws: the number of draws S.
        corrected: whether the weights also turn the guide into the posterior.
    """

    pointwise: Tensor
    khat: Tensor
    log_p: Tensor
    limit: float
    draws: int
    corrected: bool

    @property
    def elpd(self) -> float:
        """The sum over the rows, in nats: more is better."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """The standard error of the sum for rows like these."""
        return float((len(self.pointwise) * self.pointwise.var(correction=0)).sqrt())

    @property
    def p_loo(self) -> float:
        """The effective number of parameters: what log p of the rows loses where it has not seen them."""
        return float((self.log_p - self.pointwise).sum())

    @property
    def high(self) -> list[int]:
        """The numbers of the rows whose k-hat is above the limit, counted from 0."""
        return (self.khat > self.limit).nonzero().flatten().tolist()

    def compare(self, other: "Loo") -> tuple[float, float]:
        """By how much this model's elpd is above another's on the same rows, with the standard error of the pairs.

        Raises:
            ValueError: other rows.
        """
        if self.pointwise.shape != other.pointwise.shape:
            raise ValueError(f"the models are compared on {len(self.pointwise)} and {len(other.pointwise)} rows")
        difference = self.pointwise - other.pointwise
        return float(difference.sum()), float((len(difference) * difference.var(correction=0)).sqrt())

    def __repr__(self) -> str:
        n = len(self.pointwise)
        text = f"Loo of {n} rows, in nats: elpd {self.elpd:.3f} (se {self.se:.2g}), p_loo {self.p_loo:.2f}"
        if self.high:
            text += f"; do not trust it: k-hat is above {self.limit:.2f} on {len(self.high)} rows ({self.high[:5]} ...)"
        return text


def loo(run: Fit, x: Any, *, draws: int = 1000, inner: int = 100, correct: bool = True, seed: int = 0) -> Loo:
    r"""Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO).

    For a model with latent sites :math:`\theta` that all rows share, and a guide that has a posterior of them. From
    draws :math:`\theta_s \sim q` every row takes the weights

    .. math:: w_{is} \propto \frac{p(\theta_s)\, p(x \mid \theta_s)}{q(\theta_s)} \cdot
              \frac{1}{p(x_i \mid \theta_s)}, \qquad
              p(x_i \mid x_{-i}) \approx \sum_s w_{is}\, p(x_i \mid \theta_s),

    of which the first factor turns the guide's draws into the posterior's, and the second takes the row out. A row's
    own latent sites are integrated out of :math:`p(x_i \mid \theta)`: with them held, the question would be another one
    and the weights without bound. Where a model has such sites, that is done by ``inner`` draws from the guide, whose
    noise adds up over the rows in the first factor; many rows then need many of them, and k-hat tells.

    **Not for models whose parameters are point estimates**, which are PPCA, FactorAnalysis, GMM and VAE: there every
    draw gives a row the same density, and nothing can be taken out. Ask them about rows that were held out:
    :func:`zoo.select_size`, or log p(x) of a test set (:func:`zoo.evaluate`) with :func:`zoo.export.elpd`, which
    ``az.compare`` takes. Parameters that are point estimates beside the shared sites stay as the whole data made them.

    Args:
        run: from :func:`zoo.fit`.
        x: the rows (n, d) it was fitted to.
        draws: S, at least 25.
        inner: draws of the rows' own latent sites for every draw of the shared ones.
        correct: False takes the guide's draws for the posterior's, as ``az.loo`` does with those of
            :func:`zoo.to_arviz`.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: the model has no site that all rows share, the guide no density of the sites, or too few draws.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27; with approximate posteriors Magnusson, Andersen, Jonasson and Vehtari (2019),
        Bayesian leave-one-out cross-validation for large data, ICML.
    """
    if check_whole(draws, "draws") < LEAST_DRAWS:
        raise ValueError(f"draws must be at least {LEAST_DRAWS} to judge the importance weights, got {draws}")
    check_whole(inner, "inner", 2)
    x = check_rows(x, run.model, least=2)
    with reading(run, seed):
        found = latents(run.model, x)
        shared = [site for site in found if not site.local]
        if not shared:
            raise _pointless(run)
        local = [site for site in found if site.local]
        if reason := no_density(run, (x,), local):
            raise ValueError(f"{reason}: loo needs one to integrate it out; take one of zoo's guides or AutoNormal")
        held, ratio = _shared_draws(run, x, shared, draws)
        density = _log_density(run, x, found, held, draws, inner)
    return _leave_out(density, ratio if correct else None)


def _pointless(run: Fit) -> ValueError:
    name = type(run.model).__name__
    return ValueError(
        f"the parameters of {name} are point estimates: it has no latent site that all rows share, every draw gives a "
        "row the same density, and leave-one-out by importance sampling would restate the density in the sample. Use "
        "log p(x) of held-out rows: zoo.select_size(..., folds=5), or zoo.evaluate on rows set apart and "
        "zoo.export.elpd"
    )


def _shared_draws(run: Fit, x: Tensor, shared: Sequence[Latent], draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the shared sites by name (draws, ...), and log p(theta) - log q(theta) of each (draws,), in float64."""
    values: dict[str, list[Tensor]] = {site.name: [] for site in shared}
    ratios = []
    for _ in range(draws):
        guide = poutine.trace(run.guide).get_trace(x)
        model = poutine.trace(poutine.replay(run.model, trace=guide)).get_trace(x)
        for site in shared:
            if site.name not in guide.nodes:
                raise ValueError(f"the guide has no site '{site.name}': loo needs draws of it and their density")
            values[site.name].append(guide.nodes[site.name]["value"])
        ratios.append(_outside(model, len(x)) - _outside(guide, len(x)))
    held = {name: torch.stack(each) for name, each in values.items()}
    for name, value in held.items():
        if (value == value[0]).all():
            raise ValueError(
                f"the guide {type(run.guide).__name__} puts a point mass on '{name}': that is a point estimate, of "
                "which loo says nothing. Take a guide with a spread, such as MeanField or AutoNormal"
            )
    return held, torch.stack(ratios)


def _outside(trace: Any, n: int) -> Tensor:
    """The log density of all that stands outside the plate of the rows, a scalar in float64."""
    trace.compute_log_prob()
    total = torch.zeros((), dtype=torch.float64)
    for site in trace.nodes.values():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if not any(frame.vectorized and frame.dim == -1 and frame.size == n for frame in site["cond_indep_stack"]):
            total = total + site["log_prob_sum"].double().cpu()
    return total


def _log_density(
    run: Fit, x: Tensor, found: Sequence[Latent], held: dict[str, Tensor], draws: int, inner: int
) -> Tensor:
    """log p(x_i | theta_s) with the rows' own sites integrated out, (draws, n), in float64 on the CPU."""
    local = [site for site in found if site.local]
    width = x.shape[1] + sum(site.shape.numel() for site in local)
    parts = []
    for _, arguments in reader(run, x).chunks(BUDGET // ((inner if local else draws) * width)):
        if not local:
            parts.append(log_joint(run, arguments, found, draws, held).double().cpu())
            continue
        each = []
        for s in range(draws):
            one = {name: value[s].expand(inner, *value[s].shape) for name, value in held.items()}
            drawn = from_guide(run, arguments, found, inner, one)
            weights = log_joint(run, arguments, found, inner, drawn.latent) - drawn.log_q
            each.append(weights.double().logsumexp(0).cpu() - math.log(inner))
        parts.append(torch.stack(each))
    return torch.cat(parts, 1)


def _leave_out(density: Tensor, ratio: Tensor | None) -> Loo:
    """From log p(x_i | theta_s) (draws, n) and log p(theta_s) - log q(theta_s) (draws,); None: of the posterior."""
    draws = len(density)
    whole = density.new_zeros(draws) if ratio is None else ratio + density.sum(1)
    weights, khat = psis_weights(whole.unsqueeze(1) - density)
    seen, _ = psis_weights(whole.unsqueeze(1))
    return Loo(
        pointwise=(weights + density).logsumexp(0),
        khat=khat,
        log_p=(seen + density).logsumexp(0),
        limit=min(0.7, 1 - 1 / math.log10(draws)),
        draws=draws,
        corrected=ratio is not None,
    )
