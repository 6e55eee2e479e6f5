"""Tables of this package's results, with the column names of the data if known."""

from collections.abc import Mapping, Sequence

import polars
from torch import Tensor


def columns_of(name: str, values: Tensor, names: Sequence[str] = ()) -> dict[str, list[float]]:
    """The columns of ``values`` (n, ...) by name: ``names``, else ``name[j]``, or ``name`` for one number per row."""
    flat = values.detach().cpu().reshape(len(values), -1)
    if len(names) == flat.shape[1]:
        titles = list(names)
    else:
        titles = [name] if values.ndim == 1 else [f"{name}[{j}]" for j in range(flat.shape[1])]
    return {title: column.tolist() for title, column in zip(titles, flat.T, strict=True)}


def frame_of(parts: Mapping[str, Sequence[float]]) -> polars.DataFrame:
    """A table of columns of equal length."""
    return polars.DataFrame({name: list(values) for name, values in parts.items()})


def only_site(values: Mapping[str, Tensor], what: str) -> Tensor:
    """The one entry of ``values``.

    Raises:
        ValueError: there are several data sites.
    """
    if len(values) != 1:
        names = ", ".join(f"'{name}'" for name in values) or "(none)"
        raise ValueError(f"the model has the data sites {names}: use {what}[name] of one of them")
    return next(iter(values.values()))
