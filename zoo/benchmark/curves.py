"""Curves along a training: measures taken of the fit in progress, at steps whose logarithms are evenly spaced."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from zoo.base.callables import mode
from zoo.base.pairs import Trained, pair_of, rows_of
from zoo.base.random import seeded
from zoo.benchmark.suite import Point
from zoo.infer.run import Fit
from zoo.infer.running import Running


def log_spaced(first: int, last: int, count: int) -> list[int]:
    """At most ``count`` whole numbers from ``first`` to ``last``, whose logarithms are evenly spaced.

    >>> log_spaced(1, 1000, 4)
    [1, 10, 100, 1000]
    """
    return sorted({round(float(value)) for value in np.geomspace(min(first, last), last, count)})


class Curve:
    """A watcher of :func:`zoo.fit` that takes measures of the fit in progress.

    Args:
        steps: numbers of steps after which they are taken.
        batch: rows per step, which turns steps into training samples.
        measure: takes them, from the fit so far.

    Attributes:
        points: what was measured, each with the number of training ``samples`` so far.
    """

    def __init__(self, steps: Iterable[int], batch: int, measure: Callable[[Fit], Point]) -> None:
        self.steps, self.batch, self.measure = frozenset(steps), batch, measure
        self.points: list[dict[str, Any]] = []

    def see(self, fit: Running) -> None:
        """Measure when due."""
        done = fit.step + 1
        if done in self.steps:
            self.points.append({"samples": done * self.batch, **self.measure(fit.run())})


def bound(run: Trained, x: Tensor, *, seed: int = 0) -> float:
    """The evidence lower bound of a pair in nats per row, from one draw for every row of ``x`` (n, d).

    Modules are in evaluation mode. The same seed gives the same draws, so that pairs are compared on common noise.
    """
    pair = pair_of(run)
    x = rows_of(pair, x)
    with pair.scope(), mode(False, pair.model, pair.guide), seeded(seed), torch.no_grad():
        return -float(Trace_ELBO().loss(pair.model, pair.guide, x)) / len(x)
