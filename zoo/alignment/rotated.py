"""Rotated factors of a linear-Gaussian model: loadings, communalities, factor correlations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import polars
import torch
from torch import Tensor

from zoo.alignment.canonical import canonical_rotation
from zoo.alignment.loadings import scaled
from zoo.alignment.oblique import Criterion, geomin, gradient_projection, oblimin, promax, starts
from zoo.alignment.orthomax import GAMMA, Rotation, orthomax_rotation
from zoo.alignment.symmetry import Factors, factors_of, model_of, unknown
from zoo.alignment.table import loadings_table
from zoo.base.callables import PyroCallable
from zoo.base.checks import check_whole
from zoo.base.pairs import known_columns
from zoo.infer.collapse import floored_columns
from zoo.infer.run import Fit

Oblique = Literal["promax", "oblimin", "geomin"]
Rotations = Rotation | Oblique


@dataclass(frozen=True, eq=False)
class RotatedFactors:
    r"""The factors of a fitted model in one rotation, what R's factanal and psych print; result of :func:`rotate`.

    Loadings are standardised: those of columns divided by their standard deviations under the model. With the new
    factors :math:`f = T^T z` of correlations :math:`\Phi = T^T T`, the correlation matrix of the columns is
    :math:`L \Phi L^T + U`, U the diagonal matrix of the uniquenesses. All tensors are float64, on the CPU.

    Attributes:
        pattern: L (d, k), the loadings: regression weights of the columns on the factors.
        correlations: Phi (k, k), of the factors; the identity if the rotation is orthogonal.
        transform: T (k, k): the new factors of a row are ``z @ transform``.
        uniquenesses: U (d,), the share of every column's variance that is noise.
        scale: the columns' standard deviations under the model (d,).
        rotation: its name.
        columns: the names of the d columns.
        at_floor: the names of columns whose uniqueness is at its floor or 0 (Heywood cases).
        starts: the number of starts of the search.
        near: the number of them that reached the best minimum of the criterion.
        converged: whether the search converged.
    """

    pattern: Tensor
    correlations: Tensor
    transform: Tensor
    uniquenesses: Tensor
    scale: Tensor
    rotation: Rotations
    columns: tuple[str, ...]
    at_floor: tuple[str, ...] = ()
    starts: int = 1
    near: int = 1
    converged: bool = True

    @property
    def oblique(self) -> bool:
        """Whether the factors may be correlated."""
        return self.rotation in get_args(Oblique)

    @property
    def structure(self) -> Tensor:
        r"""Correlations of columns and factors :math:`L \Phi` (d, k); equal to the pattern of orthogonal factors."""
        return self.pattern @ self.correlations

    @property
    def communalities(self) -> Tensor:
        r"""The share of every column's variance that the factors explain, the diagonal of :math:`L \Phi L^T` (d,)."""
        return (self.structure * self.pattern).sum(1)

    @property
    def complexity(self) -> Tensor:
        r"""Hofmann's complexity of every column, :math:`(\sum_j l_j^2)^2 / \sum_j l_j^4` (d,): 1 if it has one loading.

        Hofmann (1978), Complexity and simplicity as objective indices descriptive of factor solutions, Multivariate
        Behavioral Research 13.
        """
        square = self.pattern.square()
        return square.sum(1).square() / square.square().sum(1)

    @property
    def sums_of_squares(self) -> Tensor:
        r"""The variance that every factor explains, the diagonal of :math:`\Phi L^T L` (k,): SS loadings in psych."""
        return (self.correlations * (self.pattern.T @ self.pattern)).sum(1)

    @property
    def excess(self) -> bool:
        """Whether there are more factors than the covariances of d columns determine: (d - k)^2 < d + k.

        Uniquenesses and communalities of factor analysis are then not unique. False where all columns share one noise
        variance (PPCA), which is determined by any k below d.
        """
        d, k = self.pattern.shape
        noise = self.uniquenesses * self.scale.square()
        return (d - k) ** 2 < d + k and not torch.allclose(noise, noise[:1].expand_as(noise), rtol=1e-6, atol=0.0)

    def summary(self) -> dict[str, float]:
        """The numbers of columns and factors, the share of the variance explained, starts, and whether it converged."""
        d, k = self.pattern.shape
        return {
            "columns": float(d),
            "factors": float(k),
            "explained": float(self.communalities.mean()),
            "starts": float(self.starts),
            "near": float(self.near),
            "converged": float(self.converged),
        }

    def frame(self, which: Literal["pattern", "structure"] = "pattern") -> polars.DataFrame:
        """A row per column: its name, its loadings by factor, communality, uniqueness and complexity.

        Args:
            which: ``"pattern"`` or ``"structure"``, which differ if the factors are correlated.

        Raises:
            ValueError: it is neither.
        """
        if which not in ("pattern", "structure"):
            raise ValueError(f"which must be 'pattern' or 'structure', got {which!r}")
        loadings: Tensor = getattr(self, which)
        rest = {name: getattr(self, name) for name in ("communalities", "uniquenesses", "complexity")}
        names = {"communalities": "communality", "uniquenesses": "uniqueness"}
        return polars.DataFrame(
            {"column": list(self.columns)}
            | {name: loadings[:, j].tolist() for j, name in enumerate(self.factors)}
            | {names.get(name, name): value.tolist() for name, value in rest.items()}
        )

    def variance(self) -> polars.DataFrame:
        """A row per factor: its sum of squared loadings, the share of all variance, and the cumulative share."""
        share = self.sums_of_squares / len(self.pattern)
        values = {"sum_of_squares": self.sums_of_squares, "proportion": share, "cumulative": share.cumsum(0)}
        return polars.DataFrame({"factor": self.factors} | {name: value.tolist() for name, value in values.items()})

    def correlation_frame(self) -> polars.DataFrame:
        """The correlations of the factors, a row and a column per factor."""
        columns = {name: self.correlations[:, j].tolist() for j, name in enumerate(self.factors)}
        return polars.DataFrame({"factor": self.factors} | columns)

    @property
    def factors(self) -> list[str]:
        """The names of the factors: ``factor 0``, ``factor 1``, ..."""
        return [f"factor {j}" for j in range(self.pattern.shape[1])]

    @property
    def warnings(self) -> list[str]:
        """What to know before the loadings are read: Heywood cases, factors in excess, a search without an end."""
        found = []
        if self.at_floor:
            names = ", ".join(repr(name) for name in self.at_floor)
            found.append(
                f"Heywood case: the uniqueness of {names} is at its floor. The factors explain all of "
                f"{'it' if len(self.at_floor) == 1 else 'them'}: take fewer factors, or leave columns out"
            )
        if self.excess:
            d, k = self.pattern.shape
            found.append(
                f"{k} factors of {d} columns have more parameters than there are covariances ((d - k)^2 < d + k): "
                "uniquenesses and communalities of factor analysis are not unique"
            )
        if not self.converged:
            found.append(f"the search for the {self.rotation} rotation did not converge")
        return found

    def table(self, *, cutoff: float = 0.3, sort: bool = True, digits: int = 2) -> str:
        """The table of loadings as psych prints it: h2, u2, complexity, variances and factor correlations.

        Args:
            cutoff: loadings of smaller absolute value are left blank.
            sort: whether columns are grouped by the factor of their largest loading, largest first; else as they come.
            digits: after the decimal point.
        """
        return loadings_table(self, cutoff=cutoff, sort=sort, digits=digits)

    def __repr__(self) -> str:
        d, k = self.pattern.shape
        return f"RotatedFactors of {d} columns on {k} factor{'s' * (k != 1)} ({self.rotation})"

    def __str__(self) -> str:
        return self.table()


