"""How sure the loadings of a linear-Gaussian model are: intervals by the nonparametric bootstrap."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import normalize

from zoo.algebra.linear_gaussian import Moments
from zoo.alignment.canonical import canonical_rotation, canonical_transform, to_canonical
from zoo.alignment.matching import procrustes
from zoo.alignment.symmetry import Factors, model_of
from zoo.alignment.varimax import Rotation
from zoo.base.callables import PyroCallable
from zoo.base.checks import check_rows, check_whole, incomplete
from zoo.data.dataset import column_names
from zoo.infer.expectation_maximisation import em
from zoo.infer.run import Fit

Basis = Literal["fit", "own"]
# EM ends this near the maximum, in nats over all rows: a distance of 1.4% of a standard error, as a quadratic
# likelihood is z^2 / 2 below its maximum at z standard errors from it.
NEAR = 1e-4
FAR = 0.1  # a fit this far below its maximum, in nats, is 0.45 standard errors away from it
STEPS = 10_000  # to the maximum, at most
FAILED = 0.1  # the share of samples that may fail before the rest is a choice of easy ones
FAILURES = (ValueError, FloatingPointError, torch.linalg.LinAlgError)  # a column constant in a sample, say


@dataclass(frozen=True, eq=False)
class Loadings:
    """Loadings and their bootstrap replicates: what :func:`bootstrap_loadings` returns.

    Attributes:
        estimate: the loadings of the fit in its canonical rotation (d, k), in float64.
        replicates: those of the fits to the samples, in the same coordinates (draws, d, k).
        standardised: whether they are correlations of columns and factors, and not in the units of the columns.
        level: the share of the replicates that the intervals hold.
        rotation: the canonical rotation.
        basis: ``"fit"`` or ``"own"``: whose coordinates the replicates are in.
        columns: the names of the d columns.
        failed: the number of samples to which no model could be fitted; they are left out.
    """

    estimate: Tensor
    replicates: Tensor
    standardised: bool
    level: float
    rotation: Rotation
    basis: Basis
    columns: tuple[str, ...]
    failed: int

    @property
    def interval(self) -> Tensor:
        """The ends of the percentile intervals (2, d, k)."""
        edge = (1 - self.level) / 2
        return self.replicates.quantile(torch.tensor([edge, 1 - edge]).to(self.replicates), 0)

    @property
    def deviation(self) -> Tensor:
        """The standard errors: the standard deviation of the replicates (d, k)."""
        return self.replicates.std(0)

    @property
    def sure(self) -> Tensor:
        """Whether the interval of a loading leaves out 0 (d, k)."""
        low, high = self.interval
        return (low > 0) | (high < 0)

    def __repr__(self) -> str:
        d, k = self.estimate.shape
        failed = f", {self.failed} more failed" if self.failed else ""
        turned = "aligned to the fit" if self.basis == "fit" else f"each in its own {self.rotation} rotation"
        return (
            f"Loadings of {d} columns on {k} factor{'s' * (k != 1)} ({self.rotation}) by {len(self.replicates)} "
            f"bootstrap samples {turned}{failed}: the {100 * self.level:g}% intervals of {int(self.sure.sum())} of "
            f"{d * k} leave out 0"
        )


def bootstrap_loadings(
    run: PyroCallable | Fit,
    x: Any,
    *,
    draws: int = 200,
    level: float = 0.95,
    rotation: Rotation = "principal",
    basis: Basis = "fit",
    standardised: bool = True,
    seed: int = 0,
) -> Loadings:
    r"""Fits the model again to samples of n rows with replacement, and measures how far its loadings move.

    Every sample has its maximum of the likelihood, sought from the fit at hand so that all are the same maximum: by the
    eigenvalues of the sample's covariance where the rows are complete, by :func:`zoo.em` where entries are missing or
    the model is your own. None is a draw from a posterior: the intervals are those of the maximum-likelihood estimate
    under repeated sampling of rows, and do not assume that the model is right. Percentile intervals hold the truth
    somewhat less often than ``level`` says where rows are few, and say little at an edge (a uniqueness at its floor, a
    loading of size 1).

    Loadings are known only up to a rotation, so an interval needs a convention:

    - ``basis="fit"``: every replicate is turned to where it is nearest to the fit (:func:`zoo.alignment.align`). The
      factors are the fitted ones, their direction is taken as given, and the intervals are of the loadings on them:
      the narrower ones.
    - ``basis="own"``: every replicate is in its own canonical rotation, with factors in the order and with the signs
      that suit the fit. The intervals are those of the canonical loadings, wide where two factors explain about the
      same and either could come first.

    Args:
        run: a linear-Gaussian model (PPCA, FactorAnalysis) at its maximum likelihood, or a :class:`zoo.Fit` of one.
        x: the rows (n, d) it was fitted to, or a :class:`zoo.data.Dataset`, whose columns are named.
        draws: the number of samples, at least 2 / (1 - level).
        level: of the intervals, in (0, 1).
        rotation: ``"principal"`` or ``"varimax"``, see :func:`zoo.to_canonical`.
        basis: ``"fit"`` or ``"own"``.
        standardised: loadings in standard deviations of the columns under the model (each fit's own): correlations of
            columns and factors. False leaves them in the units of the columns.
        seed: of the samples; the caller's random stream is left alone.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: too few draws, an argument out of range, a model that is not at its maximum on these rows, or more
            than one in ten samples to which no model can be fitted; the message tells why.

    References:
        Efron (1979), Bootstrap methods: another look at the jackknife, Annals of Statistics 7; Timmerman, Kiers and
        Smilde (2007), Estimating confidence intervals for principal component loadings, British J. Math. Stat. Psych.
        60, and Zhang, Preacher and Luo (2010), Bootstrap confidence intervals for ordinary least squares factor
        loadings and correlations in exploratory factor analysis, Multivariate Behavioral Research 45, on the two bases.

    >>> import torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64)
    >>> model = zoo.PPCA(4, 1).double()
    >>> climb = zoo.em(model, x)
    >>> found = bootstrap_loadings(model, x, draws=50)
    >>> found.sure.squeeze(1).tolist()
    [True, True, True, True]
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    least = math.ceil(2 / (1 - level) - 1e-9)
    if check_whole(draws, "draws") < least:
        raise ValueError(f"draws must be at least {least} for intervals that hold {100 * level:g}%, got {draws}")
    if basis not in get_args(Basis):
        raise ValueError(f"basis must be one of {', '.join(get_args(Basis))}; got {basis!r}")
    model = copy.deepcopy(model_of(run))
    if canonical_transform(model, rotation).rotation is None:
        raise TypeError(
            f"{type(model).__name__} has components, not factors with loadings: take PPCA or FactorAnalysis"
        )
    columns, x = column_names(x), check_rows(x, model, least=2)
    model = model.double()
    reference = to_canonical(model, rotation)
    _refuse_far(model, x)
    unit = reference.noise.detach().sqrt().unsqueeze(1)
    replicates: list[Tensor] = []
    samples, errors = _samples(model, x, draws, seed)
    fitted = _in_short(model, samples) if all(isinstance(s, Moments) for s in samples) else _one_by_one(model, samples)
    for found in fitted:
        if isinstance(found, str):
            errors.append(found)
        elif basis == "fit":  # what zoo.alignment.align does, without its copies of the model
            turned = procrustes(found.weight.detach() / unit, reference.weight.detach() / unit)[1] * unit
            replicates.append(_loadings(turned, found.noise, standardised))
        else:
            replicates.append(_loadings(_own(found, reference, rotation), found.noise, standardised))
    if len(errors) > FAILED * draws:
        raise ValueError(
            f"{len(errors)} of {draws} samples could not be fitted, and the others are the easy ones: take more rows, "
            f"fewer factors, or leave out columns that hardly vary ({errors[0]})"
        )
    return Loadings(
        estimate=_loadings(reference.weight, reference.noise, standardised),
        replicates=torch.stack(replicates),
        standardised=standardised,
        level=float(level),
        rotation=rotation,
        basis=basis,
        columns=columns or tuple(f"x{j}" for j in range(x.shape[1])),
        failed=len(errors),
    )


