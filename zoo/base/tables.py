"""Tables as people have them, from arrays to data frames, as rows of numbers with the names of columns and rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from zoo.base.entries import NamedRows, number, refuse_beyond
from zoo.base.frames import frame_columns, frame_index, frame_values, is_frame

DENSE = 2**27  # numbers: a sparse matrix of at most this size, 1 GiB, is made dense


class HasTable(Protocol):
    """A data set, such as :class:`zoo.data.Dataset`: its rows are its attribute ``x``."""

    @property
    def x(self) -> Tensor:
        """The rows (n, d)."""
        ...


class HasArray(Protocol):
    """What NumPy makes an array of: a data frame of pandas or polars, a column, an array of another library."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The values."""
        ...


class HasDense(Protocol):
    """A sparse matrix or array of SciPy."""

    def toarray(self) -> np.ndarray:
        """The dense array."""
        ...


# Rows (n, d), or what is converted to them by :func:`named_rows`.
ArrayLike = (
    Tensor | np.ndarray | Sequence[Any] | HasTable | HasArray | HasDense | Mapping[str, Any] | TorchDataset | DataLoader
)


def named_rows(x: ArrayLike, name: str = "x") -> NamedRows:
    """A table as a tensor of numbers, with the names of its columns and rows where it has them.

    - Tensors and NumPy arrays of numbers are not copied, unless their memory cannot be shared.
    - Masked entries, None, and the missing values of pandas and polars become NaN; booleans become 0 and 1; arrays of
      objects and lists may hold ``Decimal`` and ``Fraction``.
    - Data frames: of pandas, polars, narwhals, and all others with the Arrow interface; a ``Series`` is one column;
      a mapping has one entry per column. A pandas ``MultiIndex`` is joined by ``_``.
    - Sparse matrices become dense, up to 2**27 numbers.
    - A torch ``TensorDataset``, its subsets and a ``DataLoader`` of them: the first tensor, in the data set's order.

    Args:
        x: the table.
        name: the argument's name, for error messages.

    Raises:
        TypeError: the table holds text, categories, dates, complex numbers or other objects; the message names the
            column, and the row where it is a single entry.
        ValueError: a sparse matrix is too large, column names are repeated, rows differ in length, or whole numbers
            exceed 2**53, above which float64 has gaps.
    """
    if isinstance(x, Tensor):
        return NamedRows(_tensor(x, name))
    if is_frame(x):
        return frame_values(x, name)
    if isinstance(x, Mapping):
        import polars

        return frame_values(polars.DataFrame(dict(x), strict=False), name)
    table = getattr(x, "x", None)
    if isinstance(table, Tensor):
        return NamedRows(table, tuple(getattr(x, "columns", ())), getattr(x, "index", None))
    if isinstance(x, DataLoader | TorchDataset):
        return NamedRows(_torch_rows(x, name))
    if hasattr(x, "toarray"):
        return NamedRows(_dense(x, name))
    if isinstance(x, Sequence) and len(x) and all(isinstance(row, Tensor) for row in x):
        try:
            return NamedRows(_tensor(torch.stack(list(x)), name))
        except RuntimeError:
            raise ValueError(f"{name} is a list of tensors of different shapes: pass one tensor (n, d)") from None
    return NamedRows(_array(_as_array(x, name), name))


def column_names(x: object) -> tuple[str, ...]:
    """The names of the columns of a data frame or a data set; empty where they have none.

    Raises:
        ValueError: a name is repeated.
    """
    if is_frame(x):
        return frame_columns(x)
    if isinstance(x, Mapping):
        return tuple(str(key) for key in x)
    return tuple(getattr(x, "columns", ())) if isinstance(getattr(x, "x", None), Tensor) else ()


def row_names(x: object) -> np.ndarray | None:
    """The index (n,) of a data frame or a data set, numbers or text; None for rows that are merely counted."""
    if is_frame(x):
        return frame_index(x)
    return getattr(x, "index", None) if isinstance(getattr(x, "x", None), Tensor) else None


def index_column(index: np.ndarray | None) -> dict[str, np.ndarray]:
    """The first column of a result's table, ``row``, with the names of the rows; nothing where they are counted."""
    return {} if index is None else {"row": index}


def _tensor(x: Tensor, name: str) -> Tensor:
    """A tensor, dense."""
    if x.layout is not torch.strided:
        _refuse_large(tuple(x.shape), name)
        x = x.to_dense()
    if x.dtype in (torch.int64, torch.uint64, torch.uint32, torch.uint16) and x.numel():
        if x.dtype != torch.int64:
            return _array(x.cpu().numpy(), name).to(x.device)
        refuse_beyond(x, name)
    return x


