"""The density of removed entries given those that were left."""

import copy

import torch
from torch import Tensor, nn

from guides.full_rank import FullRank
from zoo.base.callables import name_of, undecorated
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.protocols import ClosedLikelihood, ConjugateGivenShared
from zoo.base.tables import row_names
from zoo.diagnostics.model.predictive_density import PredictiveDensity, density_given, shared_draws
from zoo.infer.fitting import fit
from zoo.infer.run import Fit, run_of
from zoo.posterior.engine import reader, reading
from zoo.posterior.evaluation import evaluate
from zoo.posterior.rowwise import log_mean


def conditional_density(
    run: Trained, x: ArrayLike, complete: ArrayLike, *, draws: int = 1000, steps: int = 1000, seed: int = 0
) -> PredictiveDensity:
    r"""The log density of entries that were removed from rows, given the entries that were left.

    .. math:: \log p(x_m \mid x_o) = \log p(x_m, x_o) - \log p(x_o)

    - In closed form for a model with ``log_marginal`` (PPCA, FactorAnalysis, GMM).
    - With sites :math:`\theta` that all rows share, averaged over q,
      :math:`\log \frac 1S \sum_s p(x_m \mid x_o, \theta_s)`, for a model with ``log_marginal_given``.
    - Otherwise (a VAE) each of the two terms is the importance-weighted bound of ``draws`` draws from a Gaussian with
      a full covariance, which is fitted to every row with the model held. The guide of the run has no part in it: an
      inference network that was trained on rows with gaps may be far from the posterior of rows without. Either term
      is too low in expectation, the first one more, as more entries make the posterior narrower.

    Args:
        run: a trained pair, of a model that accepts missing entries.
        x: the rows (n, d) with NaN for removed entries.
        complete: the same rows with these entries. NaN marks entries that are unknown in both.
        draws: of the shared sites, or of the local ones for every row; at least 30.
        steps: of the fit of the Gaussians.
        seed: of the draws and the fit; the caller's random stream is left alone.

    Returns:
        the log density of the removed entries of every row (n,), in nats; 0 where none was removed.

    Raises:
        ValueError: ``complete`` has another shape than ``x``, lacks an entry of it or differs from it in one; or too
            few draws or steps.
        TypeError: the model has shared sites, and no method ``log_marginal_given``.
        CannotServe: the model has discrete sites and no closed form.
    """
    run = run_of(pair_of(run))
    check_whole(draws, "draws", 30)
    check_whole(steps, "steps")
    index, x, complete = row_names(x), rows_of(run, x), rows_of(run, complete)
    _check_same(x, complete)
    model = undecorated(run.model)
    if isinstance(model, ClosedLikelihood):
        with torch.no_grad():
            found = (model.log_marginal(complete) - model.log_marginal(x)).double()
        return PredictiveDensity(found, torch.zeros_like(found), 0, index)
    with reading(run, seed):
        part, whole = reader(run, x), reader(run, complete)
        if part.layout.shared:
            if not isinstance(model, ConjugateGivenShared):
                raise TypeError(
                    f"{name_of(run.model)} has sites that all rows share and no method log_marginal_given, which "
                    "integrates the others out: add one"
                )
            held = shared_draws(part, draws)
            given = density_given(whole, held, draws) - density_given(part, held, draws)
            return PredictiveDensity(*log_mean(given), draws, index)
    above, below = (_estimate(run, rows, draws, steps, seed) for rows in (complete, x))
    removed = (x.isnan() & ~complete.isnan()).any(1)
    found = torch.where(removed, above[0] - below[0], 0.0)
    se = torch.where(removed, (above[1].square() + below[1].square()).sqrt(), 0.0)
    return PredictiveDensity(found, se, draws, index)


def _check_same(x: Tensor, complete: Tensor) -> None:
    """Refuse complete rows that are not those of ``x``.

    Raises:
        ValueError: another shape, or an entry that differs or is missing, which the message names.
    """
    if x.shape != complete.shape:
        raise ValueError(
            f"complete has shape {tuple(complete.shape)} and x {tuple(x.shape)}: pass the rows of x before entries "
            "were removed"
        )
    wrong = (~x.isnan() & (x != complete)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"row {row}, column {column} is {x[row, column]:g} in x and {complete[row, column]:g} in complete: only "
            "removed entries (NaN in x) may differ"
        )


def _estimate(run: Fit, x: Tensor, draws: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """log p(x) of the observed entries of every row (n,), by importance sampling, and its standard error (n,)."""
    model = copy.deepcopy(run.model)
    inner = undecorated(model)
    if isinstance(inner, nn.Module):
        inner.requires_grad_(False)
    guide = FullRank(model, x)
    local = fit(model, guide, x, steps=steps, batch_size=len(x), store=run.store, seed=seed, progress=False, patience=0)
    found = evaluate(local, x, draws=draws, seed=seed)
    return found.log_marginal.double(), found.log_marginal_se.double()
