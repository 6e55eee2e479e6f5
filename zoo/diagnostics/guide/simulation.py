"""Simulated truths and data sets, and fresh guides fitted to them: the first part of :func:`zoo.diagnostics.sbc`."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from zoo.base.callables import PyroCallable, name_of, undecorated, unwrapped
from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import Latent, Layout, layout
from zoo.base.module import Module
from zoo.base.protocols import HoldsRows
from zoo.base.random import seeded
from zoo.infer.collapse import UnboundedLikelihood
from zoo.infer.fitting import fit
from zoo.infer.run import Fit
from zoo.posterior.engine import Reader, reading

MOST_TABLES = 5  # data sets of a model with covariates, by default
ODD = 7  # a number of rows unlike that of any data set, to test whether a model generates any number
COVARIATES = "it has covariates for its rows"
Builder = Callable[[Any, Tensor], PyroCallable]  # a fresh guide for a model and rows


@dataclass(frozen=True, eq=False)
class Table:
    """One simulated data set.

    Attributes:
        truth: the values of all latent sites by name, (n, ...) local and (...) shared.
        x: the rows (n, d).
    """

    truth: dict[str, Tensor]
    x: Tensor


@dataclass(frozen=True, eq=False)
class Simulated:
    """The result of :func:`simulate`.

    Attributes:
        tables: the data sets.
        ranked: the latent sites that are ranked: the shared ones if there are any, otherwise the local ones.
        data: the names of the data sites.
        shared: whether the ranked sites are shared, so that every data set is one simulation.
    """

    tables: tuple[Table, ...]
    ranked: tuple[Latent, ...]
    data: tuple[str, ...]
    shared: bool

    @property
    def simulations(self) -> int:
        """The number of simulated truths."""
        return len(self.tables) if self.shared else sum(len(table.x) for table in self.tables)


def simulate(run: Fit, simulations: int | None, default: tuple[int, int], rows: int | None, seed: int) -> Simulated:
    """Draw truths from the prior, and data given them, at the fitted parameters.

    Args:
        run: the pair; only its model is used.
        simulations: their number; None takes the default.
        default: the default number of rows, and of data sets for a model with shared sites.
        rows: the number of rows of a data set; None takes that of the training data.
        seed: of the draws.

    Raises:
        ValueError: a discrete site that cannot be ranked, no latent site, an unknown number of rows, or infinite data.
    """
    with reading(run, seed):
        found, any_size = _layout(run, rows)
        ranked, shared = _ranked(found, name_of(run.model)), bool(found.shared)
        count = simulations or default[shared]
        source = Reader(run, torch.empty(0), found)
        if shared:
            n = _rows(run, rows, "it has shared sites")
            tables = [_table(source, n) for _ in range(count)]
        elif any_size:
            tables = [_table(source, count)]
        else:
            n = _rows(run, rows, COVARIATES)
            count = simulations or min(default[0], MOST_TABLES * n)
            tables = [_table(source, n) for _ in range(-(-count // n))]
    return Simulated(tuple(tables), ranked, found.data, shared)


def _layout(run: Fit, rows: int | None) -> tuple[Layout, bool]:
    """The sites of the model, and whether it can generate any number of rows; not if it has covariates of its rows."""
    try:
        run.model(None, None, ODD)
        return layout(run.model), True
    except (RuntimeError, IndexError, ValueError):
        n = _rows(run, rows, COVARIATES)
        one = run.model(None, torch.zeros(1, dtype=torch.long), n)
        return layout(run.model, one.reshape(1, -1).expand(n, -1)), False


def _ranked(found: Layout, model: str) -> tuple[Latent, ...]:
    """The latent sites that are ranked.

    Raises:
        ValueError: one is discrete beside others, or there is none.
    """
    ranked = found.shared or found.local
    for latent in ranked:
        if latent.cardinality is not None and (len(ranked) > 1 or latent.shape or not latent.local):
            raise ValueError(f"latent site '{latent.name}' is discrete beside other sites: marginalise it in the model")
    if not ranked:
        raise ValueError(f"{model} has no latent site: nothing to calibrate")
    return ranked


def _rows(run: Fit, rows: int | None, why: str) -> int:
    """The number of rows of a simulated data set.

    Raises:
        ValueError: it is unknown.
    """
    if rows is not None:
        return check_whole(rows, "rows", 2)
    guide = undecorated(run.guide)
    known = run.settings.get("rows") or (guide.count if isinstance(guide, HoldsRows) else None)
    if known is None:
        raise ValueError(
            f"sbc simulates whole data sets from {name_of(run.model)}, because {why}, and the run does not record the "
            "number of rows: pass rows="
        )
    return int(known)


def _table(source: Reader, n: int) -> Table:
    """One data set of n rows.

    Raises:
        ValueError: the model simulates infinite values, or has several data sites.
    """
    model = source.pair.model
    if not source.layout.data:
        raise ValueError(f"{name_of(model)} has no data site: return the data from the model, or name the site 'x'")
    values, _ = source.simulate((None, None, n), 1)
    if len(source.layout.data) > 1:
        raise ValueError(
            f"{name_of(model)} has the data sites {', '.join(source.layout.data)}: sbc supports a single one"
        )
    x = values[source.layout.data[0]][0].reshape(n, -1)
    x = check_rows(x, undecorated(model), name="the simulated data set")
    return Table({latent.name: values[latent.name][0] for latent in source.layout.latents}, x)


def refit(run: Fit, x: Tensor, build: Builder | None, steps: int | None, seed: int) -> Fit:
    """A fresh guide fitted to other rows, the model held fixed.

    Args:
        run: the trained pair.
        x: the rows (n, d).
        build: builds the guide from model and rows; None builds one of the same class with the same settings.
        steps: of the fit; None fits until convergence.
        seed: of the fit.

    Raises:
        ValueError: the guide's class cannot be built anew.
    """
    model = held_fixed(run, x)
    with seeded(seed):  # draws in the guide's constructor
        guide = build(model, x) if build is not None else _fresh(run, model, x)
    if not _learns(guide, x):
        return Fit(model, guide, store={"params": {}, "constraints": {}})  # a closed-form guide
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboundedLikelihood)  # the model is held fixed
        return fit(model, guide, x, steps=steps, seed=seed, progress=False)


def held_fixed(run: Fit, x: Tensor) -> PyroCallable:
    """The model with its parameters fixed at their fitted values."""
    if isinstance(run.model, nn.Module):
        return copy.deepcopy(run.model).requires_grad_(False)
    with reading(run, 0):
        nodes = poutine.trace(run.model).get_trace(x).nodes
        values = {name: site["value"].detach().clone() for name, site in nodes.items() if site["type"] == "param"}
    if not values:
        return run.model
    return poutine.block(poutine.substitute(run.model, data=values), hide_types=["param"])


def _learns(guide: PyroCallable, x: Tensor) -> bool:
    """Whether a guide has parameters to train."""
    if isinstance(unwrapped(guide), AutoGuide):
        return True
    with pyro.get_param_store().scope(), seeded(0), torch.no_grad():
        nodes = poutine.trace(guide).get_trace(x).nodes
    return any(site["type"] == "param" for site in nodes.values())


def _fresh(run: Fit, model: PyroCallable, x: Tensor) -> PyroCallable:
    """An untrained guide of the same class with the same settings.

    Raises:
        ValueError: the guide is a module of the user's own, whose constructor is unknown.
    """
    guide = unwrapped(run.guide)
    if isinstance(guide, Module):
        options = {key: value for key, value in guide.settings.items() if key not in ("model", "x")}
        build: Callable[..., PyroCallable] = type(guide)
        return build(model, x, **options) if "x" in guide.settings else build(model, **options)
    if isinstance(guide, AutoGuide):
        plates = {} if guide.create_plates is None else {"create_plates": guide.create_plates}
        return type(guide)(model, **plates)
    if isinstance(guide, nn.Module):
        raise ValueError(
            f"sbc fits a fresh guide but cannot build a {name_of(guide)} itself: pass build=lambda model, x: ..."
        )
    return run.guide  # a function: the fit creates its parameters in a new store