def _refuse_far(model: Any, x: Tensor) -> None:
    """Samples would lie around the maximum, not around a fit that has not come to it."""
    if getattr(model, "fresh", False):
        raise ValueError(f"this {type(model).__name__} holds the parameters it was built with: fit it first, by zoo.em")
    with torch.no_grad():
        before = float(model.log_marginal(x.double()).sum())
    lacking = float(em(copy.deepcopy(model), x, tol=NEAR / len(x))[-1]) - before
    if lacking > FAR:
        raise ValueError(
            f"the model is {lacking:.3g} nats below its maximum on these rows, so that intervals would not be around "
            "it: bring it there by zoo.em(model, x), and pass the rows it was fitted to"
        )


def _samples(model: Any, x: Tensor, draws: int, seed: int) -> tuple[list[Tensor | Moments], list[str]]:
    """Samples of the rows with replacement: their moments, where the model is one of ours and nothing is missing.

    Returns:
        the samples, and why the others are not fit for the model.
    """
    generator = torch.Generator().manual_seed(seed)
    samples: list[Tensor | Moments] = []
    errors = []
    known = hasattr(model, "maximize") and not incomplete(x)
    for number in range(draws):
        sample = x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)]
        try:
            model.check(sample)
            samples.append(Moments.of(sample) if known else sample)
        except ValueError as error:
            errors.append(f"sample {number}: {error}")
    return samples, errors


