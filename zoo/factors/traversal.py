"""Decoding along one factor, or between two points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars
import torch
from torch import Tensor

from zoo.base.checks import ArrayLike, check_whole
from zoo.base.pairs import Trained, known_columns, pair_of, rows_of
from zoo.base.protocols import Pair
from zoo.factors.decoding import Numbers, decoded_mean, encode, factor_site, placed
from zoo.factors.tables import columns_of, frame_of

Kind = Literal["linear", "spherical"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded factors.

    Attributes:
        z: the factors (..., k).
        mean: :math:`E[x \\mid z]` (..., d).
        columns: the names of the d columns; empty if unknown.
    """

    z: Tensor
    mean: Tensor
    columns: tuple[str, ...] = ()

    def summary(self) -> dict[str, float]:
        """The numbers of points and of factors."""
        return {"points": float(self.z[..., 0].numel()), "factors": float(self.z.shape[-1])}

    def frame(self) -> polars.DataFrame:
        """One line per point: its factors and its means."""
        return frame_of(
            columns_of("z", self.z.flatten(0, -2)) | columns_of("mean", self.mean.flatten(0, -2), self.columns)
        )

    def __repr__(self) -> str:
        points, k = self.z[..., 0].numel(), self.z.shape[-1]
        return f"Means of {points} points of {k} factors, {self.mean.shape[-1]} columns each"


@dataclass(frozen=True, eq=False)
class Traversal:
    """Decoded values of one factor, with the other factors fixed at m positions.

    Attributes:
        factor: its number, from 0.
        values: its values (s,).
        z: the factors (m, s, k).
        mean: :math:`E[x \\mid z]` (m, s, d).
        rows: the numbers of the m rows whose posterior means fix the other factors; None: they are at 0, and m = 1.
        columns: the names of the d columns; empty if unknown.
    """

    factor: int
    values: Tensor
    z: Tensor
    mean: Tensor
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] = ()

    @property
    def change(self) -> Tensor:
        """The range of every column's mean along the factor, averaged over the positions (d,)."""
        return (self.mean.amax(1) - self.mean.amin(1)).mean(0)

    def summary(self) -> dict[str, float]:
        """The factor, its first and last value, the number of positions, and the column that changes most."""
        most = int(self.change.argmax())
        ends = {"first": float(self.values[0]), "last": float(self.values[-1])}
        size = {"places": float(len(self.z)), "most_changed": float(most), "change": float(self.change[most])}
        return {"factor": float(self.factor)} | ends | size

    def frame(self) -> polars.DataFrame:
        """One line per position and value: the number of the row (or position), the value, and the means."""
        m, s = self.z.shape[:2]
        places = range(m) if self.rows is None else self.rows
        head: dict[str, list[float]] = {"row": [row for row in places for _ in range(s)]}
        head["value"] = self.values.tolist() * m
        return frame_of(head | columns_of("mean", self.mean.flatten(0, 1), self.columns))

    def __repr__(self) -> str:
        most = int(self.change.argmax())
        name = self.columns[most] if self.columns else f"column {most}"
        places = "the origin" if self.rows is None else f"{len(self.z)} row{'s' * (len(self.z) > 1)}"
        return (
            f"Traversal of factor {self.factor} from {float(self.values[0]):.3g} to {float(self.values[-1]):.3g} at "
            f"{places}: {name} changes most, by {float(self.change[most]):.3g}"
        )


