"""A data set from a table in memory: arrays, tensors, data frames."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from zoo.base.frames import column_labels, column_values, frame_columns, frame_index, frame_series, is_frame
from zoo.base.tables import ArrayLike, named_rows
from zoo.data.dataset import Dataset
from zoo.data.series import tidy
from zoo.data.table import as_labels, pick

Labels = str | int | Sequence[Any] | np.ndarray | Tensor


def as_dataset(
    data: ArrayLike,
    labels: Labels | None = None,
    *,
    exclude: Sequence[str | int] = (),
    dummies: Sequence[str | int] = (),
    dtype: torch.dtype | None = None,
    name: str = "data",
) -> Dataset:
    """A :class:`Dataset` from what holds a table in memory, with the names of its columns and rows.

    Whatever :func:`zoo.fit` and the others take as rows can be passed: see :func:`zoo.base.tables.named_rows`.

    Args:
        data: a data frame of pandas, polars or another library, an array, a masked array, a sparse matrix, a tensor,
            nested sequences, a mapping of columns, a torch ``TensorDataset``, or a :class:`Dataset`.
        labels: the column of labels, by its name or, in an array, by its position; or n labels. Text or whole numbers,
            encoded in sorted order; ordered categories keep theirs. None: those of a :class:`Dataset`, and those of a
            ``TensorDataset`` of two tensors.
        exclude: columns of a frame to leave out, by name.
        dummies: columns of categories or text in a frame, by name, to be replaced by indicators 0 and 1 of every
            category but the first, whose indicator follows from the others. A missing category is NaN in all of them.
        dtype: floating-point type of ``x``; None keeps that of the data, float64 for whole numbers.
        name: the data set's name.

    Raises:
        TypeError: a column holds text, categories, dates or other things than numbers.
        ValueError: the table is not two-dimensional or empty, a column is unknown, or the labels have another length.

    >>> import polars
    >>> frame = polars.DataFrame({"height": [1.7, 1.8], "kind": ["b", "a"]})
    >>> data = as_dataset(frame, labels="kind")
    >>> data.columns, data.labels, data.label_names
    (('height',), tensor([1, 0]), ('a', 'b'))
    """
    if isinstance(data, Mapping):
        data = pl.DataFrame(dict(data), strict=False)
    if isinstance(data, TensorDataset) and labels is None and len(data.tensors) > 1:
        labels = data.tensors[1]
    if is_frame(data):
        found, labels = _of_frame(data, labels, exclude, dummies, name)
    elif exclude or dummies:
        raise ValueError("exclude and dummies name columns of a data frame: choose the columns of an array by indexing")
    elif isinstance(data, Dataset):
        found = data
    else:
        found, labels = _of_array(data, labels, name)
    x = found.x if found.x.is_floating_point() else found.x.double()
    found = replace(found, x=x if dtype is None else x.to(dtype))
    if labels is None:
        return found
    if len(labels) != len(found):  # type: ignore[arg-type]
        raise ValueError(f"labels has {len(labels)} entries, the table {len(found)} rows")  # type: ignore[arg-type]
    codes, names = as_labels(_series(labels), name)
    return replace(found, labels=codes, label_names=names)


def _of_frame(
    frame: Any, labels: Any, exclude: Sequence[str | int], dummies: Sequence[str | int], name: str
) -> tuple[Dataset, Any]:
    """The numbers of a frame, and its labels."""
    series = frame_series(frame)
    names = frame_columns(frame) or tuple(str(j) for j in range(len(series)))
    label = pick(labels, names, name) if isinstance(labels, str | int) else None
    out, coded = ({pick(column, names, name) for column in each} for each in (exclude, dummies))
    kept: dict[str, np.ndarray] = {}
    for j, (column, own) in enumerate(zip(names, series, strict=True)):
        if column == label:
            labels = own
        elif column in coded:
            kept |= _indicators(column, column_labels(own))
        elif column not in out:
            kept[column] = column_values(own, name, j, names)
    if not kept or not len(frame):
        raise ValueError(f"{name} is empty, {len(frame)} rows x {len(kept)} columns of numbers: nothing to fit")
    x = torch.from_numpy(np.column_stack(list(kept.values())))
    return Dataset(x, None, (), tuple(kept), name, name, "not stated", index=frame_index(frame)), labels


def _of_array(data: Any, labels: Any, name: str) -> tuple[Dataset, Any]:
    """The numbers of an array or a tensor, and its labels."""
    rows = named_rows(data, name)
    x = rows.values
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"{name} has shape {tuple(x.shape)}: pass one row per observation, (n, d)")
    names = rows.columns or tuple(str(j) for j in range(x.shape[1]))
    if isinstance(labels, str | int):
        j = names.index(pick(labels, names, name))
        labels, keep = x[:, j], [i for i in range(len(names)) if i != j]
        if not keep:
            raise ValueError(f"{name}: no columns left for x")
        x, names = x[:, keep], tuple(names[i] for i in keep)
    return Dataset(x, None, (), names, name, name, "not stated", index=rows.index), labels


def _indicators(name: str, series: pl.Series) -> dict[str, np.ndarray]:
    """Indicators 0 and 1 of every category but the first, by name; NaN where the category is missing."""
    ordered = list(series.dtype.categories) if isinstance(series.dtype, pl.Enum) else None
    text = tidy(series)
    kinds = [kind for kind in ordered or sorted(text.drop_nulls().unique()) if (text == kind).any()]
    missing = text.is_null().to_numpy()
    return {
        f"{name}_{kind}": np.where(missing, np.nan, (text == kind).fill_null(False).to_numpy()) for kind in kinds[1:]
    }


def _series(labels: Any) -> pl.Series:
    """Labels of any kind as a polars column."""
    if is_frame(labels):
        return column_labels(frame_series(labels)[0])
    if isinstance(labels, Tensor):
        labels = labels.cpu().numpy()
    return pl.Series("labels", labels if isinstance(labels, np.ndarray) else list(labels), strict=False)
