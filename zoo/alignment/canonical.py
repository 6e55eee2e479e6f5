"""Canonical rotation, signs and labels: one choice among all with the same likelihood."""

from typing import get_args

import torch
from torch import Tensor

from zoo.alignment.orthomax import GAMMA, Rotation, orthomax_rotation
from zoo.alignment.symmetry import Alignment, Factors, Fitted, factors_of, mixture_of, unknown
from zoo.base.callables import PyroCallable
from zoo.infer.run import Fit


def canonical_transform(model: PyroCallable | Fit, rotation: Rotation = "principal") -> Alignment:
    """The transform to canonical coordinates, for draws and posterior means; see :func:`to_canonical`.

    Args:
        model: a linear-Gaussian model or a Gaussian mixture.
        rotation: the rotation of factors, see :func:`to_canonical`.

    Raises:
        TypeError: the model is neither linear-Gaussian nor a Gaussian mixture.
        ValueError: ``rotation`` is none of these.
    """
    if rotation not in get_args(Rotation):
        raise ValueError(f"rotation must be one of {', '.join(get_args(Rotation))}; got {rotation!r}")
    if (factors := factors_of(model)) is not None:
        return Alignment(rotation=canonical_rotation(factors, rotation))
    mixture = mixture_of(model)
    if mixture is None:
        raise unknown(model)
    keys = [(-round(w, 6), *mean) for w, mean in zip(mixture.weight.tolist(), mixture.mean.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Alignment(order=torch.tensor(order, device=mixture.weight.device))


def to_canonical(fitted: Fitted, rotation: Rotation = "principal") -> Fitted:
    r"""A copy of a model, or of a run, in coordinates determined by its likelihood, which is unchanged.

    Factors, ``"principal"``: the basis in which :math:`W^T \Psi^{-1} W` is diagonal with decreasing entries, so that
    the posterior covariance is diagonal, with the factors of highest signal first. It is unique where the entries
    differ.

    Factors, ``"varimax"``: the basis that maximises Kaiser's criterion, the variance within the columns of the squared
    loadings after scaling every row to length 1, found by plane rotations from the principal basis (of several maxima
    always the same one); factors in order of decreasing sum of squares.

    Factors, ``"quartimax"``: likewise for the sum of the fourth powers of the loadings, without that scaling. Oblique
    rotations, whose factors are correlated, are no transform of the model: see :func:`zoo.alignment.rotate`.

    In all, the loading of largest absolute value of every factor is positive. Sums of squares and absolute values are
    in standard deviations of the columns under the model, so the result does not depend on the columns' units.

    Mixtures: components in order of decreasing weight; weights equal to six digits in the lexicographic order of their
    means. ``rotation`` has no effect.

    Of a run, the guide is transformed together with the model, so that loadings, latent maps, exports and reports all
    show the same factors, and the bound is unchanged; see :meth:`zoo.alignment.Alignment.apply`.

    Args:
        fitted: a linear-Gaussian model (PPCA, FactorAnalysis) or a Gaussian mixture (GMM).
        rotation: the rotation of factors.

    Raises:
        TypeError: the model is neither. The factors of a network have no such symmetry: a rotation would change the
            function that the network computes.
        ValueError: ``rotation`` is none of these.

    References:
        Kaiser (1958), The varimax criterion for analytic rotation in factor analysis, Psychometrika 23(3); Lawley and
        Maxwell (1971), Factor Analysis as a Statistical Method.

    >>> import torch, zoo
    >>> from zoo.alignment import covariance
    >>> model = zoo.PPCA(3, 2)
    >>> plain = to_canonical(model)
    >>> torch.allclose(covariance(plain), covariance(model), atol=1e-5)
    True
    """
    return canonical_transform(fitted, rotation).apply(fitted)


# --- algebra -------------------------------------------------------------------------------------


def canonical_rotation(factors: Factors, rotation: Rotation) -> Tensor:
    """The orthogonal matrix (k, k) that rotates the weights to the canonical ones."""
    weight, noise = factors.weight, factors.noise
    # The right singular vectors of Psi^-1/2 W, without squaring it; QR first, as d may be much larger than k.
    triangle = torch.linalg.qr(weight / noise.sqrt().unsqueeze(1)).R
    turn = torch.linalg.svd(triangle).Vh.T  # (k, k), also where k > d
    unit = (noise + weight.square().sum(1)).sqrt().unsqueeze(1)
    if rotation != "principal":
        kaiser = rotation == "varimax"
        turn = turn @ orthomax_rotation(weight / unit @ turn, GAMMA[rotation], kaiser=kaiser)
        size = (weight / unit @ turn).square().sum(0)
        turn = turn[:, size.argsort(descending=True, stable=True)]
    loadings = weight / unit @ turn
    largest = loadings.abs() >= (1 - 1e-6) * loadings.abs().amax(0)  # the first of a tie, whatever the rounding
    sign = loadings.gather(0, largest.int().argmax(0, keepdim=True)).squeeze(0).sign()
    return turn * torch.where(sign == 0, torch.ones_like(sign), sign)
