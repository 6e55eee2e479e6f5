"""Intervals for the loadings of a linear-Gaussian model, by the nonparametric bootstrap."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import get_args

import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
from torch import Tensor
from torch.nn.functional import normalize

from zoo.alignment.canonical import canonical_rotation, canonical_transform, to_canonical
from zoo.alignment.loadings import Basis, Loadings, check_level, scaled
from zoo.alignment.matching import procrustes
from zoo.alignment.orthomax import Rotation
from zoo.alignment.symmetry import Factors, LinearModule, model_of
from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import ArrayLike, check_rows, incomplete
from zoo.base.moments import Moments
from zoo.base.pairs import known_columns
from zoo.base.protocols import Checked, Maximized, Placed
from zoo.base.threads import on_suited_threads
from zoo.infer.collapse import HeywoodCase
from zoo.infer.expectation_maximisation import em
from zoo.infer.run import Fit

# EM stops within this distance of the maximum, in nats over all rows. That is 1.4% of a standard error: a quadratic
# log-likelihood is z^2 / 2 below its maximum at z standard errors from it.
NEAR = 1e-4
FAR = 0.1  # nats below the maximum: 0.45 standard errors away from it
STEPS = 10_000  # largest number of EM steps per sample
FAILED = 0.1  # largest share of failed samples; with more, the remaining ones are a biased selection
FAILURES = (
    ValueError,
    FloatingPointError,
    torch.linalg.LinAlgError,
)  # e.g. of a constant column


@on_suited_threads
def bootstrap_loadings(
    run: PyroCallable | Fit,
    x: ArrayLike,
    *,
    draws: int = 200,
    level: float = 0.95,
    rotation: Rotation = "principal",
    basis: Basis = "fit",
    standardised: bool = True,
    seed: int = 0,
) -> Loadings:
    r"""Refits the model to samples of n rows drawn with replacement, and returns the spread of its loadings.

    Every replicate maximises the likelihood of its sample, starting from the given fit so that all replicates belong to
    the same mode: by the eigenvalues of the sample's covariance where the rows are complete, by :func:`zoo.em` where
    entries are missing or the model is a user's own. Replicates are not draws from a posterior: the intervals describe
    the maximum-likelihood estimate under repeated sampling of rows, and do not assume that the model is correct. With
    few rows, percentile intervals cover the truth somewhat less often than ``level``; at the boundary of the parameter
    space (a uniqueness at its floor, a loading of size 1) they are unreliable.

    Loadings are identified only up to a rotation, so an interval needs a convention:

    - ``basis="fit"``: every replicate is aligned to the fit (:func:`zoo.alignment.align`). The directions of the fitted
      factors are taken as given, and the intervals, the narrower of the two kinds, are of the loadings on them.
    - ``basis="own"``: every replicate is in its own canonical rotation, with the order and signs of its factors matched
      to the fit. The intervals are of the canonical loadings, and wide where two factors explain about the same
      variance, so that either could come first.

    Args:
        run: a linear-Gaussian model (PPCA, FactorAnalysis) at its maximum likelihood.
        x: the rows (n, d) it was fitted to, or a :class:`zoo.data.Dataset`, whose column names are then used.
        draws: the number of samples, at least 2 / (1 - level).
        level: the level of the intervals, in (0, 1).
        rotation: ``"principal"``, ``"varimax"`` or ``"quartimax"``, see :func:`zoo.to_canonical`.
        basis: ``"fit"`` or ``"own"``.
        standardised: divide loadings by the standard deviations of the columns under each fit, which makes them
            correlations of columns and factors. False leaves them in the units of the columns.
        seed: seed of the samples; the caller's random stream is not affected.

    Raises:
        TypeError: the model is not linear-Gaussian.
        ValueError: too few draws, an argument out of range, a model that is not at its maximum on these rows, or a
            failed fit on more than one in ten samples; the message names the reason.

    References:
        Efron (1979), Bootstrap methods: another look at the jackknife, Annals of Statistics 7; Timmerman, Kiers and
        Smilde (2007), Estimating confidence intervals for principal component loadings, British J. Math. Stat. Psych.
        60, and Zhang, Preacher and Luo (2010), Bootstrap confidence intervals for ordinary least squares factor
        loadings and correlations in exploratory factor analysis, Multivariate Behavioral Research 45: the two
        conventions.

    >>> import torch, zoo
    >>> x = zoo.data.load("iris", dtype=torch.float64)
    >>> model = zoo.PPCA(4, 1).double()
    >>> climb = zoo.em(model, x)
    >>> found = bootstrap_loadings(model, x, draws=50)
    >>> found.sure.squeeze(1).tolist()
    [True, True, True, True]
    """
    check_level(level, draws)
    if basis not in get_args(Basis):
        raise ValueError(f"basis must be one of {', '.join(get_args(Basis))}; got {basis!r}")
    model = copy.deepcopy(model_of(run))
    if canonical_transform(model, rotation).rotation is None:
        raise TypeError(f"{name_of(model)} has components, not factors with loadings: use PPCA or FactorAnalysis")
    columns, data = known_columns(run, x), check_rows(x, model, least=2)
    model = model.double()
    reference: LinearModule = to_canonical(model, rotation)
    _refuse_far(model, data)
    unit = reference.noise.detach().sqrt().unsqueeze(1)
    replicates: list[Tensor] = []
    samples, errors = _samples(model, data, draws, seed)
    moments = [sample for sample in samples if isinstance(sample, Moments)]
    rows = [sample for sample in samples if isinstance(sample, Tensor)]
    fitted = _by_em(model, rows) if rows else _by_moments(model, moments)
    for found in fitted:
        if isinstance(found, str):
            errors.append(found)
        elif basis == "fit":  # as zoo.alignment.align, without its copies of the model
            turned = procrustes(found.weight.detach() / unit, reference.weight.detach() / unit)[1] * unit
            replicates.append(scaled(turned, found.noise, standardised))
        else:
            replicates.append(scaled(_own(found, reference, rotation), found.noise, standardised))
    if len(errors) > FAILED * draws:
        raise ValueError(
            f"{len(errors)} of {draws} samples could not be fitted, so the others are a biased selection: use more "
            f"rows, fewer factors, or drop columns that hardly vary ({errors[0]})"
        )
    return Loadings(
        estimate=scaled(reference.weight, reference.noise, standardised),
        replicates=torch.stack(replicates),
        standardised=standardised,
        level=float(level),
        rotation=rotation,
        basis=basis,
        columns=columns or tuple(f"x{j}" for j in range(data.shape[1])),
        failed=len(errors),
    )


def _refuse_far(model: LinearModule, x: Tensor) -> None:
    """Refuses a fit below its maximum: the replicates would scatter around the maximum, not around the fit."""
    if isinstance(model, Placed) and model.fresh:
        raise ValueError(f"this {name_of(model)} has its initial parameters: fit it first, by zoo.em")
    with torch.no_grad():
        before = float(model.log_marginal(x.double()).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeywoodCase)  # of the fit, which is known
        lacking = float(em(copy.deepcopy(model), x, tol=NEAR / len(x))[-1]) - before
    if lacking > FAR:
        raise ValueError(
            f"the model is {lacking:.3g} nats below its maximum on these rows, so the intervals would not be centred "
            "on it: run zoo.em(model, x), and pass the rows it was fitted to"
        )


def _samples(model: LinearModule, x: Tensor, draws: int, seed: int) -> tuple[list[Tensor | Moments], list[str]]:
    """Samples of the rows with replacement: all as rows, or all as moments where the model can be fitted to these.

    Returns:
        the samples, and the reasons why the model refuses the others.
    """
    generator = torch.Generator().manual_seed(seed)
    samples: list[Tensor | Moments] = []
    errors = []
    known = isinstance(model, Maximized) and not incomplete(x)
    for number in range(draws):
        sample = x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)]
        try:
            if isinstance(model, Checked):
                model.check(sample)
            samples.append(Moments.of(sample) if known else sample)
        except ValueError as error:
            errors.append(f"sample {number}: {error}")
    return samples, errors


def _by_em(model: LinearModule, samples: Sequence[Tensor]) -> Iterator[LinearModule | str]:
    """The models fitted to samples (n, d) by EM, or the reasons for failure."""
    for sample in samples:
        fitted = copy.deepcopy(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HeywoodCase)  # of a sample
                em(fitted, sample, tol=NEAR / len(sample), steps=STEPS)
        except FAILURES as error:
            yield str(error)
        else:
            yield fitted


def _by_moments(model: LinearModule, samples: Sequence[Moments]) -> Iterator[LinearModule | str]:
    """The models fitted to moments by direct maximisation, where EM may take thousands of steps; or the failures.

    The same object is yielded every time: read it before advancing the iterator.
    """
    fitted = copy.deepcopy(model)
    assert isinstance(fitted, Maximized)
    for sample in samples:
        fitted.load_state_dict(model.state_dict())  # every search starts from the fit
        try:
            fitted.maximize(sample)
        except FAILURES as error:
            yield str(error)
        else:
            yield fitted


@torch.no_grad()
def _own(model: LinearModule, reference: LinearModule, rotation: Rotation) -> Tensor:
    """The weight (d, k) in the model's canonical rotation, with order and signs of the factors as in the reference.

    They maximise the sum of absolute correlations with it, in units of its noise (Hungarian method).
    """
    weight, noise = model.weight.detach(), model.noise.detach()
    weight = weight @ canonical_rotation(Factors(weight, noise), rotation)  # as zoo.to_canonical, without its copies
    unit = reference.noise.sqrt().unsqueeze(1)
    cross = normalize(weight / unit, dim=0).T @ normalize(reference.weight / unit, dim=0)
    own, theirs = scipy.optimize.linear_sum_assignment(-cross.abs().cpu().numpy())
    turn = torch.zeros_like(cross)
    turn[own, theirs] = torch.where(cross[own, theirs] < 0, -1.0, 1.0).to(cross)
    return weight @ turn
