"""What several likelihoods share: scales above a floor, and the refusal of values outside the support."""

from torch import Tensor
from torch.nn.functional import softplus


def deviation(raw: Tensor, floor: float) -> Tensor:
    r""":math:`\sqrt{\epsilon + \mathrm{softplus}(g)^2}`, a standard deviation in units of the column."""
    return (floor + softplus(raw).square()).sqrt()


def tiny(above: Tensor, floor: float) -> Tensor:
    """The share of variances, ``above`` the floor by so much, that are below twice the floor or 1e-3 (...).

    In units of the data's own variances: all but a thousandth is explained, which is rare in data and common on the way
    to a singularity, however low the floor.
    """
    return (above < max(floor, 1e-3 - floor)).to(above).mean(-1)


def half_a_row(x: Tensor) -> Tensor:
    """Half an observation, as a share of the observed entries of every column (d,)."""
    return 0.5 / (~x.isnan()).sum(0).clamp_min(1).to(x)


def refuse(x: Tensor, fine: Tensor, columns: Tensor | None, way_out: str) -> None:
    """Raise at the first entry of ``x`` (n, d) that is not ``fine`` and not NaN.

    Raises:
        ValueError: names value, row and column, counted from 0, and the way out.
    """
    wrong = (~fine & ~x.isnan()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        number = column if columns is None else int(columns[column])
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"x holds {x[row, column].item():g} in row {row}, column {number}{more}, but {way_out}")