def _dense(x: Any, name: str) -> Tensor:
    """A sparse matrix, made dense."""
    if len(x.shape) == 2:
        _refuse_large(x.shape, name)
    return _array(np.asarray(x.toarray()), name)


def _refuse_large(shape: Sequence[int], name: str) -> None:
    """Refuse a sparse matrix that would not fit into memory.

    Raises:
        ValueError: names the size.
    """
    count = int(np.prod([float(size) for size in shape]))
    if count > DENSE:
        raise ValueError(
            f"{name} is sparse, {' x '.join(str(size) for size in shape)}: dense it would take {count * 8 / 2**30:.1f} "
            "GiB. Choose fewer columns or rows, or reduce it by sklearn.decomposition.TruncatedSVD first"
        )


def _torch_rows(data: Any, name: str) -> Tensor:
    """The rows of a torch data set."""
    if isinstance(data, DataLoader):
        return _torch_rows(data.dataset, name)
    if isinstance(data, TensorDataset):
        return _tensor(data.tensors[0], name)
    if isinstance(data, Subset):
        return _torch_rows(data.dataset, name)[torch.as_tensor(data.indices)]
    if isinstance(data, ConcatDataset):
        return torch.cat([_torch_rows(each, name) for each in data.datasets])
    raise TypeError(
        f"{name} is a {type(data).__name__}, whose rows are not in memory: pass a tensor (n, d), such as "
        "torch.stack([row for row, *_ in data])"
    )


def _as_array(x: Any, name: str) -> np.ndarray:
    """A NumPy array, of objects where the entries are of several kinds."""
    if isinstance(x, np.ndarray):
        return x
    if not (isinstance(x, Sequence) or hasattr(x, "__array__")) or isinstance(x, str | bytes):
        raise TypeError(
            f"{name} holds something other than numbers: an object of type {type(x).__name__}; pass a tensor (n, d)"
        )
    try:
        array = np.asarray(x)
        return np.asarray(x, dtype=object) if array.dtype.kind in "US" else array
    except ValueError:
        lengths = [len(row) if hasattr(row, "__len__") else 0 for row in x]
        odd = next((i for i, own in enumerate(lengths) if own != lengths[0]), 0)
        raise ValueError(
            f"{name} has rows of different lengths: row 0 has {lengths[0]} entries, row {odd} has {lengths[odd]}"
        ) from None
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} holds something other than numbers ({error}): pass a tensor (n, d)") from None


def _array(array: np.ndarray, name: str) -> Tensor:
    """A NumPy array of any kind as a tensor of numbers; masked entries become NaN."""
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    array = np.asarray(array.data) if isinstance(array, np.ma.MaskedArray) else np.asarray(array)
    kind = array.dtype.kind
    if kind == "V":
        fields = ", ".join(array.dtype.names or ()) or "none"
        raise TypeError(
            f"{name} is a structured array, with the fields {fields}: pass "
            f"numpy.lib.recfunctions.structured_to_unstructured({name}), or a data frame of it"
        )
    if kind == "c":
        raise TypeError(f"{name} is complex: pass real numbers")
    if kind in "mM":
        raise TypeError(
            f"{name} holds something other than numbers: dates or times ({array.dtype}); count days since a first date"
        )
    if kind in "OUS":
        array = _objects(array, mask, name)
    elif kind not in "biuf":
        raise TypeError(f"{name} holds something other than numbers: {array.dtype}; pass a tensor (n, d)")
    if kind in "iu" and array.dtype.itemsize == 8:
        refuse_beyond(np.where(mask, 0, array) if mask is not None else array, name)
    if mask is not None:
        array = array.astype(array.dtype if array.dtype.kind == "f" else np.float64)  # a copy
        array[mask] = np.nan
    if array.dtype.itemsize > 8 or (kind == "u" and array.dtype.itemsize > 1):
        array = array.astype(np.float64)  # torch has no such type, or hardly an operation for it
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch shares neither
    return torch.from_numpy(array)


def _objects(array: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    """An array of Python objects as float64.

    Raises:
        TypeError: an entry is no number; names the first one.
        ValueError: a whole number beyond 2**53.
    """
    found = np.full(array.shape, np.nan)
    for place in np.ndindex(array.shape):
        if mask is not None and mask[place]:
            continue
        found[place] = number(array[place], name, place)
    return found
