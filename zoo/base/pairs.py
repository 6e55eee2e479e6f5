"""What can be judged: a trained pair of model and guide, or a conjugate model alone, whose guide is its posterior."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyro
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, undecorated
from zoo.base.checks import ArrayLike, check_rows
from zoo.base.protocols import Conjugate, Pair
from zoo.base.tables import column_names

EXACT = "guides.exact"  # loaded by name, as guides are built on this wing

Trained = Pair | PyroCallable  # a pair, or a conjugate model alone


@dataclass(frozen=True, eq=False)
class ModelAlone:
    """A conjugate model and its own posterior, at Pyro's current parameters."""

    model: PyroCallable
    guide: PyroCallable

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A block with a copy of Pyro's current parameter store, which is restored after it."""
        held = pyro.get_param_store().get_state()
        with pyro.get_param_store().scope({key: dict(own) for key, own in held.items()}):
            yield


def pair_of(trained: Trained) -> Pair:
    """The pair to judge: ``trained`` itself, or a conjugate model with its own posterior as the guide.

    Args:
        trained: the result of :func:`zoo.fit`, :func:`zoo.em`, :func:`zoo.cavi` or :func:`zoo.load`, another
            :class:`~zoo.base.protocols.Pair`, or a :class:`~zoo.base.Conjugate` model.

    Raises:
        TypeError: it is a model without a closed-form posterior, a class, or neither pair nor model.
        ValueError: the posterior does not cover all latent sites of the model.
    """
    if isinstance(trained, Pair) and not isinstance(trained, type):
        return trained
    if isinstance(trained, type):
        raise TypeError(f"got the class {trained.__name__}: pass a fitted {trained.__name__}(...), or a run")
    if not callable(trained):
        raise TypeError(f"got {type(trained).__name__}: pass a run (of zoo.fit, zoo.em or zoo.cavi), or a fitted model")
    if not isinstance(undecorated(trained), Conjugate):
        raise TypeError(
            f"{name_of(trained)} has no closed-form posterior to judge it by: pass its run, or zoo.Fit(model, guide)"
        )
    return ModelAlone(trained, own_posterior(trained))


def known_columns(run: object, x: object = None) -> tuple[str, ...]:
    """The names of the columns: those of ``x``, else of the rows that the run was fitted to; empty if unknown.

    Raises:
        ValueError: ``x`` has the columns of the fit in another order.
    """
    own, fitted = column_names(x), tuple(getattr(getattr(run, "training", None), "columns", ()))
    if own != fitted and sorted(own) == sorted(fitted):
        raise ValueError(f"x has the columns {_few(own)}, the rows of the fit {_few(fitted)}: put them into this order")
    return own or fitted


def rows_of(run: Pair, x: ArrayLike, *, least: int = 1) -> Tensor:
    """The rows (n, d) for the model of a pair: :func:`zoo.base.checks.check_rows`, and the order of their columns.

    Raises:
        TypeError, ValueError: as there, or ``x`` has the columns of the fit in another order.
    """
    known_columns(run, x)
    return check_rows(x, undecorated(run.model), least=least)


def _few(names: tuple[str, ...]) -> str:
    """The first names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def own_posterior(model: PyroCallable) -> PyroCallable:
    """:class:`guides.Exact` of a conjugate model.

    Raises:
        ValueError: the posterior does not cover all latent sites of the model.
    """
    made: PyroCallable = importlib.import_module(EXACT).Exact(model)
    return made
