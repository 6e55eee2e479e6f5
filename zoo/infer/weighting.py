"""Weights of rows in stochastic variational inference: every row's terms of the bound times its weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from zoo.base.callables import PyroCallable
from zoo.infer.losses.annealed import AnnealedELBO
from zoo.infer.losses.closed_form import ClosedFormELBO
from zoo.infer.losses.fixed_draws import FixedDraws
from zoo.infer.losses.iwae import IWAE
from zoo.infer.losses.quadrature import QuadratureELBO
from zoo.infer.losses.traces import Site
from zoo.infer.optim.natural import NaturalGradient

_paused: ContextVar[bool] = ContextVar("whether rows count once, whatever their weights", default=False)
_index: ContextVar[Tensor | None] = ContextVar("the numbers of the rows in the last plate", default=None)


@contextmanager
def each_once() -> Iterator[None]:
    """A block in which rows count once: for held-out rows, which have no weights."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


class RowWeights(Messenger):
    """Scales the log densities of all sites in the plate of the rows by the rows' weights.

    Args:
        weights: of all rows (n,), of the rows' dtype; those of a minibatch are found by its plate.
        plate: the name of the plate of the rows.
    """

    def __init__(self, weights: Tensor, plate: str) -> None:
        super().__init__()
        self.weights, self.plate = weights, plate

    def __exit__(self, *reason: Any) -> None:
        _index.set(None)
        super().__exit__(*reason)

    def _pyro_sample(self, msg: Site) -> None:
        if _paused.get():
            return
        if site_is_subsample(msg):
            if msg["name"] == self.plate:
                _index.set(msg["value"])
            return
        for frame in msg["cond_indep_stack"]:
            if frame.vectorized and frame.name == self.plate:
                index = _index.get()
                own = self.weights if index is None else self.weights.index_select(0, index)  # (b,)
                msg["scale"] = msg["scale"] * own.reshape(-1, *[1] * (-1 - frame.dim))


class WeightedClosedForm(ClosedFormELBO):
    """:class:`~zoo.infer.losses.closed_form.ClosedFormELBO` with weights of the rows.

    Args:
        weights: of all rows (n,).
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def row_weights(self, index: Tensor | None) -> Tensor | None:
        """The weights of the rows at hand (b,); None where rows count once."""
        if _paused.get():
            return None
        return self.weights if index is None else self.weights.index_select(0, index)


def weighted(
    model: PyroCallable, guide: PyroCallable, weights: Tensor, plate: str
) -> tuple[PyroCallable, PyroCallable]:
    """Model and guide, each with the weights (n,) of the rows in the plate ``plate``."""
    first, second = (RowWeights(weights, plate)(function) for function in (model, guide))
    return first, second


def weighted_loss(
    loss: ELBO, model: PyroCallable, guide: PyroCallable, x: Tensor, weights: Tensor, plate: str
) -> float:
    """The negative bound of all rows (n, d) with weights (n,), in nats."""
    if isinstance(loss, ClosedFormELBO):
        return float(WeightedClosedForm(weights).loss(model, guide, x))
    return float(loss.loss(*weighted(model, guide, weights.to(x), plate), x))


WEIGHTED = (
    Trace_ELBO,
    TraceMeanField_ELBO,
    QuadratureELBO,
    FixedDraws,
    IWAE,
    AnnealedELBO,
    ClosedFormELBO,
    WeightedClosedForm,
)


def check_weighted(loss: ELBO, optim: PyroOptim) -> None:
    """Refuse losses and optimizers that cannot weight rows.

    Raises:
        ValueError: names the loss or the optimizer, and the way out.
    """
    if type(loss) not in WEIGHTED:
        names = ", ".join(one.__name__ for one in WEIGHTED[:-1])
        raise ValueError(
            f"{type(loss).__name__} does not keep the rows' terms of the bound apart, so that rows have no weights: "
            f"use one of {names}, or repeat the rows"
        )
    if isinstance(optim, NaturalGradient):
        raise ValueError(
            "NaturalGradient would move the factor of a row further the larger its weight: use zoo.cavi, which takes "
            "weights, or the default optimizer"
        )
