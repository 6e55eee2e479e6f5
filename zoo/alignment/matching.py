"""Alignment of one fit to another, by rotation or numbering, and the difference that remains."""

import scipy  # type: ignore[import-untyped]  # loads its subpackages on first use
import torch
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
from zoo.base.checks import ArrayLike, check_rows
from zoo.infer.run import Fit


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The principal angles between the column spaces of two matrices, in radians, in decreasing order.

    Each angle is computed from both its sine and its cosine, so that small angles keep all their digits (from cosines
    alone, angles below 1e-8 are lost).

    Args:
        a: (d, k).
        b: (d, m), with rows in the same units as ``a``.

    Returns:
        the angles (r,) in float64, r the smaller of the two ranks.

    Raises:
        ValueError: the matrices differ in their number of rows, or one is all zero.

    References:
        Bjoerck and Golub (1973), Numerical methods for computing angles between linear subspaces, Math. Comp. 27.
    """
    first, second = _basis(a, "a"), _basis(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} rows, b has {len(second)}: pass loadings of the same columns")
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    # scipy.linalg.subspace_angles is inaccurate where some angles are below 45 degrees and some above: for angles of
    # (1.2, 1e-9) it returns (1.2, 1.5e-8).
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


def match_components(a: PyroCallable | Fit, b: PyroCallable | Fit, x: ArrayLike | None = None) -> Tensor:
    """The numbering of the components of ``a`` that best matches the components of ``b``.

    Without rows, it minimises the sum over pairs of the Bhattacharyya distance between the two Gaussians, which does
    not depend on the units of the columns; given rows ``x``, it maximises the overlap of the responsibilities. Both by
    the Hungarian method.

    Args:
        a: a Gaussian mixture.
        b: another one, with the same number of components.
        x: rows (n, d), or None.

    Returns:
        order (k,): component ``order[j]`` of ``a`` is component j of ``b``.

    Raises:
        TypeError: a model is not a Gaussian mixture.
        ValueError: the models differ in their number of components or columns.
    """
    models = [model_of(each) for each in (a, b)]
    first, second = (mixture_of(model) for model in models)
    if first is None or second is None:
        raise TypeError(f"{name_of(models[first is not None])} has no components to match: pass Gaussian mixtures")
    check_same_shape(first.mean, second.mean, "components")
    if x is not None:
        with torch.no_grad():
            shares = [model.posterior(check_rows(x, model)).probs.double() for model in models]
        cost = -shares[0].T @ shares[1].to(shares[0].device)
    else:
        cost = torch.stack([_bhattacharyya(first, second, j) for j in range(len(second.weight))], 1)
    rows, columns = scipy.optimize.linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return order.to(first.weight.device)


def align(fitted: PyroCallable | Fit, reference: PyroCallable | Fit) -> Alignment:
    r"""The alignment of a fit to a reference; ``align(fitted, reference).apply(fitted)`` is the aligned copy.

    Factors: :func:`procrustes` of the two weights, with rows in units of the reference's noise
    (:math:`\Psi^{-1/2} W`), so that the units of the columns do not matter. Components: :func:`match_components`.

    Args:
        fitted: a linear-Gaussian model or a Gaussian mixture.
        reference: another one of the same shape.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ.
    """
    own, other = factors_of(fitted), factors_of(reference)
    if own is None or other is None:
        if own is not None or other is not None:
            names = " and ".join(name_of(model_of(each)) for each in (fitted, reference))
            raise TypeError(f"{names} have different symmetries: align two models of the same kind")
        if mixture_of(fitted) is None:
            raise unknown(fitted)
        return Alignment(order=match_components(fitted, reference))
    check_same_shape(own.weight, other.weight, "factors")
    unit = other.noise.sqrt().unsqueeze(1)
    return Alignment(rotation=procrustes(own.weight / unit, other.weight.to(own.weight) / unit.to(own.weight))[0])


def posterior_difference(fitted: PyroCallable | Fit, reference: PyroCallable | Fit, x: ArrayLike) -> Tensor:
    """The difference of the exact posterior means of two models on the rows ``x``, after :func:`align`.

    Args:
        fitted: a linear-Gaussian model or a Gaussian mixture.
        reference: another one of the same shape.
        x: rows (n, d).

    Returns:
        (n, k) in float64: the aligned mean minus the reference's, in standard deviations of the reference's posterior;
        for mixtures the difference of the responsibilities without a unit, as that of a certain label would be 0.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ, or they cannot take the rows.
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
    """The Bhattacharyya distance of every component of ``first`` (k,) to component j of ``second``."""
    mean, matrix = second.mean[j].to(first.mean), second.covariance[j].to(first.mean)
    offset, middle = first.mean - mean, (first.covariance + matrix) / 2
    apart = (offset * torch.linalg.solve(middle, offset)).sum(-1)
    logdets = [torch.linalg.slogdet(each).logabsdet for each in (middle, first.covariance, matrix)]
    return apart / 8 + (logdets[0] - (logdets[1] + logdets[2]) / 2) / 2
