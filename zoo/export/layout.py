"""What an export consists of: the runs, the names along the dimensions, the attributes, and the full sizes."""

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
import xarray
from torch import Tensor

from zoo.base.checks import check_rows, check_whole
from zoo.base.latent_sites import latents
from zoo.base.module import Module
from zoo.data.dataset import Dataset
from zoo.export.chains import INDEPENDENT, SEEDS, Turn, alignment, check, title, unchanged
from zoo.export.pieces import Piece, Source, rows_per_piece
from zoo.export.variables import Variable, check_names, names, parameters
from zoo.infer.fitting import Fit
from zoo.posterior.engine import reading

ORDER = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)


BESIDE = ("khat",)  # coordinates: numbers without draws beside those with, which az.summary would stumble over


@dataclass(frozen=True)
class Export:
    """The runs, ready to be read piece by piece.

    Attributes:
        runs: one per chain.
        x: the rows (n, d), as each run's model takes them.
        turns: applied to each run's draws.
        draws: the number of draws.
        seed: of the draws.
        count: rows per piece.
        coords: the names along a dimension; other dimensions count from 0.
        constants: the group ``constant_data``.
        attrs: of the object and of every group.
        notes: further attributes by group.
    """

    runs: Sequence[Fit]
    x: Sequence[Tensor]
    turns: Sequence[Turn]
    draws: int
    seed: int
    count: int
    coords: dict[str, np.ndarray]
    constants: dict[str, Variable]
    attrs: dict[str, Any]
    notes: dict[str, dict[str, Any]]

    @property
    def predicted_bytes(self) -> int:
        """The size of the posterior's and the prior's predictive draws."""
        return 2 * len(self.runs) * self.draws * self.x[0].numel() * self.x[0].element_size()

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """All pieces, with the number of their chain."""
        n = len(self.x[0])
        for chain, (run, x, turn) in enumerate(zip(self.runs, self.x, self.turns, strict=True)):
            source = Source(run, x, self.draws, self.seed, chain, turn)
            for start in range(0, n, self.count):
                piece = source.piece(slice(start, min(start + self.count, n)))
                if chain:
                    piece.groups.pop("observed_data")
                if len(self.runs) > 1 and "sample_stats" in piece.groups:  # k-hat too has a value for every chain
                    piece.groups["sample_stats"] = _chained(piece.groups["sample_stats"])
                yield chain, piece

    def empty(self, piece: Piece) -> "dict[str, dict[str, Blank]]":
        """What a first piece's variables are over all chains and rows, by group and name."""
        sizes = {"chain": len(self.runs), "row": len(self.x[0])}
        return {
            group: {
                name: Blank(
                    v.dims,
                    tuple(sizes.get(dim, size) for dim, size in zip(v.dims, v.values.shape, strict=True)),
                    v.values.dtype,
                    v.attrs,
                )
                for name, v in held.items()
            }
            for group, held in piece.groups.items()
        }

    def dataset(self, group: str, held: Mapping[str, Any], shapes: Iterable["Blank | Variable"], piece: Piece) -> Any:
        """A group with names along its dimensions and its attributes, as an ``xarray.Dataset``.

        Args:
            group: its name.
            held: the variables to put into it.
            shapes: all its variables, whose dimensions it has.
            piece: a first piece, for its notes.
        """
        sizes = {dim: size for each in shapes for dim, size in zip(each.dims, each.shape, strict=True)}
        along = {dim: self.coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
        attrs = {**self.attrs, **self.notes.get(group, {}), **piece.notes.get(group, {})}
        return xarray.Dataset(dict(held), along, attrs).set_coords([name for name in BESIDE if name in held])


class Blank(NamedTuple):
    """A variable of which only the size is known."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]


def prepare(
    runs: Fit | Sequence[Fit],
    x: Any,
    draws: int,
    seed: int,
    rows: Sequence[Any] | None,
    columns: Sequence[str] | None,
    labels: Any,
    rows_at_once: int | None,
) -> Export:
    """Check everything that can be checked before the first draw; see :func:`zoo.to_arviz` for arguments and errors."""
    check_whole(draws, "draws")
    check_whole(seed, "seed", 0)
    if rows_at_once is not None:
        check_whole(rows_at_once, "rows_at_once")
    fits = [runs] if isinstance(runs, Fit) else list(runs)
    data = [check_rows(x, run.model) for run in fits]
    check(fits, data)
    n, d = data[0].shape
    several = len(fits) > 1
    if columns is None:
        columns = getattr(x, "columns", None) if isinstance(x, Dataset) else [f"x{j}" for j in range(d)]
    if labels is None and isinstance(x, Dataset) and x.labels is not None:
        codes = x.labels.cpu().numpy()
        labels = np.array(x.label_names)[codes] if x.label_names else codes
    coords: dict[str, np.ndarray] = {
        "chain": np.arange(len(fits)),
        "draw": np.arange(draws),
        "row": names(rows, n, "rows") if rows is not None else np.arange(n),
        "column": names(columns, d, "columns"),
    }
    coords["column_other"] = coords["column"]
    models, turns, words = alignment(fits, data[0]) if several else ([fits[0].model], [unchanged], "")
    constants: dict[str, Variable] = {}
    for number, (run, model) in enumerate(zip(fits, models, strict=True)):
        with reading(run, seed):
            found = latents(run.model, data[number])
            check_names(found)
            for name, each in parameters(model, data[number][:1], found).items():
                constants[name] = _beside(constants[name], each) if number else _chain(each) if several else each
    if labels is not None:
        given = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        constants["label"] = Variable(("row",), names(given, n, "labels"), {})
    settings = [{"fit": run.settings, "model": _settings(run.model), "guide": _settings(run.guide)} for run in fits]
    attrs = {
        "creation_library": "latent-zoo",
        "creation_library_version": _version("latent-zoo"),
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "model": title(fits[0].model),
        "guide": title(fits[0].guide),
        "seed": seed,
        "settings": json.dumps(settings if several else settings[0], default=str),
    }
    notes: dict[str, dict[str, Any]] = {"posterior": {"note": SEEDS if several else INDEPENDENT}}
    if several:
        for group in ("posterior", "prior", "constant_data"):
            notes.setdefault(group, {})["alignment"] = words
    count = max(rows_per_piece(run, data[0], found, draws, rows_at_once) for run in fits)
    return Export(fits, data, turns, draws, seed, count, coords, constants, attrs, notes)


def place(variable: Variable, chain: int, rows: slice) -> tuple[slice, ...]:
    """Where a piece's variable stands in the whole."""
    where = {"chain": slice(chain, chain + 1), "row": rows}
    return tuple(where.get(dim, slice(None)) for dim in variable.dims)


def _chain(variable: Variable) -> Variable:
    return Variable(("chain", *variable.dims), variable.values[None], variable.attrs)


def _chained(held: Mapping[str, Variable]) -> dict[str, Variable]:
    return {name: v if "chain" in v.dims else _chain(v) for name, v in held.items()}


def _beside(before: Variable, now: Variable) -> Variable:
    return before._replace(values=np.concatenate([before.values, now.values[None]]))


def _settings(thing: Any) -> Any:
    return thing.settings if isinstance(thing, Module) else {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
