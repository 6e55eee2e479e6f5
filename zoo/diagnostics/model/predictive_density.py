"""The density of new rows under the posterior of what all rows share."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from zoo.base.callables import name_of, undecorated, unwrapped
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.memory import rows_at_once
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import ClosedPredictive, ConjugateGivenShared, HoldsRows
from zoo.base.tables import index_column, row_names
from zoo.diagnostics.guide.relevance import conjugate_factors
from zoo.posterior.engine import Arguments, Reader, reader, reading
from zoo.posterior.rowwise import log_mean


@dataclass(frozen=True, eq=False)
class PredictiveDensity:
    r"""The predictive density of rows, :math:`\log \int p(x_n \mid \theta)\, q(\theta)\, d\theta`, in nats.

    From :func:`conditional_density` that of the removed entries of rows given the others.

    Attributes:
        log_density: of every row (n,).
        se: its Monte Carlo standard error (n,), 0 in closed form.
        draws: the number of draws, of theta or for every row; 0 in closed form.
        index: the names of the rows, numbers or text; None where they are merely counted.
    """

    log_density: Tensor
    se: Tensor
    draws: int
    index: np.ndarray | None = None

    def summary(self) -> dict[str, float]:
        """The mean over the rows in nats, the root mean square of the rows' Monte Carlo errors, and their number."""
        error = float(self.se.double().square().mean().sqrt())
        return {"log_density": float(self.log_density.mean()), "se": error, "rows": float(len(self.log_density))}

    def frame(self) -> pl.DataFrame:
        """A row per row of the data: log density and standard error, in nats."""
        numbers = {"log_density": self.log_density, "se": self.se}
        values = {name: value.detach().cpu().double().numpy() for name, value in numbers.items()}
        return pl.DataFrame(index_column(self.index) | values)

    def __repr__(self) -> str:
        found = self.summary()
        how = f"{self.draws} draws, se of a row {found['se']:.1g}" if self.draws else "closed form"
        return f"PredictiveDensity of {found['rows']:.0f} rows: mean {found['log_density']:.4f} nats per row ({how})"


def predictive_density(run: Trained, x: ArrayLike, *, draws: int = 1000, seed: int = 0) -> PredictiveDensity:
    r"""The density of new rows, averaged over q of what all rows share.

    .. math:: \log p(x_n \mid \text{data}) \approx \log \int p(x_n \mid \theta)\, q(\theta)\, d\theta \approx
              \log \frac 1S \sum_s p(x_n \mid \theta_s), \qquad \theta_s \sim q

    with the latent variables of the row integrated out exactly. For :class:`zoo.BayesianGMM` with coupled means and
    conjugate factors the integral is a mixture of Student's t, in closed form. Rows with missing entries have the
    density of their observed ones.

    Use rows that were not used in training: on training rows the density measures the fit, not prediction.

    Args:
        run: a trained pair: what :func:`zoo.cavi`, :func:`zoo.fit` or :func:`zoo.load` returned.
        x: new rows (m, d), of any number, also for a guide with parameters for every row of the training data.
        draws: draws S of theta from the guide.
        seed: of the draws; the caller's random stream is left alone.

    Raises:
        TypeError: the model has no sites that all rows share, or has sites per row that it cannot integrate out.
        ValueError: ``draws`` is no whole number of at least 2, or the rows do not fit the model.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, 10.2.3.
    """
    run = pair_of(run)
    check_whole(draws, "draws", 2)
    model = undecorated(run.model)
    index, x = row_names(x), rows_of(run, x)
    with reading(run, seed):
        source = reader(run, x)
        if not source.layout.shared:
            raise TypeError(
                f"{name_of(run.model)} has no latent site that all rows share: its density of new rows is "
                "model.log_marginal(x), or what zoo.evaluate(run, x) estimates"
            )
        factors = conjugate_factors(run)
        if factors is not None and isinstance(model, ClosedPredictive):
            closed = model.log_predictive(x, factors)
            if closed is not None:
                return PredictiveDensity(closed, torch.zeros_like(closed), 0, index)
        if source.layout.local and not isinstance(model, ConjugateGivenShared):
            raise TypeError(
                f"{name_of(run.model)} has sites per row ({', '.join(own.name for own in source.layout.local)}) and no "
                "method log_marginal_given that integrates them out: add one, or estimate log p by zoo.evaluate"
            )
        given = density_given(source, shared_draws(source, draws), draws)
        return PredictiveDensity(*log_mean(given), draws, index)


def shared_draws(source: Reader, draws: int) -> dict[str, Tensor]:
    """Draws of the shared sites from the guide (draws, ...) by name, also for rows that the guide was not fitted to."""
    guide, x = unwrapped(source.pair.guide), source.x
    arguments: Arguments = (x,)
    if not source.joint_only:
        size = guide.count if isinstance(guide, HoldsRows) else len(x)
        arguments = (x[:1], torch.zeros(1, dtype=torch.long, device=x.device), size)
    found = source.draw(arguments, draws).values
    return {latent.name: found[latent.name] for latent in source.layout.shared}


def density_given(source: Reader, held: dict[str, Tensor], draws: int) -> Tensor:
    """log p(x | theta) of the observed entries of rows (draws, n)."""
    model, parts = undecorated(source.pair.model), []
    for _, arguments in source.chunks(rows_at_once(draws * source.x.shape[1])):
        if isinstance(model, ConjugateGivenShared):
            parts.append(model.log_marginal_given(arguments[0], held))
        else:
            parts.append(source.score(arguments, held, draws).by_row)
    return torch.cat(parts, 1).double()
