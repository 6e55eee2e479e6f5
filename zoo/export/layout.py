"""The plan of an export: runs, coordinates of the dimensions, attributes, and the sizes of the whole arrays."""

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from zoo.base.callables import PyroCallable, name_of, unwrapped
from zoo.base.checks import ArrayLike, check_whole
from zoo.base.module import Module
from zoo.base.pairs import Trained, known_columns, rows_of
from zoo.base.tables import row_names
from zoo.data.dataset import Dataset
from zoo.export.chains import INDEPENDENT, SEEDS, Transform, alignment, check, unchanged
from zoo.export.contents import Contents, check_groups
from zoo.export.pieces import Chain, Piece, rows_per_piece
from zoo.export.variables import Variable, check_names, names, parameters
from zoo.infer.run import Fit, run_of
from zoo.posterior.engine import reader, reading

BESIDE = ("khat",)  # coordinates: values without draws, which az.summary could not handle as variables


@dataclass(frozen=True)
class Export:
    """Runs prepared for an export piece by piece.

    Attributes:
        runs: one per chain.
        x: the rows (n, d) of each run, in the dtype and on the device of its model.
        transforms: the transforms of each run's draws.
        draws: the number of draws.
        seed: the seed of the draws.
        count: the number of rows per piece.
        contents: the groups, and their precision.
        coords: the coordinates of the dimensions by name; other dimensions count from 0.
        constants: the group ``constant_data``.
        attrs: the attributes of the object and of every group.
        notes: further attributes by group.
    """

    runs: Sequence[Fit]
    x: Sequence[Tensor]
    transforms: Sequence[Transform]
    draws: int
    seed: int
    count: int
    contents: Contents
    coords: dict[str, np.ndarray]
    constants: dict[str, Variable]
    attrs: dict[str, Any]
    notes: dict[str, dict[str, Any]]

    @property
    def predicted_bytes(self) -> int:
        """The size of the predictive draws, posterior and prior together."""
        sets = sum(self.contents.has(name) for name in ("posterior_predictive", "prior_predictive"))
        size = min(4, self.x[0].element_size()) if self.contents.compact else self.x[0].element_size()
        return sets * len(self.runs) * self.draws * self.x[0].numel() * size

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """All pieces, each with the number of its chain."""
        n = len(self.x[0])
        for number, (run, x, transform) in enumerate(zip(self.runs, self.x, self.transforms, strict=True)):
            chain = Chain(run, x, self.draws, self.seed, number, transform, self.contents)
            for start in range(0, n, self.count):
                piece = chain.piece(slice(start, min(start + self.count, n)))
                if number:
                    piece.groups.pop("observed_data", None)
                if len(self.runs) > 1:  # quantities without draws get one value per chain
                    for group in ("sample_stats", "constant_data"):
                        if group in piece.groups:
                            piece.groups[group] = _chained(piece.groups[group])
                yield number, piece

    def attributes(self, bounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """The bounds of all rows as attributes: numbers for a single run, lists for several.

        Args:
            bounds: the bounds in the last piece of every chain.
        """
        if len(bounds) == 1:
            return dict(bounds[0])
        return {name: [own[name] for own in bounds] for name in bounds[0]}

    def empty(self, piece: Piece) -> "dict[str, dict[str, Blank]]":
        """Size and dtype over all chains and rows of the variables in a first piece, by group and name."""
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
        """A group with its coordinates and attributes, as an ``xarray.Dataset``.

        Args:
            group: its name.
            held: the variables to store in it.
            shapes: all its variables, which determine its dimensions.
            piece: a first piece, which holds the notes.
        """
        import xarray  # imported here, as it takes half a second

        sizes = {dim: size for each in shapes for dim, size in zip(each.dims, each.shape, strict=True)}
        along = {dim: self.coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
        attrs = {**self.attrs, **self.notes.get(group, {}), **piece.notes.get(group, {})}
        return xarray.Dataset(dict(held), along, attrs).set_coords([name for name in BESIDE if name in held])


class Blank(NamedTuple):
    """A variable without values: only its dimensions, size and dtype."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]


def prepare(
    runs: Trained | Sequence[Trained],
    x: ArrayLike,
    draws: int,
    seed: int,
    rows: Sequence[Any] | None,
    columns: Sequence[str] | None,
    labels: Tensor | np.ndarray | Sequence[Any] | None,
    rows_at_once: int | None,
    groups: Sequence[str] | None,
    compact: bool,
) -> Export:
    """Checks all arguments before the first draw; see :func:`zoo.to_arviz` for arguments and errors."""
    check_whole(draws, "draws")
    check_whole(seed, "seed", 0)
    contents = Contents(check_groups(groups), compact)
    if rows_at_once is not None:
        check_whole(rows_at_once, "rows_at_once")
    fits = [run_of(run) for run in (runs if isinstance(runs, Sequence) else [runs])]
    data = [rows_of(run, x) for run in fits]
    check(fits, data)
    n, several = len(data[0]), len(fits) > 1
    coords = _coordinates(fits[0], x, len(fits), draws, data[0].shape, rows, columns)
    models: Sequence[PyroCallable] = [run.model for run in fits]
    transforms: Sequence[Transform] = [unchanged]
    words = ""
    if several:
        models, transforms, words = alignment(fits, data[0])
    constants: dict[str, Variable] = {}
    counts = []
    for number, (run, model) in enumerate(zip(fits, models, strict=True)):
        with reading(run, seed):
            source = reader(run, data[number])
            check_names(source.layout)
            counts.append(rows_per_piece(source, draws, rows_at_once))
            for name, each in parameters(model, source).items():
                constants[name] = _beside(constants[name], each) if number else _chain(each) if several else each
    if labels is None and isinstance(x, Dataset) and x.labels is not None:
        codes = x.labels.cpu().numpy()
        labels = np.array(x.label_names)[codes] if x.label_names else codes
    if labels is not None:
        given = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
        constants["label"] = Variable(("row",), names(given, n, "labels"), {})
    notes: dict[str, dict[str, Any]] = {"posterior": {"note": SEEDS if several else INDEPENDENT}}
    if several:
        for group in ("posterior", "prior", "constant_data"):
            notes.setdefault(group, {})["alignment"] = words
    if not contents.has("constant_data"):
        constants = {}
    about = _provenance(fits, seed)
    return Export(fits, data, transforms, draws, seed, max(counts), contents, coords, constants, about, notes)


def _coordinates(
    run: Fit,
    x: ArrayLike,
    chains: int,
    draws: int,
    shape: torch.Size,
    rows: Sequence[Any] | None,
    columns: Sequence[str] | None,
) -> dict[str, np.ndarray]:
    """The coordinates of the dimensions that every export has."""
    n, d = shape
    if columns is None:
        columns = known_columns(run, x) or [f"x{j}" for j in range(d)]
    column = names(columns, d, "columns")
    given = row_names(x) if rows is None else rows
    return {
        "chain": np.arange(chains),
        "draw": np.arange(draws),
        "row": np.arange(n) if given is None else names(given, n, "rows"),
        "column": column,
        "column_other": column,
    }


def _provenance(fits: Sequence[Fit], seed: int) -> dict[str, Any]:
    """The attributes of the object: its provenance."""
    settings = [{"fit": run.settings, "model": _settings(run.model), "guide": _settings(run.guide)} for run in fits]
    return {
        "creation_library": "latent-zoo",
        "creation_library_version": _version("latent-zoo"),
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "model": name_of(fits[0].model),
        "guide": name_of(fits[0].guide),
        "seed": seed,
        "settings": json.dumps(settings if len(fits) > 1 else settings[0], default=str),
    }


def place(variable: Variable, chain: int, rows: slice) -> tuple[slice, ...]:
    """The place of a piece's variable in the whole array."""
    where = {"chain": slice(chain, chain + 1), "row": rows}
    return tuple(where.get(dim, slice(None)) for dim in variable.dims)


def _chain(variable: Variable) -> Variable:
    return Variable(("chain", *variable.dims), variable.values[None], variable.attrs)


def _chained(held: Mapping[str, Variable]) -> dict[str, Variable]:
    return {name: v if "chain" in v.dims else _chain(v) for name, v in held.items()}


def _beside(before: Variable, now: Variable) -> Variable:
    return before._replace(values=np.concatenate([before.values, now.values[None]]))


def _settings(function: PyroCallable) -> dict[str, Any]:
    inner = unwrapped(function)
    return inner.settings if isinstance(inner, Module) else {}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
