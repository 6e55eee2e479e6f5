"""Fitted runs as an ArviZ file, written a few rows at a time."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from zoo.base.atomic import new_file
from zoo.base.checks import ArrayLike
from zoo.base.pairs import Trained
from zoo.base.threads import on_suited_threads
from zoo.export.contents import GROUPS
from zoo.export.layout import BESIDE, Blank, Export, place, prepare
from zoo.export.pieces import Piece

if TYPE_CHECKING:
    import xarray


class Sink(NamedTuple):
    """A file being written.

    Attributes:
        put: writes values; takes the group, the name of the variable, the place in it, and the values.
        describe: writes attributes of the object and of ``sample_stats``.
    """

    put: Callable[[str, str, tuple[slice, ...], np.ndarray], None]
    describe: Callable[[Mapping[str, Any]], None]


@on_suited_threads
def write_arviz(
    run: Trained | Sequence[Trained],
    x: ArrayLike,
    path: str | Path,
    *,
    draws: int = 200,
    rows_at_once: int | None = None,
    seed: int = 0,
    rows: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
    labels: Tensor | np.ndarray | Sequence[Any] | None = None,
    groups: Sequence[str] | None = None,
    compact: bool = True,
) -> Path:
    """Writes the result of :func:`zoo.to_arviz` to a file in pieces, so that only a few rows' draws are in memory.

    Groups, dimensions, names and attributes are those of :func:`zoo.to_arviz`, and so are the draws where
    ``rows_at_once`` is None. ``az.from_netcdf`` and ``xarray.open_datatree`` open the file, the latter lazily.
    Draws are stored in float32 unless ``compact`` is false, and everything is compressed without loss.

    The file appears under its name only once it is complete: an interrupted export leaves nothing behind.

    Memory holds one piece, x itself, and for Pyro's autoguides without ``create_plates``, which draw all rows jointly,
    all draws of the latent sites. Where such a guide has both shared and local sites, all rows form one piece.

    Args:
        run: as for :func:`zoo.to_arviz`: a run, or several of one model.
        x: rows (n, d), or a :class:`zoo.data.Dataset`.
        path: the file to create: netCDF (``.nc``), or a Zarr folder (``.zarr``), which needs the package ``zarr`` 3.
        draws: number of draws per run, from the posterior and from the prior.
        rows_at_once: rows per piece; None takes a few million numbers at a time. Every piece has its own random stream,
            so the draws depend on this argument.
        seed, rows, columns, labels, groups, compact: as for :func:`zoo.to_arviz`.

    Returns:
        ``path``.

    Raises:
        FileExistsError: ``path`` exists.
        FileNotFoundError: the folder of ``path`` does not exist.
        ModuleNotFoundError: ``path`` ends in ``.zarr`` and zarr is not installed.
        ValueError: ``path`` ends in neither ``.nc`` nor ``.zarr``, or an argument that :func:`zoo.to_arviz` refuses.
    """
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"path is '{path.name}': it must end in .nc for netCDF or in .zarr for Zarr")
    if path.exists():
        raise FileExistsError(f"path '{path}' exists: remove it, or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of path, '{path.parent}', does not exist: create it first")
    opened = _netcdf
    if path.suffix == ".zarr":
        _zarr_module()
        opened = _zarr
    export = prepare(run, x, draws, seed, rows, columns, labels, rows_at_once, groups, compact)
    pieces = export.pieces()
    number, first = next(pieces)
    bounds = {}
    with new_file(path) as partial, opened(partial, export, first) as sink:
        for chain, piece in itertools.chain([(number, first)], pieces):
            _write(sink, chain, piece)
            bounds[chain] = piece.bounds
        sink.describe(export.attributes(list(bounds.values())))
    return path


def _write(sink: Sink, chain: int, piece: Piece) -> None:
    for group, held in piece.groups.items():
        for name, each in held.items():
            sink.put(group, name, place(each, chain, piece.rows), each.values)


def _skeleton(export: Export, first: Piece) -> "tuple[dict[str, xarray.Dataset], dict[str, dict[str, Blank]]]":
    """Every group with its coordinates, attributes and constants, and the sizes of the variables to be written."""
    blanks = export.empty(first)
    whole: Mapping[str, Any] = {"constant_data": export.constants} if export.constants else {}
    shapes: dict[str, list[Any]] = {g: list(held.values()) for g, held in blanks.items()}
    for group, held in whole.items():
        shapes[group] = [*shapes.get(group, []), *held.values()]
    groups = {g: export.dataset(g, whole.get(g, {}), shapes[g], first) for g in GROUPS if g in shapes}
    return groups, blanks


def _attributes(name: str, held: Mapping[str, Blank]) -> dict[str, Any]:
    """A variable's attributes, with the one that lists its auxiliary coordinates (CF conventions)."""
    beside = " ".join(other for other in BESIDE if other in held and name not in BESIDE)
    return {**held[name].attrs, **({"coordinates": beside} if beside else {})}