def rotate(
    fitted: PyroCallable | Fit,
    rotation: Rotations = "oblimin",
    *,
    kaiser: bool | None = None,
    gamma: float = 0.0,
    delta: float = 0.01,
    power: float = 4.0,
    starts: int = 10,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> RotatedFactors:
    r"""The factors of PPCA or factor analysis in a rotation of simple structure, with all that is reported of them.

    Orthogonal: ``"principal"``, ``"varimax"``, ``"quartimax"`` (see :func:`zoo.to_canonical`). Oblique, with correlated
    factors: ``"promax"`` (least squares of the varimax loadings to their ``power``), ``"oblimin"`` and ``"geomin"``
    (minima of these criteria by gradient projection, the best of several random starts). Factors are in order of
    decreasing variance explained (:attr:`RotatedFactors.sums_of_squares`), the largest loading of each positive.

    The model keeps its factors: scores in the new ones are :func:`zoo.factors.scores`, and
    :func:`zoo.to_canonical` transforms a model or a run by an orthogonal rotation.

    Args:
        fitted: a fitted linear-Gaussian model (PPCA, FactorAnalysis), a run, or the result of :func:`zoo.em`.
        rotation: one of these.
        kaiser: whether every column's loadings are scaled to length 1 for the search. None: as in R, which is yes for
            varimax and promax, no for quartimax, oblimin and geomin.
        gamma: of oblimin; 0 is quartimin, negative values are less oblique. At most 1.
        delta: of geomin, above 0.
        power: of promax, above 1.
        starts: of oblimin and geomin: the identity and random rotations.
        seed: of the random starts.
        columns: the names of the columns. None: those of the rows that the run was fitted to, else ``x0``, ``x1``, ...

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: an unknown rotation, or an argument out of range.

    References:
        Browne (2001), An overview of analytic rotation in exploratory factor analysis, Multivariate Behavioral
        Research 36; and those of :mod:`zoo.alignment.oblique`.

    >>> import torch, zoo
    >>> x = zoo.data.load("holzinger", dtype=torch.float64)
    >>> found = rotate(zoo.em(zoo.FactorAnalysis(9, 3).double(), x), "oblimin")
    >>> found.correlations[0].numpy().round(3).tolist()
    [1.0, 0.326, 0.216]
    """
    if rotation not in (known := (*get_args(Rotation), *get_args(Oblique))):
        raise ValueError(f"rotation must be one of {', '.join(known)}; got {rotation!r}")
    for name, value, right in (("gamma", gamma, gamma <= 1), ("delta", delta, delta > 0), ("power", power, power > 1)):
        if not right:
            raise ValueError(f"{name} is out of range, got {value!r}")
    check_whole(starts, "starts")
    factors = factors_of(fitted)
    if factors is None:
        raise unknown(fitted)
    factors = Factors(factors.weight.cpu(), factors.noise.cpu())
    loadings = scaled(factors.weight, factors.noise, True)  # (d, k)
    names = tuple(columns or known_columns(fitted)) or tuple(f"x{j}" for j in range(len(loadings)))
    if len(names) != len(loadings):
        raise ValueError(f"columns has {len(names)} names, the model has {len(loadings)} columns")
    scale = (factors.noise + factors.weight.square().sum(1)).sqrt()
    held = replace(
        _plain(factors, rotation, loadings, scale, names),
        at_floor=tuple(names[j] for j in floored_columns(model_of(fitted))),
    )
    principal = canonical_rotation(factors, "principal")
    if rotation in get_args(Rotation):
        normal = rotation == "varimax" if kaiser is None else kaiser
        turn = principal
        if rotation != "principal":
            turn = turn @ orthomax_rotation(loadings @ turn, GAMMA[rotation], kaiser=normal)
        return _ordered(held, loadings, turn)
    start = loadings @ principal
    criterion = {"oblimin": oblimin(gamma), "geomin": geomin(delta)}.get(rotation)
    turn, near, converged = _oblique(start, criterion, power, kaiser, starts, seed)
    used = 1 if criterion is None else starts
    return _ordered(replace(held, starts=used, near=near, converged=converged), loadings, principal @ turn)


def _plain(
    factors: Factors, rotation: Rotations, loadings: Tensor, scale: Tensor, names: tuple[str, ...]
) -> RotatedFactors:
    """The factors as they are."""
    eye = torch.eye(loadings.shape[1], dtype=loadings.dtype)
    return RotatedFactors(loadings, eye, eye, factors.noise / scale.square(), scale, rotation, names)


def _oblique(
    start: Tensor, criterion: Criterion | None, power: float, kaiser: bool | None, number: int, seed: int
) -> tuple[Tensor, int, bool]:
    """T (k, k) from the principal loadings, the number of starts that reached it, and whether it converged."""
    values = start.numpy()
    if criterion is None:
        return torch.from_numpy(promax(values, power, kaiser=kaiser is not False)), 1, True
    if kaiser:
        length = np.sqrt((values**2).sum(1, keepdims=True))
        values = np.divide(values, length, out=np.zeros_like(values), where=length > 1e-8 * length.max())
    turn, near, converged = gradient_projection(values, criterion, starts(values.shape[1], number, seed))
    return torch.from_numpy(turn), near, converged


def _ordered(held: RotatedFactors, loadings: Tensor, turn: Tensor) -> RotatedFactors:
    """The factors by a rotation T (k, k), in decreasing order of their variances and with positive largest loadings."""
    found = _turned(held, loadings, turn)
    turn = turn[:, found.sums_of_squares.argsort(descending=True, stable=True)]
    pattern = _turned(held, loadings, turn).pattern
    largest = pattern.abs() >= (1 - 1e-6) * pattern.abs().amax(0)  # the first of a tie, whatever the rounding
    sign = pattern.gather(0, largest.int().argmax(0, keepdim=True)).squeeze(0).sign()
    return _turned(held, loadings, turn * torch.where(sign == 0, torch.ones_like(sign), sign))


def _turned(held: RotatedFactors, loadings: Tensor, turn: Tensor) -> RotatedFactors:
    pattern = loadings @ torch.linalg.inv(turn).T
    correlations = turn.T @ turn
    correlations = (correlations + correlations.T) / 2
    return replace(held, pattern=pattern, correlations=correlations.fill_diagonal_(1.0), transform=turn)
