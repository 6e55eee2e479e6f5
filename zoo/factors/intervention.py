"""Decoding rows with some of their factors set to given values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars
import torch
from torch import Tensor

from zoo.base.checks import ArrayLike
from zoo.base.pairs import Trained, known_columns, pair_of
from zoo.factors.decoding import Numbers, decoded_mean, factor_site
from zoo.factors.tables import columns_of, frame_of
from zoo.factors.traversal import check_factor, places


@dataclass(frozen=True, eq=False)
class Intervention:
    """Rows decoded before and after some of their factors are set.

    Attributes:
        factors: the values set (m,), by the number of the factor, from 0.
        z: the factors after it (m, k).
        before: :math:`E[x \\mid z]` at the rows' posterior means (m, d).
        mean: the same after it (m, d).
        rows: the numbers of the m rows.
        columns: the names of the d columns; empty if unknown.
    """

    factors: dict[int, Tensor]
    z: Tensor
    before: Tensor
    mean: Tensor
    rows: tuple[int, ...]
    columns: tuple[str, ...] = ()

    @property
    def change(self) -> Tensor:
        """By how much every mean moves (m, d)."""
        return self.mean - self.before

    def summary(self) -> dict[str, float]:
        """The numbers of rows and of factors set, and the column that changes most, by its root mean square."""
        size = self.change.square().mean(0).sqrt()
        most = int(size.argmax())
        counts = {"rows": float(len(self.rows)), "factors": float(len(self.factors))}
        return counts | {"most_changed": float(most), "change": float(size[most])}

    def frame(self) -> polars.DataFrame:
        """One line per row: its number, its factors, and its means after the intervention."""
        parts: dict[str, Sequence[float]] = {"row": list(self.rows)}
        return frame_of(parts | columns_of("z", self.z) | columns_of("mean", self.mean, self.columns))

    def __repr__(self) -> str:
        found = self.summary()
        most = int(found["most_changed"])
        name = self.columns[most] if self.columns else f"column {most}"
        named = ", ".join(f"factor {factor}" for factor in self.factors)
        return f"Intervention on {named} of {len(self.rows)} rows: {name} changes most, by {found['change']:.3g}"


@torch.no_grad()
def intervene(
    run: Trained,
    x: ArrayLike,
    factors: Mapping[int, float | Numbers],
    *,
    rows: Sequence[int] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Intervention:
    """Decodes rows with some of their factors set to given values, and without.

    The other factors stay at the rows' posterior means under the guide: they are not conditioned on the values.

    Args:
        run: a trained pair.
        x: rows (n, d) or a :class:`zoo.data.Dataset`.
        factors: the values by the number of the factor, from 0: one value for all rows, or one per row (m,).
        rows: the numbers of the m rows; None: all of ``x``.
        draws: number of draws for posterior means without a closed form, and of the shared sites.
        seed: seed of these draws.

    Returns:
        factors (m, k) and means (m, d); :func:`zoo.plots.intervention` draws them.

    Raises:
        ValueError: the model has no factors or not this one, or the number of values differs from that of the rows.
    """
    run = pair_of(run)
    k = factor_site(run, "intervene").shape.numel()
    chosen, held = places(run, x, rows, draws, seed)
    z = held.clone()
    if not factors:
        raise ValueError("factors is empty: pass {factor: value}, or use zoo.reconstruct")
    for number, given in factors.items():
        factor = check_factor(number, k, "factors")
        value = torch.as_tensor(given).to(z)
        if value.shape not in ((), (len(z),)) or not value.isfinite().all():
            raise ValueError(
                f"factors[{factor}] must be a finite number or one for each of the {len(chosen)} rows, got shape "
                f"{tuple(value.shape)}"
            )
        z[:, factor] = value
    before, after = decoded_mean(run, torch.stack([held, z]), chosen, x, draws, seed)
    return Intervention({int(each): z[:, each] for each in factors}, z, before, after, chosen, known_columns(run, x))