def _chunks(blank: Blank, count: int) -> tuple[int, ...]:
    """The shape of a chunk of a variable: the values of one piece, of ``count`` rows."""
    sizes = {"chain": 1, "row": count}
    return tuple(min(n, sizes.get(dim, n)) for dim, n in zip(blank.dims, blank.shape, strict=True))


@contextmanager
def _netcdf(path: Path, export: Export, first: Piece) -> Iterator[Sink]:
    """netCDF: xarray creates the layout of the whole file; h5netcdf then writes the large variables in pieces."""
    import h5netcdf  # type: ignore[import-untyped]  # imported here, as the two take half a second
    import xarray

    groups, blanks = _skeleton(export, first)
    xarray.Dataset(attrs=export.attrs).to_netcdf(path, engine="h5netcdf")
    for name, dataset in groups.items():
        dataset.to_netcdf(path, mode="a", group=name, engine="h5netcdf")
    with h5netcdf.File(path, "a") as file:
        for group, held in blanks.items():
            for name, blank in held.items():
                chunks = _chunks(blank, export.count)
                variable = file[group].create_variable(
                    name, blank.dims, blank.dtype, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True
                )
                variable.attrs.update(_attributes(name, held))

        def put(group: str, name: str, where: tuple[slice, ...], values: np.ndarray) -> None:
            file[group].variables[name][where] = values

        def describe(attrs: Mapping[str, Any]) -> None:
            file.attrs.update(attrs)
            if "sample_stats" in file.groups:
                file["sample_stats"].attrs.update(attrs)

        yield Sink(put, describe)


@contextmanager
def _zarr(path: Path, export: Export, first: Piece) -> Iterator[Sink]:
    """Zarr: the same layout; a chunk of a large variable holds the values of one piece."""
    import xarray

    zarr = _zarr_module()
    groups, blanks = _skeleton(export, first)
    # Format 2: in 3, coordinates of fixed-length strings and consolidated metadata are not specified yet.
    xarray.Dataset(attrs=export.attrs).to_zarr(path, mode="w", zarr_format=2, consolidated=False)
    for name, dataset in groups.items():
        dataset.to_zarr(path, mode="a", group=name, zarr_format=2, consolidated=False)
    root = zarr.open_group(path, mode="r+")
    for group, held in blanks.items():
        for name, blank in held.items():
            root[group].create_array(
                name,
                shape=blank.shape,
                chunks=_chunks(blank, export.count),
                dtype=blank.dtype,
                compressors="auto",
                fill_value=None,  # a number here would be read as missing
                attributes={**_attributes(name, held), "_ARRAY_DIMENSIONS": list(blank.dims)},
            )

    def put(group: str, name: str, where: tuple[slice, ...], values: np.ndarray) -> None:
        root[group][name][where] = values

    def describe(attrs: Mapping[str, Any]) -> None:
        root.attrs.update(attrs)
        if "sample_stats" in root:
            root["sample_stats"].attrs.update(attrs)

    yield Sink(put, describe)
    zarr.consolidate_metadata(path, zarr_format=2)


def _zarr_module() -> Any:
    try:
        import zarr  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a path in .zarr needs the package zarr: pip install 'zarr>=3', or use .nc") from None
    return zarr
