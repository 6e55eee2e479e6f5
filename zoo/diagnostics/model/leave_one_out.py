"""Leave-one-out predictive densities of models whose parameters have a posterior."""

import math
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import ConjugateGivenShared, Pair
from zoo.diagnostics.model.proposals import Proposal, moments_of_draws
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.psis import LEAST, psis_weights
from zoo.posterior.rowwise import log_mean

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

    def summary(self) -> dict[str, float]:
        """elpd with its standard error, the effective number of parameters, the number of rows with a high k-hat."""
        return {"elpd": self.elpd, "se": self.se, "p_loo": self.p_loo, "high": float(len(self.high))}

    def frame(self) -> pl.DataFrame:
        """A row per row of the data: its terms in nats, and k-hat."""
        return pl.DataFrame({name: getattr(self, name).tolist() for name in ("pointwise", "log_p", "khat")})

    def __repr__(self) -> str:
        n = len(self.pointwise)
        text = f"Loo of {n} rows, in nats: elpd {self.elpd:.3f} (se {self.se:.2g}), p_loo {self.p_loo:.2f}"
        if self.high:
            shown = ", ".join(map(str, self.high[:5])) + (", ..." if len(self.high) > 5 else "")
            text += f"; do not trust it: k-hat is above {self.limit:.2f} on {len(self.high)} rows (number {shown})"
        return text


def loo(run: Pair, x: Any, *, draws: int = 1000, inner: int = 100, correct: bool = True, seed: int = 0) -> Loo:
    r"""Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO).

    For a model with latent sites :math:`\theta` that all rows share, and a guide that has a posterior of them. From
    draws :math:`\theta_s \sim q` every row takes the weights

    .. math:: w_{is} \propto \frac{p(\theta_s)\, p(x \mid \theta_s)}{q(\theta_s)} \cdot
              \frac{1}{p(x_i \mid \theta_s)}, \qquad
              p(x_i \mid x_{-i}) \approx \sum_s w_{is}\, p(x_i \mid \theta_s),

    of which the first factor turns the guide's draws into the posterior's, and the second takes the row out. A row's
    own latent sites are integrated out of :math:`p(x_i \mid \theta)`: with them held, the question would be another one
    and the weights without bound. Where a model has such sites, that is done exactly by its ``log_marginal_given``, or
    by ``inner`` draws from the guide, whose noise adds up over the rows in the first factor; many rows then need many
    of them, and k-hat tells. A guide that draws all rows together (Pyro's joint autoguides) has no q(z | theta): its
    first factor is :math:`p(\theta_s, z_s, x) / q(\theta_s, z_s)`, and a row's own sites are integrated out by draws
    from a Gaussian with the moments that they have under the guide, twice as wide.

    **Not for models whose parameters are point estimates**, which are PPCA, FactorAnalysis, GMM and VAE: there every
    draw gives a row the same density, and nothing can be taken out. Ask them about rows that were held out:
    :func:`zoo.select_size`, or log p(x) of a test set (:func:`zoo.evaluate`) with :func:`zoo.export.elpd`, which
    ``az.compare`` takes. Parameters that are point estimates beside the shared sites stay as the whole data made them.

    Args:
        run: a trained pair: what :func:`zoo.fit` or :func:`zoo.load` returned, or ``zoo.Fit(model, guide)``.
        x: the rows (n, d) it was fitted to.
        draws: S, at least 30.
        inner: draws of the rows' own latent sites for every draw of the shared ones.
        correct: False takes the guide's draws for the posterior's, as ``az.loo`` does with those of
            :func:`zoo.to_arviz`.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        ValueError: the model has no site that all rows share, the guide no density of the sites (a point mass), or too
            few draws.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27; with approximate posteriors Magnusson, Andersen, Jonasson and Vehtari (2019),
        Bayesian leave-one-out cross-validation for large data, ICML.
    """
    if check_whole(draws, "draws") < LEAST:
        raise ValueError(f"draws must be at least {LEAST} to judge the importance weights, got {draws}")
    check_whole(inner, "inner", 2)
    x = check_rows(x, undecorated(run.model), least=2)
    with reading(run, seed):
        source = reader(run, x)
        if not source.layout.shared:
            raise _pointless(run)
        density, whole = _densities(source, draws, inner)
    return _leave_out(density, whole if correct else None)


