"""The table of loadings as R's psych prints it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.alignment.rotated import RotatedFactors


def loadings_table(found: "RotatedFactors", *, cutoff: float, sort: bool, digits: int) -> str:
    """Loadings, variances and factor correlations as text; see :meth:`RotatedFactors.table`."""
    k, wide = found.pattern.shape[1], digits + 4
    short = [str(j) for j in range(k)]
    order = by_factor(found) if sort else list(range(len(found.columns)))
    left = max(len("proportion var"), *(len(name) for name in found.columns))
    parts = zip(found.pattern.tolist(), found.communalities.tolist(), found.uniquenesses.tolist(), strict=True)
    rows = [
        (name, [*(_number(v, digits, cutoff) for v in own), *(_number(v, digits) for v in (h2, u2, c))])
        for name, (own, h2, u2), c in zip(found.columns, parts, found.complexity.tolist(), strict=True)
    ]
    lines = [
        f"Standardised loadings ({found.rotation}), pattern matrix"
        if found.oblique
        else f"Standardised loadings ({found.rotation})"
    ]
    lines += _aligned("factor", [*short, "h2", "u2", "com"], left, wide)
    for i in order:
        lines += _aligned(*rows[i], left, wide)
    if cutoff > 0:
        lines.append(f"(loadings below {cutoff:g} in absolute value are left blank)")
    lines.append("")
    share = found.sums_of_squares / len(found.columns)
    for name, values in (
        ("SS loadings", found.sums_of_squares),
        ("proportion var", share),
        ("cumulative var", share.cumsum(0)),
    ):
        lines += _aligned(name, [_number(v, digits) for v in values.tolist()], left, wide)
    if found.oblique:
        lines += ["", "Factor correlations"]
        lines += _aligned("factor", short, left, wide)
        for name, values in zip(short, found.correlations.tolist(), strict=True):
            lines += _aligned(name, [_number(v, digits) for v in values], left, wide)
    return "\n".join([*lines, *(["", *found.warnings] if found.warnings else [])])


def by_factor(found: "RotatedFactors") -> list[int]:
    """The columns, grouped by the factor of their largest loading, in decreasing order of it."""
    size, own = found.pattern.abs().max(1)
    keys = [(factor, -value) for factor, value in zip(own.tolist(), size.tolist(), strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _aligned(name: str, values: Sequence[str], left: int, wide: int) -> list[str]:
    return [(name.ljust(left) + "".join(value.rjust(wide) for value in values)).rstrip()]


def _number(value: float, digits: int, cutoff: float = 0.0) -> str:
    return "" if abs(value) < cutoff else f"{value:.{digits}f}"
