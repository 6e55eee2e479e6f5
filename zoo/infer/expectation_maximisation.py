"""Expectation-maximisation in closed form, for any :class:`~zoo.base.Conjugate` model."""

import copy

import torch
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import ArrayLike, check_rows, check_whole
from zoo.base.protocols import Checked, Conjugate, Placed, Summarized
from zoo.base.random import seeded
from zoo.base.threads import on_suited_threads


@on_suited_threads
def em(model: PyroCallable, x: ArrayLike, *, steps: int = 100_000, tol: float = 1e-9, seed: int = 0) -> Tensor:
    """Maximise the likelihood of a conjugate model by EM, in place, until convergence.

    The computation is done in float64 on a copy; its result is written to the model in the model's own dtype at the
    end, so that after an error the model is unchanged. A model whose parameters are unchanged since it was built starts
    at random on the data (``model.initialize``); one that has been fitted or modified continues from its current
    parameters. If the model has ``summarize`` and no entry is missing, the cost of a step does not depend on the number
    of rows.

    Args:
        model: a :class:`~zoo.base.Conjugate` module: PPCA, FactorAnalysis, GMM or one of your own.
        x: the data (n, d); NaN marks an entry missing at random, for a model with ``missing = True``.
        steps: the most steps.
        tol: stop when the limit of the log-likelihood, extrapolated by Aitken's rule, is within ``tol`` nats per row.
        seed: of the random start.

    Returns:
        the total log-likelihood after every step (steps,), in float64.

    Raises:
        TypeError: the model has no closed forms.
        ValueError: the data do not suit the model; see :func:`zoo.base.check_rows` and ``model.check``.
        FloatingPointError: the likelihood fell, which EM never does, or a component collapsed.

    References:
        Dempster, Laird and Rubin (1977), JRSS B 39; for the stopping rule Boehning et al. (1994), Annals of the
        Institute of Statistical Mathematics 46.
    """
    if not (isinstance(model, Conjugate) and isinstance(model, nn.Module)):
        raise TypeError(
            f"{name_of(model)} has no closed-form EM (it lacks posterior, log_marginal or em_step): use zoo.fit"
        )
    check_whole(steps, "steps")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol!r}: nats per row")
    x = check_rows(x, model, least=2)
    if isinstance(model, Checked):
        model.check(x)
    work = copy.deepcopy(model)
    if isinstance(work, Placed) and isinstance(model, Placed) and model.fresh:
        with seeded(seed):
            work.initialize(x)
    work.double()
    data = work.summarize(x) if isinstance(work, Summarized) else x.double()
    climb = [work.em_step(data)]
    for _ in range(steps - 1):
        climb.append(work.em_step(data))
        _refuse_descent(climb)
        if _converged(climb, tol * len(x)):
            break
    climb.append(copy.deepcopy(work).em_step(data))  # the log-likelihood after the last step
    _refuse_descent(climb)
    model.load_state_dict(work.state_dict())  # copies in place, in the model's own dtype
    return torch.stack(climb[1:]).detach().cpu()


def _refuse_descent(climb: list[Tensor]) -> None:
    before, after = climb[-2], climb[-1]
    rounding = 1e-11 * before.abs().clamp_min(1.0)
    if not after >= before - rounding:
        raise FloatingPointError(
            f"EM's likelihood fell from {before.item():.12g} to {after.item():.12g} at step {len(climb) - 1}: the "
            "model's em_step is not a maximisation, or it has lost numerical precision"
        )


def _converged(climb: list[Tensor], tol: float) -> bool:
    """Aitken's rule: with increments shrinking by a factor a, the remaining gain is the last one times a / (1 - a)."""
    if len(climb) < 3:
        return False
    first, second = float(climb[-2] - climb[-3]), float(climb[-1] - climb[-2])
    if second <= 1e-14 * abs(float(climb[-1])):
        return True
    return 0 < second < first and second * second / (first - second) < tol