def _pointless(run: Pair) -> ValueError:
    return ValueError(
        f"the parameters of {name_of(run.model)} are point estimates: it has no latent site that all rows share, every "
        "draw gives a row the same density, and leave-one-out by importance sampling would restate the density in the "
        "sample. Use log p(x) of held-out rows: zoo.select_size(..., folds=5), or zoo.evaluate on rows set apart and "
        "zoo.export.elpd"
    )


def _densities(source: Reader, draws: int, inner: int) -> tuple[Tensor, Tensor]:
    """log p(x_i | theta_s) with the rows' own sites integrated out (draws, n), and the log weights of theta (draws,).

    Both in float64 on the CPU.
    """
    layout = source.layout
    names = {latent.name for latent in layout.shared}
    width = source.x.shape[1] + sum(latent.shape.numel() for latent in layout.local)
    held: dict[str, Tensor] = {}
    parts: list[Tensor] = []
    whole = torch.zeros(draws, dtype=torch.float64)
    joint = None
    for _, arguments in source.chunks(BUDGET // ((inner if layout.local else draws) * width)):
        drawn = source.draw(arguments, draws, held)
        log_p = source.score(arguments, drawn.values, draws)
        if not parts:
            joint = drawn.joint
            held = {name: drawn.values[name] for name in names}
            whole = whole + torch.as_tensor(log_p.of_shared - drawn.log_q.of_shared).double().cpu()
        terms = (log_p.by_row - drawn.log_q.by_row).double().cpu().expand(draws, len(arguments[0]))
        proposal = None
        if joint is not None and layout.local:
            proposal = moments_of_draws(layout.local, drawn.values)
        parts.append(_given(source, arguments, held, inner, proposal) if layout.local else terms)
        whole = whole + (parts[-1] if joint is None else terms).sum(1)
    return torch.cat(parts, 1), whole


def _given(
    source: Reader, arguments: Arguments, held: dict[str, Tensor], inner: int, proposal: Proposal | None
) -> Tensor:
    """log p(x | theta_s) of some rows (draws, b): exact, or by draws from the guide or the proposal."""
    model, x = undecorated(source.pair.model), arguments[0]
    if isinstance(model, ConjugateGivenShared):
        return model.log_marginal_given(x, held).double().cpu()
    width = x.numel() * max(1, sum(latent.shape.numel() for latent in source.layout.local))
    draws = len(next(iter(held.values())))
    parts = []
    for chosen in torch.arange(draws).split(max(1, BUDGET // (inner * width))):
        count = len(chosen)
        repeated = {name: value[chosen].repeat_interleave(inner, 0) for name, value in held.items()}
        if proposal is None:
            drawn = source.draw(arguments, count * inner, repeated)
            values, log_q = drawn.values, drawn.log_q.by_row
        else:
            own, log_q = proposal.draw(count * inner)
            values = {**repeated, **own}
        weights = (source.score(arguments, values).by_row - log_q).double()
        parts.append(log_mean(weights.unflatten(0, (count, inner)).movedim(1, 0))[0].cpu())
    return torch.cat(parts)


def _leave_out(density: Tensor, weights_of_all: Tensor | None) -> Loo:
    """From log p(x_i | theta_s) (draws, n) and the log weights of theta (draws,), None for draws of the posterior."""
    draws = len(density)
    whole = density.new_zeros(draws) if weights_of_all is None else weights_of_all
    weights, khat = psis_weights(whole.unsqueeze(1) - density)
    seen, _ = psis_weights(whole.unsqueeze(1))
    return Loo(
        pointwise=(weights + density).logsumexp(0),
        khat=khat,
        log_p=(seen + density).logsumexp(0),
        limit=min(0.7, 1 - 1 / math.log10(draws)),
        draws=draws,
        corrected=weights_of_all is not None,
    )
