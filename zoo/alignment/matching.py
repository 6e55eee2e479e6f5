"""One fit matched to another: rotations, numberings, and what is left between them."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # comes with scikit-learn
from torch import Tensor

from zoo.alignment.symmetry import Alignment, Mixture, check_same_shape, factors_of, mixture_of, unknown
from zoo.base.checks import check_rows


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


def match_components(a: Any, b: Any, x: Any = None) -> Tensor:
    """The numbering of the components of ``a`` that fits those of ``b`` best.

    The sum over pairs is least (Hungarian method) of the Bhattacharyya distance of the two Gaussians, which does not
    depend on the units of the columns; or, given rows ``x``, the rows on which their responsibilities overlap are most.

    Args:
        a: a Gaussian mixture.
        b: another one, with as many components.
        x: rows (n, d), or None.

    Returns:
        order (k,): component ``order[j]`` of ``a`` is component j of ``b``.

    Raises:
        TypeError: a model is no Gaussian mixture.
        ValueError: numbers of components or columns differ.
    """
    first, second = mixture_of(a), mixture_of(b)
    if first is None or second is None:
        raise TypeError(f"{type(a if first is None else b).__name__} has no components to match: take a mixture")
    check_same_shape(first.mean, second.mean, "components")
    if x is not None:
        with torch.no_grad():
            shares = [model.posterior(check_rows(x, model)).probs.double() for model in (a, b)]
        cost = -shares[0].T @ shares[1].to(shares[0].device)
    else:
        cost = torch.stack([_bhattacharyya(first, second, j) for j in range(len(second.weight))], 1)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(rows), dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return order.to(first.weight.device)


def align(model: Any, reference: Any) -> Alignment:
    r"""The gauge that brings ``model`` nearest to ``reference``: ``align(model, reference).apply(model)``.

    Factors: :func:`procrustes` of the two weights, every row in units of the reference's noise
    (:math:`\Psi^{-1/2} W`), so that the units of the columns do not matter. Components: :func:`match_components`.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ.
    """
    own, other = factors_of(model), factors_of(reference)
    if own is None or other is None:
        if own is not None or other is not None:
            raise TypeError(f"{type(model).__name__} and {type(reference).__name__} have no gauge in common")
        if mixture_of(model) is None:
            raise unknown(model)
        return Alignment(order=match_components(model, reference))
    check_same_shape(own.weight, other.weight, "factors")
    unit = other.noise.sqrt().unsqueeze(1)
    return Alignment(rotation=procrustes(own.weight / unit, other.weight.to(own.weight) / unit.to(own.weight))[0])


def posterior_difference(model: Any, reference: Any, x: Any) -> Tensor:
    """How far apart the exact posterior means of two models are on the rows ``x``, after :func:`align`.

    Args:
        model: a linear-Gaussian model or a Gaussian mixture.
        reference: another one of the same shape.
        x: rows (n, d).

    Returns:
        (n, k) in float64: aligned mean less the reference's, in standard deviations of the reference's posterior; for
        mixtures the plain difference of the responsibilities, as a sure label has no standard deviation.

    Raises:
        TypeError: the models are not both linear-Gaussian or both Gaussian mixtures.
        ValueError: their shapes differ, or the rows are not fit for them.
    """
    gauge = align(model, reference)
    with torch.no_grad():
        own, other = (each.posterior(check_rows(x, each)) for each in (model, reference))
        if gauge.rotation is None:
            return gauge.factors(own.probs.double()) - other.probs.double()
        return (gauge.factors(own.mean.double()) - other.mean.double()) / other.stddev.double()


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
