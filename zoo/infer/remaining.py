"""What the closed forms of a conjugate model say of a noisy fit that has settled: whether EM climbs on from there."""

import copy
from dataclasses import replace

import torch
from torch import nn

from zoo.base.callables import undecorated
from zoo.base.protocols import Conjugate
from zoo.base.weights import weighted_rows
from zoo.infer.convergence import RESOLUTION
from zoo.infer.expectation_maximisation import em
from zoo.infer.optim.lbfgs import LBFGS
from zoo.infer.planning import Plan
from zoo.infer.run import Fit

STEPS = 20  # of EM; complete rows of a linear model are at their maximum after one
FAILURES = (FloatingPointError, ValueError, torch.linalg.LinAlgError)


def confirmed(run: Fit, decided: Plan) -> Fit:
    """The run, not converged if it was fitted with noise and its model's likelihood has a way to go.

    A noisy curve that has settled may still rise too slowly to be seen, as where a noise variance goes to its floor. If
    the model is conjugate and all of it was trained, EM goes on from a copy, and must gain no more than a noisy curve
    resolves, or than the guide's own gap: under a guide that is not the posterior the bound has its maximum elsewhere.
    """
    model, training = undecorated(run.model), run.training
    if training is None or not training.converged or isinstance(decided.optim, LBFGS) or decided.transform is not None:
        return run
    if not (isinstance(model, Conjugate) and isinstance(model, nn.Module)):
        return run
    if not all(p.requires_grad for p in model.parameters()):
        return run
    try:
        with torch.no_grad():
            rows, own = weighted_rows(decided.x, decided.weights)
            values = model.log_marginal(rows).double()
            before = float(values.sum() if own is None else values @ own.to(values)) / decided.size
        after = float(em(copy.deepcopy(model), rows, weights=own, steps=STEPS)[-1]) / decided.size
    except FAILURES:
        return run
    late = training.losses[-max(1, len(training.losses) // 8) :]
    gap = before + float(late.mean())
    if not after - before > max(RESOLUTION, gap):
        return run
    stopped = f"{training.stopped}, but EM goes on from there by {after - before:.2g} nats per row"
    return replace(run, training=replace(training, converged=False, stopped=stopped))
