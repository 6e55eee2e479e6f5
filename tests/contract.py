"""The cells of the contract: every model of the registry and of users' own, with every guide that serves it.

A new model or guide is picked up by itself: from the registry, with two latent dimensions or components where its
constructor asks for a number, and once for every value of an argument annotated with ``Literal`` or ``bool``. Cells
that a guide refuses are no cells; they are listed in REFUSED, for a test of what the refusals say.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pytest
import torch
from helpers import jitter
from user_models import BatchDecoder, BayesianFactors, Everything, MixtureOfFactorAnalysers, SparseFactors, one_mean

import zoo
from guides import CannotServe
from zoo.base import seeded
from zoo.base.latent_sites import layout
from zoo.base.protocols import ClosedBound, Conjugate
from zoo.registry.finding import guide_classes, models
from zoo.registry.making import build, options

SIZES = {"latent_dim": 2, "components": 2}
DATA_DIM = 4
IRIS = zoo.data.load("iris").x.double()[torch.arange(60) * 5 // 2]  # 60 irises of all three species


@dataclass(frozen=True)
class Kind:
    """A model of the grid.

    Attributes:
        name: of the cell.
        build: makes the model, in float64 unless it is asked for another dtype.
        cls: the class in the registry; None for a model of a user's own.
        settings: of the class.
        columns: of the rows that it takes.
        fixed: whether it holds covariates, so that it generates 60 rows and no other number.
    """

    name: str
    build: Callable[..., Any]
    cls: type | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    columns: int = DATA_DIM
    fixed: bool = False

    @property
    def usual(self) -> bool:
        """Whether the settings are those that the class comes with."""
        return {name for name, _ in self.settings} <= set(SIZES)

    @property
    def size(self) -> int:
        """A number of rows that it generates."""
        return len(IRIS) if self.fixed else 7

    def rows(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Sixty irises, as many columns as the model takes."""
        return IRIS[:, : self.columns].to(dtype)


@dataclass(frozen=True)
class Family:
    """A guide of the grid: a class and settings."""

    cls: type
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return label(self.cls, dict(self.settings))

    @property
    def usual(self) -> bool:
        return not self.settings

    def build(self, model: Any, x: torch.Tensor) -> Any:
        return build(self.cls, dict(self.settings), model=model, x=x)


def variants(classes):
    """(class, settings) for every class as it comes, and for every other value of its Literal and bool arguments."""
    for cls in classes.values():
        base = {name: value for name, value in SIZES.items() if name in options(cls)}
        yield cls, base
        for name, hint in typing.get_type_hints(cls.__init__).items():
            known = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else (True, False)
            if known != (True, False) or hint is bool or bool in typing.get_args(hint):
                default = options(cls)[name].default
                yield from ((cls, {**base, name: value}) for value in known if value is not default)


def label(cls, given) -> str:
    more = {name: value for name, value in given.items() if name not in SIZES}
    return "-".join([cls.__name__, *(v if isinstance(v, str) else f"{name}={v}" for name, v in more.items())])


def _registered(cls, given) -> Kind:
    def make(dtype=torch.float64):
        return build(cls, given, data_dim=DATA_DIM).to(dtype)

    return Kind(label(cls, given), make, cls, tuple(given.items()))


def _batch_decoder():
    return BatchDecoder(torch.arange(len(IRIS)).remainder(2).double().unsqueeze(1))


REGISTERED = [_registered(*variant) for variant in variants(models())]
USERS = [  # in float64 alone
    Kind("one_mean", lambda: one_mean, columns=1),  # a plain function with one site that all rows share
    Kind("BayesianFactors", BayesianFactors),  # sites shared by all rows, one of them in a plate
    Kind("MixtureOfFactorAnalysers", MixtureOfFactorAnalysers),  # two sites of every row, one of them discrete
    Kind("BatchDecoder", _batch_decoder, fixed=True),  # a covariate of every row
    Kind("SparseFactors", SparseFactors),  # a data site of another name
    Kind("Everything", Everything),  # shapes and supports of every sort, shared and of every row
]
KINDS = [*REGISTERED, *USERS]
FAMILIES = [
    Family(cls, tuple((name, value) for name, value in given.items() if name not in SIZES))
    for cls, given in variants(guide_classes())
]


def _grid():
    """The cells that are served, with the traits of their models, and the refused ones."""
    served, refused = [], []
    with seeded(0), pyro.get_param_store().scope():
        for kind in KINDS:
            for family in FAMILIES:
                if not (kind.usual or family.usual):
                    continue
                try:
                    family.build(kind.build(), kind.rows())
                except CannotServe:
                    refused.append((kind, family))
                else:
                    served.append((kind, family))
    return served, refused


def _sites():
    """The layout of every model, by its name."""
    with seeded(0), pyro.get_param_store().scope():
        return {kind.name: layout(kind.build(), kind.rows()) for kind in KINDS}


CELLS, REFUSED = _grid()
SITES = _sites()


def alone(kind: Kind) -> bool:
    """Whether the model has one latent site, of every row."""
    return len(SITES[kind.name].latents) == 1 and not SITES[kind.name].shared


def conjugate(kind: Kind) -> bool:
    return alone(kind) and isinstance(kind.build(), Conjugate)


def enumerable(kind: Kind) -> bool:
    """Whether the model has one site, discrete, and its bound in closed form."""
    return alone(kind) and SITES[kind.name].latents[0].cardinality is not None and isinstance(kind.build(), ClosedBound)


def learns(kind: Kind) -> bool:
    """Whether the model is a module with parameters."""
    model = kind.build()
    return isinstance(model, torch.nn.Module) and any(True for _ in model.parameters())


def kinds(chosen=KINDS, where=lambda kind: True):
    """Mark a test to run on all models that fit the description."""
    found = [kind for kind in chosen if where(kind)]
    return pytest.mark.parametrize("kind", found, ids=[kind.name for kind in found])


def cells(where=lambda kind, family: True, chosen=CELLS):
    """Mark a test to run on all pairs of model and guide that fit the description."""
    found = [(kind, family) for kind, family in chosen if where(kind, family)]
    return pytest.mark.parametrize(("kind", "family"), found, ids=[f"{k.name}:{f.name}" for k, f in found])


def placed(kind: Kind, family: Family, x: torch.Tensor):
    """Model and guide of a cell at parameters of no particular place, different for every row."""
    model = kind.build() if x.dtype == torch.float64 else kind.build(x.dtype)
    guide = family.build(model, x)
    for module in (model, guide):
        if hasattr(module, "initialize"):
            module.initialize(x)
    jitter(guide, by=0.1)
    return model, guide


def train(model, guide, x, steps=3):
    """Vanilla SVI, as in Pyro's tutorials."""
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    return [svi.step(x) for _ in range(steps)]


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
