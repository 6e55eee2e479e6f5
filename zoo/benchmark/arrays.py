"""The table of a benchmark as arrays: case x method x seed, and along curves a further dimension."""

import json
import math
from typing import Any

import numpy as np
import polars as pl
import xarray as xr

from zoo.benchmark.averages import methods_of
from zoo.benchmark.suite import Suite

OF_CELLS = {"seconds": "s", "cpu_seconds": "s", "total_seconds": "s", "peak_memory": "MiB", "threads": ""}
WHERE = ("python", "torch", "pyro", "numpy", "scikit_learn", "latent_zoo", "processor", "system", "device")


def arrays(suite: Suite, table: pl.DataFrame) -> xr.Dataset:
    """Measures with the dimensions ``case``, ``method`` and ``seed``, and ``point`` where they are taken along a curve.

    Coordinates of a curve are variables of the same shape; missing cells are NaN, and empty texts. ``status`` tells
    what became of every cell.
    """
    axes: dict[str, list[Any]] = {
        "case": list(dict.fromkeys(table["case"])),
        "method": methods_of(suite, table),
        "seed": sorted(set(table["seed"])),
    }
    numbers = table.with_columns(point=pl.int_range(pl.len()).over("case", "method", "seed"))
    index = tuple(np.array([axes[name].index(value) for value in numbers[name]]) for name in axes)
    sizes = tuple(len(values) for values in axes.values())
    first = numbers["point"].to_numpy() == 0
    cells = tuple(one[first] for one in index)
    found = xr.Dataset(coords=axes, attrs=_attributes(suite, table))
    for name, unit in OF_CELLS.items():
        found[name] = tuple(axes), _filled(sizes, cells, table[name].to_numpy()[first]), _units(unit)
    for name in ("status", "failure", "message", "case_protocol", "method_protocol"):
        found[name] = tuple(axes), _texts(sizes, cells, table[name].to_list(), first)
    dims, where = tuple(axes), index
    if suite.along:
        dims, where = (*dims, "point"), (*index, numbers["point"].to_numpy())
        sizes = (*sizes, int(where[-1].max(initial=0)) + 1)
    for name in (name for name in suite.along if name in table.columns):
        values = table[name]
        text = values.dtype == pl.String
        whole = _texts(sizes, where, values.to_list()) if text else _filled(sizes, where, values.to_numpy())
        found = found.assign_coords({name: (dims, whole)})
    for measure in suite.measures:
        about = _units(measure.unit) | {
            "long_name": measure.text or measure.name,
            "better": measure.better or "neither",
        }
        found[measure.name] = dims, _filled(sizes, where, table[measure.name].to_numpy()), about
    return found


def _attributes(suite: Suite, table: pl.DataFrame) -> dict[str, Any]:
    """What holds for all cells; versions and machines as JSON lists where there are several."""
    several = {name: list(dict.fromkeys(map(str, table[name]))) for name in WHERE}
    return {
        "suite": suite.name,
        "question": suite.question,
        "budget": suite.budget,
        "version": suite.version,
        "published": json.dumps(
            [vars(one) | {"case": case.name, "of": key} for case in suite.cases for key, one in case.published.items()]
        ),
        **{name: values[0] if len(values) == 1 else json.dumps(values) for name, values in several.items()},
    }


def _units(unit: str) -> dict[str, str]:
    return {"units": unit or "1"}


def _filled(sizes: tuple[int, ...], index: tuple[np.ndarray, ...], values: np.ndarray) -> np.ndarray:
    """Numbers at their places, NaN elsewhere."""
    whole = np.full(sizes, math.nan)
    whole[index] = values.astype(float)
    return whole


def _texts(
    sizes: tuple[int, ...], index: tuple[np.ndarray, ...], values: list[str | None], kept: np.ndarray | None = None
) -> np.ndarray:
    """Texts at their places, empty elsewhere."""
    whole = np.full(sizes, "", dtype=object)
    chosen = values if kept is None else [value for value, keep in zip(values, kept, strict=True) if keep]
    whole[index] = np.array([value or "" for value in chosen], dtype=object)
    return whole
