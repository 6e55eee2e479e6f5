"""Leave-one-out cross-validation of models with a posterior over parameters."""

import math
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import ConjugateGivenShared, Pair
from zoo.base.tables import index_column, row_names
from zoo.base.threads import on_suited_threads
from zoo.diagnostics.model.proposals import Proposal, moments_of_draws
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.evaluation import check_draws
from zoo.posterior.psis import psis_weights
from zoo.posterior.rowwise import log_mean


@dataclass(frozen=True, eq=False)
class Loo:
    r"""Leave-one-out expected log predictive density in nats: the result of :func:`loo`.

    Attributes:
        pointwise: :math:`\log p(x_i \mid x_{-i})` of every row (n,).
        khat: k-hat of every row's weights (n,); above ``limit`` the row's value is unreliable, because the posterior
            without the row is too far from the guide.
        log_p: the in-sample :math:`\log p(x_i \mid x)` of every row (n,).
        limit: the largest reliable k-hat for S draws.
        draws: the number of draws S.
        corrected: whether the weights also correct the guide towards the posterior.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    pointwise: Tensor
    khat: Tensor
    log_p: Tensor
    limit: float
    draws: int
    corrected: bool
    index: np.ndarray | None = None

    @property
    def elpd(self) -> float:
        """The sum over the rows in nats; larger is better."""
        return float(self.pointwise.sum())

    @property
    def se(self) -> float:
        """The standard error of the sum over the sampling of rows."""
        return float((len(self.pointwise) * self.pointwise.var(correction=0)).sqrt())

    @property
    def p_loo(self) -> float:
        """The effective number of parameters: in-sample minus leave-one-out log density."""
        return float((self.log_p - self.pointwise).sum())

    @property
    def high(self) -> list[int]:
        """The indices of the rows with k-hat above the limit."""
        return (self.khat > self.limit).nonzero().flatten().tolist()

    def compare(self, other: "Loo") -> tuple[float, float]:
        """This elpd minus another one on the same rows, with the standard error of the paired difference.

        Raises:
            ValueError: the numbers of rows differ.
        """
        if self.pointwise.shape != other.pointwise.shape:
            raise ValueError(f"{len(self.pointwise)} and {len(other.pointwise)} rows: compare models on the same rows")
        difference = self.pointwise - other.pointwise
        return float(difference.sum()), float((len(difference) * difference.var(correction=0)).sqrt())

    def summary(self) -> dict[str, float]:
        """elpd with its standard error, the effective number of parameters, and the number of rows with high k-hat."""
        return {"elpd": self.elpd, "se": self.se, "p_loo": self.p_loo, "high": float(len(self.high))}

    def frame(self) -> pl.DataFrame:
        """One row per row of x: its terms in nats, and k-hat."""
        values = {name: getattr(self, name).numpy() for name in ("pointwise", "log_p", "khat")}
        return pl.DataFrame(index_column(self.index) | values)

    def __repr__(self) -> str:
        n = len(self.pointwise)
        text = f"Loo of {n} rows, in nats: elpd {self.elpd:.3f} (se {self.se:.2g}), p_loo {self.p_loo:.2f}"
        if self.high:
            shown = ", ".join(map(str, self.high[:5])) + (", ..." if len(self.high) > 5 else "")
            text += f"; unreliable: k-hat is above {self.limit:.2f} for {len(self.high)} rows ({shown})"
        return text


@on_suited_threads
def loo(run: Trained, x: ArrayLike, *, draws: int = 1000, inner: int = 100, correct: bool = True, seed: int = 0) -> Loo:
    r"""Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO).

    For a model with shared latent sites :math:`\theta`. Draws :math:`\theta_s \sim q` have the weights of row i

    .. math:: w_{is} \propto \frac{p(\theta_s)\, p(x \mid \theta_s)}{q(\theta_s)} \cdot
              \frac{1}{p(x_i \mid \theta_s)}, \qquad
              p(x_i \mid x_{-i}) \approx \sum_s w_{is}\, p(x_i \mid \theta_s),

    The first factor corrects the guide towards the posterior, the second removes the row. A row's own latent sites are
    integrated out of :math:`p(x_i \mid \theta)`, because weights given these sites would be unbounded: exactly if the
    model has ``log_marginal_given``, otherwise by ``inner`` draws from the guide. The Monte Carlo noise of these draws
    accumulates over rows in the first factor and raises k-hat, so that many rows need many draws. A guide that draws
    all rows jointly (Pyro's joint autoguides) has no q(z | theta): its first factor is
    :math:`p(\theta_s, z_s, x) / q(\theta_s, z_s)`, and a row's own sites are integrated out by draws from a Gaussian
    with their mean and twice their standard deviation under the guide.

    **Not for models with point estimates of all parameters** (PPCA, FactorAnalysis, GMM, VAE), where every draw gives a
    row the same density. Evaluate these on held-out rows: by :func:`zoo.select_size`, or by log p(x) of a test set
    (:func:`zoo.evaluate`) with :func:`zoo.export.elpd` for ``az.compare``. Parameters that are point estimates beside
    the shared sites keep the values fitted to all rows.

    Args:
        run: a trained pair.
        x: the rows (n, d) that it was fitted to.
        draws: the number of draws S, at least 30.
        inner: draws of the rows' own latent sites for every draw of the shared ones.
        correct: False takes the draws from the guide as draws from the posterior, as ``az.loo`` does with the export
            of :func:`zoo.to_arviz`.
        seed: of the draws.

    Raises:
        ValueError: the model has no shared site, the guide has no density (a point mass), or too few draws.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and
        WAIC, Statistics and Computing 27; with approximate posteriors Magnusson, Andersen, Jonasson and Vehtari (2019),
        Bayesian leave-one-out cross-validation for large data, ICML.
    """
    run = pair_of(run)
    check_draws(draws)
    check_whole(inner, "inner", 2)
    index, x = row_names(x), rows_of(run, x, least=2)
    with reading(run, seed):
        source = reader(run, x)
        if not source.layout.shared:
            raise _point_estimates(run)
        density, whole = _densities(source, draws, inner)
    return replace(_leave_out(density, whole if correct else None), index=index)


def _point_estimates(run: Pair) -> ValueError:
    """The error for a model without shared sites."""
    return ValueError(
        f"the parameters of {name_of(run.model)} are point estimates (it has no shared latent site), so leave-one-out "
        "by importance sampling would return the in-sample density. Use log p(x) of held-out rows: "
        "zoo.select_size(..., folds=5), or zoo.evaluate on a test set and zoo.export.elpd"
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
    for _, arguments in source.chunks(rows_at_once((inner if layout.local else draws) * width)):
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
    """log p(x | theta_s) of a chunk of rows (draws, b): exact, or by draws from the guide or the proposal."""
    model, x = undecorated(source.pair.model), arguments[0]
    if isinstance(model, ConjugateGivenShared):
        return model.log_marginal_given(x, held).double().cpu()
    width = x.numel() * max(1, sum(latent.shape.numel() for latent in source.layout.local))
    draws = len(next(iter(held.values())))
    parts = []
    for chosen in torch.arange(draws).split(rows_at_once(inner * width)):
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
    """From log p(x_i | theta_s) (draws, n) and log weights of theta (draws,); None for draws from the posterior."""
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