@torch.no_grad()
def traverse(
    run: Trained,
    factor: int,
    *,
    values: Numbers | None = None,
    span: tuple[float, float] = (-3.0, 3.0),
    steps: int = 7,
    x: ArrayLike | None = None,
    rows: Sequence[int] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Traversal:
    """Decodes along one factor, with the others fixed.

    Args:
        run: a trained pair.
        factor: its number, from 0.
        values: its values (s,), in units of the prior; None: ``steps`` evenly spaced values over ``span``.
        span: the first and the last value.
        steps: the number of values, at least 2.
        x: rows (n, d) or a :class:`zoo.data.Dataset` whose posterior means fix the other factors; None fixes them at 0.
        rows: the numbers of the rows to use; None: all of ``x``.
        draws: number of draws for posterior means without a closed form, and of the shared sites.
        seed: seed of these draws.

    Raises:
        ValueError: the model has no factors or not this one, or an argument is out of range.
    """
    run = pair_of(run)
    k = factor_site(run, "traverse").shape.numel()
    factor = check_factor(factor, k, "factor")
    if values is None:
        low, high = (float(end) for end in span)
        if not (math.isfinite(low) and math.isfinite(high) and low != high):
            raise ValueError(f"span must be two different finite numbers, got {tuple(span)}")
        path = torch.linspace(low, high, check_whole(steps, "steps", 2), dtype=torch.float64)
    else:
        path = torch.as_tensor(values, dtype=torch.float64)
        if path.ndim != 1 or not len(path) or not path.isfinite().all():
            raise ValueError(f"values must be a list of finite numbers, got {values!r}")
    if x is None:
        if rows is not None:
            raise ValueError("rows selects rows of x: pass x as well, or omit both to fix the other factors at 0")
        chosen, held = None, placed(torch.zeros(1, k), run)
    else:
        chosen, held = places(run, x, rows, draws, seed)
    path = path.to(held)
    z = held.unsqueeze(1).repeat(1, len(path), 1)  # (m, s, k)
    z[..., factor] = path
    mean = decoded_mean(run, z.transpose(0, 1), chosen, x, draws, seed).transpose(0, 1)
    return Traversal(factor, path, z, mean, chosen, known_columns(run, x))


@torch.no_grad()
def interpolate(
    run: Trained,
    a: int | Numbers,
    b: int | Numbers,
    *,
    steps: int = 9,
    kind: Kind = "linear",
    x: ArrayLike | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Decoded:
    r"""Decodes points on the path from one point to another, both included.

    With t from 0 to 1, ``"linear"`` is :math:`z_t = (1 - t)\, a + t\, b`. ``"spherical"`` moves the direction from a to
    b at constant speed along the great circle and interpolates the length linearly: with many factors, the path stays
    where a Gaussian prior has its mass, far from 0.

    Args:
        run: a trained pair.
        a: the start: the number of a row of ``x``, for its posterior mean, or factors (k,).
        b: the end, likewise.
        steps: the number of points, at least 2.
        kind: ``"linear"`` or ``"spherical"``.
        x: rows (n, d) or a :class:`zoo.data.Dataset`, needed if ``a`` or ``b`` is the number of a row.
        draws: number of draws for posterior means without a closed form, and of the shared sites.
        seed: seed of these draws.

    Returns:
        factors (s, k) and means (s, d).

    Raises:
        ValueError: the model has no factors, a point is out of range, or for ``"spherical"`` a point is at 0 or the
            points are opposite, so that the great circle is not unique.

    References:
        Shoemake (1985), Animating rotation with quaternion curves, SIGGRAPH; White (2016), Sampling Generative
        Networks, arXiv 1609.04468.
    """
    run = pair_of(run)
    k = factor_site(run, "interpolate").shape.numel()
    check_whole(steps, "steps", 2)
    if kind not in ("linear", "spherical"):
        raise ValueError(f"kind must be 'linear' or 'spherical', got {kind!r}")
    start, end = (_point(run, value, name, k, x, draws, seed) for name, value in (("a", a), ("b", b)))
    t = torch.linspace(0, 1, steps, dtype=torch.float64).to(start).unsqueeze(1)  # (s, 1)
    z = start.lerp(end, t) if kind == "linear" else _great_circle(start, end, t)
    mean = decoded_mean(run, z.unsqueeze(1), None, x, draws, seed).squeeze(1)  # one row at every point
    return Decoded(z, mean, known_columns(run, x))


def check_factor(factor: int, k: int, name: str) -> int:
    """The number of a factor.

    Raises:
        ValueError: the model does not have it.
    """
    factor = check_whole(factor, name, 0)
    if factor >= k:
        raise ValueError(f"{name}: {factor} is out of range, as the model has {k} factors, counted from 0")
    return factor


def places(
    run: Pair, x: ArrayLike, rows: Sequence[int] | None, draws: int, seed: int
) -> tuple[tuple[int, ...], Tensor]:
    """The numbers of the chosen rows and their posterior means (m, k)."""
    means = encode(run, x, draws=draws, seed=seed)
    chosen = tuple(range(len(means)) if rows is None else (check_whole(row, "rows", 0) for row in rows))
    if not chosen:
        raise ValueError("rows is empty: pass the numbers of rows of x, or None for all")
    if max(chosen) >= len(means):
        raise ValueError(f"rows: {max(chosen)} is out of range, as x has {len(means)} rows, counted from 0")
    return chosen, means[list(chosen)]


def _point(run: Pair, given: int | Numbers, name: str, k: int, x: ArrayLike | None, draws: int, seed: int) -> Tensor:
    """Factors (k,), given directly or by the number of a row."""
    if isinstance(given, int):
        if x is None:
            raise ValueError(f"{name}={given} is the number of a row: pass the rows as x, or factors ({k},) as {name}")
        n = len(rows_of(run, x))
        if not 0 <= given < n:
            raise ValueError(f"{name}={given} is out of range, as x has {n} rows, counted from 0")
        return places(run, x, [given], draws, seed)[1][0]
    z = placed(given, run)
    if z.shape != (k,) or not z.isfinite().all():
        raise ValueError(f"{name} must be the number of a row of x, or {k} finite factors; got shape {tuple(z.shape)}")
    return z


def _great_circle(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (s, k) for ``t`` (s, 1): directions along the great circle, with linearly interpolated lengths."""
    lengths = torch.stack([start.norm(), end.norm()])
    if not lengths.all():
        raise ValueError(f"{'a' if lengths[0] == 0 else 'b'} is at 0 and has no direction: use kind='linear'")
    u, v = start / lengths[0], end / lengths[1]
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # accurate for small and for large angles
    if math.pi - angle < 1e3 * torch.finfo(u.dtype).eps:
        raise ValueError("a and b are opposite, so the great circle between them is not unique: use kind='linear'")
    if angle == 0:
        direction = u.expand(len(t), -1)
    else:
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / angle.sin()
    return lengths[0].lerp(lengths[1], t) * direction