def _one_by_one(model: Any, samples: list[Any]) -> Iterator[Any]:
    """Models fitted to samples (n, d), or why that failed."""
    for sample in samples:
        fitted = copy.deepcopy(model)
        try:
            em(fitted, sample, tol=NEAR / len(sample), steps=STEPS)
        except FAILURES as error:
            yield str(error)
        else:
            yield fitted


def _in_short(model: Any, samples: list[Any]) -> Iterator[Any]:
    """What :func:`_one_by_one` yields, from moments and without EM, which may creep for thousands of steps.

    All models are one object, to be read before the next one is asked for.
    """
    fitted = copy.deepcopy(model)
    for sample in samples:
        fitted.load_state_dict(model.state_dict())  # every search sets out from the fit
        try:
            fitted.maximize(sample)
        except FAILURES as error:
            yield str(error)
        else:
            yield fitted


def _loadings(weight: Tensor, noise: Tensor, standardised: bool) -> Tensor:
    """The weight (d, k), over the standard deviations of the columns under the model where that is asked for."""
    weight = weight.detach().double()
    if not standardised:
        return weight.clone()
    return weight / (noise.detach() + weight.square().sum(1)).sqrt().unsqueeze(1)


@torch.no_grad()
def _own(model: Any, reference: Any, rotation: Rotation) -> Tensor:
    """The weight (d, k) in the model's canonical rotation, with the order and the signs of the reference's columns.

    These are the ones of largest correlations with it, in units of its noise (Hungarian method).
    """
    weight, noise = model.weight.detach(), model.noise.detach()
    weight = weight @ canonical_rotation(Factors(weight, noise), rotation)  # zoo.to_canonical, without its copies
    unit = reference.noise.sqrt().unsqueeze(1)
    cross = normalize(weight / unit, dim=0).T @ normalize(reference.weight / unit, dim=0)
    own, theirs = linear_sum_assignment(-cross.abs().cpu().numpy())
    turn = torch.zeros_like(cross)
    turn[own, theirs] = torch.where(cross[own, theirs] < 0, -1.0, 1.0).to(cross)
    return weight @ turn
