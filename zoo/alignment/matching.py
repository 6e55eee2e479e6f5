"""One fit matched to another: rotations, numberings, and what is left between them."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

from zoo.alignment.symmetry import (
    Alignment,
    Mixture,
    check_same_shape,
    factors_of,
    mixture_of,
    model_of,
    unknown,
)
from zoo.base.callables import PyroCallable, name_of
from zoo.base.checks import check_rows
from zoo.infer.run import Fit


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The principal angles between the column spaces of two matrices, in radians, the largest first.

    Sines and cosines both come from singular values and the angle from both, so that small angles keep all their
    digits (from cosines alone, everything below 1e-8 is lost).

    Args:
        a: (d, k).
        b: (d, m), its rows in the same units as those of ``a``.

    Returns:
        as many angles as the smaller of the two ranks, in float64.

    Raises:
        ValueError: matrices of different height, or all zero.

    References:
        Bjoerck and Golub (1973), Numerical methods for computing angles between linear subspaces, Math. Comp. 27.
    """
    first, second = _basis(a, "a"), _basis(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} rows, b {len(second)}: take loadings of the same columns")
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    # scipy.linalg.subspace_angles takes sines or cosines by the wrong angle where some are below 45 degrees and some
    # above: of (1.2, 1e-9) it makes (1.2, 1.5e-8).
    cross = first.T @ second
    sines = torch.linalg.svdvals(second - first @ cross)
    cosines = torch.linalg.svdvals(cross)
    return torch.atan2(sines[: len(cosines)], cosines.flip(0))


def procrustes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal R (k, k) that minimises the Frobenius norm of ``a R - b``, and ``a R``.

    Raises:
        ValueError: ``a`` and ``b`` are not matrices of one shape.

    References:
        Schoenemann (1966), A generalized solution of the orthogonal Procrustes problem, Psychometrika 31.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must be matrices of one shape")
    left, _, right = torch.linalg.svd(a.T @ b)
    rotation = left @ right
    return rotation, a @ rotation


def match_components(a: PyroCallable | Fit, b: PyroCallable | Fit, x: Any = None) -> Tensor:
    """The numbering of the components of ``a`` that fits those of ``b`` best.

    By the Hungarian method, it minimises the sum over pairs of the Bhattacharyya distance of the two Gaussians, which
    does not depend on the units of the columns; or, given rows ``x``, maximises the overlap of their responsibilities.

    Args:
        a: a Gaussian mixture, or a :class:`zoo.Fit` of one.
        b: another one, with as many components.
        x: rows (n, d), or None.

    Returns:
        order (k,): component ``order[j]`` of ``a`` is component j of ``b``.

    Raises:
        TypeError: a model is no Gaussian mixture.
        ValueError: numbers of components or columns differ.
    """
    models = [model_of(each) for each in (a, b)]
    first, second = (mixture_of(model) for model in models)
    if first is None or second is None:
        raise TypeError(f"{name_of(models[first is not None])} has no components to match: take a mixture")
    check_same_shape(first.mean, second.mean, "components")
    if x is not None:
        with torch.no_grad():
            shares = [model.posterior(check_rows(x, model)).probs.double() for model in models]
        cost = -shares[0].T @ shares[1].to(shares[0].device)
    else:
        cost = torch.stack([_bhattacharyya(first, second, j) for j in range(len(second.weight))], 1)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return order.to(first.weight.device)


def align(fitted: PyroCallable | Fit, reference: PyroCallable | Fit) -> Alignment:
    r"""The alignment that brings a fit nearest to another: ``align(fitted, reference).apply(fitted)`` is the copy.

    Factors: :func:`procrustes` of the two weights, every row in units of the reference's noise
    (:math:`\Psi^{-1/2} W`), so that the units of the columns do not matter. Components: :func:`match_components`.

    Args:
        fitted: a linear-Gaussian model or a Gaussian mixture, or a :class:`zoo.Fit` of one.
        reference: another one of the same shape.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ.
    """
    own, other = factors_of(fitted), factors_of(reference)
    if own is None or other is None:
        if own is not None or other is not None:
            names = " and ".join(name_of(model_of(each)) for each in (fitted, reference))
            raise TypeError(f"{names} have no symmetry in common: align two models of one kind")
        if mixture_of(fitted) is None:
            raise unknown(fitted)
        return Alignment(order=match_components(fitted, reference))
    check_same_shape(own.weight, other.weight, "factors")
    unit = other.noise.sqrt().unsqueeze(1)
    return Alignment(rotation=procrustes(own.weight / unit, other.weight.to(own.weight) / unit.to(own.weight))[0])


def posterior_difference(fitted: PyroCallable | Fit, reference: PyroCallable | Fit, x: Any) -> Tensor:
    """The difference of the exact posterior means of two models on the rows ``x``, after :func:`align`.

    Args:
        fitted: a linear-Gaussian model or a Gaussian mixture, or a :class:`zoo.Fit` of one, whose model is taken.
        reference: another one of the same shape.
        x: rows (n, d).

    Returns:
        (n, k) in float64: aligned mean less the reference's, in standard deviations of the reference's posterior; for
        mixtures the plain difference of the responsibilities, as a sure label has no standard deviation.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ, or the rows are not fit for them.
    """
    alignment = align(fitted, reference)
    with torch.no_grad():
        models = [model_of(each) for each in (fitted, reference)]
        own, other = (model.posterior(check_rows(x, model)) for model in models)
        if alignment.rotation is None:
            return alignment.factors(own.probs.double()) - other.probs.double()
        return (alignment.factors(own.mean.double()) - other.mean.double()) / other.stddev.double()


def _basis(matrix: Tensor, name: str) -> Tensor:
    """An orthonormal basis of the column space, in float64."""
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix (d, k), got shape {tuple(matrix.shape)}")
    left, size, _ = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    kept = size > torch.finfo(matrix.dtype).eps * max(matrix.shape) * size[0]
    if not kept.any():
        raise ValueError(f"{name} is zero: its columns span nothing")
    return left[:, kept]


def _bhattacharyya(first: Mixture, second: Mixture, j: int) -> Tensor:
    """Bhattacharyya distance of every component of ``first`` (k,) from component j of ``second``."""
    mean, matrix = second.mean[j].to(first.mean), second.covariance[j].to(first.mean)
    offset, middle = first.mean - mean, (first.covariance + matrix) / 2
    apart = (offset * torch.linalg.solve(middle, offset)).sum(-1)
    logdets = [torch.linalg.slogdet(each).logabsdet for each in (middle, first.covariance, matrix)]
    return apart / 8 + (logdets[0] - (logdets[1] + logdets[2]) / 2) / 2
