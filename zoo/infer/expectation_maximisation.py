"""Expectation-maximisation in closed form, for any :class:`~zoo.base.Conjugate` model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.base.checks import check_rows, check_whole
from zoo.base.protocols import Conjugate
from zoo.base.random import seeded


def em(model: Any, x: Any, *, steps: int = 100_000, tol: float = 1e-9, seed: int = 0) -> Tensor:
    """Raise the likelihood of a conjugate model by EM, in place, until it converges.

    The work is done in float64 on a copy, and the model takes the result in its own dtype at the end: an error
    leaves it as it was. A model that nobody has touched since it was built starts at random on the data
    (``model.initialize``); one that has been fitted or set goes on from where it is. Where the model offers
    ``summarize``, a step costs nothing in the number of rows after one pass over the data, if none of it is missing.

    Args:
        model: a :class:`~zoo.base.Conjugate` module: PPCA, FactorAnalysis, GMM or one of your own.
        x: the data (n, d); NaN is an entry missing at random, for a model with ``missing = True``.
        steps: the most steps to take.
        tol: stop when the limit of the climb, extrapolated by Aitken's rule, is nearer than ``tol`` nats per row.
        seed: of the random start.

    Returns:
        the total log-likelihood after every step (steps,), in float64.

    Raises:
        TypeError: the model has no closed forms.
        ValueError: the data are not fit for the model; see :func:`zoo.base.check_rows` and ``model.check``.
        FloatingPointError: the likelihood fell, which EM never does, or a component collapsed.

    References:
        Dempster, Laird and Rubin (1977), JRSS B 39; for the stopping rule Boehning et al. (1994), Annals of the
        Institute of Statistical Mathematics 46.
    """
    if not (isinstance(model, Conjugate) and isinstance(model, nn.Module)):
        raise TypeError(
            f"{type(model).__name__} has no closed-form EM (it lacks posterior, log_marginal or em_step): use zoo.fit"
        )
    check_whole(steps, "steps")
    if not tol >= 0:
        raise ValueError(f"tol must not be negative, got {tol!r}: nats per row")
    x = check_rows(x, model, least=2)
    check = getattr(model, "check", None)
    if check is not None:
        check(x)
    work: Any = copy.deepcopy(model)
    if getattr(model, "fresh", False):
        with seeded(seed):
            work.initialize(x)
    work.double()
    data = work.summarize(x) if hasattr(work, "summarize") else x.double()
    climb = [work.em_step(data)]
    for _ in range(steps - 1):
        climb.append(work.em_step(data))
        _refuse_descent(climb)
        if _converged(climb, tol * len(x)):
            break
    climb.append(copy.deepcopy(work).em_step(data))  # what the last step reached
    _refuse_descent(climb)
    model.load_state_dict(work.state_dict())  # copies in place, in the model's own dtype
    return torch.stack(climb[1:]).detach().cpu()


def _refuse_descent(climb: list[Tensor]) -> None:
    before, after = climb[-2], climb[-1]
    rounding = 1e-11 * before.abs().clamp_min(1.0)
    if not after >= before - rounding:
        raise FloatingPointError(
            f"EM's likelihood fell from {before.item():.12g} to {after.item():.12g} at step {len(climb) - 1}: the "
            "model's em_step is not a maximisation, or its numbers have lost their precision"
        )


def _converged(climb: list[Tensor], tol: float) -> bool:
    """Aitken: with increments shrinking by the factor a, what is left is the last increment times a / (1 - a)."""
    if len(climb) < 3:
        return False
    first, second = float(climb[-2] - climb[-3]), float(climb[-1] - climb[-2])
    if second <= 1e-14 * abs(float(climb[-1])):
        return True
    return 0 < second < first and second * second / (first - second) < tol
